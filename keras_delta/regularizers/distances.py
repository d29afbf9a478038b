"""Distances between feature maps, per sample and channel. Pure functions."""

import numpy as np
import tensorflow as tf
from keras import ops

from keras_delta.layers.pooling import adaptive_average_pool


def channel_distances(source_map, target_map):
    """Squared distance of each channel, summed over positions.

    `D[b, j] = sum_hw (T - S)^2`, in float32 for maps of any precision: half
    precision overflows on the sum. Squares rather than a norm, whose gradient is
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
    """`1/2 sum ||t||^2` over tensors; 0 if there are none."""
    # l2_loss reads a tensor once and allocates no other of its size; nor does its
    # gradient.
    parts = [tf.nn.l2_loss(ops.cast(t, "float32")) for t in tensors]
    return tf.add_n(parts) if parts else ops.zeros((), "float32")


def energy_map(feature_map):
    """Mean over the channels of the squared map: `(B, H, W)` float32.

    Args:
        feature_map: `(B, H, W, C)`.
    """
    return ops.mean(ops.square(ops.cast(feature_map, "float32")), axis=-1)


def energy_distances(source_maps, target_maps):
    """Distances of each source map's energy to each target map's.

    `D[b, t, s] = mean_hw (pool(E_s) / ||pool(E_s)|| - E_t / ||E_t||)^2`, where `E` is
    the `energy_map`, `pool` brings it to the grid of source map t by adaptive average
    pooling, and the norm is over all positions. A zero map stays zero.

    Args:
        source_maps: list of T maps `(B, H, W, C)`; their sizes may differ.
        target_maps: list of S maps; likewise.

    Returns:
        `(B, T, S)` float32.
    """
    # Maps of one size are pooled together, once for all source maps of one size.
    places, stacks = {}, {}
    for s, target_map in enumerate(target_maps):
        places.setdefault(_grid(target_map, s), []).append(s)
    for grid, members in places.items():
        stacks[grid] = ops.stack([energy_map(target_maps[s]) for s in members], -1)
    pooled, rows = {}, []
    for t, source_map in enumerate(source_maps):
        source, grid = energy_map(source_map), _grid(source_map, t)
        if grid not in pooled:
            size = ops.shape(source)[1:]
            parts = [_unit(adaptive_average_pool(v, size)) for v in stacks.values()]
            pooled[grid] = ops.concatenate(parts, axis=-1)
        difference = pooled[grid] - ops.expand_dims(_unit(source), -1)
        rows.append(ops.mean(ops.square(difference), axis=(1, 2)))
    order = [s for members in places.values() for s in members]
    return ops.take(ops.stack(rows, axis=1), np.argsort(order), axis=-1)


def _grid(feature_map, number):
    """The size of a map, or its number if the size is unknown."""
    grid = tuple(feature_map.shape[1:3])
    return number if None in grid else grid


def _unit(energy):
    # The square of PyTorch's 1e-12, under the root: no NaN in the gradient at zero.
    return tf.math.l2_normalize(energy, axis=(1, 2), epsilon=1e-24)
