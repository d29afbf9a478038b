"""Weight averaging: between two models, and over several."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_delta import _arguments, _compat
from keras_delta._errors import invalid
from keras_delta._network.copies import copy_model
from keras_delta._network.graph import Graph
from keras_delta._types import ArrayLike, Tensor


def interpolate(
    model: keras.Model,
    start: keras.Model | Sequence[np.ndarray] | None = None,
    share: float = 0.5,
) -> None:
    """Move a model's weights back towards those that its training started from.

    Each weight, including statistics of BatchNormalization, becomes

        (1 - share) * start + share * now,

    computed in double precision. Fine-tuned weights know the new images best, those of
    the start other kinds of images, and a model on the line between them often does
    well on both. Seeds and integers are unchanged.

    Layers that only one of the two has cannot be interpolated: with `start=None` the
    new head of a `DeltaModel` is unchanged. Interpolation is therefore most useful
    after a training that started from a fitted head (`fit_head`).

    Args:
        model: a Functional or Sequential model, or a `DeltaModel`, whose target is
            used; changed in place.
        start: a model of the same architecture; or a list of arrays from
            `model.get_weights()`; or None: for a `DeltaModel` its source, with
            the weights of the paired layers (`model.pairing`). If that is a teacher,
            pass the network that the training started from.
        share: of the current weights, from 0 to 1.

    Raises:
        TypeError: if the model is subclassed, or `start` is anything else.
        ValueError: if the architectures differ, or a layer has LoRA, whose product
            is not that of averaged matrices. Nothing is changed then.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR
    2022, arXiv:2109.01903.

    Example:
        ```python
        kd.averaging.interpolate(model, share=0.7)
        kd.batch_norm.estimate_statistics(model, train)
        ```
    """
    share = _arguments.number("share", share, most=1)
    network = Network(model, "model")
    if start is None:
        pairs = _of_source(model)
    elif isinstance(start, keras.Model):
        other = Network(start, "start")
        network.check_same(other)
        pairs = [
            (v, _compat.array(w))
            for v, w in zip(network.variables, other.variables, strict=True)
        ]
    else:
        pairs = _of_list(model, network, start)
    new = [
        (v, mean([array, _compat.array(v)], [1 - share, share])) for v, array in pairs
    ]
    network.assign(new)


def soup(
    models: Sequence[keras.Model], weights: Sequence[float] | None = None
) -> keras.Model:
    """A model whose weights are the mean of several models' weights.

    Models fine-tuned from one start with different seeds, strengths or augmentation
    lie close enough together for the mean of their weights to be a good model, often
    better than each of them, at the cost of one. It does not help with models that
    started from different weights, including random heads: start all of them from the
    same head (`fit_head`).

    Statistics of BatchNormalization are averaged as well; better ones come from
    `kd.batch_norm.estimate_statistics(soup, train)`.

    Args:
        models: Functional or Sequential models of one architecture, or `DeltaModel`s,
            whose targets are used; not changed.
        weights: one number per model, scaled to sum 1; default: all equal.

    Returns:
        A new, uncompiled Functional model without nested ones. Integers are those of
        the first model.

    Raises:
        TypeError: if a model is subclassed.
        ValueError: if there are no models, architectures differ, a layer has LoRA, or
            weights are negative or all 0.

    Source: Wortsman et al., "Model soups", ICML 2022, arXiv:2203.05482.
    """
    models = list(models)
    if not models:
        raise ValueError(invalid("models", "at least one model", models))
    shares = _shares(weights, len(models))
    networks = [Network(v, f"models[{i}]") for i, v in enumerate(models)]
    for other in networks[1:]:
        networks[0].check_same(other)
    copied = Network(copy_model(networks[0].graph), "models[0]")
    columns = zip(*(n.variables for n in networks), strict=True)
    copied.assign(
        (new, mean([_compat.array(v) for v in column], shares))
        for new, column in zip(copied.variables, columns, strict=True)
    )
    return copied.graph.model


class Network:
    """A model's layers and weights, in an order that does not depend on nesting.

    Args:
        model: a Functional or Sequential model, or a `DeltaModel`, whose target is
            used.
        argument: name of the user's argument.

    Attributes:
        graph: its `Graph`.
        layers: list of its layers, each once.
        variables: list of their weights.
    """

    def __init__(self, model: keras.Model, argument: str) -> None:
        self.argument = argument
        self.graph = Graph(getattr(model, "target", model), argument)
        self._calls = [self.graph.nodes[n] for n in self.graph.depth_first()]
        called = {id(c.operation): c.operation for c in self._calls if c.is_layer}
        self.layers = list(called.values())
        self.variables = [v for layer in self.layers for v in layer.weights]
        for layer in self.layers:
            for part in _compat.flatten_layers(layer):
                if getattr(part, "lora_enabled", False):
                    raise ValueError(
                        f"The layer '{part.name}' of `{argument}` has LoRA: averaging "
                        "its matrices does not average their products. "
                        "Average models without LoRA."
                    )

    def check_same(self, other: "Network") -> None:
        """Refuse another architecture, naming the first call that differs."""
        pairs = list(zip(self._outline(), other._outline(), strict=False))
        where = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        if where == len(self._calls) == len(other._calls):
            return
        raise ValueError(
            f"`{other.argument}` and `{self.argument}` differ in architecture: call "
            f"{where} is {other._describe(where)} and {self._describe(where)}. Weights "
            "are averaged one by one, so build all models with the same code."
        )

    def _outline(self):
        index = {id(t): i for i, c in enumerate(self._calls) for t in c.outputs}
        for call in self._calls:
            operation = call.operation
            activation = getattr(operation, "activation", None)
            shapes = [tuple(v.shape) for v in getattr(operation, "weights", ())]
            inputs = [index.get(id(t)) for t in call.inputs]
            name = getattr(activation, "__name__", None)
            yield type(operation).__name__, name, shapes, inputs

    def _describe(self, index):
        if index >= len(self._calls):
            return f"none of the {len(self._calls)} calls"
        operation = self._calls[index].operation
        shapes = " ".join(
            str(tuple(v.shape)) for v in getattr(operation, "weights", ())
        )
        return f"'{operation.name}' ({f'{type(operation).__name__} {shapes}'.strip()})"

    def assign(self, values: Iterable[tuple[keras.Variable, Tensor]]) -> None:
        """Assign values to variables, given as pairs; integers are unchanged."""
        for v, value in values:
            if is_averaged(v):
                v.assign(value.astype(_compat.array(v).dtype))
        for layer in self.layers:
            for part in _compat.flatten_layers(layer):
                if hasattr(part, "finalize_state"):
                    part.finalize_state()  # Normalization computes with a cast copy


def is_averaged(variable: keras.Variable) -> bool:
    """Whether a weight's values can be averaged: not if they are integers."""
    return keras.backend.is_float_dtype(variable.dtype)


