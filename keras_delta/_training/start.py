"""Checks that training starts from the source: equal weights, and so equal maps."""

import weakref

import keras
import numpy as np
from keras import ops

from keras_delta._compat import array
from keras_delta._errors import warn
from keras_delta._network.entry import draws_at_random
from keras_delta._network.lora import arrays, own_weights

SAMPLES = 2
TOLERANCE = {"float32": 1e-3, "float64": 1e-3}  # of a map's size; 0.05 for others
NOISE = 0.3  # of a map's size, by random layers; stochastic depth makes less

UNTRAINED = (
    "The source looks as if it had never been trained: all its biases are zero and its "
    "BatchNormalization has its initial values. A model built from a config has no "
    "trained weights: load them before using it as the source."
)

# Networks that passed the check: a search trains one model hundreds of times.
_in_order = weakref.WeakSet()

# Initial values of these weights in Keras; a trained network has others.
INITIAL = {"bias": 0, "beta": 0, "moving_mean": 0, "gamma": 1, "moving_variance": 1}


def check(model, inputs=None):
    """Warn if a method that keeps to the source would not start from it.

    Weights of paired layers must be equal before the first step. If those behind a
    tap are, the maps must be equal in inference mode, and also in training mode apart
    from BatchNormalization, which uses the batch's statistics there.

    Args:
        model: the `DeltaModel`.
        inputs: a batch as the model takes it; None for noise.
    """
    regularizer, networks = model.regularizer, model.networks
    if regularizer is None:
        return
    if "source_outputs" in regularizer.needs and _is_initial(networks.source):
        warn(UNTRAINED)
    if not regularizer.starts_at_source:
        return
    moved = _other_weights(networks)
    begun = int(ops.convert_to_numpy(model.optimizer.iterations))
    if not begun and model.recipe is None:  # else statistics may be of the target
        _check_weights(networks, moved)
    if regularizer.needs and networks.taps and networks not in _in_order:
        taps = {
            tap: source
            for tap, source in networks.taps.items()
            if not moved & networks.target.ancestors(networks.target_taps[tap])
        }
        if taps and _check_maps(networks, taps, _samples(networks.target, inputs)):
            _in_order.add(networks)


def is_untrained(model):
    """Whether the target is still the pretrained network as loaded, as far as known.

    Its BatchNorm may have other statistics, such as those of the target's images. If
    the source is a teacher, it cannot be compared with the target.
    """
    if has_teacher(model):
        return not _is_initial(model.networks.target)
    return begins_at_source(model)


def has_teacher(model):
    """Whether the source may be another network than the target started from."""
    if model.networks.mismatch is not None:
        return True
    regularizer = model.regularizer
    looks = regularizer and regularizer.needs & {"source_maps", "source_outputs"}
    return bool(looks) and not regularizer.starts_at_source


def begins_at_source(model):
    """Whether the target's paired parameters are the source's."""
    networks = model.networks
    return networks.mismatch is None and not _other_weights(networks, statistics=False)


def _other_weights(networks, statistics=True):
    """Names of the target's paired calls whose weights are not the source's.

    Args:
        networks: the `Networks`.
        statistics: whether BatchNorm's moving mean and variance count.
    """
    pairing = networks.pairing
    left_out = set() if statistics else {id(v) for v, _ in pairing.statistics}

    def moved(ours, theirs):
        three = zip(own_weights(ours), arrays(ours), arrays(theirs), strict=True)
        return any(
            id(v) not in left_out and not np.array_equal(a, b) for v, a, b in three
        )

    target, source = networks.target.nodes, networks.source.nodes
    return {
        ours
        for ours, theirs in pairing.names.items()
        if target[ours].is_layer
        and moved(target[ours].operation, source[theirs].operation)
    }


def _check_weights(networks, moved):
    if _is_initial(networks.source):
        warn(UNTRAINED)
    elif moved:
        paired = [
            name
            for name in networks.pairing.names
            if networks.target.nodes[name].is_layer
            and networks.target.nodes[name].operation.weights
        ]
        first = next(name for name in paired if name in moved)
        warn(
            f"Training does not start from the source: {len(moved)} of {len(paired)} "
            "layers that target and source have in common have other weights, the "
            f"first '{first}' of the target and "
            f"'{networks.pairing.names[first]}' of the source. "
            + (
                "The target's are its initial ones: make it with "
                "`keras_delta.attach_head(source, classes)`, or copy the weights."
                if _is_initial(networks.target)
                else "Was the target trained before, or made from other weights? If "
                "it should start from its current weights, omit `source`; if the wrong "
                "layers are paired (`model.pairing.names`), pass `pairing` to the "
                "DeltaModel."
            )
        )


def _is_initial(graph):
    """Whether all weights initialised to 0 or 1 still have these values."""
    known = [
        (v, INITIAL[v.name])
        for layer in graph.layers().values()
        for v in own_weights(layer)
        if v.name in INITIAL
    ]
    return bool(known) and all((array(v) == start).all() for v, start in known)


