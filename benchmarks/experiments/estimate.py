"""How long the cells of a plan will take, before any of them has run."""

import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from keras_delta import backbones

STEP = 4.0  # a training step, in times of the network's own forward pass
TRIES = 3
BATCH = 8


def image_seconds(cells, store):
    """Seconds that a training spends on one image: dict (network, size) -> seconds.

    Measured in trainings of the store; where it has none, guessed from the network's
    forward pass on some noise, which is measured now.
    """
    past, found = {}, {}
    for record in store.records().values():
        if {"epochs", "images", "wall_seconds"} <= record.keys():
            settings = record["settings"]
            kind = settings["network"], settings["image_size"]
            shown = record["epochs"] * record["images"]
            past.setdefault(kind, []).append(record["wall_seconds"] / shown)
    for cell in cells:
        kind = cell.network, cell.image_size
        if kind not in found:
            known = past.get(kind)
            found[kind] = statistics.median(known) if known else _guess(*kind)
    return found


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


def training_images(cell, sizes):
    """Number of images that a cell trains on.

    Args:
        cell: the `Cell`.
        sizes: dict data set -> (training images, classes).
    """
    images, classes = sizes[cell.dataset]
    if cell.per_class is not None:
        images = cell.per_class * classes
    if cell.fold is not None:
        images -= images // cell.fold[1]
    return images


def seconds(cell, sizes, rates):
    """Seconds that a cell will take, about.

    Args:
        cell, sizes: see `training_images`.
        rates: of `image_seconds`.
    """
    images = training_images(cell, sizes)
    shown = images * cell.protocol.epochs(images)
    return shown * rates[cell.network, cell.image_size]
