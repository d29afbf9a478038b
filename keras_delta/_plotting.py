"""Shared parts of pictures: a log axis with a place for 0, and saving to files."""

import itertools
import math
from pathlib import Path

from keras_delta import _disk
from keras_delta._errors import invalid

FEW = 6  # values that are all labelled
SUFFIXES = (".png", ".pdf", ".svg")


class LogScale:
    """A log axis on which 0 has a place: a bit below the smallest positive value.

    Args:
        values: all that will be drawn; not negative.
    """

    def __init__(self, values):
        positive = [math.log10(v) for v in values if v > 0] or [0.0]
        self.low, self.high = min(positive), max(positive)
        self.gap = max(0.5, 0.18 * (self.high - self.low))
        self.has_zero = 0 in values
        self.values = values

    def position(self, value):
        """Position of a value, in decades."""
        return math.log10(value) if value > 0 else self.low - self.gap

    def apply(self, axis):
        """Set limits and ticks of a matplotlib axis."""
        ticks = self._ticks()
        positions = [self.position(v) for v in ticks]
        axis.set_ticks(positions, [f"{v:.4g}" for v in ticks])
        start = self.low - (self.gap if self.has_zero else 0)
        margin = max(0.06 * (self.high - start), 0.08)
        axis.set_view_interval(start - margin, self.high + margin, ignore=True)

    def _ticks(self):
        from matplotlib.ticker import MaxNLocator

        zero = [0.0] if self.has_zero else []
        positive = sorted({v for v in self.values if v > 0})
        if len(positive) <= FEW and _apart(positive, self.high - self.low):
            return zero + positive
        if self.high - self.low < 1:
            locator = MaxNLocator(5, steps=[1, 2, 5, 10])
            found = locator.tick_values(10**self.low, 10**self.high)
        else:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            steps = (1, 2, 5) if self.high - self.low < 2 else (1,)
            found = [m * 10.0**d for d in decades for m in steps]
        near = 10 ** (self.low - 0.03), 10 ** (self.high + 0.03)
        found = [float(v) for v in found if near[0] <= v <= near[1]]
        return zero + found[:: -(-len(found) // 8)]


def save_figure(figure, path, dpi=150):
    """The figure, also written to `path` atomically.

    Args:
        figure: `matplotlib.figure.Figure`.
        path: of a PNG, PDF or SVG file, by its suffix; None writes nothing.
        dpi: dots per inch of a PNG file.

    Returns:
        `figure`.

    Raises:
        ValueError: if the path has another suffix.
    """
    if path is not None:
        if Path(path).suffix.lower() not in SUFFIXES:
            raise ValueError(invalid("path", "a .png, .pdf or .svg file", str(path)))
        with _disk.replace_file(path) as temporary:
            figure.savefig(temporary, dpi=dpi)
    return figure


def _apart(values, span):
    """Whether neighbouring labels on a log axis have room."""
    return all(math.log10(b / a) >= 0.08 * span for a, b in itertools.pairwise(values))
