"""Weights from files, with errors that say which layer does not fit."""

import os
import re

from keras_delta.errors import invalid


def check_weights(weights):
    """Check the argument `weights` of a builder.

    Args:
        weights: None, `"imagenet"` or the path of a file.

    Raises:
        TypeError: for anything else.
        FileNotFoundError: for a path at which there is no file.
    """
    expected = '"imagenet", None or the path of an existing file'
    if weights is None or weights == "imagenet":
        return
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(invalid("weights", expected, weights))
    if not os.path.isfile(weights):
        raise FileNotFoundError(invalid("weights", expected, os.fspath(weights)))


def load_keras_file(model, path, endings=(".keras", ".weights.h5")):
    """Load a `.keras`, `.weights.h5` or legacy `.h5` file into a model.

    Only the weights are read, also of a `.keras` file: no layer is built from it
    and no code of it is run.

    Args:
        model: built model, filled in place.
        path: the file.
        endings: file name endings that are taken.

    Raises:
        ValueError: for another ending, for a file that cannot be read and for one
            that does not fit; the text names the first layer that does not.
    """
    path = os.fspath(path)
    if not path.endswith(tuple(endings)):
        raise ValueError(
            invalid("weights", f"a file that ends in {' or '.join(endings)}", path)
        )
    try:
        model.load_weights(path)
    except Exception as e:  # zip, HDF5 and Keras raise errors of many types
        # Keras lists every layer that failed; the first one explains the rest.
        reason = str(e).split("List of objects that could not be loaded")[0].strip()
        found = re.search(r"for object <\w+ name=([^,>]+)", reason)
        layer = found.group(1) if found else ""
        raise ValueError(does_not_fit(model.name, path, reason, layer)) from e


def assign(model, arrays, path, spare=()):
    """Set every weight of a model from arrays, leaving nothing over.

    Args:
        model: built model, filled in place.
        arrays: dict `"layer/variable"` -> array.
        path: where they come from, for errors.
        spare: names of layers whose arrays may be left over.

    Raises:
        ValueError: for an array that is missing, left over or of another shape;
            the text names the first layer concerned.
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
    """The text of an error about a file of weights.

    Args:
        net: name of the network.
        path: the file.
        reason: what is wrong, as a sentence or an exception.
        layer: the first layer that does not fit, where it is known.

    Returns:
        One string.
    """
    where = f"First mismatch: layer '{layer.split('/')[0]}'. " if layer else ""
    return invalid(
        "weights", f"weights of {net}", str(path), f"{where}Reason: {reason}"
    )
