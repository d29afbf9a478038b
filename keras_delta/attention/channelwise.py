"""Which layers keep channels apart, and where a tensor's channels are.

A layer keeps channels apart if channel j of its output depends on channel j of its
input alone. Behind a tap, such layers can run once with *every* channel of the tap at
zero: channel j of the output is the same as with channel j alone at zero. Separate
work for each channel is needed only once channels are mixed.
"""

import keras
from keras import layers

from keras_delta._compat import operations
from keras_delta._network.graph import Graph

ACTIVATIONS = {
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "hard_silu",
    "leaky_relu",
    "linear",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
}


# Layers whose output axes do not follow from the input's.
NEW_AXES = (
    layers.Dense,
    layers.EinsumDense,
    layers.Permute,
    operations.numpy.Moveaxis,
    operations.numpy.Swapaxes,
    operations.numpy.Transpose,
)


def channel_axis(graph: Graph, name):
    """Axis of the channels in the output of the named call, counted from 0.

    The last one, or 1 if the layer was built with `data_format="channels_first"`,
    normalises along axis 1, or keeps the axes of such a layer's output.
    """
    node = graph.nodes[name]
    rank = len(node.outputs[0].shape)
    while node is not None and rank > 2 and not isinstance(node.operation, NEW_AXES):
        axis = stated_axis(node.operation, rank)
        if axis is not None:
            return axis
        # The axis of a concatenation may hold anything, such as tokens.
        joins = isinstance(node.operation, layers.Concatenate)
        shape = node.outputs[0].shape
        before = [t for t in node.inputs if t.shape == shape or joins]
        node = graph.nodes.get(graph.name_of(before[0])) if before else None
    return rank - 1


def stated_axis(layer, rank):
    """Axis of the channels as the layer states it; None if it does not."""
    layout = getattr(layer, "data_format", None)
    if layout is not None:
        return 1 if layout == "channels_first" else rank - 1
    norm = isinstance(layer, layers.BatchNormalization)
    return layer.axis % rank if norm else None


def follow(node, where):
    """Where a tap's channels are in the output of a call that keeps them apart.

    Args:
        node: the call.
        where: dict from the id of a tensor to `(axis, first)`: along `axis`,
            channel j of the tap is at `first + j`. The call's other inputs do not
            depend on the tap.

    Returns:
        `(axis, first)` of the output, or None if the call mixes channels.
    """
    places = {where[id(t)] for t in node.inputs if id(t) in where}
    rule = RULES.get(type(node.operation))
    if rule is None or len(places) != 1 or len(node.outputs) != 1:
        return None
    ((axis, first),) = places
    tapped = [id(t) in where for t in node.inputs]
    place = rule(node, axis, tapped)
    return None if place is None else (place[0], first + place[1])


# Each rule takes a call, the axis of the channels, and which of the call's inputs have
# them. It returns the axis in the output and the shift of the first channel, or None if
# channels are mixed.


def _elementwise(node, axis, tapped):
    output = node.outputs[0].shape[1:]
    ours = [t.shape for t, is_ours in zip(node.inputs, tapped, strict=True) if is_ours]
    return (axis, 0) if all(shape[1:] == output for shape in ours) else None


def _activation(node, axis, tapped):
    apart = is_elementwise(node.operation.activation)
    return (axis, 0) if apart else None


def _normalization(node, axis, tapped):
    same = node.operation.axis % len(node.outputs[0].shape) == axis
    return (axis, 0) if same else None


def _positions(node, axis, tapped):
    before, after = node.inputs[0].shape, node.outputs[0].shape
    layout = getattr(node.operation, "data_format", None)
    expected = "channels_last" if axis == len(before) - 1 else "channels_first"
    new = min(axis, len(after) - 1)
    # One-dimensional layers have no layout: the width decides.
    fits = layout in (None, expected) and before[axis] == after[new]
    return (new, 0) if fits else None


def _depthwise(node, axis, tapped):
    layer = node.operation
    apart = layer.depth_multiplier == 1 and is_elementwise(layer.activation)
    return _positions(node, axis, tapped) if apart else None


def _concatenation(node, axis, tapped):
    if sum(tapped) > 1 or node.operation.axis % len(node.outputs[0].shape) != axis:
        return None
    before = node.inputs[: tapped.index(True)]
    return axis, sum(t.shape[axis] for t in before)


def is_elementwise(activation):
    """Whether an activation function of Keras is elementwise."""
    known = getattr(keras.activations, getattr(activation, "__name__", ""), None)
    return known is activation and activation.__name__ in ACTIVATIONS


_KINDS = {
    _elementwise: (
        layers.ReLU,
        layers.LeakyReLU,
        layers.ELU,
        layers.Identity,
        layers.Dropout,  # inference mode, so nothing is drawn
        layers.SpatialDropout1D,
        layers.SpatialDropout2D,
        layers.SpatialDropout3D,
        layers.AlphaDropout,
        layers.GaussianDropout,
        layers.GaussianNoise,
        layers.Add,
        layers.Subtract,
        layers.Multiply,
        layers.Average,
        layers.Maximum,
        layers.Minimum,
        operations.numpy.Add,
        operations.numpy.Subtract,
        operations.numpy.Multiply,
        operations.numpy.Maximum,
        operations.numpy.Minimum,
        operations.nn.Relu,
        operations.nn.Relu6,
        operations.nn.Sigmoid,
        operations.nn.Silu,
        operations.nn.HardSigmoid,
    ),
    _positions: [
        getattr(layers, f"{name}{dimensions}D")
        for name in (
            "MaxPooling",
            "AveragePooling",
            "GlobalAveragePooling",
            "GlobalMaxPooling",
            "ZeroPadding",
            "Cropping",
            "UpSampling",
        )
        for dimensions in (1, 2, 3)
    ],
    _depthwise: (layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    _activation: (layers.Activation,),
    _normalization: (layers.BatchNormalization,),
    _concatenation: (layers.Concatenate,),
}
RULES = {kind: rule for rule, kinds in _KINDS.items() for kind in kinds}
