"""A plot of AFD's attention: which target maps learn from which source maps."""

from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

from keras_delta import _arguments, _plotting, regularizers
from keras_delta._errors import invalid
from keras_delta._inputs import replay, samples
from keras_delta._types import Data, PathLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure


BATCH = 32
LIGHT_FROM = 0.6  # share of the darkest grey above which digits are white
MOST_DIGITS = 200  # cells that still have room for them


def attention_matrix(model: keras.Model, x: Data, max_samples: int = 256) -> np.ndarray:
    """AFD's attention in a trained model, averaged over images.

    Args:
        model: a `DeltaModel` whose regularizer is or includes `AFD`.
        x: images, or a data set of batches as `fit` takes it.
        max_samples: largest number of images.

    Returns:
        `(source taps, target taps)` float32; each row sums to 1.

    Raises:
        ValueError: if the model has no AFD, or there are no images.
    """
    afd = _find(model)
    max_samples = _arguments.integer("max_samples", max_samples)
    found = []
    with replay.unmoved(x):
        for images in samples.inputs(x, BATCH, max_samples):
            _, target_maps = model.outputs_and_maps(images)
            attention = afd.attention_matrix(model.source_maps(images), target_maps)
            found.append(ops.convert_to_numpy(attention))
    if not found:
        raise ValueError(invalid("x", "at least one image", "none"))
    return np.concatenate(found).mean(0)


def plot_attention_matrix(
    model: keras.Model, x: Data, path: PathLike | None = None, max_samples: int = 256
) -> "Figure":
    """Plot `attention_matrix`: one row per source tap, one column per target tap.

    Dark cells mark target maps that are pulled towards a source map. Grey shades only,
    to print well, with digits if there is room.

    Args:
        model, x, max_samples: see `attention_matrix`.
        path: also write the figure to this file (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    values, afd = attention_matrix(model, x, max_samples), _find(model)
    rows, columns = values.shape
    longest = [max(map(len, taps)) for taps in (afd.target_taps, afd.source_taps)]
    width = 1.6 + 0.36 * columns + 0.06 * longest[1]
    height = 0.8 + 0.3 * rows + 0.06 * longest[0]
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    darkest = max(values.max(), 2 / columns)  # uniform attention is half as dark
    picture = axis.imshow(values, cmap="Greys", vmin=0, vmax=darkest, aspect="auto")
    axis.set_xticks(range(columns), afd.target_taps, rotation=90)
    axis.set_yticks(range(rows), afd.source_taps)
    axis.tick_params(labelsize=7, length=0)
    axis.set_xlabel("maps of the target", fontsize=8)
    axis.set_ylabel("maps of the source", fontsize=8)
    if values.size <= MOST_DIGITS:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value > LIGHT_FROM * darkest else "black"
            text = f"{value:.2f}".removeprefix("0")
            axis.text(
                column, row, text, ha="center", va="center", color=color, fontsize=6
            )
    bar = figure.colorbar(picture, ax=axis)
    bar.set_label("attention, rows sum to 1", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return _plotting.save_figure(figure, path)


def _find(model):
    members = regularizers.members(getattr(model, "regularizer", None))
    found = [m for m in members if isinstance(m, regularizers.AFD)]
    if not found:
        expected = "a DeltaModel with the regularizer AFD"
        received = f"one with {[type(m).__name__ for m in members] or 'none'}"
        raise ValueError(invalid("model", expected, received))
    return found[0]
