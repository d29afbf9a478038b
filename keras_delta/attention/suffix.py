"""A network from one tap on, with channels of the tap switched off.

With one channel at zero, most of a network computes the same as with all of them:

- Everything before the tap, and any input from elsewhere behind it (a shortcut), is
  computed once per batch.
- Layers that keep channels apart (`channelwise.py`) run once for all channels.
- A dense layer or a convolution that these feed changes by a rank-one term: the
  change of the channel times its row of the kernel. Pooled features before the
  classifier are the usual case; their scores have a closed form.
- The rest runs for many pairs of sample and channel in one call.
- Pairs whose channel does not change when switched off need no run.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree

from keras_delta._network import memory
from keras_delta._network.graph import Graph
from keras_delta.attention import channelwise
from keras_delta.attention.folding import Folding, linear, plain_kernel
from keras_delta.attention.frozen import Frozen
from keras_delta.attention.losses import with_logits

# A rank-one update moves whole maps through memory a few times; a convolution does
# as many multiplications per output as it has input channels. On two AVX-512 cores the
# update was faster from here on.
RANK_ONE_FROM = 160


class Plan(NamedTuple):
    """How each part is computed when a channel of a tap is switched off.

    Attributes:
        tap: the tapped tensor of the graph.
        channels: number of its channels.
        reaches: whether the outputs depend on it.
        where: dict from the id of a tensor to `(axis, first)`: along `axis`, channel
            j of the tap is at `first + j`, apart from the others.
        beside: tensors that enter the layers that keep channels apart and do not
            depend on the tap.
        kept: tensors that enter the rest and do not depend on the tap.
        changed: those that do, with channels apart.
        updates: calls that change by a rank-one term.
        updated: their outputs, with BatchNormalization folded in.
        folding: a `Folding` of the whole network, for the updates.
        folding_behind: one that leaves `kept`, `changed` and `updated` unchanged.
    """

    tap: Any
    channels: int
    reaches: bool
    where: dict
    beside: list
    kept: list
    changed: list
    updates: list
    updated: list
    folding: Folding
    folding_behind: Folding

    @property
    def sources(self):
        """Inputs of the updates' calls."""
        return [node.inputs[0] for node in self.updates]


def make_plan(graph: Graph, tap, folded=None):
    """The `Plan` for one tap.

    Args:
        graph: the network.
        tap: name of the tapped call.
        folded: see `Folding`.
    """
    tensor, outputs = graph.output_of(tap), tree.flatten(graph.outputs)
    axis = channelwise.channel_axis(graph, tap)
    behind = graph.descendants([tensor]) & graph.ancestors(graph.outputs)
    where, apart = _keep_apart(graph, behind, tensor, axis)
    rest: Any = {n: graph.nodes[n] for n in graph.nodes if n in behind - apart}
    folded = {} if folded is None else folded
    folding = Folding(graph, [graph.nodes[n].outputs[0] for n in apart], folded)
    updates = [node for node in rest.values() if _takes_update(node, where)]
    ends = [folding.norm(node) or node for node in updates]
    updated = [node.outputs[0] for node in ends]
    done = {id(node.outputs[0]) for node in (*updates, *ends)}
    rest = {n for n, node in rest.items() if id(node.outputs[0]) not in done}
    entering = _unique(
        t
        for t in [*graph.entering(rest), *outputs]
        if graph.name_of(t) not in rest and not _holds(updated, t)
    )
    return Plan(
        tap=tensor,
        channels=tensor.shape[axis],
        reaches=bool(behind) or _holds(outputs, tensor),
        where=where,
        beside=[t for t in graph.entering(apart) if id(t) not in where],
        kept=[t for t in entering if id(t) not in where],
        changed=[t for t in entering if id(t) in where],
        updates=updates,
        updated=updated,
        folding=folding,
        folding_behind=Folding(graph, [*entering, *updated], folded),
    )


def _keep_apart(graph, behind, tap, axis):
    """`Plan.where`, and the names of the calls that keep channels apart."""
    where, apart = {id(tap): (axis, 0)}, set()
    for name, node in graph.nodes.items():
        mixed = any(
            graph.name_of(t) in behind and id(t) not in where for t in node.inputs
        )
        if name not in behind or mixed:
            continue
        if place := channelwise.follow(node, where):
            where[id(node.outputs[0])] = place
            apart.add(name)
    return where, apart


