"""`ImageSet`: an immutable set of labelled images, read when needed."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
import tensorflow as tf

from keras_delta import _arguments
from keras_delta._types import ArrayLike, ImageSize, PathLike, ProtocolName
from keras_delta.data.augment import Protocol
from keras_delta.data.decode import rgb_array
from keras_delta.data.pipeline import resized, stream_batches
from keras_delta.data.sampling import (
    check_indices,
    check_labels,
    few_shot_indices,
    fold_indices,
    needed,
    split_indices,
    wrong_labels,
)
from keras_delta.data.sources import FileSource, MemorySource

SHOWN_CLASSES = 6


class ImageSet:
    """Labelled images, from files, memory or TensorFlow Datasets.

    A set is immutable: its methods return new sets. Pixels are read as batches are
    drawn, so even a set of many files uses no memory. Create one with `from_directory`,
    `from_tfds`, `ImageSet.from_files` or `ImageSet.from_arrays`.

    Args:
        source: source of the pixels, see `keras_delta.data.sources`.
        labels: one integer per image, an index into `class_names`; None for images
            without labels.
        class_names: names of the classes.
        skipped: (path, reason) of each file that was skipped when the set was
            created.

    Attributes:
        source: the argument `source`.

    Raises:
        ValueError: if labels and images differ in number, or a label has no
            name.
    """

    def __init__(
        self,
        source: Any,
        labels: ArrayLike | None,
        class_names: Sequence[object],
        skipped: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.source = source
        if labels is not None:
            labels = check_labels(labels, len(source), len(class_names))
        self._labels = labels
        self._class_names = tuple(str(name) for name in class_names)
        self._skipped = list(skipped)

    @classmethod
    def from_files(
        cls,
        paths: Sequence[PathLike],
        labels: ArrayLike | None,
        class_names: Sequence[str],
    ) -> Self:
        """Creates a set from image files, for any other folder layout, unchecked.

        Args:
            paths: paths of the files, in any format that Pillow reads.
            labels: one integer per file; None for files without labels.
            class_names: names of the classes, by label.
        """
        return cls(FileSource(paths), labels, class_names)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | Sequence[np.ndarray],
        labels: ArrayLike,
        class_names: Sequence[object] | None = None,
    ) -> Self:
        """Creates a set from images in memory.

        Args:
            images: `uint8` array of shape (images, height, width, 3) or (images,
                height, width), or a list of such images of various sizes. Grey
                images are converted to RGB.
            labels: one integer per image.
            class_names: names of the classes; default: the numbers.

        Raises:
            ValueError: if the images have another type or shape.
        """
        images = [rgb_array(image) for image in images]
        if class_names is None:
            numbers = np.asarray(labels)
            whole = numbers.dtype.kind in "iu"
            class_names = range(numbers.max(initial=-1) + 1 if whole else 0)
        return cls(MemorySource(images), labels, class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, a tuple; a label is an index into it."""
        return self._class_names

    @property
    def labels(self) -> np.ndarray | None:
        """The labels, a read-only `int64` array; None for images without labels."""
        return self._labels

    @property
    def paths(self) -> tuple[str, ...] | None:
        """Paths of the files, a tuple; None for images that are not in files."""
        return self.source.paths

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """List of (path, reason) of the files skipped when reading."""
        return list(self._skipped)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images per class, a dict from name to number."""
        if self._labels is None:
            return {}
        counts = np.bincount(self._labels, minlength=len(self._class_names))
        return dict(zip(self._class_names, counts.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self):
        return f"ImageSet({_described(self)})"

    def __getitem__(self, part):
        raise TypeError(
            f"An ImageSet has no parts, such as {part!r}: `from_directory` returns a "
            "dict of them for a folder with train/ and test/ in it. Split it: "
            "`train, test = images.split(0.25)`; or take some: `images.subset([0, 1])`."
        )

    def subset(self, indices: ArrayLike) -> "ImageSet":
        """Returns the images with the given indices, in that order.

        Args:
            indices: integers from 0 to `len(self) - 1`.

        Returns:
            `ImageSet` with the same class names.

        Raises:
            ValueError: if `indices` is anything else, including a boolean mask.
        """
        indices = check_indices(indices, len(self))
        labels = None if self._labels is None else self._labels[indices]
        source = self.source.take(indices)
        return ImageSet(source, labels, self._class_names, self._skipped)

    def split(self, fraction: float, seed: int = 0) -> tuple["ImageSet", "ImageSet"]:
        """Splits off a fraction of each class, for validation or for testing.

        Args:
            fraction: fraction to hold out, between 0 and 1; each part gets at least
                one image of each class.
            seed: integer; the same seed gives the same split.

        Returns:
            (rest, held out), two `ImageSet` objects.

        Raises:
            ValueError: if the fraction is outside (0, 1), or a class has one image.
        """
        rest, held_out = split_indices(
            needed(self._labels), self._class_names, fraction, seed
        )
        return self.subset(rest), self.subset(held_out)

    def folds(
        self, folds: int = 5, seed: int = 0
    ) -> list[tuple["ImageSet", "ImageSet"]]:
        """Divides each class into parts of equal size, for cross-validation.

        Args:
            folds: number of parts, 2 or more.
            seed: integer; the same seed gives the same parts.

        Returns:
            List of `folds` pairs of `ImageSet` (training part, held-out part).

        Raises:
            ValueError: if a class has fewer images than folds; the message names it.
        """
        parts = fold_indices(needed(self._labels), self._class_names, folds, seed)
        everything = np.arange(len(self))
        return [
            (self.subset(np.setdiff1d(everything, part)), self.subset(part))
            for part in parts
        ]

    def resized(
        self,
        image_size: ImageSize,
        *,
        protocol: ProtocolName = "default",
        training: bool | tuple[bool, ...] = False,
    ) -> Any:
        """Decodes and resizes the images now, once for many calls of `batches`.

        `subset`, `split`, `folds` and `few_shot` of the result share its memory. Its
        `batches` only accepts the same three arguments.

        Args:
            image_size, protocol, training: as for `batches`. `training` can also be
                a tuple, `(True, False)`: each image is decoded once for both.

        Returns:
            `ImageSet`, or a tuple of them if `training` is a tuple.

        Raises:
            ValueError: if the images were resized for other arguments.
        """
        several = isinstance(training, tuple)
        trainings: Any = training if several else (training,)
        prepares = [Protocol(protocol, image_size, each) for each in trainings]
        sets = tuple(
            ImageSet(source, self._labels, self._class_names, self._skipped)
            for source in resized(self.source, *prepares)
        )
        return sets if several else sets[0]

    def few_shot(self, k: int, seed: int = 0) -> "ImageSet":
        """Draws `k` images of each class.

        Args:
            k: images per class.
            seed: integer; for the same seed, the images for a smaller `k` are a subset
                of those for a larger one.

        Returns:
            `ImageSet`.

        Raises:
            ValueError: if classes have fewer than `k` images; the message names them.
        """
        return self.subset(
            few_shot_indices(needed(self._labels), self._class_names, k, seed)
        )

    def with_wrong_labels(self, fraction: float, seed: int = 0) -> "ImageSet":
        """Returns the same images, some of them with a wrong label.

        The wrong label is drawn uniformly from the other classes ("symmetric" noise).
        The result depends only on the labels, their order and the seed.

        Args:
            fraction: fraction of each class, 0 or more and less than 1: in a class of
                n images, exactly `round(fraction * n)` get a wrong label.
            seed: integer. For the same seed, the wrong labels for a smaller fraction
                are a subset of those for a larger one.

        Returns:
            `ImageSet` with the same images in the same order.

        Source: Zhang et al., ICLR 2017, arXiv:1611.03530, "partially corrupted labels";
        there the drawn label may be the right one.
        """
        labels = wrong_labels(needed(self._labels), self._class_names, fraction, seed)
        return ImageSet(self.source, labels, self._class_names, self._skipped)

    def batches(
        self,
        image_size: ImageSize,
        batch_size: int = 32,
        *,
        protocol: ProtocolName = "default",
        training: bool = False,
        ten_crop: bool = False,
        seed: int = 0,
        shuffle: bool | None = None,
        views: int | None = None,
        cache: bool = False,
        drop_remainder: bool = False,
    ) -> tf.data.Dataset:
        """Creates batches for `fit`, `evaluate` and `predict`.

        Order, mirroring and crops depend only on the seed, the number of the epoch
        (how often the data set was iterated before) and the image: two data sets with
        the same seed agree bit for bit. (Sets from TensorFlow Datasets are shuffled by
        `tf.data`, which also depends on `tf.random.set_seed`.) Keras warns that its own
        `shuffle` has no effect here: pass `shuffle=False` to `fit`.

        Args:
            image_size: side of the images in pixels, or (height, width).
            batch_size: images per batch.
            protocol: "default", "improved", "improved_code" or "tllib", see
                `keras_delta.data.augment.Protocol`.
            training: whether to mirror and crop at random.
            ten_crop: whether to return ten crops per image, for `predict_ten_crop`;
                only for "improved" and "improved_code" without training.
            seed: integer.
            shuffle: whether to draw a new order in each epoch; None: when training.
            views: number of ways to mirror and crop each image when training: epoch e
                shows view `e % views`, in a new order. None: a new view in each epoch.
                For `fit(source_maps="cache")`.
            cache: whether to decode and resize once, now, and keep the result in
                memory: 0.8 MB per image at 224 pixels when training; for "tllib", 3
                bytes per pixel of the original image. Random choices stay random.
            drop_remainder: whether to drop a last batch that is not full.

        Returns:
            `tf.data.Dataset` of (images, labels): `float32` in 0..255 of shape (batch,
            h, w, 3), or (batch, 10, h, w, 3) for ten crops, and `int64`; only images
            if there are no labels.

        Raises:
            ValueError: if an argument is out of range or, while iterating, if a file
                cannot be read; the message names it.
        """
        prepare = Protocol(protocol, image_size, training, ten_crop)
        shuffle = training if shuffle is None else shuffle
        options = {"seed": seed, "shuffle": shuffle, "views": views, "cache": cache}
        options["drop_remainder"] = drop_remainder
        return stream_batches(self.source, self._labels, prepare, batch_size, **options)

    def arrays(
        self,
        image_size: ImageSize,
        *,
        protocol: ProtocolName = "default",
        ten_crop: bool = False,
        dtype: Literal["float32", "uint8"] = "float32",
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns all images, prepared as for a test, as NumPy arrays in memory.

        Args:
            image_size: side of the images in pixels, or (height, width).
            protocol: as for `batches`; "improved_code" and "tllib" are the same as
                "improved" here.
            ten_crop: whether to return ten crops per image.
            dtype: "float32", or "uint8", which rounds.

        Returns:
            (images, labels): images in 0..255, in the order of the set; labels or None.

        Raises:
            ValueError: if an argument is out of range.
        """
        _arguments.choice("dtype", dtype, ("float32", "uint8"))
        batches = self.batches(image_size, protocol=protocol, ten_crop=ten_crop)
        parts = [
            b if self._labels is None else b[0] for b in batches.as_numpy_iterator()
        ]
        if dtype == "uint8":
            parts = [np.rint(images).astype(np.uint8) for images in parts]
        return np.concatenate(
            parts
        ), None if self._labels is None else self._labels.copy()


def _described(images):
    """The number of images in a set, in total and per class."""
    if images.labels is None:
        return f"{len(images)} images without labels"
    counts = list(images.counts.items())
    shown = [f"{name} {n}" for name, n in counts[:SHOWN_CLASSES]]
    more = ["..."] if len(counts) > SHOWN_CLASSES else []
    skipped = f", {len(images.skipped)} skipped" if images.skipped else ""
    names = ", ".join(shown + more)
    return f"{len(images)} images, {len(counts)} classes: {names}{skipped}"
