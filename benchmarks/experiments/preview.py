"""What is looked at and shown before anything is trained: data, cells, hours."""

import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_delta import backbones, data
from experiments.cell import digest

STEP = 4.0  # a training step, in times of the network's own forward pass
TRIES = 3
BATCH = 8


def check_data(plan, store, data_dir, download=False, only_sizes=False):
    """Load all data sets of a plan once, so that what is missing shows first.

    Data that are missing, damaged, too few, or others than those of the store are a
    ValueError or FileNotFoundError. With `only_sizes`, for a plan that is only shown,
    published sizes stand in for data that are not here, and nothing is noted in the
    store.

    Returns:
        Dict data set -> (training images, classes).
    """
    cells = [entry.cell for entry in plan.entries]
    cells += plan.folds()
    cells += [cell.of_teacher() for cell in cells if cell.teacher]
    sizes, absent = {}, []
    for name in dict.fromkeys(cell.dataset for cell in cells):
        published = data.DATA_SETS.get(name)
        options = {"download": download} if published else {}
        try:
            sets = data.load(name, data_dir, **options)
        except FileNotFoundError as e:
            if only_sizes and published is not None:
                absent.append(name)
                sizes[name] = published.train, published.classes
                continue
            hint = ""
            if published is not None and published.tfds and not download:
                hint = " With --download, TensorFlow Datasets downloads it."
            raise FileNotFoundError(f"{e}{hint}") from e
        if not only_sizes and not store.same_data(name, images := _digest(sets)):
            data.load(name, data_dir, verify=True, **options)
            store.keep_data(name, images)
        pool = sets["train"]
        sizes[name] = len(pool), len(pool.class_names)
        for cell in cells:
            if cell.dataset == name:
                _enough(name, pool, cell)
    if absent:
        print(f"Not here yet: {', '.join(absent)}.\n")
    return sizes


def _enough(name, pool, cell):
    """Refuse more images a class, or more folds, than there are."""
    wanted = cell.per_class
    if wanted is not None and wanted < 1:
        raise ValueError(f"Expected 1 image a class or more. Received: {wanted}")
    if short := [f"'{c}' ({n})" for c, n in pool.counts.items() if n < (wanted or 0)]:
        raise ValueError(
            f"{name} has classes with fewer than {wanted} training images: "
            f"{', '.join(short[:10])}. Ask for fewer images a class, or add some."
        )
    least = wanted or min(pool.counts.values())
    if cell.fold is not None and least < cell.fold[1]:
        raise ValueError(
            f"The strengths for {name} are chosen by cross-validation in "
            f"{cell.fold[1]} folds, which needs as many images of each class. There "
            f"{'is' if least == 1 else 'are'} {least}."
        )


def _digest(sets):
    """Of labels, and of the files' names."""
    parts = {}
    for part, images in sets.items():
        names = [Path(p).parts[-2:] for p in images.paths or ()]
        parts[part] = [images.labels.tolist(), names]
    return digest(parts)


def check_sources(plan, store):
    """Build the source networks of what is not done, so that weights fail first."""
    resolved = [(entry.cell, entry.resolved(store)) for entry in plan.entries]
    todo = [cell for cell, final in resolved if final is None or final not in store]
    todo += [cell.of_teacher() for cell in todo if cell.teacher]
    for network, size, weights in {(c.network, c.image_size, c.weights) for c in todo}:
        side = size or backbones.ALL[network].size
        backbones.get(network)(weights=weights, input_shape=(side, side, 3))


def show(plan, store, sizes, count):
    """Print what there is to do in `count` processes; gives the number of cells."""
    staged = plan.staged(store)
    waiting = [
        e.cell for e in plan.entries if e.resolved(store) is None and not e.lost(store)
    ]
    missing = [cell for cell in staged if cell not in store] + waiting
    rates = image_seconds(missing, store)
    rows = defaultdict(lambda: [0, 0, 0.0])
    for cells, todo in (([*staged, *waiting], False), (missing, True)):
        for cell in cells:
            purpose = "choose alpha" if cell.fold else "result"
            row = rows[cell.dataset, cell.network, purpose]
            if todo:
                row[1] += 1
                row[2] += _seconds(cell, sizes, rates)
            else:
                row[0] += 1
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


def image_seconds(cells, store):
    """Seconds that a training spends on one image: dict (network, size) -> seconds.

    Measured in trainings of the store; where it has none, guessed from the network's
    forward pass on some noise, which is measured now.
    """
    past = defaultdict(list)
    for record in store.records().values():
        if {"epochs", "images", "wall_seconds"} <= record.keys():
            settings = record["settings"]
            shown = record["epochs"] * record["images"]
            kind = settings["network"], settings["image_size"]
            if shown:  # not where a head alone was fitted
                past[kind].append(record["wall_seconds"] / shown)
    kinds = {(cell.network, cell.image_size) for cell in cells}
    return {k: statistics.median(past[k]) if k in past else _guess(*k) for k in kinds}


def _guess(network, size):
    """A training step's seconds for an image, from the forward pass."""
    size = size or backbones.ALL[network].size
    model = backbones.get(network)(weights=None, input_shape=(size, size, 3))
    images = np.random.default_rng(0).uniform(0, 255, (BATCH, size, size, 3))
    images = keras.ops.convert_to_tensor(images, "float32")
    run = tf.function(lambda x: model(x, training=False))
    times = []
    for _ in range(TRIES + 1):
        began = time.perf_counter()
        keras.ops.convert_to_numpy(run(images))
        times.append(time.perf_counter() - began)
    return STEP * min(times[1:]) / BATCH


def _seconds(cell, sizes, rates):
    """Seconds that a cell will take, about."""
    images, classes = sizes[cell.dataset]
    if cell.per_class is not None:
        images = cell.per_class * classes
    if cell.fold is not None:
        images -= images // cell.fold[1]
    shown = images * cell.protocol.epochs(images)
    return shown * rates[cell.network, cell.image_size]
