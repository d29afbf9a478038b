"""What the callbacks of this package have in common."""

import os
from pathlib import Path

import keras
import numpy as np

from keras_delta._errors import invalid
from keras_delta.model import DeltaModel


class DeltaCallback(keras.callbacks.Callback):
    """A callback that needs a `DeltaModel` and can be copied and pickled.

    A subclass refuses in `check` what it cannot work on. The backup of a training
    keeps simple attributes (numbers, strings, lists, dicts, NumPy arrays) and puts
    them back between `on_train_begin` and the first `on_epoch_begin`: what must
    survive goes into such attributes, what must not into objects of other kinds.
    """

    left_behind = ("_model", "params")
    """Attributes that copies and pickles have as None."""

    def __getstate__(self):
        # Keras Tuner copies callbacks for each trial; a model must not go along.
        return {**self.__dict__, **dict.fromkeys(self.left_behind)}

    @property
    def writes(self):
        """Whether this process writes files: of several workers, the first alone."""
        return self.model.hosts.is_first

    def check(self, model):
        """Refuse a model that the callback cannot work on."""
        if not isinstance(model, DeltaModel):
            raise TypeError(
                f"{type(self).__name__} works on a DeltaModel. Received: a "
                f"{type(model).__name__}. Train with "
                "`keras_delta.DeltaModel(target, source=source).fit(...)`."
            )

    def before_fit(self, model):
        """Refuse early: `DeltaModel.fit` calls this before it looks at the data."""
        self.check(model)

    def on_train_begin(self, logs=None):
        """Refuse, where training began in another way than by `DeltaModel.fit`."""
        self.check(self.model)


def positive_integer(argument, value):
    """The value as an int; ValueError if it is no positive integer."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(invalid(argument, "a positive integer", value))
    return int(value)


def folder(argument, value):
    """The value as a `Path`; refused if it is no path, or the path of a file."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise TypeError(invalid(argument, "the path of a folder", value))
    path = Path(value)
    if path.exists() and not path.is_dir():
        remedy = "There is a file of this name: pass another one."
        raise ValueError(invalid(argument, "the path of a folder", value, remedy))
    return path
