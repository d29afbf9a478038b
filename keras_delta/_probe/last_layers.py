"""The last layers of a network's outputs, and what enters them."""

from typing import NamedTuple

import keras
from keras import tree

from keras_delta import _tasks
from keras_delta._inputs import outputs
from keras_delta._network.heads import last_dense


class LastLayer(NamedTuple):
    """The `Dense` layer that an output comes out of.

    Attributes:
        index: of the output, among all.
        name: of the output, where there are several; else None.
        layer: the `Dense` layer.
        entering: the KerasTensor that it takes, `(B, D)`.
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
    """The `LastLayer`s that a linear model can be put in the place of.

    Args:
        graph: the network's `Graph`.
        losses: list of losses, one an output, None where an output has none.

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
            reason = "does not come out of a Dense layer of kernel and bias, on vectors"
        elif task not in _tasks.TASKS:
            reason = f"has a loss, {_tasks.loss_name(loss)}, that tells no task"
        else:
            entering = node.inputs[0]
            found.append(LastLayer(i, name, node.operation, entering, loss, task))
            continue
        left_out[name or "output"] = reason
    return found, left_out


def _dense(graph, tensor):
    """The call of the plain Dense layer that `tensor` comes out of, or None."""
    node = last_dense(graph, tensor)
    # Without a bias, with LoRA or quantised it has others than these two.
    plain = node and len(node.operation.weights) == 2 and node.operation.use_bias
    return node if plain else None
