"""The training data of a search, cut into folds."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_delta import _arguments, _tasks
from keras_delta._errors import invalid
from keras_delta._inputs import samples
from keras_delta._network import fingerprint
from keras_delta.caching import probe
from keras_delta.data import ImageSet
from keras_delta.data.sampling import fold_indices
from keras_delta.data.sources import epochs

LOOKED_AT = 64  # samples whose digest distinguishes data sets
NO_WEIGHTS = (
    "A search takes no sample weights. Pass `(x, y)` and, as `batches`, a function "
    "that makes weighted batches from a part of them."
)


def cut(
    x,
    y=None,
    *,
    folds,
    seed,
    batch_size,
    image_size,
    views,
    protocol,
    batches,
    task=None,
    check=None,
):
    """Cuts the data passed to `search` into folds.

    Args:
        x, y, batch_size, image_size, views, protocol, batches: as `search` takes them.
        folds: number of folds.
        seed: seed of the folds and of the order of the data.
        task: the task, as `_tasks` names it; None if unknown.
        check: called with all labels unless `batches` changes them.
    """
    _arguments.seed("seed", seed)
    if isinstance(x, tuple) and y is None and len(x) == 3:
        raise ValueError(NO_WEIGHTS)
    if isinstance(x, tuple) and y is None and len(x) == 2:
        x, y = x
    if check is None or batches is not None:
        check = _unchecked
    if isinstance(x, ImageSet):
        if y is not None:
            raise ValueError(invalid("y", "None, because `x` has the labels", y))
        check(x.labels)
        data = Images(x, folds, seed)
        if batches is None:
            data.prepare(image_size, batch_size, views, protocol)
    else:
        if hasattr(x, "element_spec"):
            if y is not None:
                raise ValueError("A tf.data.Dataset contains the targets: omit `y`.")
            x, y = _read(x, batch_size)
        if y is None or not all(hasattr(v, "shape") for v in tree.flatten((x, y))):
            expected = "a kd.data.ImageSet, arrays (x, y), or a tf.data.Dataset"
            raise TypeError(invalid("x", expected, x))
        check(y)
        data = Arrays(x, y, folds, seed, batch_size, task)
    if batches is None:
        return data
    if not callable(batches):
        raise TypeError(invalid("batches", "a function (part, training)", batches))
    return Prepared(data, batches, seed)


def _unchecked(y):
    pass


def _read(dataset, batch_size):
    remedy = "Pass the data without augmentation, and the augmentation as `batches`."
    if isinstance(dataset.element_spec, tuple) and len(dataset.element_spec) > 2:
        raise ValueError(NO_WEIGHTS)
    samples.collect(dataset, max_samples=1)  # rejects data without batches or targets
    try:
        probe.check_data(dataset, None, batch_size, views=1)
    except ValueError as e:
        raise ValueError(
            "A search cuts its data into folds, which is impossible for a "
            f"tf.data.Dataset that is endless or has random augmentation. {remedy}"
        ) from e
    found, again = (samples.joined(samples.collect(dataset)) for _ in range(2))
    if fingerprint.digest(found) != fingerprint.digest(again):
        raise ValueError(
            "The tf.data.Dataset yields its samples in a different order each time, so "
            "a resumed search would have different folds. Omit `shuffle`: the search "
            "shuffles the data itself."
        )
    return found


class Parts:
    """The samples of each fold; without labels, they count as one class."""

    def __init__(self, labels, names, count, folds, seed):
        if labels is None:
            labels, names = np.zeros(count, np.int64), ["all samples"]
        self.held_out = fold_indices(labels, names, folds, seed)
        self._everything = np.arange(count)

    def training(self, fold):
        """Indices of the training samples of a fold; all of them for None."""
        if fold is None:
            return self._everything
        return np.setdiff1d(self._everything, self.held_out[fold])

    def rows(self, fold, training):
        """Indices of the training or the held-out samples of a fold."""
        return self.training(fold) if training else self.held_out[fold]


class Folds:
    """Data cut into `parts`; a subclass makes the batches."""

    def __len__(self):
        return len(self.parts.held_out)

    def train(self, fold):
        """Training data of a fold, from its first epoch on."""
        dataset = self._batches(fold, True)
        dataset.epoch_counter.upcoming = 0
        return dataset

    def held_out(self, fold):
        """Held-out data of a fold."""
        return self._batches(fold, False)

    def _batches(self, fold, training):
        if (fold, training) not in self._datasets:
            self._datasets[fold, training] = self._make(fold, training)
        return self._datasets[fold, training]

    @functools.cached_property
    def _datasets(self):
        return {}


class Images(Folds):
    """Folds of an `ImageSet`, each image decoded once."""

    def __init__(self, images, folds, seed):
        self._images, self._seed = images, seed
        self.parts = Parts(images.labels, images.class_names, len(images), folds, seed)

    def prepare(self, image_size, batch_size, views, protocol):
        """Decode and resize all images, for training and testing."""
        self._batch_size, self._views = batch_size, views
        self._options = {"image_size": image_size, "protocol": protocol}
        both = (True, False)
        sets = self._images.resized(training=both, **self._options)
        self._resized = dict(zip(both, sets, strict=True))

    @property
    def digest(self):
        """A digest of the labels and of some images."""
        some = np.linspace(0, len(self._images) - 1, LOOKED_AT).astype(int)
        resized = self._resized[False].subset(np.unique(some))
        images, _ = resized.arrays(**self._options)
        return fingerprint.digest([self._images.labels, images])

    def part(self, fold, training):
        """The `ImageSet` of a part."""
        return self._images.subset(self.parts.rows(fold, training))

    def _make(self, fold, training):
        part = self._resized[training].subset(self.parts.rows(fold, training))
        return part.batches(
            batch_size=self._batch_size if training else max(self._batch_size, 32),
            training=training,
            seed=self._seed,
            views=self._views if training else None,
            **self._options,
        )


class Arrays(Folds):
    """Folds of arrays."""

    def __init__(self, x, y, folds, seed, batch_size, task=None):
        # Of a list, a tf.data.Dataset makes one tensor.
        x, y = tree.lists_to_tuples((x, y))
        self._arrays = tree.map_structure(np.asarray, (x, y))
        self._seed, self._batch_size = seed, batch_size
        count = samples.length(self._arrays[0])
        shapes = [v.shape for v in tree.flatten(self._arrays)]
        if any(shape[:1] != (count,) for shape in shapes):
            raise ValueError(
                f"All arrays must have the same number of samples. Received: {shapes}."
            )
        self.parts = Parts(*_classes(self._arrays[1], task), count, folds, seed)

    @property
    def digest(self):
        """A digest of all arrays."""
        return fingerprint.digest(list(self._arrays))

    def part(self, fold, training):
        """The arrays `(x, y)` of a part."""
        rows = self.parts.rows(fold, training)
        return tree.map_structure(lambda v: v[rows], self._arrays)

    def _make(self, fold, training):
        rows = self.parts.rows(fold, training)
        if not training:
            numbers = tf.data.Dataset.from_tensor_slices(rows)
            return self._read(numbers, max(self._batch_size, 32))

        # `shuffle` would depend on `tf.random.set_seed`.
        def order(epoch):
            return np.random.default_rng([self._seed, epoch]).permutation(rows)

        def ordered(epoch):
            numbers = tf.numpy_function(order, [epoch], rows.dtype, stateful=False)
            numbers = tf.ensure_shape(numbers, rows.shape)
            return tf.data.Dataset.from_tensor_slices(numbers)

        counted = epochs()
        shuffled = counted.take(1).flat_map(ordered)
        shuffled = shuffled.apply(tf.data.experimental.assert_cardinality(len(rows)))
        dataset = self._read(shuffled, self._batch_size)
        dataset.epoch_counter = counted.epoch_counter
        dataset.image_views = 1  # a cache of source maps need not read to find out
        return dataset

    def _read(self, rows, size):
        arrays = self._tensors

        def read(chosen):
            return tree.map_structure(lambda v: tf.gather(v, chosen), arrays)

        return rows.batch(size).map(read).prefetch(tf.data.AUTOTUNE)

    @functools.cached_property
    def _tensors(self):
        with tf.device("CPU:0"):
            return tree.map_structure(tf.convert_to_tensor, self._arrays)


class Prepared(Folds):
    """Folds turned into batches by the user's function, each time again."""

    def __init__(self, data, batches, seed):
        self._data, self._user, self._seed = data, batches, seed
        self.parts = data.parts

    @property
    def digest(self):
        """A digest of the first held-out samples of each fold."""
        held_out = [self.held_out(fold) for fold in range(len(self))]
        return fingerprint.digest(
            [list(samples.batches(data, max_samples=LOOKED_AT)) for data in held_out]
        )

    def train(self, fold):
        """Training data of a fold, with the same random numbers each time."""
        keras.utils.set_random_seed(self._seed)
        return self._batches(fold, True)

    def _batches(self, fold, training):
        return self._user(self._data.part(fold, training), training)


def _classes(y, task=None):
    """Labels `(n,)` from 0 and their names; (None, None) if `y` has no classes.

    Numbers and combinations of labels are not classes, though they may look like them:
    each would be a class of few samples, or of one.
    """
    unlike = (_tasks.MULTILABEL, _tasks.REGRESSION, _tasks.DENSE)
    if task in unlike or not isinstance(y, np.ndarray):
        return None, None
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 1:
        # Whole floats may be numbers to predict, unless the loss shows otherwise.
        whole = task is not None and y.dtype.kind == "f" and (y == np.floor(y)).all()
        if y.dtype.kind not in "iub" and not whole:
            return None, None
        y = y.astype(np.int64)
    elif y.ndim == 2 and np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all():
        y = y.argmax(1)
    else:
        return None, None
    first = min(0, int(y.min(initial=0)))  # -1 and 1, for a hinge loss
    return y - first, range(first, int(y.max(initial=-1)) + 1)
