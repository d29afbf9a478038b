"""From a source of images to batches of a `tf.data.Dataset`."""

import numpy as np
import tensorflow as tf

from keras_delta.data.sampling import check_seed
from keras_delta.data.sources import MemorySource
from keras_delta.errors import invalid


def stream_batches(
    source, labels, prepare, batch_size, *, seed, shuffle, cache, drop_remainder
):
    """Batches of prepared images with their labels.

    Args:
        source: source of the images, see `keras_delta.data.sources`.
        labels: `int64` array, one label per image.
        prepare: `keras_delta.data.augment.Protocol`.
        batch_size: images per batch.
        seed: integer; with the number of the epoch and of the image it decides all
            random choices.
        shuffle: whether to draw a new order in each epoch.
        cache: whether to decode and resize once, now, and keep the result.
        drop_remainder: whether to drop a last batch that is not full.

    Returns:
        `tf.data.Dataset` of (images, labels).

    Raises:
        ValueError: for a batch size or seed out of range, and for no images.
    """
    if isinstance(batch_size, bool) or (
        not isinstance(batch_size, int | np.integer) or batch_size < 1
    ):
        raise ValueError(invalid("batch_size", "a positive integer", batch_size))
    check_seed(seed)
    if len(source) == 0:
        raise ValueError("There are no images to batch: the set is empty.")
    if cache:
        source = _resized(source, prepare)
    labels = tf.constant(labels)

    def finish(index, epoch, image):
        image = image if cache else prepare.resize(image)
        image_seed = tf.random.fold_in(tf.stack([seed, epoch]), index)
        return prepare.finish(image, image_seed), labels[index]

    dataset = source.images(shuffle, seed)
    dataset = dataset.map(finish, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def _resized(source, prepare):
    """The same images in memory, decoded and resized."""
    images = source.images(shuffle=False, seed=0).map(
        lambda index, epoch, image: prepare.resize(image),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return MemorySource(list(images.as_numpy_iterator()), tf.float32)
