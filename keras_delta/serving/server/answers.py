"""Turns the JSON of a request into the JSON of its answer."""

import base64
import json

import numpy as np

from keras_delta.serving.server import inputs
from keras_delta.serving.server.body import parse
from keras_delta.serving.server.model import DEFAULT, ENCODED
from keras_delta.serving.server.problems import bad, not_finite

MOST_MAPS = 32
MOST_NUMBERS = 2_000_000  # in an answer: while JSON is written, nobody else is answered


def predict(model, body, settings, deadline):
    """The answer to `:predict`, as in TensorFlow Serving, and the number of images."""
    document = parse(body)
    signature = document.get("signature_name", DEFAULT)
    specs = model.inputs(signature)
    values, by_row = inputs.columns(document, specs)
    count = max(map(len, values.values()))
    if count > settings.max_images:
        raise bad(
            f"{count} images exceed the limit of {settings.max_images} per request. "
            "Send them in several requests."
        )
    tensors = {
        name: inputs.tensor(name, spec, values[name]) for name, spec in specs.items()
    }
    outputs = model.run(signature, tensors, deadline)
    numbers = sum(np.size(value) for value in outputs.values())
    if numbers > MOST_NUMBERS:
        raise bad(
            f"The answer has {numbers:,} numbers, more than {MOST_NUMBERS:,}. Send "
            "fewer images, or export fewer taps."
        )
    _check_finite(outputs)
    answer = {k: plain(k, v) for k, v in outputs.items()}
    if len(answer) == 1:
        (answer,) = answer.values()
    elif by_row:
        rows = zip(*answer.values(), strict=True)
        answer = [dict(zip(answer, row, strict=True)) for row in rows]
    return {"predictions" if by_row else "outputs": answer}, count


def explain(model, body, settings, deadline):
    """The answer to `:explain`, our own endpoint, and the number of images, 1.

    It takes `{"image_bytes": {"b64": "..."}, "class_ids": [3, 1]}`; without classes,
    it uses the most likely one. The answer is that of `Model.explain`.
    """
    document = parse(body)
    for key in document:
        if key not in (ENCODED, "class_ids"):
            known = f"{ENCODED} and class_ids"
            raise bad(f"Unknown key {key[:100]!r}. Known keys: {known}.")
    if ENCODED not in document:
        raise bad(f'"{ENCODED}" is missing. Send {{"b64": "..."}} with one photo.')
    class_ids = document.get("class_ids", [-1])
    fits = isinstance(class_ids, list) and 0 < len(class_ids) <= MOST_MAPS
    if not fits or not all(type(i) is int and abs(i) < 2**31 for i in class_ids):
        raise bad(f'"class_ids" is not a list of 1 to {MOST_MAPS} integers.')
    spec = model.inputs("prepare")[ENCODED]
    (contents,) = inputs.tensor(ENCODED, spec, [document[ENCODED]])
    answer = model.explain(contents, class_ids, deadline)
    _check_finite(answer)
    return {k: plain(k, v) for k, v in answer.items()}, 1


def encoded(answer):
    """JSON as bytes, without NaN, which JSON does not have."""
    options = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    return json.dumps(answer, **options).encode()


def _check_finite(outputs):
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            continue
        bad_ones = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
        if bad_ones.any():
            images = ", ".join(map(str, np.flatnonzero(bad_ones)[:8]))
            raise not_finite(name, images)


def plain(name, value):
    """Lists for JSON; strings in outputs whose names end in `_bytes` as base64."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype != object:
        return value.tolist()
    if value.ndim:
        return [plain(name, np.asarray(item, object)) for item in value]
    if name.endswith("_bytes"):
        return {inputs.BASE64: base64.b64encode(value.item()).decode()}
    return value.item().decode("utf-8", "replace")
