"""The two ways in which the DELTA article prepares its images.

Source: Li et al., "Knowledge Distillation with Attention for Deep Transfer
Learning of Convolutional Networks", TKDD 2021, section 4,
doi:10.1145/3473912, and the authors' code.
"""

import tensorflow as tf

from keras_delta.data.ten_crop import height_width, ten_crop
from keras_delta.errors import invalid, unknown_name

PROTOCOLS = ("default", "improved")


def resize_side(size):
    """The side to which images are resized before a crop of `size`.

    Args:
        size: side of the crop in pixels.

    Returns:
        320 for the 299 pixels of Inception, as in the article; else the
        article's 256 for 224, in proportion.
    """
    return 320 if size == 299 else int(size * 8 / 7 + 0.5)


class Protocol:
    """Preparation of single images, split at the first random step.

    `resize` comes first and is the same in each epoch (so that it can be
    cached); `finish` then cuts out what the model sees.

    | protocol | training | test |
    |---|---|---|
    | "default" | squash to R × R, mirror, random crop S | squash to S × S |
    | "improved" | shorter edge to R, mirror, random crop S | shorter edge to R, \
centre crop S or ten crops |

    R is `resize_side(S)`. The authors' code for "improved" cuts the centre out
    before its random crop of the same size, which leaves that crop nothing to
    choose; here the crop is random over the whole image, as in the article's
    text. Their test images for "default" are squashed straight to S × S, and
    so are ours.

    Args:
        name: "default" or "improved".
        image_size: S, side in pixels or (height, width).
        training: whether to mirror and crop at random.
        ten_crop: whether to give ten crops; for the "improved" test only.
    """

    def __init__(self, name, image_size, training=False, ten_crop=False):
        if name not in PROTOCOLS:
            raise ValueError(unknown_name("protocol", name, PROTOCOLS))
        if ten_crop and (training or name != "improved"):
            raise ValueError(
                invalid(
                    "ten_crop",
                    "False, except for `protocol='improved'` with `training=False`",
                    ten_crop,
                    f"Here protocol={name!r} and training={training!r}.",
                )
            )
        self.name = name
        self.size = height_width(image_size, "image_size")
        self.training = training
        self.ten_crop = ten_crop
        self.resizing = (name, self.size, training)  # what `resize` depends on

    def resize(self, image):
        """Resizes one image: bilinear with antialiasing, in 0..255.

        Args:
            image: tensor of shape (height, width, 3).

        Returns:
            `float32` tensor, larger than or equal to S × S.
        """
        full = [resize_side(side) for side in self.size]
        if self.name == "improved":
            target = _cover(tf.shape(image)[:2], full)
        else:
            target = full if self.training else self.size
        image = tf.image.resize(image, target, method="bilinear", antialias=True)
        # The weights of the filter sum to 1 up to rounding only.
        image = tf.clip_by_value(tf.cast(image, tf.float32), 0.0, 255.0)
        return tf.ensure_shape(image, [None, None, 3])

    def finish(self, image, seed):
        """Mirrors and crops one resized image.

        Args:
            image: result of `resize`.
            seed: pair of integers for the stateless random operations; used in
                training only.

        Returns:
            Tensor of shape (h, w, 3), or (10, h, w, 3) for ten crops.
        """
        height, width = self.size
        if self.ten_crop:
            return ten_crop(image, self.size)
        if self.training:
            mirror_seed, crop_seed = tf.unstack(tf.random.split(seed, 2))
            image = tf.image.stateless_random_flip_left_right(image, mirror_seed)
            return tf.image.stateless_random_crop(image, [height, width, 3], crop_seed)
        if self.name == "improved":
            top = (tf.shape(image)[0] - height) // 2
            left = (tf.shape(image)[1] - width) // 2
            image = image[top : top + height, left : left + width]
        return tf.ensure_shape(image, [height, width, 3])


def _cover(shape, full):
    """The smallest size with the aspect of `shape` that covers `full`."""
    shape = tf.cast(shape, tf.float32)
    scale = tf.reduce_max(tf.cast(full, tf.float32) / shape)
    # The maximum: rounding must not leave an edge one pixel short of the crop.
    return tf.maximum(tf.cast(tf.round(shape * scale), tf.int32), full)
