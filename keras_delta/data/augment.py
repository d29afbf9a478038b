"""The image preparation of DELTA's article, its program and tllib.

Source: Li et al., "Knowledge Distillation with Attention for Deep Transfer
Learning of Convolutional Networks", TKDD 2021, section 4,
doi:10.1145/3473912, and the authors' code; for "tllib",
thuml/Transfer-Learning-Library,
examples/task_adaptation/image_classification/utils.py.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._types import ArrayLike, ImageSize, ProtocolName, Tensor
from keras_delta.data.random_box import random_box
from keras_delta.data.ten_crop import crop_places, height_width, ten_crop

MOST = 89_478_485  # pixels of a resized image; Pillow's limit for decoding

# Test-time preparation: all other protocols do it as "improved" does.
PROTOCOLS = ("default", "improved")


def resize_side(size: int) -> int:
    """Returns the side to which images are resized before a crop of `size`.

    Args:
        size: side of the crop in pixels.

    Returns:
        320 for Inception's 299 pixels, as in the article; otherwise in proportion
        to the article's 256 for 224.
    """
    return 320 if size == 299 else int(size * 8 / 7 + 0.5)


class Protocol:
    """Prepares single images, in two stages split at the first random step.

    `resize` comes first and is the same in each epoch, so that it can be
    cached; `finish` then crops the image that the model sees.

    | protocol | training | test |
    |---|---|---|
    | "default" | squash to R × R, mirror, random crop S | squash to S × S |
    | "improved" | shorter edge to R, mirror, random crop S | shorter edge to R, \
centre crop S or ten crops |
    | "improved_code" | shorter edge to R, mirror, centre crop S | as "improved" |
    | "tllib" | random box of 0.2 to 1 of the area and 3:4 to 4:3, squashed to \
