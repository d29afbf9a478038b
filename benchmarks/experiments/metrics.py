"""Other distances of feature maps, in search of one that beats the plain square.

`Metric` weighs channels, or directions across them; `Pooled` and `Relational` compare
what is left of the maps after an average, and after comparing images with each other.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_delta import _arguments
from keras_delta._inputs.samples import length, regrouped
from keras_delta._network.graph import Graph
from keras_delta.attention import ChannelAttention
from keras_delta.regularizers import FeatureMap

SAMPLES = 256
FLOOR = 0.1  # of the mean variance, which whitening adds to each
TAPS = ("first", "last", "rising")


@keras.saving.register_keras_serializable("experiments")
class Metric(FeatureMap):
    """`(T - S)' M (T - S) / C` at each position, `M` of the trace `C` for each tap.

    With the identity it is `FeatureMap`.

    Args:
        kind: name in `KINDS`, what `M` is.
        **kwargs: of `FeatureMap`.
    """

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = _arguments.choice("kind", kind, KINDS)
        self._metrics_of_taps = {}

    def bind(self, networks):
        """See `Regularizer.bind`; makes a variable for each `M`."""
        super().bind(networks)
        for i, (tap, shape) in enumerate(networks.target_map_shapes.items()):
            self._metrics_of_taps[tap] = self.add_weight(
                name=f"metric_{i}",
                shape=(shape[-1], shape[-1]),
                initializer="zeros",
                trainable=False,
            )

    def prepare(self, model, samples, verbose=True):
        """Measure scales and metrics, on 256 training samples."""
        super().prepare(model, samples, verbose)
        found = KINDS[self.kind](model, samples)
        for tap, variable in self._metrics_of_taps.items():
            matrix = np.asarray(found[tap], "float64")
            variable.assign(matrix * len(matrix) / np.trace(matrix))

    def tap_distance(self, tap, source_map, target_map):
        """See `MapRegularizer.tap_distance`."""
        d = ops.cast(target_map, "float32") - ops.cast(source_map, "float32")
        metric = ops.convert_to_tensor(self._metrics_of_taps[tap])
        axes = tuple(range(1, len(d.shape)))
        return ops.mean(d * ops.matmul(d, metric), axis=axes)

    def get_config(self):
        """See `Regularizer.get_config`."""
        return {**super().get_config(), "kind": self.kind}


def whitened(model, samples):
    """The inverse covariance of the source's channels: small directions count as much
    as large ones."""
    found = _moments(model, samples, lambda x, y: model.source_maps(x))
    for tap, (mean, second) in found.items():
        covariance = second - np.outer(mean, mean)
        even = np.trace(covariance) / len(mean)
        found[tap] = np.linalg.inv(covariance + FLOOR * even * np.eye(len(mean)))
    return found


def fisher(model, samples):
    """The mean of `g g'`, g being the task loss's gradient at a position of the map.

    To the second order it is what a change of the map costs in cross-entropy.
    """
    return {tap: m for tap, (_, m) in _moments(model, samples, _slopes(model)).items()}


def fisher_of_channels(model, samples):
    """The diagonal of `fisher`: an attention of channels."""
    return {t: np.diag(np.diag(m)) for t, m in fisher(model, samples).items()}


def released(model, samples):
    """Channels that the task does better without are let go; the others are alike."""
    return {t: np.diag(s > 0) for t, s in _scores(model, samples).items()}


def top_quarter(model, samples):
    """The quarter of the channels whose ablation costs most; the others are let go."""
    scores = _scores(model, samples).items()
    return {t: np.diag(s >= np.quantile(s, 0.75)) for t, s in scores}


KINDS = {
    "whitened": whitened,
    "fisher": fisher,
    "fisher of channels": fisher_of_channels,
    "released": released,
    "top quarter": top_quarter,
}


def _moments(model, samples, vectors):
    """Dict tap -> (mean, second moment) of vectors `(..., C)`, over all positions."""
    sums, counts = {}, {}
    for x, y in regrouped(samples.batches(SAMPLES), 32):
        for tap, values in vectors(x, y).items():
            v = np.asarray(values, "float64").reshape(-1, values.shape[-1])
            first, second = sums.get(tap, (0, 0))
            sums[tap] = first + v.sum(0), second + v.T @ v
            counts[tap] = counts.get(tap, 0) + len(v)
    return {t: (a / counts[t], b / counts[t]) for t, (a, b) in sums.items()}


def _slopes(model):
    """Function of a batch: dict tap -> gradient of its loss, for the target's maps."""
    graph = Graph(model.target)
    outputs = [graph.output_of(tap) for tap in model.taps]

    def slopes(x, y):
        feeds = graph.feed(x)
        with tf.GradientTape() as tape:
            tape.watch(feeds)
            maps, logits = graph.run(
                (outputs, graph.outputs), graph.inputs, feeds, training=False
            )
            loss = length(x) * model.loss(y, logits)
        return dict(zip(model.taps, tape.gradient(loss, maps), strict=True))

    return slopes


def _scores(model, samples):
    """What the ablation of each channel costs: dict tap -> `(C,)`."""
    data = samples(SAMPLES)
    return ChannelAttention.compute(model, data, progress=False).scores


class _OfBatch(FeatureMap):
    """Distances of something made of the maps, in units of the source's."""

    def tap_distance(self, tap, source_map, target_map):
        """See `MapRegularizer.tap_distance`."""
        source, target = self.reduce(source_map), self.reduce(target_map)
        off = ops.mean(ops.square(target - source), axis=-1)
        # The scale of the maps, by which it is divided, has no meaning here.
        return self._scale(tap, source_map) * off / ops.mean(ops.square(source))


@keras.saving.register_keras_serializable("experiments")
class Pooled(_OfBatch):
    """Channels' means over the positions: where something is may change."""

    def reduce(self, maps):
        """`(B, C)`."""
        maps = ops.cast(maps, "float32")
        return ops.mean(maps, axis=tuple(range(1, len(maps.shape) - 1)))


@keras.saving.register_keras_serializable("experiments")
class Relational(_OfBatch):
    """Similarities of the batch's images: the maps may change as long as these stay.

    Source: Tung and Mori, "Similarity-preserving knowledge distillation", ICCV 2019.
    """

    def reduce(self, maps):
        """`(B, B)`, rows of length 1."""
        flat = ops.reshape(ops.cast(maps, "float32"), (ops.shape(maps)[0], -1))
        return ops.normalize(ops.matmul(flat, ops.transpose(flat)), axis=-1)


@keras.saving.register_keras_serializable("experiments")
class SomeTaps(FeatureMap):
    """The distance at some of the taps, as strong in all as that at all of them.

    Args:
        which: `"first"` or `"last"` alone; `"rising"`: each counts by its place.
        **kwargs: of `FeatureMap`.
    """

    def __init__(self, which, **kwargs):
        super().__init__(**kwargs)
        self.which, self._shares = _arguments.choice("which", which, TAPS), {}

    def bind(self, networks):
        """See `Regularizer.bind`."""
        super().bind(networks)
        taps = networks.target_taps
        place = np.arange(1, len(taps) + 1)
        weights = {"first": place == 1, "last": place == len(taps), "rising": place}
        shares = weights[self.which] * len(taps) / weights[self.which].sum()
        self._shares = dict(zip(taps, map(float, shares), strict=True))

    def tap_distance(self, tap, source_map, target_map):
        """See `MapRegularizer.tap_distance`."""
        return self._shares[tap] * super().tap_distance(tap, source_map, target_map)

    def get_config(self):
        """See `Regularizer.get_config`."""
        return {**super().get_config(), "which": self.which}
