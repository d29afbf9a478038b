"""`Table`: a titled table of strings as text, Markdown, LaTeX, CSV and picture."""

import textwrap
from pathlib import Path

from keras_delta import _disk
from keras_delta._errors import import_optional
from experiments.table_picture import draw_table
from keras_delta._plotting import save_figure

WIDE = 110  # characters of a text
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
SPECIAL |= {"^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "−": "$-$"}
SPECIAL |= {"±": r"$\pm$", "×": r"$\times$", "–": "--", "α": r"$\alpha$"}
SPECIAL |= {c: f"\\{c}" for c in "&%$#_{}"}


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
            title: one line.
            columns: dict from a name (or a tuple of names, by level) to its strings.
            index: list of the rows' names, or of tuples.
            names: of the index's levels.
            caption: sentences to stand below.
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
        rows = [
            [*i, *r] for i, r in zip(self._index(blank), self._cells(), strict=True)
        ]
        columns = [", ".join(n for n in c if n) for c in self._columns()]
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
        rows = [[*c, *h] for c, h in zip(corners, heads, strict=True)]
        body = zip(self._index(), self._cells(), strict=True)
        rows += [[*i, *cells] for i, cells in body]
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
        left = "l" * frame.index.nlevels
        caption = " ".join(p for p in (f"{self.title}.", self.caption) if p)
        return frame.style.to_latex(
            hrules=True,
            column_format=left + "r" * frame.shape[1],
            caption=latex_escaped(caption),
            position_float="centering",
            multirow_align="naive",
            multicol_align="c",
        )

    def picture(self):
        """The table as a `matplotlib.figure.Figure`, as large as it needs to be."""
        parts = self._names(), self._index(), self._columns(), self._cells()
        return draw_table(self.title, *parts, self.caption)

    def png(self, path):
        """Write a picture of the table (also PDF or SVG, by the suffix)."""
        save_figure(self.picture(), path, dpi=200)

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
        self.png(paths[-1])
        return paths

    def _names(self):
        return [n or "" for n in self.frame.index.names]

    def _index(self, blank=True):
        """Labels of each row, by level; what repeats the row above is "" if `blank`."""
        labels = [_levels(i) for i in self.frame.index]
        return _without_repeats(labels) if blank else labels

    def _columns(self):
        return [_levels(c) for c in self.frame.columns]

    def _cells(self):
        return self.frame.to_numpy().tolist()


def latex_escaped(text):
    """A text that LaTeX prints as it is."""
    return "".join(SPECIAL.get(c, c) for c in str(text))


def _levels(label):
    return [str(v) for v in label] if isinstance(label, tuple) else [str(label)]


def _without_repeats(rows):
    """Rows of labels, without what repeats the row above (all levels but the last)."""
    found, before = [], []
    for row in rows:
        same = 0
        while same < min(len(row) - 1, len(before)) and row[same] == before[same]:
            same += 1
        found.append([""] * same + row[same:])
        before = row
    return found


def _bars(text):
    return str(text).replace("|", "\\|")
