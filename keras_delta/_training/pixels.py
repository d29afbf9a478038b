"""Whether images have the range of values that a network expects."""

import keras
import numpy as np
import tensorflow as tf

from keras_delta._errors import warn

KEEP_RANGE = ("ZeroPadding", "Resizing", "CenterCrop", "Random", "InputLayer")
SCALING = ("Rescaling", "ImageNetPreprocessing")  # layers that expect raw images


def check(model, fed):
    """Refuse images with NaN; warn about 0..1 if the model itself scales 0..255."""
    graph = model.pairing.target
    for tensor, values in zip(graph.inputs, fed, strict=True):
        if not values.dtype.is_floating:
            continue
        # The sum, since NaN may not survive a minimum.
        if not np.isfinite(float(tf.reduce_sum(tf.cast(values, tf.float32)))):
            raise ValueError(
                f"The input '{tensor.name}' holds values that are not finite (NaN or "
                "infinite). Check how the images were decoded and scaled."
            )
        low, high = float(tf.reduce_min(values)), float(tf.reduce_max(values))
        if _is_scaled_inside(graph, tensor) and low >= 0 and 0 < high <= 1:
            warn(
                f"The images lie between {low:g} and {high:g}, but the model itself "
                "scales raw images of 0 to 255. Pass them as they come from the file, "
                "without dividing by 255."
            )


def _is_scaled_inside(graph, tensor):
    """Whether raw images are expected: rescaled before the first weights."""
    reached = {id(tensor)}
    for node in graph.nodes.values():
        layer = node.operation
        if any(id(t) in reached for t in node.inputs):
            if type(layer).__name__ in SCALING:
                return True
            if not getattr(layer, "weights", None):
                reached.update(id(t) for t in node.outputs)
    return False


def check_scaling(graph):
    """Warn about a network that gets raw pixels as they are."""
    reached = {id(t) for t in graph.inputs}
    for node in graph.nodes.values():
        if not any(id(t) in reached for t in node.inputs):
            continue
        layer = node.operation
        if type(layer).__name__.startswith(KEEP_RANGE):
            reached.update(id(t) for t in node.outputs)
            continue
        normalizes = isinstance(layer, keras.layers.Normalization)
        if getattr(layer, "weights", None) and not normalizes:
            warn(
                f"Nothing in front of the first weights of '{graph.model.name}' scales "
                "images, and it gets them as they are, RGB from 0 to 255. If it was "
                "trained on scaled images, as ResNet and most others of "
                "keras.applications, put the same preprocessing in front of it, or use "
                "a network of `keras_delta.backbones`, which scales inside."
            )
        return
