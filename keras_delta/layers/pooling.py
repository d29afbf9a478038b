"""Average pooling to a given size."""

from keras import ops


def adaptive_average_pool(x, size):
    """Averages maps over the bins of a coarser grid.

    Bin i of m over n positions runs from `floor(i * n / m)` to
    `ceil((i + 1) * n / m)`, exclusive, as in PyTorch's `AdaptiveAvgPool2d`. If m does
    not divide n, bins overlap; if m is larger, positions are repeated.

    Args:
        x: `(B, H, W, C)`.
        size: pair of height and width.

    Returns:
        `(B, *size, C)` float32.
    """
    x = ops.cast(x, "float32")
    for axis, bins in zip((1, 2), size, strict=True):
        x = _pool_axis(x, axis, bins)
    return x


def _pool_axis(x, axis, bins):
    length = ops.shape(x)[axis]
    if isinstance(length, int) and isinstance(bins, int) and length % bins == 0:
        factor = (length // bins, 1) if axis == 1 else (1, length // bins)
        return x if length == bins else ops.average_pool(x, factor, strides=factor)
    # Not a product with a matrix of zeros and shares: TF32 would round the maps.
    index = ops.arange(bins)
    first = index * length // bins
    end = ((index + 1) * length + bins - 1) // bins
    longest = (length + bins - 1) // bins + 1
    places = first[:, None] + ops.arange(longest)
    inside = ops.cast(places < end[:, None], "float32")
    shares = inside / ops.cast(end - first, "float32")[:, None]
    taken = ops.take(x, ops.minimum(places, length - 1), axis=axis)
    shares = ops.reshape(shares, (bins, longest) + (1,) * (3 - axis))
    return ops.sum(taken * shares, axis=axis + 1)
