"""The maps that are kept: in memory while there is room, else in a file."""

import math
import tempfile
import threading

import numpy as np

from keras_delta._errors import warn
from keras_delta.caching.folder import Folder, fits
from keras_delta.caching.records import RecordFile


class Store:
    """Maps under keys, for several threads at once.

    The maps of a sample are one row: those of all taps behind one another. Rows
    stay in memory until the budget is used up; nothing is thrown out for others.
    With a directory all rows are in its file as well, and come into memory when
    they are read. Without one, those that have no room go to a temporary file
    without a name, which vanishes with the process.

    Args:
        fingerprint: name of the source.
        spec: dict tap -> shape of a sample's map; None where a size is open, to be
            settled by the first maps.
        dtype: `"float16"` or `"float32"`.
        budget: bytes of maps in memory.
        directory: see `SourceMapCache`.

    Attributes:
        spec: as given; `shapes` is the same without None, or None by itself until
            it is settled.
        memory_bytes: bytes of the rows in memory.
    """

    def __init__(self, fingerprint, spec, dtype, budget, directory=None):
        self.fingerprint, self.spec, self.dtype = fingerprint, spec, dtype
        self.budget, self.memory_bytes = budget, 0
        self.shapes = None
        self._directory = directory
        self._lock = threading.Lock()
        self._rows, self._file, self._folder = {}, None, None
        self._failed = False
        self.open()

    def open(self):
        """Open the folder, if there is one; rows in memory stay."""
        if self._directory is None:
            if self.shapes is None and _settled(self.spec):
                self.shapes = self.spec
            return
        self._failed = False
        self._folder = Folder(self._directory, self.fingerprint)
        try:
            found = self._folder.shapes(self.fingerprint, self.dtype, self.spec)
            if found is None and (self.shapes or _settled(self.spec)):
                found = self.shapes or self.spec
                self._folder.write_meta(self.fingerprint, self.dtype, found)
            if self.shapes not in (None, found):  # others were here in between
                self._rows, self.memory_bytes = {}, 0
            self.shapes = found
            if found is not None:
                self._file = self._folder.records(self.row_bytes)
        except BaseException:
            self.close()
            raise

    def close(self):
        """Close files and folder; what is in memory alone stays there."""
        with self._lock:
            if self._file is not None and self._directory is not None:
                self._file.close()
                self._file = None
            if self._folder is not None:
                self._folder.close()
                self._folder = None

    def drop(self):
        """Close, and forget every row."""
        self.close()
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._rows, self.memory_bytes = {}, 0

    def __len__(self):
        with self._lock:
            if self._file is None:
                return len(self._rows)
            return len(self._rows.keys() | self._file.keys())

    @property
    def row_bytes(self):
        """Bytes of a sample's maps; 0 as long as that is open."""
        if self.shapes is None:
            return 0
        return self._elements * np.dtype(self.dtype).itemsize

    @property
    def _elements(self):
        return sum(math.prod(shape) for shape in self.shapes.values())

    def find(self, keys):
        """Look samples up.

        Args:
            keys: list of bytes.

        Returns:
            List of arrays `(B, ...)`, one a tap, and the positions of the samples
            that are missing; there, the arrays hold nothing of meaning.
        """
        with self._lock:
            rows = [self._row(key) for key in keys]
            shapes = self.shapes
        missing = [i for i, row in enumerate(rows) if row is None]
        if shapes is None:
            # Nothing was kept yet, so nobody looks at the sizes.
            shapes = {t: [d or 1 for d in s] for t, s in self.spec.items()}
        maps, start = [], 0
        for shape in shapes.values():
            stop = start + math.prod(shape)
            found = np.empty((len(keys), stop - start), self.dtype)
            for i, row in enumerate(rows):
                if row is not None:
                    found[i] = row[start:stop]
            maps.append(found.reshape(len(keys), *shape))
            start = stop
        return maps, np.array(missing, "int32")

    def _row(self, key):
        row = self._rows.get(key)
        if row is None and self._file is not None and key in self._file:
            row = np.empty(self._elements, self.dtype)
            if not self._file.read_into(key, row):
                return None
            if self._directory is not None and self._room:
                self._remember(key, row)
        return row

    @property
    def _room(self):
        return (self.budget - self.memory_bytes) // self.row_bytes

    def _remember(self, key, row):
        self._rows[key] = row
        self.memory_bytes += row.nbytes

    def keep(self, keys, maps):
        """Keep maps; those of a key that is there already are passed over.

        Args:
            keys: list of bytes.
            maps: list of arrays `(B, ...)`, one a tap, of this store's dtype.

        Raises:
            ValueError: for maps of other sizes than those before.
        """
        with self._lock:
            self._settle([m.shape[1:] for m in maps])
            filed = () if self._file is None else self._file
            new = {}
            for i, key in enumerate(keys):
                if key not in self._rows and key not in filed:
                    new.setdefault(key, i)
            new = list(new.items())
            fitting = min(len(new), self._room)
            for key, i in new[:fitting]:
                self._remember(key, self._block([i], maps)[0])
            self._append(new[fitting:] if self._directory is None else new, maps)

    def _block(self, chosen, maps):
        """Rows of the chosen samples."""
        block = np.empty((len(chosen), self._elements), self.dtype)
        start = 0
        for array in maps:
            flat = array.reshape(len(array), -1)
            stop = start + flat.shape[1]
            for row, i in zip(block, chosen, strict=True):
                row[start:stop] = flat[i]
            start = stop
        return block

    def _append(self, new, maps):
        if not new or self._failed:
            return
        try:
            if self._file is None:
                # Closed with the store; Python has opened it without a name.
                temporary = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                self._file = RecordFile(temporary, None, self.row_bytes)
            keys, chosen = zip(*new, strict=True)
            self._file.append(keys, self._block(chosen, maps))
        except OSError as e:
            self._fail(e)

    def _settle(self, shapes):
        now = dict(zip(self.spec, map(tuple, shapes), strict=True))
        expected = self.spec if self.shapes is None else self.shapes
        if not fits(now, expected):
            raise ValueError(
                "All source maps in a cache have one size, and so must the images. "
                f"Expected maps of {expected}. Received: {now}. Resize the images to "
                "one size, or leave out `source_maps`."
            )
        if self.shapes is None:
            self.shapes = now
            if self._folder is not None:
                try:
                    self._folder.write_meta(self.fingerprint, self.dtype, now)
                    self._file = self._folder.records(self.row_bytes)
                except OSError as e:
                    self._fail(e)

    def _fail(self, error):
        self._failed = True
        where = "a temporary file"
        if self._directory is not None:
            where = f"'{self._folder.path}'"
        warn(
            f"Source maps cannot be written to {where} any more ({error}). Training "
            "goes on, and computes those that have no room in memory each time. "
            "Make room on the disk, or pass another "
            "`SourceMapCache(directory=...)` next time."
        )


def _settled(spec):
    return all(None not in shape for shape in spec.values())
