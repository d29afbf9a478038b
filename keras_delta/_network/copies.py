"""Copies of a network, whole or in part."""

import keras
from keras import tree

from keras_delta import _compat
from keras_delta._compat import Functional
from keras_delta._network.graph import Graph, input_structure


def copy_model(
    model, outputs=None, inputs=None, name=None, trainable=None, convert=None
):
    """A copy with layers of its own, without nested models, weights copied.

    A model of a class of its own (KerasHub's backbones) is rebuilt by that class, if it
    is copied as a whole: its layers may have no config that they can be rebuilt from.

    `keras.models.clone_model` leaves the weights behind, compiles what was
    compiled and cannot stop before the head; hence this one.

    Args:
        model: Functional or Sequential model, or a `Graph`.
        outputs: KerasTensors of the graph to end at; default: the model's own.
        inputs: KerasTensors of the graph to begin at; default: the model's own.
        name: name of the copy; default: the model's.
        trainable: whether all layers of the copy train; default: as the model's.
        convert: function of a layer and its config, that gives the layer which takes
            its place in the copy, or None for one of its own class.

    Returns:
        A Functional model on new inputs.

    Raises:
        ValueError: for a layer that cannot be rebuilt from its config.
    """
    graph = model if isinstance(model, Graph) else Graph(model)
    whole = outputs is None and inputs is None and convert is None
    if whole and has_own_class(graph.model):
        return _set_trainable(_copy_by_class(graph.model, name), trainable)
    names = {id(node.operation): key for key, node in reversed(graph.nodes.items())}
    copies = {}

    def call(node, *args, **kwargs):
        operation = node.operation
        name = names[id(operation)]
        if not node.is_layer and "/" not in name:
            return None  # bare operations hold nothing and can be shared
        if id(operation) not in copies:
            new = _copy_layer(operation, name.replace("/", "_"), convert)
            copies[id(operation)] = (operation, new)
        return copies[id(operation)][1](*args, **kwargs)

    feeds = graph.inputs if inputs is None else inputs
    inputs = inputs_like(input_structure(graph.model) if inputs is None else inputs)
    outputs = graph.outputs if outputs is None else outputs
    outputs = graph.run(outputs, feeds, tree.flatten(inputs), call=call)
    copied = keras.Model(inputs, outputs, name=name or graph.model.name)
    for old, new in copies.values():
        if old is not new and getattr(old, "weights", None):
            new.set_weights(old.get_weights())
            if hasattr(new, "finalize_state"):
                new.finalize_state()  # Normalization computes with a cast copy
    return _set_trainable(copied, trainable)


def has_own_class(model):
    """Whether a model's class builds its graph itself, from arguments of its own."""
    return type(model) not in (keras.Sequential, Functional)


def _copy_by_class(model, name):
    config = {**model.get_config(), "name": name or model.name}
    copied = type(model).from_config(config)
    copied.set_weights(model.get_weights())
    for layer in _compat.flatten_layers(copied):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    return copied


def keep_frozen(model):
    """Freeze what frozen layers are made of, in a model that was built from a config.

    Keras makes the parts of a frozen MultiHeadAttention anew, and they would train.

    Returns:
        The model.
    """
    for layer in _compat.flatten_layers(model):
        if not layer.trainable and not isinstance(layer, keras.Model):
            for part in _compat.flatten_layers(layer)[1:]:
                part.trainable = False
    return model


def _set_trainable(model, trainable):
    if trainable is None:
        return keep_frozen(model)
    for layer in _compat.flatten_layers(model):
        # Setting what a layer says already is passed over, whatever its parts say.
        layer.trainable = not trainable
        layer.trainable = trainable
    return model


def _copy_layer(layer, name, convert=None):
    if isinstance(layer, keras.layers.Lambda) and not layer.weights:
        return layer  # its function may not survive a config; it holds nothing
    try:
        config = {**layer.get_config(), "name": name}
        made = convert(layer, config) if convert else None
        return type(layer).from_config(config) if made is None else made
    except Exception as e:
        raise ValueError(
            f"Layer '{layer.name}' ({type(layer).__name__}) cannot be copied: it "
            "could not be rebuilt from its config. Give the layer a `get_config()` "
            f"that returns every argument of its `__init__`. Reason: {e}"
        ) from e


def inputs_like(structure):
    """New inputs of the same shapes, types and names as some tensors."""
    return tree.map_structure(
        lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
        structure,
    )
