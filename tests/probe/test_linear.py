"""Linear models in NumPy: at the optimum the gradient is zero, and the like."""

import numpy as np
import pytest

from keras_delta import _tasks
from keras_delta._probe import linear
from keras_delta._probe.linear import Rows

STRENGTH = 0.3


def rows_of(labels, count=40, width=6, seed=0, weights=None):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width))
    features[:, :2] += labels[:, :1] * 2
    weights = np.ones(count) if weights is None else weights
    return Rows(features, labels, weights, np.arange(count), np.ones(count, bool))


def one_hot(count=40, classes=3):
    return np.eye(classes)[np.arange(count) % classes]


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


GUESS = {_tasks.MULTICLASS: softmax, _tasks.MULTILABEL: sigmoid, _tasks.BINARY: sigmoid}


def gradient(rows, kernel, bias, task):
    """Of `1/2 ||kernel||^2 + C sum_i w_i CE_i`, for the kernel and the bias."""
    error = GUESS[task](rows.features @ kernel + bias) - rows.labels
    error *= rows.weights[:, None] * STRENGTH
    return kernel + rows.features.T @ error, error.sum(axis=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "task, labels",
    [
        (_tasks.MULTICLASS, one_hot()),
        (_tasks.MULTICLASS, one_hot(classes=2)),
        (_tasks.MULTICLASS, 0.8 * one_hot() + 0.2 / 3),  # shares of the classes
        (_tasks.MULTILABEL, (np.arange(80).reshape(40, 2) % 3 == 0) * 1.0),
        (_tasks.MULTILABEL, np.abs(np.sin(np.arange(80))).reshape(40, 2)),
        (_tasks.BINARY, (np.arange(40)[:, None] % 2) * 1.0),
    ],
)
def test_the_gradient_is_zero(task, labels, weighted, monkeypatch):
    monkeypatch.setattr(linear, "ITERATIONS", 5000)
    weights = 1 + np.arange(40) % 3.0 if weighted else None
    rows = rows_of(labels, weights=weights)
    kernel, bias = linear.solve(rows, task, labels.shape[1], STRENGTH)
    of_kernel, of_bias = gradient(rows, kernel, bias, task)
    scale = np.abs(rows.features).sum() * STRENGTH
    assert np.abs(of_kernel).max() < 1e-4 * scale
    if task == _tasks.MULTICLASS:  # all biases alike change nothing
        of_bias = of_bias - of_bias.mean()
    assert np.abs(of_bias).max() < 1e-4 * scale


def test_numbers_in_closed_form():
    y = np.random.default_rng(1).normal(5, 3, (40, 2))
    rows = rows_of(y, weights=1 + np.arange(40) % 2.0)
    kernel, bias = linear.solve(rows, _tasks.REGRESSION, 2, STRENGTH)
    w = np.diag(rows.weights)
    mean_x = np.average(rows.features, axis=0, weights=rows.weights)
    mean_y = np.average(y, axis=0, weights=rows.weights)
    x = rows.features - mean_x
    expected = np.linalg.solve(
        x.T @ w @ x + np.eye(6) / STRENGTH, x.T @ w @ (y - mean_y)
    )
    np.testing.assert_allclose(kernel, expected, rtol=1e-8)
    np.testing.assert_allclose(bias, mean_y - mean_x @ expected, rtol=1e-8)


def test_numbers_that_are_all_alike():
    rows = rows_of(np.full((40, 1), 7.0))
    kernel, bias = linear.solve(rows, _tasks.REGRESSION, 1, STRENGTH)
    np.testing.assert_allclose(kernel, 0, atol=1e-12)
    np.testing.assert_allclose(bias, 7)


def test_a_class_that_no_image_shows():
    labels = np.eye(4)[np.arange(40) % 3]
    kernel, bias = linear.solve(rows_of(labels), _tasks.MULTICLASS, 4, STRENGTH)
    np.testing.assert_array_equal(kernel[:, 3], 0)
    assert bias[3] < bias[:3].min() - np.log(40)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_label_that_is_always_the_same(value):
    labels = np.full((40, 1), value)
    kernel, bias = linear.solve(rows_of(labels), _tasks.BINARY, 1, STRENGTH)
    np.testing.assert_array_equal(kernel, 0)
    assert sigmoid(bias)[0] == pytest.approx(abs(value - 1 / 82), abs=1e-3)


