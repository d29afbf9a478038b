"""Temperature, loss and calibration error against slow, obvious twins."""

import sys

import numpy as np
import pytest

from keras_delta._answers import calibration


def twin_loss(logits, labels, temperature=1.0):
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        exponentials = [np.exp(z / temperature) for z in row]
        total -= np.log(exponentials[label] / sum(exponentials))
    return total / len(labels)


def noisy(samples=400, classes=4, scale=1.0, seed=0):
    """Logits whose labels are drawn from softmax(logits / scale)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(samples, classes)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in p])
    return logits * scale, labels


def test_loss():
    logits, labels = noisy(50)
    assert calibration.loss(logits, labels) == pytest.approx(twin_loss(logits, labels))
    # Two classes, equal: ln 2; sure and right: 0; sure and wrong: the difference.
    assert calibration.loss([[5.0, 5.0]], [0]) == pytest.approx(0.693147, abs=1e-6)
    assert calibration.loss([[1e4, 0.0]], [0]) == 0
    assert calibration.loss([[1e4, 0.0]], [1]) == pytest.approx(1e4)


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 3.0, 20.0])
def test_the_temperature_is_the_best_of_a_fine_grid(scale):
    logits, labels = noisy(200, scale=scale)
    found = calibration.temperature(logits, labels)
    grid = scale * np.exp(np.linspace(-0.7, 0.7, 1401))
    losses = [calibration.loss(logits / t, labels) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=2e-3)
    assert calibration.loss(logits / found, labels) <= min(losses) + 1e-9
    assert found == pytest.approx(scale, rel=0.2)  # what the labels were drawn with


def test_logits_of_half_precision_and_large_numbers():
    logits, labels = noisy(200, scale=300.0)
    found = calibration.temperature(logits.astype("float16"), labels)
    assert found == pytest.approx(100, rel=1e-3)  # the limit


def test_it_changes_no_answer():
    logits, labels = noisy(50)
    found = calibration.temperature(logits, labels)
    np.testing.assert_array_equal(
        (logits / found).argmax(axis=1), logits.argmax(axis=1)
    )


def test_all_right_says_nothing_about_how_often_it_is_wrong():
    logits = np.eye(3)[[0, 1, 2, 0]] * 2
    with pytest.warns(UserWarning, match="All 4 images .* are recognised"):
        found = calibration.temperature(logits, np.array([0, 1, 2, 0]))
    assert found == 1.0


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r'needs scipy.*keras_delta\[serving\]"'):
        calibration.temperature(*noisy(9))


def logits_of(confidence, classes=3):
    """Logits whose largest probability, of class 0, is this."""
    rest = (1 - confidence) / (classes - 1)
    return np.log([confidence, *[rest] * (classes - 1)])


def test_calibration_error_by_hand():
    # Bins of 1/10: [.6, .7) has three samples, confidence .65, two of them right:
    # |2/3 - .65| = .016667; [.9, 1] has two, confidence .95, one right: .45.
    logits = np.array([logits_of(c) for c in (0.65, 0.65, 0.65, 0.95, 0.95)])
    labels = np.array([0, 0, 1, 0, 2])
    found = calibration.expected_calibration_error(logits, labels, bins=10)
    assert found == pytest.approx(3 / 5 * 0.0166667 + 2 / 5 * 0.45, abs=1e-6)


def test_calibration_error_against_a_twin():
    logits, labels = noisy(300, scale=2.5)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [i for i in range(300) if low <= p[i].max() < high]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            confidence = np.mean([p[i].max() for i in inside])
            expected += len(inside) / 300 * abs(accuracy - confidence)
    found = calibration.expected_calibration_error(logits, labels)
    assert found == pytest.approx(expected)
    assert found > 0.1  # logits that are too sure by a factor of 2.5


def test_calibration_error_of_what_is_certain():
    logits = np.array([[1e4, 0.0], [1e4, 0.0]])
    assert calibration.expected_calibration_error(logits, np.array([0, 0])) == 0
    assert calibration.expected_calibration_error(logits, np.array([0, 1])) == 0.5


def test_calibrating_lowers_the_error():
    logits, labels = noisy(2000, scale=4.0)
    found = calibration.temperature(logits, labels)
    error = calibration.expected_calibration_error
    assert error(logits / found, labels) < 0.05 < error(logits, labels)
