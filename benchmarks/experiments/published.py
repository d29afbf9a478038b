"""The article's tables of accuracies, and ours beside them.

Table 1 was trained with the default augmentation, Table 2 with the improved one. Each
number is the mean top-1 accuracy of 5 repeats in percent; the standard deviations are
between .1 and .4. DELTA is not the best in two of the cells of Table 1: Food-101 with
ResNet-101 (86.3, L2-SP 86.4) and Stanford Dogs with InceptionV3 (88.7, L2-SP 89.4).

Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Tables 1 and 2.
"""

import math

import numpy as np

from keras_delta._errors import invalid
from experiments import methods
from experiments.notation import ACCURACY, MISSING, mean, signed
from experiments.rows import (
    ALIKE,
    DATA,
    NEEDED,
    accuracies,
    data_name,
    finished,
    method_name,
    require,
)
from experiments.table import Table

REPEATS = 5
STD_RANGE = (0.1, 0.4)  # points; all that is known of most cells
STD = 0.3  # points; taken for every cell, a bit above the middle of the range
AUGMENTATIONS = {1: "default", 2: "improved"}  # of each table
SCHEDULE = "step"
NETWORKS = {"resnet101": "ResNet-101", "inception_v3": "InceptionV3"}
COLUMNS = {1: methods.ARTICLE, 2: ("l2", "l2_sp", "l2_sp_att", "delta")}
NUMBERS = {
    (1, "resnet101"): {
        "indoor67": (80.4, 83.7, 85.1, 84.2, 85.3, 85.5),
        "stanford_dogs": (84.7, 83.3, 88.3, 88.1, 88.3, 88.7),
        "caltech256_30": (82.9, 84.7, 85.4, 84.5, 85.7, 86.6),
        "caltech256_60": (85.3, 87.2, 87.2, 87.1, 87.6, 88.7),
        "cub": (61.5, 78.4, 79.5, 77.8, 78.9, 80.5),
        "food101": (64.3, 85.3, 86.4, 85.8, 85.9, 86.3),
    },
    (1, "inception_v3"): {
        "indoor67": (74.9, 74.8, 74.6, 76.8, 76.9, 78.1),
        "stanford_dogs": (84.1, 88.6, 89.4, 86.4, 88.7, 88.7),
        "caltech256_30": (82.5, 83.6, 83.3, 84.4, 83.4, 84.9),
        "caltech256_60": (84.1, 85.8, 85.3, 84.8, 85.1, 86.8),
        "cub": (57.6, 74.3, 75.2, 74.1, 74.5, 76.5),
        "food101": (55.9, 76.9, 75.9, 75.3, 76.2, 80.8),
    },
    (2, "resnet101"): {
        "indoor67": (84.4, 85.2, 84.9, 85.9),
        "stanford_dogs": (85.7, 90.8, 89.97, 91.2),
        "caltech256_30": (85.1, 86.4, 86.2, 87.1),
        "caltech256_60": (87.4, 88.3, 87.6, 89.1),
        "cub": (81.7, 82.3, 82.2, 82.6),
        "food101": (86.7, 87.2, 87.1, 87.5),
    },
    (2, "inception_v3"): {
        "indoor67": (75.5, 76.5, 76.1, 78.7),
        "stanford_dogs": (91.2, 91.9, 88.3, 92.1),
        "caltech256_30": (84.7, 84.5, 83.5, 85.5),
        "caltech256_60": (86.1, 86.0, 85.8, 87.0),
        "cub": (76.3, 76.3, 76.0, 77.6),
    },
}
LINES = ("ours", "article", "difference / SE")


def published(table, dataset, network, method):
    """A mean accuracy of the article's Table 1 or 2 in percent.

    None where the article has no such number (or we do not know it: Table 2, Food-101
    with InceptionV3).
    """
    row = NUMBERS.get((table, network), {}).get(dataset)
    if row is None or method not in COLUMNS[table]:
        return None
    return row[COLUMNS[table].index(method)]


def article_table(frame, table=1):
    """Our accuracies beside those of the article's Table 1 or 2.

    Each cell has three lines: ours, mean ± standard deviation over seeds (number of
    seeds); the article's; and their difference in standard errors,

        (ours - article) / sqrt(std_ours^2 / n + std_article^2 / 5),

    with std_article = 0.3 points, since only its range .1 to .4 is known. With one seed
    there is no such difference. Of the frame, those trainings count that are like the
    article's: all training images, its augmentation, steps of the learning rate, no
    ablation and no wrong labels. If none has its augmentation and schedule, those of
    the others count, which the caption names. What is missing stays "–". Rows are data
    set and line, columns network and method.
    """
    if table not in COLUMNS:
        raise ValueError(invalid("table", "1 or 2", table))
    require(frame, (*NEEDED, "network", "augmentation", "schedule"))
    alike, way = frame[_alike(frame)], (AUGMENTATIONS[table], SCHEDULE)
    same = (alike["augmentation"] == way[0]) & (alike["schedule"] == way[1])
    alike, body = alike[same] if same.any() else alike, {}
    for network, name in NETWORKS.items():
        rows = alike[alike["network"] == network]
        rows = finished(rows, ALIKE, ("dataset", "method"))
        ours = accuracies(rows, "dataset", "method")
        for method in COLUMNS[table]:
            lines = body[name, method_name(method)] = []
            for dataset in DATA:
                mine = ours.get((dataset, method), ())
                theirs = published(table, dataset, network, method)
                given = MISSING if theirs is None else str(theirs)
                lines += [mean(mine, count=True), given, _errors(mine, theirs)]
    index = [(data_name(d), line) for d in DATA for line in LINES]
    low, high = STD_RANGE
    caption = (
        f"{ACCURACY} (number of seeds); the article's mean over {REPEATS} "
        "repeats; and their difference in standard errors, for which "
        f"{STD} points are taken as the article's standard deviation, of "
        f"which only the range {low} to {high} is known."
    )
    for ours in {*zip(alike["augmentation"], alike["schedule"], strict=True)} - {way}:
        caption += " Ours: augmentation {}, schedule {}.".format(*ours)
    title = f"Table {table} of the article, {AUGMENTATIONS[table]} augmentation"
    return Table.of(title, body, index, ("data", ""), caption)


def _alike(frame):
    """Which rows are of trainings on the article's images, without ablations."""
    like = frame["dataset"].isin(list(DATA))
    for name in ("label", "factor", "label_noise"):
        if name in frame.columns:
            like &= frame[name].isna() | frame[name].isin(["", 0])
    # All images: those of Caltech are named by their number.
    numbers = frame["per_class"].astype("float64")
    pairs = zip(frame["dataset"], numbers, strict=True)
    named = np.array([d == f"caltech256_{n:.0f}" for d, n in pairs], bool)
    return like & (numbers.isna() | named)


def _errors(ours, theirs):
    """Difference to the article in standard errors."""
    if theirs is None or len(ours) < 2:
        return MISSING
    ours = 100 * np.asarray(ours, "float64")
    square = ours.var(ddof=1) / len(ours) + STD**2 / REPEATS
    return signed((ours.mean() - theirs) / math.sqrt(square))
