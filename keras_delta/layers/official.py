"""Reads state dicts of the authors' PyTorch modules, given as NumPy arrays."""

from collections.abc import Mapping

import numpy as np

from keras_delta._errors import invalid, unknown_name


def check_names(state, names):
    """Checks that a state dict has exactly these names.

    `num_batches_tracked`, a counter of PyTorch's BatchNorm, is optional.

    Raises:
        TypeError: if `state` is not a dict.
        ValueError: if names are missing or unknown.
    """
    if not isinstance(state, Mapping):
        raise TypeError(invalid("state", "a dict from names to arrays", state))
    for name in state:
        if name not in names and not str(name).endswith(".num_batches_tracked"):
            raise ValueError(unknown_name("state", name, names))
    missing = [repr(name) for name in names if name not in state]
    if missing:
        expected = f"a dict with the names {', '.join(map(repr, names))}"
        remedy = f"Missing: {', '.join(missing)}."
        raise ValueError(invalid("state", expected, list(state), remedy))


def count_channels(state, name, reduction, rank):
    """Reads the number of channels from a kernel `(C // reduction, C, 1, ...)`.

    Raises:
        ValueError: if the array has another rank.
    """
    shape = np.shape(state[name])
    if len(shape) != rank:
        expected = ", ".join([f"(C // {reduction}", "C", *["1"] * (rank - 2)]) + ")"
        raise ValueError(invalid(f"state[{name!r}].shape", expected, shape))
    return shape[1]


def read_arrays(state, shapes):
    """Reads arrays of known shapes.

    Args:
        state: dict from names to arrays.
        shapes: dict from names to shapes.

    Returns:
        Dict from names to float32 arrays.

    Raises:
        ValueError: if an array has another shape.
    """
    for name, shape in shapes.items():
        received = np.shape(state[name])
        if received != shape:
            raise ValueError(invalid(f"state[{name!r}].shape", shape, received))
    return {name: np.asarray(state[name], "float32") for name in shapes}
