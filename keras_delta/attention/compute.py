"""Algorithm 1: scores from a model and data."""

import sys
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from keras_delta import _arguments
from keras_delta._checkpoint import Checkpoint
from keras_delta._errors import invalid, warn
from keras_delta._inputs import replay, samples
from keras_delta._network import auto_taps, fingerprint, memory
from keras_delta._network.graph import Graph
from keras_delta._network.heads import head_layers
from keras_delta._network.taps import check, no_maps
from keras_delta.attention import losses
from keras_delta.attention.ablation import Ablation
from keras_delta.attention.head_fit import HeadFit
from keras_delta.attention.networks import CutNetwork

METHODS = ("exact",)
PACKAGES = ("keras_delta", "keras", "tensorflow")


def measure(
    model,
    data,
    taps=None,
    *,
    max_samples=None,
    method="exact",
    tolerance=None,
    memory_budget=None,
    train_head=False,
    loss=None,
    checkpoint=None,
    progress=True,
):
    """Scores of the taps' channels; the arguments are `ChannelAttention.compute`'s.

    Returns:
        A `tally.Progress`, and a dict that describes model, data and settings.
    """
    check_arguments(method, tolerance, train_head, max_samples)
    budget = memory.budget(memory_budget)
    graph = Graph(getattr(model, "target", model))
    # Each reads the same images of a set that draws anew in each epoch, as does the
    # process that resumes.
    with replay.unmoved(data):
        _, one_y = _first(data)
    network = CutNetwork(graph, _taps(model, graph, taps))
    loss = losses.choose(model, graph, loss, one_y)
    made_of = {
        "method": method,
        "loss": loss.describe(),
        "weights": network.frozen.fingerprint(),
        "architecture": fingerprint.of_architecture(graph),
        "taps": {tap: s.channels for tap, s in network.taps.items()},
        "train_head": train_head,
        "tolerance": tolerance if tolerance is None else float(tolerance),
    }
    file = Checkpoint(checkpoint, made_of)
    state = file.load()
    head = []
    if train_head:
        with replay.unmoved(data):
            head = _head(model, graph, data, loss, train_head, max_samples, state)
        network = CutNetwork(graph, network.taps, head)
    extra, strategy = _as_arrays(graph, head), _strategy(model)
    ablation = Ablation(network, loss, budget, tolerance, file, state, extra, strategy)
    with replay.unmoved(data):
        result, targets = ablation.run(data, max_samples, progress)
    for tap, s in network.taps.items():
        if not s.reaches:
            warn(f"The output does not depend on the tap '{tap}': its scores are 0.")
    _warn_of_chance(loss, result.mean_loss, targets, head)
    made_of["data"] = fingerprint.digest(result.done)
    # Not `importlib.metadata`: TensorFlow comes as tensorflow-cpu or tf-nightly, too.
    made_of["versions"] = {p: sys.modules[p].__version__ for p in PACKAGES}
    return result, made_of


def check_arguments(method="exact", tolerance=None, train_head=False, max_samples=None):
    """Refuse what `measure` cannot work with."""
    if method == "taylor":
        raise ValueError(
            '`method="taylor"` was removed: its ranking of the channels differed too '
            "often from that of the exact scores. For less work pass "
            "`max_samples` or `tolerance`, with which scores stay exact."
        )
    _arguments.choice("method", method, METHODS)
    if train_head not in (True, False, "auto"):
        raise ValueError(invalid("train_head", 'True, False or "auto"', train_head))
    _arguments.integer("max_samples", max_samples, optional=True)
    _arguments.number("tolerance", tolerance, above=0, optional=True)


def _first(data):
    spec = getattr(data, "element_spec", data)
    if isinstance(spec, tuple) and len(spec) == 3:
        warn("Sample weights are not used: all samples count equally.")
    first = next(samples.batches(data, max_samples=1), None)
    if first is None:
        raise ValueError("No samples: channel attention needs at least one.")
    return first


def _taps(model, graph, taps):
    if taps is None:
        taps = list(getattr(model, "taps", None) or auto_taps.find(graph))
        if not taps:
            raise ValueError(no_maps(graph))
        return taps
    if not isinstance(taps, (str, Iterable)):
        raise TypeError(invalid("taps", "a list of layer names", taps))
    taps = [taps] if isinstance(taps, str) else list(dict.fromkeys(taps))
    if not taps:
        raise ValueError(invalid("taps", "at least one layer name", taps))
    for tap in taps:
        check(tap, graph)
    return taps


def _head(model, graph, data, loss, train_head, max_samples, state):
    """Step (a): the trained head as a list of (variable, array); may be empty."""
    if state is not None:
        variables = _variables_of(graph)
        return [
            (variables[int(key.partition("/")[2])], array)
            for key, array in state.items()
            if key.startswith("head/")
        ]
    pairing = getattr(model, "pairing", None)
    names = (pairing and pairing.new_layers) or head_layers(graph)
    head = HeadFit(graph, names, data, max_samples)
    if train_head is True or _is_chance(loss, head.groups()):
        return head.train(loss)
    return []


def _is_chance(loss, groups):
    """Whether a head is no better than the best constant prediction."""
    each, seen = [], []
    for labels, outputs in groups:
        targets = loss.targets(labels)
        loss.check(targets, outputs)
        each.append(loss(targets, outputs))
        seen.append(targets)
    return loss.chance_level(np.concatenate(each).mean(), seen) is not None


def _variables_of(graph):
    return [v for layer in graph.layers().values() for v in layer.weights]


def _as_arrays(graph, head):
    """The trained head as entries of a checkpoint."""
    trained = {id(v): array for v, array in head}
    return {
        f"head/{i}": trained[id(v)]
        for i, v in enumerate(_variables_of(graph) if head else ())
        if id(v) in trained
    }


def _strategy(model):
    """The MirroredStrategy of the caller or the model, if any.

    Results of replicas on other hosts would not arrive here; with such a strategy each
    host computes everything.
    """
    strategies = (
        tf.distribute.get_strategy(),
        getattr(model, "distribute_strategy", None),
    )
    mirrored = [s for s in strategies if type(s) is tf.distribute.MirroredStrategy]
    return mirrored[0] if mirrored else None


def _warn_of_chance(loss, mean_loss, targets, head):
    level = loss.chance_level(mean_loss, targets)
    if level is None:
        return
    remedy = (
        "Training a copy of the head on these features did not help: check the "
        "labels, or use `attention='uniform'`."
        if head
        else "Pass `train_head=True` to train a copy of the head first."
    )
    warn(
        f"The head is no better than chance (loss {mean_loss:.3f}, best constant "
        f"prediction {level:.3f}), so these scores say little about which channels "
        f"matter. {remedy}"
    )
