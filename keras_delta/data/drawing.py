"""Training and test images of data sets that have no predefined split."""

import numpy as np

from keras_delta.data.image_set import ImageSet
from keras_delta.data.missing import quote

# L2-SP's code trains on images 1 to 30 or 60 and tests on 61 to 80 of each class.
# Source: github.com/holyseven/TransferLearningClassification, create_caltech.py.
FIRST = 60


def divide(images, train, test, lead, seed, title):
    """Draws training and test images of each class.

    The first `lead` images drawn from a class are reserved for testing, whatever
    `train` is: for the same seed, a smaller `train` is a subset of a larger one and
    the test images are the same.

    Args:
        images: `ImageSet`.
        train, test: images of each class; `test=None` for all others.
        lead: number of test images that come first in the draw.
        seed: integer; None takes the images in order.
        title: title of the data set, for messages.
    """
    short = [n for n, count in images.counts.items() if count < train + (test or 1)]
    if short:
        counts = quote([f"{name} ({images.counts[name]})" for name in short])
        tested = "at least one" if test is None else test
        raise ValueError(
            f"{title} needs {train} training and {tested} test images of each class. "
            f"Classes with fewer: {counts}. Add the missing images or pass a "
            "smaller `test_per_class`."
        )
    chosen = {"train": [], "test": []}
    for label in range(len(images.class_names)):
        members = np.flatnonzero(images.labels == label)
        order = _order(members, lead, label, seed)
        begin = min(lead, len(order) - train)
        others = np.concatenate([order[:begin], order[begin + train :]])
        chosen["train"].append(order[begin : begin + train])
        chosen["test"].append(others if test is None else others[:test])
    return {
        part: images.subset(np.sort(np.concatenate(indices)))
        for part, indices in chosen.items()
    }


def leave_out_class(images, name):
    """The set without one class, matched ignoring case; labels close the gap."""
    lower = [known.lower() for known in images.class_names]
    if name.lower() not in lower:
        return images
    label = lower.index(name.lower())
    rest = images.subset(np.flatnonzero(images.labels != label))
    labels = rest.labels - (rest.labels > label)
    names = [known for i, known in enumerate(images.class_names) if i != label]
    return ImageSet(rest.source, labels, names, rest.skipped)


def _order(members, lead, label, seed):
    if seed is not None:
        # A generator per class: adding a class does not change the others' draw.
        return np.random.default_rng([seed, label]).permutation(members)
    first, tests = members[:FIRST], members[FIRST : FIRST + lead]
    return np.concatenate([tests, first, members[FIRST + lead :]])
