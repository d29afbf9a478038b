"""Quality of a model on images that it was not trained on, for the model card."""

import numpy as np

from keras_delta._answers import calibration
from keras_delta.statistics import wilson_interval


def of_classes(logits, labels, class_names, temperature=1.0):
    """Figures for one of several classes.

    For logits (samples, classes), integer labels, and the temperature of serving.
    `interval` is Wilson's 95 % interval, `loss` is in nats, `uncalibrated_error` is at
    temperature 1.
    """
    right = np.asarray(logits).argmax(axis=-1) == labels
    scaled = np.asarray(logits) / temperature
    recall = {}
    for number, name in enumerate(class_names):
        of_class = right[labels == number]
        share = float(of_class.mean()) if len(of_class) else None
        recall[name] = {"recall": share, "samples": len(of_class)}
    return {
        "samples": len(labels),
        "accuracy": float(right.mean()),
        "interval": list(wilson_interval(int(right.sum()), len(right))),
        "recall": recall,
        "loss": calibration.loss(scaled, labels),
        "calibration_error": calibration.expected_calibration_error(scaled, labels),
        "uncalibrated_error": calibration.expected_calibration_error(logits, labels),
        "temperature": temperature,
    }


def of_labels(logits, labels, class_names, temperature, thresholds):
    """Figures for several labels: exact matches, F1 and average precision of each.

    `F1 = 2 TP / (2 TP + FP + FN)` at the label's threshold; `macro` is the mean over
    labels that occur, `micro` counts all labels together.
    """
    scores = 1 / (1 + np.exp(-np.asarray(logits, "float64") / temperature))
    labels = np.asarray(labels).astype(bool)
    on = scores >= np.asarray(thresholds)
    exact = (on == labels).all(axis=-1)
    rows = {}
    for i, name in enumerate(class_names):
        rows[name] = {
            "threshold": float(thresholds[i]),
            "f1": f1(on[:, i], labels[:, i]),
            "average_precision": average_precision(scores[:, i], labels[:, i]),
            "positives": int(labels[:, i].sum()),
        }
    known = [row["f1"] for row in rows.values() if row["positives"]]
    return {
        "samples": len(labels),
        "exact_match": float(exact.mean()),
        "interval": list(wilson_interval(int(exact.sum()), len(exact))),
        "macro_f1": float(np.mean(known)) if known else None,
        "micro_f1": f1(on.ravel(), labels.ravel()),
        "labels": rows,
        "temperature": temperature,
    }


def of_numbers(values, labels, names):
    """Figures for a regression: MAE, RMSE and R2 of each number.

    The interval of the mean absolute error is `mean +- 1.96 s / sqrt(n)`.
    """
    errors = np.asarray(values, "float64") - labels
    rows = {}
    for i, name in enumerate(names):
        size = np.abs(errors[:, i])
        spread = 1.96 * size.std(ddof=1) / np.sqrt(len(size)) if len(size) > 1 else None
        variance = labels[:, i].var()
        mean_square = float(np.square(errors[:, i]).mean())
        rows[name] = {
            "mae": float(size.mean()),
            "half_interval": None if spread is None else float(spread),
            "rmse": mean_square**0.5,
            "r2": float(1 - mean_square / variance) if variance else None,
        }
    return {"samples": len(labels), "numbers": rows}


def f1(on, true):
    """F1 of predictions and labels, boolean arrays; 0 without true positives."""
    both = 2 * int((on & true).sum())
    return both / (int(on.sum()) + int(true.sum())) if both else 0.0


def average_precision(scores, true):
    """Mean over the positives of the precision down to each; None without any.

    Equal scores count as one step, as for scikit-learn.
    """
    if not true.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(true[order])[ends]
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / found[-1])


def roc_auc(scores, true):
    """Share of the pairs of a positive and a negative that are in order; ties half.

    None without positives or negatives.
    """
    positives, negatives = int(true.sum()), int((~true).sum())
    if not positives or not negatives:
        return None
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    pairs = ranks[true].sum() - positives * (positives + 1) / 2
    return float(pairs / (positives * negatives))


def best_thresholds(scores, labels):
    """The threshold of each label with the highest F1 on held-out images.

    Halfway between two scores of images; 0.5 for a label without positives or
    negatives.
    """
    found = []
    for column, true in zip(scores.T, np.asarray(labels).astype(bool).T, strict=True):
        levels = np.unique(column)
        between = (levels[1:] + levels[:-1]) / 2
        if true.all() or not true.any() or not len(between):
            found.append(0.5)
            continue
        order = np.argsort(column)
        off = np.searchsorted(column[order], between)  # how many are below each level
        hits = true.sum() - np.append(0, np.cumsum(true[order]))[off]
        values = 2 * hits / (len(column) - off + true.sum())  # F1
        best = between[values == values.max()]
        # Among equally good ones, the nearest to 0.5.
        found.append(float(best[np.abs(best - 0.5).argmin()]))
    return found
