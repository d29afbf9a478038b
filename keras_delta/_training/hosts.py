"""One host or several: what a training asks of the processes that take part in it.

`of(strategy)` is the only place that tells them apart. Everything else calls the
methods below, which do next to nothing on one host; `several_hosts.py` does them
under `tf.distribute.MultiWorkerMirroredStrategy`.
"""

import contextlib

import numpy as np

from keras_delta import _compat


def of(strategy):
    """The `OneHost` or `SeveralHosts` of a strategy."""
    if _compat.has_several_workers(strategy):
        # Few have several, and these import what reads and digests batches.
        from keras_delta._training.several_hosts import SeveralHosts

        return SeveralHosts(strategy)
    return OneHost(strategy)


class OneHost:
    """A process on its own.

    Args:
        strategy: its `tf.distribute.Strategy`.
    """

    runs_single_steps = True
    """Whether `train_on_batch`, several steps per execution and watching work."""

    def __init__(self, strategy):
        self.strategy = strategy

    @property
    def name(self):
        """The strategy's public name."""
        return type(self.strategy).__name__

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
        """What Keras's `fit` or `evaluate` calls for a `train_step` or `test_step`."""
        return _compat.loop_step(model, step)

    def predict_function(self, model):
        """What Keras's `predict` calls; None for Keras's own."""
        return None

    def first_value(self, value):
        """The first process's value, on all of them."""
        return np.asarray(value)

    def any(self, flag):
        """Whether a flag is true in any process."""
        return bool(flag)

    def check_same(self, what, number):
        """Refuse a number that is another one in another process."""

    def copy_first(self, variables):
        """Give the first process's values to variables in all of them."""

    def check_same_start(self, model):
        """Refuse models that differ between the processes before the first step."""
