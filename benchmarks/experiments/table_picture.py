"""The picture of a table, with booktabs' lines."""

import itertools

import numpy as np

SIZE = 8.5  # points of the text
LINE, GAP, EDGE = 0.21, 0.22, 0.15  # inches: between lines, columns, to the edges
NARROW = 4.0  # inches that a picture has at least
BOLD = {"weight": "bold"}
TITLE = {"fontsize": 1.2 * SIZE, **BOLD}


def draw_table(title, names, index, columns, values, caption=""):
    """Draw a table; the figure is as large as the text needs.

    Args:
        title: one line.
        names: of the levels of the index.
        index: list of lists of labels, one a row; an empty one repeats that above.
        columns: list of lists of labels, one a column; equal neighbours in an upper
            level are written once.
        values: list of lists of strings, one a row.
        caption: sentences below, wrapped.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    width_of = _measure()
    left = len(names)
    groups = _groups(columns, left)
    widths = _widths(names, index, columns, values, width_of)
    for _, text, start, stop in groups:
        room = sum(widths[start:stop]) + GAP * (stop - start - 1)
        lack = width_of(text, bold=True) - room
        for k in range(start, stop):
            widths[k] += max(lack, 0) / (stop - start)
    starts = EDGE + np.concatenate([[0], np.cumsum(np.array(widths) + GAP)])
    ends = starts[1:] - GAP
    width = max(starts[-1] - GAP + EDGE, NARROW)
    room = width - 2 * EDGE
    heading = _wrapped(title, room / 1.2, lambda t: width_of(t, bold=True))
    notes = _wrapped(caption, room, width_of)
    levels = len(columns[0]) if columns else 1
    lines = len(heading) + levels + len(values) + len(notes)

    sheet = _Sheet(width, 2 * EDGE + LINE * (lines + 0.8), (EDGE, starts[-1] - GAP))
    for text in heading:
        sheet.write(EDGE, text, **TITLE)
        sheet.down()
    sheet.down(0.3)
    sheet.rule(1.2)
    for level in range(levels - 1):
        for k, text, start, stop in groups:
            if k == level:
                span = starts[start], ends[stop - 1]
                sheet.write(sum(span) / 2, text, "center", **BOLD)
                sheet.rule(0.5, span, LINE / 2)
        sheet.down()
    sheet.row(starts[:left], names, **BOLD)
    sheet.row(ends[left:], [labels[-1] for labels in columns], "right", **BOLD)
    sheet.down()
    sheet.rule(0.8)
    for k, (labels, cells) in enumerate(zip(index, values, strict=True)):
        if k and left > 1 and labels[0]:
            sheet.rule(0.3)
        sheet.row(starts[:left], labels)
        sheet.row(ends[left:], cells, "right")
        sheet.down()
    sheet.rule(1.2)
    sheet.down(0.4)
    for text in notes:
        sheet.write(EDGE, text, color="0.25")
        sheet.down()
    return sheet.figure


class _Sheet:
    """A figure that is written line by line; all in inches.

    Args:
        width, height: of the figure.
        span: from where to where the table's rules go.
    """

    def __init__(self, width, height, span):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure, self.span, self.y = Figure((width, height)), span, EDGE + LINE / 2
        FigureCanvasAgg(self.figure)
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, width), ylim=(height, 0))
        self.axis.axis("off")

    def write(self, x, text, side="left", **style):
        style = {"fontsize": SIZE, "ha": side, "va": "center", **style}
        if text:
            self.axis.text(x, self.y, text, parse_math=False, **style)

    def row(self, places, texts, side="left", **style):
        for x, text in zip(places, texts, strict=True):
            self.write(x, text, side, **style)

    def rule(self, thickness, span=None, below=-LINE / 2):
        y = self.y + below
        style = {"color": "black", "lw": thickness, "solid_capstyle": "butt"}
        self.axis.plot(span or self.span, [y, y], **style)

    def down(self, lines=1):
        self.y += lines * LINE


def _measure():
    """A function that gives the width of a text in inches."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    renderer = RendererAgg(100, 100, 200)
    fonts = [FontProperties(size=SIZE, weight=w) for w in ("normal", "bold")]

    def width(text, bold=False):
        if not text:
            return 0.0
        font = fonts[int(bold)]
        return renderer.get_text_width_height_descent(text, font, False)[0] / 200

    return width


def _widths(names, index, columns, values, width_of):
    """Of each column, those of the index first; upper levels do not count."""
    heads = [*names, *(labels[-1] for labels in columns)]
    rows = [[*labels, *cells] for labels, cells in zip(index, values, strict=True)]
    return [
        max([width_of(head, bold=True), *(width_of(row[k]) for row in rows)])
        for k, head in enumerate(heads)
    ]


def _groups(columns, left):
    """(level, label, start, stop) of equal neighbours in the upper levels.

    Args:
        columns: list of lists of labels.
        left: number of the columns before them.
    """
    found = []
    for level in range(len(columns[0]) - 1 if columns else 0):
        start = left
        for labels, run in itertools.groupby(c[: level + 1] for c in columns):
            stop = start + len(list(run))
            found.append((level, labels[-1], start, stop))
            start = stop
    return found


def _wrapped(text, room, width_of):
    lines = []
    for word in text.replace(" %", "\u00a0%").split(" "):
        if lines and width_of(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
