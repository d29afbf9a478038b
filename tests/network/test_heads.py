"""New heads, and where a network's head begins."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_delta as kd
from keras_delta._network.attach import attach_head
from keras_delta._network.graph import Graph
from keras_delta._network.heads import (
    body_output,
    head_layers,
    output_activation,
)


def test_a_copy_with_a_new_head(backbone, images):
    target = attach_head(backbone, 3)
    assert target.name == "tiny_3" and target.output.shape == (None, 3)
    body = backbone.predict(images[0], verbose=0).mean(axis=(1, 2))
    kernel, bias = target.get_layer("head").get_weights()
    expected = body @ kernel + bias
    np.testing.assert_allclose(target(images[0]), expected, atol=1e-5)
    before = backbone.get_weights()
    for v in target.trainable_variables:
        v.assign(v + 1.0)
    for a, b in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_frozen_source_gives_a_target_that_trains(bn_backbone):
    bn_backbone.trainable = False
    target = attach_head(bn_backbone, 3)
    assert len(target.trainable_variables) == 3 * 4 + 2
    assert bn_backbone.trainable_variables == []


def test_options(backbone):
    target = attach_head(
        backbone, 2, pooling="max", dropout=0.5, activation="softmax", name="mine"
    )
    assert target.name == "mine"
    kinds = [type(x).__name__ for x in target.layers[-3:]]
    assert kinds == ["GlobalMaxPooling2D", "Dropout", "Dense"]
    assert target.get_layer("head_dropout").rate == 0.5
    assert output_activation(Graph(target)) == "softmax"
    flat = attach_head(backbone, 2, pooling="flatten")
    assert flat.get_layer("head").kernel.shape == (4 * 4 * 8, 2)


def test_vectors_are_not_pooled():
    i = keras.Input((5,))
    source = keras.Model(i, layers.Dense(4)(i))
    target = attach_head(source, 2)
    assert [type(x).__name__ for x in target.layers[1:]] == ["Dense", "Dense"]


def test_the_head_is_float32_under_mixed_precision(new_backbone):
    keras.config.set_dtype_policy("mixed_float16")
    target = attach_head(new_backbone(), 3)
    assert target.get_layer("conv0").compute_dtype == "float16"
    assert target.output.dtype == "float32"


def test_arguments_are_checked(backbone):
    with pytest.raises(ValueError, match="a positive integer") as e:
        attach_head(backbone, 0)
    assert "classes=0" in str(e.value)
    with pytest.raises(ValueError, match="Unknown name for `pooling`"):
        attach_head(backbone, 2, pooling="mean")


def test_numpy_integers_are_classes(backbone):
    assert attach_head(backbone, np.int64(3)).output.shape == (None, 3)


def test_one_output_is_needed(backbone):
    two = keras.Model(backbone.input, [backbone.output, backbone.output])
    with pytest.raises(ValueError) as e:
        attach_head(two, 2)
    assert str(e.value) == (
        "Invalid value for argument `source`. Expected a model with one output. "
        "Received: source='2 outputs'"
    )


@pytest.mark.parametrize(
    "classifier",
    [
        layers.Dense(9, "softmax", name="other"),
        layers.Dense(9, "sigmoid", name="other"),
        layers.Dense(9, name="predictions"),
    ],
)
def test_a_source_with_its_classifier(backbone, classifier):
    x = layers.GlobalAveragePooling2D()(backbone.output)
    with pytest.raises(ValueError, match=r"without its classifier.*include_top=False"):
        attach_head(keras.Model(backbone.input, classifier(x)), 2)
    attach_head(keras.Model(backbone.input, layers.Dense(9, name="embedding")(x)), 2)


def test_head_layers_lie_behind_the_last_pooling(backbone):
    x = layers.GlobalAveragePooling2D()(backbone.output)
    x = layers.Dense(5, name="hidden")(x)
    graph = Graph(keras.Model(backbone.input, layers.Dense(2, name="out")(x)))
    assert head_layers(graph) == ["hidden", "out"]
    assert graph.name_of(body_output(graph)) == "relu2"


def test_head_of_a_network_without_maps():
    net = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")]
    )
    assert head_layers(Graph(net)) == ["b"]
    assert body_output(Graph(net)) is None


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ([layers.Dense(2)], "linear"),
        ([layers.Dense(2, "softmax")], "softmax"),
        ([layers.Dense(2, "sigmoid")], "sigmoid"),
        ([layers.Dense(2), layers.Activation("softmax")], "softmax"),
        ([layers.Dense(2), layers.Softmax()], "softmax"),
        ([layers.Dense(2), layers.Dropout(0.1)], "linear"),
        ([layers.Dense(2, "softmax"), layers.Activation("linear")], "softmax"),
        ([layers.Dense(2), layers.Activation("linear")], "linear"),
        ([layers.Dense(2, tf.nn.softmax)], "softmax"),
        ([layers.Dense(2, tf.nn.sigmoid)], "sigmoid"),
        ([layers.Dense(2), ops.softmax], "softmax"),
        ([layers.Dense(2), ops.sigmoid], "sigmoid"),
        ([layers.Dense(2, "relu")], None),
        ([layers.Dense(2), layers.LayerNormalization()], None),
    ],
)
def test_activation_of_the_output(last, expected):
    x = inputs = keras.Input((4,))
    for layer in last:
        x = layer(x)
    assert output_activation(Graph(keras.Model(inputs, x))) == expected


@keras.saving.register_keras_serializable("tests")
class ClassToken(keras.layers.Layer):
    """Puts a token in front of the others."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")

    def call(self, x):
        token = keras.ops.repeat(self.token, keras.ops.shape(x)[0], axis=0)
        return keras.ops.concatenate([token, x], axis=1)

    def compute_output_shape(self, shape):
        return shape[0], shape[1] + 1, shape[2]


@pytest.fixture
def transformer():
    x = inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 4, 4, name="patches")(x)
    x = ClassToken(name="cls")(keras.layers.Reshape((16, 8))(x))
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.Add(name="sum")([x, y])
    return keras.Model(inputs, keras.layers.LayerNormalization(name="norm")(x))


def test_heads_on_tokens(transformer, images, tmp_path):
    x, y = images
    tokens = transformer(x).numpy()
    assert tokens.shape == (8, 17, 8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    uniform = kd.regularizers.Delta(attention="uniform")
    wanted = {"avg": tokens.mean(axis=1), "token": tokens[:, 0]}
    for pooling, vectors in wanted.items():
        target = attach_head(transformer, 3, pooling=pooling)
        kernel, bias = target.get_layer("head").get_weights()
        np.testing.assert_allclose(target(x), vectors @ kernel + bias, atol=1e-5)
        assert head_layers(Graph(target)) == ["head"]
        model = kd.DeltaModel(target, source=transformer)
        model.compile("sgd", loss, run_eagerly=True)
        model.fit(x, y, verbose=0, regularizer=uniform)
        target.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        np.testing.assert_array_equal(again(x), target(x))


def test_a_token_of_maps(backbone):
    with pytest.raises(ValueError, match="outputs no tokens"):
        attach_head(backbone, 3, pooling="token")
