"""Tables of robustness: wrong labels in training, corrupted images in testing."""

from keras_delta._errors import import_optional, unknown_name
from experiments import notation
from experiments.bootstrap import adjust, compare
from experiments.notation import ACCURACY
from experiments.published import method_name
from experiments.rows import (
    ALIKE,
    accuracies,
    finished,
    methods,
    setting_name,
    settings,
)
from experiments.significance import BOOTSTRAP, change, warning
from experiments.table import Table

LABELS, IMAGES = "wrong labels", "images"
NAMES = ("data", "what", "how much")


def robustness_table(frame):
    """Accuracies after training with wrong labels, and on corrupted test images.

    Corrupted images are those of trainings without wrong labels.

    Args:
        frame: of results of one network, augmentation and schedule.

    Returns:
        `Table`; rows the setting and the condition, columns methods; mean ± standard
        deviation over seeds.

    Raises:
        ValueError: as `finished`.
    """
    tests = _tests(frame)
    cells = accuracies(tests, "setting", "method")
    count, seeds = notation.seeds(map(len, cells.values()))
    places = _places(tests)
    body = {
        method_name(m): [notation.mean(cells.get((p, m), ()), count) for p in places]
        for m in methods(tests)
    }
    caption = (
        f"{ACCURACY}{seeds}: trained with a share of wrong labels and tested on clean "
        "images, or trained with right labels and tested on corrupted images (kind and "
        "severity)."
    )
    index = [_name(*place) for place in places]
    return Table.of("Robustness", body, index, NAMES, caption)


def robustness_differences(frame, reference="delta"):
    """One method minus each of the others, by condition and pooled over conditions.

    Args:
        frame: of results of one network, augmentation and schedule.
        reference: the method that the others are subtracted from.

    Returns:
        `Table`; rows the setting and the condition, the means over all shares of wrong
        labels above 0 and over all corruptions last; columns the other methods; the
        difference in points with its 95 % interval (`paired_interval`,
        `pooled_interval`). A star: significant, adjusted by Holm over the table.

    Raises:
        ValueError: if there is no training of `reference`, and as `finished`.
    """
    tests = _tests(frame)
    if reference not in set(tests["method"]):
        raise ValueError(unknown_name("reference", reference, methods(tests)))
    mine = tests[tests["method"] == reference]
    others = [m for m in methods(tests) if m != reference]
    groups = {}
    for place in _places(tests):
        groups.setdefault(_group(place), []).append(place)
    found = {
        (method, group): compare(mine, tests[tests["method"] == method], places)
        for method in others
        for group, places in groups.items()
    }
    adjust(found.values())
    lines = [(g, p, _name(*p)) for g, places in groups.items() for p in places]
    lines += [
        (group, None, ("mean", group, "all"))
        for group, places in groups.items()
        if len(places) > 1
    ]
    body = {
        f"minus {method_name(m)}": [change(found[m, g][place]) for g, place, _ in lines]
        for m in others
    }
    name = method_name(reference)
    caption = (
        f"Points of test accuracy that {name} is ahead, with the 95 % interval "
        f"({BOOTSTRAP}). A star: significant at 5 %, Holm over the table."
    )
    caption += warning(found.values())
    title = f"Robustness: {name} minus the other methods"
    return Table.of(title, body, [line for *_, line in lines], NAMES, caption)


def _tests(frame):
    """A row for each test of each training.

    A `setting` is (data set, (images a class, what, how much)), as `compare` needs it.
    """
    alike = (*ALIKE, "factor", "label")
    rows = finished(frame, alike, ("setting", "method", "label_noise"))
    found = []
    for _, row in rows.iterrows():
        of = {"method": row["method"], "seed": row["seed"]}
        dataset, per_class = row["setting"]
        tests = {(LABELS, row["label_noise"]): (row["accuracy"], row["correct"])}
        if row["label_noise"] == 0:
            spoilt = row["corrupted"]
            for how, correct in (spoilt if isinstance(spoilt, dict) else {}).items():
                accuracy = correct.count("1") / len(correct)
                tests[IMAGES, how] = accuracy, correct
        for condition, (accuracy, correct) in tests.items():
            setting = dataset, (per_class, *condition)
            of_test = {"setting": setting, "accuracy": accuracy, "correct": correct}
            found.append({**of, **of_test})
    columns = ["method", "seed", "setting", "accuracy", "correct"]
    pandas = import_optional("pandas", "A table", "benchmarks")
    return pandas.DataFrame(found, columns=columns)


def _places(tests):
    """The settings in order: wrong labels first, severities as numbers."""
    plain = [(dataset, per_class) for dataset, (per_class, *_) in tests["setting"]]
    order = settings(tests.assign(setting=plain))

    def key(place):
        dataset, (per_class, what, how) = place
        if what == LABELS:
            return order.index((dataset, per_class)), 0, "", how
        kind, _, severity = how.rpartition(" ")
        number = (kind, int(severity)) if severity.isdigit() else (how, 0)
        return order.index((dataset, per_class)), 1, *number

    return sorted(set(tests["setting"]), key=key)


def _name(dataset, condition):
    per_class, what, how = condition
    how = how if what == IMAGES else f"{100 * how:.3g} %"
    return setting_name((dataset, per_class)), what, how


def _group(place):
    """What a condition is pooled with."""
    _, (_, what, how) = place
    return "clean" if (what, how) == (LABELS, 0) else what
