"""Scores of networks of all kinds are what a loop of masked reruns finds."""

import keras
import numpy as np
import pytest
from graphs_oracle import compare, convolves_channels_first, cross_entropy
from keras import layers, ops

pytestmark = pytest.mark.filterwarnings(
    "ignore:The head is no better than chance", "ignore:The attention"
)

COUNT = 9
TABLE = []


def network(*taps, axis=-1, shape=(8, 8, 3), **kwargs):
    """Enter a function that makes a network into the table."""

    def enter(build):
        TABLE.append(pytest.param(build, taps, axis, shape, kwargs, id=build.__name__))
        return build

    return enter


def data(shape):
    rng = np.random.default_rng(5)
    many = isinstance(shape, dict)
    x = {
        name: rng.normal(size=(COUNT, *s)).astype("float32")
        for name, s in (shape if many else {"x": shape}).items()
    }
    return x if many else x["x"], rng.integers(0, 3, COUNT)


@pytest.mark.parametrize("build, taps, axis, shape, kwargs", TABLE)
def test_scores_are_those_of_a_plain_loop(build, taps, axis, shape, kwargs):
    first = build in (channels_first, channels_moved_to_the_last_axis)
    if first and not convolves_channels_first():
        pytest.skip("TensorFlow has no such convolution for this processor")
    x, y = data(shape)
    kwargs = dict(kwargs)
    losses = cross_entropy(y, kwargs.pop("probabilities", False))
    compare(build, taps, x, losses, y, axis, **kwargs)


def conv(width, name=None, size=3, **kwargs):
    kwargs.setdefault("padding", "same")
    return layers.Conv2D(width, size, name=name, **kwargs)


def norm(x, **kwargs):
    return layers.BatchNormalization(**kwargs)(x)


def head(x):
    return layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))


# --- how networks are put together ----------------------------------------------


@network("a", "b", "c", "last")
def nested_twice():
    inside = keras.Input((8, 8, 4))
    x = layers.ReLU()(norm(conv(5, "a")(inside)))
    block = keras.Model(inside, layers.Add()([conv(4, "b")(x), inside]), name="block")
    outside = keras.Input((8, 8, 3))
    x = norm(block(conv(4, "c")(outside)))
    backbone = keras.Model(outside, x, name="backbone")
    inputs = keras.Input((8, 8, 3))
    x = keras.Sequential([backbone, conv(3, "last"), layers.ReLU()])(inputs)
    return keras.Model(inputs, head(x))


@network("stem", "a", "b1", "mixed", "act")
def branches():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(conv(4, "stem")(inputs))
    a = conv(3, "a", 1, activation="relu")(x)
    b = layers.ReLU()(norm(conv(3, "b0", 1, use_bias=False)(x)))
    b = norm(conv(4, "b1")(b))
    c = conv(2, "c", 1)(layers.AveragePooling2D(3, 1, "same")(x))
    x = layers.Concatenate(name="mixed")([a, b, c])
    x = layers.Activation("relu", name="act")(x)
    return keras.Model(inputs, head(conv(4, "end", 1)(x)))


@network("before", "twice", "twice#1", "after")
def shared_layers():
    inputs = keras.Input((8, 8, 3))
    x = conv(4, "before")(inputs)
    twice, bn = conv(4, "twice"), layers.BatchNormalization()
    x = layers.ReLU()(bn(twice(x)))
    x = layers.ReLU()(bn(twice(x)))
    return keras.Model(inputs, head(conv(4, "after")(x)))


@network("conv", "conv#1", "act#1", shape={"left": (8, 8, 3), "right": (8, 8, 3)})
def siamese():
    """A backbone that is called twice."""
    inside = keras.Input((8, 8, 3))
    x = layers.ReLU(name="act")(norm(conv(4, "conv")(inside)))
    backbone = keras.Model(inside, conv(3)(x), name="backbone")
    inputs = {k: keras.Input((8, 8, 3), name=k) for k in ("left", "right")}
    x = layers.Subtract()([backbone(inputs["left"]), backbone(inputs["right"])])
    return keras.Model(inputs, head(layers.ReLU()(x)))


