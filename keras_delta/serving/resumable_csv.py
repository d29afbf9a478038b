"""A CSV file that goes on after a kill at any moment, the same byte for byte."""

import contextlib
import csv
import hashlib
import io
import json
import os
from pathlib import Path

from keras_delta import _disk

SUFFIX = ".progress"


class ResumableCsv:
    """A CSV file written in batches, each of which is whole or not there.

    Beside it, `PATH.progress` holds by what it was made, and a line for each batch:
    where it ends, the digest of its bytes and what it was made from. A batch without
    such a line, or of other sources than now, is cut off with all that follows, and
    written again.

    Text is UTF-8. File names of other bytes stay as they are (`surrogateescape`).

    Args:
        path: of the file.
        columns: list of names, the first row.
        made_by: dict of what JSON takes, all that the rows depend on besides their
            sources. What is in `only_shown` may differ.
        sources: list of a string for each batch, what it is made from.
        overwrite: whether to begin anew where the file was made by something else.
        only_shown: keys of `made_by` that are there for people.

    Attributes:
        batches: number of the batches that are there.

    Raises:
        ValueError: where something else made the file, or it was edited.
        OSError: where it cannot be written.
    """

    def __init__(self, path, columns, made_by, sources, overwrite=False, only_shown=()):
        self._path = Path(path)
        self._progress = Path(f"{path}{SUFFIX}")
        # Names that are not UTF-8 change on their way through JSON's text and back.
        made_by = json.loads(json.dumps(made_by))
        sources = [_digest(" ".join(columns).encode()), *sources]
        ours = self._checked(made_by, overwrite, only_shown)
        rows_end, lines_end, count = 0, 0, 0
        if ours:
            rows_end, lines_end, count = self._kept(sources, overwrite)
        else:
            with _disk.replace_file(self._progress) as temporary:
                temporary.write_text(f"{json.dumps(made_by)}\n", "utf-8")
            lines_end = self._progress.stat().st_size
        for file, end in ((self._path, rows_end), (self._progress, lines_end)):
            with open(file, "ab") as opened:
                opened.truncate(end)
        self._end, self._sources, self.batches = rows_end, sources[count:], count - 1
        if count == 0:
            self.append([columns])

    def append(self, rows):
        """Write the next batch: a list of lists of cells."""
        content = "".join(map(_line, rows)).encode("utf-8", "surrogateescape")
        self._end += len(content)
        entry = {
            "end": self._end,
            "rows": _digest(content),
            "made_from": self._sources.pop(0),
        }
        with open(self._path, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # After the rows: without this line they do not count.
        with open(self._progress, "ab") as file:
            file.write(f"{json.dumps(entry)}\n".encode())
        self.batches += 1

    def _checked(self, made_by, overwrite, only_shown):
        """Whether there is a file of ours to go on with."""
        found = None
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(self._progress.read_bytes().partition(b"\n")[0])
        if found is None:
            # One of no bytes is left by a process that was killed before it began.
            there = self._path.exists() and self._path.stat().st_size > 0
            if there and not overwrite:
                raise ValueError(
                    f"'{self._path}' exists, and there is no '{self._progress.name}' "
                    "that says how it was made. Pass another file, or `--overwrite` "
                    "to replace it."
                )
            return False
        differing = [
            key
            for key in {**found, **made_by}
            if key not in only_shown and found.get(key) != made_by.get(key)
        ]
        if differing and not overwrite:
            shown = [key for key in made_by if key in (*differing, *only_shown)]
            changes = "; ".join(
                f"{key} {found.get(key)!r}, now {made_by.get(key)!r}"
                for key in shown
                if found.get(key) != made_by.get(key)
            )
            raise ValueError(
                f"'{self._path}' was begun in another way ({changes}). Run it as "
                "before to go on, pass another file, or `--overwrite` to begin anew."
            )
        return not differing and self._path.exists()

    def _kept(self, sources, overwrite):
        """Ends of what counts in both _disk, and the number of batches."""
        first, *lines = self._progress.read_bytes().splitlines(keepends=True)
        rows_end, lines_end, count = 0, len(first), 0
        with open(self._path, "rb") as file:
            for line, made_from in zip(lines, sources, strict=False):
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                content = file.read(entry["end"] - rows_end)
                if rows_end + len(content) < entry["end"]:
                    break
                if _digest(content) != entry["rows"]:
                    if overwrite:
                        return 0, len(first), 0
                    raise ValueError(
                        f"'{self._path}' was edited since it was written. Rename it to "
                        "keep it, or pass `--overwrite` to begin anew."
                    )
                if made_from != entry["made_from"]:
                    break
                rows_end, lines_end = entry["end"], lines_end + len(line)
                count += 1
        return rows_end, lines_end, count


def _line(cells):
    stream = io.StringIO()
    # With this terminator, Python quotes a carriage return in a name, too.
    csv.writer(stream, lineterminator="\r\n").writerow(cells)
    return stream.getvalue().removesuffix("\r\n") + "\n"


def _digest(content):
    return hashlib.sha256(content).hexdigest()
