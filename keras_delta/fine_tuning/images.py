"""Converts the data passed to `fine_tune` into what `fit` takes."""

import os
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from keras import tree

from keras_delta import _tasks, data
from keras_delta._errors import invalid
from keras_delta._inputs import samples
from keras_delta._inputs.training_data import TrainingData
from keras_delta._network import memory

FORMS = "a folder, an ImageSet, `(x, y)` arrays, or batches as `fit` takes them"


class Images(NamedTuple):
    """Training data.

    Attributes:
        batches: as `fit` takes them, with labels.
        steps: batches per epoch.
        class_names: tuple of names, None if unknown.
        units: number of head units that the labels require; None if unknown.
    """

    batches: Any
    steps: int
    class_names: tuple | None
    units: int | None


def read(given, argument="train"):
    """Folders and arrays of photographs as `ImageSet`; all else unchanged.

    Returns:
        (training data, validation data or None): both if a folder has both.
    """
    if isinstance(given, (str, os.PathLike)):
        given = data.from_directory(given)
    if isinstance(given, dict):
        if not isinstance(given.get("train"), data.ImageSet):
            raise TypeError(invalid(argument, FORMS, given))
        return given["train"], given.get("val")
    if isinstance(given, (tuple, list)) and _are_photographs(given):
        x, y = (np.asarray(v) for v in given)
        return data.ImageSet.from_arrays(x, y.reshape(-1)), None
    return given, None


def _are_photographs(given):
    """Whether arrays are bytes of RGB or grey images with one class number each."""
    if len(given) != 2 or not samples.are_arrays(given[0]):
        return False
    x, y = given
    if isinstance(x, (list, dict)) or getattr(x, "dtype", None) != np.uint8:
        return False
    y = np.asarray(y)
    one = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    return one and y.dtype.kind in "iu" and np.ndim(x) in (3, 4)


def same_classes(train, validation):
    """Refuse sets whose class numbers stand for other classes."""
    sets = [v for v in (train, validation) if isinstance(v, data.ImageSet)]
    names = [v.class_names for v in sets]
    if len(sets) < 2 or names[0] == names[1]:
        return
    if all(own == tuple(map(str, range(len(own)))) for own in names):
        return  # numbers of arrays: some may be missing, and some may be quantities
    expected = f"images with the classes of `train`, {list(names[0])}"
    remedy = "Read both at once, from a folder with `train` and `val`: "
    remedy += "`keras_delta.data.from_directory(folder)`."
    raise ValueError(invalid("validation", expected, list(names[1]), remedy))


def for_training(given, size, recipe, seed, task):
    """`Images` from the output of `read`: batches, mirrored and cropped at random."""
    if isinstance(given, data.ImageSet):
        _labelled(given, "train")
        batches = given.batches(
            size,
            recipe.batch_size,
            protocol=recipe.augmentation or "default",
            training=recipe.augmentation is not None,
            shuffle=True,
            seed=seed,
            cache=_fits(given, size),
        )
        names = given.class_names
        one = task in (_tasks.BINARY, _tasks.REGRESSION)
        units = 1 if one else len(names)
        return Images(batches, len(batches), names, units)
    pair = isinstance(given, (tuple, list))
    if pair and len(given) != 2:
        raise TypeError(invalid("train", FORMS, given))
    x, y = given if pair else (given, None)
    seen = TrainingData(x, y, recipe.batch_size if y is not None else None)
    names = getattr(given, "class_names", None)
    units = len(names) if names else _units(seen, task)
    names = names and tuple(names)
    steps = _steps(x, seen)
    if y is not None:  # with a seed, Keras repeats the first epoch's order in all
        x = _shuffled((x, y), seen.count, recipe.batch_size, seed)
    return Images(x, steps, names, units)


def for_validation(given, size, recipe):
    """Validation data as `fit` takes it; None stays None."""
    if not isinstance(given, data.ImageSet):
        return given
    _labelled(given, "validation")
    cache = _fits(given, size)
    return given.batches(
        size, 64, protocol=recipe.augmentation or "default", cache=cache
    )


def _shuffled(arrays, count, batch_size, seed):
    """Batches in a new order each epoch; indices are shuffled, not images."""
    arrays = tree.map_structure(tf.convert_to_tensor, arrays)
    order = tf.data.Dataset.range(count).shuffle(count, seed=seed).batch(batch_size)
    return order.map(lambda i: tree.map_structure(lambda v: tf.gather(v, i), arrays))


def size_of(given, source_shape):
    """Height and width of the images of batches or arrays; of a network's input."""
    spec = getattr(given, "element_spec", None)
    first = given[0] if isinstance(given, (tuple, list)) else None
    for shape in (
        None if spec is None else tree.flatten(spec)[0].shape,
        None if first is None else np.shape(first),
        source_shape,
    ):
        if shape is not None and len(shape) == 4 and None not in shape[1:3]:
            return tuple(shape[1:3])
    return None


def _steps(x, seen):
    steps = seen.count_steps(1, None) or getattr(x, "num_batches", None)
    if not steps:
        expected = "data with a known number of batches, which the schedule needs"
        remedy = "For a tf.data.Dataset: `train.apply("
        remedy += "tf.data.experimental.assert_cardinality(n))`."
        raise ValueError(invalid("train", expected, x, remedy))
    return steps


def _labelled(images, argument):
    if images.labels is None:
        raise ValueError(invalid(argument, "images with labels", images))


def _fits(images, size):
    """Whether the decoded images fit into a quarter of the available memory."""
    height, width = (size, size) if np.ndim(size) == 0 else size
    needed = len(images) * (height * 8 // 7) * (width * 8 // 7) * 12
    free = memory.available()
    return free is None or needed < free / 4


def _units(seen, task):
    """Number of head units that the labels require; None if unknown."""
    if task == _tasks.BINARY:
        return 1
    labels = tree.flatten(seen.labels)
    if len(labels) != 1:
        return None
    labels = np.asarray(labels[0])
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.shape[1]
    if task == _tasks.REGRESSION:
        return 1
    if seen.all_labels and labels.dtype.kind in "iu":
        return int(labels.max(initial=0)) + 1
    return None
