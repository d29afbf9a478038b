"""Turns a source of images into batches of a `tf.data.Dataset`."""

import functools
import math

import tensorflow as tf

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta.data.augment import Protocol
from keras_delta.data.sources import MemorySource


def stream_batches(
    source, labels, prepare, batch_size, *, seed, shuffle, views, cache, drop_remainder
):
    """Batches of prepared images with their labels, see `ImageSet.batches`.

    Args:
        source: see `keras_delta.data.sources`.
        labels: `int64` array, one label per image; or None.
        prepare: `keras_delta.data.augment.Protocol`.

    Returns:
        `tf.data.Dataset` of (images, labels). If the epoch number determines all
        random choices, its attribute `epoch_counter` gives that number. Its
        attribute `image_views` is the number of views of an image, or infinity,
        and `image_count` that of images;
        `in_order()` returns the same views in the order of the set, `as_tested()`
        the single test view.
    """
    _arguments.integer("batch_size", batch_size)
    _arguments.integer("views", views, optional=True)
    _arguments.seed("seed", seed)
    if views is not None and not prepare.training:
        remedy = "Without training, nothing is random: each image has one view."
        raise ValueError(invalid("views", "None without training=True", views, remedy))
    if len(source) == 0:
        raise ValueError("Cannot batch an empty set of images.")
    original = source
    if cache:
        (source,) = resized(source, prepare)
    labels = None if labels is None else tf.constant(labels)
    ready = _is_resized(source, prepare)

    def finish(index, epoch, image):
        image = image if ready else prepare.resize(image)
        shown = epoch if views is None else epoch % views
        image_seed = tf.random.fold_in(tf.stack([seed, shown]), index)
        image = prepare.finish(image, image_seed)
        return image if labels is None else (image, labels[index])

    def finish_for_test(index, epoch, image):
        tested = Protocol(prepare.name, prepare.size)
        image = tested.finish(tested.resize(image), None)
        return image if labels is None else (image, labels[index])

    def make(source, finish, shuffle=False, drop_remainder=False):
        images = source.images(shuffle, seed)
        dataset = images.map(finish, num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
        dataset = dataset.with_options(_in_order()).prefetch(tf.data.AUTOTUNE)
        if hasattr(images, "epoch_counter"):
            dataset.epoch_counter = images.epoch_counter
        return dataset

    dataset = make(source, finish, shuffle, drop_remainder)
    dataset.image_count = len(source)
    dataset.image_views = views or (math.inf if prepare.training else 1)
    dataset.in_order = functools.partial(make, source, finish)
    # What is cached for training has another size than a test image.
    dataset.as_tested = functools.partial(make, original, finish_for_test)
    return dataset


def _in_order():
    options = tf.data.Options()
    options.deterministic = True
    return options


def resized(source, *prepares):
    """The same images in memory, decoded once and resized for each of `prepares`.

    Returns:
        List of sources, one for each; the source itself if it was already resized.
    """
    if all([_is_resized(source, prepare) for prepare in prepares]):
        return [source] * len(prepares)
    images = source.images(shuffle=False, seed=0).map(
        lambda index, epoch, image: tuple(p.resize(image) for p in prepares),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    columns = [[] for _ in prepares]
    for row in images.as_numpy_iterator():
        for column, image in zip(columns, row, strict=True):
            column.append(image)
    return [
        MemorySource(column, prepare.resized_dtype, resized_for=prepare.resizing)
        for column, prepare in zip(columns, prepares, strict=True)
    ]


def _is_resized(source, prepare):
    there = getattr(source, "resized_for", None)
    if there not in (None, prepare.resizing):
        raise ValueError(
            f"The images were resized for {there} and cannot be used for "
            f"{prepare.resizing} (protocol, image size, training). Call `resized` on "
            "the original images."
        )
    return there is not None
