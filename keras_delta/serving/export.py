"""From a fine-tuned model to a folder that others serve."""

import os
from typing import NamedTuple

import numpy as np

from keras_delta._errors import invalid
from keras_delta.model import DeltaModel
from keras_delta.serving import (
    calibration,
    card,
    conversion,
    folders,
    held_out,
    litert,
    warmup,
)
from keras_delta.serving import class_names as naming
from keras_delta.serving.endpoints import Endpoints
from keras_delta.serving.network import Network
from keras_delta.serving.options import Options, check_data, check_formats


def export_for_serving(
    model,
    path,
    class_names,
    *,
    input="image_bytes",
    format="saved_model",
    top_k=5,
    image_size=None,
    protocol="default",
    ten_crop_average="logits",
    taps=None,
    from_logits=None,
    validation_data=None,
    calibrate=False,
    quantize=None,
    representative_data=None,
    model_card=None,
    version=None,
    overwrite=False,
):
    """Write a classifier so that it takes images and answers with labels.

    The folder holds a SavedModel of the target alone (no source, regularizer or
    optimizer), which TensorFlow serves without Keras and without this package; a model
    card; and requests to warm up with. It appears at once and whole. Its signatures
    are `serving_default`, `classify_bytes`, `classify_tensor`, `classify_tensor_uint8`,
    `classify_ten_crop`, `features`, `prepare`, `classify_prepared` and
    `activation_map`; docs/serving.md has their inputs and outputs. Images are decoded
    and resized as `ImageSet.batches` does for evaluation, bit for bit (rarities:
    `keras_delta.serving.decoding`); `scores` are those of `model.predict` after the
    softmax.

    With `format="litert"` or `"onnx"` there is `model.tflite` or `model.onnx` instead,
    with the input `images`, float32 (B, height, width, 3) of the network's own size, 0
    to 255 and prepared as `protocol` says, and the output `scores`, float32 (B,
    classes). The file is run before it is kept: on `validation_data`, else on
    `representative_data`, else on noise; the card says what the conversion changed.
    `input`, `top_k`, `ten_crop_average` and `taps` are not used.

    Args:
        model: `DeltaModel`, of which the target is exported, or a Functional or
            Sequential classifier of images.
        path: folder of the model's versions, `NAME`; `NAME/1` is written. It may end
            in the version, `NAME/2`. NAME is the model's name.
        class_names: names of the classes by class number, one line each.
        input: what `serving_default` takes, `"image_bytes"` (default) or `"tensor"`.
        format: `"saved_model"` (default), `"litert"` or `"onnx"`.
        top_k: classes in an answer, default 5; all, where there are fewer.
        image_size: what images are resized to, a side or (height, width); needed only
            where the model takes images of any size.
        protocol: how images were prepared for evaluation, `"default"` or `"improved"`,
            see `ImageSet.batches`.
        ten_crop_average: `"logits"` (default) or `"probabilities"`.
        taps: layers whose maps `features` gives; default: those of the `DeltaModel`,
            else as `taps="auto"` of `DeltaModel`, or the last maps where that finds
            none.
        from_logits: whether the model gives logits; default: as its last layer says.
        validation_data: images that were not trained on, with labels, as `evaluate`
            takes them, or an `ImageSet`; the card then says how well the model does.
            They are read once.
        calibrate: whether to divide the logits by the temperature that fits
            `validation_data` best, so that scores are as high as the model is right.
        quantize: for `"litert"`, numbers of fewer bits inside. `"float16"`: weights,
            half the size; `"dynamic"`: weights of 8 bits, a quarter of the size;
            `"int8"`: weights and maps of 8 bits, also fast on what computes in
            integers only; its scores are multiples of 1/256. Default None.
        representative_data: for `"int8"`, 32 images or more like those to be
            recognised, as `fit` takes them (labels are ignored) or an `ImageSet`; 300
            of them at most are used.
        model_card: dict of what only you know: `description`, `author`, `license`,
            `data` (what it was trained on), `intended_use`, and `limits`, a list.
        version: positive integer; default: that of `path`, else 1.
        overwrite: whether to replace a version that is there, in one step.

    Returns:
        `Path` of the version's folder.

    Raises:
        TypeError, ValueError: for a model that is subclassed, not built, no classifier
            of images or of several outputs; names that are not one string of one line
            for each class; a version that is there; other arguments out of range;
            where another runtime has not the model's operations or gives other scores
            (by more than 0.001 without `quantize`).
        OSError: where the folder cannot be written.
        ImportError: for `calibrate` without SciPy and formats without their packages.

    Warns:
        UserWarning: where `quantize` costs more than 2 points of accuracy; where
            `calibrate` finds every image of `validation_data` recognised.
    """
    options = Options(
        *(input, format, top_k, image_size, protocol, ten_crop_average),
        *(calibrate, quantize),
    )
    check_data(options, validation_data, representative_data)
    card.check(model_card)
    endpoints = _plan(model, class_names, options, taps, from_logits)
    folder = folders.version_folder(path, version, overwrite)
    check_formats(folder, options)
    if isinstance(model, DeltaModel) and not model.hosts.is_first:
        return folder
    measured = _measure(
        endpoints, folder.parent.name, validation_data, representative_data
    )
    facts = card.facts(model, model_card, folder, endpoints, measured)
    _write(endpoints, folder, measured, facts)
    return folder


