"""A CSV file with one row per step, which a resumed training continues."""

import csv
import itertools

from keras_delta import _disk


class StepTable:
    """A CSV file with a column `step`.

    Args:
        path: `pathlib.Path` of the file.

    Attributes:
        opened: whether `open` has been called.
    """

    def __init__(self, path):
        self._path = path
        self._columns = None
        self.opened = False

    def open(self, step, resumed):
        """Make the file end before a given step.

        Args:
            step: the next step.
            resumed: whether to drop the rows from that step on. Otherwise, a file
                with such rows belongs to another training and is renamed.
        """
        self.opened = True
        if not self._path.exists():
            return
        with open(self._path, newline="") as file:
            columns, *rows = list(csv.reader(file)) or [[]]
        at = columns.index("step") if "step" in columns else None
        # A crash may have cut off the last row.
        whole = [row for row in rows if len(row) == len(columns)]
        if at is None or not all(row[at].isdecimal() for row in whole):
            self._put_aside()
            return
        before = [row for row in whole if int(row[at]) < step]
        if len(before) < len(whole) and not resumed:
            self._put_aside()
            return
        self._columns = columns
        if len(before) < len(rows):
            with (
                _disk.replace_file(self._path) as temporary,
                open(temporary, "w", newline="") as file,
            ):
                csv.writer(file).writerows([columns, *before])

    def append(self, row):
        """Write a row, a dict from column to number, and close the file again."""
        columns = list(row)
        if self._columns not in (None, columns):  # another regularizer, other taps
            self._put_aside()
        header = [columns] if self._columns is None else []
        self._columns = columns
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", newline="") as file:
            csv.writer(file).writerows([*header, row.values()])

    def _put_aside(self):
        stem, suffix = self._path.stem, self._path.suffix
        names = (f"{stem}-{i}{suffix}" for i in itertools.count(1))
        paths = map(self._path.with_name, names)
        self._path.rename(next(path for path in paths if not path.exists()))
        self._columns = None
