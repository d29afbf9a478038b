"""The table of robustness: wrong labels in training, corrupted images in testing."""

import math

from keras_delta.experiments import notation
from keras_delta.experiments.notation import ACCURACY
from keras_delta.experiments.published import method_name
from keras_delta.experiments.rows import (
    ALIKE,
    finished,
    methods,
    setting_name,
    settings,
)
from keras_delta.experiments.table import Table

LABELS, IMAGES = "wrong labels", "images"


def robustness_table(frame):
    """Accuracies after training with wrong labels, and on corrupted test images.

    Corrupted images are those of trainings without wrong labels.

    Args:
        frame: of results of one network, augmentation and schedule.

    Returns:
        `Table`; rows the setting and the condition, columns methods; mean ± standard
        deviation over seeds.

    Raises:
        ValueError: as `finished`.
    """
    alike = (*ALIKE, "factor", "label")
    rows = finished(frame, alike, ("setting", "method", "label_noise"))
    cells = {}  # of each setting and condition, by method
    for _, row in rows.iterrows():
        for condition, value in _accuracies(row).items():
            by_method = cells.setdefault((row["setting"], *condition), {})
            by_method.setdefault(row["method"], []).append(value)
    order = settings(rows)
    keys = sorted(cells, key=lambda key: (order.index(key[0]), *_place(*key[1:])))
    numbers = (len(v) for by_method in cells.values() for v in by_method.values())
    count, seeds = notation.seeds(numbers)
    body = {
        method_name(m): [notation.mean(cells[k].get(m, ()), count) for k in keys]
        for m in methods(rows)
    }
    index = [
        (setting_name(s), what, how if what == IMAGES else f"{100 * how:.3g} %")
        for s, what, how in keys
    ]
    caption = (
        f"{ACCURACY}{seeds}: trained with a share of wrong labels and tested on clean "
        "images, or trained with right labels and tested on corrupted images (kind and "
        "severity)."
    )
    names = ("data", "what", "how much")
    return Table.of("Robustness", body, index, names, caption)


def _accuracies(row):
    """Dict from (what, how) to the accuracies of a training."""
    found = {(LABELS, row["label_noise"]): row["accuracy"]}
    if row["label_noise"] == 0 and isinstance(row["corrupted"], dict):
        for how, value in row["corrupted"].items():
            if value is not None and not math.isnan(value):
                found[IMAGES, how] = value
    return found


def _place(what, how):
    """Key that sorts conditions: wrong labels first, severities as numbers."""
    if what == LABELS:
        return 0, "", how
    kind, _, severity = how.rpartition(" ")
    return (1, kind, int(severity)) if severity.isdigit() else (1, how, 0)
