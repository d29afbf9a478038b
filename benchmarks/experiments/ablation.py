"""The table of an ablation: what single changes do to the accuracy."""

from keras_delta._errors import invalid, unknown_name
from experiments import notation
from experiments.bootstrap import adjust, compare
from experiments.notation import ACCURACY, MISSING
from experiments.rows import accuracies, finished, setting_name, settings
from experiments.significance import BOOTSTRAP, change, warning
from experiments.table import Table


def ablation_table(frame, reference):
    """What single changes do to the accuracy, on each data set and pooled.

    Args:
        frame: of results; `factor` and `label` tell the conditions apart.
        reference: label of the condition that the others are compared with. If several
            factors have it, each is compared with its own.

    Returns:
        `Table`; rows factor and label, columns for each setting the mean ± standard
        deviation over seeds and the difference to the reference in points with its
        95 % interval, and the difference pooled over the settings that both have. A
        star: significant, adjusted by Holm over the table.

    Raises:
        ValueError: for a reference that is not there, or not in all of the factors that
            need it, and as `finished`.
    """
    rows = finished(frame, each=("setting", "factor", "label"))
    bases = _bases(rows, reference)
    every = settings(rows)
    part = {
        (factor, label): rows[(rows["factor"] == factor) & (rows["label"] == label)]
        for factor, label in bases
    }
    found = {
        condition: compare(part[condition], part[base], every)
        for condition, base in bases.items()
        if condition != base
    }
    adjust(found.values())
    cells = accuracies(rows, "setting", "factor", "label")
    count, seeds = notation.seeds(map(len, cells.values()))
    body = {}
    for setting in every:
        name = setting_name(setting)
        body[name, "accuracy"] = [
            notation.mean(cells.get((setting, *c), ()), count) for c in bases
        ]
        body[name, "difference"] = [_change(found.get(c), setting) for c in bases]
    if len(every) > 1:
        body["all data", "difference"] = [_change(found.get(c), None) for c in bases]
    index = [(factor or MISSING, label or MISSING) for factor, label in bases]
    caption = (
        f'{ACCURACY}{seeds}; difference to "{reference}" in points with its 95 % '
        f"interval ({BOOTSTRAP}). A star: significant at 5 %, Holm over the table."
    )
    caption += warning(found.values())
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


def _change(cases, setting):
    """The difference in a setting, or over all (None); none of the reference."""
    case = cases[setting] if cases else None
    some = ""
    if case and setting is None and case.settings < (every := len(cases) - 1):
        some = f" ({case.settings} of {every})"
    return change(case, some)
