"""Figures of results: curves of trainings, of few photographs, of strengths.

Accuracies are of the test set; error bars and bands are one standard deviation over
the repeats (the seeds), none where there is one repeat. Each function returns a
`matplotlib.figure.Figure` and writes it to `path` as well (PNG, PDF or SVG by its
suffix). Frames without a row to draw are a ValueError, and what `rows.finished` says.
"""

import itertools
import math

import numpy as np

from keras_delta._errors import invalid
from experiments.rows import (
    ALIKE,
    PLAIN,
    accuracies,
    data_name,
    data_order,
    finished,
    method_name,
    methods,
    setting_name,
    settings,
)
from keras_delta._plotting import LogScale, save_figure

SCHEDULES = ("step", "exponential")  # the article's come first
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


def curves(frame, path=None):
    """Test accuracy over epochs by method, as the article's Fig. 3.

    A panel for each setting (a row) and schedule of the learning rate (a column); the
    mean over repeats as a line, with a band of one standard deviation. Epochs that not
    all repeats have are left out. The legend says the numbers of repeats. The frame is
    of one network and augmentation, with `curve`s.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Fig. 3.
    """
    from matplotlib.ticker import MaxNLocator

    alike = [n for n in PLAIN if n != "schedule"]
    rows = finished(frame, alike, ("setting", "schedule", "method"))
    rows = rows[[isinstance(c, (list, tuple)) and len(c) > 0 for c in rows["curve"]]]
    _some(rows, "curve")
    every, styles = settings(rows), _styles(methods(rows), marker="")
    others = sorted(set(rows["schedule"]) - set(SCHEDULES))
    schedules = [s for s in SCHEDULES if s in set(rows["schedule"])] + others
    figure, axes = _grid(len(every), len(schedules))
    places = itertools.product(every, schedules)
    for axis, (setting, schedule) in zip(axes.ravel(), places, strict=True):
        here = rows[(rows["setting"] == setting) & (rows["schedule"] == schedule)]
        _finish(axis, f"{setting_name(setting)}, {schedule}", "epoch")
        for method in methods(here):
            repeats = [dict(c) for c in here[here["method"] == method]["curve"]]
            epochs = sorted(set.intersection(*map(set, repeats)))
            values = np.array([[c[e] for e in epochs] for c in repeats])
            mean, style = values.mean(0), styles[method]
            axis.plot(epochs, mean, **style)
            if len(values) > 1:
                error = values.std(0, ddof=1)
                shade = {"alpha": 0.18, "lw": 0, "color": style["color"]}
                axis.fill_between(epochs, mean - error, mean + error, **shade)
        if here.empty:
            axis.set(xticks=[], yticks=[])
            middle = {"ha": "center", "va": "center", "color": "0.4", "fontsize": 9}
            axis.text(0.5, 0.5, "no training", transform=axis.transAxes, **middle)
        else:
            axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    repeats = _repeats(accuracies(rows, "setting", "schedule", "method"))
    _legend(figure, styles, repeats, len(schedules))
    return save_figure(figure, path)


