"""Detects cells so much worse than the best that their other folds can be skipped."""

from keras_delta.statistics import lower_tail, paired_t_test
from keras_delta.tuning.results import sign_of

LEAST = 3  # folds; two differences are often equal by chance, which gives p = 0


def hopeless(scores, best_scores, direction, level, folds):
    """Whether a cell is worse than the best by the one-sided `paired_t_test`.

    Args:
        scores: dict from folds to scores of the cell.
        best_scores: the same for the best cell so far.
        direction: `"max"` or `"min"`: which scores are good.
        level: significance level, such as 0.05; smaller p values discard the cell.
        folds: number of folds in the search.

    Returns:
        True or False; False with fewer than `LEAST` common folds.
    """
    found = paired_t_test(scores, best_scores, folds)
    if found.folds < LEAST:
        return False
    better = sign_of(direction) * found.difference
    return lower_tail(better, found.standard_error, found.folds) < level  # nan is not
