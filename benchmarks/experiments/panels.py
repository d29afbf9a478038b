"""The panels of a figure of results: colours of methods, error bars, one legend."""

import numpy as np

from experiments.published import method_name
from experiments.rows import methods

COLOURS = {  # of Okabe and Ito's palette, told apart by the colour-blind
    "l2_fe": "#999999",
    "l2": "#000000",
    "l2_sp": "#0072b2",
    "l2_sp_att": "#56b4e9",
    "feature_map": "#e69f00",
    "delta": "#d55e00",
    "delta_code": "#cc79a7",
}
MORE = ("#009e73", "#8c6bb1", "#7f4f24")  # of other methods
MARKERS = "svD^poXP*<>"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
WIDTH, HEIGHT = 3.6, 2.7  # inches of a panel


def grid(rows, columns, width=WIDTH, height=HEIGHT):
    """A figure and its array of axes, (rows, columns)."""
    from matplotlib.figure import Figure  # loads slowly

    size = max(width * columns, 4.8), height * rows + 0.7
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.04)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("test accuracy", fontsize=9)
    return figure, axes


def method_style(method, names):
    """Colour, marker and dashes of a method among `names`."""
    known = [*COLOURS, *(n for n in names if n not in COLOURS)]
    k = known.index(method)
    colour = COLOURS.get(method) or MORE[(k - len(COLOURS)) % len(MORE)]
    return _style(colour, k, "-" if method == "delta" else None)


def numbered_style(k):
    """Colour, marker and dashes of the line `k` where lines are no methods."""
    palette = [c for method, c in COLOURS.items() if method != "l2_fe"] + list(MORE)
    return _style(palette[k % len(palette)], k)


def spread(values):
    """Standard deviation over repeats (the first axis), or None of one repeat."""
    values = np.asarray(values, "float64")
    return values.std(axis=0, ddof=1) if len(values) > 1 else None


def line(axis, points, style):
    """A line through (x, mean, spread or None), with error bars where known."""
    x, y = [p[0] for p in points], [p[1] for p in points]
    axis.plot(x, y, **style, ms=4.5, lw=1.3)
    for a, b, error in points:
        if error is not None:
            bar = {"ecolor": style["color"], "elinewidth": 1.0, "capsize": 2.5}
            axis.errorbar(a, b, error, fmt="none", **bar)


def band(axis, x, mean, error, style):
    """A line without marks, in a band of one standard deviation where known."""
    axis.plot(x, mean, **style, ms=0, lw=1.3)
    if error is not None:
        shade = {"alpha": 0.18, "lw": 0, "color": style["color"]}
        axis.fill_between(x, mean - error, mean + error, **shade)


def finish(axis, title, label):
    """Title, label below, percents at the side."""
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(label, fontsize=9)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)


def nothing(axis):
    """Say that there is nothing to draw."""
    axis.set(xticks=[], yticks=[])
    middle = {"ha": "center", "va": "center", "color": "0.4", "fontsize": 9}
    axis.text(0.5, 0.5, "no training", transform=axis.transAxes, **middle)


def legend(figure, axes, rows, repeats, marks=True):
    """One legend of all methods below the panels, and what `repeated` says."""
    from matplotlib.lines import Line2D

    names = methods(rows)
    size = {"ms": 4.5 if marks else 0, "lw": 1.3}
    handles = [Line2D([], [], **method_style(m, names), **size) for m in names]
    text = f"mean and standard deviation of {repeats}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=9, color="0.35")
    columns = min(axes.shape[1] + 1, 4)
    legend_below(figure, handles, [method_name(m) for m in names], columns)


def legend_below(figure, handles, labels, columns):
    """A legend below the panels."""
    style = {"frameon": False, "fontsize": 8, "handlelength": 3.2}
    place = "outside lower center"
    figure.legend(handles, labels, loc=place, ncols=columns, **style)


def repeated(numbers):
    """`3 repeats`, `1 to 3 repeats`, of the numbers of the points drawn."""
    low, high = int(min(numbers)), int(max(numbers))
    number = f"{low}" if low == high else f"{low} to {high}"
    return f"{number} repeat{'s' if high > 1 else ''}"


def _style(colour, k, dash=None):
    dash = dash or DASHES[k % len(DASHES)]
    return {"color": colour, "marker": MARKERS[k % len(MARKERS)], "ls": dash}
