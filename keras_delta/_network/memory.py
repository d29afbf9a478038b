"""How much memory a computation may take, and how much the maps of a network do."""

import math
import numbers
import os
import pathlib
import re

import tensorflow as tf
from keras import tree

from keras_delta._errors import invalid
from keras_delta._network.graph import Graph

UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
# Larger calls were no faster on the CPU; a GPU has more to keep busy.
USUAL = {"CPU": 2**29, "GPU": 2**31}


def usual():
    """Bytes for maps: 512 MiB, 2 GiB on a GPU, at most a quarter of what is free."""
    most = USUAL["GPU" if tf.config.list_logical_devices("GPU") else "CPU"]
    free = available()
    return most if free is None else max(min(most, free // 4), 2**24)


def budget(memory=None):
    """Bytes of a budget that a user gave; None for None.

    Args:
        memory: bytes, or text such as `"2GB"` or `"512MiB"` (both count in 1024s).
    """
    if memory is None:
        return None
    match = isinstance(memory, str) and re.fullmatch(
        r"\s*(\d*\.?\d+|\d+\.)\s*([KMGT]?)(?:i?B)?\s*", memory, re.IGNORECASE
    )
    size = memory
    if match:
        size = float(match[1]) * 1024 ** UNITS[match[2].upper()]
    number = isinstance(size, numbers.Real) and not isinstance(size, bool)
    if not number or not 1 <= size < 2**63:
        raise ValueError(
            invalid("memory", 'bytes, text such as "2GB", or None', memory)
        )
    return int(size)


def show(size):
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024


def available():
    """Bytes of memory that the machine has to spare; None where it cannot be told."""
    try:
        # Free pages alone would not count what caches files, most of a machine that
        # has read a data set.
        info = pathlib.Path("/proc/meminfo").read_text("ascii")
        return 1024 * int(re.search(r"^MemAvailable:\s*(\d+) kB", info, re.M)[1])
    except (OSError, TypeError, ValueError):  # no Linux
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def bytes_of(variable):
    """Bytes that a variable takes."""
    return math.prod(variable.shape) * tf.as_dtype(variable.dtype).size


def sizes(graph: Graph, feeds):
    """Bytes a sample of every tensor of a network, by the tensor's id.

    Args:
        graph: the network.
        feeds: values of the inputs, which settle dimensions left open.
    """
    tensors = list(graph.inputs)
    for node in graph.nodes.values():
        tensors.extend(node.outputs)
    shapes = [t.shape[1:] for t in tensors]
    if any(None in shape for shape in shapes):
        run = tf.function(lambda v: graph.run(tensors, graph.inputs, v, training=False))
        specs = [tf.TensorSpec(v.shape, v.dtype) for v in feeds]
        traced = run.get_concrete_function(specs).structured_outputs
        shapes = [tuple(t.shape[1:]) for t in tree.flatten(traced)]
    found = {}
    for tensor, shape in zip(tensors, shapes, strict=True):
        count = 1
        for d in shape:
            count *= d or 1
        found[id(tensor)] = count * tf.as_dtype(tensor.dtype).size
    return found


def peak(graph: Graph, names, start, end, size):
    """Bytes a sample that are alive at once while part of a network runs.

    Args:
        graph: the network.
        names: the calls to run, a set.
        start: tensors that are there from the beginning.
        end: tensors that are kept.
        size: what `sizes` returned.
    """
    order = [graph.nodes[n] for n in graph.nodes if n in names]
    last = {id(t): len(order) for t in end}
    for i, node in reversed(list(enumerate(order))):
        for t in node.inputs:
            last.setdefault(id(t), i)
    alive = {id(t) for t in start}
    most = sum(size[key] for key in alive)
    for i, node in enumerate(order):
        alive.update(id(t) for t in node.outputs)
        # An operation may hold a copy of its output (padding, another layout).
        extra = sum(size[id(t)] for t in node.outputs)
        most = max(most, extra + sum(size[key] for key in alive))
        alive = {key for key in alive if last.get(key, -1) > i}
    return most
