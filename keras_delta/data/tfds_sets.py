"""`from_tfds`: classification sets from TensorFlow Datasets as an `ImageSet`."""

import re

import numpy as np
import tensorflow as tf

from keras_delta._errors import import_optional, invalid, unknown_name
from keras_delta._types import PathLike
from keras_delta.data.decode import BadImageError, read_image
from keras_delta.data.image_set import ImageSet
from keras_delta.data.sources import epochs

# Encoded images in the shuffle buffer: about 400 MB of common JPEGs.
SHUFFLE_BUFFER = 4096


def from_tfds(
    name: str,
    split: str = "train",
    *,
    data_dir: PathLike | None = None,
    download: bool = True,
    image_key: str = "image",
    label_key: str = "label",
) -> ImageSet:
    """Reads a classification set from TensorFlow Datasets.

    The images stay on disk and are streamed: a subset of a large set only uses
    memory for its labels, but each epoch reads past the other images. Pass
    `cache=True` to `batches` for a small subset of a large set. Training
    batches are shuffled with a buffer of 4096 images.

    Args:
        name: name of the data set, such as "oxford_flowers102" or
            "caltech101:3.0.1".
        split: name of a split, or a slice such as "train[:20%]".
        data_dir: folder of the data sets; default `~/tensorflow_datasets`.
        download: whether to download and prepare a set that is not on disk yet.
        image_key: name of the feature with the image.
        label_key: name of the feature with the class.

    Returns:
        `ImageSet` with the class names from the description of the set.

    Raises:
        ValueError: if the name or split is unknown, the set has no image or
            class label under those keys, or images have no label.
    """
    tfds = import_optional("tensorflow_datasets", "`from_tfds`", "tfds")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = sorted(set(tfds.list_builders(with_community_datasets=False)))
        raise ValueError(unknown_name("name", name, known)) from error
    _check_features(tfds, builder, image_key, label_key)
    if download:
        builder.download_and_prepare()
    _check_split(builder, split)
    stream = _stream(tfds, builder, split, image_key, download)
    labels = stream.map(lambda example: example[label_key])
    labels = np.array(list(labels.as_numpy_iterator()), np.int64)
    if labels.size and labels.min() < 0:
        raise ValueError(
            f"The split {split!r} of {name!r} contains {np.sum(labels < 0)} images "
            "without a label (-1). Choose another split."
        )
    images = stream.map(lambda example: example[image_key])
    source = StreamedSource(images, np.arange(len(labels)), f"{name}[{split}]")
    return ImageSet(source, labels, builder.info.features[label_key].names)


class StreamedSource:
    """Images that can only be read one after the other.

    It has the interface of `keras_delta.data.sources.IndexedSource`.

    Args:
        stream: `tf.data.Dataset` of images in a fixed order, encoded or decoded.
        numbers: positions of this source's images in the stream, in the order of
            their labels.
        name: name of the stream in errors.
    """

    paths = None

    def __init__(self, stream, numbers, name):
        self._stream = stream
        self._numbers = numbers
        self._name = name

    def __len__(self):
        return len(self._numbers)

    def take(self, indices):
        """The source of the images with these indices.

        They still come in the order of the stream, unless shuffled, together with
        their index; an image taken twice would need two reads, and raises an
        error.
        """
        numbers = self._numbers[indices]
        if np.any(np.diff(numbers) <= 0):
            expected = (
                "increasing numbers without repetition, as the images of "
                f"{self._name} are streamed"
            )
            remedy = "Sort them with `np.unique(indices)`."
            raise ValueError(invalid("indices", expected, indices, remedy))
        return StreamedSource(self._stream, numbers, self._name)

    def images(self, shuffle, seed):
        """A data set of (index, epoch, image), see `IndexedSource.images`."""
        count = len(self)
        numbers = tf.constant(self._numbers, tf.int64)

        def keep(position, image):
            return tf.reduce_any(numbers[_place(numbers, position)] == position)

        def load(numbered, epoch):
            position, image = numbered
            return _place(numbers, position), epoch, self._decode(position, image)

        kept = self._stream.enumerate().take(int(self._numbers[-1]) + 1).filter(keep)
        if shuffle:
            kept = kept.shuffle(min(count, SHUFFLE_BUFFER), seed=seed)
        numbered = tf.data.Dataset.zip(kept, epochs())
        numbered = numbered.apply(tf.data.experimental.assert_cardinality(count))
        return numbered.map(load, num_parallel_calls=tf.data.AUTOTUNE)

    def _decode(self, position, image):
        def read(position, encoded):
            try:
                return read_image(encoded)
            except BadImageError as error:
                raise ValueError(
                    f"Cannot read image {position} of {self._name}: {error}"
                ) from None

        if image.dtype == tf.string:
            image = tf.numpy_function(read, [position, image], tf.uint8)
        elif image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        return tf.ensure_shape(tf.cast(image, tf.uint8), [None, None, 3])


def _place(numbers, position):
    """The place of the position, or where it would be, among the sorted numbers."""
    place = tf.searchsorted(numbers, position[None], out_type=tf.int64)[0]
    return tf.minimum(place, tf.size(numbers, tf.int64) - 1)


def _stream(tfds, builder, split, image_key, download):
    skip = {image_key: tfds.decode.SkipDecoding()}
    try:
        # Without shuffled files the order, and so the numbering, is fixed.
        return builder.as_dataset(split=split, shuffle_files=False, decoders=skip)
    except AssertionError as error:  # raised by TFDS if the set is not on disk
        expected = f"True, as {builder.name!r} is not in {builder.data_dir}"
        remedy = "Pass `download=True`, or the folder of the data sets as `data_dir`."
        raise ValueError(invalid("download", expected, download, remedy)) from error


def _check_features(tfds, builder, image_key, label_key):
    features = builder.info.features
    known = ", ".join(f"{key} ({type(features[key]).__name__})" for key in features)
    for argument, key, kind in (
        ("image_key", image_key, tfds.features.Image),
        ("label_key", label_key, tfds.features.ClassLabel),
    ):
        if key not in features or not isinstance(features[key], kind):
            expected = f"a feature of {builder.name!r} of type {kind.__name__}"
            remedy = (
                f"Its features: {known}. `from_tfds` is for sets with one image "
                "and one class label per example."
            )
            raise ValueError(invalid(argument, expected, key, remedy))
    if features[image_key].np_dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"The images of the data set {builder.name!r} are "
            f"{features[image_key].np_dtype.__name__}. Expected 8 or 16 bits per "
            "channel. Read the set with `tfds.load` and scale it, then use "
            "`ImageSet.from_arrays`."
        )


def _check_split(builder, split):
    known = list(builder.info.splits)
    if not isinstance(split, str):
        raise ValueError(invalid("split", "a string such as 'train'", split))
    for part in split.split("+"):
        base = re.sub(r"\[.*", "", part).strip()
        # "all" is TFDS's own name for the union of the splits.
        if known and base not in (*known, "all"):
            raise ValueError(unknown_name("split", base, known))
