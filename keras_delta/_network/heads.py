"""Where the head of a network starts, and what it outputs."""

import keras


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
    return next(reversed(_becoming_vectors(graph)), None)


def body_outputs(graph):
    """The last feature map of each branch before a network's head, a list."""
    found = {id(t): t for t in _becoming_vectors(graph)}.values()
    inner = graph.ancestors(
        [graph.nodes[n].inputs for n in map(graph.name_of, found) if n]
    )
    return [t for t in found if graph.name_of(t) not in inner]


def _becoming_vectors(graph):
    """Maps that a call makes vectors of, in the order of computation."""
    return [
        node.inputs[0]
        for node in graph.nodes.values()
        if max((len(t.shape) for t in node.inputs), default=0) >= 3
        and max(len(t.shape) for t in node.outputs) == 2
    ]


def last_dense(graph, output=None):
    """The call of the `Dense` layer that an output comes out of, or None.

    Args:
        graph: the network's `Graph`.
        output: KerasTensor; default: the only output.
    """
    outputs = keras.tree.flatten(graph.outputs) if output is None else [output]
    name = graph.name_of(outputs[0]) if len(outputs) == 1 else None
    while name is not None:
        node = graph.nodes[name]
        if isinstance(node.operation, keras.layers.Dense):
            return node if len(node.inputs[0].shape) == 2 else None
        if not isinstance(node.operation, _ACTIVATIONS):
            return None
        name = graph.name_of(node.inputs[0])
    return None


def features(graph):
    """The vectors `(B, D)` for the last `Dense` layer, as they enter its Dropout.

    KerasTensor, or None where a network does not end in one `Dense` layer.
    """
    node = last_dense(graph)
    if node is None:
        return None
    (entering,) = node.inputs
    before = graph.nodes.get(graph.name_of(entering))
    dropped = before and isinstance(before.operation, keras.layers.Dropout)
    return before.inputs[0] if dropped else entering


_ACTIVATIONS = (keras.layers.Activation, keras.layers.Softmax)


def output_activation(graph, output=None):
    """Activation of an output: `"softmax"`, `"sigmoid"`, `"linear"` or None.

    None where it cannot be told: a layer that is not known, or several outputs and
    none of them named.

    Args:
        graph: the network's `Graph`.
        output: KerasTensor; default: the only output.
    """
    outputs = keras.tree.flatten(graph.outputs) if output is None else [output]
    name = graph.name_of(outputs[0]) if len(outputs) == 1 else None
    while name is not None:
        node = graph.nodes[name]
        operation = node.operation
        if type(operation).__name__ in _OPERATIONS:
            return type(operation).__name__.lower()
        if isinstance(operation, _ACTIVATED):
            activation = getattr(operation.activation, "__name__", None)
            activation = _OTHER_NAMES.get(activation, activation)
            # A linear Activation, there for its dtype, tells nothing by itself.
            passes = isinstance(operation, keras.layers.Activation)
            if activation != "linear" or not passes:
                return activation if activation in _KNOWN else None
        elif not isinstance(operation, _TRANSPARENT):
            return None
        name = graph.name_of(node.inputs[0])
    return None


_KNOWN = ("softmax", "sigmoid", "linear")
_OTHER_NAMES = {"softmax_v2": "softmax"}  # of TensorFlow's function
_OPERATIONS = ("Softmax", "Sigmoid")  # a layer, or a function of `keras.ops`
_ACTIVATED = (
    keras.layers.Dense,
    keras.layers.Conv2D,
    keras.layers.Activation,
)
_TRANSPARENT = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.Dropout)


def check_heads(target, source):
    """Refuse networks whose predictions cannot be compared class by class.

    Args:
        target, source: `Graph`s.

    Raises:
        ValueError: naming the output that does not fit.
    """
    shapes = {}
    for name, graph in {"source": source, "target": target}.items():
        outputs = keras.tree.flatten(graph.outputs)
        shapes[name] = [tuple(t.shape[1:]) for t in outputs]
        if len(outputs) > 1 or len(shapes[name][0]) != 1 or shapes[name][0][0] == 1:
            raise ValueError(
                "The predictions of source and target cannot be compared class by "
                f"class: the outputs of the {name} have the shapes {shapes[name]}, and "
                "one vector with a number for each of two or more classes is expected. "
                + _REMEDIES[name]
            )
        if output_activation(graph) == "sigmoid":
            raise ValueError(
                f"The {name} ends in a sigmoid, and this regularizer compares "
                "probabilities of classes that exclude each other. Use a softmax, or "
                "logits."
            )
    if shapes["source"] != shapes["target"]:
        classes = [shape[0][0] for shape in shapes.values()]
        raise ValueError(
            f"The source's head has {classes[0]} classes, the target's {classes[1]}. "
            "Both need the same classes, in the same order. " + _REMEDIES["source"]
        )


_REMEDIES = {
    "source": "Fine-tune the source on the target's task first, "
    "`teacher = kd.fine_tune(network, train)`, and pass `teacher.target`, to "
    "`kd.DeltaModel` as `source` or to `kd.fine_tune` as `teacher`; "
    "AFD and FitNets compare maps alone with `kd=0`.",
    "target": "Make the target with `kd.attach_head(network, classes)`.",
}
