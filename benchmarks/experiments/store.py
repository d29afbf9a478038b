"""`ResultStore`: what is known of the cells of an experiment, in a folder."""

import contextlib
import os

import keras
import tensorflow as tf

from keras_delta import _arguments, _disk
from keras_delta._errors import import_optional
from keras_delta._runs.store import Records
from experiments import rows_file

OWN = ("cells", "data.json", "locks", "logs", "once", "run.lock", "tables")
SHORT = 12  # characters of a digest in rows
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
        self.folder = _arguments.folder("folder", folder).expanduser()
        self.once = self.folder / "once"
        cells, locks = self.folder / "cells", self.folder / "locks"
        self._cells = Records(cells, locks, is_whole=_is_record)
        self._any_version = any_version
        self._refuse_other_folders()
        _disk.check_writable("folder", self.folder)
        with _disk.lock(self.folder / "locks" / "store"):
            self._claim(any_version)

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
            _disk.write_json(path, {"format": FORMAT, "versions": now})
            return
        found = _disk.read_json(path)
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
        """The record of a cell, a dict; None where there is none, or a damaged one."""
        return self._cells.get(cell if isinstance(cell, str) else cell.key)

    def __contains__(self, cell):
        return self.get(cell) is not None

    def __len__(self):
        return len(self._cells.names())

    def put(self, cell, record):
        """Keep the record of a cell."""
        record = {"settings": cell.settings(), "versions": versions(), **record}
        self._cells.put(cell.key, record, indent=1)

    def forget(self, cell):
        """Remove the record of a cell."""
        self._cells.forget(cell.key)

    def claimed(self, cell):
        """Context: whether this process alone trains a cell, without waiting."""
        return self._cells.claim(cell.key)

    def records(self):
        """All records, a dict by key."""
        return {k: r for k in self._cells.names() if (r := self.get(k)) is not None}

    def same_data(self, name, digest):
        """Whether the results of a data set are of these images; refuse others."""
        known = _disk.read_json(self.folder / "data.json", {}).get(name)
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
            known = _disk.read_json(path, {})
            _disk.write_json(path, {**known, name: digest})

    def images(self):
        """Which images the results are of: dict data set -> short digest."""
        known = _disk.read_json(self.folder / "data.json", {})
        return {name: digest[:SHORT] for name, digest in known.items()}

    @contextlib.contextmanager
    def alone(self):
        """Refuse a second run on the same store."""
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

        Cells that are not done, or failed, have no row. The column `data` is a digest
        of the data set's images; None if they are not known.
        """
        pandas = import_optional("pandas", "A table of results", "benchmarks")
        rows, images = [], self.images()
        for cell in cells:
            record = self.get(cell)
            if record is None or "failed" in record:
                continue
            rows.append(rows_file.row(cell, record, images.get(cell.dataset)))
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

        Returns:
            How many were taken, and how many left because they are of other images
            than the store's, or of unknown ones.
        """
        known, images = rows_file.read(path), self.images()
        new = [c for c in cells if c.key in known and c not in self]
        if not self._any_version:
            new = [c for c in new if known[c.key][0].get("versions") == versions()]
        taken = 0
        for cell in new:
            record, data = known[cell.key]
            if data is not None and data == images.get(cell.dataset):
                self.put(cell, record)
                taken += 1
        return taken, len(new) - taken


def versions():
    """Versions of the packages that results depend on."""
    from keras_delta import __version__

    return {
        "keras_delta": __version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }


def _is_record(value):
    is_dict = isinstance(value, dict) and "settings" in value
    return is_dict and bool(value.keys() & {"accuracy", "failed"})
