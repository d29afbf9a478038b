"""A plot of a search: the objective over alpha and beta, as in the article's Fig. 4."""

import math
import numbers

import numpy as np

from keras_delta._errors import invalid
from keras_delta._plotting import LogScale, save_figure
from keras_delta.tuning import results
from keras_delta.tuning.results import DISCARDED, FAILED, FINISHED, RUNNING, STRENGTHS

COLOURS = "viridis"  # even in brightness; suitable for the colour-blind
MARK = "#d55e00"  # vermilion of Okabe and Ito's palette
SPREAD = 4  # colours extend to this multiple of the median distance from the best
MOST = 400  # cells of a heat map
BRIGHTNESS = (0.2126, 0.7152, 0.0722)  # of red, green and blue


def plot_surface(cells, objective, direction, path=None):
    """Draw the mean over folds for each alpha and beta; bright is good.

    Values on a grid make a heat map, with each cell's mean and standard error. All
    cells have equal width, whatever the values. Scattered values make points on log
    axes, with a separate position for 0 at the lower end. If only one of the two
    varies, a curve with standard errors is drawn instead. The best is framed; failed
    cells are grey and labelled as such, those discarded early have "<" (">" if small
    is good). Very bad cells share the darkest colour, so that they do not hide the
    differences between the good ones.

    Of cells that only differ in other hyperparameters, the best is shown.

    Args:
        cells: sequence of `Cell`.
        objective: name of the objective, such as `"val_accuracy"`.
        direction: `"max"` or `"min"`: which scores are good.
        path: file to also write the picture to (PNG, PDF or SVG, by its suffix).

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there are no cells, none has a number as alpha or beta, or the
            suffix is unknown.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Fig. 4.
    """
    ranked = results.ranked(cells, direction)
    axes = [n for n in STRENGTHS if any(_place(c, n) is not None for c in ranked)]
    if not axes:
        remedy = "`summary` and `frame` show the effect of other hyperparameters."
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
    """The cells to draw, and the common parts of the three kinds of pictures.

    Args:
        shown: dict from a tuple of values to a `Cell`, best first.
        axes: names of these values, `["alpha", "beta"]` or one of them.
        others: names of the other hyperparameters that vary.
    """

    def __init__(self, shown, axes, objective, direction, others):
        self.shown, self.axes, self.others = shown, axes, others
        self.objective, self.small_is_good = objective, direction == "min"
        self.worse = ">" if self.small_is_good else "<"
        self.written = results.formatter(objective, list(shown.values()))
        self.of = {
            kind: {p: c for p, c in shown.items() if results.state(c) == kind}
            for kind in results.STATES
        }
        self.scores = [c.score for c in self.of[FINISHED].values()]
        self.best = next(iter(self.of[FINISHED]), None)

    def heat_map(self):
        """Cells of equal size, alpha to the right and beta upwards."""
        from matplotlib.patches import Rectangle

        alphas, betas = (sorted({p[i] for p in self.shown}) for i in range(2))
        columns, rows = len(alphas), len(betas)
        figure, axis = _figure(
            max(5.2, 0.78 * columns + 2.2), max(2.6, 0.56 * rows + 1.7)
        )
        norm, colours, extend = self._colours()
        words = {DISCARDED: self.worse, FAILED: "failed", RUNNING: "not\nfinished"}
        scores = np.full((rows, columns), np.nan)
        for place, cell in self.shown.items():
            x, y = alphas.index(place[0]), betas.index(place[1])
            text, ink = words.get(results.state(cell)), "0.25"
            if text is None:
                text, scores[y, x] = self._number(cell, "\n±"), cell.score
                dark = np.dot(colours(norm(cell.score))[:3], BRIGHTNESS) < 0.45
                ink = "white" if dark else "black"
            axis.text(x, y, text, color=ink, size=7.5, ha="center", va="center")
        edges = [np.arange(n + 1) - 0.5 for n in (columns, rows)]
        style = {"norm": norm, "cmap": colours, "ec": "white", "lw": 1.0}
        mesh = axis.pcolormesh(*edges, scores, **style)
        if self.best is not None:
            corner = alphas.index(self.best[0]) - 0.47, betas.index(self.best[1]) - 0.47
            for colour, width in (("white", 4.5), (MARK, 2.5)):
                frame = {"fill": False, "ec": colour, "lw": width}
                axis.add_patch(Rectangle(corner, 0.94, 0.94, **frame))
        axis.set_xticks(range(columns), [f"{v:.3g}" for v in alphas])
        axis.set_yticks(range(rows), [f"{v:.3g}" for v in betas])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        self._finish(figure, axis, *self.axes)
        self._colour_bar(figure, axis, mesh, extend)
        if self.of[DISCARDED]:
            text = f"{self.worse}  discarded early, clearly worse than the best"
            figure.supxlabel(text, fontsize=8, color="0.35")
        return figure

    def scatter(self):
        """Points on log axes."""
        figure, axis = _figure(6.4, 4.8)
        scales = [LogScale([p[i] for p in self.shown]) for i in range(2)]

        def position(place):
            return [s.position(v) for s, v in zip(scales, place, strict=True)]

        self._marks(axis, position)
        if self.scores:
            norm, colours, extend = self._colours()
            points = [position(p) for p in self.of[FINISHED]]
            x, y = zip(*points[::-1], strict=True)  # the best on top
            style = {"norm": norm, "cmap": colours, "ec": "0.3", "lw": 0.6, "zorder": 3}
            dots = axis.scatter(x, y, s=90, c=self.scores[::-1], **style)
            self._colour_bar(figure, axis, dots, extend)
            _ring(axis, *points[0])
        for scale, which in zip(scales, (axis.xaxis, axis.yaxis), strict=True):
            scale.apply(which)
        axis.spines[["top", "right"]].set_visible(False)
        self._finish(figure, axis, *self.axes)
        return figure

    def curve(self, which):
        """The mean over one of the two, on a log axis, with standard errors."""
        figure, axis = _figure(6.4, 4.0)
        scale = LogScale([p[which] for p in self.shown])
        edge = axis.get_xaxis_transform()  # y from 0 to 1 whatever the scores
        self._marks(axis, lambda p: (scale.position(p[which]), 0.04), transform=edge)
        finished = sorted(self.of[FINISHED].items(), key=lambda item: item[0][which])
        if finished:
            x = [scale.position(p[which]) for p, _ in finished]
            y = [c.score for _, c in finished]
            error = [results.standard_error(c) for _, c in finished]
            style = {"color": "0.15", "lw": 1.4, "ms": 5, "elinewidth": 1.0}
            axis.errorbar(x, y, error, fmt="-o", capsize=3, **style)
            best = self.of[FINISHED][self.best].score
            _ring(axis, scale.position(self.best[which]), best)
        scale.apply(axis.xaxis)
        self._percent(axis.yaxis)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        self._finish(figure, axis, self.axes[which], self.objective)
        return figure

    def _marks(self, axis, position, **style):
        """Draw the cells without a score."""
        marks = {
            RUNNING: ("o", "not finished"),
            FAILED: ("x", "failed"),
            DISCARDED: (f"${self.worse}$", "discarded early"),
        }
        for kind, (marker, label) in marks.items():
            if points := [position(p) for p in self.of[kind]]:
                x, y = zip(*points, strict=True)
                face = {"mfc": "white"} if marker == "o" else {}
                look = {"marker": marker, "ms": 7, "ls": "", "color": "0.45", **face}
                axis.plot(x, y, label=label, **look, **style)

    def _colours(self):
        """(norm, colour map, which ends of the scale are open); the best is bright."""
        import matplotlib
        from matplotlib.colors import Normalize

        scores = np.array(self.scores or [0.0])
        best, distances = scores[0], np.abs(scores - scores[0])
        far, reach = float(distances.max()), SPREAD * float(np.median(distances))
        cut = 0 < reach < far
        far = reach if cut else far or 1.0
        if self.small_is_good:
            norm, end = Normalize(best, best + far), "max"
        else:
            norm, end = Normalize(best - far, best), "min"
        colours = matplotlib.colormaps[COLOURS + "_r" * self.small_is_good]
        colours = colours.with_extremes(bad="0.88")
        return norm, colours, end if cut else "neither"

    def _colour_bar(self, figure, axis, coloured, extend):
        if len(set(self.scores)) < 2:
            return
        bar = figure.colorbar(coloured, ax=axis, extend=extend, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
        bar.set_label(self.objective, fontsize=9)
        self._percent(bar.ax.yaxis)

    def _percent(self, axis):
        from matplotlib.ticker import PercentFormatter

        if self.written(1.0).endswith("%"):
            axis.set_major_formatter(PercentFormatter(1.0))

    def _finish(self, figure, axis, xlabel, ylabel):
        """Names of the axes, a legend, and a title with the contents and the best."""
        axis.tick_params(labelsize=8)
        axis.set_xlabel(xlabel, fontsize=9)
        axis.set_ylabel(ylabel, fontsize=9)
        folds = max((len(c.scores) for c in self.of[FINISHED].values()), default=0)
        lines = [self.objective]
        if folds > 1:
            lines = [f"{self.objective}, mean ± standard error over {folds} folds"]
        if self.others:
            lines.append(f"at each place the best over {', '.join(self.others)}")
        if self.best is None:
            lines.append("no cell is finished")
        else:
            pairs = zip(self.axes, self.best, strict=True)
            where = ", ".join(f"{name} = {value:.3g}" for name, value in pairs)
            score = self._number(self.of[FINISHED][self.best], " ± ")
            lines.append(f"best: {where}: {score}")
        axis.set_title("\n".join(lines), fontsize=10, loc="left")
        if axis.get_legend_handles_labels()[0]:
            place = "outside lower center"
            figure.legend(loc=place, ncols=4, frameon=False, fontsize=8)

    def _number(self, cell, sign):
        error = results.standard_error(cell)
        mean = self.written(cell.score)
        return mean if math.isnan(error) else mean + sign + self.written(error, True)


def _on_grid(places):
    """Whether values repeat often enough for rows and columns."""
    alphas, betas = ({p[i] for p in places} for i in range(2))
    size, n = len(alphas) * len(betas), len(places)
    repeated = len(alphas) < n and len(betas) < n
    return n == 1 or (repeated and size <= min(4 * n, MOST))


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


def _ring(axis, x, y):
    style = {"ms": 15, "mfc": "none", "mec": MARK, "mew": 2.2, "zorder": 4}
    axis.plot(x, y, "o", label="best", **style)
