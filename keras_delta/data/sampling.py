"""Labels, and stratified, seeded choices of image indices."""

import numpy as np

from keras_delta import _arguments
from keras_delta._errors import invalid

WRONG = 1  # marks the random numbers of `wrong_labels`


def check_labels(labels, images, classes):
    """Checked class indices, one per image: a read-only `int64` copy."""
    labels = np.array(labels)
    if labels.size == 0:
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        expected = f"{images} integers, one per image"
        remedy = f"It has shape {labels.shape} and type {labels.dtype}."
        raise ValueError(invalid("labels", expected, labels, remedy))
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        expected = f"integers from 0 to {classes - 1}, an index into `class_names`"
        raise ValueError(invalid("labels", expected, np.unique(labels)))
    labels = labels.astype(np.int64)
    labels.flags.writeable = False
    return labels


def needed(labels):
    """The labels, for operations that require them."""
    if labels is None:
        raise ValueError(
            "These images have no labels, but this operation needs them. Read them "
            "from class folders, or use `ImageSet.from_files(paths, labels, names)`."
        )
    return labels


def check_indices(indices, images):
    """Image indices as an array; rejects a boolean mask."""
    indices = np.asarray(indices)
    if indices.size == 0:
        indices = indices.astype(np.int64)
    whole = indices.ndim == 1 and indices.dtype.kind in "iu"
    if not whole or np.any((indices < 0) | (indices >= images)):
        expected = f"a sequence of integers from 0 to {images - 1}"
        remedy = "For a mask, pass `np.flatnonzero(mask)`."
        raise ValueError(invalid("indices", expected, indices, remedy))
    return indices


def split_indices(labels, class_names, fraction, seed):
    """Divides each class in the same proportion: (rest, held out), sorted indices."""
    fraction = _arguments.number("fraction", fraction, above=0, below=1)
    rest, held_out = [], []
    for label, members in _shuffle_classes(labels, seed):
        if len(members) < 2:
            raise ValueError(
                f"Cannot split the class {class_names[label]!r}: it has one image, "
                "and each part needs at least one. Add images or remove the class."
            )
        count = int(np.clip(np.round(len(members) * fraction), 1, len(members) - 1))
        held_out.append(members[:count])
        rest.append(members[count:])
    return _join(rest), _join(held_out)


def few_shot_indices(labels, class_names, k, seed):
    """Draws `k` images of each class; a smaller `k` draws a subset of them."""
    k = _arguments.integer("k", k)
    _check_counts("k", k, "images", labels, class_names)
    return _join([members[:k] for _, members in _shuffle_classes(labels, seed)])


def fold_indices(labels, class_names, folds, seed):
    """Distributes each class over the folds as evenly as possible.

    Each class continues where the previous one ended, so that the sizes of the folds
    differ by at most one.

    Returns:
        List of `folds` sorted arrays of indices; each index is in one of them.

    Raises:
        ValueError: if there are fewer than two folds or no data, or a class has fewer
            images than folds.
    """
    folds = _arguments.integer("folds", folds, least=2)
    if len(labels) == 0:
        raise ValueError("Cannot cut the data into folds: they are empty.")
    remedy = " Use fewer folds, add samples, or remove the class."
    _check_counts("folds", folds, "samples", labels, class_names, remedy, least=1)
    members = np.concatenate([m for _, m in _shuffle_classes(labels, seed)])
    return [np.sort(members[fold::folds]) for fold in range(folds)]


def wrong_labels(labels, class_names, fraction, seed):
    """A copy with a fraction of each class labelled as other classes, drawn uniformly.

    For the same seed the wrong labels are nested: those for a smaller fraction are
    among those for a larger one.
    """
    fraction = _arguments.number("fraction", fraction, below=1)
    _arguments.seed("seed", seed)
    classes = len(class_names)
    if classes < 2:
        raise ValueError(
            "Cannot assign wrong labels: they come from the other classes, and there "
            f"are {classes} classes. Name at least two."
        )
    wrong = np.array(labels)
    for label in np.unique(labels):
        # Not the generator of `_shuffle_classes`: which images are wrong must not
        # depend on which ones `split` or `few_shot` take.
        random = np.random.default_rng([seed, label, WRONG])
        members = random.permutation(np.flatnonzero(labels == label))
        others = random.integers(classes - 1, size=len(members))
        others += others >= label
        count = round(fraction * len(members))
        wrong[members[:count]] = others[:count]
    return wrong


def _check_counts(argument, number, what, labels, class_names, remedy="", least=0):
    counts = np.bincount(labels, minlength=len(class_names))
    short = [
        f"{name!r} ({count})"
        for name, count in zip(class_names, counts, strict=True)
        if least <= count < number
    ]
    if short:
        expected = f"at most the number of {what} in each class"
        remedy = f"Classes with fewer {what}: {', '.join(short)}.{remedy}"
        raise ValueError(invalid(argument, expected, number, remedy))


def _shuffle_classes(labels, seed):
    _arguments.seed("seed", seed)
    for label in np.unique(labels):
        # A generator per class: adding a class does not change the others' draw.
        random = np.random.default_rng([seed, label])
        yield label, random.permutation(np.flatnonzero(labels == label))


def _join(parts):
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
