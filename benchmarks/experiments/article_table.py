"""Our accuracies beside the article's."""

import math

import numpy as np

from keras_delta._errors import invalid
from experiments.notation import ACCURACY, MISSING, mean, signed
from experiments.published import (
    AUGMENTATIONS,
    COLUMNS,
    DATA,
    NETWORKS,
    REPEATS,
    STD,
    STD_RANGE,
    data_name,
    method_name,
    published,
)
from experiments.rows import NEEDED, accuracies, finished, require
from experiments.table import Table

LINES = ("ours", "article", "difference / SE")


def article_table(frame, table=1):
    """Our accuracies beside those of the article's Table 1 or 2.

    Each cell has three lines: ours, mean ± standard deviation over seeds (number of
    seeds); the article's; and their difference in standard errors,

        (ours - article) / sqrt(std_ours^2 / n + std_article^2 / 5),

    with std_article = 0.3 points, since only its range .1 to .4 is known. With one seed
    there is no such difference. Of the frame, those trainings count that are like the
    article's: all training images, its augmentation, steps of the learning rate, no
    ablation and no wrong labels. What is missing stays "–".

    Args:
        frame: of results.
        table: 1 (default augmentation) or 2 (improved).

    Returns:
        `Table`; rows data set and line, columns network and method.

    Raises:
        ValueError: for another table, and as `finished`.
    """
    if table not in COLUMNS:
        raise ValueError(invalid("table", "1 or 2", table))
    require(frame, (*NEEDED, "network", "augmentation", "schedule"))
    alike = frame[_alike(frame, AUGMENTATIONS[table])]
    body = {}
    for network, name in NETWORKS.items():
        rows = alike[alike["network"] == network]
        rows = finished(rows, ("image_size", "protocol"), ("dataset", "method"))
        ours = accuracies(rows, "dataset", "method")
        for method in COLUMNS[table]:
            lines = []
            for dataset in DATA:
                mine = ours.get((dataset, method), ())
                theirs = published(table, dataset, network, method)
                given = MISSING if theirs is None else str(theirs)
                lines += [mean(mine, count=True), given, _errors(mine, theirs)]
            body[name, method_name(method)] = lines
    index = [(data_name(d), line) for d in DATA for line in LINES]
    low, high = STD_RANGE
    caption = (
        f"{ACCURACY} (number of seeds); the article's mean over {REPEATS} "
        "repeats; and their difference in standard errors, for which "
        f"{STD} points are taken as the article's standard deviation, of "
        f"which only the range {low} to {high} is known."
    )
    title = f"Table {table} of the article, {AUGMENTATIONS[table]} augmentation"
    return Table.of(title, body, index, ("data", ""), caption)


def _alike(frame, augmentation):
    """Which rows are of trainings like the article's, on its data sets."""
    like = (frame["augmentation"] == augmentation) & (frame["schedule"] == "step")
    like &= frame["dataset"].isin(list(DATA))
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
