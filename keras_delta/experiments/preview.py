"""What is looked at and shown before anything is trained: data, cells, hours."""

import sys
from collections import defaultdict
from pathlib import Path

from keras_delta import data
from keras_delta.experiments import estimate
from keras_delta.experiments.cell import digest


def check_data(plan, store, data_dir, only_sizes=False):
    """Load all data sets of a plan once, so that what is missing shows first.

    Args:
        plan, store, data_dir: see `run`.
        only_sizes: whether published sizes will do, for data that are not here.

    Returns:
        Dict data set -> (training images, classes).

    Raises:
        ValueError, FileNotFoundError: for data that are missing, damaged, too few, or
            others than those of the store.
    """
    cells = [entry.cell for entry in plan.entries]
    cells += [entry.choice.one_fold for entry in plan.entries if entry.choice]
    sizes = {}
    for name in dict.fromkeys(one.dataset for one in cells):
        published = data.DATA_SETS.get(name)
        if only_sizes and published is not None:
            sizes[name] = published.train, published.classes
            continue
        sets = data.load(name, data_dir)
        if not store.same_data(name, found := _digest(sets)):
            data.load(name, data_dir, verify=True)
            store.keep_data(name, found)
        sizes[name] = len(sets["train"]), len(sets["train"].class_names)
        for per_class, fold, seed in {
            (c.per_class, c.fold, c.seed) for c in cells if c.dataset == name
        }:
            pool = sets["train"]
            pool = pool.few_shot(per_class, seed) if per_class is not None else pool
            if fold is not None:
                pool.folds(fold[1])
    return sizes


def _digest(sets):
    """Of labels, and of the files' names."""
    found = {}
    for part, images in sets.items():
        names = [Path(p).parts[-2:] for p in images.paths or ()]
        found[part] = [images.labels.tolist(), names]
    return digest(found)


def show(plan, store, sizes, count):
    """Print what there is to do; returns how many cells are not done.

    Args:
        plan, store: see `run`.
        sizes: of `check_data`.
        count: number of processes.
    """
    staged = plan.staged(store)
    waiting = [
        e.cell for e in plan.entries if e.resolved(store) is None and not e.lost(store)
    ]
    missing = [one for one in staged if one not in store] + waiting
    rates = estimate.image_seconds(missing, store)
    rows = defaultdict(lambda: [0, 0, 0.0])
    for one in [*staged, *waiting]:
        row = rows[one.dataset, one.network, "choose alpha" if one.fold else "result"]
        row[0] += 1
    for one in missing:
        row = rows[one.dataset, one.network, "choose alpha" if one.fold else "result"]
        row[1] += 1
        row[2] += estimate.seconds(one, sizes, rates)
    print(f"Results in {store.folder}")
    line = "{:22} {:18} {:12} {:>6} {:>6} {:>8}".format
    print(line("data", "network", "for", "cells", "to do", "hours"))
    for (dataset, *what), (cells, left, seconds) in rows.items():
        name = dataset.removeprefix("folder:")
        print(line(name, *what, cells, left, f"{seconds / 3600:.2f}"))
    if missing:
        hours = sum(row[2] for row in rows.values()) / 3600 / count
        where = f" in {count} processes" * (count > 1)
        print(f"{len(missing)} cells to train, about {hours:.1f} hours{where}\n")
    else:
        print("All cells are done.\n")
    sys.stdout.flush()
    return len(missing)
