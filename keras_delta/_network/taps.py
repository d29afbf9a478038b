"""Taps: the layers whose feature maps are compared.

`choose` turns what the user said (`"auto"`, names, a dict) into a dict from
the target's to the source's layer names, checked against both graphs.
"""

from math import log2

import keras

from keras_delta._errors import invalid, unknown_name, warn
from keras_delta._network.graph import Graph
from keras_delta._network.pairing import Pairing

CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
EXAMPLE = "e.g. `taps=['block_6', 'block_12']`"

_published = []


def register_published_taps(find):
    """Let `auto` find the published taps of a network.

    Args:
        find: function from a `Graph` to a list of layer names, in the order of
            computation; None for a network that it does not know.
    """
    if find not in _published:
        _published.append(find)


def choose(taps, target: Graph, source: Graph, pairing: Pairing):
    """The taps as a dict, name in the target -> name in the source.

    Args:
        taps: `"auto"`, a list of the target's layer names, or a dict from
            target to source names.
        target: the target's graph.
        source: the source's graph.
        pairing: how the two correspond.

    Raises:
        TypeError: if `taps` is none of the three.
        ValueError: for an unknown name (closest ones listed), a layer without
            channels, a tap without counterpart, maps of different shapes.
    """
    if taps == "auto":
        taps = auto(target)
    if isinstance(taps, (list, tuple)) and taps:
        chosen = {}
        for name in taps:
            check(name, target, "target")
            if name not in pairing.names:
                # Another network altogether? That message helps more.
                pairing.check(source.outputs)
                raise ValueError(
                    f"Tap '{name}' of the target has no counterpart in the source. "
                    "Choose a layer that both have, or say which one is meant with "
                    f"`taps={{'{name}': <layer of the source>}}`."
                )
            chosen[name] = pairing.names[name]
    elif isinstance(taps, dict) and taps:
        chosen = dict(taps)
    else:
        raise TypeError(
            invalid(
                "taps",
                '"auto", a list of layer names or a dict of target to source layers',
                taps,
            )
        )
    for ours, theirs in chosen.items():
        check(ours, target, "target")
        check(theirs, source, "source")
        a, b = target.output_of(ours).shape[1:], source.output_of(theirs).shape[1:]
        if len(a) != len(b) or any(
            m != n for m, n in zip(a, b, strict=False) if None not in (m, n)
        ):
            raise ValueError(
                f"Tap '{ours}' of the target has the shape {tuple(a)}, but "
                f"'{theirs}' of the source has {tuple(b)}. Both maps must have the "
                "same shape: give source and target the same `input_shape`, or tap "
                "other layers."
            )
    return chosen


def check(name, graph: Graph, whose="model"):
    """Refuse a name that is no layer of the graph, or no feature map.

    Args:
        name: name of the layer.
        graph: the network's graph.
        whose: `"target"` or `"source"`, for the message.

    Raises:
        ValueError: saying which, with the closest names.
    """
    if name not in graph.nodes:
        raise ValueError(unknown_name(f"taps ({whose})", name, graph.nodes))
    shape = graph.output_of(name).shape
    if len(shape) < 3 or shape[-1] is None:
        raise ValueError(
            f"Tap '{name}' of the {whose} has the shape {tuple(shape)}, which is no "
            "feature map (batch, positions..., channels). Tap a layer before the "
            "pooling or flattening."
        )


def auto(graph: Graph, quiet=False):
    """Published taps for a known network, else one per resolution stage.

    Known are those of `keras_delta.backbones`, also where Keras or keras-cv built
    them. For any other network: the output of the last convolution at each
    resolution, depthwise ones excepted; a warning says so if there is one alone.

    Args:
        graph: the network's graph.
        quiet: no warning, where no maps are going to be compared.

    Returns:
        List of names, in the order of computation.

    Raises:
        ValueError: if the network has no convolution, or its resolutions cannot
            be told because the input shape leaves them open.
    """
    for find in _published:
        if names := find(graph):
            return names
    names = _last_of_each_stage(graph)
    if len(names) < 2 and not quiet:
        warn(
            f"`taps='auto'` found a single resolution stage in '{graph.model.name}', "
            f"and takes '{names[0]}' alone. Name the layers to compare, {EXAMPLE}; "
            f"`taps=['{names[0]}']` for this one without a warning."
        )
    return names


def _last_of_each_stage(graph):
    convolutions = [
        name
        for name, node in graph.nodes.items()
        if isinstance(node.operation, CONVOLUTIONS)
        and not isinstance(node.operation, DEPTHWISE)
    ]
    if not convolutions:
        raise ValueError(
            f"`taps='auto'` found no convolution in '{graph.model.name}'. Name the "
            f"layers to compare, {EXAMPLE}."
        )
    last = {}
    first = graph.nodes[convolutions[0]].inputs[0].shape[1:-1]
    for i, name in enumerate(convolutions):
        size = graph.output_of(name).shape[1:-1]
        if None in size:
            raise ValueError(
                f"`taps='auto'` cannot tell the resolution stages of "
                f"'{graph.model.name}', because layer '{name}' has the shape "
                f"{tuple(graph.output_of(name).shape)}. Build the model with a fixed "
                "`input_shape`, or name the taps."
            )
        # 1x1 with larger maps to come: a squeeze-and-excitation gate, not a stage.
        later = [graph.output_of(n).shape[1:-1] for n in convolutions[i:]]
        if max(size) == 1 and any(max(s) > 1 for s in later if None not in s):
            continue
        # Valid padding shaves a few pixels off within a stage: round to octaves.
        stage = tuple(round(log2(a / b)) for a, b in zip(first, size, strict=False))
        last[stage] = name
    return [name for name in convolutions if name in last.values()]
