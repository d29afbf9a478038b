"""From a fine-tuned model to a folder that others serve."""

import numbers
import os

import numpy as np

from keras_delta._errors import invalid, unknown_name, warn
from keras_delta._inputs import labels as labelling
from keras_delta._inputs import samples
from keras_delta.data.augment import PROTOCOLS
from keras_delta.data.image_set import ImageSet
from keras_delta.data.ten_crop import AVERAGES, height_width
from keras_delta.model import DeltaModel
from keras_delta.serving import (
    calibration,
    card,
    conversion,
    folders,
    litert,
    onnx,
    warmup,
)
from keras_delta.serving.endpoints import INPUTS, LABELS, Endpoints
from keras_delta.serving.network import Network

FORMATS = ("saved_model", "litert", "onnx")
CONVERTERS = {"litert": litert, "onnx": onnx}
FILES = {"saved_model": "saved_model.pb", "litert": litert.FILE, "onnx": onnx.FILE}


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
    card; and requests to warm up with. It appears at once and whole.

    Signatures (inputs -> outputs; B images):

    - `serving_default`: as `classify_bytes` or `classify_tensor`, see `input`;
    - `classify_bytes`: `image_bytes`, (B,) encoded JPEG, PNG, WebP or GIF ->
      `labels`, `scores`, `class_ids`, each (B, top_k), likeliest first;
    - `classify_tensor`: `images`, float32 (B, height, width, 3) of any size, 0 to 255
      -> the same; `classify_tensor_uint8` for uint8;
    - `classify_ten_crop`: what `serving_default` takes -> the same, from ten crops of
      each image, prepared by the "improved" protocol;
    - `features`: what `serving_default` takes -> the maps of each tap and `pooled`,
      the vector (B, D) before the classifier;
    - `prepare`: `image_bytes` -> `images`, what the network sees of them;
      `classify_prepared`: `images` of that size -> as `classify_bytes`;
    - `activation_map`: `images` of that size and `class_ids` (B,), negative for the
      likeliest class -> `maps` (B, h, w) from 0 to 1 (Grad-CAM), `labels`, `class_ids`.

    Images are decoded and resized as `ImageSet.batches` does for evaluation, bit for
    bit (rarities: `keras_delta.serving.decoding`); `scores` are probabilities, those
    of `model.predict` after the softmax.

    With `format="litert"` or `"onnx"` there is `model.tflite` or `model.onnx`,
    `labels.txt` and the card instead. Decoding and resizing stay outside:

    - input `images`, float32 (B, height, width, 3) of the network's own size, 0 to
      255 and prepared as `protocol` says; any B;
    - output `scores`, float32 (B, classes), the probabilities by class number, with
      the temperature of `calibrate` inside.

    Names of classes are in the file too: in ONNX's metadata as `class_names`, a JSON
    list; in the `.tflite` file as `labels.txt`, which `unzip` finds. The file is run
    before it is written: on `validation_data`, else on `representative_data`, else on
    noise. The card says under "conversion" by how much scores differ, how many answers
    stay the same and what accuracy it costs. `input`, `top_k`, `ten_crop_average` and
    `taps` are checked and not used, and there are no requests to warm up with. The
    network has to compute in float32.

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
        calibrate: whether to divide the logits by the temperature that fits
            `validation_data` best, so that scores are as high as the model is right.
        quantize: for `"litert"`, numbers of fewer bits inside, while `images` and
            `scores` stay float32. `"float16"`: weights, half the size; `"dynamic"`:
            weights of 8 bits, a quarter of the size; `"int8"`: weights and maps of 8
            bits, also fast on what computes in integers only. Scores of `"int8"` are
            multiples of 1/256. Default None.
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
        TypeError: for a subclassed model and names that are no strings.
        ValueError: for a model that was not built, is no classifier of images or has
            several outputs; names of the wrong number, twice, empty or of several
            lines; a version that is there; other arguments out of range; where another
            runtime has not the model's operations or gives other scores (by more than
            0.001 without `quantize`).
        OSError: where the folder cannot be written.
        ImportError: for `calibrate` without SciPy and formats without their packages.

    Warns:
        UserWarning: where `quantize` costs more than 2 points of accuracy; where
            `calibrate` finds every image of `validation_data` recognised.
    """
    _check_choices(input, format, protocol, ten_crop_average, top_k)
    if calibrate and validation_data is None:
        raise ValueError(
            "`calibrate=True` needs `validation_data`, images that the model was not "
            "trained on, with their labels."
        )
    _check_conversion(format, quantize, representative_data)
    card.check(model_card)
    if isinstance(model, (str, os.PathLike)):
        expected = "a model, e.g. of `keras.saving.load_model(path)`"
        raise TypeError(invalid("model", expected, model))
    is_delta = isinstance(model, DeltaModel)
    target = model.target if is_delta else model
    if taps is None:
        taps = list(model.taps) if is_delta else "auto"
    network = Network(target, taps, from_logits)
    if format != "saved_model":
        conversion.check_precision(target)
    names = checked_names(class_names, network.classes)
    endpoints = Endpoints(
        network,
        names,
        image_size=_image_size(network.image_size, image_size),
        protocol=protocol,
        input=input,
        top_k=top_k,
        average=ten_crop_average,
    )
    folder = folders.version_folder(path, version, overwrite)
    _check_formats(folder, format)
    if is_delta and not model.hosts.is_first:
        return folder
    settings, images = endpoints.settings, None
    if quantize == "int8":
        images = litert.representative_images(
            representative_data, settings["image_size"], settings["protocol"]
        )
    measured = None
    if validation_data is not None:
        logits, y = _predicted(endpoints, names, validation_data)
        if calibrate:
            endpoints.temperature = calibration.temperature(logits, y)
        measured = card.evaluation(logits, y, names, endpoints.temperature)
    served, content, found = {"format": format, **settings}, None, None
    if format != "saved_model":
        converter = CONVERTERS[format]
        content, found, after = _converted(
            converter,
            endpoints,
            target,
            names,
            name=folder.parent.name,
            quantize=quantize,
            images=images,
            validation_data=validation_data,
        )
        if after is not None:  # the card is about the file beside it
            measured = card.evaluation(*after, names, endpoints.temperature)
        served = {"format": format, "file": converter.FILE, "input": conversion.IMAGES}
        served |= {k: settings[k] for k in ("image_size", "protocol")}
    facts = card.facts(
        model,
        given=model_card,
        name=folder.parent.name,
        version=int(folder.name),
        class_names=names,
        served=served,
        measured=measured,
        converted=found,
    )
    with folders.replacing(folder) as temporary:
        if content is None:
            endpoints.write(temporary)
            warmup.write(
                temporary,
                folder.parent.name,
                endpoints.functions(),
                settings["image_size"],
            )
        else:
            (temporary / converter.FILE).write_bytes(content)
            text = "".join(f"{name}\n" for name in names)
            (temporary / LABELS).write_text(text, "utf-8")
        card.write(temporary, facts)
    return folder


def _check_choices(input, format, protocol, ten_crop_average, top_k):
    for argument, value, known in (
        ("input", input, INPUTS),
        ("format", format, FORMATS),
        ("protocol", protocol, PROTOCOLS),
        ("ten_crop_average", ten_crop_average, AVERAGES),
    ):
        if value not in known:
            raise ValueError(unknown_name(argument, value, known))
    if not isinstance(top_k, numbers.Integral) or isinstance(top_k, bool) or top_k < 1:
        raise ValueError(invalid("top_k", "a positive integer", top_k))


def _check_conversion(format, quantize, representative_data):
    if format == "litert":
        litert.check(quantize, representative_data)
        return
    given = {"quantize": quantize, "representative_data": representative_data}
    for argument, value in given.items():
        if value is not None:
            expected = f'None with `format="{format}"`; it is for "litert"'
            raise ValueError(invalid(argument, expected, value))
    if format == "onnx":
        onnx.check()


def _check_formats(folder, format):
    """Refuse versions of several formats in one folder: servers take the newest."""
    if not folder.parent.exists():
        return
    wanted = FILES[format]
    for number, other in folders.versions_in(folder.parent).items():
        there = [name for name in FILES.values() if (other / name).exists()]
        if other != folder and there and wanted not in there:
            raise ValueError(
                f"Version {number} in '{folder.parent}' is a `{there[0]}`, which a "
                f"`{wanted}` cannot follow. Export to a folder of its own, e.g. "
                f"'{folder.parent}_{format}'."
            )


def checked_names(names, classes):
    """The names of the classes as a list, if they can be told apart in a text file."""
    if isinstance(names, (str, bytes, dict)) or not hasattr(names, "__iter__"):
        raise TypeError(invalid("class_names", "a list of strings", names))
    names = list(names)
    for name in names:
        if not isinstance(name, str):
            remedy = "For numbers: `[str(i) for i in range(classes)]`."
            raise TypeError(invalid("class_names", "strings only", name, remedy))
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(invalid("class_names", "names that UTF-8 can write", name))
    if len(names) != classes:
        expected = f"{classes} names, one for each output of the model"
        raise ValueError(invalid("class_names", f"{expected}, not {len(names)}", names))
    for i, name in enumerate(names):
        if not name.strip():
            raise ValueError(
                invalid("class_names", f"no empty name (class {i} has one)", name)
            )
        if name.splitlines() != [name]:
            expected = "names of one line, for `labels.txt` has one name a line"
            raise ValueError(invalid("class_names", expected, name))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        expected = "names that differ, since an answer is a name"
        raise ValueError(invalid("class_names", expected, twice))
    return names


def _image_size(own, given):
    given = None if given is None else height_width(given, "image_size")
    if given is None and None in own:
        raise ValueError(
            f"The model takes images of any size, {own}. Pass `image_size`, the size "
            "that it was trained with."
        )
    given = given or own
    if any(a not in (None, b) for a, b in zip(own, given, strict=True)):
        raise ValueError(invalid("image_size", f"{own}, as the model's input", given))
    return given


def _converted(
    converter,
    endpoints,
    target,
    class_names,
    *,
    name,
    quantize,
    images,
    validation_data,
):
    """The file of another runtime, and how it does.

    Returns:
        (content, found, after): bytes; what the card says of the conversion; logits
        and labels of `validation_data` after it, or None.
    """
    scores = conversion.scores(endpoints)
    content = converter.convert(
        scores, target, class_names, name=name, quantize=quantize, images=images
    )
    on = "noise"
    batches = conversion.random_images(endpoints.settings["image_size"])
    if validation_data is not None:
        on = "validation_data"
        batches = _held_out(endpoints, class_names, validation_data)
    elif images is not None:
        on, batches = "representative_data", [(images, None)]
    found, after, y = conversion.compare(scores, converter.runner(content), batches)
    conversion.judge(found, converter.RUNTIME, quantize)
    found = {"quantize": quantize, "bytes": len(content), "images": on, **found}
    if y is None:
        return content, found, None
    return content, found, (conversion.as_logits(after, endpoints.temperature), y)


def _predicted(endpoints, class_names, data):
    """Logits and integer labels of held-out images."""
    logits, labels = [], []
    for x, y in _held_out(endpoints, class_names, data):
        logits.append(endpoints.logits(x).numpy())
        labels.append(y)
    if not labels:
        raise ValueError("`validation_data` is empty: not one image came out of it.")
    return np.concatenate(logits), np.concatenate(labels)


def _held_out(endpoints, class_names, data):
    """Batches of held-out images and their integer labels."""
    size = endpoints.settings["image_size"]
    if isinstance(data, dict) and all(isinstance(v, ImageSet) for v in data.values()):
        remedy = "Pass one of them, e.g. `sets['test']`."
        raise ValueError(invalid("validation_data", "one ImageSet", data, remedy))
    if isinstance(data, ImageSet):
        if list(data.class_names) != class_names:
            raise ValueError(
                "`class_names` and the names of the classes in `validation_data` "
                f"differ: {class_names} and {list(data.class_names)}. The order is "
                "that of the model's outputs, that is of the training data's "
                "`class_names`."
            )
        data = data.batches(size, protocol=endpoints.settings["protocol"])
    first = True
    for x, y in samples.batches(data):
        if not hasattr(x, "shape") or x.shape[1:] != (*size, 3):
            expected = f"images of the shape {(*size, 3)}, as the model takes them"
            shape = x.shape[1:] if hasattr(x, "shape") else x
            raise ValueError(invalid("validation_data", expected, shape))
        classes = len(class_names)
        if y.ndim == 2 and y.shape[-1] == classes > 1:
            y = y.argmax(axis=-1)
        labelling.check(y, classes, "sparse_categorical_crossentropy")
        if first and x.max() <= 1:
            warn(
                "The images of `validation_data` have no value above 1. Served images "
                "are 0 to 255: scale inside of the model, not before."
            )
        first = False
        yield x, y.ravel().astype("int64")
