"""A plot of channel attention: how uneven the weights of each tap are."""

import numpy as np

from keras_delta import _plotting
from keras_delta.attention import normalize

NAMED = 3
LOG_FROM = 8  # largest over smallest positive weight, from where the axis is a log's
SMALLEST = 1e-3  # relative weights below are drawn at the lower edge of a log axis
DARK, LIGHT = "0.15", "0.8"


def plot(attention, path=None):
    """Plot each tap's weights, sorted, in units of the uniform weight `1/C`.

    1 (dashed) is the weight of every channel if all count equally. The three channels
    with the largest and the smallest weights are named and marked. If the largest
    weight is more than 8 times the smallest positive one, the axis is logarithmic, so
    that one outlier does not flatten the rest; weights of zero, or below a thousandth
    of `1/C`, then lie on the lower edge. The plot uses grey shades only, to print well.

    Args:
        attention: a `ChannelAttention`; weights alone are enough.
        path: also write the figure to this file (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    count = len(attention.weights)
    columns = min(count, 2 if count <= 8 else 4)
    rows = -(-count // columns)
    width = 5.0 if columns <= 2 else 3.6
    figure = Figure(figsize=(width * columns, 2.8 * rows), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (tap, weights) in zip(axes, attention.weights.items(), strict=False):
        _draw(axis, weights)
        title = _shortened(tap, int(10 * (width - 0.9)))
        axis.set_title(title, fontsize=10, loc="left", pad=30)
    for axis in axes[count:]:
        axis.set_visible(False)
    figure.supxlabel("channels, sorted by weight", fontsize=9)
    figure.supylabel("weight in units of 1/C", fontsize=9)
    return _plotting.save_figure(figure, path)


def _draw(axis, weights):
    from matplotlib.ticker import MaxNLocator

    count = len(weights)
    order = np.argsort(-weights, kind="stable")
    relative = weights[order].astype("float64") * count
    positive = relative[relative > 0]
    log = positive[0] > LOG_FROM * positive[-1]
    low, high = 0.0, max(relative[0] * 1.15, 1.3)
    if log:
        low, high = max(positive[-1], SMALLEST) / 1.5, relative[0] * 1.5
        _log_axis(axis, high / low)
    shown = np.maximum(relative, low)
    edges = np.arange(count + 1) + 0.5
    axis.stairs(shown, edges, baseline=low, fill=True, color=LIGHT)
    axis.stairs(shown, edges, baseline=None, color=DARK, lw=1.2)
    axis.axhline(1, color="0.4", lw=0.8, ls="--")
    alike = relative[0] == relative[-1]
    named = 0 if alike else min(NAMED, count // 2)
    ends = np.r_[:named, count - named : count]
    if named:  # a line of no points would upset the layout
        axis.plot(ends + 1, shown[ends], "o", color=DARK, ms=3, clip_on=False)
    axis.set_xlim(0.5, count + 0.5)
    axis.set_ylim(low, high)
    axis.xaxis.set_major_locator(
        MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    axis.text(
        0,
        1.03,
        _words(weights, order, named, relative < (SMALLEST if log else 0)),
        transform=axis.transAxes,
        va="bottom",
        fontsize=8,
        color="0.3",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _log_axis(axis, span):
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    subs = (1, 2, 5) if span < 300 else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _words(weights, order, named, below):
    """Two lines: the effective channels, and those with most and least weight."""
    zero = int((weights == 0).sum())
    small = int(below.sum())
    effective = normalize.perplexity(weights)
    effective = f"{effective:.0f}" if effective >= 100 else f"{effective:.3g}"
    first = f"{effective} of {len(weights)} channels effective"
    if zero:
        first += f", {zero} zero"
    if small > zero:
        first += f", {small - zero} below {SMALLEST:g}"
    if not named:
        return f"{first}\nall weights are alike"
    most, least = order[:named], order[::-1][:named]
    return f"{first}\nmost: {_names(most)}   least: {_names(least)}"


def _names(channels):
    return ", ".join(str(c) for c in channels)


def _shortened(name, longest):
    """A name with its middle left out: the ends of a nested name matter most."""
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head]}…{name[len(name) - (longest - 1 - head) :]}"
