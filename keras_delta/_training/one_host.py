"""A training in one process: what it asks of the others, of which there are none."""

import contextlib

from keras_delta import _compat


class OneHost:
    """A process on its own.

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
        """What Keras's `fit` calls with an iterator, for a `train_step`."""
        return _compat.loop_step(model, step)

    def test_function(self, model):
        """What Keras's `evaluate` calls; None for Keras's own."""
        return None

    def predict_function(self, model):
        """What Keras's `predict` calls; None for Keras's own."""
        return None

    def check_same(self, what, number):
        """Refuse a number that is another one in another process."""

    def check_same_samples(self, x):
        """Refuse arrays of another length in another process."""

    def copy_first(self, variables):
        """Give the first process's values to variables in all of them."""

    def check_same_start(self, model):
        """Refuse models that differ between the processes before the first step."""
