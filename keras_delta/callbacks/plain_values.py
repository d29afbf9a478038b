"""Simple Python values as JSON and arrays, and back, to the same bits and types."""

import keras
import numpy as np

from keras_delta._network import fingerprint
from keras_delta.attention import ChannelAttention

# What Keras's callbacks compare with. Together with it they turn the sign of
# `min_delta`: one without the other would be wrong.
COMPARISONS = {
    f"{module.__name__.split('.')[0]}.{name}": getattr(module, name)
    for module in (keras.ops, np)
    for name in ("less", "greater")
}


def attributes(thing):
    """The attributes of an object that are simple values.

    Returns:
        (codes, arrays): dict name -> what JSON can hold, without the attributes that
        have anything else in them; dict digest -> array that the codes name.
    """
    codes, arrays = {}, {}
    for name, value in vars(thing).items():
        found = {}
        try:
            codes[name] = encoded(value, found)
        except TypeError:
            continue
        arrays.update(found)
    return codes, arrays


def encoded(value, arrays):
    """A value as something that JSON can hold.

    Args:
        value: None, a bool, number, string, NumPy array or scalar, `ChannelAttention`,
            one of `COMPARISONS`, or a list, tuple or dict of such values.
        arrays: dict digest -> array, to which arrays are added.

    Raises:
        TypeError: for anything else.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encoded(v, arrays) for v in value]
    if kind is tuple:
        return {"tuple": [encoded(v, arrays) for v in value]}
    if kind is dict:
        items = [[encoded(k, arrays), encoded(v, arrays)] for k, v in value.items()]
        return {"dict": items}
    if kind is np.ndarray and _is_numeric(value.dtype):
        digest = fingerprint.digest(value)
        arrays[digest] = value
        return {"array": [digest, value.dtype.name]}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"scalar": [value.dtype.str, value.item()]}
    if kind is ChannelAttention:
        return {"attention": keras.saving.serialize_keras_object(value)}
    for name, comparison in COMPARISONS.items():
        if value is comparison:
            return {"comparison": name}
    raise TypeError(f"{kind.__name__} is not a simple value")


def decoded(code, arrays):
    """The value that `encoded` gave as `code`; arrays are looked up and copied."""
    if isinstance(code, list):
        return [decoded(v, arrays) for v in code]
    if not isinstance(code, dict):
        return code
    ((kind, inner),) = code.items()
    if kind == "tuple":
        return tuple(decoded(inner, arrays))
    if kind == "dict":
        return {decoded(k, arrays): decoded(v, arrays) for k, v in inner}
    if kind == "array":
        digest, dtype = inner
        return arrays[digest].view(dtype).copy()
    if kind == "scalar":
        return np.dtype(inner[0]).type(inner[1])
    if kind == "comparison":
        return COMPARISONS[inner]
    return ChannelAttention.from_config(inner["config"])


def _is_numeric(dtype):
    # What is no type of NumPy's, as bfloat16, comes back from a file as bytes.
    return dtype.kind in "biufc" or dtype.name == "bfloat16"
