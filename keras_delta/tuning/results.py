"""What a cross-validated search found: table, winner, noise, words, TensorBoard."""

import contextlib
import hashlib
import math
import numbers
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_delta import files
from keras_delta.errors import invalid, needed, unknown_name

RULES = ("best", "one_standard_error")
FINISHED, DISCARDED, RUNNING, FAILED = STATES = (
    "finished",
    "discarded",
    "not finished",
    "failed",
)
EQUAL = 1e-12  # relative; scores that differ by less are a tie
LEVEL = 0.05  # of the statements about noise in `summary`
SHOWN = 5  # cells in the table of `summary`
LONGEST = 200  # characters of a failure's message
STRENGTHS = ("alpha", "beta")
OF_KERAS_TUNER = "tuner/"  # hyperparameters that Keras Tuner adds, such as epochs
STANDARD_ERROR = "standard_error"
OURS = ".keras_delta"  # ends the names of the event files that this module wrote


class Cell(NamedTuple):
    """One setting of the hyperparameters and what its folds gave.

    Attributes:
        trial_id: of Keras Tuner; an earlier trial has a smaller one.
        values: dict of hyperparameters, `alpha` and `beta` among them.
        status: of Keras Tuner: `"COMPLETED"`, `"FAILED"`, `"RUNNING"` and so on.
        scores: dict from the number of a fold to the objective on its held-out part;
            folds that are not trained (yet) are missing.
        score: what the search ranks by: the mean of the scores or, for a discarded
            cell, an estimate of it; None while it is not finished.
        discarded: whether it was given up after some folds, for being worse.
        seconds: it took so long.
        message: why it failed, else None.
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


class Paired(NamedTuple):
    """How two cells differ on the folds that both have; see `paired`."""

    difference: float
    standard_error: float
    p_value: float
    folds: int


def state(cell):
    """One of `STATES`; a score that is not finite counts as a failure."""
    if cell.status in ("FAILED", "INVALID"):
        return FAILED
    if cell.discarded:
        return DISCARDED
    if cell.status != "COMPLETED":
        return RUNNING
    return FINISHED if _finite(cell.score) else FAILED


def standard_error(cell):
    """`std(scores, ddof=1) / sqrt(folds)`, nan for less than two folds."""
    scores = np.array(list(cell.scores.values()), "float64")
    if len(scores) < 2:
        return math.nan
    return float(scores.std(ddof=1) / math.sqrt(len(scores)))


def ranked(cells, direction):
    """The cells, best first: the finished, the discarded, the others, the failed.

    Of equal ones, the smaller alpha + beta comes first, then the earlier trial.

    Args:
        cells: sequence of `Cell`.
        direction: `"max"` or `"min"`: which scores are good.
    """
    sign = _sign(direction)

    def key(cell):
        score = -sign * cell.score if _finite(cell.score) else math.inf
        return STATES.index(state(cell)), score, _simplicity(cell)

    groups = []
    for cell in sorted(cells, key=key):
        if groups and _tied(groups[-1][0], cell):
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return [cell for group in groups for cell in sorted(group, key=_simplicity)]


def best(cells, direction, rule="best"):
    """The winner of a search.

    Args:
        cells: sequence of `Cell`.
        direction: `"max"` or `"min"`: which scores are good.
        rule: `"best"`: the best mean; of equal ones (to 1e-12) the smaller
            alpha + beta, then the earlier trial. `"one_standard_error"`: of the
            cells whose mean is at most one standard error of the best cell worse
            than the best mean, the strongest regularization: the largest alpha, then
            the largest beta, then the better mean.

    Returns:
        A `Cell` that is finished, and neither discarded nor failed.

    Raises:
        ValueError: for an unknown rule, if no cell is finished, or for
            `"one_standard_error"` if the best cell has less than two folds.

    Source of the second rule: Breiman, Friedman, Olshen and Stone, "Classification
        and Regression Trees", 1984, section 3.4.3.
    """
    if rule not in RULES:
        raise ValueError(unknown_name("rule", rule, RULES))
    order = [c for c in ranked(cells, direction) if state(c) == FINISHED]
    if not order:
        raise ValueError(_none_finished(cells))
    winner = order[0]
    if rule == "best":
        return winner
    error = standard_error(winner)
    if math.isnan(error):
        remedy = 'Search with more folds, or pass `rule="best"`.'
        expected = "'best' for cells with one fold, which have no standard error"
        raise ValueError(invalid("rule", expected, rule, remedy))
    far = error + EQUAL * max(1.0, abs(winner.score))
    near = [c for c in order if abs(c.score - winner.score) <= far]
    # `max` takes the first of equal ones, which has the better mean.
    return max(near, key=lambda c: [_strength(c, name) for name in STRENGTHS])


def frame(cells, objective, direction):
    """The cells as a table, one row a cell, best first as in `ranked`.

    Args:
        cells: sequence of `Cell`; may be empty.
        objective: its name, such as `"val_accuracy"`.
        direction: `"max"` or `"min"`: which scores are good.

    Returns:
        A `pandas.DataFrame` with the columns `trial`; the hyperparameters, alpha and
        beta first; the objective (what the search ranks by: the mean over the folds,
        or the estimate of a discarded cell); `standard_error` of the folds' scores;
        `folds`, how many there are; `fold_0` and so on; the means of other metrics;
        `status`, `discarded`, `seconds` and `message`.

    Raises:
        ImportError: where pandas is missing.
    """
    pandas = needed("pandas", "The table of a search", "tuning")
    order = ranked(cells, direction)
    folds = range(max((k for c in order for k in c.scores), default=-1) + 1)
    metrics = dict.fromkeys(name for c in order for name in c.metrics)
    columns = {"trial": [c.trial_id for c in order]}
    for name in names(cells):
        columns[name] = [c.values.get(name) for c in order]
    columns[objective] = _floats(c.score for c in order)
    columns[STANDARD_ERROR] = _floats(standard_error(c) for c in order)
    columns["folds"] = np.array([len(c.scores) for c in order], "int64")
    for k in folds:
        columns[f"fold_{k}"] = _floats(c.scores.get(k) for c in order)
    for name in metrics:
        columns.setdefault(name, _floats(c.metrics.get(name) for c in order))
    columns["status"] = [c.status for c in order]
    columns["discarded"] = np.array([c.discarded for c in order], bool)
    columns["seconds"] = _floats(c.seconds for c in order)
    columns["message"] = [c.message for c in order]
    return pandas.DataFrame(columns)


def names(cells):
    """List of the hyperparameters, alpha and beta first, Keras Tuner's own last."""
    found = list(dict.fromkeys(name for c in cells for name in c.values))
    found.sort(key=lambda n: (n != "alpha", n != "beta", n.startswith(OF_KERAS_TUNER)))
    return found


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
    sign = _sign(direction)
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


