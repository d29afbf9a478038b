"""Activation maps of several models for the same images, side by side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_delta import regularizers
from keras_delta._answers import tasks
from keras_delta._answers.network import Network
from keras_delta._arguments import integer
from keras_delta._errors import invalid
from keras_delta._plotting import save_figure
from keras_delta._types import ArrayLike, Channels, PathLike
from keras_delta.analysis import maps as single
from keras_delta.analysis.overlays import overlaid
from keras_delta.analysis.reading import aggregate
from keras_delta.model import DeltaModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LOWEST, ATTENTION, MEAN, GRAD_CAM = "lowest", "attention", "mean", "grad_cam"
RULES = (LOWEST, ATTENTION, MEAN, GRAD_CAM)
SOURCE = "source"


class ComparedMaps(NamedTuple):
    """Maps of several models, of the same images.

    Attributes:
        images: `(N, height, width, 1 or 3)`.
        maps: dict label -> `(N, h, w, K)` float32 from 0 to 1.
        names: list of K strings that describe the maps.
    """

    images: np.ndarray
    maps: dict
    names: list


def compare_activation_maps(
    models: DeltaModel | Mapping[str, DeltaModel],
    images: ArrayLike,
    tap: str | None = None,
    channels: Channels = LOWEST,
    count: int = 3,
) -> ComparedMaps:
    """Maps of source and targets for the same images, as in the article's Fig. 1, 6, 7.

    Each map is normalised separately, `a <- (a - min) / (max - min)` over its
    positions, a constant one to 0: compare patterns, not strengths. Networks run in
    inference mode.

    Args:
        models: a `DeltaModel`, or a dict label -> `DeltaModel`. The first one's source
            is shown too, as "source", if it has the tap; not with `"grad_cam"`.
        images: `(N, height, width, 1 or 3)`, as the models take them.
        tap: name of the tap; default: the last one of the first model.
        channels: a list of channel numbers, a number of lowest channels, or a rule:
            `"lowest"`, those with the lowest mean in the source, which fine-tuning may
            have put to use; `"attention"`, those with the largest attention weights;
            `"mean"`, the mean over all channels; `"grad_cam"`, where a model sees its
            predicted class, in the maps before its head, regardless of the tap.
        count: number of channels for the first two rules.

    Returns:
        `ComparedMaps`.

    Raises:
        TypeError, ValueError: if the model has another type, a tap, channel or rule is
            unknown, models have no attention, or images do not fit.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.4.
    """
    named = _by_label(models)
    count = integer("count", count)
    images, first = single.checked_images(images), next(iter(named.values()))
    if isinstance(channels, str) and channels not in RULES:
        expected = f"numbers of channels, or one of {RULES}"
        raise ValueError(invalid("channels", expected, channels))
    if isinstance(channels, str) and channels == GRAD_CAM:
        return ComparedMaps(
            images, {k: _grad_cam(m, images) for k, m in named.items()}, ["Grad-CAM"]
        )
    by_rule = isinstance(channels, str)
    if not by_rule:
        channels = single.checked_channels(channels)
        by_rule, count = isinstance(channels, int), channels
        channels = LOWEST if by_rule else channels
    numbers = count if by_rule else channels
    for model in named.values():
        tap = single.check_fit(model, images, tap, numbers)
    raw = {SOURCE: _source(first, images, tap)}
    for label, model in named.items():
        raw[label] = model.outputs_and_maps(images)[1][tap]
    raw = {k: np.asarray(v, "float32") for k, v in raw.items() if v is not None}
    if channels == MEAN:
        found = {k: aggregate(v)[..., None] for k, v in raw.items()}
        return ComparedMaps(images, found, ["mean of the channels"])
    chosen = _choose(channels, count, raw, named, tap) if by_rule else numbers
    found = {k: single.normalized(v[..., chosen]) for k, v in raw.items()}
    return ComparedMaps(images, found, [f"channel {c}" for c in chosen])


def plot_compared_maps(
    compared: ComparedMaps, path: PathLike | None = None, dpi: float = 150
) -> "Figure":
    """Plot compared maps over the images, in colours that also print in grey.

    Args:
        compared: `ComparedMaps`.
        path: also write the figure to this file (PNG, PDF or SVG by its suffix).
        dpi: dots per inch of a PNG file.

    Returns:
        A `matplotlib.figure.Figure`: one row per image and map, one column for the
        image and one for each model.
    """
    from matplotlib.figure import Figure

    labels, kinds = list(compared.maps), len(compared.names)
    rows = len(compared.images) * kinds
    size = (1.6 * (1 + len(labels)) + 0.3, 1.6 * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(hspace=0.02, wspace=0.02)
    axes = figure.subplots(rows, 1 + len(labels), squeeze=False)
    for row in range(rows):
        i, k = divmod(row, kinds)
        image = compared.images[i]
        cells = [overlaid(image, compared.maps[label][i, ..., k]) for label in labels]
        first = single.displayed(image)
        for axis, cell in zip(axes[row], [first, *cells], strict=True):
            axis.imshow(cell, cmap="gray")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].set_visible(k == 0)
        axes[row, 1].set_ylabel(compared.names[k], fontsize=8)
    for axis, heading in zip(axes[0], ["image", *labels], strict=True):
        axis.set_title(heading, fontsize=9, parse_math=False)
    return save_figure(figure, path, dpi)


def _by_label(models):
    named = models if isinstance(models, dict) else {"target": models}
    if not named or not all(isinstance(m, DeltaModel) for m in named.values()):
        raise TypeError(invalid("models", "DeltaModels, by label", models))
    if SOURCE in named:
        expected = f"labels other than '{SOURCE}', reserved for the first one's source"
        raise ValueError(invalid("models", expected, list(named)))
    return named


def _source(model, images, tap):
    """The source's map of a tap; None if the source has no matching tap."""
    taps = () if model.networks.mismatch else model.networks.taps or ()
    return model.source_maps(images)[tap] if tap in taps else None


def _choose(rule, count, raw, named, tap):
    if rule == LOWEST:
        if SOURCE not in raw:
            expected = "another rule, since the source has no map for this tap"
            raise ValueError(invalid("channels", expected, rule))
        return single.lowest(raw[SOURCE], count)
    for model in named.values():
        for member in regularizers.with_attention(model.regularizer):
            weights = (member.attention_weights() or {}).get(tap)
            if weights is not None and np.ptp(weights):
                return np.argsort(-weights, kind="stable")[:count].tolist()
    expected = "another rule, since no model has attention for this tap"
    raise ValueError(invalid("channels", expected, rule))


def _grad_cam(model, images):
    network = Network(model.target, task=lambda graph: tasks.choose(model, graph))
    classes = np.full(len(images), -1, "int64")  # the predicted class
    images = tf.constant(images, "float32")
    return network.activation_maps(images, classes)[0].numpy()[..., None]
