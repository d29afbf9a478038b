"""The last layers of a network's outputs, and their inputs."""

from typing import NamedTuple

import keras
from keras import tree

from keras_delta import _tasks
from keras_delta._inputs import outputs
from keras_delta._network.heads import last_dense, output_activation


class LastLayer(NamedTuple):
    """The `Dense` layer that an output comes from.

    Attributes:
        index: of the output, among all.
        name: of the output, if there are several; else None.
        layer: the `Dense` layer.
        entering: its input KerasTensor, `(B, D)`.
        loss: the output's loss.
        task: one of `_tasks.TASKS`.
    """

    index: int  # type: ignore[assignment]
    name: str | None
    layer: keras.layers.Dense
    entering: keras.KerasTensor
    loss: object
    task: str


def find(graph, losses):
    """The `LastLayer`s that a linear model can replace.

    Args:
        graph: the network's `Graph`.
        losses: list of losses, one per output, None for an output without.

    Returns:
        List of `LastLayer`, and dict from the other outputs' names to the reason.
    """
    tensors, names = tree.flatten(graph.outputs), outputs.names(graph)
    tasks = outputs.tasks(losses, graph)
    found, left_out = [], {}
    for i, (tensor, loss) in enumerate(zip(tensors, losses, strict=True)):
        if loss is None:
            continue
        name = names[i] if len(tensors) > 1 else None
        node, task = _dense(graph, tensor), tasks[i]
        if node is None:
            reason = "does not come from a Dense layer of kernel and bias, on vectors"
        elif task not in _tasks.TASKS:
            reason = f"has a loss, {_tasks.loss_name(loss)}, of no known task"
        elif task == _tasks.REGRESSION and output_activation(graph, tensor) != "linear":
            reason = "has an activation other than linear, for a regression"
        else:
            entering = node.inputs[0]
            found.append(LastLayer(i, name, node.operation, entering, loss, task))
            continue
        left_out[name or "output"] = reason
    return found, left_out


def _dense(graph, tensor):
    """The call of the plain Dense layer that `tensor` comes from, or None."""
    node = last_dense(graph, tensor)
    # Without a bias, with LoRA or quantised it has others than these two.
    plain = node and len(node.operation.weights) == 2 and node.operation.use_bias
    return node if plain else None
