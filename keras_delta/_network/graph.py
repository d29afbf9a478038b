"""Models as graphs: one list of layer calls that can be named, cut and copied.

Keras keeps a model as nested containers; taps, pairing, channel attention and
copies all need the flat view, in which a convolution inside a nested backbone
is as easy to reach as any other. `Graph` is that view; it shares the layers
with the model it was made of.
"""

from collections import Counter
from typing import Any, NamedTuple

import keras
from keras import tree

from keras_delta import _compat
from keras_delta._compat import Functional
from keras_delta._errors import invalid


class Node(NamedTuple):
    """One call of one layer (or operation) in the flat graph."""

    path: tuple
    operation: Any
    args: tuple
    kwargs: dict
    outputs: list

    @property
    def inputs(self):
        """KerasTensors that this call consumes."""
        flat = tree.flatten((self.args, self.kwargs))
        return [t for t in flat if isinstance(t, keras.KerasTensor)]

    @property
    def is_layer(self):
        """Whether a layer is called, and not a bare operation."""
        return isinstance(self.operation, keras.layers.Layer)


class Graph:
    """The flat graph of a Functional or Sequential model.

    Nested Functional and Sequential models are inlined, so every layer call is
    one `Node`. Calls have names: the layer's own name where it is the only one
    of that name, else its path (`"backbone/conv"`); later calls of a shared
    layer carry their number (`"conv#1"`).

    Args:
        model: a built Functional or Sequential `keras.Model`.

    Attributes:
        inputs: list of KerasTensors.
        outputs: structure of KerasTensors, as the model's own outputs.
        nodes: dict name -> `Node`, in the order of computation.

    Raises:
        TypeError: for a subclassed model, whose graph cannot be seen.
        ValueError: for a Sequential model that was never built.
    """

    def __init__(self, model, argument="model"):
        if not is_container(model):
            remedy = (
                "The graph of a subclassed model cannot be read: build it with "
                "`keras.Model(inputs, outputs)`."
            )
            if is_container(getattr(model, "target", None)):  # a DeltaModel
                remedy = f"Pass its target: `{argument}=model.target`."
            expected = "a Functional or Sequential keras.Model"
            raise TypeError(invalid(argument, expected, model, remedy))
        if isinstance(model, keras.Sequential) and not model.built:
            raise ValueError(
                invalid(
                    argument,
                    "a built model",
                    model,
                    "Start the Sequential model with `keras.Input(shape)`.",
                )
            )
        self.model = model
        self.inputs = list(model.inputs)
        self._nodes = []
        self.outputs = self._walk(model, input_structure(model), ())
        self.nodes = dict(zip(self._names(), self._nodes, strict=True))
        self._producer = {
            id(t): name for name, node in self.nodes.items() for t in node.outputs
        }

    def _walk(self, model, inputs, path):
        if isinstance(model, keras.Sequential):
            x = inputs
            for layer in model.layers:
                x = self._call(path, layer, x)
            return x
        return _compat.run_through_graph(
            model, inputs, lambda op, *a, **k: self._call(path, op, *a, **k)
        )

    def _call(self, path, operation, *args, **kwargs):
        path = (*path, operation.name)
        if is_container(operation):
            # Keras passes the outer call's `training` down, whatever the
            # nested call was given, so there is nothing else to carry over.
            return self._walk(operation, args[0] if args else kwargs["inputs"], path)
        outputs = operation(*args, **kwargs)
        self._nodes.append(Node(path, operation, args, kwargs, tree.flatten(outputs)))
        return outputs

    def _names(self):
        paths = {id(n.operation): n.path for n in self._nodes}
        count = Counter(p[-1] for p in paths.values())
        calls = Counter()
        for node in self._nodes:
            last = node.path[-1]
            name = last if count[last] == 1 else "/".join(node.path)
            calls[name] += 1
            yield name if calls[name] == 1 else f"{name}#{calls[name] - 1}"

    def layers(self):
        """Dict name -> layer, each layer once, in the order of computation."""
        seen = {}
        for name, node in self.nodes.items():
            if node.is_layer and id(node.operation) not in seen:
                seen[id(node.operation)] = (name, node.operation)
        return dict(seen.values())

    def output_of(self, name):
        """The KerasTensor that the named call puts out."""
        outputs = self.nodes[name].outputs
        if len(outputs) != 1:
            raise ValueError(
                f"Layer '{name}' has {len(outputs)} outputs; only layers with one "
                "output can be tapped."
            )
        return outputs[0]

    def name_of(self, tensor):
        """Name of the call that made `tensor`; None for an input."""
        return self._producer.get(id(tensor))

    def depth_first(self):
        """Names of the calls, each behind those it needs, whatever the nesting.

        The order of computation is another for nested branches than for the same
        branches side by side in one model; this one is not.
        """
        order, todo = {}, [self.name_of(t) for t in tree.flatten(self.outputs)[::-1]]
        while todo:
            name = todo[-1]
            before = []
            if name is not None and name not in order:
                before = map(self.name_of, self.nodes[name].inputs)
                before = [n for n in before if n is not None and n not in order]
            if before:
                todo.extend(reversed(before))
            else:
                order[todo.pop()] = None
        order.pop(None, None)
        return list(order)

    def ancestors(self, tensors, stop=()):
        """Names of the calls needed for `tensors`, not going behind `stop`."""
        stop = {id(t) for t in stop}
        needed, todo = set(), [t for t in tree.flatten(tensors)]
        while todo:
            tensor = todo.pop()
            name = self.name_of(tensor)
            if name is None or name in needed or id(tensor) in stop:
                continue
            needed.add(name)
            todo.extend(self.nodes[name].inputs)
        return needed

    def descendants(self, tensors):
        """Names of the calls that depend on any of `tensors`."""
        reached, names = {id(t) for t in tensors}, set()
        for name, node in self.nodes.items():
            if any(id(t) in reached for t in node.inputs):
                names.add(name)
                reached.update(id(t) for t in node.outputs)
        return names

    def cut(self, tensors, outputs=None):
        """The tensors from which `outputs` can be had behind `tensors`.

        Returns:
            `tensors` first, then whatever else enters the part of the graph
            that depends on them (a shortcut around a tapped convolution, say).
        """
        outputs = self.outputs if outputs is None else outputs
        behind = self.descendants(tensors) & self.ancestors(outputs)
        found = {id(t): t for t in (*tensors, *self.entering(behind))}
        return list(found.values())

    def entering(self, names):
        """The tensors that the named calls take from outside of their set."""
        found = {}
        for name in self.nodes:
            if name in names:
                for t in self.nodes[name].inputs:
                    if self.name_of(t) not in names:
                        found.setdefault(id(t), t)
        return list(found.values())

    def run(self, fetches, feeds, values, training=None, call=None, held=()):
        """Compute `fetches` from `values` given for the tensors `feeds`.

        Works on tensors and, symbolically, on KerasTensors.

        Args:
            fetches: structure of this graph's KerasTensors.
            feeds: list of this graph's KerasTensors.
            values: list of tensors in their place.
            training: passed to every layer that takes it.
            call: `call(node, *args, **kwargs)` in place of calling the node's
                own operation.
            held: names of calls that run in inference mode in any case.

        Returns:
            `fetches` with tensors in the place of KerasTensors.
        """
        known = {id(t): v for t, v in zip(feeds, values, strict=True)}
        needed = self.ancestors(fetches, stop=feeds)

        def fill(t):
            return known[id(t)] if isinstance(t, keras.KerasTensor) else t

        for name, node in self.nodes.items():
            if name not in needed:
                continue
            args, kwargs = tree.map_structure(fill, (node.args, node.kwargs))
            if training is not None and takes_training(node.operation):
                kwargs["training"] = training and name not in held
            outputs = call(node, *args, **kwargs) if call else None
            outputs = node.operation(*args, **kwargs) if outputs is None else outputs
            known.update(
                (id(t), v)
                for t, v in zip(node.outputs, tree.flatten(outputs), strict=True)
            )
        return tree.map_structure(fill, fetches)

    def feed(self, x):
        """What a user calls the model with, as a list in the order of `inputs`."""
        given = x
        if isinstance(x, dict):  # with more in it, perhaps, than the model takes
            structure = input_structure(self.model)
            if isinstance(structure, dict):
                x = {key: x[key] for key in structure if key in x}
            else:
                x = [x[t.name] for t in self.inputs if t.name in x]
        flat = tree.flatten(x)
        if len(flat) != len(self.inputs):
            raise ValueError(
                invalid(
                    "x",
                    f"{len(self.inputs)} input tensor(s), "
                    f"{[t.name for t in self.inputs]}",
                    sorted(given)
                    if isinstance(given, dict)
                    else f"{len(flat)} tensor(s)",
                    "A list is taken for several inputs; one array of all samples is "
                    "`np.stack(x)`."
                    if isinstance(given, list)
                    else "",
                )
            )
        return [
            _fitting(keras.ops.convert_to_tensor(v, dtype=t.dtype), t)
            for v, t in zip(flat, self.inputs, strict=True)
        ]