def _takes_update(node, where):
    """Whether a call changes by a rank-one term and using it is faster."""
    layer = node.operation
    if type(layer) not in (keras.layers.Dense, keras.layers.Conv2D):
        return False
    if len(node.inputs) != 1 or id(node.inputs[0]) not in where:
        return False
    shape = node.inputs[0].shape
    if where[id(node.inputs[0])][0] != len(shape) - 1:
        return False  # channels first
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    vector = type(layer) is keras.layers.Dense and len(shape) == 2
    pays = vector or shape[-1] >= RANK_ONE_FROM
    return pays and getattr(layer, "groups", 1) == 1 and plain_kernel(layer)


class Suffix:
    """Outputs of a network for pairs of a sample and a channel switched off.

    Args:
        graph: the network.
        tap: name of the tapped call.
        frozen: the network's variables.
        folded: see `Folding`.

    Attributes:
        plan: a `Plan`.
        channels, reaches: the plan's.
        entering: the tensors of the graph that `base` takes.
        traces: how often `outputs` was traced.
    """

    def __init__(self, graph: Graph, tap, frozen: Frozen, folded=None):
        self.graph, self._frozen = graph, frozen
        self._ends = tree.flatten(graph.outputs)
        self.plan = plan = make_plan(graph, tap, folded)
        self.channels, self.reaches = plan.channels, plan.reaches
        self.entering = _unique(
            [plan.tap, *plan.beside, *plan.kept, *plan.changed, *plan.sources]
        )
        self.traces = 0

    def base(self, values):
        """Values that all pairs of a batch share.

        Args:
            values: the tensors of `entering`, for one batch.

        Returns:
            Dict of tensors for `outputs`, and `"changes"`, bool `(B, C)`: whether
            switching off the channel makes a difference to the sample.
        """
        known = {id(t): v for t, v in zip(self.entering, values, strict=True)}
        tap = known[id(self.plan.tap)]
        off = self.graph.run(
            [self.plan.changed, self.plan.sources],
            [self.plan.tap, *self.plan.beside],
            [tf.zeros_like(tap), *(known[id(t)] for t in self.plan.beside)],
            training=False,
        )
        base = {
            "kept": [known[id(t)] for t in self.plan.kept],
            "changed": [known[id(t)] for t in self.plan.changed],
            "switched off": [],
            "linear": [],
            "differences": [],
            "changes": tf.zeros((tap.shape[0], self.channels), bool),
        }

        def compared(tensor, value):
            now = self._by_channel(tensor, value)
            was = self._by_channel(tensor, known[id(tensor)])
            differs = tf.reshape(now != was, (*base["changes"].shape, -1))
            base["changes"] |= tf.reduce_any(differs, axis=2)
            return now, was

        for tensor, value in zip(self.plan.changed, off[0], strict=True):
            base["switched off"].append(compared(tensor, value)[0])
        for node, tensor, value in zip(
            self.plan.updates, self.plan.sources, off[1], strict=True
        ):
            kernel, bias = self.plan.folding.parameters(node, _precision(node))
            now, was = (tf.cast(v, kernel.dtype) for v in compared(tensor, value))
            base["differences"].append(now - was)
            base["linear"].append(linear(node, known[id(tensor)], kernel, bias))
        return base

    def shared_bytes(self, size):
        """Bytes per sample that `base` computes and keeps; see `memory.sizes`."""
        own = [*self.plan.changed, *self.plan.sources]
        linear = [node.outputs[0] for node in self.plan.updates]
        # Switched off; arranged by channel before and after; and their difference.
        made = 4 * sum(size[id(t)] for t in own)
        return made + sum(size[id(t)] for t in [*self.plan.kept, *linear])

    def pair_bytes(self, size):
        """Peak bytes per pair in `outputs`."""
        feeds = [*self.plan.kept, *self.plan.changed, *self.plan.updated]
        given = sum(size[id(t)] for t in [*self.plan.changed, *self.plan.updated])
        names = self.graph.descendants(feeds) & self.graph.ancestors(
            self._ends, stop=feeds
        )
        # While the inputs are assembled, they exist twice.
        running = memory.peak(self.graph, names, feeds, self._ends, size)
        return max(running, 2 * given + sum(size[id(t)] for t in self.plan.kept)) + 16

    def per_sample(self, values):
        """The values of `entering` that have a row for each sample."""
        pairs = zip(self.entering, values, strict=True)
        return [v for t, v in pairs if self._has_samples(t)]

    def _has_samples(self, tensor):
        """Whether a tensor has a row per sample; a constant has other axes."""
        return len(tensor.shape) > 0 and tensor.shape[0] == self.plan.tap.shape[0]

    def _by_channel(self, tensor, value):
        """The tap's channels in a tensor, a row for each sample and channel."""
        axis, first = self.plan.where[id(tensor)]
        value = tf.experimental.numpy.moveaxis(value, axis, 1)
        value = value[:, first : first + self.channels]
        return tf.reshape(value, (-1, *value.shape[2:]))

    def outputs(self, base, samples, channels):
        """The network's outputs for pairs of a sample and a channel.

        Args:
            base: result of `base`.
            samples: `(N,)` int32, the row of the batch.
            channels: `(N,)` int32, the channel that is switched off; -1: none.

        Returns:
            List of tensors `(N, ...)`.
        """
        self.traces += 1
        off = channels >= 0
        rows = samples * self.channels + tf.maximum(channels, 0)
        values = [
            tf.gather(v, samples) if self._has_samples(t) else v
            for t, v in zip(self.plan.kept, base["kept"], strict=True)
        ]
        for tensor, value, now in zip(
            self.plan.changed, base["changed"], base["switched off"], strict=True
        ):
            axis, first = self.plan.where[id(tensor)]
            which = tf.where(off, channels + first, -1)
            chosen = tf.one_hot(which, value.shape[axis], True, False)
            shape = [samples.shape[0], *[1] * (len(value.shape) - 1)]
            shape[axis] = -1
            now = tf.expand_dims(tf.gather(now, rows), axis)
            value = tf.gather(value, samples)
            values.append(tf.where(tf.reshape(chosen, shape), now, value))
        with self._frozen.scope():
            for node, intact, difference in zip(
                self.plan.updates, base["linear"], base["differences"], strict=True
            ):
                change = self._change(node, tf.gather(difference, rows), off, channels)
                value = node.operation.activation(tf.gather(intact, samples) + change)
                final = _holds(self._ends, node.outputs[0])
                values.append(value if final else tf.cast(value, node.outputs[0].dtype))
            outputs = self.graph.run(
                self._ends,
                [*self.plan.kept, *self.plan.changed, *self.plan.updated],
                values,
                training=False,
                call=self.plan.folding_behind,
            )
        return with_logits(outputs)

    def _change(self, node, difference, off, channels):
        """The rank-one term of a call, zero if no channel is switched off."""
        condition = tf.reshape(off, (-1, *[1] * (len(difference.shape) - 1)))
        none = tf.zeros((), difference.dtype)
        difference = tf.where(condition, difference, none)
        _, first = self.plan.where[id(node.inputs[0])]
        kernel, _ = self.plan.folding.parameters(node, _precision(node))
        channels = tf.maximum(channels, 0) + first
        return _term(node.operation, kernel, difference, channels)


