"""A new classifier on a copy of a pretrained network."""

import keras

from keras_delta._arguments import choice, integer, number
from keras_delta._errors import invalid
from keras_delta._network.copies import copy_model
from keras_delta._network.graph import Graph

POOLINGS = {"avg": "GlobalAveragePooling", "max": "GlobalMaxPooling"}


def attach_head(
    source,
    classes,
    *,
    pooling="avg",
    dropout=0.0,
    activation=None,
    batch_norm_momentum=0.9,
    name=None,
):
    """A target network: the source's layers and weights, copied, and a new head.

    The copy is independent of `source`: fine-tuning it leaves the source as it
    was, so the source can serve as DELTA's starting point and for other targets.

    Args:
        source: Functional or Sequential backbone that puts out feature maps
            `(B, H, W, C)` (or vectors `(B, C)`, which are not pooled).
        classes: number of target classes, 2 or more.
        pooling: `"avg"`, `"max"` or `"flatten"`.
        dropout: rate of the dropout before the classifier.
        activation: of the classifier; default: none, i.e. logits. Use
            `from_logits=True` in the loss then.
        batch_norm_momentum: momentum of the copy's BatchNorm statistics, default
            0.9, as in PyTorch and so in the authors' program; None keeps the
            source's. Keras's usual 0.99 needs several hundred steps to follow the
            weights, more than fine-tuning on a few images has: the network then
            runs with statistics that are not its own, and accuracy falls.
        name: name of the model; default: `<source>_<classes>`.

    Returns:
        A Functional `keras.Model` with the output `(B, classes)`, float32.

    Raises:
        ValueError: for fewer than two classes, an unknown `pooling`, or a
            source with several outputs.
    """
    momentum = number(
        "batch_norm_momentum", batch_norm_momentum, below=1, optional=True
    )
    classes = integer("classes", classes, least=2)
    choice("pooling", pooling, (*POOLINGS, "flatten"))
    graph = Graph(source, argument="source")
    outputs = keras.tree.flatten(graph.outputs)
    if len(outputs) != 1:
        raise ValueError(
            invalid("source", "a model with one output", f"{len(outputs)} outputs")
        )
    # That a source was frozen first is no reason for its copy to be.
    body = copy_model(graph, trainable=True)
    if momentum is not None:
        for layer in body.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = momentum
    x = _pool(keras.tree.flatten(body.output)[0], pooling)
    if dropout:
        x = keras.layers.Dropout(dropout, name="head_dropout")(x)
    # float32 whatever the policy: a softmax over half-precision logits is coarse.
    x = keras.layers.Dense(classes, activation, dtype="float32", name="head")(x)
    return keras.Model(body.input, x, name=name or f"{source.name}_{classes}")


def _pool(x, pooling):
    """Vectors of maps; vectors stay as they are."""
    rank = len(x.shape) - 2
    if rank == 0:
        return x
    last = "channels_last"  # whatever Keras's setting is
    if pooling == "flatten":
        return keras.layers.Flatten(last, name="head_flatten")(x)
    layer = getattr(keras.layers, f"{POOLINGS[pooling]}{rank}D")
    return layer(last, name="head_pool")(x)
