"""Figures of results: curves of trainings, of few photographs, of strengths.

Accuracies are of the test set; error bars and bands are one standard deviation over
the repeats (the seeds), none where there is one repeat.
"""

import itertools
import math

import numpy as np

from keras_delta._errors import invalid
from experiments import panels
from experiments.published import data_name, data_order, method_name
from experiments.rows import (
    ALIKE,
    PLAIN,
    accuracies,
    finished,
    methods,
    setting_name,
    settings,
)
from keras_delta._plotting import LogScale, save_figure

SCHEDULES = ("step", "exponential")  # the article's come first


def curves(frame, path=None):
    """Test accuracy over epochs by method, as the article's Fig. 3.

    A panel for each setting (a row) and schedule of the learning rate (a column); the
    mean over repeats as a line, with a band of one standard deviation. Epochs that not
    all repeats have are left out. The legend says the numbers of repeats.

    Args:
        frame: of results of one network and augmentation, with `curve`s.
        path: write the picture there as well (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if no row has a curve, and as `rows.finished`.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Fig. 3.
    """
    from matplotlib.ticker import MaxNLocator

    alike = [n for n in PLAIN if n != "schedule"]
    rows = finished(frame, alike, ("setting", "schedule", "method"))
    rows = rows[[isinstance(c, (list, tuple)) and len(c) > 0 for c in rows["curve"]]]
    _some(rows, "curve")
    every, names = settings(rows), methods(rows)
    others = sorted(set(rows["schedule"]) - set(SCHEDULES))
    schedules = [s for s in SCHEDULES if s in set(rows["schedule"])] + others
    figure, axes = panels.grid(len(every), len(schedules))
    places = itertools.product(every, schedules)
    for axis, (setting, schedule) in zip(axes.ravel(), places, strict=True):
        here = rows[(rows["setting"] == setting) & (rows["schedule"] == schedule)]
        for method in methods(here):
            found = [dict(c) for c in here[here["method"] == method]["curve"]]
            epochs = sorted(set.intersection(*(set(c) for c in found)))
            values = np.array([[c[e] for e in epochs] for c in found])
            style = panels.method_style(method, names)
            panels.band(axis, epochs, values.mean(0), panels.spread(values), style)
        panels.finish(axis, f"{setting_name(setting)}, {schedule}", "epoch")
        if here.empty:
            panels.nothing(axis)
        else:
            axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    repeats = _repeats(accuracies(rows, "setting", "schedule", "method"))
    panels.legend(figure, axes, rows, repeats, marks=False)
    return save_figure(figure, path)


def few_shot_curves(frame, path=None):
    """Test accuracy over images a class by method, with error bars.

    A panel for each data set. The axis is logarithmic; trainings with all images stand
    at its right end.

    Args:
        frame: of results of one network, augmentation and schedule.
        path: write the picture there as well (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: for no rows, and as `rows.finished`.
    """
    rows = finished(frame, PLAIN)
    _some(rows, "accuracy")
    cells = accuracies(rows, "setting", "method")
    sets = sorted(set(rows["dataset"]), key=data_order)
    columns = min(len(sets), 3)
    figure, axes = panels.grid(-(-len(sets) // columns), columns)
    for axis in axes.ravel()[len(sets) :]:
        axis.set_visible(False)
    for axis, dataset in zip(axes.ravel(), sets, strict=False):
        here = rows[rows["dataset"] == dataset]
        numbers = [n for _, n in settings(here)]
        ticks = _log_places(numbers)
        shift = 0.012 * (max(ticks) - min(ticks) or 1.0)  # bars beside each other
        names = methods(here)
        for k, method in enumerate(names):
            aside = shift * (k - (len(names) - 1) / 2)
            points = [
                (tick + aside, values.mean(), panels.spread(values))
                for number, tick in zip(numbers, ticks, strict=True)
                if (values := cells.get(((dataset, number), method))) is not None
            ]
            panels.line(axis, points, panels.method_style(method, methods(rows)))
        axis.set_xticks(ticks, ["all" if n is None else str(n) for n in numbers])
        panels.finish(axis, data_name(dataset), "training images a class")
    panels.legend(figure, axes, rows, _repeats(cells))
    return save_figure(figure, path)


def strength_curve(frame, path=None):
    """Test accuracy over alpha, on a logarithmic axis, by data set.

    Alpha = 0 has a place of its own at the left end.

    Args:
        frame: of results of one method, beta, network, augmentation and schedule.
        path: write the picture there as well (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if no row has an alpha, and as `rows.finished`.
    """
    alike = (*ALIKE, "label_noise", "method", "beta")
    rows = finished(frame, alike, ("setting", "alpha"))
    rows = rows[rows["alpha"].notna()]
    _some(rows, "alpha")
    figure, axes = panels.grid(1, 1, 5.6, 3.6)
    axis = axes[0, 0]
    alphas = sorted(float(a) for a in set(rows["alpha"]))
    scale, cells = LogScale(alphas), accuracies(rows, "setting", "alpha")
    for k, setting in enumerate(settings(rows)):
        points = [
            (scale.position(a), values.mean(), panels.spread(values))
            for a in alphas
            if (values := cells.get((setting, a))) is not None
        ]
        style = {**panels.numbered_style(k), "label": setting_name(setting)}
        panels.line(axis, points, style)
    scale.apply(axis.xaxis)
    name = method_name(rows["method"].iloc[0])
    panels.finish(axis, f"{name}, {_repeats(cells)}", "alpha")
    panels.legend_below(figure, *axis.get_legend_handles_labels(), 2)
    return save_figure(figure, path)


def _some(rows, column):
    if rows.empty:
        expected = f"at least one finished training with `{column}`"
        raise ValueError(invalid("frame", expected, "none"))


def _repeats(cells):
    return panels.repeated([len(values) for values in cells.values()])


def _log_places(numbers):
    """Places of images a class, None at the right end."""
    known = [math.log10(n) for n in numbers if n is not None]
    if not known:
        return [0.0 for _ in numbers]
    end = known[-1] + max(0.25 * (known[-1] - known[0]), 0.2)
    return [end if n is None else math.log10(n) for n in numbers]