def _precision(node):
    """Dtype of the update: float64 for vectors, where it is cheap and exact enough."""
    vector = len(node.inputs[0].shape) == 2
    return "float64" if vector else node.operation.compute_dtype


def _term(layer, kernel, difference, channels):
    """Change of a layer's output before its activation with one input channel.

    Args:
        layer: `Dense` or `Conv2D`.
        kernel: the layer's.
        difference: `(N, positions...)`, the change of the channel.
        channels: `(N,)`, which input channel it is.
    """
    if isinstance(layer, keras.layers.Dense):
        row = tf.gather(kernel, channels)
        row = tf.reshape(row, (row.shape[0], *[1] * (len(difference.shape) - 1), -1))
        return difference[..., None] * row
    window = tf.image.extract_patches(
        difference[..., None],
        sizes=(1, *layer.kernel_size, 1),
        strides=(1, *layer.strides, 1),
        rates=(1, *layer.dilation_rate, 1),
        padding=layer.padding.upper(),
    )
    height, width, size = window.shape[1:]
    if size == 1:
        return window * tf.gather(kernel[0, 0], channels)[:, None, None]
    kernel = tf.reshape(tf.transpose(kernel, (2, 0, 1, 3)), (-1, size, layer.filters))
    window = tf.reshape(window, (-1, height * width, size))
    term = window @ tf.gather(kernel, channels)
    return tf.reshape(term, (-1, height, width, layer.filters))


def _holds(tensors, tensor):
    return any(t is tensor for t in tensors)


def _unique(tensors):
    return list({id(t): t for t in tensors}.values())
