"""Training in one process: the interface to other processes, which do not exist."""

import contextlib

from keras_delta import _compat


class OneHost:
    """A single process.

    Args:
        strategy: its `tf.distribute.Strategy`.
    """

    is_single = True
    """Whether `train_on_batch`, several steps per execution and watching work."""

    def __init__(self, strategy):
        self.strategy = strategy

    @property
    def name(self):
        """The strategy's public name."""
        return _compat.strategy_name(self.strategy)

    @property
    def is_first(self):
        """Whether this process is the one that writes files."""
        return True

    def running(self):
        """Context in which Keras's `fit`, `evaluate` and `predict` run."""
        return contextlib.nullcontext()

    def writing(self):
        """Context for writing a file; yields whether this process writes it."""
        return contextlib.nullcontext(True)

    def loop_step(self, model, step):
        """The function of an iterator that Keras's `fit` calls, for a `train_step`."""
        return _compat.loop_step(model, step)

    def test_function(self, model):
        """The function that Keras's `evaluate` calls; None for the default."""
        return None

    def predict_function(self, model):
        """The function that Keras's `predict` calls; None for the default."""
        return None

    def check_same(self, what, number):
        """Refuse a number that differs in another process."""

    def check_same_samples(self, x):
        """Refuse arrays of another length in another process."""

    def copy_first(self, variables):
        """Copy the first process's values of variables to all processes."""

    def check_same_start(self, model):
        """Refuse models that differ between the processes before the first step."""
