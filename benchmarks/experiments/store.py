"""`ResultStore`: what is known of the cells of an experiment, in a folder."""

import contextlib
import json
import os
from pathlib import Path

import keras
import tensorflow as tf

from keras_delta import _disk
from keras_delta._errors import invalid, import_optional, warn
from experiments import rows_file
from keras_delta.tuning.status import read

OWN = ("cells", "data.json", "locks", "logs", "once", "run.lock", "tables")
FORMAT = 2  # of the records; a new one where old ones would be misread


class ResultStore:
    """Results by the key of their cell: one file each, written as a whole.

    Any number of processes may read and write; whoever is killed, when and however,
    every file is a whole one.

    Args:
        folder: path; made if there is none.
        any_version: whether to go on with results of other versions of the packages.

    Raises:
        TypeError: for something else than a path.
        ValueError: for a folder of another version, or of something else, or that
            cannot be written.
    """

    def __init__(self, folder, any_version=False):
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(invalid("folder", "the path of a folder", folder))
        self.folder = Path(folder).expanduser()
        self.once = self.folder / "once"
        self._cells = self.folder / "cells"
        self._known, self._damaged = {}, set()
        self._any_version = any_version
        try:
            self._refuse_other_folders()
            with _disk.lock(self.folder / "locks" / "store"):
                self._claim(any_version)
        except OSError as e:
            expected = "a folder that can be written"
            raise ValueError(invalid("folder", expected, str(folder), f"{e}.")) from e

    def _refuse_other_folders(self):
        """Refuse a folder with something else in it."""
        if not self.folder.is_dir() or (self.folder / "store.json").exists():
            return
        there = sorted(p.name for p in self.folder.iterdir() if p.name[0] != ".")
        if others := [name for name in there if name not in OWN]:
            raise ValueError(
                f"The folder {self.folder} is no result store: it holds "
                f"{', '.join(others[:5])} and no store.json. Choose an empty folder."
            )

    def _claim(self, any_version):
        path, now = self.folder / "store.json", versions()
        if not path.exists():
            _write(path, {"format": FORMAT, "versions": now})
            return
        found = read(path)
        if not isinstance(found, dict) or "format" not in found:
            raise ValueError(
                f"{path} is damaged. If the results beside it are of these versions "
                "of keras_delta, Keras and TensorFlow, delete that file alone; else "
                "choose another folder."
            )
        if found["format"] != FORMAT:
            raise ValueError(
                f"The result store {self.folder} was written in format "
                f"{found['format']}; this version reads format {FORMAT}. Choose "
                "another folder."
            )
        there = found.get("versions", {})
        if there != now and not any_version:
            differing = ", ".join(
                f"{k} {there.get(k)} there and {now.get(k)} now"
                for k in sorted({**there, **now})
                if there.get(k) != now.get(k)
            )
            raise ValueError(
                f"The results in {self.folder} are of another version ({differing}). "
                "Choose another folder for new ones, or go on nonetheless with "
                "any_version=True (on the command line --any-version)."
            )

    def get(self, cell):
        """The record of a cell, a dict; None where there is none.

        A file that is damaged counts as none, with a warning, so that the cell is
        trained again.
        """
        key = cell if isinstance(cell, str) else cell.key
        if key not in self._known:
            path = self._cells / f"{key}.json"
            try:
                record = json.loads(path.read_text("utf-8"))
            except FileNotFoundError:
                return None
            except (OSError, ValueError):
                record = None
            whole = isinstance(record, dict) and "settings" in record
            if not whole or not record.keys() & {"accuracy", "failed"}:
                if key not in self._damaged:
                    self._damaged.add(key)
                    warn(f"{path} is damaged: its cell counts as not trained.")
                return None
            self._known[key] = record
        return self._known[key]

    def __contains__(self, cell):
        return self.get(cell) is not None

    def __len__(self):
        return sum(1 for _ in self._cells.glob("[!.]*.json"))

    def put(self, cell, record):
        """Keep the record of a cell."""
        record = {"settings": cell.settings(), "versions": versions(), **record}
        _write(self._cells / f"{cell.key}.json", record)
        self._known[cell.key] = record

    def forget(self, cell):
        """Remove the record of a cell."""
        (self._cells / f"{cell.key}.json").unlink(missing_ok=True)
        self._known.pop(cell.key, None)

    def records(self):
        """All records, a dict by key."""
        keys = sorted(p.stem for p in self._cells.glob("[!.]*.json"))
        return {k: r for k in keys if (r := self.get(k)) is not None}

    def same_data(self, name, digest):
        """Whether the results of a data set are of these images; refuse others.

        Args:
            name: of the data set.
            digest: of its images.

        Returns:
            True, or False where the store knows nothing of the data set.

        Raises:
            ValueError: for another digest than that of `keep_data`.
        """
        known = (read(self.folder / "data.json") or {}).get(name)
        if known not in (None, digest):
            raise ValueError(
                f"The results of {name} in {self.folder} are of other images than "
                "those that are there now. Choose another folder for new results, or "
                "bring the old images back."
            )
        return known is not None

    def keep_data(self, name, digest):
        """Note which images the results of a data set are of."""
        path = self.folder / "data.json"
        with _disk.lock(self.folder / "locks" / "data"):
            _write(path, {**(read(path) or {}), name: digest})

    @contextlib.contextmanager
    def claimed(self, cell):
        """Try to be the only process that trains a cell; gives whether it worked."""
        with _disk.lock(self.folder / "locks" / cell.key, wait=False) as mine:
            yield mine

    @contextlib.contextmanager
    def alone(self):
        """Refuse a second run on the same store.

        Raises:
            RuntimeError: if another run holds it; names its process.
        """
        path = self.folder / "run.lock"
        with _disk.lock(path, wait=False) as mine:
            if not mine:
                raise RuntimeError(
                    f"Another run (process {path.read_text() or 'unknown'}) works on "
                    f"{self.folder}. Wait for it, stop it, or choose another folder."
                )
            path.write_text(str(os.getpid()))
            yield

    def frame(self, cells):
        """The results of some cells as a `pandas.DataFrame`, a row each.

        Cells that are not done, or failed, have no row.

        Args:
            cells: list of `Cell`; their `factor` and `label` become columns.
        """
        pandas = import_optional("pandas", "A table of results", "benchmarks")
        rows = []
        for cell in cells:
            record = self.get(cell)
            if record is None or "failed" in record:
                continue
            rows.append(rows_file.row(cell, record))
        return pandas.DataFrame(rows, columns=rows_file.columns())

    def failed(self, cells):
        """List of (cell, reason) of the cells that failed."""
        found = [(c, self.get(c)) for c in cells]
        return [(c, r["failed"]) for c, r in found if r and "failed" in r]

    def save(self, cells, stem):
        """Write the rows of some cells; see `rows_file.save`."""
        return rows_file.save(self.frame(cells), stem)

    def take(self, path, cells):
        """Take over results of some cells from a file that `save` has written.

        Args:
            path: of the CSV file.
            cells: list of `Cell`; rows of others, of cells that are done, and (but for
                `any_version`) of other versions of the packages are passed over.

        Returns:
            How many were taken.
        """
        known = rows_file.read(path)
        new = [c for c in cells if c.key in known and c not in self]
        if not self._any_version:
            new = [c for c in new if known[c.key].get("versions") == versions()]
        for cell in new:
            self.put(cell, known[cell.key])
        return len(new)


def versions():
    """Versions of the packages that results depend on."""
    from keras_delta import __version__

    return {
        "keras_delta": __version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }


def _write(path, value):
    with _disk.replace_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1), "utf-8")
