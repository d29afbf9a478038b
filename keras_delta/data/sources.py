"""Sources of the pixels of an `ImageSet`: files or memory."""

import numpy as np
import tensorflow as tf

from keras_delta.data.decode import BadImageError, read_image


class IndexedSource:
    """Images that can be read in any order, by index.

    A source has a length, `take(indices)`, which returns a smaller source, and
    `images(shuffle, seed)`, which returns a data set of (index, epoch, image).
    Subclasses define how to read one image.
    """

    paths = None
    dtype = tf.uint8

    def read(self, index):
        """The image (height, width, 3) with that index, of type `dtype`."""
        raise NotImplementedError

    def images(self, shuffle, seed):
        """Streams the images, in parallel but in a fixed order.

        Args:
            shuffle: whether to draw a new order in each epoch.
            seed: integer; together with the epoch number it determines the order.

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
    """Image files, decoded on request."""

    def __init__(self, paths):
        self.paths = tuple(str(path) for path in paths)

    def __len__(self):
        return len(self.paths)

    def take(self, indices):
        """The source of the files with these indices."""
        return FileSource([self.paths[i] for i in indices])

    def read(self, index):
        """Decodes one file; an error names it."""
        path = self.paths[index]
        try:
            return read_image(path)
        except BadImageError as error:
            raise ValueError(f"Cannot read the image file {path}: {error}") from None


class MemorySource(IndexedSource):
    """Images in memory, of the same or different sizes.

    Args:
        images: sequence of arrays of shape (height, width, 3).
        dtype: their type.
        resized_for: the `Protocol.resizing` that they were resized for; None if they
            were not resized.
    """

    def __init__(self, images, dtype=tf.uint8, resized_for=None):
        self._images = images
        self.dtype = dtype
        self.resized_for = resized_for

    def __len__(self):
        return len(self._images)

    def take(self, indices):
        """The source of the images with these indices; nothing is copied."""
        images = [self._images[i] for i in indices]
        return MemorySource(images, self.dtype, self.resized_for)

    def read(self, index):
        """The image itself."""
        return self._images[index]


def epochs():
    """An endless data set of the epoch number.

    Each new iterator over the data set adds one, from 0. The random choices in
    an epoch depend only on its number and the seed; the ops of `tf.data` would
    mix in `tf.random.set_seed`, and two data sets with the same seed would
    differ.

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
    """Counts how often a data set has been iterated.

    Attributes:
        upcoming: number of the next epoch, from 0; may be set.
    """

    def __init__(self):
        self.upcoming = 0

    def tick(self):
        """The number of the epoch that begins."""
        self.upcoming += 1
        return np.int64(self.upcoming - 1)
