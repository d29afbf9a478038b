"""What a search by cross-validation finds, beside a default and what would be best."""

import pandas as pd

from experiments import notation
from experiments.notation import MISSING
from experiments.rows import require, setting_name, settings
from experiments.table import Table
from experiments.tables import ablation_table

CHOSEN, BEST = "chosen by cross-validation", "best on the test images"
EQUAL = 1e-9  # accuracies that differ by no more are a tie


def search_table(frame, reference):
    """A default, what cross-validation chooses, and the best, as an `ablation_table`.

    For each setting and seed the candidate of the largest mean accuracy over the folds
    is chosen; of a tie, the default or else the first. The best one is found on the
    test images themselves: no search can know it, and with candidates that are alike it
    is ahead by chance.

    Args:
        frame: rows with and without a fold.
        reference: label of the default.
    """
    tests, means = _split(frame)
    found = [tests[tests["label"] == reference]]
    for label, scores in ((CHOSEN, means), (BEST, _by_candidate(tests))):
        for (setting, seed), its in scores.items():
            its = dict(sorted(its.items(), key=lambda pair: pair[0] != reference))
            most = max(its.values())
            first = next(k for k, v in its.items() if v >= most - EQUAL)
            row = tests[
                (tests["setting"] == setting)
                & (tests["seed"] == seed)
                & (tests["label"] == first)
            ]
            found.append(row.assign(factor="search", label=label))
    return ablation_table(pd.concat(found), reference)


def candidates_table(frame):
    """Accuracy of each candidate over the folds and on the test images, by setting."""
    tests, means = _split(frame)
    names = list(dict.fromkeys(zip(tests["factor"], tests["label"], strict=True)))
    body = {}
    for setting in settings(tests):
        for kind, scores in (("folds", means), ("test", _by_candidate(tests))):
            cells = {}
            for (its_setting, _), its in scores.items():
                for label, score in its.items():
                    if its_setting == setting:
                        cells.setdefault(label, []).append(score)
            written, _ = notation.means(cells)
            column = [
                written(label) if label in cells else MISSING for _, label in names
            ]
            body[setting_name(setting), kind] = column
    caption = "Accuracy in percent, the mean over folds and of the test images."
    index = ("factor", "candidate")
    return Table.of("Candidates", body, names, index, caption)


def _split(frame):
    """(rows of tests, dict (setting, seed) -> dict label -> mean over the folds)."""
    require(frame, ("fold", "label", "dataset", "per_class", "seed", "accuracy"))
    numbers = frame["per_class"].astype("int64")
    frame = frame.assign(setting=list(zip(frame["dataset"], numbers, strict=True)))
    folds = frame[frame["fold"].notna()]
    tests = frame[frame["fold"].isna()]
    return tests, _by_candidate(folds)


def _by_candidate(rows):
    """Dict (setting, seed) -> dict label -> mean accuracy.

    What failed in a fold that others have is left out: folds differ in difficulty.
    """
    found = {}
    for case, its in rows.groupby(["setting", "seed"], sort=False):
        accuracies = its.groupby("label", sort=False)["accuracy"]
        counts = accuracies.count()
        found[case] = accuracies.mean()[counts == counts.max()].to_dict()
    return found
