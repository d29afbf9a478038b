"""Tables of methods on few photographs: accuracies, and differences to one of them."""

from keras_delta._errors import unknown_name
from experiments import notation
from experiments.notation import ACCURACY, MISSING
from experiments.published import data_name, method_name
from experiments.rows import (
    PLAIN,
    accuracies,
    finished,
    methods,
    setting_name,
    settings,
)
from experiments.significance import BOOTSTRAP, against, star, warning
from experiments.table import Table

COLUMNS = ("difference", "95 % interval", "p", "p (Holm)", "seeds", "images")


def few_shot_table(frame, reference="delta"):
    """Accuracies of the methods by data set and images a class.

    A star marks a method whose difference from `reference` is significant, as
    `differences` says.

    Args:
        frame: of results of one network, augmentation and schedule.
        reference: the method that the others are compared with, if it is there.

    Returns:
        `Table`; rows methods, columns settings. Numbers of seeds stand in the cells
        where they differ, else in the caption.

    Raises:
        ValueError: as `finished`.
    """
    rows = finished(frame, PLAIN)
    names = methods(rows)
    found = against(rows, reference) if reference in names else {}
    cells = accuracies(rows, "setting", "method")
    count, seeds = notation.seeds(map(len, cells.values()))
    body = {}
    for dataset, per_class in settings(rows):
        setting = dataset, per_class
        images = "all" if per_class is None else f"{per_class} a class"
        body[data_name(dataset), images] = [
            notation.mean(cells.get((setting, method), ()), count)
            + star(found.get(method, {}).get(setting))
            for method in names
        ]
    caption = f"{ACCURACY}{seeds}."
    if found:
        caption += (
            f" A star: differs from {method_name(reference)} ({BOOTSTRAP}; "
            "5 %, Holm over the table and the pooled differences)."
        )
        caption += warning(found.values())
    index = [method_name(m) for m in names]
    return Table.of("Accuracy by images a class", body, index, ("method",), caption)


def differences(frame, reference="delta"):
    """One method minus each of the others, with intervals, by setting and pooled.

    Args:
        frame: of results of one network, augmentation and schedule.
        reference: the method that the others are subtracted from.

    Returns:
        `Table`; rows the other method and the setting, the mean over all settings last;
        columns the difference in points, its 95 % interval, p, p adjusted by Holm over
        all rows, and the numbers of common seeds and test images
        (`paired_interval`, `pooled_interval`).

    Raises:
        ValueError: if there is no training of `reference`, and as `finished`.
    """
    rows = finished(frame, PLAIN)
    if reference not in set(rows["method"]):
        raise ValueError(unknown_name("reference", reference, methods(rows)))
    found = against(rows, reference)
    every = len(settings(rows))
    index, lines = [], []
    for method, cases in found.items():
        for setting, case in cases.items():
            index.append((method_name(method), _case_name(setting, case, every)))
            lines.append(_cells(case))
    body = {c: [line[k] for line in lines] for k, c in enumerate(COLUMNS)}
    name = method_name(reference)
    caption = (
        f"Points of test accuracy that {name} is ahead, with the interval and the "
        f"two-sided p value of a {BOOTSTRAP}; p (Holm) is adjusted over all "
        "rows. Pooled rows have the least number of seeds and all images."
    )
    caption += warning(found.values())
    title = f"{name} minus the other methods"
    return Table.of(title, body, index, ("minus", "data"), caption)


def _case_name(setting, case, every):
    if setting is not None:
        return setting_name(setting)
    some = f"{case.settings} of " if case.settings < every else ""
    return f"mean of {some}{every}"


def _cells(case):
    i = case.interval
    if i is None:
        return [*[MISSING] * 4, "0", MISSING]
    p = [notation.p_value(v) for v in (i.p_value, case.adjusted)]
    difference = [notation.points(i.difference), notation.limits(i)]
    return [*difference, *p, str(i.seeds), str(i.images)]


def strengths_table(frame):
    """The alpha with which each method was trained, by data set and images a class.

    Args:
        frame: of results of one network, augmentation and schedule.

    Returns:
        `Table`; rows methods (those without an effect of alpha are left out).

    Raises:
        ValueError: as `finished`.
    """
    rows = finished(frame, PLAIN)
    names = [m for m in methods(rows) if rows[rows["method"] == m]["alpha"].any()]
    body = {}
    for dataset, per_class in settings(rows):
        here = rows[[s == (dataset, per_class) for s in rows["setting"]]]
        images = "all" if per_class is None else f"{per_class} a class"
        body[data_name(dataset), images] = [
            ", ".join(f"{a:g}" for a in sorted(set(here[here["method"] == m]["alpha"])))
            or MISSING
            for m in names
        ]
    index = [method_name(m) for m in names]
    return Table.of("Strengths", body, index, ("method",), "Alpha of each training.")
