"""A new classifier on a copy of a pretrained network."""

from typing import Literal

import keras

from keras_delta import _tasks
from keras_delta._arguments import choice, integer, number
from keras_delta._errors import invalid
from keras_delta._network.copies import copy_model, has_own_class, inputs_like
from keras_delta._network.graph import Graph, check_channels_last
from keras_delta._network.heads import output_activation
from keras_delta._types import Activation, Task
from keras_delta.layers.stoch_norm import StochNorm, replace_batch_norm

CLASSIFIER = "predictions"  # of keras.applications; without a softmax it looks like any
POOLINGS = {"avg": "GlobalAveragePooling", "max": "GlobalMaxPooling"}


def attach_head(
    source: keras.Model,
    classes: int,
    *,
    task: Task | None = None,
    pooling: Literal["avg", "max", "flatten", "token"] = "avg",
    dropout: float = 0.0,
    activation: Activation = None,
    batch_norm_momentum: float | None = 0.9,
    stochastic_norm: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """A target network: the source's layers and weights, copied, and a new head.

    The copy is independent of `source`: fine-tuning it leaves the source as it
    was, so the source can serve as DELTA's starting point and for other targets.

    Args:
        source: Functional or Sequential backbone that puts out feature maps
            `(B, H, W, C)` (or vectors `(B, C)`, which are not pooled).
        classes: units of the head: classes, labels or numbers; 1 for yes or no.
        task: `"multiclass"` (one of several classes), `"multilabel"` (any of several
            labels), `"binary"` (one unit) or `"regression"`: checks the number of
            units. The head is the same for all, the loss tells them apart.
        pooling: `"avg"`, `"max"` or `"flatten"`, of all positions or tokens, a class
            token included; or `"token"`, the first token `(B, tokens, C)` alone.
        dropout: rate of the dropout before the classifier.
        activation: of the classifier; default: none, for `from_logits=True` losses.
        batch_norm_momentum: momentum of the copy's BatchNorm statistics, default
            0.9, as in PyTorch and so in the authors' program; None keeps the
            source's. Keras's usual 0.99 needs several hundred steps to follow the
            weights, more than fine-tuning on a few images has: the network then
            runs with statistics that are not its own, and accuracy falls.
        stochastic_norm: the probability of `keras_delta.layers.StochNorm`, which then
            takes the place of each BatchNormalization; default: none does. It acts
            where statistics move, by `recipe="none"` or `Recipe(batch_norm="training")`
            of `fit`.
        name: name of the model; default: `<source>_<classes>`.

    Returns:
        A Functional `keras.Model` with the output `(B, classes)`, float32.

    Raises:
        ValueError: for units that the task cannot have, an unknown or unfit argument,
            a source with several outputs or with a classifier at its end.
    """
    momentum = batch_norm_momentum
    number("batch_norm_momentum", momentum, below=1, optional=True)
    number("stochastic_norm", stochastic_norm, most=1, optional=True)
    choice("pooling", pooling, (*POOLINGS, "flatten", "token"))
    graph = Graph(source, argument="source")
    classes = _check(graph, classes, task)
    # That a source was frozen first is no reason for its copy to be.
    convert = None if stochastic_norm is None else replace_batch_norm(stochastic_norm)
    body = copy_model(graph, trainable=True, convert=convert)
    if convert and not any(isinstance(layer, StochNorm) for layer in body.layers):
        expected = f"None: '{graph.model.name}' has no BatchNormalization"
        raise ValueError(invalid("stochastic_norm", expected, stochastic_norm))
    for layer in body.layers:
        if momentum is not None and isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
    inputs, outputs = body.input, body.output
    if has_own_class(body):  # kept whole, so that it can be saved
        inputs = inputs_like(body.input)
        outputs = body(inputs)
    x = _pool(keras.tree.flatten(outputs)[0], pooling)
    x = keras.layers.Dropout(dropout, name="head_dropout")(x) if dropout else x
    # float32 whatever the policy: a softmax over half-precision logits is coarse.
    x = keras.layers.Dense(classes, activation, dtype="float32", name="head")(x)
    return keras.Model(inputs, x, name=name or f"{source.name}_{classes}")


def _check(graph, classes, task):
    """Refuse heads that a task cannot have, and sources that have one already."""
    if task is not None:
        choice("task", task, _tasks.TASKS)
    classes = integer("classes", classes, least=2 if task == _tasks.MULTICLASS else 1)
    if task == _tasks.BINARY and classes != 1:
        remedy = "For two classes with a softmax: `task='multiclass'`."
        raise ValueError(invalid("classes", "1 for yes or no", classes, remedy))
    check_channels_last(graph, "source")
    outputs = keras.tree.flatten(graph.outputs)
    if len(outputs) != 1:
        raise ValueError(
            invalid("source", "a model with one output", f"{len(outputs)} outputs")
        )
    vectors = len(outputs[0].shape) == 2
    last = graph.nodes.get(graph.name_of(outputs[0]))
    named = last is not None and last.operation.name == CLASSIFIER
    if vectors and (named or output_activation(graph) in ("softmax", "sigmoid")):
        remedy = "Leave its head out, e.g. `include_top=False`, or pass "
        remedy += "`keras.Model(source.inputs, source.layers[-2].output)`."
        received = f"'{graph.model.name}', whose last layer is a classifier"
        raise ValueError(
            invalid("source", "a backbone without its classifier", received, remedy)
        )
    return classes


def _pool(x, pooling):
    """Vectors of maps or tokens; vectors stay as they are."""
    rank = len(x.shape) - 2
    if pooling == "token":
        if rank != 1:
            expected = "'avg', 'max' or 'flatten' for a source that outputs no tokens"
            raise ValueError(invalid("pooling", expected, pooling))
        return x[:, 0]
    if rank == 0:
        return x
    last = "channels_last"  # whatever Keras's setting is
    if pooling == "flatten":
        return keras.layers.Flatten(last, name="head_flatten")(x)
    layer = getattr(keras.layers, f"{POOLINGS[pooling]}{rank}D")
    return layer(last, name="head_pool")(x)
