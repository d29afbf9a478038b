"""BatchNormalization folded into the convolution before it, in inference mode."""

import keras
import tensorflow as tf
from keras import layers, ops, tree

from keras_delta._network.graph import Graph


class Folding:
    """A `call` for `Graph.run` that leaves BatchNormalization out.

    In inference mode BatchNormalization is `x * s + t` with constants s and t, so
    a convolution with the kernel `k * s` and the bias `b * s + t` does both, and
    TensorFlow then computes convolution, bias, the addition of a shortcut and ReLU
    in one pass over the map. Only rounding changes.

    Args:
        graph: the network.
        fed: tensors that will be fed and must therefore keep the graph's values.
        folded: dict of folded parameters, shared by several for one network.
    """

    def __init__(self, graph: Graph, fed=(), folded=None):
        self._folded = {} if folded is None else folded
        users = {}
        for node in graph.nodes.values():
            for t in node.inputs:
                users.setdefault(id(t), []).append(node)
        kept = {id(t) for t in [*tree.flatten(graph.outputs), *fed]}
        self._norms, self._left_out = {}, set()
        for node in graph.nodes.values():
            tensor = node.outputs[0]
            using = users.get(id(tensor), [])
            if id(tensor) in kept or len(using) != 1 or not _foldable(node):
                continue
            norm = using[0]
            if (
                type(norm.operation) is layers.BatchNormalization
                and norm.operation.axis % len(tensor.shape) == len(tensor.shape) - 1
                and norm.args
            ):
                self._norms[id(tensor)] = norm
                self._left_out.add(id(norm.outputs[0]))

    def norm(self, node):
        """The BatchNormalization call that is folded into a call, or None."""
        return self._norms.get(id(node.outputs[0]))

    def parameters(self, node, dtype=None):
        """Kernel and bias of a convolution or dense layer, after folding.

        Args:
            node: the call.
            dtype: of the result; default: the layer's.
        """
        key = (id(node.outputs[0]), self.norm(node) is None, dtype)
        if key not in self._folded:
            with tf.init_scope():  # once, and not in every call of a trace
                self._folded[key] = self._fold(node, dtype)
        return self._folded[key]

    def _fold(self, node, dtype):
        layer, norm = node.operation, self.norm(node)
        dtype = dtype or layer.compute_dtype
        # In float16 a folded kernel would be rounded twice, or overflow.
        exact = "float64" if dtype == "float64" else "float32"
        kernel, bias = tf.cast(tf.convert_to_tensor(layer.kernel), exact), None
        if layer.use_bias:
            bias = _float64(layer.bias)
        if norm is not None:
            norm = norm.operation
            scale = 1 / tf.sqrt(_float64(norm.moving_variance) + norm.epsilon)
            scale = scale * _float64(norm.gamma) if norm.scale else scale
            mean = _float64(norm.moving_mean)
            bias = -mean * scale if bias is None else (bias - mean) * scale
            bias = bias + _float64(norm.beta) if norm.center else bias
            by_input = isinstance(layer, layers.DepthwiseConv2D)
            kernel *= ops.cast(scale[:, None] if by_input else scale, exact)
        return [v if v is None else ops.cast(v, dtype) for v in (kernel, bias)]

    def __call__(self, node, *args, **kwargs):
        """The output of a call; None if nothing is folded."""
        if id(node.outputs[0]) in self._left_out:
            return args[0]
        if self.norm(node) is None:
            return None
        return linear(node, args[0], *self.parameters(node))


def linear(node, x, kernel, bias):
    """A convolution or dense layer before its activation, with given parameters."""
    layer = node.operation
    x = ops.cast(x, kernel.dtype)
    if isinstance(layer, layers.Dense):
        y = ops.matmul(x, kernel)
    else:
        depthwise = isinstance(layer, layers.DepthwiseConv2D)
        y = (ops.depthwise_conv if depthwise else ops.conv)(
            x,
            kernel,
            strides=layer.strides,
            padding=layer.padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )
    return y if bias is None else tf.nn.bias_add(y, bias)


def plain_kernel(layer):
    """Whether the layer is determined by its kernel and bias."""
    return (
        not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
    )


def _foldable(node):
    layer = node.operation
    return (
        node.args  # and not `layer(inputs=x)`
        and (
            type(layer) is layers.Conv2D
            or (type(layer) is layers.DepthwiseConv2D and layer.depth_multiplier == 1)
        )
        and layer.data_format == "channels_last"
        and layer.activation is keras.activations.linear
        and plain_kernel(layer)
    )


def _float64(variable):
    return tf.cast(tf.convert_to_tensor(variable), "float64")