@network("d0", "d1", "d2")
def dense_net():
    """The tap's channels are somewhere in a concatenation, not at its beginning."""
    inputs = keras.Input((8, 8, 3))
    x = conv(4, "stem")(inputs)
    for i in range(3):
        y = layers.ReLU()(norm(x))
        y = conv(2, f"d{i}")(layers.ReLU()(norm(conv(4, size=1)(y))))
        x = layers.Concatenate()([x, y] if i != 1 else [y, x])
    return keras.Model(inputs, head(layers.ReLU()(norm(x))))


@network("left", "joined", shape={"meta": (4,), "image": (8, 8, 3), "other": (8, 8, 2)})
def several_inputs():
    inputs = {
        "image": keras.Input((8, 8, 3), name="image"),
        "other": keras.Input((8, 8, 2), name="other"),
        "meta": keras.Input((4,), name="meta"),
    }
    x = layers.ReLU()(conv(4, "left")(inputs["image"]))
    x = layers.Concatenate(name="joined")([inputs["other"], x])
    x = layers.GlobalAveragePooling2D()(conv(4)(x))
    x = layers.Concatenate()([layers.Dense(3)(inputs["meta"]), x])
    return keras.Model(inputs, layers.Dense(3)(x))


@network("squeezed", "gated")
def squeeze_and_excitation():
    inputs = keras.Input((8, 8, 3))
    x = layers.Activation("silu")(norm(conv(6, "squeezed", use_bias=False)(inputs)))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = conv(2, size=1, activation="silu")(gate)
    gate = conv(6, size=1, activation="sigmoid")(gate)
    x = layers.Multiply(name="gated")([x, gate])
    return keras.Model(inputs, head(norm(conv(4, size=1)(x))))


@network("expand", "depthwise", "project", "separable")
def depthwise():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU(6.0)(norm(conv(5, "expand", 1)(inputs)))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = conv(4, "project", 1)(layers.ReLU(6.0)(norm(x)))
    x = layers.DepthwiseConv2D(
        3, 2, padding="same", depth_multiplier=2, activation="relu"
    )(x)
    x = layers.SeparableConv2D(4, 3, padding="same", name="separable")(x)
    x = layers.DepthwiseConv2D(2, activation="softmax")(x)  # mixes channels
    return keras.Model(inputs, head(x))


@network("fused", "groups", "dilated", shape=(10, 10, 3))
def grouped_and_dilated_convolutions():
    inputs = keras.Input((10, 10, 3))
    x = norm(conv(4, "fused", activation="swish")(inputs))
    x = norm(conv(6, "groups", groups=2)(x))
    x = layers.ReLU()(norm(conv(4, "dilated", dilation_rate=2, padding="valid")(x)))
    return keras.Model(inputs, head(conv(4)(x)))


@network("strided", "bare")
def strided_and_transposed_convolutions():
    inputs = keras.Input((8, 8, 3))
    x = norm(conv(5, "strided", strides=(2, 1), use_bias=False)(inputs))
    x = layers.Conv2DTranspose(3, 2)(conv(4, "bare", (1, 3), padding="valid")(x))
    return keras.Model(inputs, head(x))


# --- tokens, signals, volumes, layouts -------------------------------------------


