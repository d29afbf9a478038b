"""FitNets: a layer of the target learns the output of a layer of the source."""

from typing import Any, Literal

import keras
import tensorflow as tf
from keras import ops

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._network import auto_taps
from keras_delta._network.graph import Graph
from keras_delta._network.networks import Networks
from keras_delta._network.replicas import run_on_samples
from keras_delta._types import Maps, Strength, Tensor
from keras_delta.regularizers.batch import Batch
from keras_delta.regularizers.paired_maps import PairedMaps
from keras_delta.regularizers.predictions import Predictions, mean
from keras_delta.regularizers.stages import Staged

VARIANTS = ("code", "article")
DEFAULT = {"code": 100.0, "article": 1.0}


@keras.saving.register_keras_serializable("keras_delta")
class FitNets(Staged, PairedMaps):
    """Hints: a regressor on a middle layer of the target predicts one of the source.

    With the map `h` of the source, the map `g` of the target and a convolution `r` that
    brings `g` to the channels and grid of `h` and is trained with the target,

        Omega = mean_b mean (h - r(g))^2            variant "code"
        Omega = 1/2 mean_b sum (h - r(g))^2         variant "article"

    In the variant `"code"`, `r` is a convolution, BatchNormalization and, if `h` is the
    output of a ReLU, a ReLU; in `"article"` the same without BatchNormalization. Its
    kernel is 1 x 1 if the grids are equal, 3 x 3 with strides if the target's is a
    multiple, transposed if the source's is, and otherwise as large as needed.

    Args:
        alpha: strength; None for the default: 100 in the variant `"code"`, 1 in
            `"article"`.
        beta: strength of the head penalty, default 0.
        variant: `"code"` (RepDistiller's) or `"article"`.
        stage_steps: length of a first stage that minimises `alpha * Omega` alone, as in
            the article; later steps minimise the task loss and `kd`. Default 0:
            everything is minimised together.
        kd: weight of the distance of the predictions beside the task loss, as for
            `KD`, which needs a source with a head for the same classes. Default 0: the
            source's predictions are not needed.
        temperature: of `kd`, default 4.
        name: optional name.

    Raises:
        ValueError: if no convolution fits the grids of the maps.

    Source: Romero et al., "FitNets: hints for thin deep nets", ICLR 2015, Eq. 3;
    github.com/HobbitLong/RepDistiller (`HintLoss`, `ConvReg`).
    """

    def __init__(
        self,
        alpha: Strength | None = None,
        beta: Strength = 0.0,
        variant: Literal["code", "article"] = "code",
        stage_steps: int = 0,
        kd: float = 0.0,
        temperature: float = 4.0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.variant = _arguments.choice("variant", variant, VARIANTS)
        alpha = DEFAULT[variant] if alpha is None else alpha
        super().__init__(alpha, beta, stage_steps=stage_steps, name=name, **kwargs)
        self.kd = _arguments.number("kd", kd)
        self.predictions = Predictions(temperature)
        if self.kd:
            self.needs, self.needs_classes = self.needs | {"source_outputs"}, True
        # A list: Keras keeps tracking a layer whose attribute is deleted.
        self.regressors = []

    @property
    def temperature(self) -> float:
        """The temperature that softens the predictions."""
        return self.predictions.temperature

    def choose_taps(self, graph: Graph) -> list[str] | None:
        """See `Regularizer.choose_taps`: the end of a middle stage."""
        ends = auto_taps.find_stage_ends(graph)
        return ends[len(ends) // 2 :][:1]

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; a convolution must fit the grids."""
        super().check(networks)
        if self.kd:
            self.predictions.check(networks)
        shapes = networks.source_map_shapes, networks.target_map_shapes
        for theirs, ours in zip(*(s.values() for s in shapes), strict=True):
            _convolution(theirs, ours)

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; makes the regressors."""
        super().bind(networks)
        if self.kd:
            self.predictions.bind(networks)
        shapes = networks.source_map_shapes, networks.target_map_shapes
        for i, tap in enumerate(self.source_taps):
            theirs, ours = shapes[0][tap], shapes[1][self.target_taps[i]]
            operation = networks.source.nodes[networks.source_names[tap]].operation
            norm = self.variant == "code"
            rectified = _is_relu(operation)
            self.regressors.append(Regressor(theirs, ours, norm, rectified, i))

    def feature_distance(
        self, source_maps: Maps, target_maps: Maps, training: bool = False
    ) -> Tensor:
        """The distance `Omega`, a scalar before alpha.

        Args:
            source_maps: dict tap -> `(B, H, W, C)`.
            target_maps: the same for the target. Before a model uses the regularizer
                there are no regressors: the maps are then compared directly.
            training: whether BatchNormalization uses the batch.

        Returns:
            float32 scalar.
        """
        total = ops.zeros((), "float32")
        for i, (theirs, ours) in enumerate(self.pairs(source_maps, target_maps)):
            if self.regressors:
                ours = self.regressors[i](ours, training=training)
            squares = ops.square(theirs - ours)
            if self.variant == "code":
                each = ops.mean(squares, axis=(1, 2, 3))
            else:
                each = 0.5 * ops.sum(squares, axis=(1, 2, 3))
            total = total + mean(each)
        return total

    def batch_distance(self, batch: Batch) -> Tensor:
        """See `Regularizer.batch_distance`; in training mode."""
        maps = batch.source_maps, batch.target_maps
        return self.feature_distance(*maps, training=True) * batch.share

    def penalties(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Regularizer.penalties`; the first includes the distance of outputs."""
        feature, head = super().penalties(batch)
        if self.kd:
            weight = self.kd * self.in_later_stage(batch.step)
            distance = self.predictions.distance(batch) * batch.share
            feature = feature + weight * distance
        return feature, head

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        own = ("variant", "kd", "temperature")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


class Regressor(keras.layers.Layer):
    """Brings maps of the target to the grid and channels of the source's.

    Args:
        theirs, ours: shapes `(height, width, channels)` of source and target.
        norm: whether BatchNormalization follows, of the global batch.
        rectified: whether a ReLU follows.
        number: for the names of the layers.
    """

    def __init__(self, theirs, ours, norm, rectified, number):
        super().__init__(name=f"regressor{number}", dtype="float32")
        self.convolution = _convolution(theirs, ours, f"regressor{number}_conv")
        self.convolution.build((None, *ours))
        self.norm, self.rectified = None, rectified
        if norm:
            self.norm = keras.layers.BatchNormalization(
                momentum=0.9,
                epsilon=1e-5,
                synchronized=True,
                dtype="float32",
                name=f"regressor{number}_norm",
            )
            self.norm.build((None, *theirs))
        self.built = True

    def call(self, maps, training=False):
        """`(B, H, W, C)` of the target to that of the source."""
        x = run_on_samples(tf.distribute.get_strategy(), self.convolution, maps)
        x = self.norm(x, training=training) if self.norm else x
        return ops.relu(x) if self.rectified else x


def _convolution(theirs, ours, name=None):
    """The convolution from maps of one shape to those of another."""
    options = {"dtype": "float32", "name": name}
    grids, filters = (theirs[:2], ours[:2]), theirs[-1]
    if grids[0] == grids[1]:
        return keras.layers.Conv2D(filters, 1, **options)
    if None not in grids[0] + grids[1]:
        strides = [a // b for a, b in zip(grids[1], grids[0], strict=True)]
        if min(strides) > 1 and _times(grids[0], strides) == grids[1]:
            return keras.layers.Conv2D(filters, 3, strides, "same", **options)
        factors = [a // b for a, b in zip(grids[0], grids[1], strict=True)]
        if min(factors) > 1 and _times(grids[1], factors) == grids[0]:
            kernel = [2 * f for f in factors]
            layer = keras.layers.Conv2DTranspose
            return layer(filters, kernel, factors, "same", **options)
        if all(a >= b for a, b in zip(grids[1], grids[0], strict=True)):
            kernel = [1 + a - b for a, b in zip(grids[1], grids[0], strict=True)]
            return keras.layers.Conv2D(filters, kernel, **options)
    expected = "layers whose maps a convolution can bring to one grid"
    received = f"{grids[0]} in the source and {grids[1]} in the target"
    remedy = "Give both networks an `input_shape`, and tap layers at the same strides."
    raise ValueError(invalid("taps", expected, received, remedy))


def _times(grid, factors):
    return tuple(g * f for g, f in zip(grid, factors, strict=True))


def _is_relu(operation):
    """Whether a layer's output is rectified."""
    activation = getattr(getattr(operation, "activation", None), "__name__", "")
    return isinstance(operation, keras.layers.ReLU) or activation.startswith("relu")
