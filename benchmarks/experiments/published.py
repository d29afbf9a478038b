"""The article's tables of accuracies, and how methods and data sets are called there.

Table 1 was trained with the default augmentation, Table 2 with the improved one. Each
number is the mean top-1 accuracy of 5 repeats in percent; the standard deviations are
between .1 and .4. DELTA is not the best in two of the cells of Table 1: Food-101 with
ResNet-101 (86.3, L2-SP 86.4) and Stanford Dogs with InceptionV3 (88.7, L2-SP 89.4).

Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Tables 1 and 2.
"""

from keras_delta._errors import invalid
from experiments import methods

REPEATS = 5
STD_RANGE = (0.1, 0.4)  # points; all that is known of most cells
STD = 0.3  # points; taken for every cell, a bit above the middle of the range
AUGMENTATIONS = {1: "default", 2: "improved"}  # of each table

DATA = {  # in the article's order
    "indoor67": "MIT Indoors 67",
    "stanford_dogs": "Stanford Dogs",
    "caltech256_30": "Caltech 256-30",
    "caltech256_60": "Caltech 256-60",
    "cub": "CUB-200-2011",
    "food101": "Food-101",
}
NETWORKS = {"resnet101": "ResNet-101", "inception_v3": "InceptionV3"}
COLUMNS = {
    1: methods.ARTICLE,
    2: ("l2", "l2_sp", "l2_sp_att", "delta"),
}
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


def published(table, dataset, network, method):
    """A mean accuracy of the article.

    Args:
        table: 1 (default augmentation) or 2 (improved augmentation).
        dataset: such as `"cub"`, see `DATA`.
        network: `"resnet101"` or `"inception_v3"`.
        method: such as `"delta"`, see `methods.ALL`.

    Returns:
        Percent, or None where the article has no such number (or we do not know it:
        Table 2, Food-101 with InceptionV3).

    Raises:
        ValueError: for another table.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Tables 1 and 2.
    """
    if table not in COLUMNS:
        raise ValueError(invalid("table", "1 or 2", table))
    row = NUMBERS.get((table, network), {}).get(dataset)
    if row is None or method not in COLUMNS[table]:
        return None
    return row[COLUMNS[table].index(method)]


def method_name(method):
    """The article's name of a method; the given one where it has none."""
    known = methods.ALL.get(method)
    return known.title if known else method


def data_name(dataset):
    """The article's name of a data set; the given one where it has none."""
    return DATA.get(dataset, dataset)


def network_name(network):
    """The article's name of a network; the given one where it has none."""
    return NETWORKS.get(network, network)


def method_order(method):
    """Key that sorts methods as the article, unknown ones after them by name."""
    return _order(methods.ALL, method)


def data_order(dataset):
    """Key that sorts data sets as the article, unknown ones after them by name."""
    return _order(DATA, dataset)


def _order(known, name):
    known = list(known)
    return (known.index(name) if name in known else len(known), name)
