"""Advances data to their current position when an interrupted training resumes."""

import contextlib
import sys
import time
import warnings

import tensorflow as tf

from keras_delta import _compat
from keras_delta._inputs import samples

PATIENCE = 3.0  # seconds until a line says what is done


@contextlib.contextmanager
def unmoved(x):
    """What looks at training data meanwhile does not move sets of images on.

    A data set of `ImageSet.batches` counts its epochs, and what reads ahead
    (`prefetch` after `repeat`) would begin now one more of them and now one less.

    Args:
        x: the data as `fit` takes them; a `tf.data.Dataset` may be made of others.
    """
    counters = {c: c.upcoming for c in _epoch_counters(x)}
    try:
        yield
    finally:
        for counter, upcoming in counters.items():
            counter.upcoming = upcoming


def look(x, y=None, max_samples=None, weights=None):
    """`samples.collect`; sets of images are not moved on."""
    with unmoved(x):
        return samples.collect(x, y, max_samples, weights)


def _epoch_counters(x):
    if not isinstance(x, tf.data.Dataset):
        return
    if hasattr(x, "epoch_counter"):
        yield x.epoch_counter
    for made_of in _compat.made_of(x):
        yield from _epoch_counters(made_of)


def upcoming(x):
    """The epoch that an `ImageSet`'s data would begin next; None for other data."""
    return getattr(getattr(x, "epoch_counter", None), "upcoming", None)


def fast_forward(epoch_iterator, x, epochs, begins=None):
    """Put the data where they are after `epochs` epochs of training.

    The next epochs then have the order and the random augmentation that they would
    have had, were the training not interrupted. A data set of `ImageSet.batches`
    counts its epochs and is told the number; anything else is read without training,
    because its random numbers go on with each sample.

    What comes back is what was, if it can be drawn again at all: with
    `keras.utils.set_random_seed`, or seeds of one's own, before the data set is made.
    `map(..., num_parallel_calls=...)` with random operations and a `PyDataset` that
    draws in several workers give other numbers in each process, as does
    `shuffle` without any seed. So may `shuffle` before `repeat`, if a regularizer
    looked at the data first and what was read ahead went over the end of an epoch.

    Args:
        epoch_iterator: Keras's iterator over the training data, at its start.
        x: the data as `fit` took them.
        epochs: number of epochs that are done.
        begins: `upcoming(x)` as the training began, before it was interrupted; None:
            as now, for data that nothing was read of since.
    """
    if upcoming(x) is not None and not epoch_iterator.steps_per_epoch:
        begins = upcoming(x) if begins is None else begins
        x.epoch_counter.upcoming = begins + epochs
        return
    began, told = time.monotonic(), False
    for _ in range(epochs):
        for _ in _batches(epoch_iterator):
            if not told and time.monotonic() - began > PATIENCE:
                told = True
                print(
                    f"Reading the data of the {epochs} finished epochs, so that "
                    "their order continues unchanged ...",
                    file=sys.stderr,
                    flush=True,
                )


def _batches(epoch_iterator):
    """The batches of one epoch, taken as Keras's training loop takes them."""
    with warnings.catch_warnings(), epoch_iterator.catch_stop_iteration():
        warnings.filterwarnings("ignore", "Your input ran out of data")
        for _, _, batches in epoch_iterator:
            for _ in range(epoch_iterator.steps_per_execution):
                yield next(batches)
