"""Intervals: slow twins, exact cases, how often they hold, refusals."""

from itertools import product

import numpy as np
import pytest

from keras_delta import statistics
from keras_delta.statistics import paired_interval, pooled_interval, wilson_interval


def answers(random, shape, share):
    return random.random(shape) < share


def slow_draws(a, b, draws, random):
    """The definition: draw S - 1 seeds and I images, average."""
    seeds, images = a.shape
    found = []
    for _ in range(draws):
        s = random.integers(0, seeds, max(seeds - 1, 1))
        i = random.integers(0, images, images)
        total = sum(
            float(a[k, j]) - float(b[k, j]) for k, j in product(s.tolist(), i.tolist())
        )
        found.append(total / (len(s) * images))
    return np.array(found)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_slow_twin(seeds):
    random = np.random.default_rng(seeds)
    a, b = answers(random, (seeds, 40), 0.8), answers(random, (seeds, 40), 0.6)
    found = paired_interval(a, b, draws=50_000, level=0.8)
    slow = slow_draws(a, b, 2500, random)
    noise = 4 * slow.std() / np.sqrt(2500)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert slow.mean() == pytest.approx(found.difference, abs=noise)
    low, high = np.quantile(slow, [0.1, 0.9])
    assert (found.low, found.high) == pytest.approx((low, high), abs=2 * noise)
    assert (found.seeds, found.images) == (seeds, 40)


def test_twin_of_the_pooled():
    random = np.random.default_rng(5)
    pairs = [
        (answers(random, s, 0.7), answers(random, s, 0.5)) for s in ((2, 30), (3, 50))
    ]
    found = pooled_interval(pairs, draws=50_000)
    slow = np.mean([slow_draws(a, b, 2500, random) for a, b in pairs], axis=0)
    noise = 4 * slow.std() / np.sqrt(2500)
    assert found.difference == pytest.approx(
        np.mean([a.mean() - b.mean() for a, b in pairs])
    )
    low, high = np.quantile(slow, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=3 * noise)
    assert (found.seeds, found.images) == (2, 80)


def test_one_seed_is_exact():
    # Two images, answers +1 and 0: draws of d are 0, 1/2, 1 with 1/4, 1/2, 1/4.
    found = paired_interval([[1, 1]], [[0, 1]], draws=40_000, level=0.4)
    assert found[:3] == (0.5, 0.5, 0.5)
    assert found.p_value == pytest.approx(2 * 0.25, abs=0.02)
    found = paired_interval([[1, 1]], [[0, 1]], draws=40_000)
    assert (found.low, found.high) == (0, 1)


def test_sides_are_alike():
    random = np.random.default_rng(1)
    a, b = answers(random, (3, 90), 0.7), answers(random, (3, 90), 0.6)
    there, back = paired_interval(a, b), paired_interval(b, a)
    assert back.difference == -there.difference
    assert back.p_value == pytest.approx(there.p_value, abs=0.03)
    assert back.low == pytest.approx(-there.high, abs=0.02)


def test_p_values_have_ends():
    ones, zeros = np.ones((3, 5), bool), np.zeros((3, 5), bool)
    found = paired_interval(ones, zeros, draws=999)
    assert found == (1.0, 1.0, 1.0, 2 / 1000, 3, 5)
    assert paired_interval(ones, ones, draws=999) == (0.0, 0.0, 0.0, 1.0, 3, 5)


def test_same_seed_same_answer():
    random = np.random.default_rng(2)
    a, b = answers(random, (3, 50), 0.7), answers(random, (3, 50), 0.6)
    assert paired_interval(a, b) == paired_interval(a, b, seed=0)
    assert paired_interval(a, b) != paired_interval(a, b, seed=1)


def test_pairing_counts():
    """Methods wrong about the same images differ for certain."""
    random = np.random.default_rng(3)
    a = answers(random, (3, 400), 0.7)
    b = a.copy()
    b[:, np.flatnonzero(a.all(axis=0))[:20]] = False
    paired = paired_interval(a, b)
    shuffled = paired_interval(a, b[:, random.permutation(400)])
    assert paired.low > 0
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def simulate(random, seeds, images, noise, settings=1):
    """Pairs of two equally good methods; `noise` of the seeds."""
    pairs = []
    for _ in range(settings):
        hard = random.normal(1, 1, images)
        pair = [
            hard
            + noise * random.normal(size=(seeds, 1))
            + 0.3 * random.normal(size=images)
            + 0.5 * random.normal(size=(seeds, images))
            > 0
            for _ in range(2)
        ]
        pairs.append(pair)
    return pairs


