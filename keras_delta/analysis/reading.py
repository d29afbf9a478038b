"""Reads a map of a network, even inside a nested model."""

import numpy as np
import tensorflow as tf

from keras_delta._errors import invalid, unknown_name
from keras_delta._network.graph import Graph
from keras_delta.analysis.maps import normalized
from keras_delta.model import DeltaModel


def to_map(model, tap, image_size, label):
    """(`ToMap` of a model, (height, width)); raises an error if not possible."""
    if isinstance(model, DeltaModel):
        tap, model = model.taps[-1] if tap is None else tap, model.target
    graph = Graph(model, argument=f"models[{label!r}]" if label else "models")
    if tap is None:
        remedy = "A plain Keras model has no taps to choose a layer from."
        raise ValueError(invalid("tap", "the name of a layer", None, remedy))
    if tap not in graph.nodes:
        raise ValueError(unknown_name("tap", tap, graph.nodes))
    if len(graph.inputs) != 1 or graph.inputs[0].shape[-1] != 3:
        shapes = [t.shape for t in graph.inputs]
        raise ValueError(invalid("model", "one of colour images", shapes))
    output = graph.output_of(tap)
    if len(output.shape) != 4:
        expected = "a layer with a map (B, H, W, C)"
        raise ValueError(invalid("tap", expected, f"'{tap}' {output.shape}"))
    if image_size is None:
        image_size = model.input_shape[1:3]
    if np.ndim(image_size) and None in image_size:
        expected = f"a size, since '{model.name}' takes images of any size"
        raise ValueError(invalid("image_size", expected, None))
    return ToMap(graph, output), image_size


class ToMap:
    """A network up to one of its maps, which may be inside a nested model.

    Args:
        graph: the network's `Graph`.
        output: its tensor.
    """

    def __init__(self, graph, output):
        self._graph, self._output = graph, output
        self._run = tf.function(self._compute, reduce_retracing=True)

    def __call__(self, images):
        """The map of these images in inference mode, a float32 array."""
        return self._run(self._graph.feed(images)).numpy().astype("float32")

    def _compute(self, feeds):
        inputs = self._graph.inputs
        return self._graph.run(self._output, inputs, feeds, training=False)


def aggregate(maps):
    """Mean over the channels, normalised to 0..1: `(N, H, W, C)` -> `(N, H, W)`."""
    return normalized(np.asarray(maps, "float32").mean(-1, keepdims=True))[..., 0]
