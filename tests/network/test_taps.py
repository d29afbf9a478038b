"""Choice of the tapped layers."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_delta as kd
from keras_delta._network import auto_taps, taps
from keras_delta._network.attach import attach_head
from keras_delta._network.copies import copy_model
from keras_delta._network.graph import Graph
from keras_delta._network.networks import Networks
from keras_delta._network.pairing import Pairing

RESNET50 = [
    "conv2_block3_3_conv",
    "conv3_block4_3_conv",
    "conv4_block6_3_conv",
    "conv5_block3_3_conv",
]


def choose(asked, target, source):
    target, source = Graph(target), Graph(source)
    return taps.choose(asked, None, target, source, Pairing(target, source)).pairs


def application(name, size, **kwargs):
    build = getattr(keras.applications, name)
    return build(weights=None, include_top=False, input_shape=(size, size, 3), **kwargs)


def straight(*steps):
    """16x16x3 through the layers."""
    x = i = keras.Input((16, 16, 3))
    for layer in steps:
        x = layer(x)
    return keras.Model(i, x)


def test_resnet50_has_its_published_taps():
    net = application("ResNet50", 32)
    graph = Graph(net)
    assert auto_taps.find(graph) == RESNET50
    assert [graph.output_of(t).shape[-1] for t in RESNET50] == [256, 512, 1024, 2048]
    # Raw convolutions: the shortcut goes around them.
    cut = graph.cut([graph.output_of("conv4_block6_3_conv")])
    assert [graph.name_of(t) for t in cut] == [
        "conv4_block6_3_conv",
        "conv4_block5_out",
    ]
    nested = keras.Model(net.input, layers.GlobalAveragePooling2D()(net(net.input)))
    assert auto_taps.find(Graph(nested)) == RESNET50


def test_inception_v3_has_its_published_taps_whatever_its_numbers():
    """By position: the third and fifth activation, mixed2 and mixed7."""
    nets = [application("InceptionV3", 96) for _ in range(2)]
    found = []
    for net in nets:
        graph = Graph(net)
        found.append(auto_taps.find(graph))
        assert found[-1] == [net.layers[i].name for i in (9, 16, 86, 228)]
        channels = [graph.output_of(t).shape[-1] for t in found[-1]]
        assert channels == [64, 192, 288, 768]
    first, second = found
    assert first[:2] != second[:2] and first[2:] == second[2:] == ["mixed2", "mixed7"]
    assert choose("auto", target=nets[1], source=nets[0]) == dict(
        zip(second, first, strict=True)
    )


def test_one_tap_per_resolution_of_mobilenet_v2():
    graph = Graph(application("MobileNetV2", 64, alpha=0.35))
    found = auto_taps.find(graph)
    assert found == [
        "block_1_expand",
        "block_3_expand",
        "block_6_expand",
        "block_13_expand",
        "Conv_1",
    ]
    assert [graph.output_of(t).shape[1] for t in found] == [32, 16, 8, 4, 2]


def test_gates_of_squeeze_and_excitation_are_no_stage():
    graph = Graph(application("MobileNetV3Small", 64))
    sizes = [tuple(graph.output_of(t).shape[1:3]) for t in auto_taps.find(graph)]
    assert sizes == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]


def test_a_last_stage_of_one_position_is_a_stage():
    net = straight(
        layers.Conv2D(4, 3, padding="same", name="full"),
        layers.Conv2D(4, 16, name="one"),
        layers.Conv2D(4, 1, name="last"),
    )
    assert auto_taps.find(Graph(net)) == ["full", "last"]


def test_valid_padding_stays_in_the_stage():
    net = straight(
        layers.Conv2D(4, 3, name="first"),  # 14
        layers.Conv2D(4, 3, name="second"),  # 12
        layers.MaxPooling2D(2),
        layers.Conv2D(4, 1, name="third"),  # 6
    )
    assert auto_taps.find(Graph(net)) == ["second", "third"]


def test_depthwise_convolutions_are_passed_over():
    net = straight(
        layers.Conv2D(4, 3, padding="same", name="first"),
        layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
        layers.SeparableConv2D(4, 3, strides=2, padding="same", name="separable"),
    )
    assert auto_taps.find(Graph(net)) == ["first", "separable"]


def test_stages_do_not_depend_on_the_order_of_inputs(backbone):
    meta = keras.Input((2,), name="a_vector_first")
    pooled = layers.GlobalAveragePooling2D()(backbone.output)
    out = layers.Dense(2)(layers.Concatenate()([meta, pooled]))
    net = keras.Model([meta, backbone.input], out)
    assert auto_taps.find(Graph(net)) == ["conv0", "conv1", "conv2"]


def test_taps_of_a_nested_backbone(backbone):
    nested = keras.Model(
        backbone.input,
        layers.Dense(2)(layers.GlobalAveragePooling2D()(backbone(backbone.input))),
    )
    expected = {"conv0": "conv0", "conv1": "conv1", "conv2": "conv2"}
    assert choose("auto", nested, backbone) == expected
    assert choose(["conv1"], nested, backbone) == {"conv1": "conv1"}


def test_networks_can_register_their_taps(backbone, monkeypatch):
    """The first one that knows the network; None and nothing are passed over."""
    monkeypatch.setattr(auto_taps, "_published", [])
    graph = Graph(backbone)
    for names in (None, [], ["relu1"], ["relu0"]):
        find = {"conv0": names}.get
        auto_taps.register_published_taps(
            lambda graph, find=find: find(min(graph.nodes))
        )
    assert auto_taps.find(graph) == ["relu1"]


def test_the_published_taps_are_registered_once():
    assert len(auto_taps._published) == len(set(auto_taps._published)) == 3


def transformer(blocks=4, patches=True):
    x = image = keras.Input((16, 16, 3))
    if patches:
        x = layers.Conv2D(8, 4, strides=4, name="patches")(x)
        x = layers.Reshape((16, 8))(x)
    for k in range(blocks):
        x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
        x = layers.Add(name=f"block{k}")([x, layers.Dense(8)(layers.Dense(64)(x))])
    return keras.Model(image, layers.LayerNormalization()(x), name="vit")


def test_a_transformer_is_tapped_over_its_depth():
    """Its one convolution embeds the patches; all blocks would be free to move."""
    found = auto_taps.find(Graph(transformer()))
    assert found == ["block0", "block1", "block2", "block3"]


def test_a_stack_of_one_resolution_is_tapped_over_its_depth():
    steps = [layers.Conv2D(3, 3, padding="same", name=f"c{k}") for k in range(8)]
    assert auto_taps.find(Graph(straight(*steps))) == ["c1", "c3", "c5", "c7"]


def test_dense_layers_on_tokens():
    x = tokens = keras.Input((9, 6))
    for k in range(3):
        x = layers.Dense(6, name=f"mix{k}")(x)
    assert auto_taps.find(Graph(keras.Model(tokens, x))) == ["mix0", "mix1", "mix2"]


def unet(body, ends):
    x = body.get_layer(ends[-1]).output
    for k, end in enumerate(reversed(ends[:-1])):
        skip = layers.Concatenate()(
            [layers.UpSampling2D()(x), body.get_layer(end).output]
        )
        x = layers.Conv2D(8, 3, padding="same", name=f"up{k}")(skip)
    return keras.Model(body.input, layers.Conv2D(2, 1, name="mask")(x))


def two_outputs(body, ends):
    a, b = (body.get_layer(end).output for end in ends[-2:])
    a = layers.Conv2D(4, 1, name="box")(a)
    return keras.Model(body.input, {"box": a, "cls": layers.Conv2D(2, 1)(b)})


def convolution_head(body, ends):
    x = layers.Conv2D(32, 3, padding="same", name="extra")(body.output)
    return keras.Model(body.input, layers.Dense(2)(layers.Flatten()(x)))


@pytest.mark.parametrize("head", [unet, two_outputs, convolution_head])
def test_taps_are_in_both_networks_whatever_the_head(backbone, head):
    """Layers that only the target has are no taps."""
    ends = ["conv0", "conv1", "conv2"]
    target = head(copy_model(backbone), ends)
    assert choose("auto", target, backbone) == dict(zip(ends, ends, strict=True))


def test_much_of_the_network_behind_the_last_tap_is_said(backbone):
    wide = copy_model(backbone)
    x = layers.Flatten(name="flat")(wide.output)
    source = keras.Model(wide.input, layers.Dense(60, name="wide")(x))
    body = copy_model(source)
    target = keras.Model(body.input, layers.Dense(3, name="new")(body.output))
    with pytest.warns(UserWarning, match=r"9\d% of the parameters.*add 'l2_sp'"):
        found = choose("auto", target, source)
    assert list(found) == ["conv0", "conv1", "conv2"]


def test_taps_as_a_dict(backbone):
    target = attach_head(backbone, 3)
    asked = {"conv2": "relu2", "relu0": "relu0"}
    assert choose(asked, target, backbone) == asked


def test_one_dimension():
    x = i = keras.Input((16, 3))
    x = layers.Conv1D(4, 3, padding="same", name="a")(x)
    x = layers.Conv1D(4, 3, strides=2, padding="same", name="b")(x)
    net = keras.Model(i, x)
    assert choose("auto", attach_head(net, 3), net) == {"a": "a", "b": "b"}


@pytest.mark.parametrize("asked", ["conv1", [], {}, None, 3])
def test_other_types_are_refused(backbone, asked):
    with pytest.raises(TypeError) as e:
        choose(asked, attach_head(backbone, 3), backbone)
    assert str(e.value) == (
        'Invalid value for argument `taps`. Expected "auto", a list of layer names or '
        f"a dict of target to source layers. Received: taps={asked!r}"
    )


def test_unknown_names_list_the_closest(backbone):
    target = attach_head(backbone, 3)
    with pytest.raises(ValueError) as e:
        choose(["cnov1"], target, backbone)
    assert str(e.value) == (
        "Unknown name for `taps (target)`. Received: 'cnov1'. Closest names: 'conv1', "
        "'conv2', 'conv0'."
    )
    with pytest.raises(ValueError) as e:
        choose({"conv1": "relu9"}, target, backbone)
    assert str(e.value) == (
        "Unknown name for `taps (source)`. Received: 'relu9'. Closest names: 'relu2', "
        "'relu1', 'relu0'."
    )


def test_a_tap_behind_the_flattening_is_refused(backbone):
    target = attach_head(backbone, 3)
    with pytest.raises(ValueError) as e:
        choose(["head_pool"], target, attach_head(backbone, 4))
    assert str(e.value) == (
        "Tap 'head_pool' of the target has the shape (None, 8), which is not a "
        "feature map (batch, positions..., channels). Tap a layer before the pooling "
        "or flattening."
    )


def test_a_tap_of_the_target_alone_is_refused(backbone):
    x = layers.Conv2D(5, 1, name="new")(backbone.output)
    target = keras.Model(backbone.input, x)
    with pytest.raises(ValueError) as e:
        choose(["new"], target, copy_model(backbone))
    assert str(e.value) == (
        "Tap 'new' of the target has no counterpart in the source. Choose a layer that "
        "both have, or specify it with `taps={'new': <layer of the source>}`. For taps "
        "that are no pairs, pass two lists, `taps` and `source_taps`."
    )


def test_maps_of_different_shapes_are_refused(new_backbone):
    target = attach_head(new_backbone(), 3)
    with pytest.raises(ValueError) as e:
        taps.check_pairs(Networks(target, new_backbone(), {"conv1": "conv0"}))
    assert str(e.value) == (
        "Tap 'conv1' of the target has the shape (8, 8, 6), but 'conv0' of the source "
        "has (16, 16, 4). Both maps must have the same shape: give source and target "
        "the same `input_shape`, or tap other layers."
    )
    smaller = Networks(attach_head(new_backbone(size=8), 3), new_backbone(), ["conv0"])
    with pytest.raises(ValueError, match=r"shape \(8, 8, 4\).*has \(16, 16, 4\)"):
        taps.check_pairs(smaller)


def test_open_positions_fit_everything(new_backbone):
    target = attach_head(new_backbone(size=None), 3)
    assert choose(["conv1"], target, new_backbone()) == {"conv1": "conv1"}


def test_stages_of_an_open_input_shape(new_backbone):
    net = new_backbone(size=None, name="open")
    assert auto_taps.find(Graph(net)) == ["conv0", "conv1", "conv2"]


def test_a_network_of_vectors_has_no_taps():
    x = i = keras.Input((4,))
    net = keras.Model(i, layers.Dense(5, name="hidden")(x), name="flat")
    target = keras.Model(i, layers.Dense(2)(copy_model(net)(i)))
    model = kd.DeltaModel(target, source=net)
    assert model.taps == []
    model.set_regularizer("l2_sp")
    for regularizer in ("feature_map", "delta"):
        with pytest.raises(ValueError, match=r"no feature maps.*'hidden'.*'l2_sp'"):
            model.set_regularizer(regularizer)


def test_channels_first_is_refused_by_name():
    """What compares, pools or serves maps; attention finds the channels itself."""
    i = keras.Input((3, 8, 8))
    x = layers.Conv2D(4, 3, padding="same", data_format="channels_first", name="c")(i)
    source = keras.Model(i, x, name="first")
    for use in (
        lambda: attach_head(source, 3),
        lambda: kd.DeltaModel(source),
        lambda: kd.export_for_serving(source, "nowhere", ["a", "b"]),
    ):
        with pytest.raises(ValueError, match=r"first, whose layer 'c'.*set_weights"):
            use()


def test_channels_first_inside_of_a_wrapper_are_refused():
    i = keras.Input((2, 3, 8, 8))
    inner = layers.Conv2D(4, 3, data_format="channels_first")
    model = keras.Model(i, layers.TimeDistributed(inner, name="each")(i))
    with pytest.raises(ValueError, match="layer 'each' has data_format='channels_f"):
        kd.DeltaModel(model)


def test_the_advice_about_channels_first_works():
    def network(data_format):
        shape = (3, 8, 8) if data_format == "channels_first" else (8, 8, 3)
        x = i = keras.Input(shape)
        for _ in range(2):
            x = layers.Conv2D(4, 3, padding="same", data_format=data_format)(x)
        return keras.Model(i, x)

    first, last = network("channels_first"), network("channels_last")
    last.set_weights(first.get_weights())
    setting = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        target = attach_head(last, 3)
    finally:
        keras.config.set_image_data_format(setting)
    assert target.get_layer("head_pool").output.shape == (None, 4)


def test_shared_layers_can_be_tapped_at_each_call():
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    i = keras.Input((8, 8, 3))
    net = keras.Model(i, shared(shared(i)))
    assert choose(["shared", "shared#1"], attach_head(net, 2), net) == {
        "shared": "shared",
        "shared#1": "shared#1",
    }
    graph = Graph(net)
    x = np.ones((1, 8, 8, 3), "float32")
    maps = [graph.output_of("shared"), graph.output_of("shared#1")]
    once, twice = graph.run(maps, graph.inputs, [x])
    np.testing.assert_allclose(twice, shared(once), atol=1e-6)


def siamese(backbone):
    images = [keras.Input((16, 16, 3)) for _ in range(2)]
    vectors = [layers.GlobalAveragePooling2D()(backbone(i)) for i in images]
    x = layers.Dense(3, name="head")(layers.Concatenate()(vectors))
    return keras.Model(images, x)


def test_a_backbone_for_two_images(new_backbone):
    """Either the calls of both are compared, or a warning says that they are not."""
    source = new_backbone()
    target = siamese(new_backbone())
    for asked in ("auto", ["conv1", "conv2"]):
        with pytest.warns(UserWarning, match=r"\['conv\d#1'\] are not.*omit `source`"):
            model = kd.DeltaModel(target, source=source, taps=asked)
        assert model.taps[-1] == "conv2"
    taps = ["conv2", "conv2#1"]
    assert kd.DeltaModel(target, taps=taps).taps == taps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kd.DeltaModel(attach_head(source, 3), source=source)
        choose({"conv2": "conv2", "conv2#1": "conv2"}, target, source)
