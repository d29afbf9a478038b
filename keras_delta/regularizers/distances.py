"""Distances between feature maps, per sample and channel. Pure functions."""

import keras
import tensorflow as tf
from keras import ops


def channel_distances(source_map, target_map):
    """Squared distance of each channel, summed over positions.

    `D[b, j] = sum_hw (T - S)^2`, in float32 whatever the maps' precision: half
    precision overflows on the sum. Squares and never a norm, whose gradient is
    NaN where the maps agree.

    Args:
        source_map: `(B, ..., C)`, channels last.
        target_map: the same shape.

    Returns:
        `(B, C)` float32.
    """
    source_map = ops.cast(source_map, "float32")
    target_map = ops.cast(target_map, "float32")
    positions = tuple(range(1, len(target_map.shape) - 1))
    return ops.sum(ops.square(target_map - source_map), axis=positions)


def positions(feature_map):
    """Number of positions of a map `(B, ..., C)`, as a float32 scalar."""
    count = ops.prod(ops.shape(feature_map)[1:-1])
    return ops.cast(count, "float32")


def mean_square(feature_map):
    """Mean of the squared map over positions and channels: `(B,)` float32."""
    feature_map = ops.cast(feature_map, "float32")
    axes = tuple(range(1, len(feature_map.shape)))
    return ops.mean(ops.square(feature_map), axis=axes)


def half_sum_of_squares(tensors):
    """`1/2 sum ||t||^2` over tensors; 0 where there are none."""
    # l2_loss reads a tensor once and makes no other of its size, nor does its
    # gradient.
    parts = [tf.nn.l2_loss(ops.cast(t, "float32")) for t in tensors]
    return tf.add_n(parts) if parts else ops.zeros((), "float32")


def distillation_loss(source_logits, target_logits, temperature):
    """`T^2 KL(softmax(source / T) || softmax(target / T))` of each sample.

    Args:
        source_logits, target_logits: `(B, classes)`.
        temperature: T.

    Returns:
        `(B,)` float32.

    Source: Hinton, Vinyals & Dean, 2015, arXiv 1503.02531.
    """
    p, q = (
        ops.log_softmax(ops.cast(v, "float32") / temperature, axis=-1)
        for v in (source_logits, target_logits)
    )
    return temperature**2 * ops.sum(ops.exp(p) * (p - q), axis=-1)


def as_logits(outputs, activation):
    """Predictions as logits, from an activation of `output_activation`."""
    if activation != "softmax":
        return outputs
    # Of a softmax the logarithm will do: it differs from the logits by a constant.
    smallest = keras.backend.epsilon()
    return ops.log(ops.maximum(ops.cast(outputs, "float32"), smallest))
