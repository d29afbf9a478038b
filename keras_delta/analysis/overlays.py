"""Maps over photographs, in colours that colour-blind people and printers can read."""

import numpy as np
import tensorflow as tf

from keras_delta.analysis.maps import displayed

HEAT = 0.7  # opacity of the colours where a map is 1


def overlaid(image, heat):
    """An image in grey with a map over it, `(height, width, 3)` uint8.

    In `inferno`, higher values are lighter and differ in hue.

    Args:
        image: as a model takes it.
        heat: `(h, w)` from 0 to 1.
    """
    from matplotlib import colormaps

    pixels = rgb(image).astype("float64") / 255
    grey = pixels.mean(-1, keepdims=True)
    heat = np.asarray(heat, "float32")[..., None]
    heat = np.clip(tf.image.resize(heat, pixels.shape[:2]).numpy(), 0, 1)
    colours = colormaps["inferno"](0.25 + 0.75 * heat[..., 0])[..., :3]
    covered = HEAT * heat
    return (255 * ((1 - covered) * 0.8 * grey + covered * colours)).astype("uint8")


def rgb(image):
    """An image as a model takes it, as `(height, width, 3)` uint8."""
    shown = displayed(image)
    shown = np.repeat(shown[..., None], 3, -1) if shown.ndim == 2 else shown
    return np.rint(255 * shown).astype("uint8")
