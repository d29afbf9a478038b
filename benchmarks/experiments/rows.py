"""The rows of a frame of results that count, in order, and what they are called.

Frames have a row for each finished training, see `ResultStore.frame`. What cannot be
compared (other networks, augmentations, twice the same seed) is refused instead of
averaged.
"""

import math

from keras_delta._errors import invalid, unknown_name
from experiments.methods import KNOWN as METHODS

EMPTY = {"label": "", "factor": "", "label_noise": 0.0, "correct": None}
EMPTY |= {"corrupted": None, "curve": None, "prepare_seconds": 0.0}
NEEDED = ("dataset", "per_class", "method", "seed", "accuracy")
ALIKE = ("network", "image_size", "protocol", "augmentation", "schedule")
PLAIN = (*ALIKE, "factor", "label", "label_noise")
DATA = {  # what the article calls them, in its order
    "indoor67": "MIT Indoors 67",
    "stanford_dogs": "Stanford Dogs",
    "caltech256_30": "Caltech 256-30",
    "caltech256_60": "Caltech 256-60",
    "cub": "CUB-200-2011",
    "food101": "Food-101",
}


def finished(frame, alike=(), each=("setting", "method")):
    """The rows that have an accuracy, prepared for tables and pictures.

    A copy with the columns of `EMPTY` filled and a column `setting`, the pair of data
    set and images a class (None: all). Rows of a fold are refused.

    Args:
        alike: columns that must have one value in all rows, if they are there.
        each: columns that tell the cells apart; a cell has each seed at most once.
    """
    require(frame, NEEDED)
    if "fold" in frame.columns and frame["fold"].notna().any():
        remedy = "Leave the folds of cross-validations out."
        expected = "trainings on all training images"
        raise ValueError(invalid("frame", expected, "rows with a fold", remedy))
    rows = frame[frame["accuracy"].notna()].copy()
    for name, value in EMPTY.items():
        if name not in rows.columns:
            rows[name] = [value] * len(rows)
        elif value is not None:
            rows[name] = rows[name].fillna(value)
    numbers = rows["per_class"].astype("float64")
    rows["setting"] = [
        (d, None if math.isnan(n) else int(n))
        for d, n in zip(rows["dataset"], numbers, strict=True)
    ]
    for name in alike:
        if name in rows.columns and rows[name].nunique(dropna=False) > 1:
            values = sorted(map(str, rows[name].unique()))
            remedy = f"Choose one, such as frame[frame.{name} == {values[0]!r}]."
            expected = f"trainings with one value of `{name}`"
            raise ValueError(invalid("frame", expected, values, remedy))
    twice = rows.duplicated([*each, "seed"], keep=False)
    if twice.any():
        first = rows[twice].iloc[0]
        cell = {n: first[n] for n in (*each, "seed")}
        remedy = "Keep one of them, for example one alpha and beta."
        expected = "each seed once in a cell"
        raise ValueError(invalid("frame", expected, cell, remedy))
    return rows


def require(frame, names):
    """Refuse a frame that lacks a column, with the closest names."""
    for name in names:
        if name not in frame.columns:
            raise ValueError(unknown_name("frame", name, frame.columns))


def accuracies(rows, *by):
    """Dict from the values of the columns `by`, two or more, to a cell's accuracies."""
    return dict(iter(rows.groupby(list(by), sort=False)["accuracy"]))


def settings(rows):
    """The settings of some rows in the article's order, few images first."""

    def key(setting):
        dataset, per_class = setting
        return data_order(dataset), math.inf if per_class is None else per_class

    return sorted(set(rows["setting"]), key=key)


def methods(rows):
    """The methods of some rows in the article's order."""
    return sorted(set(rows["method"]), key=method_order)


def setting_name(setting):
    """Such as `CUB-200-2011, 10 a class`."""
    dataset, per_class = setting
    name = data_name(dataset)
    return name if per_class is None else f"{name}, {per_class} a class"


def method_name(method):
    """The article's name of a method; the given one where it has none."""
    return METHODS[method].title if method in METHODS else method


def data_name(dataset):
    """The article's name of a data set; the given one where it has none."""
    return DATA.get(dataset, dataset)


def method_order(method):
    """Key that sorts methods as the article, unknown ones after them by name."""
    return _order(METHODS, method)


def data_order(dataset):
    """Key that sorts data sets as the article, unknown ones after them by name."""
    return _order(DATA, dataset)


def _order(known, name):
    return (list(known).index(name) if name in known else len(known), name)
