"""A CSV file that can be resumed after a kill at any time, byte for byte the same."""

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
    """A CSV file with one row per name, written in batches.

    `PATH.progress` next to it records how the file was made and from which sources each
    batch. It resumes after the last complete batch whose sources are unchanged; the
    rest is cut off.

    Text is UTF-8. Bytes of file names that are not UTF-8 are written as `\\xe9`, and a
    backslash that would look the same as `\\x5c`: all names are written differently.

    Args:
        path: path of the file.
        columns: list of names, the first row.
        made_by: dict for JSON, everything that the rows depend on besides their
            sources.
        batches: list of lists of names, the first cells of the rows.
        sources: list with one string per batch that identifies its sources.
        overwrite: whether to start over if the file was made differently.

    Attributes:
        batches: number of batches in the file.

    Raises:
        ValueError: if the file was made differently, or contains other rows.
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
        # Before the new sources are recorded for the rows.
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
        """The sources of the existing rows."""
        # An empty file is left by a process that was killed before it began.
        if not self._path.exists() or self._path.stat().st_size == 0:
            return []
        begun = _disk.read_json(progress, {})
        if "sources" not in begun:
            raise ValueError(
                f"'{self._path}' exists, but no '{progress.name}' that records how it "
                "was made. Pass another file, or `--overwrite` to replace it."
            )
        changes = "; ".join(
            f"{key} {begun['made_by'].get(key)!r}, now {value!r}"
            for key, value in made_by.items()
            if begun["made_by"].get(key) != value
        )
        if changes:
            raise ValueError(
                f"'{self._path}' was started differently ({changes}). Run it as "
                "before to resume, pass another file, or `--overwrite` to start over."
            )
        return begun["sources"]

    def _kept(self, columns, batches, sources, before):
        """Number of batches to keep, and where they end."""
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
                    "it, or pass `--overwrite` to start over."
                )
            count, end = count + 1, written[-1][1]
        return count, end


def _whole_rows(path, columns):
    """(cells, position after them) of each row, up to the first incomplete one."""
    with open(path, "rb") as file, contextlib.suppress(csv.Error):
        lines = (line.decode("utf-8", "replace") for line in file)
        whole = (line for line in lines if line.endswith("\n"))
        for row in csv.reader(whole, strict=True):
            if len(row) != columns:
                return
            yield row, file.tell()


def _line(cells):
    stream = io.StringIO()
    # With this terminator, Python also quotes a carriage return in a name.
    name, *others = cells
    cells = [_readable(name), *map(_utf8, others)]
    csv.writer(stream, lineterminator="\r\n").writerow(cells)
    return stream.getvalue().removesuffix("\r\n") + "\n"


def _readable(name):
    """A file name as unique UTF-8 text, whatever its bytes are."""
    return _utf8(re.sub(r"\\(?=x[0-9a-f]{2})", r"\\x5c", name))


def _utf8(text):
    return os.fsencode(text).decode("utf-8", "backslashreplace")