@pytest.mark.parametrize(
    ("seeds", "images", "noise", "settings", "least"),
    [
        (5, 300, 0.0, 1, 0.94),  # the images' noise alone: wide
        (5, 600, 0.04, 1, 0.94),
        (5, 2000, 0.08, 1, 0.87),  # mostly the seeds' noise: a bit narrow
        (3, 600, 0.1, 12, 0.92),  # pooled
    ],
)
def test_coverage(seeds, images, noise, settings, least):
    random = np.random.default_rng(7)
    runs, held = 100, 0
    for k in range(runs):
        pairs = simulate(random, seeds, images, noise, settings)
        found = pooled_interval(pairs, draws=400, seed=k)
        held += found.low <= 0 <= found.high
    assert held / runs >= least


def test_chunks(monkeypatch):
    random = np.random.default_rng(0)
    a, b = answers(random, (2, 60), 0.8), answers(random, (2, 60), 0.7)
    whole = paired_interval(a, b, draws=20_000)
    monkeypatch.setattr(statistics, "CHUNK", 1000)
    parts = paired_interval(a, b, draws=20_000)
    assert parts[1:3] == pytest.approx(whole[1:3], abs=0.01)


def test_refusals():
    ones = np.ones((2, 3), bool)
    text = (
        r"Invalid value for argument `b`. Expected an array of the shape of `a`, "
        r"\(2, 3\). Received: b=\(2, 4\). Both methods need the same seeds"
    )
    with pytest.raises(ValueError, match=text):
        paired_interval(ones, np.ones((2, 4), bool))
    with pytest.raises(ValueError, match=r"`a`. Expected an array \(seeds, images\)"):
        paired_interval(ones[0], ones[0])
    with pytest.raises(ValueError, match=r"`a`. Expected an array \(seeds, images\)"):
        paired_interval(ones[:, :0], ones[:, :0])
    with pytest.raises(ValueError, match=r"`b`. Expected an array of bools, or of 0"):
        paired_interval(ones, 0.5 * ones)
    with pytest.raises(ValueError, match=r"`level`. Expected a positive finite numb"):
        paired_interval(ones, ones, level=95)
    with pytest.raises(ValueError, match=r"`pairs`. Expected at least one pair"):
        pooled_interval([])


def test_settings_that_share_images_are_no_more_than_one():
    """Twice the same setting says no more than once; two of their own say more."""
    random = np.random.default_rng(3)
    a, b = random.random((2, 4, 200)) < [[[0.8]], [[0.7]]]
    once = pooled_interval([(a, b)])
    shared = pooled_interval([(a, b)] * 2, ["flowers"] * 2)
    apart = pooled_interval([(a, b)] * 2)
    width = {i: i.high - i.low for i in (once, shared, apart)}
    assert shared.difference == once.difference
    assert (shared.low, shared.high) == (once.low, once.high)
    np.testing.assert_allclose(width[apart], width[once] / 2**0.5, rtol=0.05)


def test_settings_of_a_group_with_other_images_are_drawn_apart():
    random = np.random.default_rng(4)
    pairs = [tuple(random.random((2, 3, n)) < 0.7) for n in (50, 80)]
    together = pooled_interval(pairs, ["flowers"] * 2)
    assert together == pooled_interval(pairs)


# --- shares


@pytest.mark.parametrize(
    "successes, n, low, high",
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (990, 1000, 0.9817, 0.9946),
    ],
)
def test_wilson_by_hand(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("level, z", [(0.95, 1.959964), (0.99, 2.575829)])
def test_wilson_is_where_the_test_just_rejects(level, z):
    # The definition: the shares p with |8/10 - p| = z sqrt(p (1 - p) / 10).
    for p in wilson_interval(8, 10, level):
        assert abs(0.8 - p) == pytest.approx(z * np.sqrt(p * (1 - p) / 10))


def test_wilson_at_the_ends():
    assert wilson_interval(3, 4, level=1) == (0.0, 1.0)
    with pytest.raises(ValueError, match="`successes`"):
        wilson_interval(5, 4)