@keras.saving.register_keras_serializable("test_graphs")
class ClassToken(layers.Layer):
    """A token of its own before the others, and places for all of them."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]))
        self.places = self.add_weight(shape=(1, shape[1] + 1, shape[-1]))

    def call(self, x):
        token = ops.tile(ops.cast(self.token, x.dtype), (ops.shape(x)[0], 1, 1))
        return ops.concatenate([token, x], axis=1) + self.places


def block(x, i):
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(2, 3)(y, y)
    x = layers.Add()([x, y])
    y = layers.LayerNormalization()(x)
    y = layers.Dense(7, "gelu", name=f"up{i}")(y)
    y = layers.Dropout(0.5)(layers.Dense(6, name=f"down{i}")(y))
    return layers.Add(name=f"out{i}")([x, y])


@network("embed", "up0", "down0", "out0", "down1", shape=(5, 4))
def tokens():
    inputs = keras.Input((5, 4))
    x = ClassToken()(layers.Dense(6, name="embed")(inputs))
    x = layers.LayerNormalization()(block(block(x, 0), 1))
    return keras.Model(inputs, layers.Dense(3)(x[:, 0]))


@network("embed", "down0", shape=(5, 4))
def tokens_joined_along_their_axis():
    """Where tokens are put side by side, channels are still the last axis."""
    inputs = keras.Input((5, 4))
    x = layers.Dense(6, name="embed")(inputs)
    x = layers.Concatenate(axis=1)([layers.GlobalAveragePooling1D(keepdims=True)(x), x])
    x = layers.LayerNormalization()(block(x, 0))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@network("words", "hidden", "conv", shape=(4,))
def masked_words():
    inputs = keras.Input((4,))
    x = layers.Embedding(4, 5, mask_zero=True, name="words")(ops.round(ops.abs(inputs)))
    x = layers.Dense(4, "tanh", name="hidden")(x)
    y = layers.GlobalAveragePooling1D()(x)
    x = layers.LSTM(4, return_sequences=True)(x)
    x = layers.Conv1D(3, 2, name="conv", padding="causal")(x)
    x = layers.Bidirectional(layers.GRU(2))(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([x, y])))


@network("conv", "down", "last", shape=(12, 2))
def signals():
    inputs = keras.Input((12, 2))
    x = layers.ReLU()(norm(layers.Conv1D(4, 3, name="conv", padding="causal")(inputs)))
    x = layers.DepthwiseConv1D(3)(layers.ZeroPadding1D(1)(x))
    x = layers.SeparableConv1D(5, 3, 2, name="down")(layers.Cropping1D(1)(x))
    x = layers.UpSampling1D(2)(layers.MaxPooling1D(2)(layers.ELU()(x)))
    x = layers.SpatialDropout1D(0.5)(layers.Conv1D(4, 2, name="last")(x))
    x = layers.AveragePooling1D(2, padding="same")(x)
    x = layers.Concatenate()(
        [layers.GlobalAveragePooling1D()(x), layers.GlobalMaxPooling1D()(x)]
    )
    return keras.Model(inputs, layers.Dense(3)(x))


@network("conv", "last", shape=(5, 6, 4, 2), double=False)
def volumes():
    inputs = keras.Input((5, 6, 4, 2))
    x = norm(layers.Conv3D(4, 3, name="conv", padding="same")(inputs))
    x = layers.Cropping3D(1)(layers.ZeroPadding3D(1)(layers.ReLU()(x)))
    x = layers.MaxPooling3D(2)(layers.UpSampling3D(2)(x))
    x = layers.SpatialDropout3D(0.5)(layers.Conv3D(4, 2, name="last")(x))
    x = layers.AveragePooling3D(2, padding="same")(x)
    x = layers.Concatenate()(
        [layers.GlobalAveragePooling3D()(x), layers.GlobalMaxPooling3D()(x)]
    )
    return keras.Model(inputs, layers.Dense(3)(x))


@network(
    "conv",
    "norm",
    "act",
    "joined",
    "depthwise",
    "last",
    axis=1,
    shape=(3, 8, 6),
    double=False,
)
def channels_first():
    """Layers with `data_format`, and those behind them which have none."""
    first = {"data_format": "channels_first"}
    inputs = keras.Input((3, 8, 6))
    x = conv(4, "conv", **first)(inputs)
    x = layers.BatchNormalization(axis=1, name="norm")(x)
    x = layers.ReLU(name="act")(x)
    y = layers.MaxPooling2D(3, 1, "same", **first)(conv(3, **first)(x))
    x = layers.Concatenate(axis=1, name="joined")([y, x])
    x = layers.ZeroPadding2D(1, **first)(x)
    x = layers.DepthwiseConv2D(3, name="depthwise", **first)(x)
    x = layers.AveragePooling2D(2, **first)(x)
    x = conv(4, "last", 1, **first)(layers.ReLU()(norm(x, axis=1)))
    x = layers.GlobalAveragePooling2D(**first)(layers.UpSampling2D(2, **first)(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@network("norm", "act", axis=1)
def channels_moved_to_the_first_axis():
    inputs = keras.Input((8, 8, 3))
    x = layers.Permute((3, 1, 2))(conv(8, use_bias=False)(inputs))
    x = layers.BatchNormalization(axis=1, name="norm")(x)
    x = layers.Activation("tanh", name="act")(x)
    x = norm(layers.Concatenate(axis=1)([x, x]), axis=1)
    x = layers.GlobalMaxPooling2D(data_format="channels_first")(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@network("act", "conv", double=False)
def channels_moved_to_the_last_axis():
    """What lies behind `Permute` has other axes than what lies before."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Permute((3, 1, 2))(inputs)
    x = conv(4, data_format="channels_first")(x)
    x = layers.ReLU(name="act")(layers.Permute((2, 3, 1))(x))
    return keras.Model(inputs, head(norm(conv(4, "conv")(x))))


