"""Taps: the layers whose feature maps are compared.

`choose` turns what the user said (`"auto"`, names, a dict) into a dict from
the target's to the source's layer names, checked against both graphs.
"""

from keras_delta._errors import invalid, unknown_name, warn
from keras_delta._network import auto_taps
from keras_delta._network.graph import Graph
from keras_delta._network.pairing import Pairing

MUCH = 0.5  # of the parameters in common behind the last tap is worth a word


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
    if isinstance(taps, str) and taps == "auto":
        chosen = _choose_auto(target, source, pairing)
        _warn_of_other_calls(chosen, target, source)
        return chosen
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
    _warn_of_other_calls(chosen, target, source)
    return chosen


def _warn_of_other_calls(chosen, target, source):
    """Warn where the target has more calls of a tapped layer, as siamese networks."""
    for ours, theirs in chosen.items():
        calls = _calls(target, ours)
        left = [name for name in calls if name not in chosen]
        if left and len(calls) > len(_calls(source, theirs)):
            warn(
                f"The target calls the layer of the tap '{ours}' {len(calls)} times, "
                f"the source less often: the maps of {left} are not compared. To "
                "compare those of all calls, leave `source` out, which is then a "
                "snapshot of the target."
            )
            return


def _calls(graph, name):
    operation = graph.nodes[name].operation
    return [n for n, node in graph.nodes.items() if node.operation is operation]


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


def no_maps(graph: Graph):
    """The text of an error about a network without feature maps."""
    vectors = [n for n, v in graph.nodes.items() if v.is_layer and v.operation.weights]
    return (
        f"'{graph.model.name}' has no feature maps (batch, positions..., channels) to "
        f"compare: its layers with weights, such as {vectors[:3]}, put out "
        "vectors. Use a regularizer of the weights, such as 'l2_sp'."
    )


def _choose_auto(target, source, pairing):
    """Taps of the source, as far as the target has them in the same shape."""
    ours = {theirs: ours for ours, theirs in pairing.names.items()}
    common = [
        theirs
        for theirs in source.nodes
        if theirs in ours and _fit(target.nodes[ours[theirs]], source.nodes[theirs])
    ]
    found = auto_taps.find(source, common)
    if found and found != auto_taps.published(source, common):
        behind = auto_taps.share_behind(source, found[-1], common)
        if behind > MUCH:
            warn(
                f"`taps='auto'` compares {found}. {behind:.0%} of the parameters that "
                "source and target have in common lie behind the last one and are "
                "free to move. No later layer with feature maps is in both networks; "
                "name others with `taps`, or add 'l2_sp'."
            )
    return {ours[theirs]: theirs for theirs in found}


def _fit(mine, theirs):
    """Whether the outputs of two calls can be compared."""
    if len(mine.outputs) != 1 or len(theirs.outputs) != 1:
        return False
    a, b = mine.outputs[0].shape[1:], theirs.outputs[0].shape[1:]
    return len(a) == len(b) and all(
        m == n or None in (m, n) for m, n in zip(a, b, strict=True)
    )
