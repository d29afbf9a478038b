"""The loop around the training step: how Keras calls it, and how it is stopped."""

import contextlib
import signal
import sys
import threading

import keras
import tensorflow as tf

from keras_delta import _compat
from keras_delta._inputs.replay import fast_forward


def train_function(model):
    """What `fit` calls with an iterator, for `steps_per_execution` steps.

    Keras's own, except where that does not run: several steps on several replicas,
    and steps that are watched. There the steps are called one by one.

    Args:
        model: the `DeltaModel`.

    Returns:
        Callable, iterator over batches -> logs; raises StopIteration at the end.
    """
    step = model.hosts.loop_step(model, model.train_step)
    steps, every = model.steps_per_execution, model.watch_every
    replicas = model.distribute_strategy.num_replicas_in_sync
    if every is None and (steps == 1 or replicas == 1):
        return step
    watched = _compat.loop_step(model, lambda data: model._step(data, watch=True))

    def function(iterator):
        logs = None
        for _, data in zip(range(steps), _until_the_end(iterator), strict=False):
            number = int(model.optimizer.iterations.numpy())
            if every is not None and number % every == 0:
                logs, found = watched(iter([data]))
                model.watched = {"step": number, **found}
            else:
                logs = step(iter([data]))
        if logs is None:
            raise StopIteration
        return logs

    return function


def _until_the_end(iterator):
    with contextlib.suppress(tf.errors.OutOfRangeError):
        yield from iterator


class Begin(keras.callbacks.Callback):
    """What has to be done when all other callbacks have begun.

    A backup may have been read by then: the data are put where they were, and the
    step is traced anew if weights that it took for the source's are others now.
    """

    def __init__(self, x, initial_epoch=0):
        super().__init__()
        self._x, self._initial_epoch = x, initial_epoch

    def on_train_begin(self, logs=None):
        """Put the data where the interrupted training left them."""
        model = self.model
        if model.interrupted:  # Keras has reset it since
            model.stop_training = True
        if not model.shares_what_it_shared():
            model.make_train_function(force=True)
        if model._initial_epoch and not model.stop_training:
            done = model._initial_epoch - self._initial_epoch
            fast_forward(model.epoch_iterator, self._x, done)


@contextlib.contextmanager
def stopped_by_interrupt(model):
    """Ctrl-C ends the epoch after the step under way, and `fit` returns as usual.

    A second one interrupts at once. A handler that somebody else has set is left.
    """
    model.interrupted = False
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def stop(signum, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        model.interrupted = model.stop_training = True
        print(
            "\nStopping after this step, with the weights as they are then. Press "
            "Ctrl-C again to stop at once.",
            file=sys.stderr,
            flush=True,
        )

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
