"""Computations shared by source and target, done once per step.

Where the first layers of the target are frozen, they give the same values as the
source's, in training too. `Shared` finds these calls; the source then begins where
they end, with what the target has computed.
"""

import keras
import numpy as np
from keras import tree

from keras_delta._network.entry import draws_at_random, settings
from keras_delta._network.graph import takes_training

# Noise that is off where it is frozen. Not random augmentation, which frozen layers
# behind it are still meant to see.
NOISE = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)


class Shared:
    """The calls that a step computes once for source and target.

    The source begins where `Entry` says, or later: a call is shared if all of this
    holds: it has a counterpart in the source with the same settings and bit for bit the
    same weights; nothing of it trains; it does in training what it does in inference
    (BatchNormalization where frozen), or is random without weights, so that the source
    must take what the target drew; and what enters it is shared as well.

    Args:
        target, source: `Graph`s.
        pairing: their `Pairing`.
        taps: the source's KerasTensors that are wanted.
        entry: the `Entry`.
        is_constant: whether the source's calls run as they are; else none is shared.

    Attributes:
        names: dict, shared call of the target -> call of the source.
        random: names of those that draw at random, in training mode.
        held: names of those that are to be run in inference mode: all the others
            that `Entry` does not name.
        entering: KerasTensors of the target with which the source begins.
        feeds: the source's KerasTensors in their place.
    """

    def __init__(self, target, source, pairing, taps, entry, is_constant=True):
        taps = tree.flatten(taps)
        tensors = {id(s): t for s, t in zip(entry.feeds, entry.tensors, strict=True)}
        shared = {}
        theirs = {theirs: ours for ours, theirs in pairing.names.items()}
        for name, node in source.nodes.items():
            ours = theirs.get(name)
            if (
                is_constant
                and name in entry.names
                and ours is not None
                and _alike(target.nodes[ours], node, tensors)
            ):
                shared[ours] = name
                outputs = target.nodes[ours].outputs
                tensors.update(
                    (id(s), t) for s, t in zip(node.outputs, outputs, strict=True)
                )
        self.random = [n for n in shared if _is_random(target.nodes[n].operation)]
        self.held = set(shared) - set(self.random)
        in_front = {t: s for t, s in pairing.names.items() if t in entry.front}
        self.names = {**in_front, **shared}
        rest = entry.names - set(shared.values())
        found = {id(t): t for t in source.entering(rest)}
        found.update((id(t), t) for t in taps if source.name_of(t) not in rest)
        self.feeds = list(found.values())
        self.entering = [tensors[id(t)] for t in self.feeds]
        nodes = [(target.nodes[t], source.nodes[s]) for t, s in shared.items()]
        self._layers = [(a.operation, b.operation) for a, b in nodes if a.is_layer]

    def still_holds(self):
        """Whether the shared layers still have the same weights, and none trains."""
        return all(
            not a.trainable_variables
            and (_same_in_training(a) or _is_random(a))
            and _same_weights(a, b)
            for a, b in self._layers
        )


def _alike(mine, theirs, tensors):
    """Whether two calls compute the same, given which of their tensors are the same."""
    entering = [id(tensors.get(id(t))) for t in theirs.inputs]
    if entering != [id(t) for t in mine.inputs]:
        return False
    layer = mine.operation
    if mine.is_layer and (
        layer.trainable_variables or not (_same_in_training(layer) or _is_random(layer))
    ):
        return False
    if _constants(mine) != _constants(theirs):
        return False
    return layer is theirs.operation or (
        settings(mine) == settings(theirs)
        and (not mine.is_layer or _same_weights(layer, theirs.operation))
    )


def _same_in_training(layer):
    if isinstance(layer, (keras.layers.BatchNormalization, *NOISE)):
        return not layer.trainable
    return not takes_training(layer) and not draws_at_random(layer)


def _is_random(layer):
    """Whether a layer only draws: the source is to take what it has drawn."""
    if isinstance(layer, NOISE) and not layer.trainable:
        return False
    return not layer.weights and draws_at_random(layer)


def _constants(node):
    """The arguments of a call, its tensors left out."""
    return tree.map_structure(
        lambda v: "tensor" if isinstance(v, keras.KerasTensor) else repr(v),
        (list(node.args), node.kwargs),
    )


def _same_weights(a, b):
    return a is b or all(
        np.array_equal(v.value.numpy(), w.value.numpy())
        for v, w in zip(a.weights, b.weights, strict=True)
    )
