"""Says what to install if Keras Tuner is missing."""

from keras_delta._errors import import_optional

for module in ("keras_tuner", "grpc"):
    import_optional(module, "keras_delta.tuning", "tuning")
