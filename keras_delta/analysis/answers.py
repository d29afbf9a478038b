"""Quality of a classifier's answers: recall, mistakes, reliability."""

from typing import NamedTuple

import numpy as np
from scipy import special  # scikit-learn brings it

from keras_delta._answers.calibration import expected_calibration_error
from keras_delta.statistics import wilson_interval

BINS = 10


class Answers(NamedTuple):
    """Answers of a classifier.

    Attributes:
        logits: `(N, classes)` float32.
        labels: `(N,)` int64.
        class_names: tuple.
    """

    logits: np.ndarray
    labels: np.ndarray
    class_names: tuple

    @property
    def probabilities(self):
        """Softmax of the logits, float64."""
        return special.softmax(self.logits.astype("float64"), axis=1)

    @property
    def said(self):
        """The most likely class of each image."""
        return self.logits.argmax(axis=1)

    @property
    def right(self):
        """Whether `said` is the label, for each image."""
        return self.said == self.labels

    @property
    def calibration_error(self):
        """Expected calibration error, over 15 bins."""
        return expected_calibration_error(self.logits, self.labels)


class Recall(NamedTuple):
    """Number of recognised images of a class; `share` is None without images."""

    name: str
    images: int
    right: int
    share: float | None
    low: float | None
    high: float | None


class Bin(NamedTuple):
    """Images of similar confidence; see `reliability`."""

    confidence: float
    accuracy: float
    low: float
    high: float
    images: int


def confusion(answers):
    """Counts `(label, said)`, int64."""
    from sklearn.metrics import confusion_matrix  # scikit-learn takes a while to load

    numbers = np.arange(len(answers.class_names))
    return confusion_matrix(answers.labels, answers.said, labels=numbers)


def recalls(answers):
    """List of `Recall`, one per class, with Wilson's 95 % intervals."""
    found = []
    for number, name in enumerate(answers.class_names):
        right = answers.right[answers.labels == number]
        hits, count = int(right.sum()), len(right)
        interval = wilson_interval(hits, count) if count else (None, None)
        share = hits / count if count else None
        found.append(Recall(name, count, hits, share, *interval))
    return found


def confused_pairs(answers, most=10):
    """List of (label, said, count), the most frequent confusions first."""
    counts = confusion(answers)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(i, counts.shape) for i in order]
    return [(int(a), int(b), int(counts[a, b])) for a, b in pairs if counts[a, b]]


def confident_mistakes(answers, most=24):
    """Numbers of the wrongly classified images, most confident first."""
    confidence = answers.probabilities.max(axis=1)
    wrong = np.flatnonzero(~answers.right)
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:most]


def reliability(answers, bins=BINS):
    """Accuracy by confidence: list of `Bin`, of equal width, empty ones left out."""
    confidence = answers.probabilities.max(axis=1)
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for b in np.unique(number):
        right = answers.right[number == b]
        interval = wilson_interval(int(right.sum()), len(right))
        mean = float(confidence[number == b].mean())
        found.append(Bin(mean, float(right.mean()), *interval, len(right)))
    return found
