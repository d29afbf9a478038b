"""`export_for_serving`: writes a fine-tuned model to a folder for serving."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from keras_delta import _arguments
from keras_delta._answers import calibration, figures, tasks
from keras_delta._answers.network import Network
from keras_delta._errors import invalid
from keras_delta._types import Data, ImageSize, PathLike, ProtocolName, Task, Verbose
from keras_delta.model import DeltaModel
from keras_delta.serving import (
    card,
    conversion,
    folders,
    held_out,
    litert,
    warmup,
)
from keras_delta.serving import class_names as naming
from keras_delta.serving.endpoints import Endpoints
from keras_delta.serving.options import Options, check_data, check_formats


def export_for_serving(
    model: keras.Model,
    path: PathLike,
    class_names: Sequence[str],
    *,
    input: Literal["image_bytes", "tensor"] = "image_bytes",
    format: Literal["saved_model", "litert", "onnx"] = "saved_model",
    top_k: int = 5,
    image_size: ImageSize | None = None,
    protocol: ProtocolName = "default",
    ten_crop_average: Literal["logits", "probabilities"] = "logits",
    taps: Sequence[str] | None = None,
    task: Task | None = None,
    thresholds: float | Sequence[float] | None = None,
    from_logits: bool | None = None,
    validation_data: Data = None,
    calibrate: bool = False,
    quantize: Literal["float16", "dynamic", "int8"] | None = None,
    representative_data: Data = None,
    model_card: Mapping[str, Any] | None = None,
    version: int | None = None,
    overwrite: bool = False,
    verbose: Verbose = "auto",
) -> Path:
    """Export a model that takes images and answers with labels or numbers.

    The folder contains a SavedModel of only the target (no source, regularizer or
    optimizer), which TensorFlow serves without Keras and without this package; a model
    card; and warm-up requests. It appears atomically. Its signatures are
    `serving_default`, `classify_bytes`, `classify_tensor`, `classify_tensor_uint8`,
    `classify_ten_crop`, `features`, `prepare`, `classify_prepared` and
    `activation_map`; docs/serving.md lists their inputs and outputs. Images are decoded
    and resized as by `ImageSet.batches` for evaluation, bit for bit (rare exceptions:
    `keras_delta.serving.decoding`); `scores` are those of `model.predict` after the
    softmax. docs/serving.md describes the answers for several labels, yes or no, and
    numbers, and the input of networks for grey images.

    With `format="litert"` or `"onnx"`, the folder contains `model.tflite` or
    `model.onnx` instead, with the input `images`, float32 (B, height, width, 3) of the
    network's input size, 0 to 255 and prepared according to `protocol`, and the output
    `scores`, float32 (B, classes). The file is first run to check it, on
    `validation_data`, else `representative_data`, else noise; the card reports what
    changed. `input`, `top_k`, `ten_crop_average` and `taps` are not used.

    Args:
        model: `DeltaModel`, whose target is exported, or a Functional or Sequential
            model of images with one output `(B, units)`.
        path: folder of the model's versions, `NAME`; `NAME/1` is written. It may end
            in the version, `NAME/2`. NAME is the model's name.
        class_names: names of the classes by class number, one line each; the same for
            labels or numbers; for one unit for yes or no, the name of no, then of yes.
        input: input of `serving_default`, `"image_bytes"` (default) or `"tensor"`.
        format: `"saved_model"` (default), `"litert"` or `"onnx"`.
        top_k: classes in an answer, default 5, or all if there are fewer. For several
            labels and for numbers, all are returned.
        image_size: size to resize images to, a side or (height, width); only needed if
            the model takes images of any size.
        protocol: preparation of the images for evaluation, `"default"` or `"improved"`,
            see `ImageSet.batches`.
        ten_crop_average: `"logits"` (default) or `"probabilities"`.
        taps: layers whose maps `features` returns; default: those of the `DeltaModel`,
            else as for `taps="auto"` of `DeltaModel`, or the last maps if that finds
            none.
        task: `"multiclass"`, `"multilabel"`, `"binary"` or `"regression"`; default:
            determined by the loss of the compiled model, else by its last layer.
        thresholds: for several labels: the score from which a label is on, one number
            or one per label. Default: those with the highest F1 on `validation_data`,
            or 0.5.
        from_logits: whether the model returns logits; default: by its last layer.
        validation_data: images not used in training, with labels, as `evaluate` takes
            them, or an `ImageSet`; the card then reports the model's performance. They
            are read once.
        calibrate: whether to divide the logits by the temperature that fits
            `validation_data` best, so that scores match the frequency of correct
            answers.
        quantize: for `"litert"`, fewer bits per number. `"float16"`: weights, half the
            size; `"dynamic"`: 8-bit weights, a quarter of the size; `"int8"`: 8-bit
            weights and maps, also fast on integer-only hardware; its scores are
            multiples of 1/256. Default None.
        representative_data: for `"int8"`, 32 or more typical images, as `fit` takes
            them (labels are ignored), or an `ImageSet`; at most 300 of them are used.
        model_card: dict of facts that only you know: `description`, `author`,
            `license`, `data` (the training data), `intended_use`, and `limits`, a list.
        version: positive integer; default: that of `path`, else 1.
        overwrite: whether to replace an existing version, atomically.
        verbose: 0 to print nothing.

    Returns:
        `Path` of the version's folder.

    Raises:
        TypeError, ValueError: if the model is subclassed, is not built, has several
            inputs or outputs, or returns maps; if the task contradicts the loss; if
            the names are not one single-line string per class; if the version exists;
            if another argument is out of range; if another runtime lacks the model's
            operations or returns other scores (by more than 0.001 without `quantize`).
        OSError: if the folder is not writable.
        ImportError: if SciPy is missing for `calibrate`, or a package for the format.

    Warns:
        UserWarning: if `quantize` costs more than 2 points of accuracy, or if all of
            `validation_data` is classified correctly with `calibrate`.
    """
    options = Options(
        *(input, format, top_k, image_size, protocol, ten_crop_average),
        *(calibrate, quantize),
    )
    check_data(options, validation_data, representative_data)
    card.check(model_card)
    endpoints = _plan(model, class_names, options, taps, task, from_logits)
    _check_task(endpoints, options, thresholds)
    folder = folders.version_folder(path, version, overwrite)
    check_formats(folder, options)
    if isinstance(model, DeltaModel) and not model.hosts.is_first:
        return folder
    data = validation_data, representative_data
    measured = _measure(endpoints, folder.parent.name, *data, thresholds)
    facts = card.facts(model, model_card, folder, endpoints, measured)
    _write(endpoints, folder, measured, facts)
    if verbose != 0:
        print(f"Exported to {folder}", flush=True)
        if format == "saved_model":
            print(f"Serve it:   keras_delta serve {folder.parent}", flush=True)
    return folder


class Measured(NamedTuple):
    """Figures of `Task.evaluate`, or None; `conversion.Converted`, or None."""

    evaluation: dict | None
    converted: conversion.Converted | None


def _check_task(endpoints, options, thresholds):
    """Reject options that the task does not use."""
    name = endpoints.task.name
    if options.calibrate and name == "regression":
        raise ValueError(
            "`calibrate=True` is for scores, but this model returns numbers. Omit it."
        )
    if thresholds is None:
        return
    if name != "multilabel":
        expected = f"None for '{name}'; only several labels have them"
        raise ValueError(invalid("thresholds", expected, thresholds))
    count = len(endpoints.class_names)
    is_list = isinstance(thresholds, (list, tuple, np.ndarray))
    given = list(thresholds) if is_list else [thresholds] * count
    if len(given) != count:
        expected = f"a number from 0 to 1, or a list of {count}, one for each label"
        raise ValueError(invalid("thresholds", expected, thresholds))
    given = [_arguments.number("thresholds", t, most=1) for t in given]
    endpoints.thresholds, endpoints.chosen_by = given, "given"


def _plan(model, names, options, taps, task, from_logits):
    """The `Endpoints` to serve; nothing is computed or written yet."""
    if isinstance(model, (str, os.PathLike)):
        expected = "a model, e.g. from `keras.saving.load_model(path)`"
        raise TypeError(invalid("model", expected, model))
    target = model.target if isinstance(model, DeltaModel) else model
    if taps is None:
        taps = list(model.taps) if isinstance(model, DeltaModel) else "auto"
    choose = functools.partial(tasks.choose, model, given=task)
    network = Network(target, taps, from_logits, choose)
    if options.converter is not None:
        conversion.check_precision(network.graph)
    names = naming.check(names, network.classes)
    return Endpoints(network, names, options.fitted(network))


def _measure(endpoints, name, validation_data, representative_data, thresholds):
    """Run the model before and after its conversion, and calibrate it."""
    options, batches, images = endpoints.options, None, None
    converts = options.converter is not None
    if options.quantize == "int8":
        channels = endpoints.image_shape[-1]
        images = litert.representative_images(representative_data, options, channels)
    if validation_data is not None:
        names, network = endpoints.class_names, endpoints.network
        batches = held_out.batches(validation_data, names, options, network)
    by_f1 = endpoints.task.name == "multilabel" and thresholds is None
    looks = options.calibrate or (by_f1 and batches is not None)
    if looks and converts:
        batches = list(batches)  # used twice, but read once
    logits, labels, converted = None, None, None
    if looks or (batches is not None and not converts):
        outputs = [(endpoints.logits(x).numpy(), y) for x, y in batches]
        logits, labels = map(np.concatenate, zip(*outputs, strict=True))
        held_out.check_outputs(logits)
    if options.calibrate:
        endpoints.temperature = calibration.temperature(logits, labels)
    if looks and by_f1:
        scores = endpoints.task.scores(logits / endpoints.temperature).numpy()
        endpoints.thresholds = figures.best_thresholds(scores, labels)
        endpoints.chosen_by = "validation_data"
    if converts:
        converted = conversion.convert(endpoints, name, images, batches)
        # The card describes the converted file.
        logits, labels = converted.logits, converted.labels
    if logits is None:
        return Measured(None, converted)
    of = endpoints.class_names, endpoints.temperature, endpoints.thresholds
    return Measured(endpoints.task.evaluate(logits, labels, *of), converted)


def _write(endpoints, folder, measured, facts):
    """Write the version's folder, which appears atomically."""
    with folders.replacing(folder) as temporary:
        if measured.converted is None:
            name, shape = folder.parent.name, endpoints.image_shape
            endpoints.write(temporary)
            warmup.write(temporary, name, endpoints.functions(), shape)
        else:
            file = temporary / endpoints.options.file
            file.write_bytes(measured.converted.content)
            text = naming.text(endpoints.class_names)
            (temporary / naming.FILE).write_text(text, "utf-8")
        card.write(temporary, facts)
