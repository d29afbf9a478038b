"""Rows by key, in an SQLite file used by one process."""

import contextlib
import json
import sqlite3
import zlib

from keras_delta import _disk
from keras_delta._errors import warn

PAGE = 2**16  # bytes: rows of megabytes are read twice as fast as with SQLite's 4,096
TABLES = """
    CREATE TABLE IF NOT EXISTS description (text TEXT);
    CREATE TABLE IF NOT EXISTS maps (key BLOB PRIMARY KEY, checksum INTEGER, row BLOB);
"""
REMEDY = "Pass another `directory`, or delete the folder if you no longer need it."


class MapFile:
    """Rows of bytes by key, and a description of them.

    A process may be killed at any time: SQLite's journal restores the state before the
    last transaction. Writes do not wait for the disk, so after a power failure anything
    may be missing or wrong; a checksum in each row detects this.

    Args:
        folder: folder of the file, created if necessary and locked by this process;
            None for a temporary file that is deleted with the process.

    Attributes:
        checked: dict, key -> whether its row is known to be valid; has all keys.
    """

    def __init__(self, folder=None):
        self._path = "" if folder is None else str(folder / "maps.sqlite")
        with contextlib.ExitStack() as stack:
            if folder is not None:
                stack.enter_context(_occupied(folder))
            try:
                # From any thread: `Store` lets in one at a time.
                self._database = sqlite3.connect(self._path, check_same_thread=False)
                stack.callback(self._database.close)
                self._open_tables()
            except (sqlite3.Error, ValueError) as error:
                raise ValueError(
                    f"'{self._path}' cannot be used: it is damaged or another kind of "
                    f"file ({error}). {REMEDY}"
                ) from error
            self._stack = stack.pop_all()

    def _open_tables(self):
        execute = self._database.execute
        execute(f"PRAGMA page_size = {PAGE}")
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA synchronous = OFF")
        self._database.executescript(TABLES)
        texts = execute("SELECT text FROM description").fetchall()
        self._description = json.loads(texts[0][0]) if texts else None
        self.checked = {key: False for (key,) in execute("SELECT key FROM maps")}

    def __str__(self):
        return f"'{self._path}'" if self._path else "a temporary file"

    @property
    def description(self):
        """The description, a dict; None until it is set."""
        return self._description

    @description.setter
    def description(self, value):
        self._description = value
        with self._database as database:
            database.execute("INSERT INTO description VALUES (?)", [json.dumps(value)])

    def read(self, key):
        """The row of a key in `checked`; None for a damaged one, which is dropped."""
        query = "SELECT checksum, row FROM maps WHERE key = ?"
        rows = self._database.execute(query, [key]).fetchall()
        if rows and (self.checked[key] or _checksum(key, rows[0][1]) == rows[0][0]):
            self.checked[key] = True
            return rows[0][1]
        del self.checked[key]
        return None

    def write(self, rows):
        """Add a dict key -> contiguous array, atomically."""
        with self._database as database:
            database.executemany(
                "INSERT OR REPLACE INTO maps VALUES (?, ?, ?)",
                ((key, _checksum(key, row), row) for key, row in rows.items()),
            )
        self.checked.update(dict.fromkeys(rows, True))

    def close(self):
        """Release the file for the next process."""
        self._stack.close()


@contextlib.contextmanager
def _occupied(folder):
    _disk.check_writable("directory", folder, size=PAGE)
    remedy = (
        "Two runs cannot write to the same cache at once: pass another `directory`, or "
        "wait until that process has ended."
    )
    with _disk.occupy(folder / "lock", f"The folder '{folder}'", remedy):
        if (folder / "maps.data").exists():
            warn(
                f"'{folder}' has source maps of an earlier version of keras_delta, "
                "which are no longer read: they are recomputed. Delete "
                "maps.data, maps.index and meta.json to free space."
            )
        yield


def _checksum(key, row):
    return zlib.crc32(row, zlib.crc32(key))
