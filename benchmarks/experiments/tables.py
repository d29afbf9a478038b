"""All tables: from a frame of results, `ResultStore.frame`, to a `Table`.

But for `article_table` and `ablation_table`, the frame is of trainings of one network,
augmentation and schedule; `reference` is the method that the others are compared with
or subtracted from. What cannot be compared is a ValueError, see `rows.finished`.
"""

import numpy as np

from keras_delta._errors import invalid, unknown_name
from experiments import notation
from experiments.bootstrap import adjust, compare
from experiments.notation import ACCURACY, MISSING
from experiments.published import article_table as article_table
from experiments.robustness import by_label as by_label
from experiments.robustness import losses_table as losses_table
from experiments.robustness import robustness_differences as robustness_differences
from experiments.robustness import robustness_table as robustness_table
from experiments.rows import (
    PLAIN,
    accuracies,
    data_name,
    finished,
    method_name,
    methods,
    setting_name,
    settings,
)
from experiments.significance import BOOTSTRAP, against, change, star, warning
from experiments.table import Table

COLUMNS = ("difference", "95 % interval", "p", "p (Holm)", "seeds", "images")
SECONDS = ["seconds", "both"]  # of a training, and with what comes before it
TIMES = ("seconds", "prepare s", "times L2", "times L2, prepared")


def few_shot_table(frame, reference="delta", mean=False):
    """Accuracies of the methods (rows) by data set and images a class (columns).

    With `mean`, the last column is of each seed's mean over all settings.

    A star marks a method whose difference from `reference`, if that is there, is
    significant, as `differences` says.
    """
    rows = finished(frame, PLAIN)
    names = methods(rows)
    cases = against(rows, reference) if reference in names else {}
    cells, columns = accuracies(rows, "setting", "method"), settings(rows)
    if mean and len(columns) > 1:
        cells |= _means(rows, len(columns))
        columns = [*columns, None]
    written, seeds = notation.means(cells)
    body = {
        _column(s): [written((s, m)) + star(cases.get(m, {}).get(s)) for m in names]
        for s in columns
    }
    caption = f"{ACCURACY}{seeds}."
    if cases:
        caption += (
            f" A star: differs from {method_name(reference)} ({BOOTSTRAP}; "
            "5 %, Holm over the table and the pooled differences)."
        )
        caption += warning(cases.values())
    index = [method_name(m) for m in names]
    return Table.of("Accuracy by images a class", body, index, ("method",), caption)


def _means(rows, count):
    """Dict (None, method) to each seed's mean, of seeds with all `count` settings."""
    found = {}
    for (method, _), part in rows.groupby(["method", "seed"], sort=False):
        if len(part) == count:
            found.setdefault((None, method), []).append(part["accuracy"].mean())
    return found


def differences(frame, reference="delta", mean=False):
    """One method minus each of the others, with intervals, by setting and pooled.

    Rows are the other method and the setting, the mean over all settings last; columns
    the difference in points, its 95 % interval, p, p adjusted by Holm over all rows,
    and the numbers of common seeds and test images (`paired_interval`,
    `pooled_interval`). With `mean`, rows are of the mean over all settings alone.
    """
    rows = finished(frame, PLAIN)
    if reference not in set(rows["method"]):
        raise ValueError(unknown_name("reference", reference, methods(rows)))
    comparisons = against(rows, reference, mean)
    every = len(settings(rows))
    lines = {}
    for method, cases in comparisons.items():
        for setting, case in cases.items():
            some = f"{case.settings} of " if case.settings < every else ""
            place = setting_name(setting) if setting else f"mean of {some}{every}"
            lines[method_name(method), place] = _measures(case)
    body = {c: [line[k] for line in lines.values()] for k, c in enumerate(COLUMNS)}
    name = method_name(reference)
    caption = (
        f"Points of test accuracy that {name} is ahead, with the interval and the "
        f"two-sided p value of a {BOOTSTRAP}; p (Holm) is adjusted over all "
        "rows. Pooled rows have the least number of seeds and all images."
    )
    caption += warning(comparisons.values())
    title = f"{name} minus the other methods"
    return Table.of(title, body, list(lines), ("minus", "data"), caption)


def _measures(case):
    i = case.interval
    if i is None:
        return [*[MISSING] * 4, "0", MISSING]
    p = [notation.p_value(v) for v in (i.p_value, case.adjusted)]
    difference = [notation.points(i.difference), notation.limits(i)]
    return [*difference, *p, str(i.seeds), str(i.images)]


