"""A CSV file that goes on after a kill at any moment, the same byte for byte."""

import contextlib
import csv
import io
import itertools
import os
import re
from pathlib import Path

from keras_delta import _disk

SUFFIX = ".progress"


class ResumableCsv:
    """A CSV file of a row for each name, written in batches.

    Beside it, `PATH.progress` says by what it was made and from what each batch. It
    goes on behind the last batch that is whole and of the same sources as now; the rest
    is cut off.

    Text is UTF-8. Bytes of file names that are no UTF-8 are written as `\\xe9`, and a
    backslash that would look so as `\\x5c`: no two names are written alike.

    Args:
        path: of the file.
        columns: list of names, the first row.
        made_by: dict of what JSON takes, all that the rows depend on besides their
            sources.
        batches: list of lists of names, the first cells of the rows.
        sources: list of a string for each batch, what it is made from.
        overwrite: whether to begin again where the file is of something else.

    Attributes:
        batches: number of the batches that are there.

    Raises:
        ValueError: where something else made the file, or other rows are in it.
    """

    def __init__(self, path, columns, made_by, batches, sources, overwrite=False):
        self._path, progress = Path(path), Path(f"{path}{SUFFIX}")
        try:
            before = self._sources(progress, made_by)
            self.batches, end = self._kept(columns, batches, sources, before)
        except ValueError:
            if not overwrite:
                raise
            self.batches, end = 0, 0
        # Before it is said that the rows are of the sources that there are now.
        with open(self._path, "ab") as file:
            file.truncate(end)
            os.fsync(file.fileno())
        _disk.write_json(progress, {"made_by": made_by, "sources": sources})
        if end == 0:
            self._write([columns])

    def append(self, rows):
        """Write the next batch: a list of lists of cells."""
        self._write(rows)
        self.batches += 1

    def _write(self, rows):
        text = "".join(map(_line, rows))
        with open(self._path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    def _sources(self, progress, made_by):
        """What the rows were made from that are there."""
        # A file of no bytes is left by a process that was killed before it began.
        if not self._path.exists() or self._path.stat().st_size == 0:
            return []
        begun = _disk.read_json(progress, {})
        if "sources" not in begun:
            raise ValueError(
                f"'{self._path}' exists, and there is no '{progress.name}' that says "
                "how it was made. Pass another file, or `--overwrite` to replace it."
            )
        changes = "; ".join(
            f"{key} {begun['made_by'].get(key)!r}, now {value!r}"
            for key, value in made_by.items()
            if begun["made_by"].get(key) != value
        )
        if changes:
            raise ValueError(
                f"'{self._path}' was begun in another way ({changes}). Run it as "
                "before to go on, pass another file, or `--overwrite` to begin again."
            )
        return begun["sources"]

    def _kept(self, columns, batches, sources, before):
        """Number of the batches to keep, and where they end."""
        rows = _whole_rows(self._path, len(columns)) if before else iter(())
        _, end = next(rows, (None, 0))
        count = 0
        for batch, now, then in zip(batches, sources, before, strict=False):
            written = list(itertools.islice(rows, len(batch)))
            if now != then or len(written) < len(batch):
                break
            if [row[0] for row, _ in written] != list(map(_readable, batch)):
                raise ValueError(
                    f"'{self._path}' was edited: it has other rows. Rename it to keep "
                    "it, or pass `--overwrite` to begin again."
                )
            count, end = count + 1, written[-1][1]
        return count, end


def _whole_rows(path, columns):
    """(cells, position behind them) of each row, up to one that is torn."""
    with open(path, "rb") as file, contextlib.suppress(csv.Error):
        lines = (line.decode("utf-8", "replace") for line in file)
        whole = (line for line in lines if line.endswith("\n"))
        for row in csv.reader(whole, strict=True):
            if len(row) != columns:
                return
            yield row, file.tell()


def _line(cells):
    stream = io.StringIO()
    # With this terminator, Python quotes a carriage return in a name, too.
    name, *others = cells
    cells = [_readable(name), *map(_utf8, others)]
    csv.writer(stream, lineterminator="\r\n").writerow(cells)
    return stream.getvalue().removesuffix("\r\n") + "\n"


def _readable(name):
    """A file name in UTF-8 whatever its bytes are, another for each name."""
    return _utf8(re.sub(r"\\(?=x[0-9a-f]{2})", r"\\x5c", name))


def _utf8(text):
    return os.fsencode(text).decode("utf-8", "backslashreplace")
