"""Lists BatchNormalization layers and re-estimates their statistics on other data."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_delta import _arguments, _compat
from keras_delta._inputs import replay, samples
from keras_delta._network.graph import Graph, is_container, takes_training
from keras_delta._types import Data
from keras_delta.attention.calls import trace

BATCH = 64


def layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """All BatchNormalization layers of a model, including those inside other layers.

    Args:
        model: a built Keras model; for a `DeltaModel`, its target is used.

    Returns:
        List of layers, each once; for a Functional or Sequential model in the order
        of computation.
    """
    target = getattr(model, "target", model)
    outer = [target]
    if is_container(target) and target.built:
        outer = Graph(target).layers().values()
    return list({id(v): v for each in outer for v in _inside(each)}.values())


def estimate_statistics(
    model: keras.Model,
    x: Data,
    *,
    share: float = 1.0,
    batch_size: int = BATCH,
    max_samples: int | None = None,
    frozen: bool = True,
    seed: int = 0,
) -> int:
    """Re-estimate the moving statistics of BatchNormalization on some data.

    Each layer's moving mean and variance, used in inference, become

        (1 - share) * old + share * those of the data,

    where those of the data are the means over the batches of each batch's mean and
    (biased) variance, as in training mode: one pass measures all layers, each
    normalising by its batch. Use it for averaged weights, which have never been
    trained together (`share=1`), and for images of another kind than in training.

    Everything else runs in inference mode: dropout and augmentation are off. Only a
    layer composed of layers that include BatchNormalization (`TimeDistributed`, a class
    you wrote) runs in training mode as a whole.

    Args:
        model: a Functional or Sequential model, or a `DeltaModel`, whose target is
            used.
        x: data as `fit` takes them, with or without targets. Arrays and data sets of
            `ImageSet.batches` (prepared as for testing) are shuffled; other data
            should come in random order, since batches of one class each do not occur
            in training.
        share: of the data, from 0 to 1.
        batch_size: size of the batches used here, regardless of the incoming ones. A
            last batch less than half full is left out, unless all are.
        max_samples: number of samples at most; default: all. Required for endless data
            and for generators, of which at most two batches more are read.
        frozen: whether to estimate non-trainable layers too; if not, they are unchanged
            and run in inference mode, as in `fit`.
        seed: of the order of arrays; data sets keep theirs.

    Returns:
        Number of samples used.

    Raises:
        TypeError: if the model is subclassed, so its graph cannot be read.
        ValueError: if there is no BatchNormalization in training mode, no sample, or
            statistics are not finite; nothing is changed then.

    Source: Schneider et al., NeurIPS 2020, arXiv:2006.16971 (shares of old and new);
    Izmailov et al., UAI 2018, arXiv:1803.05407 (after averaging weights).
    """
    share = _arguments.number("share", share, most=1)
    batch_size = _arguments.integer("batch_size", batch_size)
    max_samples = _arguments.integer("max_samples", max_samples, optional=True)
    seed = _arguments.seed("seed", seed)
    frozen = _arguments.flag("frozen", frozen)
    run = _Run(Graph(getattr(model, "target", model)), frozen)
    with replay.unmoved(x):
        stream = samples.inputs(x, batch_size, max_samples, seed)
        found = _measure(run, stream, batch_size)
    _assign(run.layers, found.means, share)
    return found.count


def _measure(run, stream, batch_size):
    whole, small = _Means(), _Means()
    for (batch,) in samples.regrouped(((x,) for x in stream), batch_size):
        count = samples.length(batch)
        if 2 * count >= batch_size:
            whole.add(run(batch), count)
        elif not whole.count:
            small.add(run(batch), count)
    found = whole if whole.count else small
    if not found.count:
        raise ValueError("No samples: statistics need at least one.")
    return found


class _Means:
    """Running means of arrays, in double precision.

    Attributes:
        means: list of arrays.
        count: number of samples.
    """

    def __init__(self):
        self.means, self.count, self._batches = None, 0, 0

    def add(self, arrays, count):
        self._batches += 1
        if self.means is None:
            self.means = arrays
        else:
            old, share = self.means, 1 / self._batches
            self.means = [m + (a - m) * share for m, a in zip(old, arrays, strict=True)]
        self.count += count


class _Run:
    """Computes a batch's statistics, traced once for each size of image.

    Attributes:
        layers: the BatchNormalization layers; after a run, only those called in
            training mode.
    """

    def __init__(self, graph, frozen):
        inside = {name: _inside(node.operation) for name, node in graph.nodes.items()}
        with_any = [name for name, found in inside.items() if found]
        found = {id(v): v for name in with_any for v in inside[name]}
        self.layers = [v for v in found.values() if frozen or v.trainable]
        self._graph = graph
        self._check()
        self._fetches = [t for name in with_any for t in graph.nodes[name].outputs]
        self._held = set(graph.nodes) - set(with_any)
        self._plain = {graph.nodes[name].path for name in self._held}
        self._programs = {}

    def __call__(self, x):
        """List of arrays (channels,), mean and variance of each layer in turn."""
        feeds = self._graph.feed(x)
        specs = [tf.TensorSpec((None, *v.shape[1:]), v.dtype) for v in feeds]
        key = str([s.shape for s in specs])
        if key not in self._programs:
            with _in_training(self.layers):
                self._programs[key] = trace(self._compute, specs)
        calls = self._programs[key](feeds)
        return [np.mean(v.numpy().astype("float64"), axis=0) for v in calls]

    def _compute(self, feeds):
        variables = [v for layer in self.layers for v in _statistics(layer)]
        with _Noted(variables) as noted:
            self._graph.run(
                self._fetches,
                self._graph.inputs,
                feeds,
                training=True,
                call=self._tell,
                held=self._held,
            )
        # A user's layer may call one in inference mode regardless of `training`.
        self.layers = [v for v in self.layers if noted.values(v.moving_mean)]
        self._check()
        variables = [v for layer in self.layers for v in _statistics(layer)]
        return [ops.stack(noted.values(v)) for v in variables]

    def _tell(self, node, *args, **kwargs):
        """Call an operation without `training` so that layers inside receive it."""
        if takes_training(node.operation) or node.path in self._plain:
            return None
        return _Training(node.operation)(*args, training=True, **kwargs)

    def _check(self):
        if not self.layers:
            raise ValueError(
                f"'{self._graph.model.name}' has no BatchNormalization that normalises "
                "by its batch in training mode, so it has no statistics to estimate. "
                "Pass a model that has one. Other normalization (LayerNormalization, "
                "GroupNormalization) needs no statistics."
            )


class _Training(keras.layers.Layer):
    """Calls a layer within a training pass."""

    def __init__(self, layer):
        super().__init__(name=layer.name, dtype=layer.dtype_policy, autocast=False)
        self.layer = layer
        self.built = True

    def call(self, *args, training=None, **kwargs):
        """The layer's output; Keras passes `training` on to the layers inside."""
        return self.layer(*args, **kwargs)


