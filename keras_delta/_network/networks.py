"""Source and target side by side: graphs, taps and pairing."""

import keras
import tensorflow as tf
from keras import tree

from keras_delta._network import fingerprint, taps
from keras_delta._network.copies import copy_model
from keras_delta._network.entry import Entry
from keras_delta._network.graph import Graph, check_channels_last
from keras_delta._network.heads import body_outputs, features
from keras_delta._network.pairing import Pairing
from keras_delta._network.sharing import Shared

OUTPUTS = "/outputs"  # no layer has such a name


class Networks:
    """The two networks of a `DeltaModel`, and how they correspond.

    Args:
        target: Functional or Sequential model to train.
        source: the pretrained one, which is copied and frozen; None for a snapshot
            of the target without its head, as it is now.
        tapped: `"auto"`, a list of the target's layer names, or a dict from target to
            source names.
        paired: dict of the pairs, where they are known, see `Pairing`.
        source_tapped: list of the source's layer names that are no pairs of `tapped`.

    Attributes:
        target, source: their `Graph`s.
        frozen_source: the frozen copy, a Keras model.
        pairing: the `Pairing` of the two; empty where they do not correspond.
        mismatch: why they do not, the text of an error; None if they do.
        taps: dict, tapped layer of the target -> that of the source; None for two
            lists.
        target_taps: dict, tap -> KerasTensor of its map.
        source_taps: the same of the source, under the target's names if taps are pairs.
        source_names: the same, to the names of the source's layers.
        fetched: dict of the source's KerasTensors that a step computes: maps under
            their taps, and the source's predictions under `OUTPUTS`.
        entry: the `Entry`, where the source begins in the target.

    Raises:
        TypeError, ValueError: see `DeltaModel`.
    """

    def __init__(
        self, target, source=None, tapped="auto", paired=None, source_tapped=None
    ):
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
        if isinstance(source_tapped, (list, tuple)):
            source_tapped = [names.get(name, name) for name in source_tapped]
        self._is_auto = tapped == "auto" and source_tapped is None
        graphs = self.target, self.source
        self.pairing = Pairing(*graphs, paired)
        self._chosen = taps.choose(tapped, source_tapped, *graphs, self.pairing)
        self.mismatch = self._chosen.mismatch
        if self.mismatch is not None:
            self.pairing = Pairing(*graphs, {})
        self.serve(None)

    def serve(self, regularizer):
        """Tap both networks, and feed the source, for what a regularizer needs.

        Without a regularizer, the maps of both can be had.
        """
        chosen, needs, self._call_source = self._chosen, {"source_maps"}, None
        looked_at = frozenset()
        if regularizer is not None:
            needs, looked_at = regularizer.needs, regularizer.prepare_needs
            if adapting := regularizer.find_adapting():
                self._call_source = adapting.call_source
            if self._is_auto:
                chosen = self._own_taps(regularizer) or chosen
        self.taps = chosen.pairs
        self.target_taps = {t: self.target.output_of(t) for t in chosen.target}
        keys = chosen.source if self.taps is None else chosen.target
        self.source_names = dict(zip(keys, chosen.source, strict=True))
        self.source_taps = {
            key: self.source.output_of(name) for key, name in self.source_names.items()
        }
        self.fetched = dict(self.source_taps) if "source_maps" in needs else {}
        if "source_outputs" in needs:
            self.fetched[OUTPUTS] = self.source.outputs
        wanted = {**self.source_taps, **self.fetched}
        if "source_outputs" in looked_at:
            wanted[OUTPUTS] = self.source.outputs
        graphs = self.target, self.source
        self.entry = Entry(*graphs, self.pairing.names, wanted)
        teaches = regularizer is not None and not regularizer.starts_at_source
        if teaches and self.fetched and not self.entry.is_alike(*graphs):
            self.entry = Entry(*graphs, {}, wanted)

    def _own_taps(self, regularizer):
        """The `Taps` that a regularizer chooses itself; None where it does not.

        Pairs where the networks correspond, so that no layer of the head is one.
        """
        both = [regularizer.choose_taps(g) for g in (self.target, self.source)]
        if not all(both):
            return None
        ours = {theirs: ours for ours, theirs in self.pairing.names.items()}
        if self.mismatch is not None or not all(name in ours for name in both[1]):
            return taps.Taps(*both)
        pairs = {ours[name]: name for name in both[1]}
        return taps.Taps(list(pairs), both[1], pairs)

    @property
    def target_features(self):
        """KerasTensor of what enters the target's last layer; None for other ends."""
        return features(self.target)

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
        """Names of the config by their places, depth first: they may change in a file.

        Dict key -> list of pairs of places, or of places.
        """
        ours, theirs = (
            {name: i for i, name in enumerate(graph.depth_first())}
            for graph in (self.target, self.source)
        )

        def places(pairs):
            return [[ours[t], theirs[s]] for t, s in pairs.items()]

        found = {"pairing": places(self.pairing.names)}
        if self.taps is not None:
            return {**found, "taps": places(self.taps)}
        found["taps"] = [ours[name] for name in self.target_taps]
        return {**found, "source_taps": [theirs[name] for name in self.source_taps]}

    def get_config(self):
        """What `DeltaModel` needs to find the same taps and pairs again."""
        config = {"pairing": dict(self.pairing.names), "places": self.places}
        if self.taps is not None:
            return {**config, "taps": dict(self.taps)}
        both = {"taps": list(self.target_taps), "source_taps": list(self.source_taps)}
        return config | both

    @property
    def fetched_shapes(self):
        """Dict of the shapes of `fetched`, without the batch."""
        return {key: tuple(v.shape[1:]) for key, v in self.fetched.items()}

    @property
    def source_fingerprint(self):
        """Digest of the source's calls, weights and taps, as hexadecimal digits."""
        taps = [self.source.output_of(name) for name in self._chosen.source]
        return fingerprint.of_model(self.source, taps)

    @property
    def maps_fingerprint(self):
        """Digest of all that what a step computes of the source depends on."""
        nodes = [
            self.target.nodes[n] for n in self.target.nodes if n in self.entry.front
        ]
        layers = [node.operation for node in nodes if node.is_layer]
        of_source = fingerprint.of_model(self.source, tree.flatten(self.fetched))
        settings = fingerprint.of_settings([*nodes, *self.source.nodes.values()])
        weights = fingerprint.of_weights(layers)
        return fingerprint.of_text(f"{of_source} {settings} {weights}")

    def find_shared(self):
        """The calls that source and target compute alike as they are now."""
        graphs, is_constant = (self.target, self.source), self._call_source is None
        return Shared(*graphs, self.pairing, self.fetched, self.entry, is_constant)

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
        """`fetched`, of what the target takes, in inference mode."""
        return self.go_on_in_source(self.entry.feeds, self._enter(inputs))

    def run_source_maps(self, inputs):
        """Dict tap -> the source's map of what the target takes, in inference mode."""
        return self._go_on(self.entry.feeds, self._enter(inputs), self.source_taps)

    def run_source_outputs(self, inputs):
        """The source's predictions for what the target takes, in inference mode.

        Where the regularizer needs them in `prepare` or in each step.
        """
        return self._go_on(self.entry.feeds, self._enter(inputs), self.source.outputs)

    def go_on_in_source(self, feeds, values):
        """As `run_source`, from some of the source's tensors on; no gradient."""
        return self._go_on(feeds, values, self.fetched)

    def run_adapted_source(self, feeds, values):
        """As `go_on_in_source`, with the regularizer's layers in it, and gradients."""
        calls = {self.source.name_of(t): tap for tap, t in self.source_taps.items()}
        names = {id(node): name for name, node in self.source.nodes.items()}
        compared = {}

        def call(node, *args, **kwargs):
            tap = calls.get(names[id(node)])
            passed_on, kept = self._call_source(node.operation, tap, *args, **kwargs)
            if tap is not None:
                compared[tap] = kept
            return passed_on

        computed = self.source.run(self.fetched, feeds, values, False, call)
        return {**computed, **compared}

    def _enter(self, inputs):
        """What the source begins with, of what the target takes."""
        graph = self.target
        return graph.run(self.entry.tensors, graph.inputs, graph.feed(inputs), False)

    def _go_on(self, feeds, values, fetches):
        computed = self.source.run(fetches, feeds, values, training=False)
        return tree.map_structure(tf.stop_gradient, computed)


def _renamed(given, names):
    """A dict to layers of the source, as their copies are called."""
    if not isinstance(given, dict):
        return given
    return {ours: names.get(theirs, theirs) for ours, theirs in given.items()}