def strengths_table(frame):
    """The alpha with which each method was trained, by data set and images a class.

    Methods without an effect of alpha are left out.
    """
    rows = finished(frame, PLAIN)
    names = [m for m in methods(rows) if rows[rows["method"] == m]["alpha"].any()]
    alphas = dict(iter(rows.groupby(["setting", "method"], sort=False)["alpha"]))
    body = {
        _column(s): [
            ", ".join(f"{a:g}" for a in sorted(set(alphas.get((s, m), ())))) or MISSING
            for m in names
        ]
        for s in settings(rows)
    }
    index = [method_name(m) for m in names]
    return Table.of("Strengths", body, index, ("method",), "Alpha of each training.")


def _column(setting):
    if setting is None:
        return "mean", "over settings"
    dataset, per_class = setting
    return data_name(dataset), "all" if per_class is None else f"{per_class} a class"


def times(frame):
    """Processor seconds of the methods, also relative to L2.

    Ratios are of mean seconds within a setting, then averaged over the settings that
    have both methods, so that data sets of other sizes do not mix.
    """
    rows = finished(frame, PLAIN)
    rows = rows[rows["seconds"].notna()]
    rows = rows.assign(both=rows["seconds"] + rows["prepare_seconds"])
    cells = rows.groupby(["setting", "method"], sort=False)
    means = {key: part[SECONDS].mean() for key, part in cells}
    lines = {}
    for method in methods(rows):
        mine = rows[rows["method"] == method]
        ratios = [
            means[setting, method] / means[setting, "l2"]
            for setting in settings(mine)
            if (setting, "l2") in means
        ]
        relative = [f"{r:.2f}" for r in np.mean(ratios, axis=0)] if ratios else None
        line = [f"{mine[s].mean():.1f}" for s in ("seconds", "prepare_seconds")]
        line += relative or [MISSING] * 2
        lines[method_name(method)] = [*line, str(len(mine)), str(len(ratios))]
    names = (*TIMES, "trainings", "settings")
    body = {name: [line[k] for line in lines.values()] for k, name in enumerate(names)}
    caption = (
        "Processor seconds of a training and of what comes before it, mean over all "
        "trainings; ratios within a setting, mean over the settings that have both "
        "methods."
    )
    return Table.of("Time", body, list(lines), ("method",), caption)


def ablation_table(frame, reference):
    """What single changes do to the accuracy, on each data set and pooled.

    Rows are factor and label; columns for each setting the mean ± standard deviation
    over seeds and the difference to the reference in points with its 95 % interval, and
    the difference pooled over the settings that both have. A star: significant,
    adjusted by Holm over the table. `reference` is the label of the condition that the
    others are compared with; if several factors have it, each is compared with its own.
    """
    rows = finished(frame, each=("setting", "factor", "label"))
    bases, every = _bases(rows, reference), settings(rows)
    part = {
        (factor, label): rows[(rows["factor"] == factor) & (rows["label"] == label)]
        for factor, label in bases
    }
    cases = {
        condition: compare(part[condition], part[base], every)
        for condition, base in bases.items()
        if condition != base
    }
    adjust(cases.values())

    def changes(setting):
        """The differences in a setting, or over all (None); none of the reference."""
        for condition in bases:
            case, some = cases.get(condition, {}).get(setting), ""
            if case and setting is None and case.settings < len(every):
                some = f" ({case.settings} of {len(every)})"
            yield change(case, some)

    mean, seeds = notation.means(accuracies(rows, "setting", "factor", "label"))
    body = {}
    for setting in every:
        name = setting_name(setting)
        body[name, "accuracy"] = [mean((setting, *c)) for c in bases]
        body[name, "difference"] = list(changes(setting))
    if len(every) > 1:
        body["all data", "difference"] = list(changes(None))
    index = [(factor or MISSING, label or MISSING) for factor, label in bases]
    caption = (
        f'{ACCURACY}{seeds}; difference to "{reference}" in points with its 95 % '
        f"interval ({BOOTSTRAP}). A star: significant at 5 %, Holm over the table."
    )
    caption += warning(cases.values())
    return Table.of("Ablation", body, index, ("factor", "condition"), caption)


def _bases(rows, reference):
    """Dict from each (factor, label), by factor, to that which it is compared with."""
    conditions = list(dict.fromkeys(zip(rows["factor"], rows["label"], strict=True)))
    factors = list(dict(conditions))
    own = [factor for factor, label in conditions if label == reference]
    if not own:
        known = [label for _, label in conditions]
        raise ValueError(unknown_name("reference", reference, known))
    if len(own) > 1 and (lost := [f for f in factors if f not in own]):
        remedy = f"Several factors have {reference!r}, so each needs one."
        expected = "a condition of each factor"
        raise ValueError(invalid("reference", expected, {"missing": lost[0]}, remedy))
    conditions.sort(key=lambda c: factors.index(c[0]))
    return {
        (factor, label): (factor if len(own) > 1 else own[0], reference)
        for factor, label in conditions
    }
