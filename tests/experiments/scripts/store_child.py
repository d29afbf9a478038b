"""Uses a store, whatever its version: `store_child.py ACT FOLDER ARGUMENTS`."""

import sys
import time

import light  # noqa: F401
from experiments.cell import Cell
from experiments.store import ResultStore

CELL = Cell("cub", "delta", per_class=5, alpha=5.0)


def alone(store):
    with store.alone():
        print("mine", flush=True)
        time.sleep(1000)


def put(store, first, step, end):
    """Every `step`th record."""
    for seed in range(int(first), int(end), int(step)):
        store.put(CELL.replace(seed=seed), {"accuracy": seed / int(end)})


def forever(store):
    """Five records of several sizes, again and again."""
    length = 0
    while True:
        length = (length + 9973) % 300_000
        for seed in range(5):
            record = {"accuracy": 1.0, "length": length, "padding": "x" * length}
            store.put(CELL.replace(seed=seed), record)
        print("ready", flush=True)


act, folder, *arguments = sys.argv[1:]
globals()[act](ResultStore(folder, any_version=True), *arguments)
