"""The backbones by name, for command lines and benchmarks."""

from collections.abc import Callable
from typing import NamedTuple

from keras_delta._errors import unknown_name
from keras_delta.backbones.applications import inception_v3, resnet50, resnet101
from keras_delta.backbones.efficientnet_lite import (
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
)


class Backbone(NamedTuple):
    """What there is to know about a backbone before building it.

    Attributes:
        build: the builder, such as `kd.backbones.resnet50`.
        size: height and width in pixels that it was trained for.
        preprocessing: what it does to raw RGB values 0..255 inside.
    """

    build: Callable
    size: int
    preprocessing: str


_CAFFE = "BGR minus (103.939, 116.779, 123.68)"

ALL = {
    "efficientnet_lite0": Backbone(efficientnet_lite0, 224, "(x - 127) / 128"),
    "efficientnet_lite1": Backbone(efficientnet_lite1, 240, "(x - 127) / 128"),
    "efficientnet_lite2": Backbone(efficientnet_lite2, 260, "(x - 127) / 128"),
    "resnet50": Backbone(resnet50, 224, _CAFFE),
    "resnet101": Backbone(resnet101, 224, _CAFFE),
    "inception_v3": Backbone(inception_v3, 299, "x / 127.5 - 1"),
}


def get(name):
    """The builder of a backbone.

    Args:
        name: a key of `kd.backbones.ALL`.

    Returns:
        The function that builds it.

    Raises:
        ValueError: for another name, with the closest ones.
    """
    if name not in ALL:
        raise ValueError(unknown_name("backbone", name, ALL))
    return ALL[name].build
