"""The training data of one `fit`, and what one look at them tells."""

import inspect
import itertools
import weakref

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_delta._errors import invalid
from keras_delta._inputs import replay, samples

# Batches that were looked at and not yet trained on, kept for the next `fit`.
_LOOKED_AT = weakref.WeakKeyDictionary()  # generator -> list


class TrainingData:
    """What `fit` was given to train on, or validate, and what one look at it tells.

    Of arrays, all labels and the first batch are looked at, those for validation
    included; of a `tf.data.Dataset`, a `PyDataset` or a generator the first batch
    alone; anything else (a torch `DataLoader`, which would draw another order) not at
    all. What was read of a generator is given back to training.

    Args:
        x, y, batch_size, sample_weight: as `fit` takes them.
        validation_split: the share of arrays that `fit` keeps for validation.
        what: what the data are for, for messages.

    Attributes:
        x, y: what is trained on, without the part for validation.
        batch_size: as it was given.
        first_inputs: the first batch's inputs, None where they were not looked at.
        labels: all labels of arrays, else those of the first batch; None likewise.
        weights: of the samples, likewise; None where there are none.
        all_labels: whether `labels` are all that there are.
        first_size: samples of the first batch; None likewise.

    Raises:
        ValueError: for data without a sample.
    """

    def __init__(
        self,
        x,
        y=None,
        batch_size=None,
        validation_split=0.0,
        what="training",
        sample_weight=None,
    ):
        self.batch_size, self._what = batch_size, what
        self.first_inputs = self.labels = self.weights = self.first_size = None
        self.all_labels, self._lengths = False, {}
        self.x, self.y = samples.without_validation(x, y, validation_split)
        self._sample_weight = sample_weight
        self._generator = x if inspect.isgenerator(x) else None
        if self.is_generator:
            self._read = _LOOKED_AT.setdefault(x, [])
        if isinstance(x, tf.data.Dataset):
            self._look_at_dataset(x)
        elif isinstance(x, keras.utils.PyDataset):
            self._look_at_py_dataset(x)
        elif self.is_generator:
            self._look_at_generator()
        elif x is not None and samples.are_arrays(x):
            self._look_at_arrays(x, y, sample_weight)

    def check_lengths(self):
        """Refuse arrays of several lengths, once it is known that `x` is of samples."""
        if len({n for found in self._lengths.values() for n in found}) > 1:
            raise ValueError(
                f"The {self._what} data must have as many labels and weights as "
                f"samples. Received: arrays of the lengths {self._lengths}."
            )

    def drop_first_batch(self):
        """Free its inputs, once they were checked."""
        self.first_inputs = None

    @property
    def is_generator(self):
        """Whether `x` can be read only once."""
        return self._generator is not None

    def from_start(self):
        """The generator with what was read of it, for Keras in place of `x`."""
        while self._read:
            yield self._read.pop(0)
        yield from self._generator

    def _read_on(self):
        """Batches of the generator from its start, which are kept."""
        for i in itertools.count():
            if i == len(self._read):
                batch = next(self._generator, None)
                if batch is None:
                    return
                self._read.append(batch)
            yield self._read[i]

    def _look_at_generator(self):
        batch = next(self._read_on(), None)
        if batch is None:
            raise ValueError(
                f"The {self._what} data is empty: the generator yields no batch. A "
                "generator can be read only once: create a new one for each `fit`."
            )
        self._look_at_batch(batch)

    def _look_at_batch(self, batch):
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        self.first_inputs, flat = x, tree.flatten(x)
        self.first_size = len(flat[0]) if flat else 0
        self._keep(y, weights)

    def _look_at_py_dataset(self, dataset):
        # Keras reads these two as well, before it trains, to see their shapes.
        if dataset.num_batches == 0:
            raise ValueError(
                f"The {self._what} data is empty: the {type(dataset).__name__} has "
                "the length 0."
            )
        self._look_at_batch(dataset[0])

    def _look_at_dataset(self, dataset):
        for spec in tree.flatten(dataset.element_spec):
            if spec.shape.rank is None:
                raise ValueError(
                    f"The {self._what} data is a tf.data.Dataset that does not know "
                    "how many axes its elements have, as after `tf.numpy_function`. "
                    "Set the shape where they are created, e.g. "
                    "`image = tf.ensure_shape(image, (224, 224, 3))`."
                )
        with replay.unmoved(dataset):
            batch = next(iter(dataset.take(1)), None)
        if batch is None:
            raise ValueError(
                f"The {self._what} data is empty: the tf.data.Dataset has no batch. "
                "Check the folder or the filters it was made from."
            )
        self._look_at_batch(batch)

    def _look_at_arrays(self, x, y, weights):
        _check_arrays(x, y)
        total = samples.length(x) if tree.flatten(x) else 0
        if total == 0:
            raise ValueError(f"The {self._what} data is empty: `x` has no samples.")
        given = {"x": x, "y": y, "sample_weight": weights}
        self._lengths = {
            name: sorted(
                {v.shape[0] if len(v.shape) else 1 for v in tree.flatten(some)}
            )
            for name, some in given.items()
            if some is not None and samples.are_arrays(some)
        }
        self.first_size = min(samples.length(self.x), self.batch_size or 32)
        self.first_inputs = samples.take(self.x, 0, self.first_size)
        self._keep(y, weights)
        self.all_labels = True

    def _keep(self, y, weights):
        self.labels, self.weights = (
            None if v is None else tree.map_structure(np.asarray, v)
            for v in (y, weights)
        )

    @property
    def sample_weight(self):
        """What was given, without the part for validation."""
        given = self._sample_weight
        if given is None or self.y is None:
            return given
        return samples.take(given, 0, samples.length(self.y))

    @property
    def count(self):
        """Number of samples at most; None where it is not known."""
        return samples.count(self.x, self.first_size)

    def count_steps(self, epochs, steps_per_epoch):
        """Number of steps that `fit` will train; None where it is not known."""
        if steps_per_epoch is None and hasattr(self.x, "cardinality"):
            steps_per_epoch = int(self.x.cardinality())
        if steps_per_epoch is None:
            steps_per_epoch = getattr(self.x, "num_batches", None)
        arrays = tree.flatten(self.x) and samples.are_arrays(self.x)
        if steps_per_epoch is None and arrays:
            steps_per_epoch = -(-samples.length(self.x) // (self.batch_size or 32))
        return max(steps_per_epoch or 0, 0) * epochs or None

    def pass_over(self, count):
        """Read up to `count` samples and keep none, but of a generator."""
        if self.is_generator:
            self.look(count)
        elif not samples.are_arrays(self.x):
            with replay.unmoved(self.x):
                for _ in samples.batches(self.x, self.y, max_samples=count):
                    pass

    def look(self, count):
        """Up to `count` samples as `Batches` with weights.

        An `ImageSet` counts no epoch for it.
        """
        if self.is_generator:
            if count is None:
                raise ValueError(samples.NO_END)
            return samples.Batches(samples.limited(self._read_on(), count, True))
        weights = {"sample_weight": self.sample_weight}
        return replay.look(self.x, self.y, count, weights)


def _check_arrays(x, y):
    """Refuse what is no array, though it looks like one."""
    for v in tree.flatten(x):
        ragged = isinstance(v, tf.RaggedTensor)
        if ragged or getattr(v, "dtype", None) == np.dtype(object):
            expected = "an array of numbers, (samples, height, width, channels)"
            received = "a RaggedTensor" if ragged else f"{len(v)} objects"
            remedy = "Resize the images to one size and stack them (`np.stack`), or "
            remedy += "give batches of one size each as a generator or a PyDataset."
            raise TypeError(invalid("x", expected, received, remedy))
    if isinstance(y, list) and y and all(np.ndim(v) == 0 for v in y):
        expected, received = "an array of labels", f"a list of {len(y)} numbers"
        remedy = "A list is taken for several outputs; labels are `np.asarray(y)`."
        raise TypeError(invalid("y", expected, received, remedy))


def batch_spec(dataset, inputs=()):
    """Zeros like a batch of two samples; nothing is read.

    Args:
        dataset: a `tf.data.Dataset`.
        inputs: of the network; a single one has sizes that the data set leaves open.

    Raises:
        ValueError: for a data set that is shared out already.
    """
    if isinstance(dataset, tf.distribute.DistributedDataset):
        raise ValueError(
            "`fit` and `evaluate` distribute the data to the replicas themselves. "
            "Pass the tf.data.Dataset of global batches, not a distributed one."
        )
    spec = dataset.element_spec
    flat = tree.flatten(spec)
    shapes = [v.shape[1:] for v in flat]
    images = tree.flatten(keras.utils.unpack_x_y_sample_weight(spec)[0])
    if len(images) == len(inputs) == 1:  # the first of all
        own = zip(shapes[0], inputs[0].shape[1:], strict=True)
        shapes[0] = [d or size for d, size in own]
    zeros = [
        tf.zeros([2, *(d or 1 for d in shape)], v.dtype)
        for v, shape in zip(flat, shapes, strict=True)
    ]
    return tree.pack_sequence_as(spec, zeros)