# --- what lies behind a tap ------------------------------------------------------


class Counting(layers.Layer):
    """Counts its calls, and so is another layer each time."""

    def build(self, shape):
        self.count = self.add_weight(
            trainable=False, initializer="zeros", dtype="int32"
        )

    def call(self, x):
        self.count.assign_add(1)
        return x * ops.cast(self.count, x.dtype)


@network("a", "b")
def stateful():
    inputs = keras.Input((8, 8, 3))
    x = Counting()(conv(4, "a")(inputs))
    x = conv(4, "b")(x)
    return keras.Model(inputs, head(layers.ReLU()(x)))


@network("a", "b")
def random_in_training():
    inputs = keras.Input((8, 8, 3))
    x = layers.SpatialDropout2D(0.5)(conv(4, "a")(inputs))
    x = layers.GaussianNoise(1.0)(layers.AlphaDropout(0.5)(layers.ReLU()(x)))
    x = layers.GaussianDropout(0.5)(conv(4, "b")(x))
    x = layers.RandomFlip()(layers.GaussianNoise(1.0)(x))
    return keras.Model(inputs, head(layers.Dropout(0.5)(conv(3)(x))))


class Inside(keras.Model):
    """A model whose graph cannot be read, in one whose graph can."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = conv(width), layers.BatchNormalization()

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], self.conv.filters))

    def call(self, x, training=False):
        return ops.relu(self.norm(self.conv(x), training=training))


@network("a", "b")
def functions():
    inputs = keras.Input((8, 8, 3))
    x = layers.Lambda(lambda v: ops.flip(v, axis=-1))(conv(4, "a")(inputs))
    x = layers.Lambda(lambda v: v * v)(conv(4, "b")(x))
    return keras.Model(inputs, head(layers.PReLU()(Inside(4)(x))))


@network("tap")
def merges():
    """Branches that depend on the tap, and branches that do not."""
    inputs = keras.Input((8, 8, 3))
    x = conv(4, "tap")(inputs)
    other = conv(4)(inputs)
    row = layers.GlobalAveragePooling2D(keepdims=True)(other)
    one = conv(1)(inputs)
    own = layers.GlobalMaxPooling2D(keepdims=True)(x)
    both = layers.ReLU()(x)
    outs = [
        layers.Add()([x, other, both]),
        layers.Subtract()([row, x]),
        layers.Multiply()([both, row]),
        layers.Maximum()([other, x]),
        layers.Minimum()([x, one]),
        layers.Average()([x, both]),
        layers.Multiply()([x, own]),
        layers.Add()([x, conv(4)(x)]),
        layers.Add()([x, layers.GlobalAveragePooling2D()(other)]),
    ]
    outs = [layers.GlobalMaxPooling2D()(v) for v in outs]
    outs.append(layers.Flatten()(layers.Dot(-1)([x, other])))
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(outs)))


@network("tap")
def bare_operations():
    inputs = keras.Input((8, 8, 3))
    x = conv(4, "tap")(inputs)
    other = conv(4)(inputs)
    outs = [
        x + other,
        x - 0.5,
        2 * x,
        x * np.arange(4, dtype="float32"),
        x / 3,
        -x,
        x @ ops.transpose(other, (0, 1, 3, 2)),
        ops.relu(x),
        ops.silu(ops.relu6(x)),
        ops.maximum(x, other),
        ops.softmax(x),
        ops.concatenate([other, x], axis=-1),
        x[..., ::-1],
        ops.stack([x, x], axis=1)[:, 0],
    ]
    outs = [layers.Flatten()(ops.mean(v, axis=(1, 2))) for v in outs]
    return keras.Model(inputs, layers.Dense(3)(ops.concatenate(outs, axis=-1)))


@network("tap", "between")
def poolings():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(conv(4, "tap")(inputs))
    x = layers.Identity()(layers.LeakyReLU()(layers.ELU()(x)))
    x = layers.Activation("tanh", name="between")(x)
    outs = [
        layers.MaxPooling2D(2)(x),
        layers.MaxPooling2D(3, 2, "same")(x),
        layers.AveragePooling2D(3, 2, "same")(x),
        layers.AveragePooling2D(3, 2)(x),
        layers.ZeroPadding2D(((1, 0), (2, 1)))(x),
        layers.Cropping2D(((1, 0), (2, 1)))(x),
        layers.UpSampling2D(2)(x),
        layers.UpSampling2D(2, interpolation="bilinear")(x),
    ]
    outs = [layers.Flatten()(v) for v in outs]
    outs += [
        layers.GlobalMaxPooling2D()(x),
        layers.GlobalAveragePooling2D()(x),
        layers.Flatten()(layers.GlobalMaxPooling2D(keepdims=True)(x)),
    ]
    if hasattr(layers, "AdaptiveAveragePooling2D"):
        outs.append(layers.Flatten()(layers.AdaptiveAveragePooling2D(3)(x)))
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(outs)))


@network("tap", shape=(4, 4, 3), probabilities=True)
def flat_softmax():
    inputs = keras.Input((4, 4, 3))
    x = layers.Flatten()(conv(4, "tap")(inputs))
    x = layers.Dense(5, "relu")(x)
    return keras.Model(inputs, layers.Softmax()(layers.Dense(3)(x)))


@network("tap", "one")
def constants_without_batch():
    """Tensors with no sample of their own go into what lies behind the tap."""
    inputs = keras.Input((8, 8, 3))
    table = layers.Lambda(lambda v: ops.reshape(ops.arange(32.0), (8, 4)) / 9)(inputs)
    row = layers.Lambda(lambda v: ops.ones((1, 1, 1, 4), v.dtype) / 3)(inputs)
    x = conv(4, "tap")(inputs)
    one = conv(1, "one")(x)
    x = conv(4)(x) + ops.cast(table, x.dtype)
    x = conv(4)(x) * row + one
    return keras.Model(inputs, head(x))


# --- folding ---------------------------------------------------------------------


@network("tap")
def normalizations():
    inputs = keras.Input((8, 8, 3))
    x = norm(conv(4, "tap")(inputs))  # on the tap itself
    twice = conv(4)(x)
    x = layers.Add()([norm(twice), twice])  # the output is used twice
    x = norm(norm(conv(4)(x), scale=False), center=False)  # two in a row
    x = norm(conv(8)(x), axis=1)  # another axis than the convolution's
    x = norm(conv(4, use_bias=False)(x), scale=False, center=False)
    x = norm(conv(4, activation="relu")(x))
    x = norm(layers.DepthwiseConv2D(2, use_bias=False)(x))
    x = norm(layers.DepthwiseConv2D(2, depth_multiplier=2)(x), epsilon=0.1)
    x = norm(conv(4)(inputs=x))  # by keyword
    return keras.Model(inputs, head(layers.LayerNormalization()(x)))
