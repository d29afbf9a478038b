"""Distances between feature maps, per sample and channel. Pure functions."""

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
    pooling, and the norm is that over all positions. A map that is zero stays zero.

    Args:
        source_maps: list of T maps `(B, H, W, C)`; their sizes may differ.
        target_maps: list of S maps; likewise.

    Returns:
        `(B, T, S)` float32.
    """
    energies = [energy_map(m) for m in target_maps]
    pooled, rows = {}, []
    for t, source_map in enumerate(source_maps):
        source = energy_map(source_map)
        grid = tuple(source.shape[1:])
        key = t if None in grid else grid  # pooled once for all taps of a size
        if key not in pooled:
            size = ops.shape(source)[1:]
            parts = [_unit(adaptive_average_pool(e, size)) for e in energies]
            pooled[key] = ops.stack(parts, axis=1)
        difference = pooled[key] - ops.expand_dims(_unit(source), 1)
        rows.append(ops.mean(ops.square(difference), axis=(2, 3)))
    return ops.stack(rows, axis=1)


def _unit(energy):
    # The square of PyTorch's 1e-12, under the root: no NaN in the gradient at zero.
    return tf.math.l2_normalize(energy, axis=(1, 2), epsilon=1e-24)


def adaptive_average_pool(values, size):
    """Average over a grid of bins, as PyTorch's `AdaptiveAvgPool2d`.

    Bin i of n, along an axis of length m, covers the positions from `floor(i m / n)` to
    before `ceil((i + 1) m / n)`. Bins overlap where n does not divide m.

    Args:
        values: `(B, H, W)` float32; H and W may be dynamic.
        size: `(height, width)` of the grid, integers or scalar tensors; may be larger
            than `(H, W)`.

    Returns:
        `(B, height, width)` float32.
    """
    shape = ops.shape(values)
    rows, columns = (_bins(shape[axis + 1], size[axis]) for axis in (0, 1))
    if rows is not None:
        values = ops.einsum("ih,bhw->biw", rows, values)
    if columns is not None:
        values = ops.einsum("jw,biw->bij", columns, values)
    return values


def _bins(length, count):
    """Matrix `(count, length)` that averages over bins; None if it is the identity."""
    if isinstance(length, int) and isinstance(count, int) and length == count:
        return None
    i, position = ops.arange(count)[:, None], ops.arange(length)[None]
    start, stop = i * length // count, -(-(i + 1) * length // count)
    inside = ops.logical_and(position >= start, position < stop)
    return ops.cast(inside, "float32") / ops.cast(stop - start, "float32")


def distillation_loss(source_logits, target_logits, temperature):
    """Distance of softened predictions: `T^2 KL(softmax(s / T) || softmax(t / T))`.

    Args:
        source_logits: `(B, classes)`.
        target_logits: the same shape.
        temperature: T, positive.

    Returns:
        `(B,)` float32, summed over the classes.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
    arXiv 1503.02531.
    """
    source, target = (
        ops.log_softmax(ops.cast(logits, "float32") / temperature, axis=-1)
        for logits in (source_logits, target_logits)
    )
    divergence = ops.sum(ops.exp(source) * (source - target), axis=-1)
    return temperature**2 * divergence
