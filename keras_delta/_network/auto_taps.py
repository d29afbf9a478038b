"""`taps="auto"`: selects layers spread over a network."""

from math import log2

import keras
from keras import tree

from keras_delta._network.graph import Graph

CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
COUNT = 4  # taps where there are no stages
BEHIND = 0.25  # of the parameters, that may lie behind the last stage's tap
SIDE = 256  # pixels, in place of a size that the input leaves open

_published = []


def register_published_taps(find):
    """Let `find` know the published taps of a network.

    Args:
        find: function from a `Graph` to a list of layer names, in the order of
            computation; None for a network that it does not know.
    """
    if find not in _published:
        _published.append(find)


def find(graph: Graph, among=None):
    """Published taps of a known network, else one per resolution stage, else spread.

    Known are those of `keras_delta.backbones`, also where Keras or keras-cv built
    them. Of any other network: the output of the last convolution at each resolution,
    depthwise ones excepted. Where that gives a single one, or leaves a quarter of the
    parameters behind the last (transformers, whose convolutions embed patches):
    `COUNT` layers that are spread evenly over the parameters, sums of residual
    branches if there are any, else convolutions, else layers with weights.

    Args:
        graph: the network's graph.
        among: names of the calls to choose from; default: all.

    Returns:
        List of names, in the order of computation; empty for a network without
        feature maps `(batch, positions..., channels)`.
    """
    among = set(graph.nodes if among is None else among)
    if names := published(graph, among):
        return names
    maps = [n for n in graph.nodes if n in among and _is_map(graph.nodes[n])]
    stages = _last_of_each_stage(graph, maps)
    inside = among & graph.ancestors([graph.output_of(n) for n in maps])  # no head
    if len(stages) > 1 and share_behind(graph, stages[-1], inside) <= BEHIND:
        return stages
    return _spread(graph, maps, inside)


def find_block_ends(graph: Graph):
    """The sums of residual branches, and the ends of stages without one.

    Behind their BatchNormalization and activation, where these follow.

    Args:
        graph: the network's graph.

    Returns:
        List of names, in the order of computation.
    """
    maps = [n for n, node in graph.nodes.items() if _is_map(node)]
    ends = {_behind(graph, n) for n in maps if _is_sum(graph.nodes[n])}
    for name in (_behind(graph, n) for n in find(graph)):
        if not any(_is_sum(node) for node in _takers(graph, name)):
            ends.add(name)
    return [name for name in graph.nodes if name in ends]


def find_stage_ends(graph: Graph, count=4):
    """The last block of each of the last `count` resolutions.

    Args:
        graph: the network's graph.
        count: the largest number of names.

    Returns:
        List of names, in the order of computation.
    """
    sizes = _sizes(graph)
    last = {sizes[n]: n for n in find_block_ends(graph) if n in sizes}
    return list(last.values())[-count:]


def _takers(graph, name):
    """The calls that take the output of one."""
    output = graph.nodes[name].outputs[0]
    return [
        node for node in graph.nodes.values() if any(t is output for t in node.inputs)
    ]


def _behind(graph, name):
    """Name of the last of what follows a call and has no convolution."""
    layers = keras.layers
    kinds = (layers.BatchNormalization, layers.Activation, layers.ReLU, layers.Dropout)
    while True:
        takers = _takers(graph, name)
        if len(takers) != 1 or not isinstance(takers[0].operation, kinds):
            return name
        name = graph.name_of(takers[0].outputs[0])


def published(graph, among):
    """The published taps of a known network, if all of them are `among`; else None."""
    for find_names in _published:
        names = find_names(graph)
        if names and set(names) <= set(among):
            return names
    return None


def share_behind(graph, name, among):
    """Share of the parameters of some calls that lie behind the call `name`."""
    counts = count_parameters(graph, among)
    before = graph.ancestors(graph.nodes[name].outputs)
    total = sum(counts.values())
    return 1 - sum(counts[n] for n in before if n in counts) / total if total else 0.0


def count_parameters(graph, among):
    """Dict name -> number of parameters, of calls; a shared layer counts once."""
    return {n: x.count_params() for n, x in graph.layers().items() if n in among}


def _is_map(node):
    if len(node.outputs) != 1:
        return False
    shape = node.outputs[0].shape
    return len(shape) >= 3 and shape[-1] is not None


def _is_convolution(node):
    operation = node.operation
    return isinstance(operation, CONVOLUTIONS) and not isinstance(operation, DEPTHWISE)


def _last_of_each_stage(graph, maps):
    sizes = _sizes(graph)
    names = [n for n in graph.nodes if _is_convolution(graph.nodes[n])]
    names = [n for n in names if n in maps and n in sizes]
    if not names:
        return []
    last, largest = {}, [max(sizes[n]) for n in names]
    first = sizes.get(graph.name_of(graph.nodes[names[0]].inputs[0]), sizes[names[0]])
    for i, name in enumerate(names):
        # 1x1 with larger maps to come: a squeeze-and-excitation gate, not a stage.
        if largest[i] == 1 and max(largest[i:]) > 1:
            continue
        # Valid padding shaves a few pixels off within a stage: round to octaves.
        stage = tuple(
            round(log2(a / b)) for a, b in zip(first, sizes[name], strict=False)
        )
        last[stage] = name
    return [name for name in names if name in last.values()]


def _sizes(graph):
    """Dict name -> positions of the call's map; None stands for the inputs.

    Sizes that the inputs leave open are worked out for one of `SIDE` pixels.
    """
    tensors = {n: v.outputs[0] for n, v in graph.nodes.items() if v.outputs}
    if any(None in t.shape[1:] for t in graph.inputs):
        given = [
            keras.KerasTensor([t.shape[0], *(d or SIDE for d in t.shape[1:])], t.dtype)
            for t in graph.inputs
        ]
        # Some cannot be worked out: then there are no stages.
        try:
            tensors = graph.run(tensors, graph.inputs, given)
        except (TypeError, ValueError):
            return {}
        inputs = given
    else:
        inputs = graph.inputs
    sizes = {n: tuple(t.shape[1:-1]) for n, t in tensors.items() if len(t.shape) > 2}
    images = [t for t in inputs if len(t.shape) > 2]
    sizes[None] = tuple(images[0].shape[1:-1]) if images else ()
    return {n: size for n, size in sizes.items() if size and None not in size}


def _spread(graph, maps, among):
    """Layers at even steps of the parameters, the last as late as can be."""
    counts = count_parameters(graph, among)
    share, seen = {}, 0
    for name in graph.nodes:
        seen += counts.get(name, 0)
        share[name] = seen
    maps = [n for n in maps if share[n]]
    sums = [n for n in maps if _is_sum(graph.nodes[n])]
    convolutions = [n for n in maps if _is_convolution(graph.nodes[n])]
    weighted = [n for n in maps if counts.get(n)]
    names = next((g for g in (sums, convolutions, weighted) if len(g) > 1), maps[-1:])
    if not names:
        return []
    whole = share[names[-1]]
    steps = [whole * k / COUNT for k in range(1, COUNT + 1)]
    found = [next(n for n in names if share[n] >= step) for step in steps]
    found[-1] = names[-1]
    return list(dict.fromkeys(found))


def _is_sum(node):
    """Whether a call adds two tensors, as residual branches are."""
    name = type(node.operation).__name__
    tensors = [t for t in tree.flatten(node.inputs) if len(t.shape) >= 3]
    return name == "Add" and len(tensors) > 1