class Measured(NamedTuple):
    """Result of `card.evaluation`, or None; `conversion.Converted`, or None."""

    evaluation: dict | None
    converted: conversion.Converted | None


def _plan(model, names, options, taps, from_logits):
    """What is to be served, as `Endpoints`; nothing is computed or written yet."""
    if isinstance(model, (str, os.PathLike)):
        expected = "a model, e.g. of `keras.saving.load_model(path)`"
        raise TypeError(invalid("model", expected, model))
    target = model.target if isinstance(model, DeltaModel) else model
    if taps is None:
        taps = list(model.taps) if isinstance(model, DeltaModel) else "auto"
    network = Network(target, taps, from_logits)
    if options.converter is not None:
        conversion.check_precision(network.graph)
    names = naming.check(names, network.classes)
    return Endpoints(network, names, options.fitted(network))


def _measure(endpoints, name, validation_data, representative_data):
    """Run the model, before and after its conversion, and calibrate it."""
    options, batches, images = endpoints.options, None, None
    converts = options.converter is not None
    if options.quantize == "int8":
        images = litert.representative_images(representative_data, options)
    if validation_data is not None:
        batches = held_out.batches(validation_data, endpoints.class_names, options)
    if options.calibrate and converts:
        batches = list(batches)  # looked at twice, and read once
    logits, labels, converted = None, None, None
    if options.calibrate or (batches is not None and not converts):
        outputs = [(endpoints.logits(x).numpy(), y) for x, y in batches]
        logits, labels = map(np.concatenate, zip(*outputs, strict=True))
    if options.calibrate:
        endpoints.temperature = calibration.temperature(logits, labels)
    if converts:
        converted = conversion.convert(endpoints, name, images, batches)
        # The card is about the file beside it.
        logits, labels = converted.logits, converted.labels
    if logits is None:
        return Measured(None, converted)
    of = endpoints.class_names, endpoints.temperature
    return Measured(card.evaluation(logits, labels, *of), converted)


def _write(endpoints, folder, measured, facts):
    """The version's folder, which appears at once and whole."""
    with folders.replacing(folder) as temporary:
        if measured.converted is None:
            name, size = folder.parent.name, endpoints.options.image_size
            endpoints.write(temporary)
            warmup.write(temporary, name, endpoints.functions(), size)
        else:
            file = temporary / endpoints.options.file
            file.write_bytes(measured.converted.content)
            text = naming.text(endpoints.class_names)
            (temporary / naming.FILE).write_text(text, "utf-8")
        card.write(temporary, facts)
