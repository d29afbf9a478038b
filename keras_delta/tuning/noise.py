"""Whether the differences between cells are more than noise."""

import math
from typing import NamedTuple

import numpy as np

from keras_delta._errors import import_optional
from keras_delta.tuning.results import EQUAL, Cell, sign_of


class Paired(NamedTuple):
    """How two cells differ on the folds that both have; see `paired`."""

    difference: float
    standard_error: float
    p_value: float
    folds: int


def paired(cell, other, folds):
    """Whether two cells differ by more than noise: the corrected resampled t test.

    With the differences `d` of the scores on the n folds that both cells have,

        t = mean(d) / sqrt((1/n + 1/(folds - 1)) * var(d)),

    n - 1 degrees of freedom. `1/(folds - 1)` is the ratio of held-out to training
    images. Without it, the test takes the folds for independent, though they share
    training images, and finds differences too often.

    Args:
        cell, other: `Cell`s, or dicts from folds to scores.
        folds: of the search, at least 2 for a p value.

    Returns:
        `Paired`: `difference`, the mean of `cell - other` over the common folds; its
        `standard_error`, the root above; the two-sided `p_value`, for differences
        that are all alike 1 if they are zero and else 0; and `folds`, n. nan where
        folds are too few: one for the difference, two for the others.

    Raises:
        ImportError: where SciPy is missing.

    Source: Nadeau and Bengio, "Inference for the Generalization Error", Machine
        Learning 52, 2003, doi 10.1023/A:1024068626366.
    """
    difference, error, n = _difference(cell, other, folds)
    p = 2 * _tail(abs(difference), error, n)
    return Paired(difference, error, p, n)


def hopeless(scores, best_scores, direction, level, folds):
    """Whether a cell is so much worse than the best that its other folds can be saved.

    The test of `paired`, one-sided, on the folds that both have.

    Args:
        scores: dict from folds to scores of the cell.
        best_scores: of the best cell so far.
        direction: `"max"` or `"min"`: which scores are good.
        level: discard at a p value below it, such as 0.05.
        folds: of the search.

    Returns:
        True or False; False with less than two common folds.

    Raises:
        ImportError: where SciPy is missing.
    """
    sign = sign_of(direction)
    difference, error, n = _difference(scores, best_scores, folds)
    return _tail(-sign * difference, error, n) < level  # nan is not


def holm(p_values):
    """Holm's adjusted p values: with m tests, the i-th smallest times m - i + 1.

    None is smaller than that of a smaller p value, none larger than 1. Rejecting
    those below 0.05 makes a false rejection among all m tests in at most 5 %.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
        Scandinavian Journal of Statistics 6, 1979.
    """
    p = np.asarray(p_values, "float64")
    order = np.argsort(p, kind="stable")
    found = np.empty(len(p))
    found[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(found, 1.0)


def _scores(given):
    return given.scores if isinstance(given, Cell) else given


def _difference(cell, other, folds):
    """(mean of cell - other on the common folds, its standard error, folds)."""
    a, b = _scores(cell), _scores(other)
    d = np.array([a[k] - b[k] for k in sorted(a.keys() & b.keys())], "float64")
    n = len(d)
    mean = float(d.mean()) if n else math.nan
    if n < 2 or folds < 2:
        return mean, math.nan, n
    rounding = EQUAL * max(abs(v) for v in (*a.values(), *b.values()))
    if np.ptp(d) <= rounding:
        return 0.0 if abs(mean) <= rounding else mean, 0.0, n
    return mean, float(d.std(ddof=1) * math.sqrt(1 / n + 1 / (folds - 1))), n


def _tail(difference, error, n):
    """P(T > difference / error) of Student's t with n - 1 degrees of freedom."""
    if math.isnan(error):
        return math.nan
    if error == 0:
        return 0.5 if difference == 0 else float(difference < 0)
    what = "Telling differences from noise"
    special = import_optional("scipy.special", what, "tuning")
    return float(special.stdtr(n - 1, -difference / error))
