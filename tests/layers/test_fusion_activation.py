"""`FusionActivation` and the pooling before it, against NumPy and through Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fourier_reference import gate_in_numpy, loss_in_numpy, pool_in_numpy
from keras import ops
from reference import SOURCE_MAP, TARGET_MAP

import keras_delta as kd
from keras_delta.layers.pooling import adaptive_average_pool

CHANNELS = 32


def official_state(channels=CHANNELS, reduction=16):
    rng = np.random.default_rng(0)
    inner = channels // reduction
    return {
        "fc.0.weight": rng.normal(size=(inner, channels)),
        "fc.2.weight": rng.normal(size=(channels, inner)),
    }


def random_phases(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-np.pi, np.pi, shape).astype("float32")


def pair(channels=CHANNELS):
    return [random_phases(3, 4, 5, channels, seed=seed) for seed in (1, 2)]


def loaded(**arguments):
    fusion = kd.layers.FusionActivation(**arguments)
    fusion.load_official(official_state())
    return fusion


# --- values --------------------------------------------------------------------------


def test_published_formula_by_hand(monkeypatch):
    gate = np.array([0.2, 0.5, 0.9, 0.1, 0.7], "float32")
    fusion = kd.layers.FusionActivation(reduction=1)
    fusion.build(SOURCE_MAP.shape)
    monkeypatch.setattr(fusion, "gate", lambda phases: np.tile(gate, (3, 1)))
    loss = fusion(SOURCE_MAP, TARGET_MAP)
    np.testing.assert_allclose(loss, 0.0968050, atol=1e-7)
    expected = loss_in_numpy(SOURCE_MAP, TARGET_MAP, np.tile(gate, (3, 1)))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_equals_numpy():
    (source, target), state, fusion = pair(), official_state(), loaded()
    gate = gate_in_numpy(source, state)
    np.testing.assert_allclose(fusion.gate(source), gate, atol=1e-6)
    loss = fusion(source, target)
    assert loss.shape == ()
    np.testing.assert_allclose(loss, loss_in_numpy(source, target, gate), rtol=1e-5)
    np.testing.assert_array_equal(fusion(source, source), 0)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 5), (3, 3), (7, 7), (8, 10)])
@pytest.mark.parametrize("known", [True, False])
def test_pooling_equals_numpy(size, known):
    """Sizes that divide, that do not, and that are larger than the map's."""
    x = random_phases(2, 8, 10, 3)
    spec = tf.TensorSpec(x.shape if known else (None, None, None, 3))
    run = tf.function(lambda x: adaptive_average_pool(x, size), input_signature=[spec])
    np.testing.assert_allclose(run(x), pool_in_numpy(x, size), atol=1e-6)
    np.testing.assert_allclose(adaptive_average_pool(x, size), run(x), atol=1e-6)


