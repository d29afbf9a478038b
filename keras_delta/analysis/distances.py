"""How far each convolution filter of a model has moved from the source's."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_delta import _disk
from keras_delta._errors import invalid
from keras_delta._network import auto_taps
from keras_delta._plotting import save_figure
from keras_delta._types import FilterDistances, PathLike
from keras_delta.model import DeltaModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


REST = "rest"  # convolutions that no tap depends on
ALL = "all"
RESNET = re.compile(r"(?:.*/)?conv([2-5])_block\d+_([1-3])_conv")
CONVOLUTIONS = (
    *auto_taps.CONVOLUTIONS,
    *auto_taps.DEPTHWISE,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
LINES = ("-", "--", ":", "-.")


def filter_distances(model: DeltaModel) -> dict[str, dict[str, np.ndarray]]:
    """How far each convolution filter has moved from its starting point.

    The distance of filter j of a layer is `||vec(K_j) - vec(K*_j)||_2`, with the
    target's kernel K and the source's K*, over all layers of the target that have a
    counterpart in the source. Sorted within each stage, the distances show which
    filters a regularizer holds and which it releases: DELTA, unlike L2-SP, lets most
    filters move further (the article's Fig. 5).

    Stages are `conv2_x` to `conv5_x` for Keras's ResNets, with the three
    convolutions of each bottleneck, without the stem and the projection shortcuts;
    otherwise the model's taps: a convolution belongs to the first tap that depends
    on it, or to `rest` if none does. A filter is an output channel; in a depthwise
    kernel, a channel and multiplier; a separable convolution has both kinds.

    Args:
        model: a `DeltaModel`.

    Returns:
        Dict stage -> dict layer -> float32 `(filters,)`, in the order of computation.

    Raises:
        TypeError: if `model` is not a `DeltaModel`.
        ValueError: if source and target have no convolution in common.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.4.
    """
    if not isinstance(model, DeltaModel):
        raise TypeError(invalid("model", "a DeltaModel", model))
    pairing, distances = model.pairing, {}
    target, source = pairing.target.nodes, pairing.source.nodes
    for stage, layers in stages(model).items():
        distances[stage] = {}
        for name in layers:
            kernels = _kernels(target[name].operation)
            starts = _kernels(source[pairing.names[name]].operation)
            for (part, kernel, axes), (_, start, _) in zip(
                kernels, starts, strict=True
            ):
                # With LoRA, a kernel is a tensor.
                kernel, start = map(ops.convert_to_numpy, (kernel, start))
                moved = kernel_distances(kernel, start, axes)
                distances[stage][name + part] = moved.astype("float32")
    return distances


def kernel_distances(kernel, start, axes=(-1,)):
    """`||vec(K_j) - vec(K*_j)||_2` of each filter j: `(filters,)` float64.

    Args:
        kernel, start: K and K*, of the same shape.
        axes: axes that index the filters.
    """
    squares = np.square(np.asarray(kernel, "float64") - np.asarray(start, "float64"))
    axes = [a % squares.ndim for a in axes]
    others = tuple(a for a in range(squares.ndim) if a not in axes)
    return np.sqrt(squares.sum(axis=others)).ravel()


def stages(model):
    """Dict stage -> list of the target's convolutions that the source has as well.

    Raises:
        ValueError: if there are none.
    """
    graph, names = model.pairing.target, _common_convolutions(model)
    if not names:
        raise ValueError(
            "Filter distances are measured on convolutions, but source and target "
            f"have none in common. Target: '{model.target.name}', source: "
            f"'{model.source.name}'."
        )
    matches = {n: m for n in names if (m := RESNET.fullmatch(n))}
    if {m[1] for m in matches.values() if m[2] == "3"} == set("2345"):
        return {
            f"conv{i}_x": [n for n, m in matches.items() if m[1] == i] for i in "2345"
        }
    layers, left = {}, names
    for tap in sorted(model.taps, key=list(graph.nodes).index):
        needed = graph.ancestors([graph.output_of(tap)])
        layers[tap] = [n for n in left if n in needed]
        left = [n for n in left if n not in needed]
    layers[REST] = left
    return {stage: names for stage, names in layers.items() if names}


def _common_convolutions(model):
    names, seen = [], set()
    for name, node in model.pairing.target.nodes.items():
        layer = node.operation
        if isinstance(layer, CONVOLUTIONS) and name in model.pairing.names:
            if id(layer) not in seen:  # a shared layer counts once
                names.append(name)
            seen.add(id(layer))
    return names


def _kernels(layer):
    """List of (suffix of the name, kernel, axes that index its filters)."""
    if hasattr(layer, "pointwise_kernel"):
        return [
            ("/depthwise", layer.depthwise_kernel, (-2, -1)),
            ("/pointwise", layer.pointwise_kernel, (-1,)),
        ]
    if isinstance(layer, auto_taps.DEPTHWISE):
        return [("", layer.kernel, (-2, -1))]
    transposed = type(layer).__name__.endswith("Transpose")  # (..., filters, inputs)
    return [("", layer.kernel, (-2,) if transposed else (-1,))]


# --- tables and files ---------------------------------------------------------------


def tabulate_filter_distances(distances: FilterDistances) -> dict[str, np.ndarray]:
    """Distances as columns, each stage sorted descending; for `pandas.DataFrame`.

    Args:
        distances: as for `compare_filter_distances`.

    Returns:
        Dict of arrays of the same length: `stage`, `rank` (from 1), `layer`,
        `filter` (number in its layer, from 0), `distance`.
    """
    columns = {name: [] for name in ("stage", "rank", "layer", "filter", "distance")}
    for stage, layers in _distances(distances).items():
        moved = joined(layers)
        order = np.argsort(-moved, kind="stable")
        names = np.repeat(list(layers), [len(v) for v in layers.values()])
        numbers = np.concatenate([np.arange(len(v)) for v in layers.values()])
        columns["stage"].append(np.full(len(moved), stage))
        columns["rank"].append(np.arange(len(moved)) + 1)
        columns["layer"].append(names[order])
        columns["filter"].append(numbers[order])
        columns["distance"].append(moved[order])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def save_filter_distances(distances: FilterDistances, path: PathLike) -> None:
    """Write distances to an `.npz` file, as the columns of the table."""
    columns: dict[str, Any] = tabulate_filter_distances(distances)
    # A file, since NumPy would append `.npz` to a path.
    with _disk.replace_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **columns)


def load_filter_distances(path: PathLike) -> dict[str, dict[str, np.ndarray]]:
    """The distances of a saved file, in the form of `filter_distances`."""
    with np.load(path) as columns:
        stage, layer, number, distance = (
            columns[name] for name in ("stage", "layer", "filter", "distance")
        )
    distances = {}
    for s in dict.fromkeys(stage.tolist()):
        distances[s] = {}
        for name in dict.fromkeys(layer[stage == s].tolist()):
            mine = (stage == s) & (layer == name)
            distances[s][name] = distance[mine][np.argsort(number[mine])]
    return distances


# --- comparisons --------------------------------------------------------------------


def compare_filter_distances(
    a: FilterDistances, b: FilterDistances
) -> dict[str, dict[str, float]]:
    """The share of filters that have moved further in `a` than in `b`.

    The article reports about 90 % for DELTA and L2-SP but does not say which share it
    is: `rank_wise` compares the sorted distances of each stage (the curves of the
    plot), `filter_wise` each filter with itself.

    Args:
        a, b: a `DeltaModel`, a callback `StartingPointDistance` (its last
            measurement), the path of a saved file, or the result of
            `filter_distances`; with the same layers.

    Returns:
        Dict stage -> `{"rank_wise": share, "filter_wise": share}`, with the stage
        `"all"` for the whole; equal distances do not count.

    Raises:
        TypeError, ValueError: if `a` or `b` is anything else, or layers differ.
    """
    a, b = _distances(a, "a"), _distances(b, "b")
    sizes = [
        {(s, n): len(v) for s, layers in d.items() for n, v in layers.items()}
        for d in (a, b)
    ]
    for stage, name in sizes[0] | sizes[1]:
        x, y = (size.get((stage, name), 0) for size in sizes)
        if x != y:
            raise ValueError(
                "Distances can only be compared between the same layers. The layer "
                f"'{name}' of the stage '{stage}' has {x} filters in one and {y} in "
                "the other. Use models with the same source and the same taps."
            )
    pairs: dict[str, Any]
    pairs = {
        stage: (joined(layers), joined({n: b[stage][n] for n in layers}))
        for stage, layers in a.items()
    }
    pairs[ALL] = tuple(map(np.concatenate, zip(*pairs.values(), strict=True)))
    return {
        stage: {
            "rank_wise": float((np.sort(x) > np.sort(y)).mean()),
            "filter_wise": float((x > y).mean()),
        }
        for stage, (x, y) in pairs.items()
    }


def joined(layers):
    """The distances of all layers of a stage, concatenated."""
    return np.concatenate(list(layers.values()))


def _distances(source, argument="distances"):
    if isinstance(source, DeltaModel):
        return filter_distances(source)
    if isinstance(source, (str, os.PathLike)):
        return load_filter_distances(Path(source))
    if isinstance(source, dict):
        return source
    if hasattr(source, "distances"):
        return source.distances
    expected = "a DeltaModel, a StartingPointDistance, a path or a dict of distances"
    raise TypeError(invalid(argument, expected, source))


# --- the picture --------------------------------------------------------------------


def plot_filter_distances(
    curves: Mapping[str, FilterDistances], path: PathLike | None = None
) -> "Figure":
    """Plot sorted distances, one panel per stage, as in the article's Fig. 5.

    Args:
        curves: dict label -> distances, as for `compare_filter_distances`.
        path: also write the figure to this file (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure  # loads slowly

    curves = {label: _distances(v, label) for label, v in curves.items()}
    names = list(dict.fromkeys(s for d in curves.values() for s in d))
    columns = min(len(names), 2 if len(names) <= 4 else 3)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, stage in zip(axes, names, strict=False):
        _draw_stage(axis, stage, curves)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    if len(curves) > 1:
        axes[0].legend(frameon=False, fontsize=9)
    figure.supxlabel("filters, sorted by distance", fontsize=9)
    figure.supylabel("distance from the starting point", fontsize=9)
    return save_figure(figure, path)


def _draw_stage(axis, stage, curves):
    count = 0
    for i, (label, distances) in enumerate(curves.items()):
        if stage in distances:
            moved = np.sort(joined(distances[stage]))[::-1]
            count = max(count, len(moved))
            style = LINES[i % len(LINES)]
            axis.plot(np.arange(len(moved)) + 1, moved, style, lw=1.6, label=label)
    axis.set_title(f"{stage} ({count:,} filters)", fontsize=10, loc="left")
    axis.set_xlim(1, max(count, 2))
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
