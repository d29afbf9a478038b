"""Calibrated probabilities by temperature scaling."""

import numpy as np

from keras_delta._errors import import_optional, warn

COLDEST, HOTTEST = 1e-2, 1e2
BINS = 15


def temperature(logits, labels):
    """The temperature T for which softmax(logits / T) fits held-out labels best.

    It minimises the mean of `-log softmax(logits / T)[label]`, or for several labels
    (samples, labels) that of the binary cross-entropies of sigmoid(logits / T). Both
    are convex in 1 / T, and no ranking changes. It lies between 0.01 and 100, above 1
    if the network is overconfident; and is 1, with a warning, if every prediction is
    right: the best T would then be 0, which makes everything certain.

    Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
        Networks", ICML 2017, section 4.2.
    """
    optimize = import_optional("scipy.optimize", "Calibration", "serving")
    if np.ndim(labels) == 2:
        right = (np.asarray(logits) > 0) == labels
    else:
        right = np.argmax(logits, axis=-1) == labels
    if right.all():
        warn(
            f"All {len(labels)} images of `validation_data` are recognised, so the "
            "error rate cannot be estimated: scores are not calibrated. "
            "Calibrate with more images."
        )
        return 1.0
    bounds = -np.log([HOTTEST, COLDEST])
    best = optimize.minimize_scalar(
        lambda log: loss(logits * np.exp(log), labels), bounds=bounds, method="bounded"
    )
    return float(np.exp(-best.x))


def loss(logits, labels):
    """Mean cross-entropy, in nats, of integer labels or several labels per sample."""
    if np.ndim(labels) == 2:
        logits = np.asarray(logits, "float64")
        each = np.logaddexp(0, logits) - logits * labels
        return float(each.mean())
    return float(-np.mean(_log_softmax(logits)[np.arange(len(labels)), labels]))


def expected_calibration_error(logits, labels, bins=BINS):
    """How far confidence is from accuracy, on average.

    With the samples in bins of equal width by their largest probability,

        ECE = sum over bins of (share of samples) * |accuracy - mean confidence|.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; 15 bins as Guo et al. 2017.
    """
    probabilities = np.exp(_log_softmax(logits))
    confidence = probabilities.max(axis=-1)
    right = probabilities.argmax(axis=-1) == labels
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(number, right - confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))


def _log_softmax(logits):
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
