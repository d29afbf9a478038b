"""A network cut behind its taps; the part before them is computed once."""

import tensorflow as tf
from keras import tree

from keras_delta._network import memory
from keras_delta._network.graph import Graph
from keras_delta.attention.frozen import Frozen
from keras_delta.attention.losses import with_logits
from keras_delta.attention.suffix import Suffix


class CutNetwork:
    """A network with its taps, run in inference mode and never changed.

    Args:
        graph: the network.
        taps: names of the tapped calls.
        replaced: list of (variable, array), see `Frozen`.

    Attributes:
        taps: dict tap -> `Suffix`.
        frozen: the network's variables.
    """

    def __init__(self, graph: Graph, taps, replaced=()):
        self.graph = graph
        self.frozen = Frozen(graph.layers().values(), replaced)
        folded = {}
        self.taps = {tap: Suffix(graph, tap, self.frozen, folded) for tap in taps}

    def feed(self, x):
        """A batch as the list of tensors for `run_intact`."""
        return self.graph.feed(x)

    def run_intact(self, feeds):
        """Values shared by all pairs of a batch, and outputs of the intact network.

        Args:
            feeds: result of `feed` for one batch.

        Returns:
            List of results of `Suffix.base`, one per tap, and list of outputs.
        """
        taps = self.taps.values()
        with self.frozen.scope():
            values, outputs = self.graph.run(
                ([s.entering for s in taps], tree.flatten(self.graph.outputs)),
                self.graph.inputs,
                feeds,
                training=False,
            )
            # An operation on strings loses the static batch size.
            values = tree.map_structure(
                lambda v: (
                    tf.ensure_shape(v, (feeds[0].shape[0], *v.shape[1:]))
                    if len(v.shape) and v.shape[0] is None
                    else v
                ),
                values,
            )
            for (tap, s), v in zip(self.taps.items(), values, strict=True):
                _check_rows(tap, s.per_sample(v), feeds[0].shape[0])
            bases = [s.base(v) for s, v in zip(taps, values, strict=True)]
        return bases, with_logits(outputs)

    def needs(self, feeds):
        """Bytes that the work uses besides the network.

        Returns:
            Fixed bytes, bytes per sample of a batch, and dict tap -> bytes per pair in
            a call.
        """
        size = memory.sizes(self.graph, feeds)
        inside = [t for s in self.taps.values() for t in s.entering]
        end = [*inside, *tree.flatten(self.graph.outputs)]
        names = self.graph.ancestors(end)
        running = memory.peak(self.graph, names, self.graph.inputs, end, size)
        shared = sum(s.shared_bytes(size) for s in self.taps.values())
        pairs = {tap: s.pair_bytes(size) for tap, s in self.taps.items()}
        behind = self.graph.descendants([self.graph.output_of(t) for t in self.taps])
        layers = [x for name, x in self.graph.layers().items() if name in behind]
        weights = [w for layer in layers for w in layer.weights]
        # Folded copies, and TensorFlow's own in another layout: as measured.
        copies = int(2.5 * sum(map(memory.bytes_of, weights)))
        return copies, running + shared, pairs

    def first_not_finite(self, feeds):
        """Name of the first call whose output is not finite, or None."""
        tensors = [node.outputs for node in self.graph.nodes.values()]
        with self.frozen.scope():
            values = self.graph.run(tensors, self.graph.inputs, feeds, training=False)
        for name, outputs in zip(self.graph.nodes, values, strict=True):
            for v in outputs:
                if v.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(v)):
                    return name
        return None


def _check_rows(tap, values, count):
    """Refuse tensors at a tap, or beside it, whose rows are not the samples."""
    for v in values:
        if v.shape[0] != count:
            raise ValueError(
                f"At the tap '{tap}' the network has maps of {v.shape[0]} rows for "
                f"{count} samples. Tap a layer where the first axis is only the batch, "
                "before windows are folded into it or after they are taken out."
            )
