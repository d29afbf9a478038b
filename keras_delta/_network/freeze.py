"""Freezing the first layers of a network."""

import keras

from keras_delta._errors import invalid, unknown_name
from keras_delta._network.graph import Graph


def freeze_until(model: keras.Model, layer: str) -> list[str]:
    """Freezes the first layers of a model, up to a layer and including it.

    The layer, and all that it is computed from, no longer trains, and its
    BatchNormalization runs in inference mode. `DeltaModel` computes such a part once
    for source and target where it compares their maps, so frozen layers make its
    steps cheaper twice; there, frozen dropout is off as well.

    Args:
        model: a `DeltaModel`, or a Functional or Sequential model.
        layer: name of the layer, as in `DeltaModel.taps`; layers of nested models
            as well.

    Returns:
        List of the names of the frozen layers that have weights.

    Raises:
        ValueError: for an unknown name; the closest ones are listed.
        TypeError: for a subclassed model.

    Example:
        ```python
        kd.freeze_until(model, "conv3_block4_out")
        model.fit(train, regularizer="delta")
        ```
    """
    target = getattr(model, "target", model)
    graph = Graph(target)
    if not isinstance(layer, str):
        raise TypeError(invalid("layer", "the name of one layer", layer))
    if layer not in graph.nodes:
        raise ValueError(unknown_name("layer", layer, graph.nodes))
    needed = graph.ancestors(graph.nodes[layer].outputs)
    frozen = {n: v for n, v in graph.layers().items() if n in needed}
    for operation in frozen.values():
        operation.trainable = False
    model.train_function = None  # it was traced with the layers as they were
    return [name for name, operation in frozen.items() if operation.weights]