S × S, mirror | shorter edge to R, centre crop S |

    R is `resize_side(S)`. The authors' code for "improved" cuts out the centre
    before its random crop of the same size, which therefore has no effect: that is
    "improved_code". In "improved", the crop is random over the whole image, as in the
    article's text. Their test images for "default" are squashed directly to S × S,
    and so are ours.

    "tllib" is thuml/Transfer-Learning-Library, see `random_box`. For training, its
    `resize` returns the image itself as `uint8`, except that images more than 3 S
    high and wide are shrunk until one edge is 3 S. The smallest, narrowest box of a
    square image is then still larger than S × S, so that no detail is lost.

    Args:
        name: "default", "improved", "improved_code" or "tllib".
        image_size: S, side in pixels or (height, width).
        training: whether to mirror and crop at random.
        ten_crop: whether to return ten crops; only for testing with "improved" and
            "improved_code".

    Raises:
        ValueError: if the name is unknown, the size is invalid, or `ten_crop` is not
            supported.
    """

    def __init__(
        self,
        name: ProtocolName,
        image_size: ImageSize,
        training: bool = False,
        ten_crop: bool = False,
    ) -> None:
        self._recipe = RECIPES[_arguments.choice("protocol", name, RECIPES)]
        if ten_crop and (training or not self._recipe.has_ten_crops):
            expected = (
                "False, except for `protocol='improved'` or 'improved_code' with "
                "`training=False`"
            )
            remedy = f"Here protocol={name!r} and training={training!r}."
            raise ValueError(invalid("ten_crop", expected, ten_crop, remedy))
        self.name = name
        self.size = height_width(image_size, "image_size")
        self.training = training
        self.ten_crop = ten_crop
        self.resizing = (name, self.size, training)  # what `resize` depends on

    @property
    def resized_dtype(self) -> tf.DType:
        """Type of the tensors that `resize` returns."""
        return self._recipe.training_dtype if self.training else tf.float32

    def resize(self, image: Tensor) -> tf.Tensor:
        """Resizes one image: bilinear with antialiasing, in 0..255.

        Args:
            image: tensor of shape (height, width, 3).

        Returns:
            Tensor of type `resized_dtype`, larger than or equal to S × S (of any
            size when training with "tllib").
        """
        image = tf.convert_to_tensor(image)
        image = self._recipe.resize(image, self.size, self.training)
        return tf.ensure_shape(image, [None, None, 3])

    def finish(self, image: Tensor, seed: Tensor) -> tf.Tensor:
        """Mirrors and crops one resized image.

        Args:
            image: result of `resize`.
            seed: pair of integers for the stateless random operations; only used in
                training.

        Returns:
            `float32` tensor of shape (h, w, 3), or (10, h, w, 3) for ten crops.
        """
        if self.ten_crop:
            return ten_crop(image, self.size)
        if self.training:
            image = self._recipe.vary(image, self.size, seed)
        else:
            image = self._recipe.settle(image, self.size)
        return tf.ensure_shape(image, [*self.size, 3])

    def move_points(self, points: ArrayLike, shape: Sequence[int]) -> np.ndarray:
        """Maps points of an image to its crops in a test.

        Args:
            points: `(P, 2)`, x from the left and y from the top, in pixels: pixel
                (0, 0) covers the range from 0 to 1.
            shape: (height, width) of the image.

        Returns:
            `(crops, P, 2)` float64, one or ten crops in the order of `ten_crop`; points
            not in a crop have coordinates outside it. The position of a mirrored pixel
            is that of its left edge.
        """
        height, width = self.size
        full_height, full_width = self._recipe.test_shape(shape, self.size)
        scale = np.array([full_width, full_height]) / np.array([shape[1], shape[0]])
        moved = np.asarray(points, "float64") * scale
        mirrored = moved * [-1, 1] + [full_width - scale[0], 0]
        places = crop_places(full_height - height, full_width - width)
        if not self.ten_crop:
            places = places[-1:]  # the centre
        views = (moved, mirrored) if self.ten_crop else (moved,)
        return np.stack([view - [x, y] for view in views for y, x in places])


class Default:
    """Ignores the aspect ratio; see `Protocol` for this and the other recipes."""

    has_ten_crops = False
    training_dtype = tf.float32

    def resize(self, image, size, training):
        """The resized image, before anything random."""
        return _resized(image, _full(size) if training else size)

    def vary(self, image, size, seed):
        """A random training view of the result of `resize`."""
        mirror_seed, crop_seed = tf.unstack(tf.random.split(seed, 2))
        image = tf.image.stateless_random_flip_left_right(image, mirror_seed)
        return tf.image.stateless_random_crop(image, [*size, 3], crop_seed)

    def settle(self, image, size):
        """The single test view of the result of `resize`."""
        return image

    def test_shape(self, shape, size):
        """(height, width) of the result of `resize` for a test."""
        return size


class Improved(Default):
    """Keeps the aspect ratio."""

    has_ten_crops = True

    def resize(self, image, size, training):
        """The image with its shorter edge at R."""
        return _resized(image, _cover(tf.shape(image)[:2], _full(size)))

    def test_shape(self, shape, size):
        """See `Default`."""
        return tuple(_cover(shape, _full(size)).numpy().tolist())

    def settle(self, image, size):
        """The centre."""
        height, width = size
        top = (tf.shape(image)[0] - height) // 2
        left = (tf.shape(image)[1] - width) // 2
        return image[top : top + height, left : left + width]


class ImprovedCode(Improved):
    """Mirrors, but never crops at random."""

    def vary(self, image, size, seed):
        """The centre of the image or of its mirror image."""
        mirror_seed, _ = tf.unstack(tf.random.split(seed, 2))
        image = tf.image.stateless_random_flip_left_right(image, mirror_seed)
        return self.settle(image, size)


class Tllib(Improved):
    """Trains on random boxes."""

    has_ten_crops = False
    training_dtype = tf.uint8

    def resize(self, image, size, training):
        """For training, the image itself unless it is very large."""
        if not training:
            return super().resize(image, size, training)
        shape = tf.shape(image)[:2]
        small = _cover(shape, [3 * side for side in size])
        image = tf.cond(
            tf.reduce_all(small < shape),
            lambda: _resized(image, small),
            lambda: tf.cast(image, tf.float32),
        )
        return tf.cast(tf.round(image), tf.uint8)

    def vary(self, image, size, seed):
        """A random box, squashed to S × S, or its mirror image."""
        mirror_seed, box_seed = tf.unstack(tf.random.split(seed, 2))
        full_height, full_width = tf.unstack(tf.shape(image)[:2])
        top, left, height, width = random_box(full_height, full_width, box_seed)
        image = _resized(image[top : top + height, left : left + width], size)
        return tf.image.stateless_random_flip_left_right(image, mirror_seed)


RECIPES = {
    "default": Default(),
    "improved": Improved(),
    "improved_code": ImprovedCode(),
    "tllib": Tllib(),
}


def _resized(image, size):
    # A thin strip becomes huge when its shorter edge is enlarged.
    is_small = tf.reduce_prod(tf.cast(size, tf.int64)) <= MOST
    text = f"An image has more than {MOST:,} pixels once resized: crop it."
    with tf.control_dependencies([tf.debugging.Assert(is_small, [text])]):
        image = tf.image.resize(image, size, method="bilinear", antialias=True)
    # The weights of the filter only sum to 1 up to rounding.
    return tf.clip_by_value(tf.cast(image, tf.float32), 0.0, 255.0)


def _full(size):
    return [resize_side(side) for side in size]


def _cover(shape, full):
    """The smallest size with the aspect ratio of `shape` that covers `full`."""
    shape = tf.cast(shape, tf.float32)
    scale = tf.reduce_max(tf.cast(full, tf.float32) / shape)
    # The maximum: rounding must not leave an edge one pixel short of the crop.
    return tf.maximum(tf.cast(tf.round(shape * scale), tf.int32), full)
