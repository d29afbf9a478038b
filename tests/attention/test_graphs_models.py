"""Outputs, losses, shapes, precisions and models of all kinds."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from graphs_oracle import compare, cross_entropy, random_weights, scores, suffixes_of
from keras import layers, ops

import keras_delta as kd
from keras_delta.attention import ChannelAttention, suffix

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


# --- outputs and losses ----------------------------------------------------------


def mse(y):
    """Mean squared error of each sample."""
    return lambda out: np.square(np.asarray(out, "float64") - y).mean(
        axis=tuple(range(1, out.ndim))
    )


def test_a_regression_needs_a_loss():
    def build():
        inputs = keras.Input((8, 8, 3))
        x = layers.GlobalAveragePooling2D()(conv(4, "tap")(inputs))
        return keras.Model(inputs, layers.Dense(1)(x))

    x, _ = data()
    y = np.random.default_rng(0).normal(size=COUNT)
    model, _ = compare(build, ["tap"], x, mse(y[:, None]), y, loss="mse")
    with pytest.raises(ValueError, match=r"Pass the `loss` .*a regression needs one"):
        ChannelAttention.compute(model, (x, y), ["tap"], progress=False)


def test_sigmoid_and_binary_cross_entropy():
    def build():
        inputs = keras.Input((8, 8, 3))
        x = layers.GlobalAveragePooling2D()(conv(4, "tap")(inputs))
        return keras.Model(inputs, layers.Dense(3, "sigmoid")(x))

    x, _ = data()
    y = np.random.default_rng(0).integers(0, 2, (COUNT, 3))

    def losses(out):
        p = np.asarray(out, "float64")
        return -np.log(np.where(y == 1, p, 1 - p)).mean(axis=1)

    loss = keras.losses.BinaryCrossentropy()
    model, _ = compare(build, ["tap"], x, losses, y, loss=loss)
    expected = ChannelAttention.compute(
        model, (x, y), ["tap"], loss=loss, progress=False
    )
    found = ChannelAttention.compute(model, (x, y), ["tap"], progress=False)
    np.testing.assert_array_equal(found.scores["tap"], expected.scores["tap"])


def test_a_map_of_classes_is_the_output_and_the_tap(monkeypatch):
    """Segmentation: a class for each position; the tap is what comes out."""

    def build():
        inputs = keras.Input((3, 4, 3))
        return keras.Model(inputs, conv(3, "out")(conv(4, "tap")(inputs)))

    made = suffixes_of(monkeypatch)
    x, _ = data(3, 4, 3)
    y = np.random.default_rng(0).integers(0, 3, (COUNT, 3, 4))

    def losses(out):
        out = np.asarray(out, "float64")
        log = out - np.log(np.exp(out).sum(-1, keepdims=True))
        return -np.take_along_axis(log, y[..., None], -1).mean(axis=(1, 2, 3))

    compare(build, ["tap", "out"], x, losses, y)
    assert made["out"].plan.updates == [] and len(made["out"].plan.changed) == 1


def several_outputs(form):
    def build():
        inputs = keras.Input((8, 8, 3), name="image")
        x = layers.ReLU()(conv(4, "tap")(inputs))
        near = layers.Dense(3, name="classes")(layers.GlobalAveragePooling2D()(x))
        size = layers.Dense(1, name="size")(layers.GlobalMaxPooling2D()(conv(3)(x)))
        far = layers.Dense(2, name="far")(layers.Flatten()(conv(2)(inputs)))
        if form == "dict":
            return keras.Model(inputs, {"z": near, "s": size, "f": far})
        return keras.Model(inputs, [near, size, far])

    return build


@pytest.mark.parametrize("targets", ["list", "names", "dict"])
def test_several_outputs(targets):
    """One of them does not depend on the tap."""
    x, y = data()
    rng = np.random.default_rng(0)
    size, far = rng.normal(size=(COUNT, 1)), rng.normal(size=(COUNT, 2))
    ce = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    form = "dict" if targets == "dict" else "list"
    keys = ("z", "s", "f") if targets == "dict" else ("classes", "size", "far")
    given, loss, weights = [y, size, far], [ce, "mse", "mse"], [0.5, 2.0, 1.0]
    if targets != "list":
        given, loss, weights = (
            dict(zip(keys, v, strict=True)) for v in (given, loss, weights)
        )

    def build():
        model = several_outputs(form)()
        model.compile("sgd", loss=loss, loss_weights=weights)
        return model

    def losses(outputs):
        first, second, third = (outputs[k] for k in keys) if form == "dict" else outputs
        return 0.5 * cross_entropy(y)(first) + 2 * mse(size)(second) + mse(far)(third)

    model, _ = compare(build, ["tap"], x, losses, given)
    model.fit(x, given, verbose=0)  # Keras takes the same


def test_an_output_without_a_loss():
    x, y = data()
    model = several_outputs("list")()
    random_weights(model)
    ce = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = scores(model, "tap", x, lambda outputs: cross_entropy(y)(outputs[0]))
    found = ChannelAttention.compute(
        model, (x, {"classes": y}), ["tap"], loss={"classes": ce}, progress=False
    )
    np.testing.assert_allclose(found.scores["tap"], expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"`loss`.*names among.*'clases'"):
        ChannelAttention.compute(
            model, (x, {"classes": y}), ["tap"], loss={"clases": ce}, progress=False
        )


def test_logits_and_probabilities_of_one_dense_layer():
    """The output of an update is used again behind it."""

    def build():
        inputs = keras.Input((8, 8, 3))
        logits = head(conv(4, "tap")(inputs))
        return keras.Model(inputs, [logits, ops.softmax(logits) + 2 * logits])

    x, y = data()
    ce = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def losses(out):
        return cross_entropy(y)(out[0]) + cross_entropy(y)(out[1])

    compare(build, ["tap"], x, losses, [y, y], loss=[ce, ce])


@pytest.mark.parametrize("least", [1, 1000])
def test_a_convolution_before_a_normalization_is_an_output_too(least, monkeypatch):
    """So it cannot be folded, by an update or otherwise."""
    monkeypatch.setattr(suffix, "RANK_ONE_FROM", least)

    def build():
        inputs = keras.Input((6, 5, 3))
        raw = conv(3, size=1)(layers.ReLU()(conv(4, "tap")(inputs)))
        again = conv(3)(layers.ELU()(raw))
        outs = [layers.BatchNormalization()(v) for v in (raw, again)]
        outs = [head(layers.ReLU()(layers.Add()(outs))), raw, again]
        return keras.Model(inputs, outs)

    x, y = data(6, 5, 3)
    maps = np.random.default_rng(1).normal(size=(COUNT, 6, 5, 3))
    loss = [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse", "mse"]

    def losses(out):
        return cross_entropy(y)(out[0]) + mse(maps)(out[1]) + mse(maps)(out[2])

    compare(build, ["tap"], x, losses, [y, maps, maps], loss=loss)


# --- shapes and precision --------------------------------------------------------


def test_images_of_several_sizes(monkeypatch):
    """One trace for each size; the scores are those of all samples together."""

    def build():
        inputs = keras.Input((None, None, 3))
        x = layers.ReLU()(layers.BatchNormalization()(conv(4, "a")(inputs)))
        x = layers.MaxPooling2D(2)(conv(5, "b", strides=2)(layers.ZeroPadding2D(1)(x)))
        return keras.Model(inputs, head(layers.ReLU()(x)))

    made = suffixes_of(monkeypatch)
    model = build()
    random_weights(model)
    parts = [data(size, width, 3) for size, width in ((8, 8), (12, 9), (8, 8), (6, 7))]
    stream = tf.data.Dataset.from_generator(
        lambda: iter(parts),
        output_signature=(
            tf.TensorSpec((None, None, None, 3)),
            tf.TensorSpec((None,), "int64"),
        ),
    )
    found = ChannelAttention.compute(model, stream, ["a", "b"], progress=False)
    assert found.samples == 4 * COUNT
    for tap in ("a", "b"):
        expected = np.mean(
            [scores(model, tap, x, cross_entropy(y)) for x, y in parts], axis=0
        )
        np.testing.assert_allclose(found.scores[tap], expected, atol=1e-6)
        assert made[tap].traces == 3


def test_an_input_of_a_fixed_batch():
    def build():
        inputs = keras.Input((8, 8, 3), batch_size=COUNT)
        x = conv(4)(conv(4, "tap")(inputs))
        x = layers.Reshape((64, 4))(x)
        return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))

    x, y = data()
    compare(build, ["tap"], x, cross_entropy(y), y)


def windows():
    inputs = keras.Input((8, 8, 3))
    x = conv(4, "outside")(inputs)
    x = ops.reshape(x, (-1, 16, 4))  # four windows a sample
    x = layers.Dense(4, name="inside")(x)
    x = layers.GlobalAveragePooling1D()(layers.ReLU()(x))
    x = layers.Flatten()(ops.reshape(x, (-1, 4, 4)))
    return keras.Model(inputs, layers.Dense(3)(x))


def test_windows_folded_into_the_batch():
    """Exact around them, refused inside."""
    x, y = data()
    model, _ = compare(windows, ["outside"], x, cross_entropy(y), y)
    with pytest.raises(ValueError, match=r"'inside'.*rows for .* samples"):
        ChannelAttention.compute(model, (x, y), ["inside"], progress=False)


def mixed():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(conv(6, "a")(inputs)))
    x = layers.BatchNormalization(dtype="float32")(conv(5, "b", 1)(x))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(3, dtype="float32")(x))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("least", [1, 1000])
def test_half_precision(policy, least, monkeypatch):
    monkeypatch.setattr(suffix, "RANK_ONE_FROM", least)
    x, y = data()
    single = mixed()
    weights = random_weights(single)
    keras.config.set_dtype_policy(policy)
    model = mixed()
    model.set_weights(weights)
    found = ChannelAttention.compute(model, (x, y), ["a", "b"], progress=False)
    for tap in ("a", "b"):
        expected = scores(single, tap, x, cross_entropy(y))
        atol = 5e-3 if policy == "mixed_float16" else 4e-2
        np.testing.assert_allclose(found.scores[tap], expected, atol=atol)


# --- subclassed models ---------------------------------------------------------


def test_a_subclassed_model_is_refused():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.head = conv(4, "conv"), layers.Dense(3)

        def call(self, x):
            return self.head(ops.mean(self.conv(x), axis=(1, 2)))

    with pytest.raises(
        TypeError, match=r"subclassed .*`keras.Model\(inputs, outputs\)`"
    ):
        ChannelAttention.compute(Subclassed(), data(), ["conv"])


# --- DeltaModel ------------------------------------------------------------------


def test_a_delta_model_of_a_nested_backbone(new_backbone):
    x, y = data(16, 16, 3)
    source = new_backbone(batch_norm=True)
    target = kd.attach_head(source, 3)
    model = kd.DeltaModel(target, source=source, taps=["conv0", "conv2"])
    found = ChannelAttention.compute(model, (x, y), progress=False)
    for tap in ("conv0", "conv2"):
        expected = scores(target, tap, x, cross_entropy(y))
        np.testing.assert_allclose(found.scores[tap], expected, atol=1e-6)