def mean(arrays: Iterable[ArrayLike], shares: Iterable[float]) -> np.ndarray:
    """Weighted sum of arrays, in double precision."""
    parts = zip(arrays, shares, strict=True)
    weighted: Any = (np.asarray(v).astype("float64") * share for v, share in parts)
    return sum(weighted)


def _of_source(model):
    if not hasattr(model, "pairing"):
        expected = "a model of the same architecture or a list of arrays"
        remedy = "None is for a DeltaModel and stands for its source."
        raise TypeError(invalid("start", expected, None, remedy))
    if not model.pairing.weights:
        expected = "the weights before training"
        remedy = "The source is a different network and cannot be interpolated with."
        raise ValueError(invalid("start", expected, None, remedy))
    return [(v, _compat.array(w)) for v, w in model.pairing.weights]


def _of_list(model, network, start):
    """Pairs of the model's variables and a list of arrays, in Keras's order."""
    expected = "a model, a list of arrays as `model.get_weights()` gives, or None"
    if not isinstance(start, (list, tuple)):
        raise TypeError(invalid("start", expected, start))
    weights = network.graph.model.weights
    if len(start) != len(weights):
        weights = model.weights  # of a `DeltaModel`: the source's as well
    shapes = [np.shape(v) for v in start]
    wanted = [tuple(v.shape) for v in weights]
    if len(shapes) != len(wanted):
        raise ValueError(
            f"`start` has {len(shapes)} arrays, but the model has "
            f"{len(network.graph.model.weights)} weights. Pass the result of "
            "`model.get_weights()` from before training."
        )
    for v, shape, fits in zip(weights, shapes, wanted, strict=True):
        if shape != fits:
            raise ValueError(
                f"`start` has an array {shape} where the model has '{v.path}' {fits}. "
                "Pass the result of `model.get_weights()` from before training, in "
                "that order."
            )
    of_variable = {id(v): array for v, array in zip(weights, start, strict=True)}
    return [(v, of_variable[id(v)]) for v in network.variables]


def _shares(weights, count):
    if weights is None:
        return [1 / count] * count
    given = [_arguments.number("weights", v) for v in weights]
    if len(given) != count or not sum(given):
        expected = f"{count} numbers, one for each model, not all 0"
        raise ValueError(invalid("weights", expected, weights))
    return [v / sum(given) for v in given]
