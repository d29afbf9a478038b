"""What a search found, in plain words."""

import math
import numbers

import numpy as np

from keras_delta._errors import unknown_name
from keras_delta.tuning.noise import holm, paired
from keras_delta.tuning.results import (
    DISCARDED,
    EPOCHS,
    FAILED,
    FINISHED,
    OF_KERAS_TUNER,
    RULES,
    RUNNING,
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
    """What the search found, in a few sentences and a table.

    Who won; how many cells finished, were discarded or failed; whether the others
    are worse by more than noise (`paired` with the best mean, 95 %, corrected by
    `holm`), and which alpha and beta are as good; whether the best mean lies at the
    border of what was searched; the five best cells.

    Args:
        cells: sequence of `Cell`; may be empty.
        objective: its name, such as `"val_accuracy"`.
        direction: `"max"` or `"min"`: which scores are good.
        rule: how the winner is chosen, see `best`.
        folds: of the search.
        limits: dict from alpha and beta to (least, largest) that the search may try;
            default: those that it has tried.

    Returns:
        A string of several lines.

    Raises:
        ImportError: where SciPy is missing.
        ValueError: as `best`, but for cells none of which is finished.
    """
    if rule not in RULES:
        raise ValueError(unknown_name("rule", rule, RULES))
    order = ranked(cells, direction)
    finished = [c for c in order if state(c) == FINISHED]
    if not finished:
        return none_finished(cells)
    winner = best(cells, direction, rule)
    written = formatter(objective, cells)
    lines = [
        _winner(winner, finished[0], objective, written),
        _counts(order),
        "",
        *_noise(finished, folds),
        *_borders(order, folds, limits or {}),
    ]
    if len(finished) > 1:
        lines += [
            f"The best of {len(finished)} means is a little too good, for having been "
            "chosen: measure the winner on images that the search has not seen.",
        ]
        lines += ["", *_table(finished[:SHOWN], objective, written)]
    return "\n".join(lines)


def _winner(winner, first, objective, written):
    line = f"Best: {settings(winner)} with {objective} {_score(winner, written)}"
    line += f" (trial {winner.trial_id}{_of_folds(winner)})."
    if winner is not first:
        line += (
            " It is the strongest regularization within one standard error of the best "
            f"mean, which is {_score(first, written)} for {settings(first)}."
        )
    return line


def settings(cell):
    """`alpha = 0.1, beta = 0.01` and so on."""
    shown = [f"{k} = {_value(cell.values[n])}" for n, k in _shown([cell]).items()]
    return ", ".join(shown) or "no hyperparameters"


def _shown(cells):
    """Dict from hyperparameters to what people call them; the epochs of Hyperband."""
    own = [n for n in names(cells) if not n.startswith(OF_KERAS_TUNER)]
    epochs = {EPOCHS: "epochs"} if any(EPOCHS in c.values for c in cells) else {}
    return {**{n: n for n in own}, **epochs}


def _counts(cells):
    count = {s: sum(state(c) == s for c in cells) for s in STATES}
    parts = [f"{count[FINISHED]} finished"]
    if count[DISCARDED]:
        parts.append(f"{count[DISCARDED]} discarded early as clearly worse")
    if count[RUNNING]:
        parts.append(f"{count[RUNNING]} not finished")
    if count[FAILED]:
        parts.append(f"{count[FAILED]} failed ({first_failure(cells)})")
    return f"{_cells(len(cells))}: {', '.join(parts)}."


def _as_good(finished, folds):
    """The cells that the first, the best, is not significantly better than.

    Without an estimate of the noise: those that are equal to it.
    """
    first, *others = finished
    p = [paired(first, c, folds).p_value for c in others]
    if all(math.isnan(v) for v in p):
        return [c for c in finished if tied(first, c)]
    adjusted = holm(np.nan_to_num(p, nan=1.0))
    return [first, *(c for c, v in zip(others, adjusted, strict=True) if v >= LEVEL)]


def _noise(finished, folds):
    first, *others = finished
    if not others:
        return ["Only one cell is finished, so there is nothing to compare it with."]
    if all(math.isnan(paired(first, c, folds).p_value) for c in others):
        return [
            "One fold gives no estimate of the noise: the differences between the "
            "cells may be chance. Search with more folds to know."
        ]
    good = _as_good(finished, folds)
    worse, ranges = len(finished) - len(good), _ranges(good)
    cells = "other finished cell" + "s" * (len(others) > 1)
    test = "paired t test, corrected for shared training images; 95 %, Holm"
    if not worse:
        text = (
            "The search found no difference that is larger than the noise: none of "
            f"the {len(others)} {cells} is significantly worse than the best ({test})."
        )
        if ranges:
            text += f" As far as it can tell, any will do: {ranges}."
    else:
        text = (
            f"{worse} of the {len(others)} {cells} {'is' if worse == 1 else 'are'} "
            f"significantly worse than the best ({test})."
        )
        if ranges and len(good) > 1:
            text += f" As good as the best, within the noise: {ranges}."
    lines = [text]
    if min(len(c.scores) for c in finished) == 2:
        lines.append("Two folds say little about the noise; five say more.")
    return lines


def _ranges(cells):
    """`alpha from 0.001 to 0.1 and beta = 0.01`, of those that the cells have."""
    parts = []
    for name in STRENGTHS:
        values = _values(name, cells)
        if len(values) == 1:
            parts.append(f"{name} = {_value(values[0])}")
        elif values:
            parts.append(f"{name} from {_value(values[0])} to {_value(values[-1])}")
    return " and ".join(parts)


def _borders(cells, folds, limits):
    """A sentence for each strength whose best value may lie outside."""
    lines = []
    finished = [c for c in cells if state(c) == FINISHED]
    judged = [c for c in cells if state(c) in (FINISHED, DISCARDED)]
    # Of alpha a trend is worth a word even if it is not significant.
    equal = {
        "alpha": [c for c in finished if tied(finished[0], c)],
        "beta": _as_good(finished, folds),
    }
    for name in STRENGTHS:
        searched, value = _values(name, cells), finished[0].values.get(name)
        if len(searched) < 2 or not isinstance(value, numbers.Real):
            continue
        low, high = limits.get(name, (searched[0], searched[-1]))
        end = "smallest" if _near(value, low, high) else "largest"
        if end == "largest" and not _near(value, high, low):
            continue
        if _values(name, equal[name]) == _values(name, judged):
            continue  # it makes no difference
        line = f"The best mean has the {end} {name} of the search, {_value(value)}: "
        if value == 0:
            part = "the features" if name == "alpha" else "the head"
            lines.append(f"{line}no penalty of {part} at all.")
            continue
        further = f"down to {low / 10:g}" if end == "smallest" else ""
        further = further or f"up to {high * 10:g}"
        line += f"a better one may lie beyond. Widen the range of {name}, say "
        lines.append(f"{line}{further}, and search again.")
    return lines


def _near(value, end, other):
    """Whether a value is in the outer tenth of the range, on a logarithmic scale."""
    if 0 in (value, end, other):
        return value == end
    return abs(math.log(value / end)) <= 0.1 * abs(math.log(other / end))


def _table(cells, objective, written):
    shown = _shown(cells)
    rows = [["trial", *shown.values(), objective]]
    for cell in cells:
        values = [_value(cell.values.get(n)) for n in shown]
        rows.append([cell.trial_id, *values, _score(cell, written)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(v.rjust(w) for v, w in zip(row, widths, strict=True)) for row in rows
    ]


def _score(cell, written):
    error = standard_error(cell)
    if math.isnan(error):
        return written(cell.score)
    return f"{written(cell.score)} ± {written(error, error=True)}"


def _of_folds(cell):
    n = len(cell.scores)
    return f", mean ± standard error of {n} folds" if n > 1 else ", one fold"


def _value(value):
    if value is None:
        return "-"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-19:]}"


def _values(name, cells):
    """Sorted list of the numbers that a strength has in the cells."""
    found = {c.values.get(name) for c in cells}
    return sorted(v for v in found if isinstance(v, numbers.Real))


def _cells(count):
    return "1 cell" if count == 1 else f"{count} cells"
