"""Assigns losses and labels to the outputs of a network."""

import inspect

import keras
from keras import tree

from keras_delta import _tasks
from keras_delta._errors import invalid, warn
from keras_delta._network.heads import output_activation


def names(graph):
    """Names of the outputs, as Keras has them for losses and targets."""
    if isinstance(graph.outputs, dict) and not any(
        tree.is_nested(v) for v in graph.outputs.values()
    ):
        # Keras takes layers' names too, but `fit` is mostly given these.
        return sorted(graph.outputs)
    return list(getattr(graph.model, "output_names", None) or [])


def losses(loss, graph):
    """A list of losses, one an output; None where an output has none.

    Args:
        loss: as `compile` takes it: a loss, a list or a dict.
        graph: the network's `Graph`.
    """
    outputs, known = tree.flatten(graph.outputs), names(graph)
    if isinstance(loss, dict):
        if unknown := set(loss) - set(known):
            raise ValueError(invalid("loss", f"names among {known}", sorted(unknown)))
        loss = [loss.get(name) for name in known]
    elif not isinstance(loss, (list, tuple)):
        loss = [loss] * len(outputs)
    if len(loss) != len(outputs):
        raise ValueError(invalid("loss", f"{len(outputs)} losses, one an output", loss))
    return [None if one is None else _get(one) for one in loss]


def _get(loss):
    try:
        return keras.losses.get(loss)
    except (TypeError, ValueError) as e:
        expected = "a Keras loss, its name, or a function (targets, outputs)"
        raise ValueError(invalid("loss", expected, loss)) from e


def targets(y, losses, names):
    """Labels as a list, one an output; None where an output has no loss and no label.

    Args:
        y: labels, a structure as `fit` takes it.
        losses, names: of the outputs.

    Raises:
        ValueError: where an output with a loss has no labels.
    """
    if len(losses) == 1:
        (y,) = tree.flatten(y) if isinstance(y, (dict, list, tuple)) else (y,)
        return [y]
    needed = [n for n, x in zip(names, losses, strict=True) if x is not None]
    if isinstance(y, dict) and not set(needed) <= set(y):
        raise ValueError(
            f"The outputs {needed} have a loss and so need targets, but the data "
            f"has targets for {sorted(y)}."
        )
    if isinstance(y, dict):
        return [
            y[name] if loss is not None else y.get(name)
            for name, loss in zip(names, losses, strict=True)
        ]
    y = list(y) if isinstance(y, (list, tuple)) else [y]
    if len(y) != len(losses):
        raise ValueError(
            f"The model has {len(losses)} outputs, but the data has "
            f"{len(y)} targets. Give one target per output, as a list or a dict."
        )
    return y


def check_heads(loss, graph, both_ways=True):
    """Refuse losses that take logits for probabilities, or the other way round.

    Args:
        loss: as `compile` takes it.
        graph: the network's `Graph`.
        both_ways: whether probabilities that are taken for logits are refused. Keras
            goes back from its own softmax to the logits, where it remembers them.

    Raises:
        ValueError: naming the loss, what the output ends in, and both remedies.
    """
    tensors, known = tree.flatten(graph.outputs), names(graph)
    if isinstance(loss, dict) and not set(loss) <= set(known):
        return  # Keras takes names of layers as well
    for i, (one, tensor) in enumerate(zip(losses(loss, graph), tensors, strict=True)):
        activation = output_activation(graph, tensor)
        where = f" of the output '{known[i]}'" if len(tensors) > 1 else ""
        if both_ways or activation == "linear":
            _check_head(one, activation, tensor.shape, where)


def _check_head(loss, activation, shape, where):
    facts, name = _tasks.of_loss(loss), _tasks.loss_name(loss)
    if facts is None or facts.activation is None:
        return
    if facts.activation == "softmax" and shape[-1] == 1:
        raise ValueError(
            f"The loss {name}{where} is for several classes, but the head has one "
            "unit, whose softmax is always 1. Use "
            "BinaryCrossentropy(from_logits=True) for yes or no, or "
            "`attach_head(source, classes=2)`."
        )
    from_logits = bool(getattr(loss, "from_logits", False))
    if from_logits and activation in ("softmax", "sigmoid"):
        raise ValueError(
            f"The loss {name}{where} has from_logits=True, but the head already ends "
            f"in a {activation}. Use from_logits=False, or a head without activation."
        )
    if not from_logits and activation == "linear":
        kind = getattr(keras.losses, _tasks.class_name(loss))
        option = "from_logits" in inspect.signature(kind).parameters
        remedy = f"Use `keras.losses.{kind.__name__}(from_logits=True)`, or give"
        raise ValueError(
            f"The loss {name}{where} expects probabilities (from_logits=False), but "
            f"the head outputs logits. {remedy if option else 'Give'} the head the "
            f"activation '{facts.activation}'."
        )


def tasks(loss, graph):
    """A list of tasks, one an output, as `_tasks.of_output` tells them."""
    tensors = tree.flatten(graph.outputs)
    return [
        _tasks.of_output(one, tensor.shape, output_activation(graph, tensor))
        for one, tensor in zip(losses(loss, graph), tensors, strict=True)
    ]


def check_metrics(metrics, loss, graph):
    """Warn where Keras would count another accuracy than the task's.

    Args:
        metrics: as `compile` takes them.
        loss: likewise.
        graph: the network's `Graph`.
    """
    for text in wrong_accuracies(metrics, loss, graph).values():
        warn(text)


def wrong_accuracies(metrics, loss, graph):
    """What is wrong with each "accuracy" that Keras would count: name -> sentences."""
    tensors, known = tree.flatten(graph.outputs), names(graph)
    if loss is None or (isinstance(loss, dict) and not set(loss) <= set(known)):
        return {}
    several = len(tensors) > 1
    if isinstance(metrics, dict):
        metrics = [metrics.get(name) for name in known]
    elif not several:
        metrics = [metrics]
    elif not isinstance(metrics, (list, tuple)) or len(metrics) != len(tensors):
        return {}
    found, known = {}, known or [None]  # a Sequential model names no output
    each = zip(known, metrics, losses(loss, graph), tensors, strict=True)
    for name, asked, one, tensor in each:
        for metric in {m for m in tree.flatten(asked) if m in ("accuracy", "acc")}:
            if text := _wrong_accuracy(one, tensor, graph):
                found[f"{name}_{metric}" if several else metric] = text
    return found


def _wrong_accuracy(loss, tensor, graph):
    if loss is None:
        return ""
    # The task at a position, where there are positions.
    shape, activation = (None, tensor.shape[-1]), output_activation(graph, tensor)
    task, facts = _tasks.of_output(loss, shape, activation), _tasks.of_loss(loss)
    logits = bool(getattr(loss, "from_logits", False))
    signs = facts is not None and facts.labels == _tasks.SIGNS
    if task == _tasks.REGRESSION:
        what, remedy = "counts equal numbers", "'mae' or 'mse'"
    elif task == _tasks.MULTILABEL:
        what, remedy = "compares with the likeliest of the labels", ""
    elif (task == _tasks.BINARY and logits) or (signs and shape[-1] == 1):
        what, remedy = "compares with 0.5", ""
    else:
        return ""
    threshold = 0 if logits or signs else 0.5
    remedy = remedy or f"`keras.metrics.BinaryAccuracy(threshold={threshold})`"
    remedy += " and labels 0 and 1" * signs
    return (
        f"The metric 'accuracy' {what}, which is not what the loss "
        f"{_tasks.loss_name(loss)} trains{' logits for' * logits}. Use {remedy}."
    )
