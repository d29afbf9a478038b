"""Where the source starts in the target: both see the same pixels from there on."""

from keras import tree

from keras_delta import _compat
from keras_delta._compat import array
from keras_delta._network.graph import shapes_fit

# What a layer's config may say otherwise without computing otherwise, while frozen.
WITHOUT_EFFECT = ("name", "trainable", "momentum", "build_config", "seed")
WITHOUT_EFFECT_ENDS = ("_initializer", "_regularizer", "_constraint")


class Entry:
    """The tensors of the target that the source is fed with.

    The source need not begin where the target does: the target may rescale, augment or
    resize its images first, or so may both. From the first layers with weights on they
    are pairs, and there the source takes what the target computed: the same crop, flip
    and scale. What the source has in front of them does not run.

    Without pairs the source runs from its inputs on, and both preprocess for
    themselves.

    Args:
        target, source: `Graph`s.
        pairs: dict, call of the target -> its counterpart in the source.
        taps: the source's KerasTensors that are wanted.

    Attributes:
        feeds: the source's KerasTensors with which it begins.
        tensors: the target's in their place.
        names: the calls of the source behind them, up to the taps.
        front: the calls of the target before them.

    Raises:
        ValueError: for an input of the source that nothing in the target stands for.
    """

    def __init__(self, target, source, pairs, taps):
        theirs = {theirs: ours for ours, theirs in pairs.items()}
        taps = tree.flatten(taps)
        wanted = source.ancestors(taps)
        first = [
            t
            for name in wanted & set(theirs)
            if source.nodes[name].is_layer and source.nodes[name].operation.weights
            for t in source.nodes[name].outputs
        ]
        own = {source.name_of(t) for t in (*first, *taps)} - {None}
        self.names = (own | source.descendants([*first, *taps])) & wanted
        if not theirs:  # another network runs from its inputs on
            self.names = wanted
        self.feeds = source.entering(self.names)
        self.tensors = [
            _counterpart(t, target, source, theirs, self.names) for t in self.feeds
        ]
        self.front = target.ancestors(self.tensors)

    def is_alike(self, target, source):
        """Whether both networks do the same in front of the tensors, but at random."""
        shapes = [[t.shape[1:] for t in g.inputs] for g in (target, source)]
        if len(shapes[0]) != len(shapes[1]) or not all(map(shapes_fit, *shapes)):
            return False
        fronts = self.front, source.ancestors(self.feeds)
        return _describe(target, fronts[0]) == _describe(source, fronts[1])

    def changing(self, target):
        """Names of the calls in front that give other tensors in each step."""
        return [
            name
            for name, node in target.nodes.items()
            if name in self.front
            and node.is_layer
            and (node.operation.trainable_variables or draws_at_random(node.operation))
        ]


def settings(node):
    """What a call computes besides its weights, for comparing."""
    return type(node.operation), repr(config(node))


def config(node):
    """A dict of what a call's layer or operation was made with, as far as it counts."""
    found = node.operation.get_config() if node.is_layer else vars(node.operation)
    return {
        key: value
        for key, value in found.items()
        if not key.startswith("_") and not is_without_effect(key)
    }


def is_without_effect(key):
    """Whether a key of a config says nothing about what a frozen layer computes."""
    return key in WITHOUT_EFFECT or key.endswith(WITHOUT_EFFECT_ENDS)


def _describe(graph, names):
    """What calls compute, weights included, but for what they draw at random."""
    found = []
    for name, node in graph.nodes.items():
        if name not in names or (node.is_layer and draws_at_random(node.operation)):
            continue
        weights = node.operation.weights if node.is_layer else []
        found.append((settings(node), [array(v).tolist() for v in weights]))
    return found


def draws_at_random(layer):
    """Whether a layer, or one inside it, draws random numbers."""
    return any(map(_compat.seed_states, _compat.flatten_layers(layer)))


def _counterpart(tensor, target, source, theirs, behind):
    """The target's tensor that enters where `tensor` enters the source."""
    for name in source.nodes:
        takes = source.nodes[name].inputs
        if name in behind and name in theirs and any(t is tensor for t in takes):
            ours = target.nodes[theirs[name]].inputs
            if len(ours) == len(takes):
                return ours[[id(t) for t in takes].index(id(tensor))]
    producer = source.name_of(tensor)
    if producer is None and not theirs:
        return _behind_augmentation(tensor, target, source)
    if producer in theirs:
        outputs = [id(t) for t in source.nodes[producer].outputs]
        return target.nodes[theirs[producer]].outputs[outputs.index(id(tensor))]
    inputs = [id(t) for t in source.inputs]
    if producer is None and inputs.index(id(tensor)) < len(target.inputs):
        return target.inputs[inputs.index(id(tensor))]
    raise ValueError(
        f"Source and target do not match: nothing in the target corresponds to the "
        f"tensor '{tensor.name}' that the source needs. Build the target with "
        "`keras_delta.attach_head(source, classes)`, or pass the source that it was "
        "created from."
    )


def _behind_augmentation(tensor, target, source):
    """The target's tensor for an input of a source that is another network.

    Nothing corresponds, so each preprocesses for itself; but both see the same flip.
    """
    place = [id(t) for t in source.inputs].index(id(tensor))
    if place >= len(target.inputs):
        raise ValueError(
            f"The source has {len(source.inputs)} inputs and the target "
            f"{len(target.inputs)}. Give both the same."
        )
    entering = target.inputs[place]
    for name, node in target.nodes.items():
        if not node.is_layer or node.operation.weights:
            continue
        if not draws_at_random(node.operation):
            continue
        if [id(t) for t in node.inputs] == [id(entering)]:
            entering = node.outputs[0]
        elif not any(
            target.nodes[n].is_layer and target.nodes[n].operation.weights
            for n in target.ancestors(node.outputs)
        ):
            raise ValueError(
                f"The target changes its images at random in '{name}', after other "
                "layers. The source is another network with its own preprocessing, "
                "and would not see the same. Put augmentation first in the target, or "
                "into the data."
            )
    if not shapes_fit(entering.shape[1:], tensor.shape[1:]):
        raise ValueError(
            f"The source, or teacher, takes images of {tuple(tensor.shape[1:])}, and "
            f"the target passes {tuple(entering.shape[1:])} on to it. Build both with "
            "the same `input_shape`."
        )
    return entering
