"""What a model says of images, against counting by hand."""

import numpy as np
import pytest

from keras_delta.analysis import answers as judged
from keras_delta.analysis.answers import Answers
from keras_delta.statistics import wilson_interval

NAMES = ("a", "b", "c", "never")


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(60, 4)).astype("float32")
    labels = rng.integers(0, 3, 60)
    logits[np.arange(60), labels] += 2
    return Answers(logits, labels, NAMES)


def test_counts(answers):
    expected = np.zeros((4, 4), int)
    for z, label in zip(answers.logits, answers.labels, strict=True):
        expected[label, z.argmax()] += 1
    np.testing.assert_array_equal(judged.confusion(answers), expected)
    pairs = judged.confused_pairs(answers, most=100)
    assert pairs == sorted(pairs, key=lambda p: -p[2])
    off = expected - np.diag(np.diag(expected))
    assert {(a, b): n for a, b, n in pairs} == {
        (a, b): off[a, b] for a, b in zip(*np.nonzero(off), strict=True)
    }
    assert len(judged.confused_pairs(answers, most=2)) == 2


def test_recalls(answers):
    *found, never = judged.recalls(answers)
    for i, row in enumerate(found):
        mine = answers.logits[answers.labels == i].argmax(1)
        assert (row.name, row.images) == (NAMES[i], len(mine))
        assert row.right == (mine == i).sum()
        assert row.share == pytest.approx((mine == i).mean())
        assert (row.low, row.high) == wilson_interval(row.right, row.images)
    assert never == ("never", 0, 0, None, None, None)


def test_mistakes(answers):
    found = judged.confident_mistakes(answers, most=5)
    p = answers.probabilities
    np.testing.assert_allclose(p.sum(1), 1)
    wrong = [i for i in range(60) if p[i].argmax() != answers.labels[i]]
    wrong.sort(key=lambda i: -p[i].max())
    assert found.tolist() == wrong[:5]


def test_reliability(answers):
    bins = judged.reliability(answers, bins=5)
    p, right = answers.probabilities.max(1), answers.right
    seen = 0
    for low in np.arange(5) / 5:
        inside = (p >= low) & (p < low + 0.2)
        if inside.any():
            found = bins[seen]
            seen += 1
            assert found.images == inside.sum()
            assert found.confidence == pytest.approx(p[inside].mean())
            assert found.accuracy == pytest.approx(right[inside].mean())
            assert found.low <= found.accuracy <= found.high
    assert seen == len(bins)


def test_all_right_and_sure():
    answers = Answers(50 * np.eye(3, dtype="float32"), np.arange(3), ("a", "b", "c"))
    assert len(judged.confident_mistakes(answers)) == 0
    assert judged.confused_pairs(answers) == []
    ((confidence, accuracy, _, high, images),) = judged.reliability(answers)
    assert (confidence, accuracy, high, images) == (1, 1, 1, 3)
