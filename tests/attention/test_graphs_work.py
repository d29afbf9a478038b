"""Work that is saved: the shorter ways are taken, and are exact."""

import keras
import numpy as np
import pytest
from graphs_oracle import (
    compare,
    convolves_channels_first,
    cross_entropy,
    in_float64,
    random_weights,
    scores,
    suffixes_of,
)
from keras import layers

from keras_delta.attention import ChannelAttention, calls, suffix

pytestmark = pytest.mark.filterwarnings(
    "ignore:The head is no better than chance",
    "ignore:The attention",
    "ignore:.build..:UserWarning:keras",
)
COUNT = 9


def data(*shape):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(COUNT, *(shape or (8, 8, 3)))).astype("float32")
    return x, rng.integers(0, 3, COUNT)


def conv(width, name=None, size=3, **kwargs):
    kwargs.setdefault("padding", "same")
    return layers.Conv2D(width, size, name=name, **kwargs)


def head(x):
    return layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))


@pytest.fixture
def made(monkeypatch):
    """The cut networks that a test makes: dict tap -> `Suffix`."""
    return suffixes_of(monkeypatch)


# --- rank-one updates ------------------------------------------------------------

CONVOLUTIONS = [
    {"size": 1},
    {"size": 1, "strides": 2, "use_bias": False},
    {"size": 1, "activation": "relu", "padding": "valid"},
    {"size": 3},
    {"size": 3, "padding": "valid", "activation": "softmax"},
    {"size": 3, "strides": 2},
    {"size": 3, "strides": (1, 2), "padding": "valid", "use_bias": False},
    {"size": 3, "dilation_rate": 2},
    {"size": 2, "dilation_rate": (1, 3), "padding": "valid"},
    {"size": (1, 5), "activation": "gelu"},
    {"size": (4, 2), "strides": (2, 3)},
]


@pytest.mark.parametrize("source", ["tap", "apart", "joined"])
@pytest.mark.parametrize("norm", [False, True])
def test_convolutions_change_by_a_rank_one_term(source, norm, made, monkeypatch):
    monkeypatch.setattr(suffix, "RANK_ONE_FROM", 1)

    def build():
        inputs = keras.Input((9, 8, 3))
        x = conv(4, "tap")(inputs)
        if source == "apart":
            x = layers.MaxPooling2D(2, 1)(layers.ReLU()(layers.BatchNormalization()(x)))
        elif source == "joined":
            x = layers.Concatenate()([conv(3)(inputs), layers.ReLU()(x), inputs])
        outs = []
        for kwargs in CONVOLUTIONS:
            y = conv(3, **kwargs)(x)
            y = layers.BatchNormalization()(y) if norm else y
            outs.append(layers.GlobalAveragePooling2D()(layers.ELU()(y)))
        return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(outs)))

    x, y = data(9, 8, 3)
    compare(build, ["tap"], x, cross_entropy(y), y)
    assert len(made["tap"].plan.updates) == len(CONVOLUTIONS)
    assert made["tap"].plan.changed == [] and made["tap"].traces == 1


def test_dense_layers_on_tokens_change_by_a_rank_one_term(made, monkeypatch):
    monkeypatch.setattr(suffix, "RANK_ONE_FROM", 1)

    def build():
        inputs = keras.Input((5, 4))
        x = layers.Dense(6, name="tap")(inputs)
        x = layers.Concatenate()([inputs, layers.Activation("gelu")(x)])
        x = layers.Add()([layers.Dense(4, "softmax")(x), layers.Dense(4)(x)])
        return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))

    x, y = data(5, 4)
    compare(build, ["tap"], x, cross_entropy(y), y)
    assert len(made["tap"].plan.updates) == 2 and made["tap"].plan.changed == []


def test_calls_that_are_no_rank_one_update(made, monkeypatch):
    """Groups, another layout, layers of the user's own, layers that mix before."""
    monkeypatch.setattr(suffix, "RANK_ONE_FROM", 1)

    class Own(layers.Conv2D):
        def call(self, x):
            return super().call(x) ** 2

    def build():
        inputs = keras.Input((6, 8, 4))
        x = conv(4, "tap")(inputs)
        lora = layers.Dense(3)
        # Keras adds a bias along the wrong axis where that is as wide.
        outs = []
        if convolves_channels_first():
            outs = [conv(5, data_format="channels_first")(x)]
        outs += [conv(4, groups=2)(x), Own(3, 3)(x)]
        outs += [lora(x), layers.Conv2DTranspose(3, 2)(x), layers.Dense(2)(x * x + x)]
        lora.enable_lora(2)
        outs = [layers.Flatten()(v) for v in outs]
        return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(outs)))

    x, y = data(6, 8, 4)
    compare(build, ["tap"], x, cross_entropy(y), y, double=False)
    assert len(made["tap"].plan.updates) == 1  # the last


