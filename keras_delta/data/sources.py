"""Where the pixels of an `ImageSet` come from: files or memory."""

import numpy as np
import tensorflow as tf

from keras_delta.data.decode import BadImageError, read_image


class IndexedSource:
    """Images that can be read in any order, by their number.

    A source has a length, `take(indices)`, which gives a smaller source, and
    `images(shuffle, seed)`, which gives a data set of (index, epoch, image).
    Sub-classes say how to read one image.
    """

    paths = None
    dtype = tf.uint8

    def read(self, index):
        """The image (height, width, 3) of that number, of the type `dtype`."""
        raise NotImplementedError

    def images(self, shuffle, seed):
        """Streams the images, in parallel but in a fixed order.

        Args:
            shuffle: whether to draw a new order in each epoch.
            seed: integer; with the number of the epoch it decides the order.

        Returns:
            `tf.data.Dataset` of (index, epoch, image).
        """
        count = len(self)

        def order(epoch):
            if not shuffle:
                return np.arange(count)
            return np.random.default_rng([seed, epoch]).permutation(count)

        def number(epoch):
            indices = tf.numpy_function(order, [epoch], tf.int64, stateful=False)
            indices = tf.data.Dataset.from_tensor_slices(
                tf.ensure_shape(indices, [count])
            )
            return indices.map(lambda index: (index, epoch))

        def load(index, epoch):
            image = tf.numpy_function(self.read, [index], self.dtype)
            return index, epoch, tf.ensure_shape(image, [None, None, 3])

        counted = epochs()
        numbers = counted.take(1).flat_map(number)
        numbers = numbers.apply(tf.data.experimental.assert_cardinality(count))
        images = numbers.map(load, num_parallel_calls=tf.data.AUTOTUNE)
        images.epoch_counter = counted.epoch_counter
        return images


class FileSource(IndexedSource):
    """Image files, decoded when they are asked for."""

    def __init__(self, paths):
        self.paths = tuple(str(path) for path in paths)

    def __len__(self):
        return len(self.paths)

    def take(self, indices):
        """The source of the files with these numbers."""
        return FileSource([self.paths[i] for i in indices])

    def read(self, index):
        """Decodes one file; an error names it."""
        path = self.paths[index]
        try:
            return read_image(path)
        except BadImageError as error:
            raise ValueError(f"Cannot read the image file {path}: {error}") from None


class MemorySource(IndexedSource):
    """Images held in memory, of one size or of several.

    Args:
        images: sequence of arrays of shape (height, width, 3).
        dtype: their type.
        resized_for: the `Protocol.resizing` that made them; None for images as they
            were read.
    """

    def __init__(self, images, dtype=tf.uint8, resized_for=None):
        self._images = images
        self.dtype = dtype
        self.resized_for = resized_for

    def __len__(self):
        return len(self._images)

    def take(self, indices):
        """The source of the images with these numbers; nothing is copied."""
        images = [self._images[i] for i in indices]
        return MemorySource(images, self.dtype, self.resized_for)

    def read(self, index):
        """The image itself."""
        return self._images[index]


def epochs():
    """The number of the epoch, without end.

    Each new iterator over the data set counts one up, from 0. The random
    choices of an epoch follow from its number and the seed alone; the ops of
    `tf.data` would mix in `tf.random.set_seed`, and two data sets of the same
    seed would differ.

    Returns:
        `tf.data.Dataset` that repeats one `int64` for the whole iteration. Its
        attribute `epoch_counter` is the `EpochCounter`.
    """
    counter = EpochCounter()

    def tick(_):
        epoch = tf.numpy_function(counter.tick, [], tf.int64)
        return tf.data.Dataset.from_tensors(tf.ensure_shape(epoch, [])).repeat()

    numbers = tf.data.Dataset.range(1).flat_map(tick)
    numbers.epoch_counter = counter
    return numbers


class EpochCounter:
    """Counts how often a data set was iterated.

    Attributes:
        upcoming: number of the next epoch, from 0; may be set.
    """

    def __init__(self):
        self.upcoming = 0

    def tick(self):
        """The number of the epoch that begins."""
        self.upcoming += 1
        return np.int64(self.upcoming - 1)
