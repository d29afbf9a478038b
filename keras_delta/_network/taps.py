"""Taps: the layers whose feature maps are compared.

`choose` turns what the user said (`"auto"`, names, a dict) into layer names of both
networks, in pairs where they correspond.
"""

from typing import Any, NamedTuple

from keras_delta._errors import invalid, unknown_name, warn
from keras_delta._network import auto_taps
from keras_delta._network.graph import Graph, shapes_fit
from keras_delta._network.heads import body_outputs
from keras_delta._network.pairing import Pairing

LITTLE = 0.5  # of the parameters of both networks in common: they do not correspond
MUCH = 0.5  # of the parameters in common behind the last tap is worth a word


class Taps(NamedTuple):
    """The tapped layers of two networks.

    Attributes:
        target, source: lists of layer names, in the order of computation.
        pairs: dict, name in the target -> name in the source; None for two lists.
        mismatch: why the networks do not correspond, the text of an error; or None.
    """

    target: list
    source: list
    pairs: Any = None
    mismatch: str | None = None


def choose(taps, of_source, target: Graph, source: Graph, pairing: Pairing):
    """The `Taps` of two networks.

    Args:
        taps: `"auto"`, a list of the target's layer names, or a dict from
            target to source names.
        of_source: a list of the source's layer names, where `taps` is one of the
            target's and the two are not pairs; or None.
        target: the target's graph.
        source: the source's graph.
        pairing: how the two correspond.

    Raises:
        TypeError: if `taps` is none of the three.
        ValueError: for an unknown name (closest ones listed), a layer without
            channels, a tap without counterpart.
    """
    if of_source is not None:
        for names, graph, whose in (
            (taps, target, "target"),
            (of_source, source, "source"),
        ):
            _check_list(names, graph, whose)
        mismatch = _mismatch(pairing, _choose_auto(target, source, pairing))
        return Taps(list(taps), list(of_source), None, mismatch)
    if isinstance(taps, str) and taps == "auto":
        pairs = _choose_auto(target, source, pairing)
        mismatch = _mismatch(pairing, pairs)
        if mismatch is None and _share_paired(pairing) < LITTLE:
            # Two members of a family have their first layers in the same shape.
            mismatch = pairing.find_mismatch(source.outputs)
        if mismatch is not None:
            ours, theirs = map(auto_taps.find, (target, source))
            return Taps(ours, theirs, None, mismatch)
        _warn_of_other_calls(pairs, target, source)
        return Taps(list(pairs), list(pairs.values()), pairs)
    pairs = _choose_pairs(taps, target, source, pairing)
    _warn_of_other_calls(pairs, target, source)
    mismatch = _mismatch(pairing, pairs)
    return Taps(list(pairs), list(pairs.values()), pairs, mismatch)


def _mismatch(pairing, pairs):
    """Why two networks do not correspond up to their taps; None if they do."""
    ends = [pairing.source.output_of(name) for name in pairs.values()]
    both = pairing.target, pairing.source
    if not pairs and (not pairing.variables or all(map(auto_taps.find, both))):
        ends = pairing.source.outputs
    return pairing.find_mismatch(ends)


def _share_paired(pairing):
    """Share of the parameters before the head that both have; the larger of two."""
    shares = []
    for graph, paired in (
        (pairing.target, set(pairing.names)),
        (pairing.source, set(pairing.names.values())),
    ):
        body = graph.ancestors(body_outputs(graph) or graph.outputs)
        counts = auto_taps.count_parameters(graph, body)
        common = sum(count for name, count in counts.items() if name in paired)
        shares.append(common / max(1, sum(counts.values())))
    return max(shares)


def _choose_pairs(taps, target, source, pairing):
    if isinstance(taps, (list, tuple)) and taps:
        chosen = {}
        for name in taps:
            check(name, target, "target")
            if name not in pairing.names:
                # Another network altogether? That message helps more.
                pairing.check(source.outputs)
                raise ValueError(
                    f"Tap '{name}' of the target has no counterpart in the source. "
                    "Choose a layer that both have, or specify it with "
                    f"`taps={{'{name}': <layer of the source>}}`. For taps that are no "
                    "pairs, pass two lists, `taps` and `source_taps`."
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
    return chosen


def check_pairs(networks):
    """Refuse taps that are no pairs, or pairs whose maps have different shapes."""
    if networks.taps is None:
        raise ValueError(
            f"The taps {list(networks.target_taps)} of the target and "
            f"{list(networks.source_taps)} of the source are two lists, and this "
            "regularizer compares maps in pairs. Pass a dict, from layers of the "
            "target to those of the source, as `taps`, and no `source_taps`."
        )
    target, source = networks.target, networks.source
    for ours, theirs in networks.taps.items():
        a, b = target.output_of(ours).shape[1:], source.output_of(theirs).shape[1:]
        if not shapes_fit(a, b):
            raise ValueError(
                f"Tap '{ours}' of the target has the shape {tuple(a)}, but "
                f"'{theirs}' of the source has {tuple(b)}. Both maps must have the "
                "same shape: give source and target the same `input_shape`, or tap "
                "other layers."
            )


def _check_list(names, graph, whose):
    if not isinstance(names, (list, tuple)) or not names:
        argument = "taps" if whose == "target" else "source_taps"
        remedy = "`source_taps` goes with a list of the target's layers as `taps`; a "
        remedy += "dict as `taps` has those of both already."
        raise TypeError(invalid(argument, "a list of layer names", names, remedy))
    for name in names:
        check(name, graph, whose)


def _warn_of_other_calls(chosen, target, source):
    """Warn where the target has more calls of a tapped layer, as siamese networks."""
    for ours, theirs in chosen.items():
        calls = _calls(target, ours)
        left = [name for name in calls if name not in chosen]
        if left and len(calls) > len(_calls(source, theirs)):
            warn(
                f"The target calls the layer of the tap '{ours}' {len(calls)} times, "
                f"the source less often: the maps of {left} are not compared. To "
                "compare those of all calls, omit `source`, which is then a "
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
            f"Tap '{name}' of the {whose} has the shape {tuple(shape)}, which is not a "
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
                "source and target have in common come after the last one and are "
                "not constrained. No later layer with feature maps is in both; "
                "name others with `taps`, or add 'l2_sp'."
            )
    return {ours[theirs]: theirs for theirs in found}


def _fit(mine, theirs):
    """Whether the outputs of two calls can be compared."""
    if len(mine.outputs) != 1 or len(theirs.outputs) != 1:
        return False
    return shapes_fit(mine.outputs[0].shape[1:], theirs.outputs[0].shape[1:])
