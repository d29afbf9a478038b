"""Combines preprocessing and a network into one flat model."""

import keras

from keras_delta._errors import invalid
from keras_delta._network.graph import Graph


def assemble(core, preprocessing, input_shape, name, rebuild=None):
    """A flat model that takes raw images: preprocessing, then the network.

    The layers are new ones with the weights of `core`, because a layer in two
    models has two outputs and `layer.output` no longer works.

    Args:
        core: Functional model with one input.
        preprocessing: layer, or function of a KerasTensor, to put in front of it.
        input_shape: (height, width, channels) of the model; it may be stricter
            than that of `core`.
        name: name of the model.
        rebuild: function from a layer's `get_config()` to the config of its copy,
            or to None to omit the layer; default: the config unchanged.

    Returns:
        `keras.Model` with the input `"image"` and the layers of `core`.
    """
    graph = Graph(core)
    copies = []

    def call(node, *args, **kwargs):
        layer = node.operation
        config = layer.get_config()
        config = rebuild(config) if rebuild else config
        if config is None:
            return args[0]
        copies.append((layer, type(layer).from_config(config)))
        return copies[-1][1](*args, **kwargs)

    image = keras.Input(input_shape, name="image")
    outputs = graph.run(graph.outputs, graph.inputs, [preprocessing(image)], call=call)
    model = keras.Model(image, outputs, name=name)
    for layer, copy in copies:
        for old, new in zip(layer.weights, copy.weights, strict=True):
            new.assign(old)
    return model


def check_shape(input_shape):
    """`(height, width, 3)` as a tuple; any other `input_shape` is an error."""
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    sides = [n is None or (isinstance(n, int) and n > 0) for n in shape[:2]]
    if len(shape) != 3 or not all(sides) or shape[2] != 3:
        expected = "(height, width, 3) with sizes in pixels or None"
        raise ValueError(invalid("input_shape", expected, input_shape))
    return shape
