"""Fine-tuned models for others to serve."""

from keras_delta.serving.export import export_for_serving as export_for_serving
