"""The random boxes of torchvision's `RandomResizedCrop`, without global state."""

import math

import tensorflow as tf

SCALE = (0.2, 1.0)  # share of the image's area
RATIO = (3 / 4, 4 / 3)  # width by height
TRIES = 10


def random_box(height, width, seed):
    """Draws a box of random area, shape and position inside an image.

    The area is uniform in `SCALE`, the logarithm of the shape uniform in that of
    `RATIO`. A box that does not fit is drawn again, `TRIES` times in all; after that,
    the largest centred box whose shape is within `RATIO` is used.

    Args:
        height, width: size of the image, integers.
        seed: pair of integers that determines the result.

    Returns:
        (top, left, height, width), `int32` tensors.

    Source: `RandomResizedCrop.get_params` of torchvision; the area as in
    thuml/Transfer-Learning-Library, `RandomResizedCrop(224, scale=(0.2, 1.))` of
    examples/task_adaptation/image_classification/utils.py.
    """
    area_seed, ratio_seed, *place_seeds = tf.unstack(tf.random.split(seed, 4))
    areas = tf.random.stateless_uniform([TRIES], area_seed, *SCALE, tf.float64)
    limits = [math.log(ratio) for ratio in RATIO]
    ratios = tf.random.stateless_uniform([TRIES], ratio_seed, *limits, tf.float64)
    *box, fits = box_size(height, width, areas, tf.exp(ratios))

    def start(room, seed):
        random = tf.random.stateless_uniform([], seed, 0, room + 1, tf.int32)
        return tf.where(fits, random, room // 2)

    rooms = [side - part for side, part in zip((height, width), box, strict=True)]
    top, left = map(start, rooms, place_seeds)
    return top, left, *box


def box_size(height, width, areas, ratios):
    """The first of the drawn boxes that fits, or else the largest centred box.

    `areas` are shares of the image's area, `ratios` width by height, `float64`.

    Returns:
        (height, width, whether one of the drawn boxes fits).
    """
    tall, wide = (tf.cast(side, tf.float64) for side in (height, width))
    heights = tf.round(tf.sqrt(tall * wide * areas / ratios))
    widths = tf.round(tf.sqrt(tall * wide * areas * ratios))
    fit = (heights > 0) & (heights <= tall) & (widths > 0) & (widths <= wide)
    fits, first = tf.reduce_any(fit), tf.argmax(fit)
    least, most = RATIO
    h = tf.where(fits, heights[first], tf.minimum(tall, tf.round(wide / least)))
    w = tf.where(fits, widths[first], tf.minimum(wide, tf.round(tall * most)))
    return tf.cast(h, tf.int32), tf.cast(w, tf.int32), fits
