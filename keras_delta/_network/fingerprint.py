"""Digests: whether two networks, or two batches, are the same."""

import hashlib

import numpy as np
from keras import tree


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
