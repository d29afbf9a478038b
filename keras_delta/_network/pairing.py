"""Pairs the layers of the target with those of the source."""

from keras_delta import _compat
from keras_delta._errors import invalid, unknown_name
from keras_delta._network.correspondence import find_pairs
from keras_delta._network.graph import Graph
from keras_delta._network.lora import own_weights, trained_values, values


class Pairing:
    """Target and source layers that correspond, and what only the target has.

    Args:
        target: `Graph` of the target.
        source: `Graph` of the source.
        names: pairs that are known, for networks that were trained since; None: see
            `find_pairs`.

    Attributes:
        names: dict, name of a call in the target -> name of its counterpart.
        new_layers: names of the target's layers with weights that the source
            does not have: the head, as a rule.
        unmatched: names of the source's layers with weights that the target
            does not have: the source's own head, as a rule.
    """

    def __init__(self, target: Graph, source: Graph, names=None):
        self.target, self.source = target, source
        if names is None:
            found = find_pairs(target, source)
        else:
            found = _checked(names, target, source)
        self.names = {name: found[name] for name in target.nodes if name in found}
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

    @property
    def weights(self):
        """List of (target variable, source variable), of all weights of the pairs."""
        return [
            pair
            for layer in self._layers.values()
            if id(layer) in self._partner
            for pair in zip(
                own_weights(layer), own_weights(self._partner[id(layer)]), strict=True
            )
        ]

    @property
    def parameters(self):
        """The pairs of `weights` that can be trained, frozen or not."""
        known = self._trainable()
        return [pair for pair in self.weights if id(pair[0]) in known]

    @property
    def statistics(self):
        """The other pairs of `weights`: BatchNorm's moving means and variances."""
        known = self._trainable()
        return [pair for pair in self.weights if id(pair[0]) not in known]

    def _trainable(self):
        layers = self._layers.values()
        return {id(v) for layer in layers for v in _compat.parameters(layer)}

    def of_layer(self, name):
        """(target variable, source variable) of what trains of one paired layer.

        Where LoRA trains in a kernel's place, the first one is a tensor, the kernel
        with LoRA's product.
        """
        layer = self._layers[name]
        pairs = zip(values(layer), values(self._partner[id(layer)]), strict=True)
        moving = set(trained_values(layer))
        return [pair for i, pair in enumerate(pairs) if i in moving]

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
        if text := self.find_mismatch(source_taps):
            raise ValueError(text)

    def find_mismatch(self, source_taps):
        """The text of the error that `check` raises; None where it does not."""
        needed = self.source.ancestors(source_taps)
        missing = [name for name in self.unmatched if name in needed]
        if not missing:
            return None
        listed = ", ".join(
            f"'{n}' ({_describe(self._source_layers[n])})" for n in missing[:5]
        )
        extra = ", ".join(
            f"'{n}' ({_describe(self._layers[n])})" for n in self.new_layers[:5]
        )
        return (
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


def _checked(names, target, source):
    """Pairs as a user gives them."""
    if not isinstance(names, dict):
        expected = "a dict of layer names, from the target's to the source's, or None"
        raise TypeError(invalid("pairing", expected, names))
    for ours, theirs in names.items():
        for graph, name, whose in (target, ours, "target"), (source, theirs, "source"):
            if name not in graph.nodes:
                raise ValueError(unknown_name(f"pairing ({whose})", name, graph.nodes))
        shapes = [
            [tuple(v.shape) for v in own_weights(node.operation)]
            if node.is_layer
            else []
            for node in (target.nodes[ours], source.nodes[theirs])
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"`pairing` maps the target's layer '{ours}' to '{theirs}' of the "
                f"source, but their weights have the shapes {shapes[0]} and "
                f"{shapes[1]}. Pair layers of the same shape."
            )
    return names


def _weighted(graph):
    return {name: layer for name, layer in graph.layers().items() if layer.weights}


def _describe(layer):
    shapes = " ".join(str(tuple(w.shape)) for w in layer.weights[:2])
    return f"{type(layer).__name__} {shapes}"
