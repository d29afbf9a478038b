"""Networks with channels switched off: by their graph, or as a whole."""

import contextlib
from collections import Counter

import tensorflow as tf
from keras import ops, tree

from keras_delta._errors import unknown_name
from keras_delta._network import memory
from keras_delta._network.graph import Graph
from keras_delta.attention.channelwise import stated_axis
from keras_delta.attention.frozen import Frozen
from keras_delta.attention.losses import with_logits
from keras_delta.attention.suffix import Suffix


class Cut:
    """A network that is cut behind its taps; what lies before is computed once.

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
        """A batch as the list of tensors that `run_intact` takes."""
        return self.graph.feed(x)

    def run_intact(self, feeds):
        """What all pairs of a batch share, and the outputs of the intact network.

        Args:
            feeds: what `feed` returned, for one batch.

        Returns:
            List of what `Suffix.base` returns, one a tap, and list of outputs.
        """
        taps = self.taps.values()
        with self.frozen.scope():
            values, outputs = self.graph.run(
                ([s.entering for s in taps], tree.flatten(self.graph.outputs)),
                self.graph.inputs,
                feeds,
                training=False,
            )
            # An operation on strings forgets how many there were.
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
        """Bytes that the work takes besides the network.

        Returns:
            Bytes in any case, for each sample of a batch, and dict tap -> bytes for
            each pair in a call.
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


class Whole:
    """A network whose graph cannot be read: each pair runs through all of it.

    Args:
        model: a model that has been called once.
        taps: names of layers, wherever in the model.

    Attributes: as of `Cut`.
    """

    def __init__(self, model, taps, x):
        self.model = model
        self.frozen = Frozen([model])
        layers = _by_name(model)
        self._structure = x
        self.taps = {}
        for tap in taps:
            if tap not in layers:
                namesakes = [path for path in layers if path.endswith(f"/{tap}")]
                raise ValueError(
                    f"Several layers are called '{tap}'. Say which one: {namesakes}."
                    if namesakes
                    else unknown_name("taps", tap, layers)
                )
            self.taps[tap] = _Masked(self, layers[tap])
        with contextlib.ExitStack() as stack:
            for masked in self.taps.values():
                stack.enter_context(masked.listening())
            self.run([v[:1] for v in self.feed(x)])
        for tap, masked in self.taps.items():
            if masked.channels is None:
                raise ValueError(_not_called(tap))

    def feed(self, x):
        """See `Cut.feed`."""
        return [ops.convert_to_tensor(v) for v in tree.flatten(x)]

    def run_intact(self, feeds):
        """See `Cut.run_intact`."""
        count = feeds[0].shape[0]
        bases = [
            {"inputs": feeds, "changes": tf.ones((count, m.channels), bool)}
            for m in self.taps.values()
        ]
        return bases, self.run(feeds)

    def needs(self, feeds):
        """See `Cut.needs`; a rough guess, since the maps inside are not known."""
        shapes = [v.shape[1:].num_elements() * v.dtype.size for v in feeds]
        inputs = sum(shapes)
        return 0, inputs, {t: 64 * inputs + 4 * m.size for t, m in self.taps.items()}

    def first_not_finite(self, feeds):
        """Not known here."""
        return None

    def run(self, feeds):
        """The model's outputs as a list."""
        x = tree.pack_sequence_as(self._structure, feeds)
        with self.frozen.scope():
            return with_logits(self.model(x, training=False))


class _Masked:
    """One tapped layer of a model that runs as a whole; the interface of `Suffix`."""

    def __init__(self, network, layer):
        self._network, self._layer = network, layer
        self.channels, self.size, self.traces, self.reaches = None, 0, 0, True

    @contextlib.contextmanager
    def _replaced(self, change):
        """Have `change` applied to what the layer puts out."""
        own = vars(self._layer).get("call")  # of the object and not of its class
        original = self._layer.call
        calls = []

        def call(*args, **kwargs):
            output = original(*args, **kwargs)
            if not hasattr(output, "shape"):
                raise ValueError(
                    f"Layer '{self._layer.name}' has several outputs; only layers "
                    "with one output can be tapped."
                )
            calls.append(output.shape)
            return change(output)

        self._layer.call = call
        try:
            yield calls
        finally:
            del self._layer.call
            if own is not None:
                self._layer.call = own

    def _axis(self, rank):
        axis = stated_axis(self._layer, rank)
        return rank - 1 if axis is None else axis

    def listening(self):
        """A context in which the layer's output is looked at."""

        def look(output):
            self.channels = output.shape[self._axis(len(output.shape))]
            self.size = tf.TensorShape(output.shape[1:]).num_elements() * 4
            return output

        return self._replaced(look)

    def outputs(self, base, samples, channels):
        """See `Suffix.outputs`."""
        self.traces += 1

        def mask(output):
            axis = self._axis(len(output.shape))
            shape = [-1, *[1] * (len(output.shape) - 1)]
            shape[axis] = self.channels
            off = tf.one_hot(channels, self.channels, True, False)
            zero = tf.zeros((), output.dtype)
            return tf.where(tf.reshape(off, shape), zero, output)

        with self._replaced(mask) as calls:
            out = self._network.run([tf.gather(v, samples) for v in base["inputs"]])
        if not calls:
            raise ValueError(_not_called(self._layer.name))
        return out


def _not_called(layer):
    return (
        f"The layer '{layer}' was not called when the model ran. Tap a layer that the "
        "model's `call` uses, and have no `@tf.function` on that `call`: it would keep "
        "what it traced first."
    )


def _by_name(model):
    """Dict name -> layer, of all layers wherever in a model; paths for namesakes."""
    layers = model._flatten_layers()
    count = Counter(layer.name for layer in layers)
    return {x.name if count[x.name] == 1 else x.path or x.name: x for x in layers}


def _check_rows(tap, values, count):
    """Refuse tensors at a tap, or beside it, that have other rows than samples."""
    for v in values:
        if v.shape[0] != count:
            raise ValueError(
                f"At the tap '{tap}' the network has maps of {v.shape[0]} rows for "
                f"{count} samples. Tap a layer where the first axis is the batch "
                "alone, before windows are folded into it or after they are taken out."
            )
