"""Which calls of two graphs correspond: by weights, names, connections, structure."""

import zlib
from collections import defaultdict
from difflib import SequenceMatcher

import numpy as np

from keras_delta._network.graph import Graph
from keras_delta._network.lora import arrays, own_weights

MOST = 0.9  # of the names must agree where names are to decide


def find_pairs(target: Graph, source: Graph):
    """Dict, name of a call in the target -> name of its counterpart in the source.

    1. Layers with equal weights are pairs, whatever their place and name.
    2. Of the others, layers of the same name and kind, where names mean the same in
       both networks. They need not: Keras numbers layers as a process goes, and the
       second InceptionV3 of a process shares 297 names less with the first than one
       would think.
    3. From these the pairs spread along the connections, to calls of one kind that
       take the same. So do the calls of a layer that is called several times: their
       numbers need not mean the same, nested models are computed in another order.
    4. What is left is aligned by structure, both graphs read depth first.
    """
    search = _Search(target, source)
    search.pair_equal_weights()
    search.pair_equal_names()
    search.spread()
    search.pair_calls()
    search.align()
    return search.pairs


class _Search:
    """Pairs found so far; `ours` are calls of the target, `theirs` of the source."""

    def __init__(self, target, source):
        self.pairs, self._taken = {}, set()
        self._target, self._source = target, source
        self._ours, self._theirs = target.depth_first(), source.depth_first()
        self._kinds = {name: _kind(node) for name, node in target.nodes.items()}
        self._their_kinds = {name: _kind(node) for name, node in source.nodes.items()}
        self._calls = _calls(target, self._ours)
        self._their_calls = _calls(source, self._theirs)
        # Layers, by the names of their first calls, and from each call to its layer.
        self._layers, self._taken_layers = {}, set()
        self._layer = {n: k for k, names in self._calls.items() for n in names}
        self._their_layer = {
            n: k for k, names in self._their_calls.items() for n in names
        }

    def _add(self, pairs):
        self.pairs.update(pairs)
        self._taken.update(theirs for _, theirs in pairs)

    def _add_layers(self, pairs):
        """Pair layers, and of their calls the first, if the source has no other."""
        self._layers.update(pairs)
        self._taken_layers.update(theirs for _, theirs in pairs)
        self._add([(a, b) for a, b in pairs if len(self._their_calls[b]) == 1])

    def _may(self, ours, theirs):
        """Whether nothing that is known about their layers forbids a pair of calls."""
        a, b = self._layer[ours], self._their_layer[theirs]
        known = self._layers.get(a)
        return known == b if known else b not in self._taken_layers

    def pair_equal_weights(self):
        """Of several equal layers that of the same name; else their order decides.

        Where one side has more of them (a BatchNormalization as it was made, say),
        what surrounds them decides, later.
        """
        ours = _by_weights(self._target, self._calls, self._kinds)
        theirs = _by_weights(self._source, self._their_calls, self._their_kinds)
        for key, names in ours.items():
            others = theirs.get(key, [])
            same = [n for n in names if n in others]
            self._add_layers([(n, n) for n in same])
            left = [n for n in names if n not in same]
            others = [n for n in others if n not in same]
            if len(left) == len(others):
                self._add_layers(list(zip(left, others, strict=True)))

    def pair_equal_names(self):
        """Only if nearly all names that both networks have mean the same in both."""
        weighted = [n for n in self._their_calls if _has_weights(self._source.nodes[n])]
        shared = [n for n in weighted if n in self._calls]
        agreeing = [n for n in shared if self._kinds[n] == self._their_kinds[n]]
        by_weights = [ours == theirs for ours, theirs in self._layers.items()]
        if (
            2 * len(agreeing) >= len(weighted)
            and len(agreeing) >= MOST * len(shared)
            and sum(by_weights) >= MOST * len(by_weights)
        ):
            free = (n for n in agreeing if n not in self._layers)
            self._add_layers([(n, n) for n in free if n not in self._taken_layers])

    def spread(self):
        """Pair calls of one kind that take the same tensors."""
        takers = defaultdict(list)
        for theirs in self._theirs:
            taken = _taken(self._source, theirs)
            takers[self._their_kinds[theirs], taken].append(theirs)
        for ours in self._ours:
            if ours in self.pairs:
                continue
            taken = _taken(self._target, ours, self.pairs)
            found = takers.get((self._kinds[ours], taken), ())
            found = [n for n in found if n not in self._taken and self._may(ours, n)]
            if found:
                self._add([(ours, ours if ours in found else found[0])])

    def pair_calls(self):
        """Of paired layers' calls that take what has no pair: by inputs, by order."""
        for ours in self._ours:
            if ours in self.pairs or self._layer[ours] not in self._layers:
                continue
            found = self._their_calls[self._layers[self._layer[ours]]]
            found = [n for n in found if n not in self._taken]
            reached = _reached(self._target, ours)
            same = [n for n in found if _reached(self._source, n) == reached]
            if found:
                self._add([(ours, (same or found)[0])])
                self.spread()

    def align(self):
        """Pair what lies between pairs in the same order."""
        numbers = {theirs: i for i, theirs in enumerate(self.pairs.values())}
        a = [
            numbers[self.pairs[n]] if n in self.pairs else self._kinds[n]
            for n in self._ours
        ]
        b = [numbers.get(n, self._their_kinds[n]) for n in self._theirs]
        matcher = SequenceMatcher(None, a, b, autojunk=False)
        for block in matcher.get_matching_blocks():
            ours = self._ours[block.a : block.a + block.size]
            theirs = self._theirs[block.b : block.b + block.size]
            pairs = zip(ours, theirs, strict=True)
            self._add([p for p in pairs if p[0] not in self.pairs and self._may(*p)])