def formatter(objective, cells):
    """How scores are written: a function of a value, and `error=True` for errors.

    Percent for accuracies (`"acc"` in the name, all values from 0 to 1), else 4
    significant digits, 2 for a standard error.
    """
    values = [v for c in cells for v in (*c.scores.values(), c.score) if _finite(v)]
    percent = "acc" in objective.lower() and all(0 <= v <= 1 for v in values)

    def written(value, error=False):
        if not percent:
            return f"{value:.2g}" if error else f"{value:.4g}"
        value = 100 * value
        return f"{value:.1g}%" if error and 0 < value < 0.05 else f"{value:.1f}%"

    return written


def summary(cells, objective, direction, rule="best", folds=5):
    """What the search found, in a few sentences and a table.

    Who won; how many cells finished, were discarded or failed; whether the others
    are worse by more than noise (`paired` with the best mean, 95 %, corrected by
    `holm`), and which alpha and beta are as good; whether the winner lies at the
    border of what was searched; the five best cells.

    Args:
        cells: sequence of `Cell`; may be empty.
        objective: its name, such as `"val_accuracy"`.
        direction: `"max"` or `"min"`: which scores are good.
        rule: how the winner is chosen, see `best`.
        folds: of the search.

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
        return _none_finished(cells)
    winner = best(cells, direction, rule)
    written = formatter(objective, cells)
    lines = [
        _winner(winner, finished[0], objective, written),
        _counts(order),
        "",
        *_noise(finished, folds),
        *_borders(winner, order, folds),
    ]
    if len(finished) > 1:
        lines += [
            f"The best of {len(finished)} means is a little too good, for having been "
            "chosen: measure the winner on images that the search has not seen.",
        ]
        lines += ["", *_table(finished[:SHOWN], objective, written)]
    return "\n".join(lines)


def write_hparams(cells, objective, folder):
    """Write the cells for TensorBoard's HParams: one run a trial.

    Each run has the hyperparameters and the scalars objective, `standard_error` and
    other metrics, at step 0. It is one file, replaced when it changes, and runs of
    trials that are not among the cells any more are removed; so it can be called as
    often as you like. Only files that this function wrote are touched.

    Args:
        cells: sequence of `Cell`.
        objective: its name, such as `"val_accuracy"`.
        folder: to look at with `tensorboard --logdir`; made if need be.
    """
    from tensorboard.plugins.hparams import api, api_pb2
    from tensorboard.plugins.hparams.summary import session_end_pb
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    folder = Path(folder)
    scalars = dict.fromkeys(n for c in cells for n in c.metrics)
    scalars = [objective, *(n for n in scalars if n != objective), STANDARD_ERROR]
    parameters = [api.HParam(name, _domain(api, name, cells)) for name in names(cells)]
    metrics = [api.Metric(name) for name in scalars]
    _write_run(folder, [api.hparams_config_pb(parameters, metrics, 0)])
    ends = {
        FINISHED: api_pb2.STATUS_SUCCESS,
        DISCARDED: api_pb2.STATUS_SUCCESS,
        FAILED: api_pb2.STATUS_FAILURE,
    }
    for cell in cells:
        values = {n: _plain(v) for n, v in cell.values.items() if v is not None}
        summaries = [api.hparams_pb(values, cell.trial_id, 0)]
        measured = {
            **cell.metrics,
            objective: cell.score,
            STANDARD_ERROR: standard_error(cell),
        }
        summaries += [scalar_pb(n, v) for n, v in measured.items() if _finite(v)]
        if state(cell) in ends:
            summaries.append(session_end_pb(ends[state(cell)], cell.seconds))
        _write_run(folder / cell.trial_id, summaries)
    trials = {c.trial_id for c in cells}
    for path in folder.glob(f"*/*{OURS}"):
        if path.parent.name not in trials:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in there
                path.parent.rmdir()


def _write_run(folder, summaries):
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    # As bytes: TensorBoard has two classes for the same messages.
    summaries = [s.SerializeToString(deterministic=True) for s in summaries]
    digest = hashlib.sha256(b"".join(summaries)).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    before = list(folder.glob(f"*{OURS}"))
    if len(before) == 1 and before[0].name.endswith(f".{digest}{OURS}"):
        return
    now = time.time()
    # TensorBoard reads whatever has "tfevents" in its name, in the order of names.
    name = f"events.out.tfevents.{time.time_ns():020d}.{digest}{OURS}"
    whole = folder / "unread"
    with files.replacing(whole) as temporary, open(temporary, "wb") as file:
        writer = RecordWriter(file)
        event = event_pb2.Event(wall_time=now, file_version="brain.Event:2")
        writer.write(event.SerializeToString())
        for summary_bytes in summaries:
            event = event_pb2.Event(wall_time=now)
            event.summary.MergeFromString(summary_bytes)
            writer.write(event.SerializeToString())
    for path in before:
        path.unlink(missing_ok=True)
    os.replace(whole, folder / name)


def _domain(api, name, cells):
    values = {_plain(c.values[name]) for c in cells if c.values.get(name) is not None}
    if len({type(v) for v in values}) != 1:
        return None
    return api.Discrete(sorted(values))


def _plain(value):
    """A value that HParams take: float, bool or string."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)


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
    """`alpha = 0.1, beta = 0.01` and so on, without Keras Tuner's own."""
    shown = [n for n in names([cell]) if not n.startswith(OF_KERAS_TUNER)]
    shown = [f"{n} = {_value(cell.values[n])}" for n in shown]
    return ", ".join(shown) or "no hyperparameters"


