"""`LayerwiseSGD` against NumPy, against SGD, and through Keras's features."""

import json

import keras
import numpy as np
import pytest

import keras_delta as kd
from keras_delta.optimizers import LayerwiseSGD, adapt

SETTINGS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.8, "nesterov": True, "weight_decay": 0.03},
]
OF_SGD = [
    {"weight_decay": 0.1, "clipnorm": 0.5},
    {"momentum": 0.9, "gradient_accumulation_steps": 2, "weight_decay": 0.1},
]
RATES = [0.5, 0.5, 0.05, 0.2, 0.2]  # of five steps
HEAD_FASTER = {"default": 0.1, "head": 1.0}


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


def gradients(variables):
    rng = np.random.default_rng(2)
    return [[rng.normal(size=v.shape) for v in variables] for _ in RATES]


def stepped(optimizer):
    """The variables of the network, by layer and kind, after five steps."""
    variables = network().trainable_variables
    for rate, each in zip(RATES, gradients(variables), strict=True):
        optimizer.learning_rate = rate
        optimizer.apply(
            [keras.ops.convert_to_tensor(g, "float32") for g in each], variables
        )
    return {"/".join(v.path.split("/")[-2:]): v.numpy() for v in variables}


def stepped_in_numpy(w, gradients, rates, momentum=0.0, nesterov=False, weight_decay=0):
    """Keras's SGD of one variable, as in its documentation; decay first."""
    velocity = 0.0
    for g, rate in zip(gradients, rates, strict=True):
        w = w - weight_decay * rate * w
        velocity = momentum * velocity - rate * g
        w = w + (momentum * velocity - rate * g if nesterov else velocity)
    return w


def assert_equal(first, second):
    for a, b in zip(first.values(), second.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def trained(optimizer, epochs=3, callbacks=(), eager=True):
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False, run_eagerly=eager)
    go_on(model, epochs, callbacks)
    return model


def go_on(model, epochs, callbacks=()):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(24, 4)).astype("float32"), rng.integers(0, 3, 24)
    model.fit(x, y, 8, epochs, verbose=0, shuffle=False, callbacks=list(callbacks))


def assert_close(first, second, rtol=1e-4):
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_against_numpy(settings):
    """Five steps, the rate changed between them; 0 freezes, decay or not."""
    multipliers = {"default": 0.1, "head": 1.0, "low": 0.0}
    found = stepped(LayerwiseSGD(0.5, **settings, multipliers=multipliers))
    variables = network().trainable_variables
    steps = gradients(variables)
    for i, (variable, (path, value)) in enumerate(
        zip(variables, found.items(), strict=True)
    ):
        start, c = variable.numpy(), multipliers.get(path.split("/")[0], 0.1)
        rates = [c * rate for rate in RATES]
        expected = stepped_in_numpy(start, [g[i] for g in steps], rates, **settings)
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)
        assert np.array_equal(value, start) == (c == 0)


@pytest.mark.parametrize("settings", SETTINGS + OF_SGD, ids=str)
def test_ones_are_sgd(settings):
    expected = stepped(keras.optimizers.SGD(0.1, **settings))
    for multipliers in (None, {"default": 1, "head": 1.0}):
        ours = LayerwiseSGD(0.1, **settings, multipliers=multipliers)
        assert_equal(stepped(ours), expected)


def test_weight_decay_leaves_excluded_variables():
    optimizers = [
        make(0.1, weight_decay=0.5) for make in (LayerwiseSGD, keras.optimizers.SGD)
    ]
    for optimizer in optimizers:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert_equal(*map(stepped, optimizers))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_copy_leaves_excluded_variables_without_decay(scaled):
    first, *_, last = network().trainable_variables
    last.assign(np.ones(3))  # a bias
    optimizer = inner = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_list=[first], var_names=["bias"])
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
    optimizer.build([first])
    other = keras.Variable(np.ones(2, "float32"), name="other")
    variables = [first, last, other]
    before = [v.numpy() for v in variables]
    copy = adapt(optimizer, variables)
    copy.apply([keras.ops.zeros_like(v) for v in variables])
    for v, was, kept in zip(variables, before, [1, 1, 0.95], strict=True):
        np.testing.assert_allclose(v.numpy(), was * kept, rtol=1e-6)


def test_names_hold_for_the_layers_inside():
    """The last one of a path counts."""
    outer = stepped(LayerwiseSGD(0.5, multipliers={"body": 0.5, "low": 0.25}))
    inner = stepped(LayerwiseSGD(0.5, multipliers={"high": 0.5, "low": 0.25}))
    assert_equal(outer, inner)


def test_with_a_scheduler_and_a_schedule():
    settings = {**SETTINGS[3], "multipliers": HEAD_FASTER}
    halved = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.4 / 2**epoch)
    first = trained(LayerwiseSGD(0.1, **settings), callbacks=[halved])
    np.testing.assert_allclose(first.optimizer.learning_rate.numpy(), 0.1)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.4, 3, 0.5, staircase=True)
    assert_close(first, trained(LayerwiseSGD(schedule, **settings)))


def test_on_two_replicas(strategy):
    """And in a graph."""

    def train(eager):
        settings = {"momentum": 0.9, "weight_decay": 0.1}
        optimizer = LayerwiseSGD(0.2, **settings, multipliers=HEAD_FASTER)
        return trained(optimizer, 2, eager=eager)

    one = train(eager=True)
    with strategy.scope():
        two = train(eager=False)
    assert_close(one, two)


def test_mixed_precision_scales_the_loss():
    keras.config.set_dtype_policy("mixed_float16")
    model = trained(LayerwiseSGD(0.1, 0.9, multipliers={"default": 0, "head": 1}))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    pairs = zip(network().get_weights(), model.get_weights(), strict=True)
    assert [np.array_equal(a, b) for a, b in pairs] == [True] * 4 + [False] * 2


def test_config():
    multipliers = {"default": 0.1, "head": np.float32(1)}
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
    again.run_eagerly = True
    assert again.optimizer.multipliers == rates
    go_on(again, 2)
    straight = trained(LayerwiseSGD(0.2, 0.9, True, multipliers=rates), 4)
    assert_close(again, straight, rtol=0)


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


def test_a_bad_multiplier():
    with pytest.raises(ValueError, match=r"argument `multipliers\['head'\]`"):
        LayerwiseSGD(0.1, multipliers={"head": -0.1})


def test_with_a_delta_model():
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")
    layers = [
        keras.layers.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, name="conv"),
        keras.layers.ReLU(name="act"),
    ]
    source = keras.Sequential(layers)
    target = kd.attach_head(source, 3)
    model = kd.DeltaModel(target, source, regularizer="l2_sp", taps=["conv"])
    optimizer = LayerwiseSGD(0.1, 0.9, multipliers={"default": 0.0, "head": 1.0})
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    model.compile(optimizer, loss, run_eagerly=True)
    before = [target.get_layer(name).get_weights()[0] for name in ("conv", "head")]
    model.fit(images, np.arange(6) % 3, 3, verbose=0)
    after = [target.get_layer(name).get_weights()[0] for name in ("conv", "head")]
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])
