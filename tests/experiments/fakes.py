"""A trainer that trains nothing, and a plan for it. Needs no TensorFlow."""

import os
import time
import zlib
from pathlib import Path

from experiments.cell import Cell
from experiments.plan import Choice, Entry, Plan

from keras_delta import _disk

# Mean accuracy of a strength; 0.5 and 5 are a tie.
ACCURACY = {0.5: 0.8, 5.0: 0.8, 20.0: 0.7}


def record(cell):
    """What a training of a cell gives: a number that depends on the cell alone."""
    if cell.alpha is not None and cell.alpha >= 100:
        return {"failed": "Batch 1: the loss is nan.\nIt was alpha."}
    small = zlib.crc32(cell.key.encode()) % 1000 / 1e5
    fold, folds = cell.fold or (0, 1)
    # The folds differ, and their mean is the strength's.
    accuracy = ACCURACY.get(cell.alpha, 0.6) + (2 * fold - folds + 1) / 16
    return {"accuracy": accuracy if cell.fold else accuracy + small, "loss": small}


class FakeTrainer:
    """Gives `record(cell)`, and writes down what it was asked for.

    Args:
        seconds: that a training takes.
        folder: `Path` of the store; each training leaves a line in `trained.txt`
            there: the cell's key, and what is wrong, if something is.
        warm: function of a cell.
        failing: function that is called with the number of trainings before each.
    """

    def __init__(self, seconds=0.0, folder=None, warm=None, failing=None):
        self.seconds, self.folder = seconds, folder and Path(folder)
        self.warm = warm or (lambda cell: False)
        self.failing = failing or (lambda count: None)
        self.trained = []

    def run(self, cell):
        self.failing(len(self.trained))
        self.trained.append(cell)
        if self.folder is None:
            return record(cell)
        with _disk.lock(self.folder / "training" / cell.key, wait=False) as alone:
            done = (self.folder / "cells" / f"{cell.key}.json").exists()
            wrong = "after-its-record" * done + "twice-at-once" * (not alone)
            line = f"{cell.key} {os.getpid()} {wrong}\n".encode()
            log = os.open(
                self.folder / "trained.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT
            )
            os.write(log, line)
            os.close(log)
            time.sleep(self.seconds)
        return record(cell)


def plan(seeds=3, methods=("l2_sp", "feature_map", "delta"), alphas=(20.0, 5.0, 0.5)):
    """Choices of alpha over two folds, trainings with it, and some without."""
    entries = []
    for method in methods:
        cell = Cell("toy", method, per_class=5)
        choice = Choice((cell,), tuple((alpha, None) for alpha in alphas), 2)
        entries += [Entry(cell.replace(seed=s), choice, 0) for s in range(seeds)]
    plain = Cell("toy", "l2_fe", per_class=5)
    entries += [Entry(plain.replace(seed=s), None, 1) for s in range(seeds)]
    return Plan(entries)
