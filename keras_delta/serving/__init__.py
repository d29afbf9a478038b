"""Exports fine-tuned models for serving."""

from keras_delta.serving.export import export_for_serving as export_for_serving
