"""Which layers correspond: by structure, whatever they are called."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_delta._network.attach import attach_head
from keras_delta._network.copies import copy_model
from keras_delta._network.graph import Graph
from keras_delta._network.pairing import Pairing


def pair(target, source):
    return Pairing(Graph(target), Graph(source))


def inception_like(classes=None):
    """Auto-numbered layers and two branches, as InceptionV3 has them."""
    x = i = keras.Input((16, 16, 3))
    for width in (4, 6):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.Activation("relu")(layers.BatchNormalization(scale=False)(x))
    branches = [layers.Conv2D(w, 1)(x) for w in (4, 4, 8)]
    x = layers.Concatenate(name="mixed0")(branches)
    if classes:
        x = layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(i, x)


def test_a_target_with_a_head(backbone):
    pairing = pair(attach_head(backbone, 3), backbone)
    names = [x.name for x in backbone.layers[1:]]
    assert pairing.names == dict(zip(names, names, strict=True))
    assert pairing.new_layers == ["head"]
    assert pairing.unmatched == []
    assert [v.path for v in pairing.new_variables] == ["head/kernel", "head/bias"]


def test_variables_are_pairs_of_one_shape_and_value(bn_backbone):
    pairing = pair(attach_head(bn_backbone, 3), bn_backbone)
    assert len(pairing.variables) == 3 * 4  # kernel, bias, gamma, beta
    for ours, theirs in pairing.variables:
        assert ours is not theirs
        np.testing.assert_array_equal(ours, theirs)


def test_a_second_build_has_other_names():
    source, target = inception_like(), inception_like(classes=5)
    pairing = pair(target, source)
    ours = [x.name for x in target.layers if x.weights][:-1]
    theirs = [x.name for x in source.layers if x.weights]
    assert not set(ours) & set(theirs)
    assert [pairing.names[n] for n in ours] == theirs
    assert pairing.new_layers == [target.layers[-1].name]
    assert len(pairing.variables) == 2 * (1 + 1) + 3 * 2


def test_nested_and_flat(backbone):
    x = layers.GlobalAveragePooling2D()(backbone(backbone.input))
    nested = keras.Model(backbone.input, layers.Dense(2, name="new")(x))
    pairing = pair(nested, copy_model(backbone))
    assert pairing.names["conv2"] == "conv2"
    assert pairing.new_layers == ["new"] and pairing.unmatched == []


def test_inserted_layers(new_backbone):
    source = new_backbone()
    x = source.input
    for layer in source.layers[1:]:
        x = layer(x)
        if layer.name == "relu0":
            x = layers.Dropout(0.5, name="dropout")(x)
            x = layers.Conv2D(4, 1, name="inserted")(x)
    pairing = pair(keras.Model(source.input, x), source)
    assert pairing.new_layers == ["inserted"]
    assert pairing.unmatched == []
    assert "dropout" not in pairing.names
    assert pairing.names["conv1"] == "conv1" and pairing.names["relu2"] == "relu2"


def test_a_source_with_its_own_head(backbone):
    source = attach_head(backbone, 10)
    pairing = pair(attach_head(backbone, 3), source)
    assert pairing.new_layers == ["head"] and pairing.unmatched == ["head"]


def test_frozen_layers_have_no_trainable_pairs(backbone):
    target = attach_head(backbone, 3)
    target.get_layer("conv0").trainable = False
    pairing = pair(target, backbone)
    assert [v.path for v, _ in pairing.variables] == [
        "conv1/kernel",
        "conv1/bias",
        "conv2/kernel",
        "conv2/bias",
    ]
    assert pairing.of_layer("conv0") == []
    target.get_layer("head").trainable = False
    assert pairing.new_variables == []


def test_moving_statistics_are_never_paired(bn_backbone):
    pairing = pair(attach_head(bn_backbone, 3), bn_backbone)
    bn = [(a.path, b.path) for a, b in pairing.of_layer("bn1")]
    assert bn == [("bn1/gamma", "bn1/gamma"), ("bn1/beta", "bn1/beta")]


def shared_layer(calls, classes=None):
    x = i = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    for _ in range(calls):
        x = shared(x)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x))
    if classes:
        x = layers.Dense(classes, name="head")(x)
    return keras.Model(i, x)


@pytest.mark.parametrize(("calls_of_target", "calls_of_source"), [(1, 2), (2, 1)])
def test_a_shared_layer_is_paired_by_any_of_its_calls(calls_of_target, calls_of_source):
    pairing = pair(shared_layer(calls_of_target, 3), shared_layer(calls_of_source))
    assert pairing.new_layers == ["head"] and pairing.unmatched == []
    assert [v.path for v, _ in pairing.variables] == ["shared/kernel", "shared/bias"]


def two_images(nested, front=None, heads=1):
    """Two images through the same convolutions, in a model of their own or not."""
    ours = [layers.Conv2D(3, 3, padding="same", name=f"conv{i}") for i in range(2)]
    inner = keras.Input((8, 8, 3))
    branch = keras.Model(inner, ours[1](ours[0](inner)), name="branch")
    images = [keras.Input((8, 8, 3)) for _ in range(2)]
    entering = [front()(x) for x in images] if front else images
    a, b = (branch(x) if nested else ours[1](ours[0](x)) for x in entering)
    outputs = [b, layers.Subtract(name="minus")([a, b])]
    return keras.Model(images, outputs[-heads:])


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("front", [None, lambda: layers.Rescaling(2.0)])
def test_calls_of_shared_layers_are_pairs_where_they_take_the_same(front, heads):
    """Their numbers say less: one network computes by branches, one by layers."""
    target, source = two_images(True, front, heads), two_images(False)
    source.set_weights(target.get_weights())
    pairing = pair(target, source)
    x = [np.full((1, 8, 8, 3), v, "float32") for v in (1.0, 5.0)]
    calls = ["conv0", "conv1", "conv0#1", "conv1#1"]

    def maps(graph, names, scale=1.0):
        fetches = [graph.output_of(n) for n in names]
        return graph.run(fetches, graph.inputs, [v * scale for v in x], training=False)

    partners = [pairing.names[n] for n in calls]
    assert sorted(partners) == sorted(calls)
    ours = maps(pairing.target, calls)
    theirs = maps(pairing.source, partners, 2.0 if front else 1.0)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_source_that_does_not_match_is_refused(new_backbone):
    source = new_backbone(widths=(4, 7, 8))
    target = attach_head(new_backbone(widths=(4, 6, 8)), 3)
    pairing = pair(target, source)
    graph = pairing.source
    pairing.check([graph.output_of("conv0")])  # what lies behind does not matter
    with pytest.raises(ValueError) as e:
        pairing.check([graph.output_of("conv2")])
    assert str(e.value) == (
        "Source and target do not match: these layers of the source, on the way to "
        "its taps, have no counterpart in the target: 'conv1' (Conv2D (3, 3, 4, 7) "
        "(7,)), 'conv2' (Conv2D (3, 3, 7, 8) (8,)). Layers that only the target has: "
        "'conv1' (Conv2D (3, 3, 4, 6) (6,)), 'conv2' (Conv2D (3, 3, 6, 8) (8,)), "
        "'head' (Dense (8, 3) (3,)). Build the target with "
        "`keras_delta.attach_head(source, classes)`, or pass the source that it was "
        "made from."
    )


def test_repr_lists_what_is_on_one_side_alone(backbone):
    assert repr(pair(attach_head(backbone, 3), attach_head(backbone, 9))) == (
        "Pairing: 3 layers with weights in source and target (774 trainable "
        "parameters)\n"
        "  only the target: head (Dense (8, 3) (3,))\n"
        "  only the source: head (Dense (8, 9) (9,))"
    )
