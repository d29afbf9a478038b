"""Which layers keep channels apart, and where a tensor's channels are.

A layer keeps channels apart if channel j of its output needs channel j of its
input alone. Behind a tap, such layers can be run once with *every* channel of the
tap at zero: channel j of what comes out is what it would be with channel j alone
at zero. Only where channels are mixed does the work for each channel begin.
"""

import keras
from keras import layers
from keras.src import ops as operations  # the classes of bare operations

from keras_delta._network.graph import Graph

ELEMENTWISE = (
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
)
POSITIONS = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
)
MERGES = (
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
)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
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


# Their output has axes of its own, whatever comes in.
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

    The last one, or 1 where the layer was built with `data_format="channels_first"`
    or normalises along axis 1, or where it leaves the axes of such a layer's output
    as they are.
    """
    node = graph.nodes[name]
    rank = len(node.outputs[0].shape)
    while node is not None and rank > 2 and not isinstance(node.operation, NEW_AXES):
        axis = stated_axis(node.operation, rank)
        if axis is not None:
            return axis
        # What a concatenation's own axis holds cannot be told: tokens, perhaps.
        joins = isinstance(node.operation, layers.Concatenate)
        shape = node.outputs[0].shape
        before = [t for t in node.inputs if t.shape == shape or joins]
        node = graph.nodes.get(graph.name_of(before[0])) if before else None
    return rank - 1


def stated_axis(layer, rank):
    """Axis of the channels as the layer itself says; None where it does not."""
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
        `(axis, first)` of the output, or None where the call mixes channels.
    """
    operation, kind = node.operation, type(node.operation)
    ours = {where[id(t)] for t in node.inputs if id(t) in where}
    if len(ours) != 1 or len(node.outputs) != 1:
        return None
    axis, first = ours.pop()
    output = node.outputs[0].shape
    inputs = [t.shape for t in node.inputs if id(t) in where]
    if kind is layers.Concatenate:
        if len(inputs) > 1 or operation.axis % len(output) != axis:
            return None
        for t in node.inputs:
            if id(t) in where:
                return axis, first
            first += t.shape[axis]
    if any(len(s) <= axis or s[axis] != _width(output, axis) for s in inputs):
        return None
    if kind in MERGES or kind in ELEMENTWISE:
        same = all(s[1:] == output[1:] for s in inputs)
        return (axis, first) if same else None
    if kind is layers.Activation:
        return (axis, first) if _elementwise(operation.activation) else None
    if kind is layers.BatchNormalization:
        return (axis, first) if operation.axis % len(output) == axis else None
    layout = getattr(operation, "data_format", None)
    expected = "channels_first" if axis != len(inputs[0]) - 1 else "channels_last"
    if layout not in (None, expected):
        return None
    if kind in POSITIONS:
        return min(axis, len(output) - 1), first
    if kind in DEPTHWISE:
        apart = operation.depth_multiplier == 1 and _elementwise(operation.activation)
        return (axis, first) if apart else None
    return None


def _width(shape, axis):
    return shape[min(axis, len(shape) - 1)]


def _elementwise(activation):
    own = getattr(keras.activations, getattr(activation, "__name__", ""), None)
    return own is activation and activation.__name__ in ACTIVATIONS
