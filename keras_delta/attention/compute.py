"""Algorithm 1: from a model and data to scores."""

import numbers
import sys
from collections.abc import Iterable

import keras
import tensorflow as tf
from keras import ops, tree

from keras_delta._checkpoint import Checkpoint
from keras_delta._errors import invalid, unknown_name, warn
from keras_delta._inputs import samples
from keras_delta._network import fingerprint, memory
from keras_delta._network.graph import Graph, is_container
from keras_delta._network.heads import head_layers
from keras_delta._network.taps import auto, check
from keras_delta.attention import losses, taylor
from keras_delta.attention.ablation import Ablation
from keras_delta.attention.head_fit import HeadFit
from keras_delta.attention.networks import Cut, Whole

METHODS = ("exact", "taylor")
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
        A `tally.Result`, and a dict that says what it was made of.
    """
    check_arguments(method, tolerance, train_head, max_samples)
    budget = memory.budget(memory_budget)
    target = getattr(model, "target", model)
    if not isinstance(target, keras.Model):
        raise TypeError(invalid("model", "a DeltaModel or a keras.Model", model))
    graph = Graph(target) if is_container(target) else None
    if method == "taylor" and (graph is None or checkpoint or tolerance):
        raise ValueError(
            '`method="taylor"` takes no `tolerance` and no `checkpoint` (it needs one '
            "gradient a tap), and a model whose graph can be read."
        )
    _, one_y = one = _first(data)
    taps = _taps(model, graph, taps)
    loss = losses.choose(model, graph, loss, one_y)
    network = Cut(graph, taps) if graph else _whole(model, taps, one, train_head)
    made_of = {
        "method": method,
        "loss": loss.describe(),
        "weights": network.frozen.fingerprint(),
        "architecture": None if graph is None else fingerprint.of_structure(graph),
        "taps": {tap: tapped.channels for tap, tapped in network.taps.items()},
        "train_head": train_head,
        "tolerance": tolerance if tolerance is None else float(tolerance),
    }
    file = Checkpoint(checkpoint, made_of)
    state = file.load()
    head = []
    if train_head:
        head = _head(model, graph, data, loss, train_head, max_samples, state)
        network = Cut(graph, taps, head)
    if method == "taylor":
        result = taylor.scores(network, loss, data, max_samples)
    else:
        ablation = Ablation(
            network,
            loss,
            budget,
            tolerance=tolerance,
            checkpoint=file,
            state=state,
            extra=_as_arrays(graph, head),
            strategy=_strategy(model),
        )
        result = ablation.run(data, max_samples, progress)
    for tap, tapped in network.taps.items():
        if not tapped.reaches:
            warn(f"The output does not depend on the tap '{tap}': its scores are 0.")
    _warn_of_chance(loss, result, train_head, head)
    made_of["data"] = result.data
    # Not `importlib.metadata`: TensorFlow comes as tensorflow-cpu or tf-nightly, too.
    made_of["versions"] = {p: sys.modules[p].__version__ for p in PACKAGES}
    return result, made_of


def check_arguments(method="exact", tolerance=None, train_head=False, max_samples=None):
    """Refuse what `measure` cannot work with."""
    if method not in METHODS:
        raise ValueError(unknown_name("method", method, METHODS))
    if train_head not in (True, False, "auto"):
        raise ValueError(invalid("train_head", 'True, False or "auto"', train_head))
    samples.check_count("max_samples", max_samples)
    if tolerance is not None and not (
        isinstance(tolerance, numbers.Real)
        and not isinstance(tolerance, bool)
        and tolerance > 0
    ):
        raise ValueError(invalid("tolerance", "a positive number or None", tolerance))


def _first(data):
    spec = getattr(data, "element_spec", data)
    if isinstance(spec, tuple) and len(spec) == 3:
        warn("Sample weights are not used: every sample counts alike.")
    first = next(samples.batches(data, max_samples=1), None)
    if first is None:
        raise ValueError("No samples: channel attention needs at least one.")
    return first


def _taps(model, graph, taps):
    if taps is None and graph is None:
        raise ValueError(
            f"The graph of '{model.name}' cannot be read (a subclassed model), so its "
            "taps cannot be chosen. Name the layers: `taps=['conv2', 'conv3']`."
        )
    if taps is None:
        return list(getattr(model, "taps", None) or auto(graph))
    if not isinstance(taps, (str, Iterable)):
        raise TypeError(invalid("taps", "a list of layer names", taps))
    taps = [taps] if isinstance(taps, str) else list(dict.fromkeys(taps))
    if not taps:
        raise ValueError(invalid("taps", "at least one layer name", taps))
    for tap in taps if graph else ():
        check(tap, graph)
    return taps


def _whole(model, taps, one, train_head):
    if train_head is True:
        raise ValueError(
            "`train_head=True` needs a model whose graph can be read; "
            f"'{model.name}' is a subclassed model. Build it with "
            "`keras.Model(inputs, outputs)`, or train its head first."
        )
    x = tree.map_structure(ops.convert_to_tensor, one[0])
    if not model.built:
        model(x, training=False)
    warn(
        f"The graph of '{model.name}' cannot be read (a subclassed model), so every "
        "channel runs through the whole network. Build it with "
        "`keras.Model(inputs, outputs)` to have only what lies behind a tap run again."
    )
    return Whole(model, taps, x)


def _head(model, graph, data, loss, train_head, max_samples, state):
    """Step (a): the trained head as a list of (variable, array); may be empty."""
    if graph is None:
        return []
    pairing = getattr(model, "pairing", None)
    names = (pairing and pairing.new_layers) or head_layers(graph)
    if state is not None:
        variables = _variables_of(graph)
        return [
            (variables[int(key.partition("/")[2])], array)
            for key, array in state.items()
            if key.startswith("head/")
        ]
    head = HeadFit(graph, names, data, max_samples)
    targets = loss.targets(head.labels)
    outputs = head.outputs()
    loss.check(targets, outputs)
    intact = loss(targets, outputs).mean()
    if train_head is True or loss.chance_level(intact, targets) is not None:
        return head.train(loss)
    return []


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
    """The MirroredStrategy that the caller or the model is under, if any.

    Replicas of other hosts would not hand their results over; each host of such a
    strategy computes everything.
    """
    own = getattr(model, "distribute_strategy", None)
    for strategy in (tf.distribute.get_strategy(), own):
        if type(strategy) is tf.distribute.MirroredStrategy:
            return strategy
    return None


def _warn_of_chance(loss, result, train_head, head):
    level = loss.chance_level(result.loss, result.targets)
    if level is None:
        return
    remedy = (
        "Training a copy of the head on these features did not help: check the "
        "labels, or use `attention='uniform'`."
        if head
        else "Pass `train_head=True` to train a copy of the head first."
    )
    warn(
        f"The head is no better than chance (loss {result.loss:.3f}, best constant "
        f"prediction {level:.3f}), so these scores say little about which channels "
        f"matter. {remedy}"
    )
