"""`Table`: a titled table of strings as text, Markdown, LaTeX, CSV and picture."""

import textwrap
from pathlib import Path

from keras_delta import _disk
from keras_delta._errors import import_optional
from keras_delta._plotting import save_figure

WIDE = 110  # characters of a caption's line
SIZE, WIDTH, HEIGHT = 8, 0.067, 0.17  # of a picture's characters: points, inches
DPI = 200
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "−": "$-$", "±": r"$\pm$", "×": r"$\times$"}
    | {"–": "--", "α": r"$\alpha$"}
)


class Table:
    """A titled table that can be written in several formats.

    Args:
        title: one line.
        frame: `pandas.DataFrame` of strings; index and columns may have levels.
        caption: sentences to stand below.
    """

    def __init__(self, title, frame, caption=""):
        self.title, self.frame, self.caption = title, frame, caption

    @classmethod
    def of(cls, title, columns, index, names, caption):
        """A table from plain lists.

        Args:
            title, caption: see the class.
            columns: dict from a name (or a tuple of names, by level) to its strings.
            index: list of the rows' names, or of tuples.
            names: of the index's levels.
        """
        pandas = import_optional("pandas", "A table", "benchmarks")
        if len(names) > 1:
            index = pandas.MultiIndex.from_tuples(index, names=names)
        else:
            index = pandas.Index(index, name=names[0], dtype="object")
        return cls(title, pandas.DataFrame(columns, index, dtype="object"), caption)

    def __repr__(self):
        return self.text()

    def flat(self, blank=True):
        """A frame with one line of column names, the index among the columns.

        Args:
            blank: leave out what repeats the row above in all levels but the last.
        """
        pandas = import_optional("pandas", "A table", "benchmarks")
        columns = [", ".join(n for n in c if n) for c in self._columns()]
        rows = self._rows(blank)
        return pandas.DataFrame(
            rows, columns=[*self._names(), *columns], dtype="object"
        )

    def markdown(self):
        """The table in Markdown, title above and caption below (needs tabulate)."""
        import_optional("tabulate", "A table in Markdown", "benchmarks")
        flat = self.flat().map(_bars).rename(columns=_bars)
        left = self.frame.index.nlevels
        sides = ["left"] * left + ["right"] * (flat.shape[1] - left)
        table = flat.to_markdown(index=False, disable_numparse=True, colalign=sides)
        return "\n\n".join(p for p in (f"**{self.title}**", table, self.caption) if p)

    def text(self):
        """The table in plain text."""
        left = self.frame.index.nlevels
        heads = [list(level) for level in zip(*self._columns(), strict=True)] or [[]]
        corners = [[""] * left] * (len(heads) - 1) + [self._names()]
        rows = [[*c, *h] for c, h in zip(corners, heads, strict=True)] + self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                v.ljust(w) if i < left else v.rjust(w)
                for i, (v, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([self.title, *lines, *textwrap.wrap(self.caption, WIDE)])

    def latex(self):
        r"""The table in LaTeX, a `table` with booktabs' rules (needs Jinja2).

        Write `\usepackage{booktabs}` in the preamble.
        """
        import_optional("jinja2", "A table in LaTeX", "benchmarks")
        frame = self.frame.map(latex_escaped)
        frame = frame.rename(index=latex_escaped, columns=latex_escaped)
        frame.index.names = [n and latex_escaped(n) for n in frame.index.names]
        caption = " ".join(p for p in (f"{self.title}.", self.caption) if p)
        return frame.style.to_latex(
            hrules=True,
            column_format="l" * frame.index.nlevels + "r" * frame.shape[1],
            caption=latex_escaped(caption),
            position_float="centering",
            multirow_align="naive",
            multicol_align="c",
        )

    def picture(self):
        """The text with rules, a `matplotlib.figure.Figure` as large as it needs."""
        from matplotlib.figure import Figure

        lines = self.text().splitlines()
        columns, head = max(map(len, lines)), 1 + self.frame.columns.nlevels
        size = WIDTH * (columns + 4), HEIGHT * (len(lines) + 2)
        figure = Figure(size, dpi=DPI)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(-2, columns + 2), ylim=(len(lines) + 1, -1))
        axis.axis("off")
        style = {"family": "monospace", "size": SIZE, "va": "center"}
        for k, line in enumerate(lines):
            weight = "bold" if k < head else "normal"
            axis.text(0, k + 0.5, line, parse_math=False, weight=weight, **style)
        for k, width in ((1, 1.2), (head, 0.8), (head + len(self.frame), 1.2)):
            axis.plot([0, columns], [k, k], color="black", lw=width)
        return figure

    def save(self, stem):
        """Write `stem.txt`, `.md`, `.tex`, `.csv` and `.png`, each atomically.

        Returns:
            The list of the paths.
        """
        csv = self.flat(blank=False).to_csv(index=False)
        texts = {".txt": self.text() + "\n", ".md": self.markdown() + "\n"}
        texts |= {".tex": self.latex(), ".csv": csv}
        paths = [Path(f"{stem}{suffix}") for suffix in (*texts, ".png")]
        for path, text in zip(paths, texts.values(), strict=False):
            with _disk.replace_file(path) as temporary:
                temporary.write_text(text, "utf-8")
        save_figure(self.picture(), paths[-1], DPI)
        return paths

    def _names(self):
        return [n or "" for n in self.frame.index.names]

    def _columns(self):
        return [_levels(c) for c in self.frame.columns]

    def _rows(self, blank=True):
        """Labels and cells of each row; labels that repeat are "" if `blank`."""
        rows, before = [], []
        for label, cells in zip(self.frame.index, self.frame.to_numpy(), strict=True):
            labels, same = _levels(label), 0
            if blank:
                while same < len(before) - 1 and labels[same] == before[same]:
                    same += 1
            rows.append([""] * same + labels[same:] + cells.tolist())
            before = labels
        return rows


def latex_escaped(text):
    """A text that LaTeX prints as it is."""
    return str(text).translate(LATEX)


def _levels(label):
    return [str(v) for v in label] if isinstance(label, tuple) else [str(label)]


def _bars(text):
    return str(text).replace("|", "\\|")
