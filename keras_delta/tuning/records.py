"""Records of the trainings of a search: files that belong to no single trial."""

import time

import numpy as np

from keras_delta._runs.store import Records, digest


class Record:
    """The folds of one cell, stored under a hash of its hyperparameters.

    Any trial with these values, in any process, can use the finished trainings.
    """

    def __init__(self, folder, values):
        self._records = Records(folder / digest(values))
        self._values = values

    def locked(self):
        """Context in which no other process trains this cell."""
        if self._records.get("values") is None:  # for human readers
            self._records.put("values", self._values)
        return self._records.claim("lock", wait=True)

    @property
    def folds(self):
        """Dict fold -> dict with `metrics`, `seconds` and `epochs`."""
        names = [n for n in self._records.names() if n.startswith("fold_")]
        folds = {int(n.removeprefix("fold_")): self._records.get(n) for n in names}
        return {k: folds[k] for k in sorted(folds) if folds[k] is not None}

    def add(self, fold, metrics, seconds, epochs):
        """Store the result of a training."""
        result = {"metrics": metrics, "seconds": seconds, "epochs": epochs}
        self._records.put(f"fold_{fold}", result)

    @property
    def end(self):
        """How the cell ended before all of its folds: a dict, empty if it did not.

        `discarded` is an estimate of its score, `failed` a message.
        """
        return self._records.get("end") or {}

    def ended(self, **how):
        """Store how the cell ended before all of its folds."""
        self._records.put("end", {**how, "at": time.time()})


def mean_metrics(folds):
    """Means of all metrics over folds: dict name -> float."""
    names = dict.fromkeys(n for fold in folds.values() for n in fold["metrics"])
    return {
        name: float(np.mean([fold["metrics"][name] for fold in folds.values()]))
        for name in names
    }
