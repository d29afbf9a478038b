"""`LayerwiseSGD` against NumPy, against SGD, and through Keras's features."""

import json

import keras
import numpy as np
import pytest

import keras_delta as kd
from keras_delta.optimizers import LayerwiseSGD

SETTINGS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.8, "nesterov": True, "weight_decay": 0.03},
    {"weight_decay": 0.1, "clipnorm": 0.5},
]


def network():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(5, "tanh", name="low"),
            keras.layers.Dense(5, "tanh", name="high"),
        ],
        name="body",
    )
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(3, name="head")(inner(inputs))
    return keras.Model(inputs, outputs)


def compiled(optimizer):
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)
    return model


def data():
    rng = np.random.default_rng(1)
    return rng.normal(size=(24, 4)).astype("float32"), rng.integers(0, 3, 24)


def trained(optimizer, epochs=3, callbacks=()):
    model = compiled(optimizer)
    model.fit(*data(), 8, epochs, verbose=0, shuffle=False, callbacks=list(callbacks))
    return model


def assert_same(first, second):
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def stepped(w, gradients, rates, momentum=0.0, nesterov=False, weight_decay=None):
    """Keras's SGD of one variable, as in its documentation; decay first."""
    velocity = 0.0
    for g, rate in zip(gradients, rates, strict=True):
        w = w - (weight_decay or 0.0) * rate * w
        velocity = momentum * velocity - rate * g
        w = w + (momentum * velocity - rate * g if nesterov else velocity)
    return w


def variables():
    rng = np.random.default_rng(0)
    layers = [keras.layers.Dense(3, name=name) for name in ("low", "high", "head")]
    for layer in layers:
        layer.build((None, 4))
    found = [weight for layer in layers for weight in layer.weights]
    for variable in found:
        variable.assign(rng.normal(size=variable.shape))
    return found


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
def test_against_numpy(settings):
    """Five steps, the rate changed between them."""
    multipliers = {"default": 0.1, "head": 1.0, "low": 0.0}
    optimizer = LayerwiseSGD(0.5, **settings, multipliers=multipliers)
    trainable = variables()
    starts = [v.numpy().astype(float) for v in trainable]
    rng = np.random.default_rng(2)
    rates = [0.5, 0.5, 0.05, 0.2, 0.2]
    gradients = [[rng.normal(size=v.shape) for v in trainable] for _ in rates]
    for rate, each in zip(rates, gradients, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in each], trainable)
    for i, (variable, start) in enumerate(zip(trainable, starts, strict=True)):
        c = multipliers.get(variable.path.split("/")[0], 0.1)
        own = [each[i] for each in gradients]
        expected = stepped(start, own, [c * rate for rate in rates], **settings)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=2e-5, atol=1e-6)
        assert np.array_equal(expected, start) == (c == 0)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_ones_are_sgd(settings):
    theirs = trained(keras.optimizers.SGD(0.1, **settings))
    for multipliers in (None, {"default": 1, "head": 1.0}):
        ours = trained(LayerwiseSGD(0.1, **settings, multipliers=multipliers))
        assert_same(ours, theirs)


def test_weight_decay_leaves_excluded_variables():
    models = []
    for make in (LayerwiseSGD, keras.optimizers.SGD):
        optimizer = make(0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        models.append(trained(optimizer))
    assert_same(*models)


def test_one_number_for_all_is_another_rate():
    ours = trained(LayerwiseSGD(0.5, 0.9, True, multipliers={"default": 0.25}))
    assert_same(ours, trained(keras.optimizers.SGD(0.125, 0.9, True)))


def test_a_sequential_inside():
    """Its name holds for its layers."""
    ours = trained(LayerwiseSGD(0.5, multipliers={"body": 0.0}))
    zeros = {"low": 0.0, "high": 0.0}
    assert_same(ours, trained(LayerwiseSGD(0.5, multipliers=zeros)))


def test_zero_freezes():
    before = network().get_weights()
    optimizer = LayerwiseSGD(
        0.5, 0.9, weight_decay=0.1, multipliers={"default": 0, "head": 1}
    )
    after = trained(optimizer).get_weights()
    moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert moved == [False] * 4 + [True] * 2


def test_the_last_name_of_a_path_counts():
    optimizer = LayerwiseSGD(0.1, multipliers={"outer": 0.5, "inner": 0.25})
    assert optimizer._multiplier(["outer", "inner"]) == 0.25
    assert optimizer._multiplier(["outer", "other"]) == 0.5
    assert optimizer._multiplier(["other"]) == optimizer._multiplier([]) == 1


@pytest.mark.parametrize("settings", SETTINGS[2:4], ids=str)
def test_with_a_scheduler_and_a_schedule(settings):
    rates = {"default": 0.1, "head": 1.0}
    halved = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.4 / 2**epoch)
    first = trained(LayerwiseSGD(0.1, **settings, multipliers=rates), 3, [halved])
    np.testing.assert_allclose(first.optimizer.learning_rate.numpy(), 0.1)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.4, 3, 0.5, staircase=True)
    second = trained(LayerwiseSGD(schedule, **settings, multipliers=rates))
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_on_two_replicas(strategy):
    def train():
        rates = {"default": 0.1, "head": 1.0}
        return trained(LayerwiseSGD(0.2, 0.9, weight_decay=0.1, multipliers=rates), 2)

    one = train()
    with strategy.scope():
        two = train()
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_mixed_precision_scales_the_loss():
    keras.config.set_dtype_policy("mixed_float16")
    optimizer = LayerwiseSGD(0.1, 0.9, multipliers={"default": 0.0, "head": 1.0})
    model = trained(optimizer)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(network().get_weights(), model.get_weights(), strict=True)
    ]
    assert moved == [False] * 4 + [True] * 2


