"""Network Dissection: which units of a map detect which concepts (Table 4)."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._progress import Progress
from keras_delta._types import ImageSize, PathLike, Verbose
from keras_delta.analysis.broden import Broden
from keras_delta.analysis.reading import to_map
from keras_delta.data.augment import Protocol

BATCH = 16
TOP = 0.005  # share of a unit's activations that counts as on
IOU = 0.04
MOST_VALUES = 2**27  # of the highest activations, 512 MB


class Unit(NamedTuple):
    """A unit (channel) and the concept that it follows best.

    Attributes:
        unit: its number.
        concept, category: names; None if no concept overlaps the unit's activations.
        iou: intersection over union, from 0 to 1.
        threshold: activation above which the unit counts as on.
    """

    unit: int
    concept: str | None
    category: str | None
    iou: float
    threshold: float


class Dissection(NamedTuple):
    """What the units of a map detect.

    Attributes:
        units: list of `Unit`, one per channel.
        detectors: dict category -> number of different concepts that some unit detects
            (the article's Table 4).
        total: their sum.
    """

    units: list
    detectors: dict
    total: int


def dissect(
    model: keras.Model,
    data: PathLike,
    *,
    tap: str | None = None,
    split: str | None = None,
    image_size: ImageSize | None = None,
    max_images: int | None = None,
    top: float = TOP,
    iou: float = IOU,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> Dissection:
    """Which concepts the units of a map detect, by Network Dissection.

    A unit k is on where its map, resized bilinearly to the labels, is above the
    threshold T_k that a share `top` of its activations over all images exceed. With
    the pixels M_k where it is on and those L_c that show the concept c,

        IoU(k, c) = |M_k and L_c| / |M_k or L_c|,

    counted over the images that have labels of c's category. The unit is a detector of
    the concept with the highest IoU, if that is above `iou`. The number of concepts
    with a detector measures how many nameable concepts a network distinguishes.

    The images are read twice. The thresholds are exact if the activations above
    them fit into 512 MB; otherwise they come from a random part of the positions.

    Args:
        model: a Keras model or `DeltaModel` (its target).
        data: folder of images with concepts in the form of Broden, see
            `keras_delta.analysis.broden.Broden`.
        tap: layer whose map is read; default: the last tap of a `DeltaModel`.
        split: of the data; None for all.
        image_size: side in pixels or (height, width); default: the network's.
        max_images: number of images at most, drawn at random.
        top: share of the activations that counts as on.
        iou: IoU above which a unit counts as a detector.
        seed: of the random draws.
        verbose: 0 for silence.

    Returns:
        `Dissection`.

    Raises:
        ValueError: if the folder has another form, the tap is unknown, or a share is
            out of range.

    Source: Bau et al., "Network Dissection", CVPR 2017, arXiv:1704.05796; in Li et al.,
        "DELTA", TKDD 2021, doi 10.1145/3473912, Table 4.
    """
    top = _arguments.number("top", top, above=0, below=1)
    iou = _arguments.number("iou", iou, below=1)
    most = _arguments.integer("max_images", max_images, optional=True)
    network, size = to_map(model, tap, image_size, "")
    broden = Broden(data, split)
    rng, rows = np.random.default_rng(seed), broden.rows
    if most is not None and len(rows) > most:
        rows = [rows[i] for i in np.sort(rng.permutation(len(rows))[:most])]
    pass_over = _Pass(network, broden, rows, Protocol("default", size), verbose)
    thresholds = _thresholds(pass_over, top, rng)
    counts = _Counts(broden, len(thresholds))
    for maps, batch in pass_over("Overlaps with concepts"):
        for one, row in zip(maps, batch, strict=True):
            counts.add(one, broden.labels(row), broden.size(row), thresholds)
    return counts.summary(thresholds, iou)


class _Pass:
    """Reads maps `(B, h, w, units)` of all images, with their rows."""

    def __init__(self, network, broden, rows, prepare, verbose):
        self._network, self._broden, self.rows = network, broden, rows
        self._prepare, self._verbose = prepare, verbose

    def __call__(self, what):
        quiet = self._verbose == 0
        if not quiet:
            print(f"{what}:", flush=True)
        progress = Progress(len(self.rows), quiet=quiet)
        for start in range(0, len(self.rows), BATCH):
            batch = self.rows[start : start + BATCH]
            images = [self._prepare.resize(self._broden.image(r)) for r in batch]
            yield self._network(tf.stack(images)), batch
            progress.add(len(batch))


def _thresholds(pass_over, top, rng):
    """`(units,)`: thresholds that a share `top` of each unit's activations exceeds."""
    kept, seen, most, share = None, 0, None, 1.0
    for maps, _ in pass_over("Thresholds"):
        flat = maps.reshape(-1, maps.shape[-1])
        if most is None:  # the first batch shows how many there will be
            positions = maps[0, ..., 0].size * len(pass_over.rows)
            share = min(1.0, MOST_VALUES / (top * positions * flat.shape[1]))
            most = max(1, int(np.ceil(top * share * positions)))
        if share < 1:
            flat = flat[rng.random(len(flat)) < share]
        seen += len(flat)
        kept = flat if kept is None else np.concatenate([kept, flat])
        if len(kept) > most + 1:  # one more, which is the threshold itself
            kept = np.partition(kept, len(kept) - most - 1, axis=0)[-most - 1 :]
    rank = int(top * seen)
    kept = np.sort(kept, axis=0)[::-1]
    return kept[min(rank, len(kept) - 1)]


class _Counts:
    """Counts of pixels where units are on, where concepts are shown, and of both."""

    def __init__(self, broden, units):
        self._names, self._units = broden.concepts, units
        self._both = {}  # (category, concept) -> (units,)
        self._shown = {}  # (category, concept) -> pixels
        self._on = {c: np.zeros(units, "int64") for c in broden.categories}

    def add(self, maps, labels, size, thresholds):
        """Count one image: maps `(h, w, units)`, labels as from `Broden.labels`."""
        resized = tf.image.resize(maps, size, method="bilinear").numpy()
        on = (resized > thresholds).reshape(-1, self._units)
        for category, parts in labels.items():
            self._on[category] += on.sum(0)
            masks = {}
            for part in parts:
                part = np.broadcast_to(part, size).ravel()
                for concept in np.unique(part[part > 0]).tolist():
                    key = category, concept
                    masks[key] = masks.get(key, False) | (part == concept)
            self._count(masks, on.astype("float32"))

    def _count(self, masks, on):
        if not masks:
            return
        table = np.stack(list(masks.values()))
        both = table.astype("float32") @ on
        for key, row, shown in zip(masks, both, table.sum(1), strict=True):
            self._both[key] = self._both.get(key, 0) + row.astype("int64")
            self._shown[key] = self._shown.get(key, 0) + int(shown)

    def summary(self, thresholds, least):
        """`Dissection` from the counts."""
        keys = list(self._both)
        if not keys:
            raise ValueError(invalid("data", "images with concepts", "none"))
        both = np.stack([self._both[k] for k in keys]).astype("float64")
        either = np.stack([self._shown[k] + self._on[k[0]] for k in keys]) - both
        scores = both / np.maximum(either, 1)
        best = scores.argmax(0)
        units, detected = [], set()
        for u, row in enumerate(best):
            (category, number), score = keys[row], float(scores[row, u])
            name = self._names.get(number, str(number))
            found = (name, category) if score > 0 else (None, None)
            units.append(Unit(u, *found, score, float(thresholds[u])))
            if score > least:
                detected.add(keys[row])
        detectors = {c: sum(k[0] == c for k in detected) for c in self._on}
        return Dissection(units, detectors, len(detected))
