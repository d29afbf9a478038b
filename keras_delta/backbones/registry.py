"""The backbones by name; a new one needs an entry here."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from keras_delta._errors import unknown_name
from keras_delta._network import auto_taps
from keras_delta.backbones import published_taps
from keras_delta.backbones.applications import inception_v3, resnet50, resnet101
from keras_delta.backbones.efficientnet_lite import (
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
)


class Backbone(NamedTuple):
    """Facts about a backbone that are known before it is built.

    Attributes:
        build: the builder, such as `kd.backbones.resnet50`.
        size: height and width in pixels that it was trained for.
        preprocessing: the built-in preprocessing of raw RGB values 0..255.
        find_taps: function from a network's graph to the names of its published
            taps, which `taps="auto"` uses; it returns None for another network.
    """

    build: Callable
    size: int
    preprocessing: str
    find_taps: Callable


_CAFFE = "BGR minus (103.939, 116.779, 123.68)", published_taps.resnet
_LITE = "(x - 127) / 128", published_taps.efficientnet_lite
_INCEPTION = "x / 127.5 - 1", published_taps.inception_v3

ALL = {
    "efficientnet_lite0": Backbone(efficientnet_lite0, 224, *_LITE),
    "efficientnet_lite1": Backbone(efficientnet_lite1, 240, *_LITE),
    "efficientnet_lite2": Backbone(efficientnet_lite2, 260, *_LITE),
    "resnet50": Backbone(resnet50, 224, *_CAFFE),
    "resnet101": Backbone(resnet101, 224, *_CAFFE),
    "inception_v3": Backbone(inception_v3, 299, *_INCEPTION),
}

for _backbone in ALL.values():
    auto_taps.register_published_taps(_backbone.find_taps)


def get(name: str) -> Callable[..., keras.Model]:
    """Return the builder of a backbone.

    Args:
        name: a key of `kd.backbones.ALL`.

    Raises:
        ValueError: if the name is unknown; the message lists the closest ones.
    """
    if name not in ALL:
        raise ValueError(unknown_name("backbone", name, ALL))
    return ALL[name].build
