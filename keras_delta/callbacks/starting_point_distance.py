"""`StartingPointDistance`: how far each convolution filter has moved."""

import math
import os
import re
from pathlib import Path

import keras
import numpy as np

from keras_delta._errors import invalid
from keras_delta._network import taps as tapping
from keras_delta.callbacks.base import DeltaCallback, folder, positive_integer
from keras_delta.model import DeltaModel
from keras_delta.regularizers.base import array

REST = "rest"  # convolutions that no tap depends on
ALL = "all"
RESNET = re.compile(r"(?:.*/)?conv([2-5])_block\d+_([1-3])_conv")
CONVOLUTIONS = (
    *tapping.CONVOLUTIONS,
    *tapping.DEPTHWISE,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


class StartingPointDistance(DeltaCallback):
    """Measures how far each convolution filter has moved from the source's.

    The distance of filter j of a layer is `||vec(K_j) - vec(K*_j)||_2`, with the
    target's kernel K and the source's K*, over all layers of the target that have a
    counterpart in the source. Sorted, stage by stage, it shows what a regularizer
    holds and what it lets go: DELTA, unlike L2-SP, lets most filters go further
    (the article's Fig. 5; `compare` gives its numbers).

    Stages are `conv2_x` to `conv5_x` for Keras's ResNets, with the three
    convolutions of each bottleneck, without the stem and the projection shortcuts,
    and else the model's taps: a convolution belongs to the first tap that depends
    on it, and to `rest` if none does. A filter is an output channel; in a depthwise
    kernel, a channel and multiplier; a separable convolution has both kinds.

    It measures at the end of the epochs `every`, `2 * every`, ..., counted from 1
    over a resumed training as well, and logs for each stage
    `filter_distance/<stage>`, the mean, and `filter_distance_max/<stage>`; nan where
    nothing was measured. The training stays the same. Cost: each measured epoch
    reads the kernels once.

    Args:
        log_dir: write `distances-0005.npz` and so on there, one file a measured
            epoch, numbered from 1; read them with
            `kd.callbacks.StartingPointDistance.load`.
        every: number of epochs from one measurement to the next, default 1.

    Attributes:
        history: list of dicts `{"epoch": ..., "distances": ...}` of the last `fit`,
            epochs from 0; `distances` is a dict stage -> dict layer -> `(filters,)`.

    Raises:
        TypeError, ValueError: for bad arguments here; at the start of `fit` for a
            model that is no `DeltaModel` or shares no convolution with its source.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.4.

    Example:
        ```python
        moved = kd.callbacks.StartingPointDistance(every=5)
        model.fit(train, epochs=15, regularizer="delta", callbacks=[moved])
        moved.plot("moved.png")
        ```
    """

    def __init__(self, log_dir=None, every=1):
        super().__init__()
        self.log_dir = None if log_dir is None else folder("log_dir", log_dir)
        self.every = positive_integer("every", every)
        self.history = []

    def check(self, model):
        """Refuse a model without convolutions of the source."""
        super().check(model)
        stages(model)

    def on_train_begin(self, logs=None):
        """Forget the measurements of the last `fit`."""
        super().on_train_begin()
        self.history = []

    def on_epoch_end(self, epoch, logs=None):
        """Measure where it is time, and log."""
        logs = {} if logs is None else logs
        found = measure(self.model) if (epoch + 1) % self.every == 0 else None
        # CSVLogger takes its columns from the first epoch.
        for stage in stages(self.model):
            moved = np.full(1, math.nan) if found is None else _joined(found[stage])
            logs[f"filter_distance/{stage}"] = float(moved.mean())
            logs[f"filter_distance_max/{stage}"] = float(moved.max())
        if found is None:
            return
        self.history.append({"epoch": epoch, "distances": found})
        if self.log_dir is not None and self.writes:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            path = self.log_dir / f"distances-{epoch + 1:04d}.npz"
            np.savez_compressed(path, **table(found))

    @property
    def distances(self):
        """The last measurement: dict stage -> dict layer -> `(filters,)`."""
        if not self.history:
            raise ValueError(
                "Nothing is measured yet. Train with this callback for at least "
                f"{self.every} epoch{'s' if self.every > 1 else ''} first."
            )
        return self.history[-1]["distances"]

    def table(self):
        """The last measurement as columns; see `table` of this module."""
        return table(self.distances)

    def plot(self, path=None, **others):
        """Plot the last measurement as in the article's Fig. 5.

        Args:
            path: write the picture there as well (PNG, PDF or SVG by its suffix).
            **others: further curves: label -> what `compare` takes.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        return plot({"this model": self, **others}, path)


def measure(model):
    """How far each filter of a `DeltaModel` is from the source's.

    Returns:
        Dict stage -> dict layer -> float32 `(filters,)`, in the order of computation.
    """
    target, source = model.pairing.target.nodes, model.pairing.source.nodes
    found = {}
    for stage, layers in stages(model).items():
        found[stage] = {}
        for name in layers:
            theirs = source[model.pairing.names[name]].operation
            kernels = zip(
                _kernels(target[name].operation), _kernels(theirs), strict=True
            )
            for (part, kernel, axes), (_, start, _) in kernels:
                moved = filter_distances(array(kernel), array(start), axes)
                found[stage][name + part] = moved.astype("float32")
    return found


def filter_distances(kernel, start, axes=(-1,)):
    """`||vec(K_j) - vec(K*_j)||_2` of each filter j: `(filters,)` float64.

    Args:
        kernel, start: K and K*, of the same shape.
        axes: those that number the filters.
    """
    squares = np.square(np.asarray(kernel, "float64") - np.asarray(start, "float64"))
    axes = [a % squares.ndim for a in axes]
    others = tuple(a for a in range(squares.ndim) if a not in axes)
    return np.sqrt(squares.sum(axis=others)).ravel()


def stages(model):
    """Dict stage -> list of the target's convolutions that the source has as well.

    Raises:
        ValueError: if there is none.
    """
    pairing, graph = model.pairing, model.pairing.target
    names, seen = [], set()
    for name, node in graph.nodes.items():
        layer = node.operation
        if isinstance(layer, CONVOLUTIONS) and name in pairing.names:
            if id(layer) not in seen:  # a shared layer counts once
                names.append(name)
            seen.add(id(layer))
    if not names:
        raise ValueError(
            "StartingPointDistance measures convolutions, but source and target have "
            f"none in common. Target: '{model.target.name}', source: "
            f"'{model.source.name}'."
        )
    matches = {n: m for n in names if (m := RESNET.fullmatch(n))}
    if {m[1] for m in matches.values() if m[2] == "3"} == set("2345"):
        return {
            f"conv{i}_x": [n for n, m in matches.items() if m[1] == i] for i in "2345"
        }
    found = {}
    for tap in sorted(model.taps, key=list(graph.nodes).index):
        needed = graph.ancestors([graph.output_of(tap)])
        taken = {n for layers in found.values() for n in layers}
        found[tap] = [n for n in names if n in needed - taken]
    taken = {n for layers in found.values() for n in layers}
    found[REST] = [n for n in names if n not in taken]
    return {stage: layers for stage, layers in found.items() if layers}


def table(distances):
    """Distances as columns, each stage sorted descending; for `pandas.DataFrame`.

    Args:
        distances: what `compare` takes.

    Returns:
        Dict of arrays of the same length: `stage`, `rank` (from 1), `layer`,
        `filter` (number in its layer, from 0), `distance`.
    """
    columns = {name: [] for name in ("stage", "rank", "layer", "filter", "distance")}
    for stage, layers in _distances(distances).items():
        moved = _joined(layers)
        order = np.argsort(-moved, kind="stable")
        names = np.repeat(list(layers), [len(v) for v in layers.values()])
        numbers = np.concatenate([np.arange(len(v)) for v in layers.values()])
        columns["stage"].append(np.full(len(moved), stage))
        columns["rank"].append(np.arange(len(moved)) + 1)
        columns["layer"].append(names[order])
        columns["filter"].append(numbers[order])
        columns["distance"].append(moved[order])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def load(path):
    """The distances of a file that the callback wrote, as `measure` gives them."""
    with np.load(path) as columns:
        stage, layer, number, distance = (
            columns[name] for name in ("stage", "layer", "filter", "distance")
        )
    found = {}
    for s in dict.fromkeys(stage.tolist()):
        found[s] = {}
        for name in dict.fromkeys(layer[stage == s].tolist()):
            mine = (stage == s) & (layer == name)
            found[s][name] = distance[mine][np.argsort(number[mine])]
    return found


def compare(a, b):
    """In which share of the filters `a` is further away than `b`.

    The article finds about 90 % for DELTA and L2-SP and does not say which it is:
    `rank_wise` compares the sorted distances of each stage (the curves of the
    picture), `filter_wise` each filter with itself.

    Args:
        a, b: a `DeltaModel`, a `StartingPointDistance` (its last measurement), the
            path of a file that it wrote, or what `measure` gave; with the same
            layers.

    Returns:
        Dict stage -> `{"rank_wise": share, "filter_wise": share}`, with the stage
        `"all"` for the whole; equal distances do not count.

    Raises:
        TypeError, ValueError: for something else, or different layers.
    """
    a, b = _distances(a, "a"), _distances(b, "b")
    shapes = [
        {s: {n: len(v) for n, v in d.items()} for s, d in v.items()} for v in (a, b)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Distances can be compared of the same layers alone. "
            f"{_difference(*shapes)} Use models of the same source and the same taps."
        )
    found, ranks, filters = {}, [], []
    for stage in a:
        x, y = _joined(a[stage]), _joined(b[stage])
        filters.append(x > y)
        ranks.append(np.sort(x) > np.sort(y))
        found[stage] = _shares(ranks[-1], filters[-1])
    x, y = (np.concatenate([_joined(v) for v in d.values()]) for d in (a, b))
    found[ALL] = _shares(np.sort(x) > np.sort(y), np.concatenate(filters))
    return found


def plot(curves, path=None):
    """Sorted distances of each stage, a panel a stage; as the article's Fig. 5.

    Args:
        curves: dict label -> what `compare` takes.
        path: write the picture there as well (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure  # loads slowly

    measured = {label: _distances(v, label) for label, v in curves.items()}
    names = list(dict.fromkeys(s for d in measured.values() for s in d))
    columns = min(len(names), 2 if len(names) <= 4 else 3)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    styles = ("-", "--", ":", "-.")
    for axis, stage in zip(axes, names, strict=False):
        count = 0
        for i, (label, distances) in enumerate(measured.items()):
            if stage not in distances:
                continue
            moved = np.sort(_joined(distances[stage]))[::-1]
            count = max(count, len(moved))
            rank = np.arange(len(moved)) + 1
            axis.plot(rank, moved, styles[i % 4], lw=1.6, label=label)
        axis.set_title(f"{stage} ({count:,} filters)", fontsize=10, loc="left")
        axis.set_xlim(1, max(count, 2))
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    if len(measured) > 1:
        axes[0].legend(frameon=False, fontsize=9)
    figure.supxlabel("filters, sorted by distance", fontsize=9)
    figure.supylabel("distance from the starting point", fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


StartingPointDistance.compare = staticmethod(compare)
StartingPointDistance.load = staticmethod(load)


def _kernels(layer):
    """List of (suffix of the name, kernel, axes that number its filters)."""
    if hasattr(layer, "pointwise_kernel"):
        return [
            ("/depthwise", layer.depthwise_kernel, (-2, -1)),
            ("/pointwise", layer.pointwise_kernel, (-1,)),
        ]
    if isinstance(layer, tapping.DEPTHWISE):
        return [("", layer.kernel, (-2, -1))]
    transposed = type(layer).__name__.endswith("Transpose")  # (..., filters, inputs)
    return [("", layer.kernel, (-2,) if transposed else (-1,))]


def _joined(layers):
    return np.concatenate(list(layers.values()))


def _shares(ranks, filters):
    return {"rank_wise": float(ranks.mean()), "filter_wise": float(filters.mean())}


def _distances(given, argument="distances"):
    if isinstance(given, DeltaModel):
        return measure(given)
    if isinstance(given, StartingPointDistance):
        return given.distances
    if isinstance(given, (str, os.PathLike)):
        return load(Path(given))
    if isinstance(given, dict):
        return given
    expected = "a DeltaModel, a StartingPointDistance, a path or a dict of distances"
    raise TypeError(invalid(argument, expected, given))


def _difference(a, b):
    for stage in dict.fromkeys([*a, *b]):
        if stage not in a or stage not in b:
            return f"The stage '{stage}' is in one of the two alone."
        for name in dict.fromkeys([*a[stage], *b[stage]]):
            x, y = a[stage].get(name, 0), b[stage].get(name, 0)
            if x != y:
                return (
                    f"The layer '{name}' has {x} filters in one and {y} in the other."
                )
    return ""
