"""Images for analysis: as a model takes them, in batches or by number, with names."""

import os
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras.utils import PyDataset

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._inputs import replay, samples
from keras_delta.data import ImageSet, from_directory

BATCH = 32
FORMS = "a folder of class folders, an ImageSet, arrays `(x, y)`, or batches of them"


class Images:
    """Images with their labels and names.

    Files and an `ImageSet` are read on demand; batches are read once, and up to
    `max_images` images are kept in memory.

    Args:
        given: see `FORMS`.
        argument: its name, for messages.
        image_size: (height, width) that the model takes; None if it takes any, which
            is not possible for files.
        max_images: number of images at most, drawn at random.
        seed: of the draw.
        channels: 3, or 1 for a model of grey images: images from files become grey.

    Attributes:
        argument, size, channels: as given.
        labels: array, as given; None if there are none.
        class_names: tuple, None if unknown.
        numbers: array, the index of each image in the given ones.
        names: list of strings, one per image: its file or its number.
        left_out: number of images left out.
    """

    def __init__(
        self, given, argument, image_size, max_images=None, seed=0, channels=3
    ):
        self.argument, self.channels = argument, channels
        most = _arguments.integer("max_images", max_images, optional=True)
        self.size, self._set, self._x = image_size, None, None
        if isinstance(given, (str, os.PathLike)):
            given = from_directory(given, on_error="skip")
        if isinstance(given, ImageSet):
            self._read_set(given, most, seed)
        elif isinstance(given, dict) and given and _are_sets(given):
            remedy = f"Pass the folder '{next(iter(given))}' in it, for example."
            raise ValueError(invalid(argument, "one set of images", [*given], remedy))
        else:
            self._read_batches(given, most, seed)

    def __len__(self):
        return len(self.names)

    def batches(self):
        """Iterate over arrays of images, as the model takes them, in order."""
        if self._set is not None:
            for batch in self._set.batches(self.size, BATCH).as_numpy_iterator():
                yield self._coloured(batch[0] if isinstance(batch, tuple) else batch)
            return
        for start in range(0, len(self._x), BATCH):
            yield self._x[start : start + BATCH]

    def take(self, indices):
        """An array of the images with these numbers."""
        if self._set is not None:
            # Streamed sets are read in order, and each image once.
            read, places = np.unique(indices, return_inverse=True)
            x = self._set.subset(read).arrays(self.size)[0]
            return self._coloured(x)[places]
        return self._x[np.asarray(indices, int)]

    @property
    def image_set(self):
        """The images as an `ImageSet`; None if they came in another form."""
        return self._set

    def rename(self, names):
        """Number the classes as the model does, and renumber the labels accordingly.

        Raises:
            ValueError: if the model does not have a class.
        """
        if not self.class_names or self.labels is None:
            return
        for name in self.class_names:
            if name not in names:
                expected = f"classes of the model, {', '.join(names[:10])}"
                raise ValueError(invalid(self.argument, expected, name))
        places = np.array([names.index(n) for n in self.class_names])
        labels, shape = self.labels, self.labels.shape[1:]
        if shape == places.shape:  # a column for each class
            self.labels = np.zeros((len(labels), len(names)), labels.dtype)
            self.labels[:, places] = labels
        elif shape in ((), (1,)) and (labels == np.floor(labels)).all():
            self.labels = places[labels.astype(int)]
        self.class_names = tuple(names)
        if self._set is not None:
            self._set = ImageSet(self._set.source, self.labels, names)

    def _coloured(self, x):
        return tf.image.rgb_to_grayscale(x).numpy() if self.channels == 1 else x

    def _read_set(self, given, most, seed):
        if self.size is None or None in self.size:
            expected = "a number of pixels, since the model takes images of any size"
            raise ValueError(invalid("image_size", expected, None))
        count, self.left_out = len(given), 0
        self.numbers = np.arange(count)
        if most is not None and count > most:
            chosen = np.random.default_rng(seed).permutation(count)[:most]
            self.numbers, self.left_out = np.sort(chosen), count - most
            given = given.subset(self.numbers)
        self._set, names = given, given.class_names
        numbered = names == tuple(map(str, range(len(names))))  # not named
        self.class_names = None if numbered else names
        self.labels = given.labels
        self.names = _file_names(given) or _in_words(self.numbers)

    def _read_batches(self, given, most, seed):
        pair = isinstance(given, tuple) and len(given) == 2
        batches = hasattr(given, "element_spec") or isinstance(given, PyDataset)
        if not (pair or batches):
            raise TypeError(invalid(self.argument, FORMS, given))
        if hasattr(given, "as_tested"):  # `ImageSet.batches`, without augmentation
            given = given.as_tested()
        kept, count, rng = {}, 0, np.random.default_rng(seed)
        with replay.unmoved(given):
            for x, y in samples.batches(given):
                x = _checked(x, self.argument, self.size, self.channels)
                for image, label in zip(x, np.asarray(y), strict=True):
                    # Reservoir sampling: each image is kept with the same chance.
                    place = count
                    if most is not None and count >= most:
                        place = int(rng.integers(0, count + 1))
                    if most is None or place < most:
                        # A view would keep the whole batch in memory.
                        kept[place] = count, image.copy(), label
                    count += 1
        if not kept:
            raise ValueError(invalid(self.argument, "at least one image", "none"))
        self.numbers, x, y = zip(
            *sorted(kept.values(), key=lambda v: v[0]), strict=True
        )
        if len({image.shape for image in x}) > 1:
            raise ValueError(invalid(self.argument, "images of one size", "several"))
        self.numbers, self._x, self.labels = map(np.stack, (self.numbers, x, y))
        names = getattr(given, "class_names", None)
        self.class_names = tuple(map(str, names)) if names else None
        self.left_out = count - len(self._x)
        self.names = _in_words(self.numbers)


def _are_sets(given):
    return all(isinstance(v, ImageSet) for v in given.values())


def _checked(x, argument, size, channels):
    """Images of a batch, as uint8 if they are whole numbers up to 255."""
    shape = getattr(x, "shape", None)
    wanted = (None, None) if size is None else size
    fits = shape is not None and len(shape) == 4 and shape[-1] == channels
    sides = zip(wanted, shape[1:3], strict=True) if fits else ()
    if not fits or any(w not in (None, n) for w, n in sides):
        sides = "height, width" if None in wanted else f"{wanted[0]}, {wanted[1]}"
        expected = f"images ({sides}, {channels}) as the model takes them"
        raise ValueError(invalid(argument, expected, shape if shape else x))
    x = np.asarray(x)
    whole = (x >= 0).all() and (x <= 255).all() and (x == np.rint(x)).all()
    return x.astype("uint8" if whole else "float32")


def _in_words(numbers):
    return [f"image {i}" for i in numbers]


def _file_names(images):
    """Paths relative to the folder that all of them share; None without files."""
    if images.paths is None:
        return None
    folders = [os.path.dirname(p) for p in images.paths]
    common = os.path.commonpath(folders) if folders else ""
    if len(set(folders)) == 1:
        common = os.path.dirname(common)
    return [Path(os.path.relpath(p, common)).as_posix() for p in images.paths]
