"""Fine-tuning in one call: `fine_tune`."""

from keras_delta.fine_tuning.fine_tune import fine_tune as fine_tune
