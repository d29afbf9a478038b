"""What is known of the trainings of a search: files that no trial owns."""

import hashlib
import json
import time

import numpy as np

from keras_delta import _disk
from keras_delta.tuning.status import read, write


class Record:
    """The folds of one cell, under a hash of its hyperparameters.

    Whichever trial has these values, in whichever process, finds what was trained
    before. Each file is replaced as a whole.

    Args:
        folder: `Path` of all cells' folders.
        values: dict of the cell's hyperparameters.
    """

    def __init__(self, folder, values):
        text = json.dumps(values, sort_keys=True, default=_plain)
        name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._folder = folder / name
        self._values = values

    def locked(self):
        """Context in which no other process trains this cell."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if read(self._folder / "values.json") is None:  # for people who look
            write(self._folder / "values.json", self._values)
        return _disk.lock(self._folder / "lock")

    @property
    def folds(self):
        """Dict fold -> dict with `metrics`, `seconds` and `epochs`."""
        found = {}
        for path in sorted(self._folder.glob("fold_*.json")):
            content = read(path)
            if content is not None:
                found[int(path.stem.removeprefix("fold_"))] = content
        return dict(sorted(found.items()))

    def add(self, fold, metrics, seconds, epochs):
        """Keep the result of a training."""
        write(
            self._folder / f"fold_{fold}.json",
            {"metrics": metrics, "seconds": seconds, "epochs": epochs},
        )

    @property
    def end(self):
        """How the cell ended without all of its folds: a dict, empty if it did not.

        `discarded` is an estimate of its score, `failed` a message.
        """
        return read(self._folder / "end.json") or {}

    def ended(self, **how):
        """Keep how the cell ended without all of its folds."""
        write(self._folder / "end.json", {**how, "at": time.time()})


def _plain(value):
    """NumPy's numbers are those of Python."""
    return value.item() if hasattr(value, "item") else str(value)


def mean_metrics(folds):
    """Means of all metrics over folds: dict name -> float."""
    names = dict.fromkeys(n for fold in folds.values() for n in fold["metrics"])
    return {
        name: float(np.mean([fold["metrics"][name] for fold in folds.values()]))
        for name in names
    }
