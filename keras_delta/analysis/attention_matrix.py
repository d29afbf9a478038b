"""A picture of AFD's attention: which target maps learn from which source maps."""

import numpy as np
from keras import ops

from keras_delta import _plotting, regularizers
from keras_delta._errors import invalid
from keras_delta._inputs import replay, samples

BATCH = 32
LIGHT_FROM = 0.5  # of the largest value, from where digits are white
MOST_DIGITS = 200  # cells that still have room for them


def attention_matrix(model, x, max_samples=256):
    """AFD's attention in a trained model, averaged over images.

    Args:
        model: a `DeltaModel` whose regularizer is `AFD`, or has it among others.
        x: images, or a data set of batches as `fit` takes it.
        max_samples: largest number of images.

    Returns:
        `(source taps, target taps)` float32; each row sums to 1.

    Raises:
        ValueError: for a model without AFD.
    """
    afd = _find(model)
    found = []
    with replay.unmoved(x):
        for images in samples.inputs(x, BATCH, max_samples):
            _, target_maps = model.outputs_and_maps(images)
            attention = afd.attention_matrix(model.source_maps(images), target_maps)
            found.append(ops.convert_to_numpy(attention))
    return np.concatenate(found).mean(0)


def plot_attention_matrix(model, x, path=None, max_samples=256):
    """Draw `attention_matrix`: a row for each source tap, a column for each target tap.

    Dark where a target map is pulled towards a source map. Grey shades only, so that it
    prints well; with digits where there is room.

    Args:
        model, x, max_samples: see `attention_matrix`.
        path: write the picture there as well (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    values, afd = attention_matrix(model, x, max_samples), _find(model)
    rows, columns = values.shape
    size = 2.4 + 0.45 * columns, 1.8 + 0.32 * rows
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(values, cmap="Greys", vmin=0, aspect="auto")
    names = {"labelsize": 7, "length": 0}
    axis.set_xticks(range(columns), afd.target_taps, rotation=90)
    axis.set_yticks(range(rows), afd.source_taps)
    axis.tick_params(**names)
    axis.set_xlabel("target", fontsize=9)
    axis.set_ylabel("source", fontsize=9)
    if values.size <= MOST_DIGITS:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value > LIGHT_FROM * values.max() else "black"
            text = f"{value:.2f}".removeprefix("0")
            axis.text(
                column, row, text, ha="center", va="center", color=color, fontsize=7
            )
    bar = figure.colorbar(picture, ax=axis, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    return _plotting.save_figure(figure, path)


def _find(model):
    members = regularizers.members(model.regularizer)
    found = [m for m in members if isinstance(m, regularizers.AFD)]
    if not found:
        expected = "a DeltaModel with the regularizer AFD"
        received = f"one with {[type(m).__name__ for m in members] or 'none'}"
        raise ValueError(invalid("model", expected, received))
    return found[0]