def test_pooling_passes_gradients_on():
    """Each position gets the sum of the shares it has in the bins."""
    x = tf.constant(random_phases(1, 5, 7, 2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled = adaptive_average_pool(x, (2, 3))
        loss = ops.sum(pooled * np.arange(12.0, dtype="float32").reshape(1, 2, 3, 2))
    expected = np.zeros(x.shape)
    for i, (top, bottom) in enumerate([(0, 3), (2, 5)]):
        for j, (left, right) in enumerate([(0, 3), (2, 5), (4, 7)]):
            value = np.arange(12.0).reshape(2, 3, 2)[i, j] / 9
            expected[0, top:bottom, left:right] += value
    np.testing.assert_allclose(tape.gradient(loss, x), expected, rtol=1e-6)


@pytest.mark.parametrize("sizes", [[(8, 8), (4, 4), (2, 2)], [(9, 7), (5, 4), (3, 2)]])
def test_phases_are_concatenated_on_the_last_grid(sizes):
    phases = [random_phases(2, *size, 3 + i) for i, size in enumerate(sizes)]
    found = kd.layers.concatenate_phases(phases)
    expected = np.concatenate([pool_in_numpy(x, sizes[-1]) for x in phases], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape == (2, *sizes[-1], 12)
    np.testing.assert_array_equal(found[..., -5:], phases[-1])


def test_concatenated_in_float32():
    phases = [random_phases(2, n, n, 2).astype("float16") for n in (5, 3)]
    found = kd.layers.concatenate_phases(phases)
    assert found.dtype == "float32"
    expected = [pool_in_numpy(x, (3, 3)) for x in phases]
    np.testing.assert_allclose(found, np.concatenate(expected, -1), atol=1e-6)


# --- gradients -----------------------------------------------------------------------


def test_gradients_are_slopes():
    (source, target), fusion, state = pair(), loaded(), official_state()
    source, target = tf.constant(source), tf.constant(target)
    with tf.GradientTape() as tape:
        tape.watch([source, target])
        loss = fusion(source, target)
    wanted = [target, *(v.value for v in fusion.trainable_variables)]
    of_target, of_first, of_second = tape.gradient(loss, wanted)
    gate = gate_in_numpy(source, state)[:, None, None, :]
    difference = np.array(target) - np.array(source)
    expected = 2 * gate**2 * difference / difference.size
    np.testing.assert_allclose(of_target, expected, atol=1e-7)
    rng = np.random.default_rng(3)
    for name, found in (("fc.0.weight", of_first), ("fc.2.weight", of_second)):
        direction = rng.normal(size=state[name].shape)
        high, low = (
            loss_in_numpy(
                source,
                target,
                gate_in_numpy(source, state | {name: state[name] + step * direction}),
            )
            for step in (1e-6, -1e-6)
        )
        slope = (high - low) / 2e-6
        np.testing.assert_allclose(np.sum(found * direction.T), slope, rtol=1e-3)
        assert abs(slope) > 1e-4


# --- through Keras -------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_float32_under_every_policy(policy):
    source, target = pair()
    fusion = loaded(dtype=policy)
    loss = fusion(source, target)
    assert loss.dtype == "float32"
    assert fusion.gate(source).dtype == "float32"
    np.testing.assert_array_equal(loss, loaded()(source, target))


def test_starts_as_the_authors_do():
    fusion = kd.layers.FusionActivation()
    fusion.build((None, 7, 7, 960))
    first, second = fusion.get_weights()
    assert (first.shape, second.shape) == ((960, 60), (60, 960))
    for kernel in (first, second):  # U(-1/sqrt(n), 1/sqrt(n))
        limit = 1 / np.sqrt(len(kernel))
        assert 0.9 * limit < np.abs(kernel).max() <= limit


def test_the_gate_alone_builds_the_layer():
    source, target = pair()
    fusion = kd.layers.FusionActivation()
    assert fusion.gate(source).shape == (3, CHANNELS)
    assert fusion.built
    before = fusion.get_weights()
    fusion(source, target)
    for old, new in zip(before, fusion.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_in_a_functional_model(tmp_path):
    inputs = [keras.Input((8, 6, 12)), keras.Input((4, 3, 20))]
    source = kd.layers.concatenate_phases(inputs)
    assert source.shape == (None, 4, 3, CHANNELS)
    target = keras.Input((4, 3, CHANNELS))
    fusion = kd.layers.FusionActivation(name="fusion")
    loss = fusion(source, target)
    assert (loss.shape, loss.dtype) == ((), "float32")
    model = keras.Model([*inputs, target], loss)
    fusion.load_official(official_state())
    data = [random_phases(2, *i.shape[1:]) for i in (*inputs, target)]
    expected = model(data)
    model.save(tmp_path / "m.keras")
    loaded_model = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded_model(data), expected)


def test_config_round_trip():
    fusion = kd.layers.FusionActivation(8, name="f")
    config = keras.saving.serialize_keras_object(fusion)
    twin = keras.saving.deserialize_keras_object(config)
    assert isinstance(twin, kd.layers.FusionActivation)
    assert twin.get_config() == fusion.get_config()
    assert twin.reduction == 8


def test_compiled_by_xla():
    source, target = map(tf.constant, pair())
    fusion = loaded()

    def step(source, target):
        with tf.GradientTape() as tape:
            phases = [ops.pad(target, [[0, 0], [0, 3], [0, 4], [0, 0]]), target]
            target = kd.layers.concatenate_phases(phases)[..., CHANNELS:]
            loss = fusion(source, target)
        return loss, tape.gradient(loss, [v.value for v in fusion.trainable_variables])

    compiled = tf.function(step, jit_compile=True)(source, target)
    plain = step(source, target)
    for one, other in zip(
        tf.nest.flatten(compiled), tf.nest.flatten(plain), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# --- errors --------------------------------------------------------------------------


def test_arguments_are_checked():
    source, target = pair()
    with pytest.raises(ValueError, match="`reduction`"):
        kd.layers.FusionActivation(0)
    with pytest.raises(
        ValueError, match=r"`reduction`.*at most 32, the number of chan"
    ):
        kd.layers.FusionActivation(33)(source, target)
    with pytest.raises(ValueError, match=r"`target_phases.shape`.*4, 5, 32.*4, 1, 32"):
        kd.layers.FusionActivation()(source, target[:, :, :1])
    with pytest.raises(ValueError, match=r"`target_phases.shape`"):
        kd.layers.FusionActivation()(source, target[..., :16])
    with pytest.raises(
        ValueError, match=r"`source_phases.shape`.*4, 5, 32\).*4, 5, 16\)"
    ):
        loaded()(source[..., :16], target[..., :16])
    with pytest.raises(ValueError, match="`phases`"):
        kd.layers.concatenate_phases([])
    with pytest.raises(ValueError, match=r"`phases\[1\].shape`.*\(B, H, W, C\)"):
        kd.layers.concatenate_phases([source, source[0]])


def test_official_state_is_checked():
    fusion, state = kd.layers.FusionActivation(), official_state()
    fusion.build((None, 4, 5, CHANNELS))
    before = fusion.get_weights()
    with pytest.raises(ValueError, match=r"Missing: 'fc.2.weight'"):
        fusion.load_official({"fc.0.weight": state["fc.0.weight"]})
    with pytest.raises(ValueError, match=r"'fc.1.weight'.*'fc.0.weight'"):
        fusion.load_official(state | {"fc.1.weight": np.zeros(2)})
    wrong = state | {"fc.2.weight": np.zeros((2, 32))}
    with pytest.raises(ValueError, match=r"fc.2.weight.*\(32, 2\).*\(2, 32\)"):
        fusion.load_official(wrong)
    with pytest.raises(ValueError, match=r"fc.0.weight.*\(2, 32\).*\(4, 64\)"):
        fusion.load_official(official_state(64))
    with pytest.raises(ValueError, match=r"fc.0.weight.*\(4, 32\).*\(2, 32\)"):
        kd.layers.FusionActivation(8).load_official(state)
    for old, new in zip(before, fusion.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
