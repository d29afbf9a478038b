"""Tables of robustness: wrong labels in training, corrupted images in testing."""

from keras_delta._errors import import_optional, unknown_name
from experiments import notation
from experiments.bootstrap import adjust, compare
from experiments.notation import ACCURACY, MISSING
from experiments.rows import (
    ALIKE,
    accuracies,
    finished,
    method_name,
    methods,
    setting_name,
    settings,
)
from experiments.significance import BOOTSTRAP, change, warning
from experiments.table import Table

LABELS, IMAGES = "wrong labels", "images"
NAMES = ("data", "what", "how much")
EACH = ("setting", "method", "label_noise")  # tells cells apart


def robustness_table(frame):
    """Accuracies after training with wrong labels, and on corrupted test images.

    Corrupted images are those of trainings without wrong labels. Rows are the setting
    and the condition, columns methods; mean ± standard deviation over seeds.
    """
    tests = _tests(frame)
    mean, seeds = notation.means(accuracies(tests, "setting", "method"))
    places = _places(tests)
    body = {method_name(m): [mean((p, m)) for p in places] for m in methods(tests)}
    caption = (
        f"{ACCURACY}{seeds}: trained with a share of wrong labels and tested on clean "
        "images, or trained with right labels and tested on corrupted images (kind and "
        "severity)."
    )
    index = [_name(*place) for place in places]
    return Table.of("Robustness", body, index, NAMES, caption)


def robustness_differences(frame, reference="delta"):
    """One method minus each of the others, by condition and pooled over conditions.

    Rows are the setting and the condition, the means over all shares of wrong labels
    above 0 and over all corruptions last; columns the other methods; the difference in
    points with its 95 % interval (`paired_interval`, `pooled_interval`). A star:
    significant, adjusted by Holm over the table.
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


def losses_table(frame):
    """Mean cross-entropy on the clean test images, by the share of wrong labels.

    Rows are the setting and the share, columns methods. Of two models that are right
    as often, the one whose probabilities are nearer to the truth has the smaller one.
    """
    rows = finished(frame, (*ALIKE, "factor", "label"), EACH)
    means = rows.groupby(["setting", "label_noise", "method"])["loss"].mean()
    places = [
        (setting, share)
        for setting in settings(rows)
        for share in sorted(set(rows["label_noise"]))
    ]
    body = {
        method_name(m): [
            f"{means[s, n, m]:.2f}" if (s, n, m) in means else MISSING
            for s, n in places
        ]
        for m in methods(rows)
    }
    index = [(setting_name(s), f"{100 * n:.3g} %") for s, n in places]
    caption = "Mean cross-entropy on the test images, in nats; means over seeds."
    return Table.of("Losses", body, index, ("data", LABELS), caption)


def by_label(frame):
    """Rows of one method that differ by their label, as if each were a method."""
    return frame.assign(method=frame["label"], factor="", label="")


def _tests(frame):
    """A row for each test of each training.

    A `setting` is (data set, (images a class, what, how much)), as `compare` needs it.
    """
    pandas = import_optional("pandas", "A table", "benchmarks")
    rows = finished(frame, (*ALIKE, "factor", "label"), EACH)
    columns = ["method", "seed", "setting", "accuracy", "correct"]
    tests = []
    for row in rows.to_dict("records"):
        dataset, per_class = row["setting"]
        noise, spoilt = row["label_noise"], row["corrupted"]
        results = {(LABELS, noise): (row["accuracy"], row["correct"])}
        if noise == 0 and isinstance(spoilt, dict):
            for how, correct in spoilt.items():
                results[IMAGES, how] = correct.count("1") / len(correct), correct
        for condition, result in results.items():
            setting = dataset, (per_class, *condition)
            tests.append((row["method"], row["seed"], setting, *result))
    return pandas.DataFrame(tests, columns=columns)


def _places(tests):
    """The settings in order: wrong labels first, severities as numbers."""
    plain = [(dataset, per_class) for dataset, (per_class, *_) in tests["setting"]]
    order = settings(tests.assign(setting=plain))

    def key(place):
        dataset, (per_class, what, how) = place
        kind, _, severity = ("", "", how) if what == LABELS else how.rpartition(" ")
        return order.index((dataset, per_class)), what == IMAGES, kind, float(severity)

    return sorted(set(tests["setting"]), key=key)


def _name(dataset, condition):
    per_class, what, how = condition
    how = how if what == IMAGES else f"{100 * how:.3g} %"
    return setting_name((dataset, per_class)), what, how


def _group(place):
    """What a condition is pooled with."""
    _, (_, what, how) = place
    return "clean" if (what, how) == (LABELS, 0) else what
