"""What is looked at and shown before anything is trained: data, cells, hours."""

import sys
from collections import defaultdict
from pathlib import Path

from keras_delta import backbones, data
from experiments import estimate
from experiments.cell import digest


def check_data(plan, store, data_dir, download=False, only_sizes=False):
    """Load all data sets of a plan once, so that what is missing shows first.

    Args:
        plan, store, data_dir: see `run`.
        download: whether TensorFlow Datasets may download what is not here.
        only_sizes: for a plan that is only shown: published sizes stand in for data
            that are not here, and nothing is noted in the store.

    Returns:
        Dict data set -> (training images, classes).

    Raises:
        ValueError, FileNotFoundError: for data that are missing, damaged, too few, or
            others than those of the store.
    """
    cells = [entry.cell for entry in plan.entries]
    cells += [entry.choice.one_fold for entry in plan.entries if entry.choice]
    sizes, absent = {}, []
    for name in dict.fromkeys(one.dataset for one in cells):
        published = data.DATA_SETS.get(name)
        try:
            sets = data.load(name, data_dir, **_downloading(name, download))
        except FileNotFoundError as e:
            if only_sizes and published is not None:
                absent.append(name)
                sizes[name] = published.train, published.classes
                continue
            hint = ""
            if published is not None and published.tfds and not download:
                hint = " With --download, TensorFlow Datasets downloads it."
            raise FileNotFoundError(f"{e}{hint}") from e
        if not only_sizes and not store.same_data(name, found := _digest(sets)):
            data.load(name, data_dir, verify=True, **_downloading(name, download))
            store.keep_data(name, found)
        pool = sets["train"]
        sizes[name] = len(pool), len(pool.class_names)
        for one in (c for c in cells if c.dataset == name):
            _enough(name, pool, one)
    if absent:
        print(f"Not here yet: {', '.join(absent)}.\n")
    return sizes


def _downloading(name, download):
    return {"download": download} if name in data.DATA_SETS else {}


def _enough(name, pool, cell):
    """Refuse more images a class, or more folds, than there are."""
    if cell.per_class is not None and cell.per_class < 1:
        raise ValueError(
            f"Expected 1 image a class or more. Received: {cell.per_class}"
        )
    wanted = cell.per_class or 0
    if short := [f"'{c}' ({n})" for c, n in pool.counts.items() if n < wanted]:
        raise ValueError(
            f"{name} has classes with fewer than {wanted} training images: "
            f"{', '.join(short[:10])}. Ask for fewer images a class, or add some."
        )
    least = cell.per_class or min(pool.counts.values())
    if cell.fold is not None and least < cell.fold[1]:
        raise ValueError(
            f"The strengths for {name} are chosen by cross-validation in "
            f"{cell.fold[1]} folds, which needs as many images of each class. There "
            f"{'is' if least == 1 else 'are'} {least}."
        )


def check_sources(plan, store):
    """Build the source networks of what is not done, so that weights fail first.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: for weights that are not there,
            cannot be downloaded, or do not fit.
    """
    resolved = [(entry.cell, entry.resolved(store)) for entry in plan.entries]
    todo = [cell for cell, final in resolved if final is None or final not in store]
    for network, size, weights in {(c.network, c.image_size, c.weights) for c in todo}:
        side = size or backbones.ALL[network].size
        backbones.get(network)(weights=weights, input_shape=(side, side, 3))


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
        total = sum(row[2] for row in rows.values()) / count
        where = f", in {count} processes" * (count > 1)
        print(f"{len(missing)} cells to train: about {_duration(total)}{where}.\n")
    else:
        print("All cells are done.\n")
    sys.stdout.flush()
    return len(missing)


def _duration(seconds):
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds / 60))} minutes"
