"""Results of a search in plain words."""

import math
import numbers

import numpy as np

from keras_delta.statistics import holm, paired_t_test
from keras_delta.tuning.results import (
    DISCARDED,
    EPOCHS,
    FAILED,
    FINISHED,
    OF_KERAS_TUNER,
    STATES,
    STRENGTHS,
    best,
    first_failure,
    formatter,
    names,
    none_finished,
    ranked,
    standard_error,
    state,
    tied,
)

LEVEL = 0.05  # of the statements about noise
SHOWN = 5  # cells in the table


def summary(cells, objective, direction, rule="best", folds=5, limits=None):
    """The results of a search in a few sentences and a table.

    It gives the winner; how many cells finished, were discarded or failed; whether the
    others are worse by more than noise (`paired_t_test` against the best mean, 95 %,
    corrected by `holm`), and which alpha and beta are as good; whether the best mean is
    at the border of the search space; the five best cells.

    Args:
        cells, direction, rule: see `best`, except that cells may be empty.
        objective: name of the objective, such as `"val_accuracy"`.
        folds: number of folds in the search.
        limits: dict from alpha and beta to the (least, largest) allowed value; default:
            those that were tried.
    """
    order = ranked(cells, direction)
    finished = [c for c in order if state(c) == FINISHED]
    if not finished:
        return none_finished(cells)
    winner, first = best(cells, direction, rule), finished[0]
    written = formatter(objective, cells)
    n = len(winner.scores)
    of_folds = f"mean ± standard error of {n} folds" if n > 1 else "one fold"
    line = (
        f"Best: {_settings(winner)} with {objective} {_score(winner, written)} "
        f"(trial {winner.trial_id}, {of_folds})."
    )
    if winner is not first:
        line += (
            " It is the strongest regularization within one standard error of the best "
            f"mean, which is {_score(first, written)} for {_settings(first)}."
        )
    good = _as_good(finished, folds)
    lines = [line, _counts(order), "", *_noise(finished, good)]
    lines += _borders(order, good, limits or {})
    if len(finished) > 1:
        lines += [
            f"The best of {len(finished)} means is a little too good, for having been "
            "chosen: measure the winner on images that the search has not seen.",
            "",
            *_table(finished[:SHOWN], objective, written),
        ]
    return "\n".join(lines)


def _counts(cells):
    words = {DISCARDED: "discarded early as clearly worse"}
    count = {s: sum(state(c) == s for c in cells) for s in STATES}
    parts = [f"{n} {words.get(s, s)}" for s, n in count.items() if n]
    if count[FAILED]:
        parts[-1] += f" ({first_failure(cells)})"
    return f"{len(cells)} cell{'s' * (len(cells) > 1)}: {', '.join(parts)}."


def _as_good(finished, folds):
    """Cells not significantly worse than the best; None if unknown."""
    first, *others = finished
    tests = [paired_t_test(first.scores, c.scores, folds) for c in others]
    p = [test.p_value for test in tests]
    if all(math.isnan(v) for v in p):
        return None
    adjusted = holm(np.nan_to_num(p, nan=1.0))
    return [first, *(c for c, v in zip(others, adjusted, strict=True) if v >= LEVEL)]


def _noise(finished, good):
    others = len(finished) - 1
    if not others:
        return ["Only one cell is finished, so there is nothing to compare it with."]
    if good is None:
        return [
            "One fold gives no estimate of the noise: the differences between the "
            "cells may be chance. Search with more folds to know."
        ]
    worse, ranges = len(finished) - len(good), _ranges(good)
    text = (
        f"Significantly worse than the best: {worse or 'none'} of {others} (paired t "
        "test, corrected for shared training images; 95 %, Holm)."
    )
    if not worse:
        text += " The search found no difference larger than the noise."
    if ranges and len(good) > 1:
        text += f" As good as the best, as far as it can tell: {ranges}."
    if min(len(c.scores) for c in finished) == 2:
        text += " Two folds say little about the noise; five say more."
    return [text]


def _ranges(cells):
    """`alpha from 0.001 to 0.1 and beta = 0.01`, for the strengths in the cells."""
    parts = []
    for name in STRENGTHS:
        values = [_value(v) for v in _values(name, cells)]
        if len(values) == 1:
            parts.append(f"{name} = {values[0]}")
        elif values:
            parts.append(f"{name} from {values[0]} to {values[-1]}")
    return " and ".join(parts)


def _borders(order, good, limits):
    """A sentence for each strength whose best value may lie outside."""
    lines, first = [], order[0]
    judged = [c for c in order if state(c) in (FINISHED, DISCARDED)]
    # For alpha, even a trend that is not significant is worth mentioning.
    ties = [c for c in order if tied(first, c)]
    for name, equal in zip(STRENGTHS, (ties, good or ties), strict=True):
        searched, value = _values(name, order), first.values.get(name)
        if len(searched) < 2 or not isinstance(value, numbers.Real):
            continue
        low, high = limits.get(name, (searched[0], searched[-1]))
        if _near(value, low, high):
            end, further = "smallest", f"down to {low / 10:g}"
        elif _near(value, high, low):
            end, further = "largest", f"up to {high * 10:g}"
        else:
            continue
        if _values(name, equal) == _values(name, judged):
            continue  # it makes no difference
        hint = f"a better one may lie beyond. Widen the range of {name}, say {further}"
        hint += ", and search again."
        if value == 0:
            part = "the features" if name == "alpha" else "the head"
            hint = f"no penalty of {part} at all."
        line = f"The best mean has the {end} {name} of the search, {_value(value)}"
        lines.append(f"{line}: {hint}")
    return lines


def _near(value, end, other):
    """Whether a value is in the outer tenth of the range, on a logarithmic scale."""
    if 0 in (value, end, other):
        return value == end
    return abs(math.log(value / end)) <= 0.1 * abs(math.log(other / end))


def _settings(cell):
    """`alpha = 0.1, beta = 0.01` and so on."""
    pairs = [f"{k} = {_value(cell.values[n])}" for n, k in _shown([cell]).items()]
    return ", ".join(pairs) or "no hyperparameters"


def _shown(cells):
    """Dict from hyperparameters to readable names, with the epochs of Hyperband."""
    epochs = {EPOCHS: "epochs"} if any(EPOCHS in c.values for c in cells) else {}
    return {n: n for n in names(cells) if not n.startswith(OF_KERAS_TUNER)} | epochs


def _table(cells, objective, written):
    shown = _shown(cells)
    rows = [["trial", *shown.values(), objective]]
    for cell in cells:
        values = [_value(cell.values.get(n)) for n in shown]
        rows.append([cell.trial_id, *values, _score(cell, written)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(v.rjust(w) for v, w in zip(row, widths, strict=True)) for row in rows
    ]


def _score(cell, written):
    error = standard_error(cell)
    mean = written(cell.score)
    return mean if math.isnan(error) else f"{mean} ± {written(error, error=True)}"


def _value(value):
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-19:]}"


def _values(name, cells):
    """Sorted list of the numbers that a strength has in the cells."""
    values = {c.values.get(name) for c in cells}
    return sorted(v for v in values if isinstance(v, numbers.Real))
