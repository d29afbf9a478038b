"""4Ds: distils from a source that was trained on another domain, and adapts it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
from keras import ops

from keras_delta import _arguments
from keras_delta._compat import array
from keras_delta._errors import invalid
from keras_delta._network import auto_taps
from keras_delta._network.graph import Graph, shapes_fit
from keras_delta._network.networks import Networks
from keras_delta._types import Maps, Shape, Strength, Tensor
from keras_delta.layers.fourier import compute_phase
from keras_delta.layers.fourier_adapter import FourierAdapter
from keras_delta.layers.fusion_activation import FusionActivation, concatenate_phases
from keras_delta.regularizers.base import MAPS
from keras_delta.regularizers.batch import Batch
from keras_delta.regularizers.predictions import Predictions, check_image_maps
from keras_delta.regularizers.source_adapting import SourceAdapting

VARIANTS = ("article", "code")
RATE = 1e-3
REDUCTIONS = 4, 16  # of channels inside of an adapter, and of the gate


@keras.saving.register_keras_serializable("keras_delta")
class FourDs(SourceAdapting):
    """Direct distillation between domains: a source that adapts while it teaches.

    The source has a head for the target's classes and was trained on another domain. An
    adapter behind each of its stages, a `keras_delta.layers.FourierAdapter`, changes
    the amplitudes of the maps and keeps their phases, which the domains are assumed to
    share. The target learns from labels, from the predictions of the adapted source,
    and from these phases:

        target:   task loss + kd * T^2 KL(p_source || p_target) + alpha * Omega
        adapters: task loss of the source + kd * T^2 KL(p_target || p_source)

    with predictions p softened by T and the other network held constant in each line;

        Omega = mean((g * phases of the target - g * phases of the source)^2)

    over all elements of the phases of all taps, which are pooled to the last one's
    grid and concatenated; g, one number per channel and sample, is the gate of
    `keras_delta.layers.FusionActivation`. The gate trains with the target, by `Omega`
    alone, so closing it is one way to make `Omega` small. The source itself and its
    BatchNormalization statistics are unchanged.

    Source and target may be different networks if their taps, taken in order, have the
    same numbers of channels. With `taps="auto"` these are the last blocks at the last
    four resolutions.

    Logs contain `source_loss`, the objective of the adapters.

    Args:
        alpha: strength of `Omega`: a float or a Keras schedule; default 0.1.
        kd: weight of the distance of predictions in both lines, default 1.
        temperature: T, default 4.
        beta: strength of `1/2 ||w||^2` on parameters that only the target has, default
            0.
        variant: `"article"`, or `"code"`: as in the authors' program, the source's
            BatchNormalization uses the statistics of each batch, and its moving ones
            drift (in copies; the source is unchanged).
        optimizer: optimizer of the adapters: Keras optimizer, its name or config; None
            for the article's: AdamW with a weight decay of 0.01, whose rate falls from
            1e-3 to 0 along half a cosine in one `fit`, and stays at 1e-3 if the number
            of steps is unknown.
        name: optional name.

    Raises:
        TypeError, ValueError: if an argument is outside its range; when bound, if
            numbers of taps, channels or classes differ.

    Source: Tang et al., "Direct Distillation between Different Domains", ECCV 2024,
    arXiv 2401.06826; the weights are those of github.com/tangjialiang97/4Ds, where
    they are called `cls`, `div` (1, 1) and `beta` (0.1).
    """

    needs_classes = True
    starts_at_source = False
    needs = MAPS | {"source_outputs"}

    def __init__(
        self,
        alpha: Strength = 0.1,
        kd: float = 1.0,
        temperature: float = 4.0,
        beta: Strength = 0.0,
        variant: Literal["article", "code"] = "article",
        optimizer: str | Mapping[str, Any] | keras.optimizers.Optimizer | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)
        self.kd = _arguments.number("kd", kd)
        self.predictions = Predictions(temperature)
        self.variant = _arguments.choice("variant", variant, VARIANTS)
        # Not the optimizer: Keras would save it in addition to the one in use.
        self.optimizer = optimizer and keras.optimizers.serialize(
            keras.optimizers.get(optimizer)
        )
        self.target_taps: tuple[str, ...] = ()
        # Containers: Keras keeps tracking a layer whose attribute is deleted.
        self.adapters, self._norms, self._fusions = {}, {}, []

    @property
    def temperature(self) -> float:
        """The temperature that softens the predictions."""
        return self.predictions.temperature

    @property
    def fusion(self) -> FusionActivation | None:
        """The `FusionActivation`; None before `build_for` and `bind`."""
        return self._fusions[0] if self._fusions else None

    @property
    def source_layers(self) -> list[FourierAdapter]:
        """See `SourceAdapting.source_layers`: the adapters."""
        return list(self.adapters.values())

    def choose_taps(self, graph: Graph) -> list[str] | None:
        """See `Regularizer.choose_taps`: the ends of the last four stages."""
        return auto_taps.find_stage_ends(graph)

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; needs the same classes, and channels at the taps."""
        super().check(networks)
        self.predictions.check(networks)
        shapes = networks.source_map_shapes, networks.target_map_shapes
        check_image_maps(networks)
        channels = [[shape[-1] for shape in found.values()] for found in shapes]
        grids = [list(found.values())[-1][:2] for found in shapes]
        if channels[0] != channels[1] or not shapes_fit(*grids):
            raise ValueError(
                "4Ds compares phases channel by channel, so corresponding taps of "
                "source and target need the same channels, and the last ones the same "
                f"grid. The source's have {channels[0]} channels and the grid "
                f"{grids[0]}: {shapes[0]}. The target's have {channels[1]} and "
                f"{grids[1]}: {shapes[1]}. Pass matching layers as `taps` and "
                "`source_taps`, or use a source and a target of one family and width, "
                'such as EfficientNet-Lite1 and Lite0; "afd" compares any maps.'
            )

        each, total = REDUCTIONS
        if min(channels[0]) < each or sum(channels[0]) < total:
            expected = f"layers of at least {each} channels, and {total} in all"
            raise ValueError(invalid("taps", expected, f"{channels[0]} channels"))

    def make_layers(self, networks: Networks) -> None:
        """See `SourceAdapting.make_layers`: adapters and gate.

        Existing weights are kept.
        """
        self.predictions.bind(networks)
        layers = [*self.source_layers, *self._fusions]
        values = [layer.get_weights() for layer in layers]
        self.build_for(networks.source_map_shapes, networks.target_map_shapes)
        layers = [*self.source_layers, *self._fusions] if values else []
        for layer, value in zip(layers, values, strict=True):
            layer.set_weights(value)
        if self.variant == "code":
            self._norms.update(_copy_norms(networks.source))
        self._begin, self._end = (
            self.add_weight(name=name, shape=(), initializer="zeros", trainable=False)
            for name in ("schedule_begin", "schedule_end")
        )
        whole = networks.frozen_source.count_params()
        own = sum(layer.count_params() for layer in self.source_layers)
        self.adapter_share = own / whole

    def build_for(
        self, source_shapes: Mapping[str, Shape], target_shapes: Mapping[str, Shape]
    ) -> None:
        """Make new adapters and a new gate, with or without a model.

        Args:
            source_shapes: dict tap -> `(height, width, channels)`, in order.
            target_shapes: the same for the target.
        """
        self.adapters.clear()
        self._fusions.clear()
        for i, (tap, shape) in enumerate(source_shapes.items()):
            options: dict[str, Any]
            options = {"synchronized": True, "dtype": "float32", "name": f"adapter{i}"}
            self.adapters[tap] = FourierAdapter(**options)
            self.adapters[tap].build((None, *shape))
        self._fusions.append(FusionActivation(dtype="float32", name="fusion"))
        channels = sum(shape[-1] for shape in source_shapes.values())
        self.fusion.build((None, None, None, channels))
        self.target_taps = tuple(target_shapes)

    def make_source_optimizer(self) -> keras.optimizers.Optimizer:
        """See `SourceAdapting.make_source_optimizer`."""
        if self.optimizer is not None:
            return keras.optimizers.deserialize(self.optimizer)
        rate = _Cosine(RATE, self._begin, self._end)
        return keras.optimizers.AdamW(rate, weight_decay=0.01, epsilon=1e-4)

    def begin_training(self, steps: int | None, verbose: bool = True) -> None:
        """See `Regularizer.begin_training`; the adapters' rate falls until the end."""
        done = int(ops.convert_to_numpy(self.source_optimizer.iterations))
        if verbose and not done:
            print(
                f"4Ds trains {len(self.adapters)} adapters inside the source, with "
                f"{self.adapter_share:.1%} of its parameters."
            )
        if not steps:
            self._end.assign(0)  # a constant rate
        elif done + steps > float(array(self._end)):
            self._begin.assign(done)
            self._end.assign(done + steps)

    def call_source(
        self, operation: Any, tap: str | None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `SourceAdapting.call_source`; the phases are compared."""
        norm = self._norms.get(operation.name)
        if norm is None:
            maps = operation(*args, **kwargs)
        else:
            maps = norm(*args, **{**kwargs, "training": True})
        if tap is None:
            return maps, None
        adapted, phase = self.adapters[tap](maps, training=True)
        return ops.cast(adapted, maps.dtype), phase

    def feature_distance(self, source_maps: Maps, target_maps: Maps) -> Tensor:
        """The distance `Omega` of maps, a scalar before alpha.

        Args:
            source_maps: dict tap -> `(B, H, W, C)`, the inputs of the adapters.
            target_maps: the same for the target, in the same order.

        Returns:
            float32 scalar.
        """
        if self.fusion is None:
            pairs = source_maps, target_maps
            self.build_for(*({t: m.shape[1:] for t, m in p.items()} for p in pairs))
        phases = {tap: compute_phase(maps) for tap, maps in source_maps.items()}
        return self._phase_distance(phases, target_maps)

    def batch_distance(self, batch: Batch) -> Tensor:
        """See `Regularizer.batch_distance`."""
        return self._phase_distance(batch.source_maps, batch.target_maps) * batch.share

    def _phase_distance(self, source_phases, target_maps):
        theirs = concatenate_phases(source_phases[tap] for tap in self.adapters)
        ours = [compute_phase(target_maps[tap]) for tap in self.target_taps]
        return self.fusion(theirs, concatenate_phases(ours))

    def penalties(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Regularizer.penalties`; the first includes that of the predictions."""
        feature, head = super().penalties(batch)
        distilled = self.kd * self.predictions.distance(batch) * batch.share
        return feature + distilled, head

    def tap_penalties(self, batch: Batch) -> dict[str, Tensor]:
        """See `Regularizer.tap_penalties`; empty, as all taps share one gate."""
        return {}

    def source_loss(
        self, batch: Batch, task_loss: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """See `SourceAdapting.source_loss`."""
        loss = ops.cast(task_loss(self.predictions.as_target(batch)), "float32")
        backwards = self.predictions.distance(batch, towards="target")
        return loss + self.kd * backwards * batch.share

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        own = ("kd", "temperature", "variant", "optimizer")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


class _Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """Half a cosine between two variable iterations; constant if there is no end."""

    def __init__(self, rate, begin, end):
        super().__init__()
        self._rate, self._begin, self._end = rate, begin, end

    def __call__(self, step):
        begin, end = (ops.convert_to_tensor(v) for v in (self._begin, self._end))
        done = (ops.cast(step, "float32") - begin) / ops.maximum(end - begin, 1.0)
        falling = (1 + ops.cos(math.pi * ops.clip(done, 0.0, 1.0))) / 2
        return self._rate * ops.where(end > 0, falling, 1.0)


def _copy_norms(graph):
    """Dict name of a layer -> its copy that takes the statistics of each batch."""
    copies = {}
    for node in graph.nodes.values():
        layer = node.operation
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        config = {**layer.get_config(), "trainable": True, "synchronized": True}
        copy = copies[layer.name] = type(layer).from_config(config)
        copy.build(node.inputs[0].shape)
        copy.set_weights(layer.get_weights())
        for v in copy.trainable_variables:
            v.trainable = False
    return copies