def _counts(cells):
    count = {s: sum(state(c) == s for c in cells) for s in STATES}
    parts = [f"{count[FINISHED]} finished"]
    if count[DISCARDED]:
        parts.append(f"{count[DISCARDED]} discarded early as clearly worse")
    if count[RUNNING]:
        parts.append(f"{count[RUNNING]} not finished")
    if count[FAILED]:
        parts.append(f"{count[FAILED]} failed ({_first_failure(cells)})")
    return f"{_cells(len(cells))}: {', '.join(parts)}."


def _first_failure(cells):
    failed = [c for c in cells if state(c) == FAILED]
    first = min(failed, key=_number)
    which = f"trial {first.trial_id}"
    return f"{which if len(failed) == 1 else f'the first, {which}'}: {_reason(first)}"


def _reason(cell):
    lines = [x.strip() for x in (cell.message or "").splitlines() if x.strip()]
    if not lines:
        return "no reason is known" if cell.score is None else f"score {cell.score}"
    reason = lines[-1 if lines[0].startswith("Traceback") else 0].rstrip(".")
    return reason if len(reason) <= LONGEST else reason[:LONGEST] + "..."


def _none_finished(cells):
    if not cells:
        return "The search has no cells yet. Run `search` first."
    count = {s: sum(state(c) == s for c in cells) for s in STATES}
    parts = [f"{n} {s}" for s, n in count.items() if n]
    text = f"No cell of the search is finished: of {len(cells)}, {', '.join(parts)}."
    if count[FAILED]:
        text += f" Why ({_first_failure(cells)})."
    if count[RUNNING]:
        return f"{text} Run `search` again to go on."
    return f"{text} Mend that, or search other values."


