"""Flat graphs: names, cuts, runs, copies."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_delta._network.copies import copy_model
from keras_delta._network.graph import Graph, is_container


def close(a, b):
    keras.tree.map_structure(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b
    )


def block(name, width=4):
    """A nested model whose inner layers are called alike everywhere."""
    x = inputs = keras.Input((None, None, 3 if name == "a" else 4))
    x = layers.Conv2D(width, 3, padding="same", name="conv")(x)
    return keras.Model(inputs, layers.ReLU(name="relu")(x), name=name)


def nested_three_deep():
    inner = keras.Sequential([layers.Dense(4, name="deep")], name="inner")
    x = i = keras.Input((8, 8, 3))
    middle = keras.Model(i, inner(layers.Conv2D(4, 3, name="conv")(x)), name="middle")
    outer = keras.Sequential([keras.Input((8, 8, 3)), middle], name="outer")
    x = i = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(outer(x))
    return keras.Model(i, layers.Dense(2, name="head")(x), name="whole")


def residual():
    """stem -> (a -> b -> +stem) -> relu -> pool -> head."""
    i = keras.Input((8, 8, 3))
    stem = layers.Conv2D(4, 3, padding="same", name="stem")(i)
    x = layers.Conv2D(4, 3, padding="same", name="a")(stem)
    x = layers.BatchNormalization(name="a_bn")(x)
    x = layers.Conv2D(4, 1, name="b")(x)
    x = layers.Add(name="add")([x, stem])
    x = layers.ReLU(name="out")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(i, layers.Dense(2, name="head")(x))


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def test_nested_models_are_inlined():
    model = nested_three_deep()
    graph = Graph(model)
    assert list(graph.nodes) == ["conv", "deep", "pool", "head"]
    assert graph.nodes["deep"].path == ("outer", "middle", "inner", "deep")
    x = draw(2, 8, 8, 3)
    close(graph.run(graph.outputs, graph.inputs, [x]), model(x))


def test_equal_names_in_two_nested_models_become_paths():
    i = keras.Input((8, 8, 3))
    model = keras.Model(i, block("b")(block("a")(i)))
    graph = Graph(model)
    assert list(graph.nodes) == ["a/conv", "a/relu", "b/conv", "b/relu"]
    copy = copy_model(model)
    assert [x.name for x in copy.layers[1:]] == ["a_conv", "a_relu", "b_conv", "b_relu"]
    x = draw(2, 8, 8, 3)
    close(copy(x), model(x))


def test_equal_names_of_operations_in_nested_models():
    nested = []
    for name in ("a", "b"):
        keras.utils.clear_session()  # numbering starts anew, as in a new process
        i = keras.Input((4,))
        nested.append(keras.Model(i, layers.Dense(4, name="dense")(i) * 2.0, name=name))
    i = keras.Input((4,))
    model = keras.Model(i, nested[1](nested[0](i)))
    assert list(Graph(model).nodes) == [
        "a/dense",
        "a/multiply",
        "b/dense",
        "b/multiply",
    ]
    x = draw(2, 4)
    close(copy_model(model)(x), model(x))


def test_calls_of_a_shared_layer_are_numbered():
    shared = layers.Dense(3, name="shared")
    i = keras.Input((3,))
    model = keras.Model(i, shared(shared(shared(i))))
    graph = Graph(model)
    assert list(graph.nodes) == ["shared", "shared#1", "shared#2"]
    assert list(graph.layers()) == ["shared"]
    copy = copy_model(model)
    assert len(copy.weights) == 2
    close(copy(draw(2, 3)), model(draw(2, 3)))


def test_a_nested_model_called_twice():
    nested = block("b")
    i = keras.Input((8, 8, 4))
    model = keras.Model(i, nested(nested(i)))
    assert list(Graph(model).nodes) == ["conv", "relu", "conv#1", "relu#1"]
    close(copy_model(model)(draw(1, 8, 8, 4)), model(draw(1, 8, 8, 4)))


def test_operations_are_nodes():
    keras.utils.clear_session()
    i = keras.Input((3,))
    model = keras.Model(i, layers.Dense(2, name="dense")(i * 2.0 + 1.0))
    graph = Graph(model)
    assert list(graph.nodes) == ["multiply", "add", "dense"]
    assert [n.is_layer for n in graph.nodes.values()] == [False, False, True]
    close(graph.run(graph.outputs, graph.inputs, [draw(2, 3)]), model(draw(2, 3)))
    close(copy_model(model)(draw(2, 3)), model(draw(2, 3)))


def test_several_inputs_and_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    both = layers.Concatenate(name="both")([a, b])
    out = {"x": layers.Dense(2, name="x")(both), "y": layers.Dense(1, name="y")(a)}
    model = keras.Model([a, b], out)
    graph = Graph(model)
    values = [draw(2, 3), draw(2, 2)]
    close(graph.run(graph.outputs, graph.inputs, graph.feed(values)), model(values))
    close(copy_model(model)(values), model(values))
    by_name = graph.feed({"b": values[1], "a": values[0]})
    close(by_name, values)


def test_dict_inputs_in_any_order_and_with_more_in_them():
    a, b = keras.Input((3,), name="zeta"), keras.Input((2,), name="alpha")
    y = layers.Dense(2)(layers.Concatenate()([a, b]))
    model = keras.Model({"zeta": a, "alpha": b}, y)
    graph = Graph(model)
    x = {"zeta": draw(2, 3), "alpha": draw(2, 2)}
    fed = graph.feed({"more": draw(2, 1), **x})
    close(graph.run(graph.outputs, graph.inputs, fed), model(x))
    close(copy_model(model)(x), model(x))


def test_feed_counts_the_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    graph = Graph(keras.Model([a, b], layers.Add()([a, b])))
    with pytest.raises(ValueError) as e:
        graph.feed({"a": draw(2, 3), "c": draw(2, 3)})
    assert str(e.value) == (
        "Invalid value for argument `x`. Expected 2 input tensor(s), ['a', 'b']. "
        "Received: x=['a', 'c']"
    )


def test_feed_casts_to_the_input():
    graph = Graph(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    (fed,) = graph.feed(np.ones((2, 3), "uint8"))
    assert fed.dtype == "float32"


def test_cut_behind_a_shortcut():
    graph = Graph(residual())
    cut = graph.cut([graph.output_of("b")])
    assert [graph.name_of(t) for t in cut] == ["b", "stem"]


def test_a_single_tensor_is_a_cut_where_nothing_goes_around():
    graph = Graph(residual())
    assert [graph.name_of(t) for t in graph.cut([graph.output_of("out")])] == ["out"]
    assert [graph.name_of(t) for t in graph.cut([graph.output_of("stem")])] == ["stem"]


def test_run_from_a_cut_equals_the_whole():
    model = residual()
    graph = Graph(model)
    x = draw(2, 8, 8, 3)
    cut = graph.cut([graph.output_of("a")])
    values = graph.run(cut, graph.inputs, [x], training=False)
    calls = []
    out = graph.run(
        graph.outputs,
        cut,
        values,
        training=False,
        call=lambda node, *a, **k: calls.append(node.path[-1]),
    )
    close(out, model(x, training=False))
    assert calls == ["a_bn", "b", "add", "out", "pool", "head"]


def test_run_passes_training_on():
    graph = Graph(residual())
    x = draw(4, 8, 8, 3)
    bn = graph.nodes["a_bn"].operation
    graph.run(graph.outputs, graph.inputs, [x], training=False)
    np.testing.assert_array_equal(bn.moving_mean, np.zeros(4))
    graph.run(graph.outputs, graph.inputs, [x], training=True)
    assert np.abs(bn.moving_mean).max() > 1e-4


def test_ancestors_stop():
    graph = Graph(residual())
    stem = graph.output_of("stem")
    needed = graph.ancestors([graph.output_of("add")], stop=[stem])
    assert needed == {"a", "a_bn", "b", "add"}
    assert graph.ancestors([graph.output_of("a")]) == {"stem", "a"}


def test_descendants():
    graph = Graph(residual())
    assert graph.descendants([graph.output_of("add")]) == {"out", "pool", "head"}


def test_layers_with_several_outputs_cannot_be_tapped():
    class Split(layers.Layer):
        def call(self, x):
            return x, x + 1.0

    i = keras.Input((3,))
    model = keras.Model(i, Split(name="split")(i))
    with pytest.raises(ValueError) as e:
        Graph(model).output_of("split")
    assert str(e.value) == (
        "Layer 'split' has 2 outputs; only layers with one output can be tapped."
    )


def test_copies_have_the_weights_and_are_independent(bn_backbone):
    copy = copy_model(bn_backbone, name="copy")
    assert copy.name == "copy"
    assert [x.name for x in copy.layers] == [x.name for x in bn_backbone.layers]
    for a, b in zip(bn_backbone.weights, copy.weights, strict=True):
        assert a is not b
        np.testing.assert_array_equal(a, b)
    before = bn_backbone.get_weights()
    for w in copy.weights:
        w.assign(w + 1.0)
    close(bn_backbone.get_weights(), before)


def test_copies_keep_what_is_frozen(backbone):
    backbone.get_layer("conv1").trainable = False
    copy = copy_model(backbone)
    assert [x.name for x in copy.layers if x.weights and x.trainable] == [
        "conv0",
        "conv2",
    ]


def test_copies_end_and_begin_where_asked(backbone):
    graph = Graph(backbone)
    middle, end = graph.output_of("relu0"), graph.output_of("conv1")
    part = copy_model(graph, outputs=end, inputs=[middle])
    assert [x.name for x in part.layers[1:]] == ["conv1"]
    x = draw(2, 16, 16, 4)
    close(part([x]), backbone.get_layer("conv1")(x))


def test_copies_train_or_not_whatever_the_model_says(backbone):
    """A model keeps `trainable=True` while its layers are frozen one by one."""
    for layer in backbone.layers:
        layer.trainable = False
    assert backbone.trainable
    assert copy_model(backbone).trainable_variables == []
    trained = copy_model(backbone, trainable=True)
    assert len(trained.trainable_variables) == len(backbone.weights)
    assert copy_model(trained, trainable=False).trainable_variables == []


def test_copies_of_lambda_layers():
    i = keras.Input((3,))
    x = layers.Lambda(lambda v: v * 2, name="double")(i)
    model = keras.Model(i, layers.Dense(2)(x))
    close(copy_model(model)(draw(2, 3)), model(draw(2, 3)))


def test_copies_of_an_adapted_normalization():
    i = keras.Input((3,))
    norm = layers.Normalization()
    model = keras.Model(i, layers.Dense(2)(norm(i)))
    norm.adapt(draw(50, 3) * 4 + 9)
    close(copy_model(model)(draw(2, 3)), model(draw(2, 3)))


def test_a_layer_without_config_cannot_be_copied():
    class Scale(layers.Layer):
        def __init__(self, factors, **kwargs):
            super().__init__(**kwargs)
            self.factors = factors

        def call(self, x):
            return x * sum(self.factors)

        def get_config(self):
            return super().get_config()

    i = keras.Input((3,))
    model = keras.Model(i, Scale([1, 2], name="scale")(i))
    with pytest.raises(ValueError) as e:
        copy_model(model)
    assert str(e.value).startswith(
        "Layer 'scale' (Scale) cannot be copied: it could not be rebuilt from its "
        "config. Give the layer a `get_config()` that returns every argument of its "
        "`__init__`. Reason: "
    )


class Subclassed(keras.Model):
    def call(self, x):
        return x


def test_subclassed_models_are_refused():
    model = Subclassed(name="opaque")
    with pytest.raises(TypeError) as e:
        Graph(model, argument="target")
    assert str(e.value) == (
        "Invalid value for argument `target`. Expected a Functional or Sequential "
        f"keras.Model. Received: target={model!r}. The graph of a subclassed model "
        "cannot be read: build it with `keras.Model(inputs, outputs)`."
    )


def test_unbuilt_sequential_models_are_refused():
    model = keras.Sequential([layers.Dense(2)], name="unbuilt")
    with pytest.raises(ValueError) as e:
        Graph(model)
    assert str(e.value) == (
        "Invalid value for argument `model`. Expected a built model. Received: "
        f"model={model!r}. Start the Sequential model with `keras.Input(shape)`."
    )


def test_models_with_a_call_of_their_own_are_not_inlined():
    class Tripled(keras.Sequential):
        def call(self, inputs, training=None):
            return super().call(inputs) * 3.0

    class Doubled(keras.Model):
        def call(self, inputs, training=None):
            return super().call(inputs) * 2.0

    tripled = Tripled([keras.Input((3,)), layers.Dense(2)], name="tripled")
    i = keras.Input((3,))
    doubled = Doubled(i, layers.Dense(2)(i), name="doubled")
    assert not is_container(tripled) and not is_container(doubled)
    for inner in (tripled, doubled):
        i = keras.Input((3,))
        graph = Graph(keras.Model(i, inner(i)))
        assert list(graph.nodes) == [inner.name]
        close(graph.run(graph.outputs, graph.inputs, [draw(2, 3)]), inner(draw(2, 3)))


def test_a_channel_of_zeros_is_a_constant_behind_batch_norm():
    """`beta - gamma * mean / sqrt(variance + epsilon)` = -1.099976, by hand."""
    i = keras.Input((2, 2, 1))
    bn = layers.BatchNormalization(epsilon=1.001e-5, name="bn")
    graph = Graph(keras.Model(i, bn(layers.Conv2D(1, 1, name="tap")(i))))
    bn.set_weights([np.full(1, v) for v in (1.5, 0.1, 0.4, 0.25)])
    zeros = np.zeros((1, 2, 2, 1), "float32")
    tap = graph.output_of("tap")
    out = graph.run(graph.outputs, graph.cut([tap]), [zeros], training=False)
    np.testing.assert_allclose(out, np.full((1, 2, 2, 1), -1.099976), atol=1e-6)
