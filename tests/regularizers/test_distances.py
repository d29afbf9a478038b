"""Distances of feature maps, against NumPy and by hand."""

import numpy as np
import pytest
import reference as ref
import tensorflow as tf
from afd_reference import kd
from reference import KERNEL, SOURCE_MAP, STARTING_KERNEL, TARGET_MAP

from keras_delta.regularizers import distances
from keras_delta.regularizers.predictions import distillation_loss

# Worked out by hand from the maps in `reference`.
D = [
    [0.68, 2.05, 0.60, 0.58, 0.98],
    [1.43, 0.75, 1.90, 1.29, 0.91],
    [1.53, 1.02, 1.47, 0.82, 1.10],
]


def test_channel_distances():
    found = distances.channel_distances(SOURCE_MAP, TARGET_MAP)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, D, atol=1e-6)
    np.testing.assert_allclose(
        found, ref.channel_distances(SOURCE_MAP, TARGET_MAP), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 2, 2, 1, 5)])
def test_channel_distances_of_other_ranks(shape):
    found = distances.channel_distances(
        SOURCE_MAP.reshape(shape), TARGET_MAP.reshape(shape)
    )
    np.testing.assert_allclose(found, D, atol=1e-6)


def test_half_precision_does_not_overflow():
    """7 x 7 x 2048 squares of 40 each overflow float16, whose end is 65504."""
    ones = np.ones((1, 64, 64, 1), "float16")
    found = distances.channel_distances(0 * ones, 40 * ones)
    np.testing.assert_array_equal(found, [[64 * 64 * 1600.0]])


def test_the_gradient_is_zero_where_maps_agree():
    maps = tf.constant(SOURCE_MAP, "float32")
    with tf.GradientTape() as tape:
        tape.watch(maps)
        total = tf.reduce_sum(distances.channel_distances(SOURCE_MAP, maps))
    np.testing.assert_array_equal(tape.gradient(total, maps), np.zeros((3, 2, 2, 5)))


def test_positions():
    assert float(distances.positions(SOURCE_MAP)) == 4
    assert float(distances.positions(np.zeros((2, 7, 5)))) == 7


def test_mean_square():
    found = distances.mean_square(SOURCE_MAP)
    np.testing.assert_allclose(found, (SOURCE_MAP**2).mean(axis=(1, 2, 3)), atol=1e-6)
    assert float(np.mean(found)) == pytest.approx(0.148)


def test_half_sum_of_squares():
    assert float(distances.half_sum_of_squares([KERNEL])) == pytest.approx(0.905)
    difference = KERNEL - STARTING_KERNEL
    assert float(distances.half_sum_of_squares([difference])) == pytest.approx(2.445)
    both = distances.half_sum_of_squares([KERNEL, difference])
    assert float(both) == pytest.approx(3.35)


def test_half_sum_of_nothing_is_a_scalar_zero():
    nothing = distances.half_sum_of_squares([])
    assert nothing.shape == () and nothing.dtype == "float32" and float(nothing) == 0


def test_distillation_loss():
    """Worked out elsewhere: at 4 .166773, at 2 .132364, as means of two samples."""
    source, target = [[2, 1, -1], [0, 3, 1]], [[1, 0.5, 0], [-1, 2, 0.5]]
    for temperature, expected in ((4.0, 0.166773), (2.0, 0.132364)):
        loss = distillation_loss(source, target, temperature)
        assert loss.shape == (2,) and loss.dtype == "float32"
        np.testing.assert_allclose(
            loss, kd(np.array(source), np.array(target), temperature), atol=1e-6
        )
        assert float(np.mean(loss)) == pytest.approx(expected, abs=1e-6)
    same = distillation_loss(source, source, 3.0)
    np.testing.assert_allclose(same, [0, 0], atol=1e-6)


def test_distillation_loss_of_extreme_logits():
    half = np.array([[6e4, -6e4, 0]], "float16")
    with tf.GradientTape() as tape:
        target = tf.constant(-half)
        tape.watch(target)
        loss = distillation_loss(half, target, 1.0)
    assert float(loss[0]) == pytest.approx(2 * float(half[0, 0]), rel=1e-6)
    assert np.isfinite(tape.gradient(loss, target)).all()
