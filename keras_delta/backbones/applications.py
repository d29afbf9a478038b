"""ResNet-50, ResNet-101 and Inception-v3 from keras.applications for raw images."""

import os
import re
from collections.abc import Callable
from typing import TypeVar

import keras

from keras_delta._types import Activation, PathLike
from keras_delta.backbones.assemble import assemble, check_shape
from keras_delta.backbones.load import check_weights, load_keras_file
from keras_delta.backbones.preprocessing import preprocess

_LEGACY = (".h5", ".hdf5")
# Names that Keras numbers itself, as those of most layers in Inception-v3.
_NUMBERED = re.compile(
    r"(activation|average_pooling2d|batch_normalization|concatenate|conv2d"
    r"|max_pooling2d)(?:_(\d+))?"
)

_DOC = """

    The network of `keras.applications.{source}` as a flat Functional model with
    its layer names and built-in preprocessing ({preprocessing}). Layers that Keras
    numbers itself, such as `activation_2`, always have the numbers of the first
    network in a process, however many were built before.

    Args:
        weights: `"imagenet"` (downloaded by keras.applications and stored in
            `~/.keras/models`), None for random weights, or the path of a file:
            `.keras` or `.weights.h5` of this network, or an `.h5` file of
            keras.applications with or without the classifier, matching
            `include_top`.
        input_shape: (height, width, 3) in pixels, at least {smallest} each; height
            and width may be None if there is no classifier.
        include_top: whether to end in global average pooling (`avg_pool`) and the
            1000 ImageNet classes (`predictions`).
        classifier_activation: activation of the classifier: `"softmax"` for
            probabilities, None for logits. Ignored without a classifier.
        name: name of the model; default: `"{name}"`.

    Returns:
        `keras.Model` with the input `"image"`, raw RGB values 0..255 in any dtype,
        and as output the features of the last layer, 2048 channels, or
        `(batch, 1000)` probabilities.

    Raises:
        ConnectionError: if the ImageNet weights cannot be downloaded; the message
            names the file, which an offline machine can use as `weights=path`.
        FileNotFoundError: if there is no file at the path.
        ValueError: if the shape is invalid or the weights do not fit; if possible,
            the message names the first layer that does not.

    The weight files are Keras's; keras.applications states no licence for them
    other than Keras's own, Apache-2.0.

    Source: {paper}.
    """
_RESNET = "He et al., https://arxiv.org/abs/1512.03385"
_INCEPTION = "Szegedy et al., https://arxiv.org/abs/1512.00567"


Builder = TypeVar("Builder", bound=Callable[..., keras.Model])


def _documented(
    source: str, preprocessing: str, smallest: int, paper: str
) -> Callable[[Builder], Builder]:
    def document(builder: Builder) -> Builder:
        if builder.__doc__:  # not so under `python -OO`
            builder.__doc__ += _DOC.format(
                name=builder.__name__,
                source=source,
                preprocessing=preprocessing,
                smallest=smallest,
                paper=paper,
            )
        return builder

    return document


@_documented("ResNet50", "BGR minus the ImageNet mean", 32, _RESNET)
def resnet50(
    weights: PathLike | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    include_top: bool = False,
    classifier_activation: Activation = "softmax",
    name: str | None = None,
) -> keras.Model:
    """ResNet-50 for raw RGB images."""
    options = input_shape, include_top, classifier_activation
    build = keras.applications.ResNet50
    return _build(build, "caffe", weights, options, name or "resnet50")


@_documented("ResNet101", "BGR minus the ImageNet mean", 32, _RESNET)
def resnet101(
    weights: PathLike | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    include_top: bool = False,
    classifier_activation: Activation = "softmax",
    name: str | None = None,
) -> keras.Model:
    """ResNet-101 for raw RGB images."""
    options = input_shape, include_top, classifier_activation
    build = keras.applications.ResNet101
    return _build(build, "caffe", weights, options, name or "resnet101")


@_documented("InceptionV3", "scaled to -1..1", 75, _INCEPTION)
def inception_v3(
    weights: PathLike | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (299, 299, 3),
    include_top: bool = False,
    classifier_activation: Activation = "softmax",
    name: str | None = None,
) -> keras.Model:
    """Inception-v3 for raw RGB images."""
    options = input_shape, include_top, classifier_activation
    build = keras.applications.InceptionV3
    return _build(build, "tf", weights, options, name or "inception_v3")


def _build(build, mode, weights, options, name):
    check_weights(weights, (".keras", ".weights.h5", *_LEGACY))
    input_shape, include_top, activation = options
    input_shape = check_shape(input_shape)
    try:
        core = build(
            weights=weights if weights == "imagenet" else None,
            input_shape=input_shape,
            include_top=include_top,
            classifier_activation=activation,
        )
    except Exception as e:  # Keras raises a bare Exception for a failed download
        if "URL fetch failure" not in str(e):
            raise
        raise ConnectionError(
            f"The ImageNet weights of {name} could not be downloaded. {e}. On an "
            "offline machine, download that file elsewhere and pass its "
            "path: `weights=path`."
        ) from e
    path = None if weights in (None, "imagenet") else os.fspath(weights)
    # In a legacy file, layers are in the order of keras.applications' own model.
    legacy = path and path.endswith(_LEGACY) and not path.endswith(".weights.h5")
    if legacy:
        load_keras_file(core, path)
    names = _first_names(core)
    model = assemble(
        core,
        lambda images: preprocess(images, mode),
        input_shape,
        name,
        rebuild=lambda config: {**config, "name": names[config["name"]]},
    )
    if path and not legacy:
        load_keras_file(model, path)
    return model


def _first_names(model):
    """Dict name -> the layer's name in the first model of a process."""
    numbered = {}
    for layer in model.layers:
        if match := _NUMBERED.fullmatch(layer.name):
            kind, number = match.group(1), int(match.group(2) or 0)
            numbered.setdefault(kind, []).append((number, layer.name))
    names = {layer.name: layer.name for layer in model.layers}
    for kind, layers in numbered.items():
        # Keras counts up as it builds, so the order of numbers is that of calls.
        for i, (_, name) in enumerate(sorted(layers)):
            names[name] = f"{kind}_{i}" if i else kind
    return names
