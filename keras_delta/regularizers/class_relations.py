"""How Co-Tuning relates the source's classes to the target's."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from keras_delta._errors import invalid

VARIANTS = ("direct", "bayes")
STRENGTHS = [a * 10.0**e for e in range(4, -5, -1) for a in (3, 1)][1:]  # 1e4 to 1e-4
HELD_OUT = 5  # one in so many images chooses strength and scale


def relate(logits, numbers, classes, variant, calibration):
    """R: for each class of the target, a distribution over the source's classes.

    Args:
        logits: the source's logits for the training images, `(N, K)`.
        numbers: `(N,)`, the images' classes.
        classes: number of classes.
        variant: `"direct"`: means of probabilities; `"bayes"`: see `learn_and_invert`.
        calibration: factor of the logits for `"bayes"`.

    Returns:
        `(classes, K)` float64; rows sum to 1.

    Raises:
        ValueError: if a class has no images.
    """
    counts = np.bincount(numbers, minlength=classes)
    if not counts.all():
        expected = "training images of every class, to relate it to the source's"
        received = f"none of class {int(np.argmin(counts))}"
        raise ValueError(invalid("x", expected, received))
    if variant == "direct":
        return average(softmax(logits, axis=-1), numbers, classes)
    probabilities = softmax(calibration * np.asarray(logits, "float64"), axis=-1)
    return learn_and_invert(probabilities, numbers)


def average(probabilities, numbers, classes):
    """Mean of the probabilities of each class's images, `(classes, K)`."""
    return np.stack([probabilities[numbers == c].mean(0) for c in range(classes)])


def learn_and_invert(probabilities, numbers):
    """`p(y_s | y)` by way of `p(y | y_s)`, as in the authors' program.

    A multinomial logistic regression without intercept predicts the classes from the
    source's probabilities. Its strength is the one that is right most often on held-out
    images, and its logits are scaled to the lowest cross-entropy on them. Its
    prediction for a single source class is `p(y | y_s)`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    folds = min(HELD_OUT, int(np.bincount(numbers).min()))
    if folds < 2:
        expected = 'at least two training images of every class for variant="bayes"'
        raise ValueError(invalid("x", expected, "a class with one"))
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    fitted, held = next(split.split(probabilities, numbers))
    best, most = None, -1.0
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
        model.fit(probabilities[fitted], numbers[fitted])
        right = model.score(probabilities[held], numbers[held])
        if right > most:
            best, most = model, right
    kernel = best.coef_.T
    if kernel.shape[1] == 1:  # two classes have one row between them
        kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
    logits = probabilities[held] @ kernel

    def cross_entropy(log_scale):
        log_shares = log_softmax(np.exp(log_scale) * logits, axis=-1)
        return -log_shares[np.arange(len(held)), numbers[held]].mean()

    found = minimize_scalar(cross_entropy, bounds=(-5, 5), method="bounded")
    target_given_source = softmax(np.exp(found.x) * kernel, axis=-1)
    return invert(target_given_source, probabilities.mean(0))


def invert(target_given_source, source_shares):
    """`p(y_s | y)`, proportional to `p(y | y_s) p(y_s)`; rows sum to 1.

    Args:
        target_given_source: `(K, classes)`.
        source_shares: `(K,)`, the mean of the source's probabilities.

    Returns:
        `(classes, K)`.
    """
    joint = np.asarray(target_given_source).T * np.asarray(source_shares)
    return joint / joint.sum(1, keepdims=True)
