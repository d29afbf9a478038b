"""Linear models on features, with a strength chosen by cross-validation."""

import warnings
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits  # scikit-learn's

from keras_delta import _tasks

STRENGTHS = (0.01, 0.1, 1.0)  # C: weight of the losses of all rows
USUAL_STRENGTH = 0.1
LITTLE_WORK = 1e8  # rows x directions x classes
MOST_WORK = 5e9  # of a cross-validation: rows x directions x classes x fits
ITERATIONS = 200  # of L-BFGS
SMALLEST = 1e-6  # of the largest singular value


class Rows(NamedTuple):
    """Data for fitting a linear model, one row per view of an image (or position).

    Attributes:
        features: `(rows, D)`.
        labels: `(rows, K)` shares of classes, labels from 0 to 1, or numbers.
        weights: `(rows,)`, each row's weight.
        groups: `(rows,)`, number of the image; the same for all of its views.
        tested: `(rows,)`, whether a row is the test view.
    """

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    groups: np.ndarray
    tested: np.ndarray

    def take(self, chosen):
        """Some of the rows."""
        return Rows(*(v[chosen] for v in self))


class Fit(NamedTuple):
    """A linear model, and how well it does on images that it has not seen.

    Attributes:
        kernel: `(D, K)`.
        bias: `(K,)`.
        strength: C.
        scores: dict from each strength tried to the score on held-out images; empty if
            there were too few images.
        losses: array `(held-out views,)` of the losses with `strength`; in the same
            order for other features of the same images. Also empty in that case.
        outputs: array `(test views, K)` by the models that have not seen the image,
            with `strength`, in the order of the rows; NaN if there is no such model.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    scores: dict
    losses: np.ndarray
    outputs: np.ndarray


def fit(rows, task, width, strengths=STRENGTHS, folds=5, seed=0, every_fold=False):
    """Fit a linear model with the strength that does best on held-out images.

    The objective is `1/2 ||kernel||^2 + C * sum_i w_i loss_i`, on features divided by
    one number, their root mean square; the bias is free. The loss is the cross-entropy
    (separately for each label if there are several), or half the squared error of
    standardised numbers. The strength with the lowest loss on held-out images wins.

    Args:
        rows: `Rows`.
        task: one of `_tasks.TASKS`.
        width: K, number of classes, labels or numbers.
        strengths: C to choose from.
        folds: parts for the cross-validation; only some of them, at least one, are
            held out if there are very many images and classes.
        seed: of the parts.
        every_fold: whether to hold out all parts, regardless of the work.

    Returns:
        A `Fit`, for the unscaled features.
    """
    scale = np.sqrt(np.mean(np.square(rows.features, dtype="float64"))) or 1.0
    features = (rows.features / scale).astype("float64")
    work = len(features) * min(features.shape) * width
    most = max(1, int(MOST_WORK / (work * len(strengths))))
    parts = split(rows, task, folds, seed)[: None if every_fold else most]
    losses, scores, outputs = {}, {}, {}
    # For little work the threads of BLAS only wait for each other.
    with threadpool_limits(1 if work < LITTLE_WORK else None, "blas"):
        features, back = _rotated(features)
        rows = rows._replace(features=features)
        for strength in strengths if parts else ():
            held = [_held_out(rows, part, task, width, strength) for part in parts]
            losses[strength] = np.concatenate([each for _, each, _ in held])
            scores[strength] = float(np.mean([score for _, _, score in held]))
            outputs[strength] = np.full((len(rows.groups), width), np.nan)
            for part, (found, _, _) in zip(parts, held, strict=True):
                outputs[strength][part & rows.tested] = found
        usual = USUAL_STRENGTH if USUAL_STRENGTH in strengths else strengths[0]
        best = min(losses, key=lambda s: losses[s].mean(), default=usual)
        kernel, bias = solve(rows, task, width, best)
    missing = np.full((len(rows.groups), width), np.nan)
    return Fit(
        kernel=back @ kernel / scale,
        bias=bias,
        strength=best,
        scores=scores,
        losses=losses.get(best, np.zeros(0)),
        outputs=outputs.get(best, missing)[rows.tested],
    )


def _rotated(features):
    """Features in the space spanned by the rows, and the way back for a kernel.

    The kernel with the smallest norm lies in it, so only the time changes: few images
    span far fewer directions than a network has channels.
    """
    if features.shape[0] >= features.shape[1]:
        return features, np.eye(features.shape[1])
    _, size, axes = np.linalg.svd(features, full_matrices=False)
    axes = axes[size > SMALLEST * size.max(initial=0)].T
    return features @ axes, axes


def split(rows, task, folds, seed):
    """List of masks of held-out rows; views of one image stay together.

    The images of each class are dealt out in turn. An image that is alone in its class
    is never held out.
    """
    _, first, of_row = np.unique(rows.groups, return_index=True, return_inverse=True)
    labels = rows.labels[first]
    classes = np.zeros(len(first), int)
    if task == _tasks.MULTICLASS:
        classes = labels.argmax(axis=1)
    elif task == _tasks.BINARY:
        classes = (labels[:, 0] > 0.5).astype(int)
    rng, fold, dealt = np.random.default_rng(seed), np.full(len(first), -1), 0
    for c in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == c))
        if len(members) > 1:
            fold[members] = (dealt + np.arange(len(members))) % folds
            dealt += len(members)
    return [(fold == f)[of_row] for f in range(folds) if (fold == f).any()]


def _held_out(rows, mask, task, width, strength):
    """Outputs, losses and score on the held-out views, by a model of the others."""
    kernel, bias = solve(rows.take(~mask), task, width, strength)
    held = rows.take(mask & rows.tested)
    outputs = held.features @ kernel + bias
    return outputs, *evaluate(outputs, held.labels, task)


def evaluate(outputs, labels, task):
    """Loss of each row, and accuracy or (for numbers) the explained variance."""
    if task == _tasks.REGRESSION:
        spread = labels.var(axis=0) + np.finfo(float).tiny
        error = (np.square(outputs - labels) / spread).mean(axis=1)
        return error, 1 - error.mean()
    if task == _tasks.MULTICLASS:
        top = outputs.max(axis=1, keepdims=True)
        norm = top + np.log(np.exp(outputs - top).sum(axis=1, keepdims=True))
        right = outputs.argmax(axis=1) == labels.argmax(axis=1)
        return ((norm - outputs) * labels).sum(axis=1), right.mean()
    loss = np.logaddexp(0, outputs) - labels * outputs
    return loss.mean(axis=1), ((outputs > 0) == (labels > 0.5)).mean()


def solve(rows, task, width, strength):
    """The kernel `(D, K)` and bias `(K,)` of one strength; see `fit`."""
    if task == _tasks.REGRESSION:
        return _solve_numbers(rows, strength)
    if task == _tasks.MULTICLASS:
        return _solve_classes(rows, width, strength)
    columns = [_solve_label(rows, rows.labels[:, k], strength) for k in range(width)]
    kernels, biases = zip(*columns, strict=True)
    return np.stack(kernels, axis=1), np.array(biases)


def _solve_numbers(rows, strength):
    mean = np.average(rows.labels, axis=0, weights=rows.weights)
    spread = rows.labels.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    from sklearn.linear_model import Ridge  # scikit-learn takes a while to load

    model = Ridge(alpha=1 / strength)
    model.fit(rows.features, (rows.labels - mean) / spread, rows.weights)
    kernel = np.reshape(model.coef_, (rows.labels.shape[1], -1)).T
    return kernel * spread, model.intercept_ * spread + mean


def _solve_classes(rows, width, strength):
    """Multinomial logistic regression; a row counts for each class it has shares of."""
    row, found = np.nonzero(rows.labels)
    weights = rows.weights[row] * rows.labels[row, found]
    kernel, bias = np.zeros((rows.features.shape[1], width)), np.zeros(width)
    known = np.unique(found)
    if len(known) > 1:
        # scikit-learn takes the difference for two classes: half the penalty.
        factor = 2 if len(known) == 2 else 1
        model = _logistic(rows.features[row], found, weights, factor * strength)
        w, b = model.coef_.T, model.intercept_
        if len(known) == 2:
            w, b = np.hstack([-w, w]) / 2, np.concatenate([-b, b]) / 2
        kernel[:, known], bias[known] = w, b
    # As if one more image showed each class without images.
    unknown = np.setdiff1d(np.arange(width), known)
    bias[unknown] = bias[known].min() - np.log(len(np.unique(rows.groups)) + 1)
    return kernel, bias


def _solve_label(rows, label, strength):
    """Logistic regression of one label; a row counts for yes and for no."""
    features = np.concatenate([rows.features, rows.features])
    answers = np.repeat([1, 0], len(label))
    weights = np.concatenate([rows.weights * label, rows.weights * (1 - label)])
    used = weights > 0
    features, answers, weights = features[used], answers[used], weights[used]
    if len(np.unique(answers)) < 2:
        odds = np.log(2 * len(np.unique(rows.groups)) + 1)
        return np.zeros(features.shape[1]), odds if answers[0] else -odds
    model = _logistic(features, answers, weights, strength)
    return model.coef_[0], model.intercept_[0]


def _logistic(features, answers, weights, strength):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        # The last digits of a starting point do not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, answers, weights)
