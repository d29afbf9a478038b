"""Which layer of the target is which layer of the source.

Layers are matched by structure: both graphs are read depth first and aligned by
what each call is (class, shapes of its weights, channels of its output). Names play
no part, because Keras numbers layers as a process goes: the second InceptionV3 of a
process shares 297 names less with the first than one would think.
"""

from difflib import SequenceMatcher

from keras_delta._network.graph import Graph


class Pairing:
    """Target and source layers that correspond, and what only the target has.

    Args:
        target: `Graph` of the target.
        source: `Graph` of the source.

    Attributes:
        names: dict, name of a call in the target -> name of its counterpart.
        new_layers: names of the target's layers with weights that the source
            does not have: the head, as a rule.
        unmatched: names of the source's layers with weights that the target
            does not have: the source's own head, as a rule.
    """

    def __init__(self, target: Graph, source: Graph):
        self.target, self.source = target, source
        a, b = target.depth_first(), source.depth_first()
        matcher = SequenceMatcher(
            None,
            [_signature(target.nodes[name]) for name in a],
            [_signature(source.nodes[name]) for name in b],
            autojunk=False,
        )
        self.names = {
            a[block.a + i]: b[block.b + i]
            for block in matcher.get_matching_blocks()
            for i in range(block.size)
        }
        self._layers = _weighted(target)
        self._source_layers = _weighted(source)
        # A shared layer is paired if any of its calls is.
        self._partner = {}
        for ours, theirs in self.names.items():
            layer = target.nodes[ours].operation
            self._partner.setdefault(id(layer), source.nodes[theirs].operation)
        taken = {id(layer) for layer in self._partner.values()}
        self.new_layers = [
            n for n, layer in self._layers.items() if id(layer) not in self._partner
        ]
        self.unmatched = [
            n for n, layer in self._source_layers.items() if id(layer) not in taken
        ]

    @property
    def variables(self):
        """List of (target variable, source variable), trainable ones alone."""
        pairs = []
        for name, layer in self._layers.items():
            if id(layer) in self._partner:
                pairs.extend(self.of_layer(name))
        return pairs

    def of_layer(self, name):
        """(target variable, source variable) of one paired target layer."""
        layer = self._layers[name]
        source = self._partner[id(layer)]
        partner = {id(v): s for v, s in zip(layer.weights, source.weights, strict=True)}
        return [(v, partner[id(v)]) for v in layer.trainable_variables]

    @property
    def new_variables(self):
        """The target's trainable variables that the source does not have."""
        return [
            v
            for name in self.new_layers
            for v in self._layers[name].trainable_variables
        ]

    def check(self, source_taps):
        """Refuse a source of which the target has not every layer up to the taps.

        Args:
            source_taps: KerasTensors of the source graph.

        Raises:
            ValueError: naming the layers without a counterpart.
        """
        needed = self.source.ancestors(source_taps)
        missing = [name for name in self.unmatched if name in needed]
        if not missing:
            return
        listed = ", ".join(
            f"'{n}' ({_describe(self._source_layers[n])})" for n in missing[:5]
        )
        extra = ", ".join(
            f"'{n}' ({_describe(self._layers[n])})" for n in self.new_layers[:5]
        )
        raise ValueError(
            "Source and target do not match: these layers of the source, on the way "
            f"to its taps, have no counterpart in the target: {listed}"
            f"{' and more' if len(missing) > 5 else ''}. Layers that only the target "
            f"has: {extra or 'none'}. Build the target with "
            "`keras_delta.attach_head(source, classes)`, or pass the source that it "
            "was made from."
        )

    def __repr__(self):
        def count(variables):
            return sum(v.shape.num_elements() or 0 for v in variables)

        lines = [
            f"Pairing: {len(self._layers) - len(self.new_layers)} layers with weights "
            f"in source and target ({count(v for v, _ in self.variables):,} "
            "trainable parameters)"
        ]
        lines += [
            f"  only the target: {n} ({_describe(self._layers[n])})"
            for n in self.new_layers
        ]
        lines += [
            f"  only the source: {n} ({_describe(self._source_layers[n])})"
            for n in self.unmatched
        ]
        return "\n".join(lines)


def _weighted(graph):
    return {name: layer for name, layer in graph.layers().items() if layer.weights}


def _signature(node):
    weights = ()
    if node.is_layer:
        weights = tuple(tuple(w.shape) for w in node.operation.weights)
    channels = tuple(t.shape[-1] if len(t.shape) > 1 else None for t in node.outputs)
    return (type(node.operation).__name__, weights, channels)


def _describe(layer):
    shapes = " ".join(str(tuple(w.shape)) for w in layer.weights[:2])
    return f"{type(layer).__name__} {shapes}"