def _as_good(finished, folds):
    """The cells that the first, the best, is not significantly better than.

    Without an estimate of the noise: those that are equal to it.
    """
    first, *others = finished
    p = [paired(first, c, folds).p_value for c in others]
    if all(math.isnan(v) for v in p):
        return [c for c in finished if _tied(first, c)]
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


def _borders(winner, cells, folds):
    """A sentence for each strength whose best value may lie outside."""
    lines = []
    finished = [c for c in cells if state(c) == FINISHED]
    judged = [c for c in cells if state(c) in (FINISHED, DISCARDED)]
    # Of alpha a trend is worth a word even if it is not significant.
    equal = {
        "alpha": [c for c in finished if _tied(finished[0], c)],
        "beta": _as_good(finished, folds),
    }
    for name in STRENGTHS:
        searched, value = _values(name, cells), winner.values.get(name)
        if len(searched) < 2 or value not in (searched[0], searched[-1]):
            continue
        if _values(name, equal[name]) == _values(name, judged):
            continue  # it makes no difference
        end = "smallest" if value == searched[0] else "largest"
        line = f"The winner has the {end} {name} of the search, {_value(value)}: "
        if value == 0:
            part = "the features" if name == "alpha" else "the head"
            lines.append(f"{line}no penalty of {part} at all.")
            continue
        further = f"down to {value / 10:g}" if end == "smallest" else ""
        further = further or f"up to {value * 10:g}"
        line += f"a better one may lie beyond. Widen the range of {name}, say "
        lines.append(f"{line}{further}, and search again.")
    return lines


def _table(cells, objective, written):
    shown = [n for n in names(cells) if not n.startswith(OF_KERAS_TUNER)]
    rows = [["trial", *shown, objective]]
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


def _finite(value):
    return value is not None and math.isfinite(value)


def _floats(values):
    return np.array([math.nan if v is None else v for v in values], "float64")


def _sign(direction):
    if direction not in ("max", "min"):
        raise ValueError(invalid("direction", '"max" or "min"', direction))
    return 1 if direction == "max" else -1


def _strength(cell, name):
    value = cell.values.get(name)
    return value if isinstance(value, numbers.Real) else 0.0


def _number(cell):
    """Sorts trials: "9" before "10", "0009" before "0010"."""
    return len(cell.trial_id), cell.trial_id


def _simplicity(cell):
    return sum(_strength(cell, name) for name in STRENGTHS), _number(cell)


def _tied(a, b):
    if state(a) != state(b) or not (_finite(a.score) and _finite(b.score)):
        return False
    return abs(a.score - b.score) <= EQUAL * max(1.0, abs(a.score))


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
    special = needed("scipy.special", "Telling differences from noise", "tuning")
    return float(special.stdtr(n - 1, -difference / error))