def _kind(node):
    """Class, shapes of the weights and channels of the outputs of a call."""
    weights = ()
    if node.is_layer:
        weights = tuple(tuple(w.shape) for w in own_weights(node.operation))
    channels = tuple(t.shape[-1] if len(t.shape) > 1 else None for t in node.outputs)
    operation = type(node.operation)
    operation = getattr(operation, "takes_place_of", operation)
    return (operation.__name__, weights, channels)


def _has_weights(node):
    return node.is_layer and bool(node.operation.weights)


def _calls(graph, names):
    """Dict from a layer's (or operation's) first call to all of them, in order."""
    first = {id(layer): name for name, layer in graph.layers().items()}
    found = defaultdict(list)
    for name in names:
        found[first.get(id(graph.nodes[name].operation), name)].append(name)
    return found


def _by_weights(graph, names, kinds):
    """Dict from kind and weights to the layers that have them, in order."""
    found = defaultdict(list)
    for name in names:
        if _has_weights(graph.nodes[name]):
            checksum = _checksum(graph.nodes[name].operation)
            found[kinds[name], checksum].append(name)
    return found


def _checksum(layer):
    found = 0
    for v in arrays(layer):
        found = zlib.crc32(np.ascontiguousarray(v).reshape(-1).view(np.uint8), found)
    return found


def _taken(graph, name, pairs=None):
    """What a call takes, in terms of the source's calls: (call, number of output)."""
    found = []
    for tensor in graph.nodes[name].inputs:
        producer = graph.name_of(tensor)
        of = graph.inputs if producer is None else graph.nodes[producer].outputs
        number = [id(t) for t in of].index(id(tensor))
        if pairs is not None and producer is not None:
            producer = pairs.get(producer, False)  # False: nothing in the source
        found.append((producer, number))
    return tuple(found)


def _reached(graph, name):
    """Numbers of the graph's inputs that a call depends on."""
    names = {name, *graph.ancestors(graph.nodes[name].inputs)}
    entering = {id(t) for n in names for t in graph.nodes[n].inputs}
    return [i for i, t in enumerate(graph.inputs) if id(t) in entering]