def test_wide_layers_take_the_update_by_themselves(made):
    def build():
        inputs = keras.Input((4, 4, 3))
        x = layers.ReLU()(conv(suffix.RANK_ONE_FROM, "tap", 1)(inputs))
        x = layers.BatchNormalization()(conv(4, "next", 1, use_bias=False)(x))
        return keras.Model(inputs, head(layers.ReLU()(x)))

    x, y = data(4, 4, 3)
    compare(build, ["tap"], x, cross_entropy(y), y)
    (node,) = made["tap"].plan.updates
    assert node.path[-1] == "next"


def test_no_further_from_float64_than_the_loop(monkeypatch):
    """Over several networks' weights, with and without updates."""

    def build():
        inputs = keras.Input((8, 8, 3))
        x = layers.ReLU()(layers.BatchNormalization()(conv(6, "a")(inputs)))
        x = layers.ReLU()(layers.BatchNormalization()(conv(6, "b")(x)))
        x = layers.ReLU()(layers.BatchNormalization()(conv(6, "c", 1)(x)))
        return keras.Model(inputs, head(x))

    x, y = data()
    losses, taps = cross_entropy(y), ["a", "b", "c"]
    ours, theirs = {1: [], 1000: []}, []
    for seed in range(4):
        model = build()
        double = in_float64(build, random_weights(model, seed))
        exact = np.concatenate([scores(double, tap, x, losses) for tap in taps])
        loop = np.concatenate([scores(model, tap, x, losses) for tap in taps])
        theirs.extend(loop - exact)
        for least, errors in ours.items():
            monkeypatch.setattr(suffix, "RANK_ONE_FROM", least)
            found = ChannelAttention.compute(model, (x, y), taps, progress=False)
            errors.extend(np.concatenate(list(found.scores.values())) - exact)
    rms = {k: np.sqrt(np.mean(np.square(e))) for k, e in ours.items()}
    limit = 1.2 * np.sqrt(np.mean(np.square(theirs)))
    assert rms[1] <= limit and rms[1000] <= limit, (rms, limit)


# --- work that is saved ----------------------------------------------------------


def test_layers_that_keep_channels_apart_run_once_a_batch(made):
    calls = []

    class Noted(layers.ReLU):
        def call(self, x):
            calls.append(x.shape[0])
            return super().call(x)

    def build():
        inputs = keras.Input((8, 8, 3))
        x = layers.BatchNormalization()(conv(4, "tap")(inputs))
        x = layers.MaxPooling2D()(layers.ReLU()(x))
        x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
        x = layers.Concatenate()([layers.Flatten()(inputs), x])
        return keras.Model(inputs, layers.Dense(3)(Noted()(layers.Dense(5)(x))))

    x, y = data()
    compare(build, ["tap"], x, cross_entropy(y), y)
    (node,) = made["tap"].plan.updates
    assert isinstance(node.operation, layers.Dense)
    assert made["tap"].plan.changed == [] and made["tap"].plan.kept == []


def test_a_channel_that_is_zero_costs_nothing(made, monkeypatch):
    """Zero in the tap, or in all that comes of it: a score of exactly 0."""
    inputs = keras.Input((8, 8, 3))
    x = conv(5, "tap")(inputs)
    model = keras.Model(inputs, head(conv(4)(layers.ReLU()(x))))
    random_weights(model)
    kernel, bias = model.get_layer("tap").get_weights()
    kernel[..., 1], bias[1] = 0, 0  # zero
    kernel[..., 2], bias[2] = 0, -3  # ReLU makes it zero
    kernel[..., 3], bias[3] = 0, 2  # constant
    model.get_layer("tap").set_weights([kernel, bias])
    run = []
    call = calls.Call.__call__

    def record(self, base, rows, channels):
        run.extend(channels)
        return call(self, base, rows, channels)

    monkeypatch.setattr(calls.Call, "__call__", record)
    x, y = data()
    found = ChannelAttention.compute(model, (x, y), ["tap"], progress=False)
    found = found.scores["tap"]
    expected = scores(model, "tap", x, cross_entropy(y))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[1] == found[2] == 0 and abs(found[3]) > 1e-3
    assert set(run) == {-1, 0, 3, 4}
    assert made["tap"].traces == 1


def test_a_tap_of_one_channel():
    def build():
        inputs = keras.Input((8, 8, 3))
        return keras.Model(inputs, head(conv(4)(conv(1, "tap")(inputs))))

    x, y = data()
    compare(build, ["tap"], x, cross_entropy(y), y)


def test_the_output_does_not_depend_on_the_tap():
    inputs = keras.Input((8, 8, 3))
    loose = keras.Model(inputs, [head(conv(4, "a")(inputs)), conv(4, "b")(inputs)])
    x, y = data()
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loose.compile(loss=[sparse, None])
    found = ChannelAttention.compute(loose, (x, [y, y]), ["b"], progress=False)
    np.testing.assert_array_equal(found.scores["b"], 0)
