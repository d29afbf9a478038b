"""`Runs`: trainings from one start within one `fit`, and the mean of their ends.

start ──> epochs of the first run ──> its end ─┐
  └─────> epochs of the second    ──> its end ─┴─> mean: the weights when `fit` ends
"""

import keras
import numpy as np

from keras_delta import averaging, regularizers
from keras_delta._compat import array
from keras_delta._training.hooks import SessionHooks

AVERAGES = ("WeightAverage", "SwapEMAWeights")


class Runs(SessionHooks, keras.callbacks.Callback):
    """Goes back to the start after each run, and ends at the mean of the runs' ends.

    Runs differ in the order of the images, in what is drawn at random, and perhaps in
    the regularizer's alpha. Each begins with the weights, the optimizer and what the
    regularizer trains as they were at first. One that is stopped on the way counts only
    where there is no other.

    Args:
        shares: of alpha, one for each run; an alpha that is a schedule stays.
        epochs: of each.
        first: epoch that the first one begins with.
    """

    def __init__(self, shares, epochs, first=0):
        super().__init__()
        self._shares, self._epochs, self._first = shares, epochs, first
        self._forget()

    def _forget(self):
        self._ended, self._start, self._alphas, self._mean = 0, None, None, None

    def epochs_left(self, epoch):
        """Epochs of a run from one of them on."""
        return self._epochs - (epoch - self._first) % self._epochs

    def arrange(self, callbacks):
        """Refuse another callback that averages."""
        for other in callbacks:
            if type(other).__name__ in AVERAGES:
                raise ValueError(
                    f"{type(other).__name__} averages weights of one training, and the "
                    f"recipe those of {len(self._shares)} from one start. Use a recipe "
                    "with `runs=1`."
                )

    def on_epoch_begin(self, epoch, logs=None):
        """Begin a run."""
        if self._start is None:
            self._start = [array(v) for v in self._variables()]
            self._alphas = [m.alpha for m in self._members()]
        elif self.epochs_left(epoch) == self._epochs:
            for v, value in zip(self._variables(), self._start, strict=True):
                v.assign(value)
        else:
            return
        self._set_alphas(self._shares[self._ended])

    def on_epoch_end(self, epoch, logs=None):
        """Take in where a run ends."""
        if self.epochs_left(epoch) > 1:
            return
        self._ended += 1
        now = [array(v).astype("float64") for v in self._averaged()]
        pairs = zip(self._mean or now, now, strict=True)
        self._mean = [mean + (v - mean) / self._ended for mean, v in pairs]

    def on_train_end(self, logs=None):
        """Give the model the mean."""
        if self._mean is not None:
            for v, value in zip(self._averaged(), self._mean, strict=True):
                v.assign(value.astype(array(v).dtype))

    def after_fit(self, session):
        """Let go of the weights."""
        if self._alphas is not None:
            self._set_alphas(1.0)
        self._forget()

    def get_state(self):
        """What a backup is to keep; nothing before the start."""
        if self._start is None:
            return {}
        alphas = [None if callable(v) else v for v in self._alphas]
        kept = {"start": self._start, "ended": self._ended, "mean": self._mean}
        return {**kept, "alphas": alphas}

    def set_state(self, state):
        """Go on as of a backup."""
        self._start, self._mean = state["start"], state["mean"]
        self._ended, self._alphas = state["ended"], state["alphas"]

    def _set_alphas(self, share):
        for member, alpha in zip(self._members(), self._alphas, strict=True):
            if isinstance(alpha, float):
                member.alpha = share * alpha

    def _members(self):
        return regularizers.members(self.model.regularizer)

    def _averaged(self):
        return [v for v in self.model.target.weights if averaging.is_averaged(v)]

    def _variables(self):
        """What a run changes, but for random seeds, which go on."""
        model = self.model
        regularizer = [] if model.regularizer is None else model.regularizer.variables
        changed = [*model.target.weights, *regularizer, *model.optimizer.variables]
        return [v for v in changed if not _is_seed(v)]


def _is_seed(variable):
    return np.issubdtype(array(variable).dtype, np.unsignedinteger)