def few_shot_curves(frame, path=None):
    """Test accuracy over images a class by method, with error bars.

    A panel for each data set. The axis is logarithmic; trainings with all images stand
    at its right end. The frame is of one network, augmentation and schedule.
    """
    rows = finished(frame, PLAIN)
    _some(rows, "accuracy")
    cells, styles = accuracies(rows, "setting", "method"), _styles(methods(rows))
    sets = sorted(set(rows["dataset"]), key=data_order)
    columns = min(len(sets), 3)
    figure, axes = _grid(-(-len(sets) // columns), columns)
    for axis in axes.ravel()[len(sets) :]:
        axis.set_visible(False)
    for axis, dataset in zip(axes.ravel(), sets, strict=False):
        here = rows[rows["dataset"] == dataset]
        numbers, names = [n for _, n in settings(here)], methods(here)
        ticks = _log_places(numbers)
        shift = 0.012 * (max(ticks) - min(ticks) or 1.0)  # bars beside each other
        for k, method in enumerate(names):
            aside = shift * (k - (len(names) - 1) / 2)
            points = [
                (tick + aside, cells.get(((dataset, number), method)))
                for number, tick in zip(numbers, ticks, strict=True)
            ]
            _line(axis, points, styles[method])
        axis.set_xticks(ticks, ["all" if n is None else str(n) for n in numbers])
        _finish(axis, data_name(dataset), "training images a class")
    _legend(figure, styles, _repeats(cells), columns)
    return save_figure(figure, path)


def strength_curve(frame, path=None):
    """Test accuracy over alpha, on a logarithmic axis, by data set.

    Alpha = 0 has a place of its own at the left end. The frame is of one method, beta,
    network, augmentation and schedule.
    """
    alike = (*ALIKE, "label_noise", "method", "beta")
    rows = finished(frame, alike, ("setting", "alpha"))
    rows = rows[rows["alpha"].notna()]
    _some(rows, "alpha")
    figure, axes = _grid(1, 1, 5.6, 3.6)
    axis = axes[0, 0]
    alphas = sorted(float(a) for a in set(rows["alpha"]))
    scale, cells = LogScale(alphas), accuracies(rows, "setting", "alpha")
    palette = [*list(COLOURS.values())[1:], *MORE]
    for k, setting in enumerate(settings(rows)):
        points = [(scale.position(a), cells.get((setting, a))) for a in alphas]
        style = _style(palette[k % len(palette)], k, DASHES[k % len(DASHES)])
        _line(axis, points, {**style, "label": setting_name(setting)})
    scale.apply(axis.xaxis)
    name = method_name(rows["method"].iloc[0])
    _finish(axis, f"{name}, {_repeats(cells)}", "alpha")
    _legend_below(figure, *axis.get_legend_handles_labels(), 2)
    return save_figure(figure, path)


def _some(rows, column):
    if rows.empty:
        expected = f"at least one finished training with `{column}`"
        raise ValueError(invalid("frame", expected, "none"))


def _repeats(cells):
    """`3 repeats`, `1 to 3 repeats`, of the points drawn."""
    numbers = [len(values) for values in cells.values()]
    low, high = min(numbers), max(numbers)
    number = f"{low}" if low == high else f"{low} to {high}"
    return f"{number} repeat{'s' if high > 1 else ''}"


def _log_places(numbers):
    """Places of images a class, None at the right end."""
    known = [math.log10(n) for n in numbers if n is not None]
    if not known:
        return [0.0 for _ in numbers]
    end = known[-1] + max(0.25 * (known[-1] - known[0]), 0.2)
    return [end if n is None else math.log10(n) for n in numbers]


def _grid(rows, columns, width=WIDTH, height=HEIGHT):
    """A figure and its array of axes, (rows, columns)."""
    from matplotlib.figure import Figure  # loads slowly

    size = max(width * columns, 4.8), height * rows + 0.7
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.04)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("test accuracy", fontsize=9)
    return figure, axes


def _styles(names, **changes):
    """Dict from methods to colour, marker and dashes."""
    more = [n for n in names if n not in COLOURS]
    colours = COLOURS | dict(zip(more, itertools.cycle(MORE), strict=False))
    styles = {
        name: _style(colour, k, "-" if name == "delta" else DASHES[k % len(DASHES)])
        for k, (name, colour) in enumerate(colours.items())
    }
    return {name: {**styles[name], **changes} for name in names}


def _style(colour, k, dashes):
    marker = MARKERS[k % len(MARKERS)]
    return {"color": colour, "marker": marker, "ls": dashes, "ms": 4.5, "lw": 1.3}


def _line(axis, points, style):
    """A line through (x, values or None), with error bars where there are repeats."""
    points = [(x, values) for x, values in points if values is not None]
    axis.plot([x for x, _ in points], [v.mean() for _, v in points], **style)
    for x, values in points:
        if len(values) > 1:
            bar = {"ecolor": style["color"], "elinewidth": 1.0, "capsize": 2.5}
            axis.errorbar(x, values.mean(), values.std(ddof=1), fmt="none", **bar)


def _finish(axis, title, label):
    """Title, label below, percents at the side."""
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(label, fontsize=9)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)


def _legend(figure, styles, repeats, columns):
    """One legend of all methods below the panels, and the number of repeats above."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style) for style in styles.values()]
    text = f"mean and standard deviation of {repeats}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=9, color="0.35")
    _legend_below(figure, handles, map(method_name, styles), min(columns + 1, 4))


def _legend_below(figure, handles, labels, columns):
    style = {"frameon": False, "fontsize": 8, "handlelength": 3.2, "ncols": columns}
    figure.legend(handles, list(labels), loc="outside lower center", **style)
