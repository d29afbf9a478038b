"""Parts of images that excite a channel most."""

from typing import NamedTuple

import numpy as np

from keras_delta.analysis.reading import to_map

SHARE = 0.35  # side of a patch, as a share of the image's


class Patch(NamedTuple):
    """A part of an image.

    Attributes:
        image: its number.
        box: (top, left, bottom, right) in pixels of the model's input.
        activation: of the channel in the middle of the box.
    """

    image: int
    box: tuple
    activation: float


def exciting_patches(model, images, channels, tap=None, count=4):
    """The patches that excite channels of a map most, at most one per image.

    Args:
        model: a Keras model or `DeltaModel` (its target).
        images: `keras_delta.analysis.images.Images`.
        channels: numbers of channels.
        tap: layer whose map is read; default: the last tap of a `DeltaModel`.
        count: patches per channel.

    Returns:
        Dict channel -> list of `Patch`, the most exciting first.
    """
    network, _ = to_map(model, tap, images.size, "")
    values, cells, grid, size = [], [], None, None
    for batch in images.batches():
        maps = network(batch)[..., channels]
        grid, size = maps.shape[1:3], batch.shape[1:3]
        flat = maps.reshape(len(maps), -1, len(channels))
        values.append(flat.max(1))
        cells.append(flat.argmax(1))
    values, cells = np.concatenate(values), np.concatenate(cells)
    found = {}
    for k, channel in enumerate(channels):
        best = np.argsort(-values[:, k], kind="stable")[:count]
        found[channel] = [
            Patch(int(i), _box(cells[i, k], grid, size), float(values[i, k]))
            for i in best
        ]
    return found


def _box(cell, grid, size):
    """The box around the middle of a cell, moved into the image."""
    edges = []
    for place, cells, pixels in zip(divmod(cell, grid[1]), grid, size, strict=True):
        side = max(1, round(SHARE * pixels))
        start = round((place + 0.5) * pixels / cells - side / 2)
        start = int(min(max(start, 0), pixels - side))
        edges.append((start, start + side))
    (top, bottom), (left, right) = edges
    return top, left, bottom, right
