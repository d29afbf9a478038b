"""Each backbone brings its published taps, and `taps="auto"` finds them."""

import keras
import pytest

from keras_delta import backbones
from keras_delta._network import auto_taps
from keras_delta._network.graph import Graph

LARGE = ("efficientnet_lite2", "resnet101")
RESNET = {
    "conv2_block3_3_conv": (56, 56, 256),
    "conv3_block4_3_conv": (28, 28, 512),
}
LAST = {"conv5_block3_3_conv": (7, 7, 2048)}


def lite(sides, blocks, channels):
    names = [f"block{block}_project_conv" for block in blocks.split()]
    shapes = zip(sides, sides, channels, strict=True)
    return dict(zip(names, shapes, strict=True))


TAPS = {
    "efficientnet_lite0": lite((56, 28, 14, 7), "2b 3b 5c 7a", (24, 40, 112, 320)),
    "efficientnet_lite1": lite((60, 30, 15, 8), "2c 3c 5d 7a", (24, 40, 112, 320)),
    "efficientnet_lite2": lite((65, 33, 17, 9), "2c 3c 5d 7a", (24, 48, 120, 352)),
    "resnet50": {**RESNET, "conv4_block6_3_conv": (14, 14, 1024), **LAST},
    "resnet101": {**RESNET, "conv4_block23_3_conv": (14, 14, 1024), **LAST},
    "inception_v3": {
        "activation_2": (147, 147, 64),
        "activation_4": (71, 71, 192),
        "mixed2": (35, 35, 288),
        "mixed7": (17, 17, 768),
    },
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
        for name in backbones.ALL
    ],
)
def test_each_backbone_has_its_taps(name, nets):
    keras.layers.Activation("relu")  # not the first one of the process
    graph = Graph(nets(name))
    assert auto_taps.find(graph) == list(TAPS[name])
    shapes = {tap: graph.output_of(tap).shape[1:] for tap in TAPS[name]}
    assert shapes == TAPS[name]
    finders = {backbone.find_taps for backbone in backbones.ALL.values()}
    for find in finders:
        expected = list(TAPS[name]) if find is backbones.ALL[name].find_taps else None
        assert find(graph) == expected


def test_inside_of_another_model(nets):
    net = nets("resnet50")
    image = keras.Input((224, 224, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(net(image))
    graph = Graph(keras.Model(image, pooled))
    assert auto_taps.find(graph) == list(TAPS["resnet50"])


def test_a_small_network_is_not_taken_for_one():
    x = image = keras.Input((32, 32, 3))
    for name in ("stem_conv", "mixed2", "mixed7", "conv2_block1_3_conv", "top_conv"):
        x = keras.layers.Conv2D(3, 3, 2, padding="same", name=name)(x)
    graph = Graph(keras.Model(image, x))
    for backbone in backbones.ALL.values():
        assert backbone.find_taps(graph) is None
    assert len(auto_taps.find(graph)) == 5
