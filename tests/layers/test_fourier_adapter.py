"""`FourierAdapter` against sums of sines, digit by digit and through Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fourier_reference import adapt_in_numpy, blend_in_numpy
from keras import ops
from reference import g, p

import keras_delta as kd
from keras_delta.layers.fourier import blend_amplitudes, compute_phase

SIZES = [(4, 4), (5, 7), (7, 7), (6, 9), (9, 6), (2, 3), (1, 1)]
CHANNELS = 8


def official_state(channels=CHANNELS, reduction=4, seed=0):
    """Random arrays under the names of the authors' `Adapter_conv`."""
    rng = np.random.default_rng(seed)
    inner = channels // reduction
    state = {
        "weight": rng.normal(size=2) * 0.1,
        "fc.0.weight": rng.normal(size=(inner, channels, 1, 1)),
        "fc.3.weight": rng.normal(size=(channels, inner, 1, 1)),
    }
    for name, size in (("fc.1", inner), ("fc.4", channels)):
        state[f"{name}.weight"] = rng.uniform(0.5, 1.5, size)
        state[f"{name}.bias"] = rng.normal(size=size) * 0.3
        state[f"{name}.running_mean"] = rng.normal(size=size) * 0.3
        state[f"{name}.running_var"] = rng.uniform(0.5, 1.5, size)
        state[f"{name}.num_batches_tracked"] = np.array(7)
    return state


def random_maps(height=5, width=7, channels=CHANNELS, batch=2):
    rng = np.random.default_rng(height * 100 + width)
    return rng.normal(size=(batch, height, width, channels)).astype("float32")


def loaded_adapter(**arguments):
    adapter = kd.layers.FourierAdapter(**arguments)
    adapter.load_official(official_state())
    return adapter


# --- values --------------------------------------------------------------------------

ROWS = {
    (0.0, 0.0): [-0.459245, -0.134777, -0.239623, 0.333663],
    (0.02, -0.03): [-0.449264, -0.069819, -0.273819, 0.317416],
}


@pytest.mark.parametrize("mixture", ROWS)
def test_published_formula_by_hand(mixture):
    x, adapted = p(16).reshape(1, 4, 4, 1), g(16).reshape(1, 4, 4, 1)
    weights = ops.softmax(np.array(mixture, "float32") / 0.1)
    output, phase = blend_amplitudes(x, adapted, weights)
    np.testing.assert_allclose(output[0, 0, :, 0], ROWS[mixture], atol=1e-6)
    row = [3.141593, 1.849096, 0, -1.849096]
    np.testing.assert_allclose(phase[0, 0, :, 0], row, atol=1e-6)
    if mixture == (0.0, 0.0):
        np.testing.assert_allclose(ops.sum(output**2), 1.321468, atol=1e-6)
    expected, phases = blend_in_numpy(x, adapted, mixture)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(phase, phases, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_equals_numpy(size, training):
    """Odd and oblong maps too; they come back with their own size."""
    x, adapter, state = random_maps(*size), loaded_adapter(), official_state()
    output, phase = adapter(x, training=training)
    adapted = adapt_in_numpy(x.astype("float64"), state, training)
    expected, phases = blend_in_numpy(x, adapted, state["weight"])
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(phase, phases, atol=1e-5)
    np.testing.assert_array_equal(compute_phase(x), phase)


@pytest.mark.parametrize("size", SIZES)
def test_without_the_adapted_amplitude_the_map_comes_back(size):
    x, adapter = random_maps(*size), loaded_adapter()
    adapter.mixture.assign([-10.0, 10.0])
    np.testing.assert_allclose(adapter(x)[0], x, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (7, 7), (14, 14), (6, 9)])
