"""The cached maps: in memory while there is room, otherwise in a file."""

import contextlib
import math
import sqlite3
import threading
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_delta._errors import warn
from keras_delta._network.networks import OUTPUTS
from keras_delta.caching.map_file import REMEDY, MapFile

FORMAT = "keras_delta.caching/2"


class Store:
    """Maps by key, for several threads at once; arguments as for `SourceMapCache`.

    The maps of a sample form one row: the bytes of all taps, concatenated. Rows are
    kept in memory until the budget is used up, and never evicted. With a directory, all
    rows are also in its file, and are kept in memory once read. Without one, rows that
    do not fit go to a temporary file.

    Attributes:
        dtypes: list of the taps' types: the source's predictions are kept in float32,
            as float16 would make small probabilities 0.
        shapes: `spec` without None; None until the first maps have determined the
            sizes that it leaves open.
        memory_bytes: bytes of the rows in memory.
    """

    def __init__(self, fingerprint, spec, dtype, budget, directory=None):
        self.fingerprint, self.spec, self.dtype = fingerprint, spec, dtype
        self.dtypes = ["float32" if tap == OUTPUTS else dtype for tap in spec]
        self.budget, self.memory_bytes, self._rows = budget, 0, {}
        self._directory, self._file = directory, None
        self._lock = threading.Lock()
        settled = all(None not in shape for shape in spec.values())
        self.shapes = spec if settled else None
        self.open()

    def open(self):
        """Open the file; rows in memory are kept."""
        self._failed = False
        if self._directory is None:
            self._file = self._file or MapFile()
            return
        self._file = MapFile(Path(self._directory, self.fingerprint))
        try:
            self._compare_with_file()
        except BaseException:
            self.close()
            raise

    def _compare_with_file(self):
        there = self._file.description
        if there is None:
            if self.shapes is not None:
                self._file.description = self._describe(self.shapes)
            return
        shapes = {tap: tuple(shape) for tap, shape in there.get("taps", ())}
        if there != self._describe(shapes) or not _fit(shapes, self.spec):
            raise ValueError(
                f"The cache {self._file} was made for something else: {there} before, "
                f"{self._describe(self.spec)} now. {REMEDY}"
            )
        if shapes != self.shapes:  # settled by others since
            self.shapes, self._rows, self.memory_bytes = shapes, {}, 0

    def _describe(self, shapes):
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "taps": [[tap, list(shape)] for tap, shape in shapes.items()],
        }

    def close(self, keep=True):
        """Release the directory and, unless `keep`, all rows."""
        with self._lock:
            if self._file is not None and (self._directory is not None or not keep):
                self._file.close()
                self._file = None
            if not keep:
                self._rows, self.memory_bytes = {}, 0

    def __len__(self):
        with self._lock:
            filed = {} if self._file is None else self._file.checked
            return len(self._rows.keys() | filed.keys())

    @property
    def row_bytes(self):
        """Bytes of a sample's maps; 0 while unknown."""
        return 0 if self.shapes is None else sum(self._sizes(self.shapes))

    def _sizes(self, shapes):
        """Bytes of each tap's map."""
        return [
            math.prod(shape) * np.dtype(dtype).itemsize
            for shape, dtype in zip(shapes.values(), self.dtypes, strict=True)
        ]

    def find(self, keys):
        """Look up a list of keys.

        Returns:
            List of arrays `(B, ...)`, one per tap, and the positions of the missing
            samples, where the arrays are meaningless. Sizes that are still unknown are
            1.
        """
        with self._lock:
            rows = [self._row(key) for key in keys]
            shapes = self.shapes
        missing = [i for i, row in enumerate(rows) if row is None]
        if shapes is None:
            shapes = {t: [d or 1 for d in s] for t, s in self.spec.items()}
        maps, start = [], 0
        sizes = self._sizes(shapes)
        for shape, size, dtype in zip(shapes.values(), sizes, self.dtypes, strict=True):
            stop = start + size
            flat = np.empty((len(keys), size), "uint8")
            for i, row in enumerate(rows):
                if row is not None:
                    flat[i] = row[start:stop]
            maps.append(flat.view(dtype).reshape(len(keys), *shape))
            start = stop
        return maps, np.array(missing, "int32")

    def _row(self, key):
        row = self._rows.get(key)
        if row is None and key in self._file.checked:
            content = None
            with self._or_without_file():
                content = self._file.read(key)
            if content is not None:
                row = np.frombuffer(content, "uint8")
                if self._directory is not None:
                    self._remember(key, row)
        return row

    def _remember(self, key, row):
        """Keep a row in memory; returns whether there was room."""
        if self.memory_bytes + row.nbytes > self.budget:
            return False
        self._rows[key] = row
        self.memory_bytes += row.nbytes
        return True

    def keep(self, keys, maps):
        """Store maps, an array `(B, ...)` per tap, except for existing keys.

        Raises:
            ValueError: if the maps have other sizes than earlier ones.
        """
        with self._lock:
            self._settle([m.shape[1:] for m in maps])
            new = {
                key: np.concatenate([m[i].ravel().view("uint8") for m in maps])
                for i, key in enumerate(keys)
                if key not in self._rows and key not in self._file.checked
            }
            over = {k: row for k, row in new.items() if not self._remember(k, row)}
            rows = over if self._directory is None else new
            if rows and not self._failed:
                with self._or_without_file():
                    self._file.write(rows)

    def _settle(self, shapes):
        now = dict(zip(self.spec, map(tuple, shapes), strict=True))
        expected = self.spec if self.shapes is None else self.shapes
        if not _fit(now, expected):
            raise ValueError(
                "All source maps in a cache have one size, and so must the images. "
                f"Expected maps of {expected}. Received: {now}. Resize the images to "
                'the same size, or train with `source_maps="compute"`.'
            )
        if self.shapes is None:
            self.shapes = now
            with self._or_without_file():
                self._file.description = self._describe(now)

    @contextlib.contextmanager
    def _or_without_file(self):
        """Continue without the file after an error in it, with one warning."""
        try:
            yield
        except sqlite3.Error as error:
            if self._failed:
                return
            self._failed = True
            warn(
                f"Source maps can no longer be stored in {self._file} ({error}). "
                "Training continues and recomputes maps that do not fit into memory "
                "each time. Free disk space, delete the file if it is damaged, or "
                "pass another `SourceMapCache(directory=...)` next time."
            )


def _fit(shapes, spec):
    """Whether shapes match a spec, in which None means any size."""
    return list(shapes) == list(spec) and all(
        tf.TensorShape(spec[tap]).is_compatible_with(shape)
        for tap, shape in shapes.items()
    )
