"""The NumPy twins themselves, against numbers worked out with another program."""

import numpy as np
import pytest
import reference as ref
from reference import HEAD, KERNEL, SCORES, SOURCE_MAP, STARTING_KERNEL, TARGET_MAP


def test_weight_penalties():
    assert ref.half_sum_of_squares([KERNEL]) == pytest.approx(0.905)
    assert ref.l2_sp([(KERNEL, STARTING_KERNEL)]) == pytest.approx(2.445)
    assert 2 * ref.l2_sp([(KERNEL, STARTING_KERNEL)]) == pytest.approx(4.89)
    assert ref.head_penalty([HEAD], "code") == pytest.approx(0.275)
    assert ref.head_penalty([HEAD], "article") == pytest.approx(0.55)


def test_weights_of_scores():
    expected = [0.165610, 0.264523, 0.219337, 0.150803, 0.199727]
    np.testing.assert_allclose(ref.standardized(SCORES), expected, atol=1e-6)
    expected = [0.068470, 0.505925, 0.227327, 0.045897, 0.152382]
    np.testing.assert_allclose(ref.softmax(4 * SCORES), expected, atol=1e-6)


def test_attended_kernel():
    kernels = [(KERNEL, STARTING_KERNEL, ref.standardized(SCORES))]
    assert ref.l2_sp_att(kernels, []) == pytest.approx(2.674218, abs=1e-6)


def test_map_penalties():
    scale = ref.mean_square(SOURCE_MAP)
    weights = ref.standardized(SCORES)
    assert scale == pytest.approx(0.148)
    maps = (SOURCE_MAP, TARGET_MAP)
    for value, expected in (
        (ref.feature_map(*maps, "code"), 8.555),
        (ref.feature_map(*maps, "article"), 5.703333),
        (ref.feature_map(*maps, "relative", scale), 1.926802),
        (ref.delta(*maps, weights, "code"), 2.179319),
        (ref.delta(*maps, ref.UNIFORM, "code"), 2.138750),
        (ref.delta(*maps, ref.softmax(4 * SCORES), "article"), 1.221145),
        (ref.delta(*maps, weights, "relative", scale), 1.963350),
    ):
        assert value == pytest.approx(expected, abs=1e-6)
