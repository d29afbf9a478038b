"""Labels, and which images go where: stratified, seeded choices of indices."""

import numbers

import numpy as np

from keras_delta._errors import invalid

WRONG = 1  # marks the random numbers of `wrong_labels`


def check_seed(seed):
    """Refuses a seed that NumPy's generators would refuse later.

    Args:
        seed: what the user passed.

    Raises:
        ValueError: unless it is an integer from 0 to 2**31 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        valid = False
    else:
        valid = 0 <= seed < 2**31
    if not valid:
        raise ValueError(invalid("seed", "an integer from 0 to 2**31 - 1", seed))


def checked_labels(labels, images, classes):
    """Checks labels and makes them read-only.

    Args:
        labels: sequence of integers.
        images: how many images there are.
        classes: how many classes have a name.

    Returns:
        Read-only `int64` array, a copy.

    Raises:
        ValueError: when labels and images differ in number, or a label has no
            name.
    """
    labels = np.array(labels)
    if labels.size == 0:
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise ValueError(
            invalid(
                "labels",
                f"{images} integers, one per image",
                labels,
                f"It has shape {labels.shape} and type {labels.dtype}.",
            )
        )
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            invalid(
                "labels",
                f"integers from 0 to {classes - 1}, an index into `class_names`",
                np.unique(labels),
            )
        )
    labels = labels.astype(np.int64)
    labels.flags.writeable = False
    return labels


def checked_indices(indices, images):
    """Checks the numbers of images.

    Args:
        indices: sequence of integers.
        images: how many images there are.

    Returns:
        Array of integers.

    Raises:
        ValueError: for numbers out of range and for a mask of booleans.
    """
    indices = np.asarray(indices)
    if indices.size == 0:
        indices = indices.astype(np.int64)
    if (
        indices.ndim != 1
        or indices.dtype.kind not in "iu"
        or np.any((indices < 0) | (indices >= images))
    ):
        raise ValueError(
            invalid(
                "indices",
                f"a sequence of integers from 0 to {images - 1}",
                indices,
                "For a mask, pass `np.flatnonzero(mask)`.",
            )
        )
    return indices


def split_indices(labels, class_names, fraction, seed):
    """Divides each class in the same proportion.

    Args:
        labels: integer array.
        class_names: name of each label.
        fraction: share of each class to hold out, between 0 and 1. At least
            one image of each class stays and one is held out.
        seed: integer.

    Returns:
        (rest, held out): two sorted arrays of indices.

    Raises:
        ValueError: for a fraction outside (0, 1), or a class of a single image.
    """
    if not 0 < fraction < 1:
        raise ValueError(invalid("fraction", "a number between 0 and 1", fraction))
    rest, held_out = [], []
    for label, members in _shuffled_classes(labels, seed):
        if len(members) < 2:
            raise ValueError(
                f"Cannot split the class {class_names[label]!r}: it has one image, "
                "and each part needs at least one. Add images or leave the class out."
            )
        count = int(np.clip(np.round(len(members) * fraction), 1, len(members) - 1))
        held_out.append(members[:count])
        rest.append(members[count:])
    return _joined(rest), _joined(held_out)


def few_shot_indices(labels, class_names, k, seed):
    """Draws `k` images of each class.

    With one seed the choices are nested: those for a small `k` are among
    those for a larger one, so that a curve over `k` adds images only.

    Args:
        labels: integer array.
        class_names: name of each label.
        k: images per class.
        seed: integer.

    Returns:
        Sorted array of indices.

    Raises:
        ValueError: when `k` is no positive integer, or a class has fewer images.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(invalid("k", "a positive integer", k))
    counts = np.bincount(labels, minlength=len(class_names))
    short = [
        f"{name!r} ({count})"
        for name, count in zip(class_names, counts, strict=True)
        if count < k
    ]
    if short:
        raise ValueError(
            invalid(
                "k",
                "at most the number of images in each class",
                int(k),
                f"Classes with fewer images: {', '.join(short)}.",
            )
        )
    return _joined([members[:k] for _, members in _shuffled_classes(labels, seed)])


def fold_indices(labels, class_names, folds, seed):
    """Deals each class out to folds, as evenly as can be.

    The next class begins where the last one ended, so that the sizes of the folds
    differ by one at most.

    Args:
        labels: integer array.
        class_names: name of each label.
        folds: number of folds, 2 or more.
        seed: integer.

    Returns:
        List of `folds` sorted arrays of indices; each index is in one of them.

    Raises:
        ValueError: for fewer than two folds, no data, or a class of fewer images than
            folds.
    """
    if isinstance(folds, bool) or not isinstance(folds, int | np.integer) or folds < 2:
        raise ValueError(invalid("folds", "an integer of 2 or more", folds))
    if len(labels) == 0:
        raise ValueError("There is nothing to cut into folds: the data are empty.")
    counts = np.bincount(labels, minlength=len(class_names))
    short = [
        f"{name!r} ({count})"
        for name, count in zip(class_names, counts, strict=True)
        if 0 < count < folds
    ]
    if short:
        raise ValueError(
            invalid(
                "folds",
                "at most the number of samples in each class",
                int(folds),
                f"Classes with fewer: {', '.join(short)}. Use fewer folds, add "
                "samples, or leave the class out.",
            )
        )
    members = np.concatenate([m for _, m in _shuffled_classes(labels, seed)])
    return [np.sort(members[fold::folds]) for fold in range(folds)]


def wrong_labels(labels, class_names, fraction, seed):
    """Gives a share of each class labels of other classes, drawn uniformly.

    With one seed the wrong labels are nested: those for a small fraction are among
    those for a larger one.

    Args:
        labels: integer array.
        class_names: name of each label.
        fraction: share of each class, in [0, 1); rounded to whole images.
        seed: integer.

    Returns:
        Integer array, a copy.

    Raises:
        ValueError: for a fraction outside [0, 1), or fewer than two classes.
    """
    if not isinstance(fraction, numbers.Real) or not 0 <= fraction < 1:
        expected = "a number from 0 to 1, less than 1"
        raise ValueError(invalid("fraction", expected, fraction))
    check_seed(seed)
    classes = len(class_names)
    if classes < 2:
        raise ValueError(
            "Cannot give wrong labels: they come from the other classes, and there are "
            f"{classes} classes. Name at least two."
        )
    wrong = np.array(labels)
    for label in np.unique(labels):
        # Not the generator of `_shuffled_classes`: which images are wrong must not
        # depend on which ones `split` or `few_shot` take.
        random = np.random.default_rng([seed, label, WRONG])
        members = random.permutation(np.flatnonzero(labels == label))
        others = random.integers(classes - 1, size=len(members))
        others += others >= label
        count = round(fraction * len(members))
        wrong[members[:count]] = others[:count]
    return wrong


def _shuffled_classes(labels, seed):
    check_seed(seed)
    for label in np.unique(labels):
        # A generator per class: one more class leaves the others' draw alone.
        random = np.random.default_rng([seed, label])
        yield label, random.permutation(np.flatnonzero(labels == label))


def _joined(parts):
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