def test_accumulated_gradients():
    settings = {"momentum": 0.9, "gradient_accumulation_steps": 3, "weight_decay": 0.1}
    ours = trained(LayerwiseSGD(0.1, **settings))
    assert_same(ours, trained(keras.optimizers.SGD(0.1, **settings)))


def test_config():
    multipliers = {"default": 0.1, "head": 1}
    first = LayerwiseSGD(
        0.5, 0.9, True, multipliers=multipliers, weight_decay=0.1, clipnorm=2.0
    )
    second = keras.optimizers.deserialize(
        json.loads(json.dumps(keras.optimizers.serialize(first)))
    )
    assert type(second) is LayerwiseSGD
    assert second.get_config() == first.get_config()
    assert second.get_config()["multipliers"] == multipliers
    multipliers["head"] = 5  # the optimizer has its own
    assert first.multipliers["head"] == 1
    registered = keras.saving.get_registered_name(LayerwiseSGD)
    assert registered == "keras_delta>LayerwiseSGD"
    assert kd.optimizers.LayerwiseSGD is LayerwiseSGD


def test_training_goes_on_after_loading(tmp_path):
    rates = {"default": 0.1, "low": 0.5, "head": 1}
    model = trained(LayerwiseSGD(0.2, 0.9, True, multipliers=rates), 2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(*data(), 8, 2, verbose=0, shuffle=False)
    assert again.optimizer.multipliers == rates
    assert_same(model, again)
    straight = trained(LayerwiseSGD(0.2, 0.9, True, multipliers=rates), 4)
    assert_same(model, straight)


def test_unknown_layers():
    optimizer = LayerwiseSGD(0.1, multipliers={"heads": 1.0, "default": 0.1})
    with pytest.raises(ValueError) as error:
        optimizer.build(network().trainable_variables)
    assert str(error.value) == (
        "Unknown name for `multipliers`. Received: 'heads'. Closest names: 'head'. "
        "These are the layers with trainable variables."
    )
    # What a variable is called is no name of a layer.
    known = r"'kernel'\. Known names: 'body', 'low', 'high', 'head'\."
    with pytest.raises(ValueError, match=known):
        optimizer = LayerwiseSGD(0.1, multipliers={"kernel": 1.0})
        optimizer.build(network().trainable_variables)


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), "1", None])
def test_bad_multipliers(wrong):
    with pytest.raises(ValueError) as error:
        LayerwiseSGD(0.1, multipliers={"head": wrong})
    assert str(error.value) == (
        "Invalid value for argument `multipliers`. Expected a dict from names of "
        "layers to finite numbers of 0 or more. Received: multipliers="
        f"{ {'head': wrong}!r}"
    )


def test_with_a_delta_model():
    images = np.random.default_rng(0).normal(size=(6, 16, 16, 3)).astype("float32")
    source = keras.Sequential(
        [
            keras.layers.Input((16, 16, 3)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.ReLU(name="act"),
        ]
    )
    target = kd.attach_head(source, 3)
    model = kd.DeltaModel(target, source, regularizer="l2_sp")
    optimizer = LayerwiseSGD(0.1, 0.9, multipliers={"default": 0.0, "head": 1.0})
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    conv = target.get_layer("conv").get_weights()
    head = target.get_layer("head").get_weights()
    model.fit(images, np.arange(6) % 3, 3, verbose=0)
    np.testing.assert_array_equal(conv[0], target.get_layer("conv").get_weights()[0])
    assert not np.array_equal(head[0], target.get_layer("head").get_weights()[0])