def test_phases_of_real_frequencies_are_exactly_0_or_pi(size):
    """A sign of rounding would turn pi into -pi, the largest difference there is."""
    x = random_maps(*size, batch=8)
    phase = np.array(compute_phase(x))
    height, width = size
    for k in {0, height // 2 if height % 2 == 0 else 0}:
        for l in {0, width // 2 if width % 2 == 0 else 0}:  # noqa: E741
            waves = np.cos(2 * np.pi * k * np.arange(height) / height)[:, None]
            waves = waves * np.cos(2 * np.pi * l * np.arange(width) / width)
            negative = np.einsum("bhwc,hw->bc", x, waves) < 0
            expected = np.where(negative, np.float32(np.pi), 0)
            np.testing.assert_array_equal(phase[:, k, l], expected)


def test_phases_that_happen_to_be_pi():
    """Both of a pair of mirrored frequencies, although `phase[-k] = -phase[k]`."""
    wave = np.array([-1.0, 0, 1, 0], "float32")
    for axis in (1, 2):
        x = np.zeros((1, 4, 4, 1), "float32")
        x += wave.reshape([4 if i == axis else 1 for i in range(4)])
        phase = np.take(compute_phase(x), 0, axis=3 - axis)[0, :, 0]
        np.testing.assert_array_equal(phase, np.float32([0, np.pi, 0, np.pi]))


def test_a_map_of_zeros():
    """Every amplitude is sqrt(1e-5), every phase 0: one small peak in the corner."""
    adapter = loaded_adapter()
    adapter.mixture.assign([-10.0, 10.0])
    output, phase = adapter(np.zeros((1, 4, 5, CHANNELS), "float32"))
    expected = np.zeros((1, 4, 5, CHANNELS))
    expected[:, 0, 0] = np.sqrt(1e-5)
    np.testing.assert_allclose(output, expected, atol=1e-8)
    np.testing.assert_array_equal(phase, 0 * expected)


# --- gradients -----------------------------------------------------------------------


def cubes_and_squares(output, phase):
    return ops.sum(output**3) + ops.sum(phase**2)


def gradients(adapter, x, loss=cubes_and_squares, training=True):
    """Of the maps and of all trainable variables."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        output, phase = adapter(x, training=training)
        value = loss(ops.cast(output, "float32"), phase)
    found = tape.gradient(value, [x, *(v.value for v in adapter.trainable_variables)])
    return [np.array(f) for f in found]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("constant", [0.0, 0.7, -3.0])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_constant_maps_give_no_nan(constant, training, policy):
    adapter = loaded_adapter(dtype=policy)
    x = np.full((2, 5, 7, CHANNELS), constant, adapter.compute_dtype)
    x[0, :, :, :4] = 0
    for values in adapter(x, training=training):
        assert np.isfinite(values).all()

    def loss(output, phase):
        return 100 * (ops.mean(output**2) + ops.mean((phase - 1) ** 2))

    for gradient in gradients(adapter, x, loss, training):
        assert np.isfinite(gradient).all()


def test_empty_frequencies_pass_no_gradient():
    """1 / epsilon is what atan2 would multiply by: too much for half precision."""
    x = np.zeros((1, 4, 5, CHANNELS), "float32")
    (gradient, *_) = gradients(loaded_adapter(), x, lambda _, phase: ops.sum(phase))
    np.testing.assert_array_equal(gradient, 0 * x)


def test_gradients_are_slopes():
    adapter, x = loaded_adapter(), random_maps(4, 5)
    adapter.mixture.assign([0.02, -0.03])
    found = gradients(adapter, x, training=False)
    rng = np.random.default_rng(0)
    direction = rng.normal(size=x.shape)
    state = official_state() | {"weight": np.array([0.02, -0.03])}

    def loss(x, state):
        adapted = adapt_in_numpy(x, state, False)
        output, phase = blend_in_numpy(x, adapted, state["weight"])
        return np.sum(output**3) + np.sum(phase**2)

    def slope(change):
        return (change(1e-5) - change(-1e-5)) / 2e-5

    expected = slope(lambda step: loss(x + step * direction, state))
    np.testing.assert_allclose(np.sum(found[0] * direction), expected, rtol=1e-4)
    names = [v.path.split("/", 1)[1] for v in adapter.trainable_variables]
    of = dict(zip(names, found[1:], strict=True))
    assert len(of) == 7
    for name, official in (
        ("mixture", "weight"),
        ("reduce/kernel", "fc.0.weight"),
        ("reduce_bn/gamma", "fc.1.weight"),
        ("reduce_bn/beta", "fc.1.bias"),
        ("expand/kernel", "fc.3.weight"),
        ("expand_bn/gamma", "fc.4.weight"),
        ("expand_bn/beta", "fc.4.bias"),
    ):
        start = state[official]
        direction = rng.normal(size=start.shape)
        expected = slope(
            lambda step, name=official, start=start, direction=direction: loss(
                x.astype("float64"), state | {name: start + step * direction}
            )
        )
        if direction.ndim == 4:
            direction = direction.transpose(2, 3, 1, 0)
        value = np.sum(of[name] * direction)
        np.testing.assert_allclose(value, expected, rtol=2e-3, err_msg=name)


# --- through Keras -------------------------------------------------------------------


def test_starts_as_the_authors_do():
    adapter = kd.layers.FourierAdapter()
    adapter.build((None, 7, 7, 64))
    np.testing.assert_array_equal(adapter.mixture, [0, 0])
    kernels = [w for w in adapter.get_weights() if w.ndim == 4]
    assert [k.shape for k in kernels] == [(1, 1, 64, 16), (1, 1, 16, 64)]
    for kernel, inputs in zip(kernels, (64, 16), strict=True):  # U(-1/sqrt(n), ...)
        assert 0.9 / np.sqrt(inputs) < np.abs(kernel).max() <= 1 / np.sqrt(inputs)
    assert len(adapter.weights) == 11


def test_statistics_move_in_training_only():
    x, adapter = random_maps(), loaded_adapter()
    before = [np.asarray(v) for v in adapter.non_trainable_variables]
    adapter(x)
    adapter(x, training=False)
    for old, new in zip(before, adapter.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(new, old)
    adapter(x, training=True)
    state = official_state()
    inner = np.einsum("bhwc,dc->bhwd", x, state["fc.0.weight"][:, :, 0, 0])
    expected = 0.9 * state["fc.1.running_mean"] + 0.1 * inner.mean((0, 1, 2))
    np.testing.assert_allclose(
        adapter.non_trainable_variables[0], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_frequencies_are_float32_under_every_policy(policy):
    x, exact = random_maps(14, 14), loaded_adapter()
    adapter = loaded_adapter(dtype=policy)
    compute = adapter.compute_dtype
    x = np.array(ops.cast(ops.cast(x, compute), "float32"))
    output, phase = adapter(ops.cast(x, compute))
    assert keras.backend.standardize_dtype(output.dtype) == compute
    assert keras.backend.standardize_dtype(phase.dtype) == "float32"
    np.testing.assert_array_equal(phase, exact(x)[1])
    near = {"mixed_float16": 5e-3, "mixed_bfloat16": 5e-2, "float64": 1e-5}
    output = ops.cast(output, "float32")
    np.testing.assert_allclose(output, exact(x)[0], atol=near[policy])


def test_half_precision_reads_float32_maps_in_full():
    x, adapter = random_maps(), loaded_adapter(dtype="mixed_float16")
    np.testing.assert_array_equal(adapter(x)[1], compute_phase(x))


def test_in_a_functional_model(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(CHANNELS, 3)(inputs)
    adapter = kd.layers.FourierAdapter(name="adapter")
    output, phase = adapter(x)
    assert output.shape == phase.shape == (None, None, None, CHANNELS)
    model = keras.Model(inputs, [keras.layers.GlobalAveragePooling2D()(output), phase])
    adapter.load_official(official_state())
    images = random_maps(9, 8, 3)
    expected = model.predict(images, verbose=0)
    assert expected[1].shape == (2, 7, 6, CHANNELS)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for one, other in zip(loaded.predict(images, verbose=0), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_known_sizes_stay_known():
    output, phase = kd.layers.FourierAdapter()(keras.Input((5, 7, 8)))
    assert output.shape == phase.shape == (None, 5, 7, 8)
    assert phase.dtype == "float32"


def test_config_round_trip():
    adapter = kd.layers.FourierAdapter(2, temperature=0.3, epsilon=1e-4, name="a")
    config = keras.saving.serialize_keras_object(adapter)
    twin = keras.saving.deserialize_keras_object(config)
    assert isinstance(twin, kd.layers.FourierAdapter)
    assert twin.get_config() == adapter.get_config()
    assert (twin.reduction, twin.temperature, twin.epsilon) == (2, 0.3, 1e-4)


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_compiled_by_xla(size):
    x, adapter = tf.constant(random_maps(*size)), loaded_adapter()

    def step(x):
        with tf.GradientTape() as tape:
            output, phase = adapter(x, training=False)
            loss = ops.sum(output**2) + ops.sum(phase**2)
        variables = [v.value for v in adapter.trainable_variables]
        return output, phase, tape.gradient(loss, variables)

    compiled = tf.function(step, jit_compile=True)(x)
    for one, other in zip(
        tf.nest.flatten(compiled), tf.nest.flatten(step(x)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


# --- errors --------------------------------------------------------------------------


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`reduction`"):
        kd.layers.FourierAdapter(0)
    with pytest.raises(ValueError, match="`temperature`"):
        kd.layers.FourierAdapter(temperature=0)
    with pytest.raises(ValueError, match="`epsilon`"):
        kd.layers.FourierAdapter(epsilon=-1)
    with pytest.raises(ValueError, match=r"`reduction`.*at most 3, the number of chan"):
        kd.layers.FourierAdapter()(np.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="ndim=4"):
        kd.layers.FourierAdapter()(np.zeros((1, 4, 8)))


def test_official_state_is_checked():
    adapter, state = kd.layers.FourierAdapter(), official_state()
    adapter.build((None, 5, 7, CHANNELS))
    before = adapter.get_weights()
    with pytest.raises(ValueError, match=r"Missing: 'fc.4.bias'"):
        adapter.load_official({k: v for k, v in state.items() if k != "fc.4.bias"})
    with pytest.raises(ValueError, match=r"'fc.2.weight'.*'fc.3.weight'"):
        adapter.load_official(state | {"fc.2.weight": np.zeros(2)})
    wrong = state | {"fc.3.weight": np.zeros((2, 8, 1, 1))}
    expected = r"state\['fc.3.weight'\].shape.*\(8, 2, 1, 1\).*\(2, 8, 1, 1\)"
    with pytest.raises(ValueError, match=expected):
        adapter.load_official(wrong)
    with pytest.raises(ValueError, match=r"fc.0.weight.*\(2, 8, 1, 1\)"):
        adapter.load_official(official_state(16))
    with pytest.raises(ValueError, match=r"fc.0.weight.*\(2, 8, 1, 1\).*\(4, 8, 1, 1"):
        kd.layers.FourierAdapter().load_official(official_state(reduction=2))
    with pytest.raises(ValueError, match=r"fc.0.weight.*\(C // 4, C, 1, 1\).*\(2,\)"):
        kd.layers.FourierAdapter().load_official(state | {"fc.0.weight": np.zeros(2)})
    with pytest.raises(TypeError, match=r"`state`.*a dict"):
        adapter.load_official([1])
    for old, new in zip(before, adapter.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
