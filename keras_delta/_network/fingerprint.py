"""Digests: whether two networks, or two batches, are the same."""

import hashlib

import numpy as np
from keras import tree

from keras_delta._network import entry


def digest(structure):
    """A digest of a structure of arrays, as hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for v in tree.flatten(structure):
        v = np.ascontiguousarray(v)
        found.update(f"{v.dtype}{v.shape}".encode())
        found.update(v.reshape(-1).view(np.uint8))
    return found.hexdigest()


def of_text(text):
    """A digest of a text, as hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def of_weights(layers):
    """A digest of all weights of some layers."""
    return digest([w.value.numpy() for layer in layers for w in layer.weights])


def of_structure(graph):
    """A digest of what a `Graph` is besides its weights.

    Names and configs play no part: Keras numbers layers as a process goes, and a
    config may hold what is another object in each process.
    """
    index = {name: i for i, name in enumerate(graph.nodes)}
    parts = []
    for node in graph.nodes.values():
        operation = node.operation
        activation = getattr(operation, "activation", None)
        parts.append(
            (
                type(operation).__name__,
                getattr(activation, "__name__", None),
                getattr(operation, "compute_dtype", None),
                [index.get(graph.name_of(t)) for t in node.inputs],
                [tuple(t.shape) for t in node.outputs],
            )
        )
    return of_text(repr(parts))


def of_architecture(graph):
    """As `of_structure`, with settings and constants: what scores depend on."""
    return of_text(f"{of_structure(graph)} {of_settings(graph.nodes.values())}")


def of_settings(nodes):
    """A digest of the settings and constants of a `Graph`'s calls, without weights.

    What differs between processes plays no part: names, which Keras numbers as a
    process goes, and objects other than arrays. Nor do the contents of lambdas.
    """
    parts = [(type(n.operation), _config(n), n.args, n.kwargs) for n in nodes]
    return of_text(repr(_plain(parts)))


def _config(node):
    """`entry.config`; empty for a layer that Keras cannot describe."""
    try:
        return entry.config(node)
    except (NotImplementedError, TypeError):
        return {}


def _plain(value):
    """A structure of settings, of what has the same text in each process."""
    if isinstance(value, dict):
        if value.get("class_name") == "__lambda__":
            return "lambda"
        keys = [key for key in value if not entry.is_without_effect(str(key))]
        return {key: _plain(value[key]) for key in keys}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        return digest(value)
    if value is None or isinstance(value, (bool, int, float, str, bytes, slice)):
        return value
    return getattr(value, "__name__", type(value).__name__)


def of_model(graph, tensors=()):
    """A digest of a `Graph`: its calls, all weights, and which `tensors` are meant.

    Args:
        graph: the `Graph`.
        tensors: KerasTensors of the graph, such as taps.
    """
    index = {name: i for i, name in enumerate(graph.nodes)}
    weights = of_weights(graph.layers().values())
    meant = [index.get(graph.name_of(t), -1) for t in tensors]
    return of_text(f"{of_structure(graph)} {meant} {weights}")
