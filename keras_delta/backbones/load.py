"""Weights from files, with errors that say which layer does not fit."""

import os
import re
import warnings

from keras_delta._errors import invalid


def check_weights(weights, endings):
    """Reject `weights` other than None, `"imagenet"` or a file with such a suffix."""
    expected = '"imagenet", None or the path of an existing file'
    if weights is None or weights == "imagenet":
        return
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(invalid("weights", expected, weights))
    path = os.fspath(weights)
    if not os.path.isfile(path):
        raise FileNotFoundError(invalid("weights", expected, path))
    if not path.endswith(tuple(endings)):
        raise ValueError(
            invalid("weights", f"a file that ends in {' or '.join(endings)}", path)
        )


def load_keras_file(model, path):
    """Load a `.keras`, `.weights.h5` or legacy `.h5` file into a built model.

    Only the weights are read, even from a `.keras` file: no layer is built from it
    and none of its code is run.

    Raises:
        ValueError: if the file cannot be read or does not fit; the message names the
            first layer that does not, if Keras reports it.
    """
    path = os.fspath(path)
    try:
        with warnings.catch_warnings():
            # Keras warns about lists of layers that it has already filled; layers
            # that it has not filled are errors.
            warnings.filterwarnings("ignore", "Skipping nested container")
            model.load_weights(path)
    except Exception as e:  # zip, HDF5 and Keras raise errors of many types
        layer, reason = _first_failure(str(e))
        raise ValueError(does_not_fit(model.name, path, reason, layer)) from e


def _first_failure(text):
    """Layer and reason of the first failure in Keras's list of all."""
    match = re.search(
        r"for object <\w+ name=([^,>]+)[^\n]*\n+(.*?)\s*(?:List of objects that|$)",
        text,
        re.DOTALL,
    )
    layer, reason = match.groups() if match else ("", text)
    # Keras prints pages of the variable's values.
    return layer, re.sub(r", value=\[.*\]>", ">", reason, flags=re.DOTALL)


def assign(model, arrays, path, spare=()):
    """Set every weight of a model from arrays, all of which must be used.

    Args:
        model: built model, filled in place.
        arrays: dict `"layer/variable"` -> array.
        path: their file, for errors.
        spare: names of layers whose arrays may be unused.

    Raises:
        ValueError: if an array is missing, unused or of another shape; the message
            names the first layer concerned.
    """
    wanted = {
        f"{layer.name}/{v.name}": v for layer in model.layers for v in layer.weights
    }
    for name, variable in wanted.items():
        if name not in arrays:
            raise ValueError(does_not_fit(model.name, path, f"it lacks '{name}'", name))
        if arrays[name].shape != tuple(variable.shape):
            reason = (
                f"'{name}' has the shape {arrays[name].shape} in the file and "
                f"{tuple(variable.shape)} in the network"
            )
            raise ValueError(does_not_fit(model.name, path, reason, name))
    for name in arrays:
        if name not in wanted and name.split("/")[0] not in spare:
            reason = f"the network has no '{name}'"
            raise ValueError(does_not_fit(model.name, path, reason, name))
    for name, variable in wanted.items():
        variable.assign(arrays[name])


def does_not_fit(net, path, reason, layer=""):
    """The message about a file of weights that does not fit, with the first layer."""
    where = f"First mismatch: layer '{layer.split('/')[0]}'. " if layer else ""
    return invalid(
        "weights", f"weights of {net}", str(path), f"{where}Reason: {reason}"
    )
