"""Source and target side by side: graphs, taps and pairing."""

import keras
import tensorflow as tf
from keras import tree

from keras_delta._network import fingerprint, taps
from keras_delta._network.copies import copy_model
from keras_delta._network.entry import Entry
from keras_delta._network.graph import Graph, check_channels_last
from keras_delta._network.heads import body_outputs
from keras_delta._network.pairing import Pairing
from keras_delta._network.sharing import Shared, settings


class Networks:
    """The two networks of a `DeltaModel`, and how they correspond.

    Args:
        target: Functional or Sequential model to train.
        source: the pretrained one, which is copied and frozen; None for a snapshot
            of the target without its head, as it is now.
        tapped: `"auto"`, a list of the target's layer names, or a dict from target to
            source names.
        paired: dict of the pairs, where they are known, see `Pairing`.

    Attributes:
        target, source: their `Graph`s.
        frozen_source: the frozen copy, a Keras model.
        pairing: the `Pairing` of the two.
        taps: dict, tapped layer of the target -> that of the source.
        target_taps, source_taps: dicts, tap -> KerasTensor of its map.
        entry: the `Entry`, where the source begins in the target.

    Raises:
        TypeError, ValueError: see `DeltaModel`.
    """

    def __init__(self, target, source=None, tapped="auto", paired=None):
        self.target = Graph(target, argument="target")
        check_channels_last(self.target, "target")
        if source is None:
            graph, ends = self.target, body_outputs(self.target)
            end = ends[0] if len(ends) == 1 else ends or None
        else:
            graph, end = Graph(source, argument="source"), None
            check_channels_last(graph, "source")
        copy = copy_model(graph, end, name="source", trainable=False)
        self.frozen_source, self.source = copy, Graph(copy)
        # What is given by name is called otherwise in the copy.
        names = {name: name.replace("/", "_") for name in graph.nodes}
        if source is not None:
            pairs = zip(graph.depth_first(), self.source.depth_first(), strict=True)
            names |= dict(pairs)
        tapped, paired = (_renamed(given, names) for given in (tapped, paired))
        self.pairing = Pairing(self.target, self.source, paired)
        self.taps = taps.choose(tapped, self.target, self.source, self.pairing)
        self.target_taps = {t: self.target.output_of(t) for t in self.taps}
        self.source_taps = {t: self.source.output_of(s) for t, s in self.taps.items()}
        self.pairing.check(list(self.source_taps.values()))
        self.entry = Entry(self.target, self.source, self.pairing, self.source_taps)

    @property
    def target_map_shapes(self):
        """Dict tap -> shape of the target's map, without the batch."""
        return {t: tuple(v.shape[1:]) for t, v in self.target_taps.items()}

    @property
    def source_map_shapes(self):
        """Dict tap -> shape of the source's map, without the batch."""
        return {t: tuple(v.shape[1:]) for t, v in self.source_taps.items()}

    @property
    def places(self):
        """Taps and pairs by their places, depth first: names may change in a file."""
        ours, theirs = (
            {name: i for i, name in enumerate(graph.depth_first())}
            for graph in (self.target, self.source)
        )
        return {
            "taps": [[ours[t], theirs[s]] for t, s in self.taps.items()],
            "pairing": [[ours[t], theirs[s]] for t, s in self.pairing.names.items()],
        }

    @property
    def source_fingerprint(self):
        """Digest of the source's calls, weights and taps, as hexadecimal digits."""
        taps = tree.flatten(self.source_taps)
        return fingerprint.of_model(self.source, taps)

    @property
    def maps_fingerprint(self):
        """Digest of all that the source's maps of an image depend on."""
        nodes = [
            self.target.nodes[n] for n in self.target.nodes if n in self.entry.front
        ]
        layers = [node.operation for node in nodes if node.is_layer]
        front = [settings(node) for node in nodes], fingerprint.of_weights(layers)
        return fingerprint.of_text(f"{self.source_fingerprint} {front}")

    def find_shared(self):
        """The calls that source and target compute alike as they are now."""
        taps = self.source_taps
        return Shared(self.target, self.source, self.pairing, taps, self.entry)

    def trained_batch_norms(self):
        """The target's BatchNormalization layers whose statistics move."""
        return [
            layer
            for layer in self.target.layers().values()
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]

    def run_target(self, inputs, training, fetches=(), held=()):
        """The target's outputs, and other tensors of it.

        Args:
            inputs: as the target takes them.
            training: whether in training mode.
            fetches: structure of KerasTensors.
            held: calls that run in inference mode all the same.

        Returns:
            `(outputs, fetched)`.
        """
        graph = self.target
        return graph.run(
            (graph.outputs, fetches),
            graph.inputs,
            graph.feed(inputs),
            training=training,
            held=held,
        )

    def run_with_frozen_features(self, inputs, fetches=()):
        """As `run_target` in training mode, but for what the source has as well.

        That part runs in inference mode, as a feature extractor: L2-FE's step. What
        augments the images in front of it does so.
        """
        paired = [
            self.target.output_of(name)
            for name in self.pairing.names
            if self.target.nodes[name].is_layer
            and self.target.nodes[name].operation.weights
        ]
        held = self.target.ancestors(paired) - self.entry.front
        return self.run_target(inputs, True, fetches, held)

    def run_source(self, inputs):
        """Dict tap -> the source's map of what the target takes, in inference mode."""
        graph, entry = self.target, self.entry
        values = graph.run(entry.tensors, graph.inputs, graph.feed(inputs), False)
        return self.go_on_in_source(entry.feeds, values)

    def go_on_in_source(self, feeds, values):
        """As `run_source`, from some of the source's tensors on; no gradient."""
        maps = self.source.run(self.source_taps, feeds, values, training=False)
        return tree.map_structure(tf.stop_gradient, maps)


def _renamed(given, names):
    """A dict to layers of the source, as their copies are called."""
    if not isinstance(given, dict):
        return given
    return {ours: names.get(theirs, theirs) for ours, theirs in given.items()}
