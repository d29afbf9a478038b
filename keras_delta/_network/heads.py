"""A new classifier on a copy of a pretrained network."""

from numbers import Integral

import keras

from keras_delta._errors import invalid
from keras_delta._network.graph import Graph, copy_model


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
    momentum = batch_norm_momentum
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(
            invalid("batch_norm_momentum", "a number in [0, 1) or None", momentum)
        )
    if not isinstance(classes, Integral) or isinstance(classes, bool) or classes < 2:
        raise ValueError(invalid("classes", "an integer of 2 or more", classes))
    poolings = {"avg": "GlobalAveragePooling", "max": "GlobalMaxPooling"}
    if pooling not in (*poolings, "flatten"):
        raise ValueError(invalid("pooling", '"avg", "max" or "flatten"', pooling))
    graph = Graph(source, argument="source")
    outputs = keras.tree.flatten(graph.outputs)
    if len(outputs) != 1:
        raise ValueError(
            invalid("source", "a model with one output", f"{len(outputs)} outputs")
        )
    # That a source was frozen first is no reason for its copy to be.
    body = copy_model(graph, trainable=True)
    if batch_norm_momentum is not None:
        for layer in body.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = batch_norm_momentum
    x = keras.tree.flatten(body.output)[0]
    rank = len(x.shape) - 2
    if rank == 0:
        pass
    elif pooling == "flatten":
        x = keras.layers.Flatten(name="head_flatten")(x)
    else:
        layer = getattr(keras.layers, f"{poolings[pooling]}{rank}D")
        x = layer(name="head_pool")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="head_dropout")(x)
    # float32 whatever the policy: a softmax over half-precision logits is coarse.
    x = keras.layers.Dense(int(classes), activation, dtype="float32", name="head")(x)
    return keras.Model(body.input, x, name=name or f"{source.name}_{classes}")


def head_layers(graph):
    """Names of the layers with weights that make up a network's head.

    That is what lies behind the last pooling or flattening, where maps become
    vectors; in a network without maps, the last layer with weights.
    """
    weighted = [name for name, layer in graph.layers().items() if layer.weights]
    start = body_output(graph)
    if start is not None:
        behind = graph.descendants([start])
        if head := [name for name in weighted if name in behind]:
            return head
    return weighted[-1:]


def body_output(graph):
    """The last feature map `(B, positions..., C)` before a network's head, or None."""
    found = None
    for node in graph.nodes.values():
        before = max((len(t.shape) for t in node.inputs), default=0)
        after = max(len(t.shape) for t in node.outputs)
        if before >= 3 and after == 2:
            found = node.inputs[0]
    return found


def output_activation(graph):
    """Activation of the output: `"softmax"`, `"sigmoid"`, `"linear"` or None.

    None where it cannot be told: several outputs, or a layer that is not known.
    """
    outputs = keras.tree.flatten(graph.outputs)
    name = graph.name_of(outputs[0]) if len(outputs) == 1 else None
    while name is not None:
        node = graph.nodes[name]
        operation = node.operation
        if isinstance(operation, keras.layers.Softmax):
            return "softmax"
        if isinstance(operation, _ACTIVATED):
            activation = getattr(operation.activation, "__name__", None)
            # A linear Activation, there for its dtype, tells nothing by itself.
            passes = isinstance(operation, keras.layers.Activation)
            if activation != "linear" or not passes:
                return activation if activation in _KNOWN else None
        elif not isinstance(operation, _TRANSPARENT):
            return None
        name = graph.name_of(node.inputs[0])
    return None


_KNOWN = ("softmax", "sigmoid", "linear")
_ACTIVATED = (
    keras.layers.Dense,
    keras.layers.Conv2D,
    keras.layers.Activation,
)
_TRANSPARENT = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.Dropout)
