"""Which axis holds channels, and which calls keep them apart."""

import keras
import pytest
from keras import layers, ops

from keras_delta._network.graph import Graph
from keras_delta.attention.channelwise import channel_axis, follow

FIRST = {"data_format": "channels_first"}


def axis_behind(*steps, shape=(4, 4, 4)):
    x = inputs = keras.Input(shape)
    for step in steps:
        x = step(x)
    x = layers.Identity(name="tap")(x)
    return channel_axis(Graph(keras.Model(inputs, x)), "tap")


@pytest.mark.parametrize(
    "axis, steps",
    [
        (3, []),
        (3, [layers.Conv2D(4, 1)]),
        (1, [layers.Conv2D(4, 1, **FIRST)]),
        (1, [layers.Conv2D(4, 1, **FIRST), layers.ReLU(), layers.Dropout(0.5)]),
        (1, [layers.MaxPooling2D(2, **FIRST), layers.LayerNormalization()]),
        (1, [layers.BatchNormalization(axis=1), layers.Rescaling(2.0)]),
        (1, [layers.Conv2D(4, 1, **FIRST), lambda x: x + x, lambda x: ops.relu(x)]),
        (1, [layers.Conv2D(4, 1, **FIRST), lambda x: layers.Concatenate(1)([x, x])]),
        (3, [layers.Conv2D(4, 1), lambda x: layers.Concatenate(1)([x, x])]),
        (3, [lambda x: layers.Concatenate(1)([x, x])]),
        # Axes of their own.
        (3, [layers.Conv2D(4, 1, **FIRST), layers.Permute((2, 3, 1))]),
        (3, [layers.Conv2D(4, 1, **FIRST), lambda x: ops.transpose(x, (0, 2, 3, 1))]),
        (3, [layers.Conv2D(4, 1, **FIRST), layers.Dense(4)]),
        (3, [layers.Conv2D(4, 1, **FIRST), layers.Reshape((2, 8, 4))]),
        (3, [layers.Conv2D(4, 1, **FIRST), layers.Conv2D(4, 1)]),
    ],
)
def test_axis_of_the_channels(axis, steps):
    assert axis_behind(*steps) == axis


@pytest.mark.parametrize("shape", [(3,), (5, 3)])
def test_vectors_and_tokens_have_channels_last(shape):
    assert axis_behind(layers.Dense(3), shape=shape) == len(shape)


def followed(call, place=(3, 0), shape=(6, 5, 4)):
    """Where `call(x, other)` has the channels of x, `other` being another map."""
    x, other = keras.Input(shape), keras.Input(shape)
    mine = layers.Identity(name="mine")(x)
    graph = Graph(keras.Model([x, other], call(mine, other)))
    tap = graph.output_of("mine")
    (name,) = graph.descendants([tap])
    return follow(graph.nodes[name], {id(tap): place})


@pytest.mark.parametrize(
    "expected, call",
    [
        ((3, 0), lambda x, o: layers.ReLU()(x)),
        ((3, 0), lambda x, o: layers.BatchNormalization()(x)),
        ((3, 0), lambda x, o: layers.UpSampling2D(2)(x)),
        ((3, 0), lambda x, o: layers.DepthwiseConv2D(3)(x)),
        ((1, 0), lambda x, o: layers.GlobalAveragePooling2D()(x)),
        ((3, 0), lambda x, o: layers.GlobalAveragePooling2D(keepdims=True)(x)),
        ((3, 0), lambda x, o: layers.Add()([o, x])),
        ((3, 0), lambda x, o: x * 2),
        ((3, 0), lambda x, o: layers.Concatenate()([x, o])),
        ((3, 4), lambda x, o: layers.Concatenate()([o, x])),
        (None, lambda x, o: layers.Concatenate()([x, x])),
        (None, lambda x, o: layers.Concatenate(1)([o, x])),
        (None, lambda x, o: layers.BatchNormalization(axis=1)(x)),
        (None, lambda x, o: layers.Activation("softmax")(x)),
        (None, lambda x, o: layers.Activation(lambda v: v[..., ::-1])(x)),
        (None, lambda x, o: layers.DepthwiseConv2D(3, depth_multiplier=2)(x)),
        (None, lambda x, o: layers.DepthwiseConv2D(3, activation="softmax")(x)),
        (None, lambda x, o: layers.MaxPooling2D(2, **FIRST)(x)),
        (None, lambda x, o: layers.GlobalMaxPooling2D(**FIRST)(x)),
        (None, lambda x, o: layers.Conv2D(4, 1)(x)),
        (None, lambda x, o: layers.LayerNormalization()(x)),
        (None, lambda x, o: layers.Lambda(lambda v: v)(x)),
        (None, lambda x, o: layers.Permute((2, 1, 3))(x)),
    ],
)
def test_calls_that_keep_channels_apart(expected, call):
    assert followed(call) == expected


def test_channels_first_are_followed():
    for call in (
        layers.BatchNormalization(axis=1),
        layers.MaxPooling2D(2, **FIRST),
        layers.GlobalAveragePooling2D(**FIRST),
        layers.DepthwiseConv2D(3, **FIRST),
    ):
        assert followed(lambda x, o, call=call: call(x), (1, 0)) == (1, 0)
    assert followed(lambda x, o: layers.Concatenate(1)([o, x]), (1, 2)) == (1, 8)
    assert followed(lambda x, o: layers.MaxPooling2D(2)(x), (1, 0)) is None
    assert followed(lambda x, o: layers.BatchNormalization()(x), (1, 0)) is None


def test_a_map_that_is_stretched_is_not_followed():
    """Two maps of the tap, one of them of a single position."""
    inputs = keras.Input((6, 5, 4))
    a = layers.Identity(name="a")(inputs)
    b = layers.GlobalMaxPooling2D(keepdims=True, name="b")(a)
    graph = Graph(keras.Model(inputs, layers.Multiply(name="product")([a, b])))
    where = {id(graph.output_of(n)): (3, 0) for n in "ab"}
    assert follow(graph.nodes["product"], where) is None
