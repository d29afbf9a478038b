"""A picture of a search: the objective over alpha and beta, as the article's Fig. 4."""

import math
import numbers
from pathlib import Path

import numpy as np

from keras_delta._errors import invalid
from keras_delta._plotting import LogScale, save_figure
from keras_delta.tuning import results
from keras_delta.tuning.results import DISCARDED, FAILED, FINISHED, STRENGTHS

SUFFIXES = (".png", ".pdf", ".svg")
COLOURS = "viridis"  # even in brightness; told apart by the colour-blind
MARK = "#d55e00"  # vermilion of Okabe and Ito's palette
GREY = "0.88"
SPREAD = 4  # colours end so many times as far from the best as the median
MOST = 400  # cells of a heat map


def plot_surface(cells, objective, direction, path=None):
    """Draw the mean over folds at each alpha and beta, bright where it is good.

    Values on a grid make a heat map, with each cell's mean and standard error. Its
    steps are all as wide, whatever the values. Scattered values make points on log
    axes, where 0 has a place of its own at the lower end. If only one of the two
    varies, a curve with standard errors is drawn instead. The best is framed, cells
    that failed are hatched, those discarded early are grey with "<" (">" where small
    is good). Very bad cells share the darkest colour, so that they do not hide the
    differences between the good ones.

    Of cells that differ in other hyperparameters alone the best is shown.

    Args:
        cells: sequence of `Cell`.
        objective: its name, such as `"val_accuracy"`.
        direction: `"max"` or `"min"`: which scores are good.
        path: write the picture there as well (PNG, PDF or SVG by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: for no cells, none with a number as alpha or beta, or another
            suffix.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Fig. 4.
    """
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(invalid("path", f"a file with {_or(SUFFIXES)}", str(path)))
    ranked = results.ranked(cells, direction)
    axes = [n for n in STRENGTHS if any(_place(c, n) is not None for c in ranked)]
    if not axes:
        remedy = "`summary` and `frame` show what other hyperparameters do."
        expected = "cells with a number as alpha or beta"
        raise ValueError(invalid("cells", expected, list(cells), remedy))
    shown = {}  # the best of each place comes first
    for cell in ranked:
        place = tuple(_place(cell, name) for name in axes)
        if None not in place:
            shown.setdefault(place, cell)
    varying = [i for i in range(len(axes)) if len({p[i] for p in shown}) > 1]
    picture = _Picture(shown, axes, objective, direction, _others(ranked))
    if len(axes) == 2 and len(varying) != 1:
        figure = picture.heat_map() if _on_grid(shown) else picture.scatter()
    else:
        figure = picture.curve(varying[0] if varying else 0)
    return save_figure(figure, path)


