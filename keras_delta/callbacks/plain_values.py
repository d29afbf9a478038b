"""Simple Python values as JSON and arrays and back, with the same bits and types."""

import numpy as np

from keras_delta._network import fingerprint


class ArrayStore:
    """Arrays by name, with a single copy of equal ones.

    Args:
        arrays: dict name -> array of those that are already stored.
        elsewhere: function that returns a dict of those that need not be stored.

    Attributes:
        added: dict name -> array of those to be stored in addition.
    """

    def __init__(self, arrays, elsewhere=dict):
        self._arrays, self._elsewhere = arrays, elsewhere
        self._names, self.added = None, {}

    def name_of(self, array):
        """The name of an array, which is added unless an equal one exists."""
        if self._names is None:  # digests take a moment
            known = {**self._arrays, **self._elsewhere()}
            self._names = {fingerprint.digest(a): name for name, a in known.items()}
        digest = fingerprint.digest(array)
        if digest not in self._names:
            self._names[digest] = name = f"values/{digest}"
            self.added[name] = array
        return self._names[digest]


def encode(value, store):
    """A value in a form that JSON can represent.

    Args:
        value: None, a bool, number, string, NumPy array or scalar, or a list, tuple
            or dict of such values.
        store: an `ArrayStore`, for the arrays.

    Raises:
        TypeError: if the value is anything else.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode(v, store) for v in value]
    if kind is tuple:
        return {"tuple": [encode(v, store) for v in value]}
    if kind is dict:
        items = [[encode(k, store), encode(v, store)] for k, v in value.items()]
        return {"dict": items}
    if kind is np.ndarray and _is_numeric(value.dtype):
        return {"array": [store.name_of(value), value.dtype.name, value.shape]}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"scalar": [value.dtype.str, value.item()]}
    raise TypeError(f"a backup cannot hold a value of the type {kind.__name__}")


def decode(code, arrays):
    """The value that `encode` turned into `code`; arrays are looked up and copied."""
    if isinstance(code, list):
        return [decode(v, arrays) for v in code]
    if not isinstance(code, dict):
        return code
    ((kind, inner),) = code.items()
    if kind == "tuple":
        return tuple(decode(inner, arrays))
    if kind == "dict":
        return {decode(k, arrays): decode(v, arrays) for k, v in inner}
    if kind == "array":
        name, dtype, shape = inner
        return arrays[name].view(dtype).reshape(shape).copy()
    return np.dtype(inner[0]).type(inner[1])


def _is_numeric(dtype):
    # A type that NumPy lacks, such as bfloat16, comes back from a file as bytes.
    return dtype.kind in "biufc" or dtype.name == "bfloat16"
