"""From a fine-tuned model to a folder that others serve."""

import numbers

import numpy as np

from keras_delta import labels as labelling
from keras_delta import multi_worker, samples
from keras_delta.data.augment import PROTOCOLS
from keras_delta.data.image_set import ImageSet
from keras_delta.data.ten_crop import AVERAGES, height_width
from keras_delta.errors import invalid, unknown_name
from keras_delta.model import DeltaModel
from keras_delta.serving import calibration, card, folders, warmup
from keras_delta.serving.endpoints import INPUTS, Endpoints
from keras_delta.serving.network import Network

FORMATS = ("saved_model",)


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
    bit; `scores` are probabilities, those of `model.predict` after the softmax.

    Args:
        model: `DeltaModel`, of which the target is exported, or a Functional or
            Sequential classifier of images.
        path: folder of the model's versions, `NAME`; `NAME/1` is written. It may end
            in the version, `NAME/2`. NAME is the model's name.
        class_names: names of the classes by class number, one line each.
        input: what `serving_default` takes, `"image_bytes"` (default) or `"tensor"`.
        format: `"saved_model"`.
        top_k: classes in an answer, default 5; all, where there are fewer.
        image_size: what images are resized to, a side or (height, width); needed only
            where the model takes images of any size.
        protocol: how images were prepared for evaluation, `"default"` or `"improved"`,
            see `ImageSet.batches`.
        ten_crop_average: `"logits"` (default) or `"probabilities"`.
        taps: layers whose maps `features` gives; default: those of the `DeltaModel`,
            else as `taps="auto"` of `DeltaModel`.
        from_logits: whether the model gives logits; default: as its last layer says.
        validation_data: images that were not trained on, with labels, as `evaluate`
            takes them, or an `ImageSet`; the card then says how well the model does.
        calibrate: whether to divide the logits by the temperature that fits
            `validation_data` best, so that scores are as high as the model is right.
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
            lines; a version that is there; other arguments out of range.
        OSError: where the folder cannot be written.
        ImportError: for `calibrate` without SciPy.
    """
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
    if calibrate and validation_data is None:
        raise ValueError(
            "`calibrate=True` needs `validation_data`, images that the model was not "
            "trained on, with their labels."
        )
    card.check(model_card)
    is_delta = isinstance(model, DeltaModel)
    target = model.target if is_delta else model
    if taps is None:
        taps = list(model.taps) if is_delta else "auto"
    network = Network(target, taps, from_logits)
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
    if is_delta and not multi_worker.is_first(model.distribute_strategy):
        return folder
    measured = None
    if validation_data is not None:
        logits, y = _predicted(endpoints, names, validation_data)
        if calibrate:
            endpoints.temperature = calibration.temperature(logits, y)
        measured = card.evaluation(logits, y, names, endpoints.temperature)
    facts = card.facts(
        model,
        given=model_card,
        name=folder.parent.name,
        version=int(folder.name),
        class_names=names,
        served={"format": format, **endpoints.settings},
        measured=measured,
    )
    with folders.replacing(folder) as temporary:
        endpoints.write(temporary)
        warmup.write(
            temporary,
            folder.parent.name,
            endpoints.functions(),
            endpoints.settings["image_size"],
        )
        card.write(temporary, facts)
    return folder


def checked_names(names, classes):
    """The names of the classes as a list, if they can be told apart in a text file."""
    if isinstance(names, (str, bytes)) or not hasattr(names, "__iter__"):
        raise TypeError(invalid("class_names", "a list of strings", names))
    names = list(names)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(invalid("class_names", "strings only", name))
    if len(names) != classes:
        expected = f"{classes} names, one for each output of the model"
        raise ValueError(invalid("class_names", expected, f"{len(names)}: {names}"))
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


def _predicted(endpoints, class_names, data):
    """Logits and integer labels of held-out images."""
    size = endpoints.settings["image_size"]
    if isinstance(data, ImageSet):
        data = data.batches(size, protocol=endpoints.settings["protocol"])
    logits, labels = [], []
    for x, y in samples.batches(data):
        if not hasattr(x, "shape") or x.shape[1:] != (*size, 3):
            expected = f"images of the shape {(*size, 3)}, as the model takes them"
            shape = x.shape[1:] if hasattr(x, "shape") else x
            raise ValueError(invalid("validation_data", expected, shape))
        classes = len(class_names)
        if y.ndim == 2 and y.shape[-1] == classes > 1:
            y = y.argmax(axis=-1)
        labelling.check(y, classes, "sparse_categorical_crossentropy")
        logits.append(endpoints.logits(x).numpy())
        labels.append(y.ravel().astype("int64"))
    if not labels:
        raise ValueError("`validation_data` is empty: not one image came out of it.")
    return np.concatenate(logits), np.concatenate(labels)