def check_channels_last(graph, argument):
    """Refuse channels in another place than the last, where maps are compared.

    Args:
        graph: `Graph` of a network.
        argument: name of the argument that the network came as.
    """
    for node in graph.nodes.values():
        layer = node.operation
        while isinstance(layer, keras.layers.Wrapper):  # TimeDistributed
            layer = layer.layer
        if getattr(layer, "data_format", None) == "channels_first":
            remedy = "Build the same network with `data_format='channels_last'`, or "
            remedy += "after `keras.config.set_image_data_format('channels_last')`, "
            remedy += "and copy the weights with `set_weights`: they are the same."
            expected = "a network with the channels last"
            received = f"{graph.model.name}, whose layer '{node.operation.name}' has "
            received += "data_format='channels_first'"
            raise ValueError(invalid(argument, expected, received, remedy))


def is_container(layer):
    """Whether `layer` is a model whose graph can be read and inlined."""
    # A subclass with its own `call` does more than its graph shows.
    return any(
        isinstance(layer, kind) and type(layer).call is kind.call
        for kind in (keras.Sequential, Functional)
    )


def takes_training(operation):
    """Whether the operation's `call` has an argument `training`."""
    return _compat.takes_training(operation)


def shapes_fit(a, b):
    """Whether two shapes are the same, as far as both are known."""
    return len(a) == len(b) and all(
        m == n or None in (m, n) for m, n in zip(a, b, strict=True)
    )


def _fitting(v, tensor):
    """As Keras: `(B,)` will do for `(B, 1)`, and vice versa; else shapes must agree."""
    shape = tensor.shape
    if len(v.shape) == len(shape) - 1 and shape[-1] == 1:
        v = keras.ops.expand_dims(v, -1)
    elif len(v.shape) == len(shape) + 1 and v.shape[-1] == 1:
        v = keras.ops.squeeze(v, -1)
    if not shapes_fit(v.shape, (None, *shape[1:])):
        raise ValueError(
            f"Invalid shape for the input '{tensor.name}'. Expected {tuple(shape)}. "
            f"Received: {tuple(v.shape)}. Resize the images to the model's "
            "`input_shape`, and pass them in batches."
        )
    return v


def input_structure(model):
    """A model's input tensors, as it was given them."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input