def test_few_rows_with_many_features_give_the_same_model():
    """In the space of the rows, as in that of all features."""
    rng = np.random.default_rng(0)
    labels = one_hot(30)
    features = rng.normal(size=(30, 90)) + labels @ rng.normal(size=(3, 90))
    rows = Rows(features.astype("float32"), *rows_of(labels, 30)[1:])
    found = linear.fit(rows, _tasks.MULTICLASS, 3, [STRENGTH])
    scale = np.sqrt(np.mean(features**2))
    whole = rows._replace(features=features / scale)
    kernel, bias = linear.solve(whole, _tasks.MULTICLASS, 3, STRENGTH)
    np.testing.assert_allclose(found.kernel * scale, kernel, atol=2e-3)
    np.testing.assert_allclose(found.bias, bias, atol=2e-3)


def test_the_scale_of_the_features_changes_nothing():
    rows = rows_of(one_hot())
    small = linear.fit(rows, _tasks.MULTICLASS, 3)
    large = linear.fit(
        rows._replace(features=rows.features * 1000), _tasks.MULTICLASS, 3
    )
    np.testing.assert_allclose(large.kernel * 1000, small.kernel, rtol=1e-4, atol=1e-5)
    assert large.scores == pytest.approx(small.scores)


def test_views_of_an_image_stay_together():
    labels = one_hot(30)
    rows = Rows(*(np.concatenate([v, v]) for v in rows_of(labels, 30)))
    parts = linear.split(rows, _tasks.MULTICLASS, 5, seed=0)
    assert len(parts) == 5
    random = rows._replace(features=rows.features.copy(), tested=np.arange(60) < 30)
    random.features[30:] = np.random.default_rng(1).normal(size=(30, 6))
    # Views that are not those of a test are fitted on, and not held out.
    clear = rows._replace(features=labels[rows.groups] * 10, tested=random.tested)
    clear.features[45:] = 0
    assert linear.fit(clear, _tasks.MULTICLASS, 3, [1.0]).scores == {1.0: 1.0}
    np.testing.assert_array_equal(np.sum(parts, axis=0), 1)
    for part in parts:
        np.testing.assert_array_equal(part[:30], part[30:])
        assert labels[part[:30]].sum(axis=0).tolist() == [2, 2, 2]


def test_an_image_that_is_alone_in_its_class_is_not_held_out():
    labels = np.eye(3)[[0] * 10 + [1] * 10 + [2]]
    rows = rows_of(labels, 21)
    parts = linear.split(rows, _tasks.MULTICLASS, 5, seed=0)
    assert not any(part[20] for part in parts)
    single = np.eye(3)
    found = linear.fit(rows_of(single, 3), _tasks.MULTICLASS, 3)
    assert found.scores == {} and found.strength == linear.USUAL_STRENGTH


def test_the_strength_with_the_least_loss_held_out():
    """Noise wants a small C, a clear signal a large one."""
    noise = rows_of(one_hot(), seed=3)
    noise = noise._replace(features=np.random.default_rng(5).normal(size=(40, 6)))
    assert linear.fit(noise, _tasks.MULTICLASS, 3, (1e-3, 100.0)).strength == 1e-3
    clear = noise._replace(features=one_hot() * 10)
    found = linear.fit(clear, _tasks.MULTICLASS, 3, (1e-3, 100.0))
    assert found.strength == 100.0 and found.scores[100.0] == 1.0


def test_scores():
    outputs = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = np.eye(2)[[0, 1, 1]]
    loss, score = linear.evaluate(outputs, labels, _tasks.MULTICLASS)
    expected = -np.log(softmax(outputs)[np.arange(3), [0, 1, 1]])
    assert loss == pytest.approx(expected) and score == pytest.approx(2 / 3)
    loss, score = linear.evaluate(outputs, labels, _tasks.MULTILABEL)
    p = sigmoid(outputs)
    cross = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert loss == pytest.approx(cross.mean(axis=1)) and score == pytest.approx(4 / 6)
    numbers = np.array([[1.0], [2.0], [4.0]])
    _, score = linear.evaluate(numbers + 0.5, numbers, _tasks.REGRESSION)
    assert score == pytest.approx(1 - 0.25 / numbers.var())


def test_much_work_means_fewer_parts(monkeypatch):
    held = []
    monkeypatch.setattr(
        linear,
        "_held_out",
        lambda rows, part, *_: held.append(part) or (0.0, np.ones(1), 0.5),
    )
    rows = rows_of(one_hot())
    linear.fit(rows, _tasks.MULTICLASS, 3, (0.1, 1.0))
    assert len(held) == 10
    held.clear()
    monkeypatch.setattr(linear, "MOST_WORK", 1)
    linear.fit(rows, _tasks.MULTICLASS, 3, (0.1, 1.0))
    assert len(held) == 2
