"""A picture of channel attention: how unevenly each tap's channels count."""

import numpy as np

from keras_delta.attention import normalize

NAMED = 3


def plot(attention, path=None):
    """Plot each tap's weights, sorted, in units of the uniform weight `1/C`.

    1 is what every channel would have if all counted alike. The three channels
    that count most and least are named. Grey shades only, so that it prints well.

    Args:
        attention: a `ChannelAttention`.
        path: write the picture there as well (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    columns = min(2, len(attention.weights))
    rows = -(-len(attention.weights) // columns)
    figure = Figure(figsize=(5.2 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (tap, weights) in zip(axes, attention.weights.items(), strict=False):
        _draw(axis, tap, weights)
    for axis in axes[len(attention.weights) :]:
        axis.set_visible(False)
    figure.supxlabel("channels, sorted by weight", fontsize=9)
    figure.supylabel("weight in units of 1/C", fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw(axis, tap, weights):
    order = np.argsort(-weights, kind="stable")
    relative = weights[order] * len(weights)
    axis.fill_between(
        np.arange(len(weights)) + 1, relative, step="mid", color="0.8", linewidth=0
    )
    axis.step(np.arange(len(weights)) + 1, relative, where="mid", color="0.15", lw=1.2)
    axis.axhline(1, color="0.4", lw=0.8, ls="--")
    axis.set_xlim(0.5, len(weights) + 0.5)
    axis.set_ylim(0, max(relative[0] * 1.15, 1.3))
    axis.set_title(tap, fontsize=10, loc="left")
    axis.text(
        0.98,
        0.94,
        f"{normalize.perplexity(weights):.0f} of {len(weights)} channels effective\n"
        f"most: {_names(order[:NAMED])}\nleast: {_names(order[-NAMED:])}",
        transform=axis.transAxes,
        ha="right",
        va="top",
        fontsize=8,
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _names(channels):
    return ", ".join(str(c) for c in channels)
