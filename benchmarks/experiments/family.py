"""Tables of the family: many methods, one recipe, right and wrong labels."""

import numpy as np
import pandas as pd

from keras_delta._errors import import_optional, unknown_name
from experiments.bootstrap import adjust, compare
from experiments.notation import MISSING
from experiments.robustness import by_label
from experiments.rows import (
    ALIKE,
    finished,
    method_name,
    methods,
    setting_name,
    settings,
)
from experiments.significance import BOOTSTRAP, change, warning
from experiments.table import Table

EACH = ("setting", "method", "label_noise")  # tells cells apart


def family_table(frame):
    """A row for each method, best first: accuracy, calibration, wrong labels, time.

    Columns are the strength, the accuracy on each setting with right labels and its
    mean, that with wrong labels in the mean over the settings, the mean calibration
    error with right ones, and processor seconds of a training with all that comes
    before it, relative to L2. Means are over settings that every method has, with right
    or with these wrong labels.
    """
    rows = _rows(frame)
    names = methods(rows)
    names.sort(key=lambda m: -_mean(rows, m, 0.0, "accuracy"))
    noises = sorted(set(rows["label_noise"]))
    seconds = {m: _seconds(rows, m) for m in names}
    columns = {"alpha": [_strength(rows[rows["method"] == m]) for m in names]}
    columns |= {
        setting_name(s): [
            _percent(rows[_at(rows, m, 0.0) & (rows["setting"] == s)]["accuracy"])
            for m in names
        ]
        for s in settings(rows)
    }
    for noise in noises:
        columns[f"mean, {_labels(noise)}"] = [
            _percent([_mean(rows, m, noise, "accuracy")]) for m in names
        ]
    columns["calibration error"] = [
        _percent([_mean(rows, m, 0.0, "calibration_error")]) for m in names
    ]
    base = seconds.get("l2", np.nan)
    columns["times L2"] = [
        f"{seconds[m] / base:.2f}" if base > 0 else MISSING for m in names
    ]
    seeds = rows.groupby(["setting", "method", "label_noise"])["seed"].nunique()
    seeds = ", ".join(
        f"{_range(seeds.xs(noise, level='label_noise'))} with {_labels(noise)}"
        for noise in noises
    )
    shared = [str(len(_shared(rows, noise))) for noise in noises]
    shared = " and ".join(dict.fromkeys(shared))  # "5", or "5 and 3"
    caption = (
        f"Test accuracy in percent, means over seeds ({seeds}); means are over "
        f"{shared} settings. Alpha: as chosen on training images, or the method's "
        "own. Calibration error: of 15 bins, in percent. Times: of the processor, with "
        "all that comes before training."
    )
    index = [method_name(m) for m in names]
    return Table.of("The family", columns, index, ("method",), caption)


def family_differences(frame, reference):
    """Each method minus the reference, over all settings, with right and wrong labels.

    Points with their 95 % interval; a star: significant, adjusted by Holm over the
    table.
    """
    rows = _rows(frame)
    if reference not in set(rows["method"]):
        raise ValueError(unknown_name("reference", reference, methods(rows)))
    others = [m for m in methods(rows) if m != reference]
    noises = sorted(set(rows["label_noise"]))
    found = {}
    for method in others:
        for noise in noises:
            pair = (rows[_at(rows, m, noise)] for m in (method, reference))
            cases = compare(*pair, settings(rows))
            found[method, noise] = {None: cases[None]} if None in cases else cases
    adjust(found.values())
    columns = {}
    for noise in noises:
        its = [found[m, noise] for m in others]
        columns[_labels(noise)] = [change(next(iter(cases.values()))) for cases in its]
    caption = (
        f"Points of test accuracy ahead of {method_name(reference)}, over all settings "
        f"that both have, with the 95 % interval ({BOOTSTRAP}). A star: significant at "
        "5 %, Holm over the table."
    )
    caption += warning(found.values())
    index = [method_name(m) for m in others]
    title = f"The methods minus {method_name(reference)}"
    return Table.of(title, columns, index, ("method",), caption)


def rank_diagram(frame):
    """Critical-difference diagram: mean ranks, joined where they may be alike.

    A block is a setting with a share of wrong labels, its accuracy the mean over seeds
    (Demšar 2006). Bars join methods that Conover's test after Friedman's, adjusted by
    Holm, does not tell apart.
    """
    posthocs = import_optional("scikit_posthocs", "A rank diagram", "benchmarks")
    from matplotlib.figure import Figure

    rows = _rows(frame)
    keys = ["setting", "label_noise"]
    blocks = rows.pivot_table("accuracy", keys, "method").dropna(axis=0)
    blocks = blocks.rename(columns=method_name).reset_index(drop=True)
    ranks = blocks.rank(axis=1, ascending=False).mean()
    alike = posthocs.posthoc_conover_friedman(blocks, p_adjust="holm")
    figure = Figure(figsize=(9, 0.35 * len(ranks) + 1.2), layout="constrained")
    axis = figure.add_subplot()
    posthocs.critical_difference_diagram(ranks, alike, ax=axis)
    axis.set_title(f"Mean rank of {len(ranks)} methods over {len(blocks)} blocks")
    return figure


def _rows(frame):
    return finished(by_label(frame), (*ALIKE, "factor", "label"), EACH)


def _at(rows, method, noise):
    return (rows["method"] == method) & (rows["label_noise"] == noise)


def _shared(rows, noise):
    """The settings that every method has with this share of wrong labels."""
    its = rows[rows["label_noise"] == noise]
    having = its.groupby("setting")["method"].nunique()
    return [s for s in settings(rows) if having.get(s, 0) == rows["method"].nunique()]


def _mean(rows, method, noise, column):
    """Mean over settings of the means over seeds; NaN where some are not known."""
    its = rows[_at(rows, method, noise) & rows["setting"].isin(_shared(rows, noise))]
    return its.groupby("setting")[column].mean().mean()


def _seconds(rows, method):
    its = rows[_at(rows, method, 0.0) & rows["setting"].isin(_shared(rows, 0.0))]
    return (
        (its["seconds"] + its["prepare_seconds"]).groupby(its["setting"]).mean().sum()
    )


def _strength(rows):
    """The alpha of these rows; several, if they differ."""
    alphas = {v for v in rows.get("alpha", ()) if pd.notna(v) and v > 0}
    return ", ".join(f"{v:g}" for v in sorted(alphas)) or MISSING


def _labels(noise):
    return f"{noise:.0%} wrong labels" if noise else "right labels"


def _percent(values):
    values = np.asarray(values, "float64")
    known = len(values) and np.isfinite(values).all()
    return f"{100 * values.mean():.1f}" if known else MISSING


def _range(counts):
    low, high = counts.min(), counts.max()
    return str(low) if low == high else f"{low} to {high}"
