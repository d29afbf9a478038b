"""Results of a cross-validated search: cells, their order, the best, a table."""

import math
import numbers
from typing import NamedTuple

import numpy as np

from keras_delta import _arguments
from keras_delta._errors import import_optional, invalid

RULES = ("best", "one_standard_error")
FINISHED, DISCARDED, RUNNING, FAILED = STATES = (
    "finished",
    "discarded",
    "not finished",
    "failed",
)
# Relative; scores that differ by less are a tie. Metrics are float32: as many right
# images in other folds give means that differ by 1e-8.
EQUAL = 1e-6
LONGEST = 200  # characters of a failure's message
STRENGTHS = ("alpha", "beta")
OF_KERAS_TUNER = "tuner/"  # hyperparameters that Keras Tuner adds, such as epochs
EPOCHS = f"{OF_KERAS_TUNER}epochs"
STANDARD_ERROR = "standard_error"


class Cell(NamedTuple):
    """One setting of the hyperparameters and the results of its folds.

    Attributes:
        trial_id: id from Keras Tuner; earlier trials have smaller ones.
        values: dict of hyperparameters, including `alpha` and `beta`.
        status: status in Keras Tuner: `"COMPLETED"`, `"FAILED"`, `"RUNNING"` and so on.
        scores: dict from the number of a fold to the objective on its held-out part;
            folds that are not trained (yet) are missing.
        score: value used for ranking: the mean of the scores or, for a discarded cell,
            an estimate of it; None until the cell is finished.
        discarded: whether it was abandoned after some folds for being worse.
        seconds: training time.
        message: reason for a failure, else None.
        metrics: dict from the names of the other metrics to their means over folds.
    """

    trial_id: str
    values: dict
    status: str
    scores: dict
    score: float | None
    discarded: bool
    seconds: float
    message: str | None
    metrics: dict


def state(cell):
    """One of `STATES`; a score that is not finite counts as a failure."""
    if cell.status in ("FAILED", "INVALID"):
        return FAILED
    if cell.discarded:
        return DISCARDED
    if cell.status != "COMPLETED":
        return RUNNING
    return FINISHED if finite(cell.score) else FAILED


def standard_error(cell):
    """`std(scores, ddof=1) / sqrt(folds)`, nan for fewer than two folds."""
    scores = np.array(list(cell.scores.values()), "float64")
    if len(scores) < 2:
        return math.nan
    return float(scores.std(ddof=1) / math.sqrt(len(scores)))


def ranked(cells, direction):
    """The cells, best first: the finished, the discarded, the others, the failed.

    Ties are broken by longer training, then the variant's name (each has another scale
    of alpha), then the smaller alpha + beta, then the earlier trial.
    """
    sign = sign_of(direction)

    def key(cell):
        score = -sign * cell.score if finite(cell.score) else math.inf
        return STATES.index(state(cell)), score, _simplicity(cell)

    groups = []
    for cell in sorted(cells, key=key):
        if groups and tied(groups[-1][0], cell):
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return [cell for group in groups for cell in sorted(group, key=_simplicity)]


def best(cells, direction, rule="best"):
    """The winner of a search.

    Args:
        cells: sequence of `Cell`.
        direction: `"max"` or `"min"`: which scores are good.
        rule: `"best"`: the best mean; for ties (to 1e-6) the first of `ranked`.
            `"one_standard_error"`: of the cells of the best one's variant whose mean
            is within one standard error (the best cell's) of the best mean, the
            strongest regularization: the largest alpha, then the largest beta, then
            the better mean.

    Returns:
        A `Cell` that is finished, and neither discarded nor failed.

    Raises:
        ValueError: if the rule is unknown, if no cell is finished, or for
            `"one_standard_error"` if the best cell has fewer than two folds.

    Source of the second rule: Breiman, Friedman, Olshen and Stone, "Classification
        and Regression Trees", 1984, section 3.4.3.
    """
    _arguments.choice("rule", rule, RULES)
    finished = [c for c in ranked(cells, direction) if state(c) == FINISHED]
    if not finished:
        raise ValueError(none_finished(cells))
    winner = finished[0]
    if rule == "best":
        return winner
    error = standard_error(winner)
    if math.isnan(error):
        remedy = 'Search with more folds, or pass `rule="best"`.'
        expected = "'best' for cells with one fold, which have no standard error"
        raise ValueError(invalid("rule", expected, rule, remedy))
    far = error + EQUAL * max(1.0, abs(winner.score))
    near = [
        c
        for c in finished
        if abs(c.score - winner.score) <= far and _variant(c) == _variant(winner)
    ]
    # `max` takes the first of equal ones, which has the better mean.
    return max(near, key=lambda c: [strength(c, name) for name in STRENGTHS])