def _samples(graph, inputs):
    """Two samples of a batch for each of the target's inputs, or noise."""
    if inputs is not None:
        return [v[:SAMPLES] for v in graph.feed(inputs)]
    random = np.random.default_rng(0)
    shapes = [[SAMPLES, *(d or 64 for d in t.shape[1:])] for t in graph.inputs]
    return [
        ops.cast(random.uniform(0, 255 if len(shape) == 4 else 1, shape), t.dtype)
        for shape, t in zip(shapes, graph.inputs, strict=True)
    ]


def _check_maps(networks, taps, feeds):
    """Warn about the first tap where maps differ; True if there is none."""
    target, entry = networks.target, networks.entry
    wanted = {tap: networks.target_taps[tap] for tap in taps}
    with keras.StatelessScope():  # random layers draw in training what they would have
        run = _run(target, (wanted, entry.tensors), target.inputs, feeds)
        maps, entering = run
        source_maps = _run(
            networks.source,
            {tap: networks.source_taps[tap] for tap in taps},
            entry.feeds,
            entering,
        )
        off = [
            t for t in taps if _distance(maps[t], source_maps[t]) > _tolerance(target)
        ]
        if off:
            _warn_of_difference(networks, off[0], feeds, entering)
            return False
        noise = _noise(networks)
        if not noise:
            return True
        held = set(target.nodes) - set(noise)
        noisy = target.run(wanted, target.inputs, feeds, training=True, held=held)
    for tap in taps:
        size = _distance(noisy[tap], maps[tap])
        if size > NOISE:
            before = target.ancestors(wanted[tap])
            _warn_of_noise(tap, [n for n in noise if n in before], size)
            return False
    return True


def _run(graph, fetches, feeds, given):
    return graph.run(fetches, feeds, given, training=False)


def _distance(a, b):
    """How far two arrays are apart, as a share of the second one's size."""
    a, b = (ops.convert_to_numpy(ops.cast(v, "float32")) for v in (a, b))
    size = np.sqrt(np.mean(np.square(b)))
    return float(np.sqrt(np.mean(np.square(a - b))) / size) if size else 0.0


def _tolerance(graph):
    return max(
        TOLERANCE.get(getattr(layer, "compute_dtype", "float32"), 0.05)
        for layer in graph.layers().values()
    )


def _noise(networks):
    """The target's random layers of which the source does not take the result."""
    shared = networks.find_shared().names
    return [
        name
        for name, node in networks.target.nodes.items()
        if node.is_layer
        and name not in shared
        and name not in networks.entry.front
        and draws_at_random(node.operation)
    ]


def _warn_of_noise(tap, layers, size):
    names = ", ".join(f"'{n}'" for n in layers[:3]) + ", ..." * (len(layers) > 3)
    warn(
        f"In training, layers in front of the tap '{tap}' draw at random ({names}) and "
        f"change the target's map by {size:.0%} of its size, but not the source's: "
        "the feature penalty does not start at 0. Set the rate of such "
        "layers to 0, put augmentation in front of the first layer with weights, or "
        "tap layers before them."
    )


def _warn_of_difference(networks, tap, feeds, entering):
    """Warn, naming the first layers with equal weights but different results."""
    target, source, names = networks.target, networks.source, networks.pairing.names
    before = target.ancestors(networks.target_taps[tap]) - networks.entry.front
    pairs = {n: names[n] for n in target.nodes if n in before and n in names}
    pairs[tap] = networks.taps[tap]
    behind = {n: s for n, s in pairs.items() if s in networks.entry.names}
    ours = _run(
        target, {n: target.nodes[n].outputs for n in behind}, target.inputs, feeds
    )
    theirs = _run(
        source,
        {n: source.nodes[s].outputs for n, s in behind.items()},
        networks.entry.feeds,
        entering,
    )
    first = next(
        n
        for n in behind
        if any(
            a.shape != b.shape or _distance(a, b) > _tolerance(target)
            for a, b in zip(ours[n], theirs[n], strict=True)
        )
    )
    warn(
        f"The maps of the tap '{tap}' differ before the first step, though the weights "
        f"are equal: the feature penalty does not start at 0. The first layers that "
        f"differ: '{first}' of the target and '{behind[first]}' of the source"
        f"{_cause(networks, first, behind[first])}. Tap layers before them, or pass "
        "the source that the target was made from."
    )


def _cause(networks, ours, theirs):
    """Why two calls give different results, as the end of a sentence."""
    target, source, names = networks.target, networks.source, networks.pairing.names
    takes = [target.name_of(t) for t in target.nodes[ours].inputs]
    expected = [source.name_of(t) for t in source.nodes[theirs].inputs]
    strangers = [
        n
        for n, s in zip(takes, expected, strict=False)
        if n is not None and names.get(n) != s
    ]
    if strangers:
        return f", of which the former takes the output of '{strangers[0]}'"
    a, b = target.nodes[ours].operation, source.nodes[theirs].operation
    if isinstance(a, keras.layers.Layer):
        a, b = a.get_config(), b.get_config()
        other = [k for k in a if k not in ("name", "trainable") and a[k] != b.get(k)]
        if other:
            key = other[0]
            return f", which have {key}={a[key]!r} and {key}={b.get(key)!r}"
    return ""
