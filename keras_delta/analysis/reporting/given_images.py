"""Sections on the images: their labels, and duplicates between the sets."""

import numpy as np

from keras_delta import _tasks
from keras_delta.analysis.near_duplicates import near_duplicates
from keras_delta.analysis.reporting import pictures
from keras_delta.analysis.reporting.section import LeftOut, Section
from keras_delta.analysis.suspect_labels import suspect_labels

SUSPECTS = 48
PAIRS = 12


def list_suspects(models, train, test, seed):
    """Labels of the training data that are probably wrong."""
    what, model = "Labels that are probably wrong", models[0]
    if train is None or train.labels is None:
        raise LeftOut(f"{what}: no training images with labels were given.")
    if model.task != _tasks.MULTICLASS:
        raise LeftOut(f"{what}: only for one of several classes.")
    if model.delta is None:
        raise LeftOut(f"{what}: a model without its source, which has not seen them.")
    try:
        found = suspect_labels(model.delta, train, seed=seed)
    except (ImportError, ValueError) as error:
        raise LeftOut(f"{what}: {error}") from None
    rows = np.searchsorted(train.numbers, [s.index for s in found[:SUSPECTS]])
    images = train.take(rows) if found else []
    rows = [
        {"picture": pictures.photograph(image), "suspect": s}
        for image, s in zip(images, found, strict=False)
    ]
    data = {"rows": rows, "all": len(found), "images": len(train)}
    return Section("suspects", "Which labels may be wrong?", data)


def list_duplicates(models, train, test, seed):
    """Images that are in training and test."""
    what = "Images that are in training and test"
    if train is None or test is None:
        raise LeftOut(f"{what}: training and test images are both needed.")
    found = near_duplicates(train, test)
    shown, rows = found[:PAIRS], []
    if shown:
        firsts = train.take([p.first for p in shown])
        seconds = test.take([p.second for p in shown])
        for pair, a, b in zip(shown, firsts, seconds, strict=True):
            rows.append(
                {
                    "pictures": (pictures.photograph(a), pictures.photograph(b)),
                    "names": (train.names[pair.first], test.names[pair.second]),
                    "likeness": pair.likeness,
                }
            )
    data = {"rows": rows, "all": len(found), "images": len(test)}
    return Section("duplicates", "Are test images new?", data)