def frame(cells, objective, direction):
    """The cells as a `pandas.DataFrame`, one row per cell, best first as in `ranked`.

    Columns are `trial`; the hyperparameters, alpha and beta first; the objective (used
    for ranking: the mean over the folds, or the estimate for a discarded cell);
    `standard_error` of the folds' scores; `folds`, their number; `fold_0` and so on;
    the means of other metrics; `status`, `discarded`, `seconds` and `message`.
    """
    pandas = import_optional("pandas", "The table of a search", "tuning")
    order = ranked(cells, direction)
    folds = range(max((k for c in order for k in c.scores), default=-1) + 1)
    columns = {"trial": [c.trial_id for c in order]}
    for name in names(cells):
        columns[name] = [c.values.get(name) for c in order]
    columns[objective] = _floats(c.score for c in order)
    columns[STANDARD_ERROR] = _floats(standard_error(c) for c in order)
    columns["folds"] = np.array([len(c.scores) for c in order], "int64")
    for k in folds:
        columns[f"fold_{k}"] = _floats(c.scores.get(k) for c in order)
    for name in dict.fromkeys(name for c in order for name in c.metrics):
        columns.setdefault(name, _floats(c.metrics.get(name) for c in order))
    columns["status"] = [c.status for c in order]
    columns["discarded"] = np.array([c.discarded for c in order], bool)
    columns["seconds"] = _floats(c.seconds for c in order)
    columns["message"] = [c.message for c in order]
    return pandas.DataFrame(columns)


def names(cells):
    """List of the hyperparameters, alpha and beta first, Keras Tuner's own last."""
    every = dict.fromkeys(name for c in cells for name in c.values)
    return sorted(
        every, key=lambda n: (n != "alpha", n != "beta", n.startswith(OF_KERAS_TUNER))
    )


def formatter(objective, cells):
    """A function that formats a score, or with `error=True` a standard error.

    Percent for accuracies (`"acc"` in the name, all values from 0 to 1), else 4
    significant digits, 2 for a standard error.
    """
    values = [v for c in cells for v in (*c.scores.values(), c.score) if finite(v)]
    percent = "acc" in objective.lower() and all(0 <= v <= 1 for v in values)

    def written(value, error=False):
        if not percent:
            return f"{value:.2g}" if error else f"{value:.4g}"
        value = 100 * value
        return f"{value:.1g}%" if error and 0 < value < 0.05 else f"{value:.1f}%"

    return written


def first_failure(cells):
    """The cell that failed first, and the reason."""
    failed = [c for c in cells if state(c) == FAILED]
    first = min(failed, key=_number)
    lines = [x.strip() for x in (first.message or "").splitlines() if x.strip()]
    if lines:
        reason = lines[-1 if lines[0].startswith("Traceback") else 0].rstrip(".")
        reason = reason if len(reason) <= LONGEST else reason[:LONGEST] + "..."
    else:
        reason = "unknown reason" if first.score is None else f"score {first.score}"
    others = "the first, " if len(failed) > 1 else ""
    return f"{others}trial {first.trial_id}: {reason}"


def none_finished(cells):
    """The message if no cell can win: the reason, and the remedy."""
    if not cells:
        return "The search has no cells yet. Run `search` first."
    count = {s: sum(state(c) == s for c in cells) for s in STATES}
    parts = [f"{n} {s}" for s, n in count.items() if n]
    text = f"No cell of the search is finished: of {len(cells)}, {', '.join(parts)}."
    if count[FAILED]:
        text += f" Why ({first_failure(cells)})."
    if count[RUNNING]:
        return f"{text} Run `search` again to resume."
    return f"{text} Fix the cause, or search other values."


def finite(value):
    """Whether the value is a finite number."""
    return value is not None and math.isfinite(value)


def sign_of(direction):
    """1 if a larger score is better, else -1."""
    return (
        1 if _arguments.choice("direction", direction, ("max", "min")) == "max" else -1
    )


def strength(cell, name):
    """Alpha or beta of a cell, 0 if it has none."""
    value = cell.values.get(name)
    return value if isinstance(value, numbers.Real) else 0.0


def tied(a, b):
    """Whether two cells are equally good."""
    if state(a) != state(b) or not (finite(a.score) and finite(b.score)):
        return False
    return abs(a.score - b.score) <= EQUAL * max(1.0, abs(a.score))


def _floats(values):
    return np.array([math.nan if v is None else v for v in values], "float64")


def _number(cell):
    """Sorts trials: "9" before "10", "0009" before "0010"."""
    return len(cell.trial_id), cell.trial_id


def _variant(cell):
    """What its alpha is comparable within; "" where no variants are searched."""
    return cell.values.get("variant", "")


def _simplicity(cell):
    # A score after few epochs (Hyperband) is a guess at that after more.
    epochs = cell.values.get(EPOCHS, 0)
    strengths = sum(strength(cell, name) for name in STRENGTHS)
    return -epochs, _variant(cell), strengths, _number(cell)
