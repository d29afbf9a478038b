"""Activation of maps at key points, such as the parts of a bird (Table 3)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_delta._errors import invalid
from keras_delta._types import ArrayLike, ImageSize, Models, PathLike, ProtocolName
from keras_delta.analysis.reading import aggregate, to_map
from keras_delta.data import ImageSet
from keras_delta.data.augment import Protocol

BATCH = 32


class KeyPoints(NamedTuple):
    """Activation of a network's maps at key points.

    Attributes:
        total: mean over images of the sum over their visible points, as in the
            article's Table 3.
        mean: mean over all visible points, from 0 to 1.
        by_point: `(P,)`, mean of each point over the images where it is visible; NaN
            if it never is.
        counts: `(P,)`, number of images in which each point is visible.
        images: number of images.
    """

    total: float
    mean: float
    by_point: np.ndarray
    counts: np.ndarray
    images: int


def key_point_activation(
    models: Models,
    images: ImageSet | np.ndarray,
    points: ArrayLike,
    *,
    tap: str | None = None,
    image_size: ImageSize | None = None,
    protocol: ProtocolName = "default",
    ten_crop: bool = False,
) -> KeyPoints | dict[str, KeyPoints]:
    """Activation of a network's maps at key points of the images.

    For each image, the mean A over all channels of a map is normalised,
    `A <- (A - min) / (max - min)`, a constant one to 0. A point (x, y) of an image of
    W x H pixels, as the network sees it, lies in the cell

        (floor(x w / W), floor(y h / H))

    of the map of w x h cells. A point that is not visible, or outside the crop,
    does not count; with ten crops it counts with its mean over those that contain it.

    Args:
        models: a Keras model or `DeltaModel` (its target), or a dict label -> model,
            such as `{"source": model.source, "DELTA": model}`.
        images: an `ImageSet`, or an array `(N, height, width, 3)` of images of any size
            from 0 to 255.
        points: `(N, P, 2)`: x from the left and y from the top, in pixels of the
            original image files; NaN if a point is not visible. For CUB-200-2011:
            `cub_points`.
        tap: layer whose map is read; default: the last tap of a `DeltaModel`.
        image_size: side in pixels or (height, width); default: the network's.
        protocol, ten_crop: how images are prepared, see `ImageSet.batches`.

    Returns:
        `KeyPoints`; for a dict of models, a dict of them.

    Raises:
        TypeError, ValueError: if points do not fit the images, these come from
            `ImageSet.resized`, the tap is unknown, or its map has no positions.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.4, Table 3.
    The article does not say how channels are combined or which layer is read: the
    mean over channels and the last tap are our interpretation.
    """
    several = isinstance(models, dict)
    named = models if several else {"": models}
    if not isinstance(images, ImageSet):
        images = ImageSet.from_arrays(images, np.zeros(len(images), int))
    if getattr(images.source, "resized_for", None) is not None:
        expected = "images of their original sizes, to which `points` refer"
        remedy = "Pass the set on which `resized` was called."
        raise ValueError(invalid("images", expected, "resized images", remedy))
    points = _checked_points(points, len(images))
    found = {}
    for label, model in named.items():
        network, size = to_map(model, tap, image_size, label)
        prepare = Protocol(protocol, size, ten_crop=ten_crop)
        values = _read(network, images, points, prepare)
        found[label] = _summary(values)
    return found if several else found[""]


def cub_points(folder: PathLike, images: ImageSet) -> tuple[np.ndarray, list[str]]:
    """The part locations of CUB-200-2011 for the images of a set.

    Args:
        folder: of the data set, with `images.txt`, `images/` and `parts/`.
        images: an `ImageSet` of files in it.

    Returns:
        (`(N, 15, 2)` x and y, NaN if a part is not visible; list of the names).

    Raises:
        ValueError: if an image is not in `images.txt`.
    """
    folder = Path(folder)
    numbers = {name: number for number, name in _lines(folder / "images.txt", 1)}
    names = [name for _, name in _lines(folder / "parts" / "parts.txt", 1)]
    table = np.loadtxt(folder / "parts" / "part_locs.txt", ndmin=2)
    points = {}
    for image, part, x, y, visible in table:
        if int(image) not in points:
            points[int(image)] = np.full((len(names), 2), np.nan)
        if visible:
            points[int(image)][int(part) - 1] = x, y
    found = []
    for path in images.paths or ():
        name = "/".join(Path(path).parts[-2:])
        if name not in numbers:
            expected = f"images that {folder / 'images.txt'} lists"
            raise ValueError(invalid("images", expected, path))
        found.append(points[int(numbers[name])])
    return np.stack(found), names


def _lines(path, splits):
    return [line.split(" ", splits) for line in path.read_text("utf-8").splitlines()]


def _checked_points(points, count):
    points = np.asarray(points, "float64")
    if points.ndim != 3 or points.shape[2] != 2 or len(points) != count:
        expected = f"an array ({count} images, points, 2) of x and y"
        raise ValueError(invalid("points", expected, f"an array {points.shape}"))
    return points


def _read(network, images, points, prepare):
    """`(N, P)` activations; NaN if a point is not visible."""
    found = np.full(points.shape[:2], np.nan)

    def prepared(index, epoch, image):
        return prepare.finish(prepare.resize(image), None), tf.shape(image)[:2]

    pairs = images.source.images(shuffle=False, seed=0).map(prepared).batch(BATCH)
    start = 0
    for x, shapes in pairs.as_numpy_iterator():
        maps = aggregate(network(x.reshape(-1, *x.shape[-3:])))
        maps = maps.reshape(len(x), -1, *maps.shape[1:])
        for i, shape in enumerate(shapes):
            moved = prepare.move_points(points[start + i], shape)
            found[start + i] = _at(maps[i], moved, prepare.size)
        start += len(x)
    return found


def _at(maps, points, size):
    """Values of the maps `(crops, h, w)` at points `(crops, P, 2)`, mean over crops."""
    sides = np.array([size[1], size[0]])
    with np.errstate(invalid="ignore"):
        inside = ((points >= 0) & (points < sides)).all(-1)
    grid = np.array([maps.shape[2], maps.shape[1]])
    cells = np.floor(np.where(inside[..., None], points, 0) * grid / sides).astype(int)
    crops = np.arange(len(maps))[:, None]
    values = np.where(inside, maps[crops, cells[..., 1], cells[..., 0]], 0)
    counts = inside.sum(0)
    return np.where(counts > 0, values.sum(0) / np.maximum(counts, 1), np.nan)


def _summary(values):
    seen = np.isfinite(values)
    totals, counts = np.where(seen, values, 0), seen.sum(0)
    by_point = totals.sum(0) / np.where(counts > 0, counts, np.nan)
    mean = totals.sum() / seen.sum() if seen.any() else np.nan
    total = totals.sum(1).mean() if len(values) else np.nan
    return KeyPoints(float(total), float(mean), by_point, counts, len(values))