class _Noted(keras.StatelessScope):
    """Records the values that layers assign to some variables; none is changed."""

    def __init__(self, variables):
        super().__init__([(v, _finite(ops.convert_to_tensor(v))) for v in variables])
        self._noted = {id(v): [] for v in variables}

    def add_update(self, update):
        """A layer assigns a value, at each of its calls."""
        variable, value = update
        if id(variable) in self._noted:
            self._noted[id(variable)].append(value)
        else:
            super().add_update(update)

    def values(self, variable):
        """List of the values."""
        return self._noted[id(variable)]


@contextlib.contextmanager
def _in_training(normalizers):
    """Makes layers assign the batch's statistics to the moving ones, even if frozen.

    It is for tracing: functions traced before keep their momenta.
    """
    kept = [
        (v, v.momentum, v.trainable, [(w, w.trainable) for w in v.weights])
        for v in normalizers
    ]
    try:
        for layer in normalizers:
            layer.momentum, layer.trainable = 0.0, True
        yield
    finally:
        for layer, momentum, trainable, weights in kept:
            layer.momentum, layer.trainable = momentum, trainable
            for v, trains in weights:
                v.trainable = trains


def _assign(normalizers, means, share):
    """Assign statistics to layers if all are finite."""
    new, wrong = [], []
    variables = [(layer, v) for layer in normalizers for v in _statistics(layer)]
    for (layer, v), of_data in zip(variables, means, strict=True):
        old = _compat.array(v).astype("float64") if share < 1 else 0.0
        mixed = (1 - share) * old + share * of_data
        mixed = mixed.astype(_compat.array(v).dtype)
        new.append((v, mixed))
        if not np.isfinite(mixed).all() and layer.name not in wrong:
            wrong.append(layer.name)
    if wrong:
        raise ValueError(
            f"The statistics of {', '.join(map(repr, wrong[:5]))}"
            f"{' and more' if len(wrong) > 5 else ''} are not finite (NaN or infinite) "
            "on these data; nothing was changed. Check the images, the weights and, "
            "with half precision, the size of the values."
        )
    for v, value in new:
        v.assign(value)
    for layer in normalizers:
        if getattr(layer, "renorm", False):  # Keras derives the variance from it
            variance = ops.convert_to_tensor(layer.moving_variance)
            layer.moving_stddev.assign(ops.sqrt(variance + layer.epsilon))


def _finite(values):
    """0 in place of NaN, since 0 times NaN would be recorded as NaN."""
    return ops.where(ops.isfinite(values), values, ops.zeros_like(values))


def _statistics(layer):
    return layer.moving_mean, layer.moving_variance


def _inside(operation):
    """The BatchNormalization layers in a layer, itself included; none otherwise."""
    if not isinstance(operation, keras.layers.Layer):
        return []
    parts = _compat.flatten_layers(operation)
    return [v for v in parts if isinstance(v, keras.layers.BatchNormalization)]
