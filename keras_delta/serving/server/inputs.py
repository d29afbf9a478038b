"""Turns the JSON of a request into inputs of a signature, as in TensorFlow Serving.

Rows (`instances`) and columns (`inputs`) are described in TensorFlow Serving's
"RESTful API", https://www.tensorflow.org/tfx/serving/api_rest.
"""

import base64
import binascii

import numpy as np

from keras_delta.serving.server.problems import bad

BASE64 = "b64"
KNOWN = {"instances", "inputs", "signature_name"}


def columns(document, specs):
    """The values of each input by name, and whether the request has rows."""
    for key in document:
        if key not in KNOWN:
            known = ", ".join(sorted(KNOWN))
            raise bad(f"Unknown key {key[:100]!r}. Known keys: {known}.")
    if ("instances" in document) == ("inputs" in document):
        raise bad('Send either "instances" or "inputs".')
    if "instances" in document:
        return _from_rows(document["instances"], specs), True
    return _from_columns(document["inputs"], specs), False


def tensor(name, spec, values):
    """The array of one input, from a list with one item per image."""
    if spec.dtype.name == "string":
        files = [_decoded(value, f"{name} {i}") for i, value in enumerate(values)]
        return np.array(files, object)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, RecursionError):
        array = np.array(None)
    integers = spec.dtype.is_integer
    if array.dtype.kind not in ("iu" if integers else "iuf"):
        what = "integers" if integers else "numbers"
        raise bad(
            f"Input {name!r} takes {what} in nested lists, all of the same shape: "
            f"{_shape(spec.shape)}, with images along the first axis."
        )
    if array.size == 0 or not spec.shape.is_compatible_with(array.shape):
        raise bad(
            f"Input {name!r} has shape {_shape(array.shape)}. Expected "
            f"{_shape(spec.shape)}."
        )
    kind = spec.dtype.as_numpy_dtype
    limits = np.iinfo(kind) if integers else np.finfo(kind)
    # Without NaN, which compares false.
    inside = (array >= limits.min) & (array <= limits.max)
    if not inside.all():
        where = np.argwhere(~inside)[0][0]
        raise bad(
            f"Input {name!r} {where} contains a number that is not finite or too large "
            f"for {spec.dtype.name}."
        )
    return array.astype(kind)


def _from_rows(rows, specs):
    if not isinstance(rows, list):
        raise bad('"instances" is not a list.')
    if not rows:
        raise bad('"instances" is empty: send at least one instance.')
    values = {name: [] for name in specs}
    for i, row in enumerate(rows):
        is_object = isinstance(row, dict)
        if len(specs) == 1 and (not is_object or set(row) == {BASE64}):
            (name,) = specs
            values[name].append(row)
            continue
        if not is_object:
            raise bad(f"Instance {i} is not an object with {_list(specs)}.")
        _check_names(row, specs, f"Instance {i}")
        for name in specs:
            values[name].append(row[name])
    return values


def _from_columns(inputs, specs):
    if len(specs) == 1 and not isinstance(inputs, dict):
        inputs = {name: inputs for name in specs}
    if not isinstance(inputs, dict):
        raise bad(f'"inputs" is not an object with {_list(specs)}.')
    _check_names(inputs, specs, '"inputs"')
    for name, values in inputs.items():
        if not isinstance(values, list):
            raise bad(f"Input {name!r} is not a list with one item per image.")
        if not values:
            raise bad(f"Input {name!r} is empty: send at least one image.")
    if len({len(values) for values in inputs.values()}) > 1:
        raise bad(f"The inputs {_list(specs)} differ in length.")
    return inputs


def _check_names(given, specs, where):
    for name in specs:
        if name not in given:
            raise bad(f"{where} has no field {name!r}. Needed: {_list(specs)}.")
    for name in given:
        if name not in specs:
            text = f"{where} has an unknown field, {name[:100]!r}."
            raise bad(f"{text} Known: {_list(specs)}.")


def _decoded(value, where):
    if not isinstance(value, dict) or set(value) != {BASE64}:
        raise bad(
            f'{where} is not of the form {{"b64": "..."}}, with the bytes of the file '
            "as base64."
        )
    text = value[BASE64]
    if not isinstance(text, str):
        raise bad(f'The "b64" of {where} is not a string.')
    if text.startswith("data:"):
        raise bad(f"{where} is a data URL. Send only the base64 after its comma.")
    text = "".join(text.split())  # the command `base64` breaks lines
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise bad(f'The "b64" of {where} is not base64.') from None


def _shape(shape):
    return "(" + ", ".join("any" if d is None else str(d) for d in shape) + ")"


def _list(names):
    return " and ".join(repr(name) for name in names)