class _Picture:
    """The cells to draw, and what the three kinds of pictures have in common.

    Args:
        shown: dict from a tuple of values to a `Cell`, best first.
        axes: what these values are, `["alpha", "beta"]` or one of them.
        others: names of the hyperparameters that vary besides.
    """

    def __init__(self, shown, axes, objective, direction, others):
        self.shown, self.axes, self.others = shown, axes, others
        self.objective, self.direction = objective, direction
        self.cells = list(shown.values())
        self.written = results.formatter(objective, self.cells)
        self.of = {
            kind: {p: c for p, c in shown.items() if results.state(c) == kind}
            for kind in results.STATES
        }
        finished = self.of[FINISHED]
        self.best = next(iter(finished), None)
        self.percent = self.written(1.0).endswith("%")

    def title(self, axis):
        """Two or three lines: what is drawn, and the best."""
        folds = max((len(c.scores) for c in self.of[FINISHED].values()), default=0)
        what = f"{self.objective}, mean ± standard error over {folds} folds"
        lines = [what if folds > 1 else self.objective]
        if self.others:
            lines.append(f"at each place the best over {', '.join(self.others)}")
        if self.best is None:
            lines.append("no cell is finished")
        else:
            cell = self.shown[self.best]
            where = ", ".join(
                f"{n} = {v:.3g}" for n, v in zip(self.axes, self.best, strict=True)
            )
            lines.append(f"best: {where}: {' ± '.join(self._numbers(cell))}")
        axis.set_title("\n".join(lines), fontsize=10, loc="left")

    def _numbers(self, cell):
        error = results.standard_error(cell)
        numbers = [self.written(cell.score)]
        return numbers if math.isnan(error) else [*numbers, self.written(error, True)]

    def colours(self):
        """(norm, colour map, which ends of the scale are open)."""
        import matplotlib
        from matplotlib.colors import Normalize

        scores = np.array([c.score for c in self.of[FINISHED].values()] or [0.0, 1.0])
        best = scores[0]
        spread = SPREAD * abs(float(np.median(scores)) - best)
        worst = scores[np.argmax(np.abs(scores - best))]
        cut = 0 < spread < abs(worst - best)
        if cut:
            worst = best + math.copysign(spread, worst - best)
        if worst == best:  # all are as good
            worst = best + (1 if self.direction == "min" else -1)
        low, high = sorted((float(best), float(worst)))
        reverse = self.direction == "min"
        colours = matplotlib.colormaps[COLOURS + ("_r" if reverse else "")]
        end = ("max" if reverse else "min") if cut else "neither"
        return Normalize(low, high), colours, end

    def colour_bar(self, figure, axis, extend):
        from matplotlib.cm import ScalarMappable
        from matplotlib.ticker import PercentFormatter

        norm, colours, _ = self.colours()
        if len({c.score for c in self.of[FINISHED].values()}) < 2:
            return
        bar = figure.colorbar(
            ScalarMappable(norm, colours), ax=axis, extend=extend, pad=0.02
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
        bar.set_label(self.objective, fontsize=9)
        if self.percent:
            bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))

    def heat_map(self):
        """Cells of equal size, alpha to the right and beta upwards."""
        alphas, betas = (sorted({p[i] for p in self.shown}) for i in range(2))
        columns, rows = len(alphas), len(betas)
        figure, axis = _figure(
            max(5.2, 0.78 * columns + 2.2), max(2.6, 0.56 * rows + 1.7)
        )
        norm, colours, extend = self.colours()
        for place, cell in self.shown.items():
            x, y = alphas.index(place[0]), betas.index(place[1])
            text, style = self._box(cell, norm, colours)
            _rectangle(axis, x, y, 1.0, **style)
            axis.text(x, y, text[0], **text[1], ha="center", va="center")
        if self.best is not None:
            x, y = alphas.index(self.best[0]), betas.index(self.best[1])
            _rectangle(axis, x, y, 0.94, fill=False, ec="white", lw=4.5, zorder=3)
            _rectangle(axis, x, y, 0.94, fill=False, ec=MARK, lw=2.5, zorder=4)
        axis.set_xlim(-0.5, columns - 0.5)
        axis.set_ylim(-0.5, rows - 0.5)
        axis.set_xticks(range(columns), [f"{v:.3g}" for v in alphas])
        axis.set_yticks(range(rows), [f"{v:.3g}" for v in betas])
        axis.tick_params(length=0)
        self._finish(figure, axis, extend)
        axis.spines[:].set_visible(False)
        return figure

    def _box(self, cell, norm, colours):
        """(text and its style, style of the rectangle) of a cell in a heat map."""
        kind = results.state(cell)
        style = {"fc": GREY, "ec": "white", "lw": 1.0}
        small = {"fontsize": 7.5, "color": "0.25"}
        if kind == FINISHED:
            colour = colours(norm(cell.score))
            dark = np.dot(colour[:3], (0.2126, 0.7152, 0.0722)) < 0.45
            numbers = "\n±".join(self._numbers(cell))
            text = {**small, "color": "white" if dark else "black"}
            return (numbers, text), {**style, "fc": colour}
        if kind == DISCARDED:
            return (self._worse(), {**small, "fontsize": 11}), style
        if kind == FAILED:
            small["bbox"] = {"fc": "white", "ec": "none", "pad": 1.5}
            return ("failed", small), {**style, "fc": "white", **_hatch()}
        return ("not\nfinished", small), {**style, "fc": "white", "ec": "0.8"}

    def _worse(self):
        return "<" if self.direction == "max" else ">"

    def scatter(self):
        """Points on log axes."""
        figure, axis = _figure(6.4, 4.8)
        norm, colours, extend = self.colours()
        scales = [LogScale([p[i] for p in self.shown]) for i in range(2)]

        def points(places, **style):
            if places:
                x, y = ([scales[i].position(p[i]) for p in places] for i in range(2))
                axis.scatter(x, y, **style)

        sign = f"${self._worse()}$"
        rest = self.of[results.RUNNING]
        points(rest, s=50, fc="white", ec="0.6", label="not finished")
        points(self.of[FAILED], s=40, marker="x", c="0.3", label="failed")
        points(self.of[DISCARDED], s=60, marker=sign, c="0.45", label="discarded early")
        finished = list(self.of[FINISHED])[::-1]  # the best on top
        scores = [self.shown[p].score for p in finished]
        style = {"c": scores, "norm": norm, "cmap": colours}
        points(finished, s=90, ec="0.3", lw=0.6, zorder=3, **style)
        if self.best is not None:
            ring = {"fc": "none", "ec": MARK, "lw": 2.2, "zorder": 4}
            points([self.best], s=230, label="best", **ring)
        for i, which in enumerate((axis.xaxis, axis.yaxis)):
            scales[i].apply(which)
        axis.spines[["top", "right"]].set_visible(False)
        self._finish(figure, axis, extend, legend=True)
        return figure

    def curve(self, which):
        """The mean over one of the two, on a log axis, with standard errors."""
        figure, axis = _figure(6.4, 4.0)
        scale = LogScale([p[which] for p in self.shown])
        finished = sorted(self.of[FINISHED].items(), key=lambda item: item[0][which])
        if finished:
            x = [scale.position(p[which]) for p, _ in finished]
            y = np.array([c.score for _, c in finished])
            error = np.array([results.standard_error(c) for _, c in finished])
            known = np.isfinite(error)
            axis.plot(x, y, "-o", color="0.15", lw=1.4, ms=5)
            axis.errorbar(
                np.array(x)[known],
                y[known],
                error[known],
                fmt="none",
                ecolor="0.15",
                elinewidth=1.0,
                capsize=3,
            )
            axis.plot(
                scale.position(self.best[which]),
                self.shown[self.best].score,
                "o",
                ms=13,
                mfc="none",
                mec=MARK,
                mew=2.2,
                label="best",
            )
        lost = (
            (DISCARDED, f"${self._worse()}$", "discarded early"),
            (FAILED, "x", "failed"),
            (results.RUNNING, "o", "not finished"),
        )
        edge = axis.get_xaxis_transform()  # y from 0 to 1 whatever the scores
        for kind, marker, label in lost:
            x = [scale.position(p[which]) for p in self.of[kind]]
            if x:
                face = {"mfc": "white"} if marker == "o" else {}
                style = {"ls": "", "color": "0.45", "ms": 7, **face}
                axis.plot(
                    x,
                    [0.04] * len(x),
                    marker=marker,
                    transform=edge,
                    label=label,
                    **style,
                )
        scale.apply(axis.xaxis)
        if self.percent:
            from matplotlib.ticker import PercentFormatter

            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.set_xlabel(self.axes[which], fontsize=9)
        axis.set_ylabel(self.objective, fontsize=9)
        self.title(axis)
        _legend(figure, axis)
        return figure

    def _finish(self, figure, axis, extend, legend=False):
        axis.tick_params(labelsize=8)
        axis.set_xlabel(self.axes[0], fontsize=9)
        axis.set_ylabel(self.axes[1], fontsize=9)
        self.title(axis)
        if self.of[FINISHED]:
            self.colour_bar(figure, axis, extend)
        if legend:
            _legend(figure, axis)
        elif self.of[DISCARDED]:
            text = f"{self._worse()}  discarded early, clearly worse than the best"
            figure.supxlabel(text, fontsize=8, color="0.35")


def _on_grid(places):
    """Whether values come back often enough for rows and columns."""
    alphas, betas = ({p[i] for p in places} for i in range(2))
    size, n = len(alphas) * len(betas), len(places)
    if n == 1:
        return True
    repeated = len(alphas) < n and len(betas) < n
    return repeated and size <= min(4 * n, MOST)


def _place(cell, name):
    value = cell.values.get(name)
    if not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
        return None
    return float(value)


def _others(cells):
    """Names of the other hyperparameters that vary, without Keras Tuner's own."""
    return [
        name
        for name in results.names(cells)
        if name not in STRENGTHS
        and not name.startswith(results.OF_KERAS_TUNER)
        and len({str(c.values.get(name)) for c in cells}) > 1
    ]


def _figure(width, height):
    from matplotlib.figure import Figure  # loads slowly

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _rectangle(axis, x, y, size, **style):
    from matplotlib.patches import Rectangle

    corner = x - size / 2, y - size / 2
    axis.add_patch(Rectangle(corner, size, size, **style))


def _hatch():
    return {"hatch": "////", "ec": "0.7", "lw": 0.0}


def _legend(figure, axis):
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _or(words):
    return f"{', '.join(words[:-1])} or {words[-1]}"
