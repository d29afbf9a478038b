"""AFD: each source map teaches the target maps that attention picks for it."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._network import auto_taps
from keras_delta._network.graph import Graph
from keras_delta._network.networks import Networks
from keras_delta._types import Maps, Shape, Strength, Tensor
from keras_delta.regularizers import distances
from keras_delta.regularizers.afd_network import MetaNetwork, infer_network
from keras_delta.regularizers.base import MAPS, Regularizer
from keras_delta.regularizers.batch import Batch
from keras_delta.regularizers.predictions import Predictions, check_maps, mean


@keras.saving.register_keras_serializable("keras_delta")
class AFD(Regularizer):
    """Distils feature maps between different networks, paired by learned attention.

    A meta network learns which of the S target maps should imitate which of the T
    source maps, so source and target may differ in depth, width and resolution. For
    source tap t, target tap s and sample b, the distance is

        Omega = sum_t mean_b sum_s attention[b, t, s] * mean_hw (psi_st - psi_t)^2

    - `psi_t` is the source's map `h_t`, squared, averaged over the channels and divided
      by its L2 norm. `psi_st` is the same of the target's map `h_s`, average-pooled to
      the grid of `h_t` before the division.
    - `attention[b, t] = softmax_s((<K_st, q_t> + <p_t, p_s>) / sqrt(dimension))`, where
      `q_t = BN(Dense(GAP(h_t)))`, `k_s = ReLU(BN(Dense(GAP(h_s))))`,
      `K_s = BN(Dense(k_s))` has one vector for each t, and `p_t`, `p_s` are learned
      vectors, one for each tap. GAP is the mean over positions.

    To `alpha * Omega` the method adds `kd` times the distance of the outputs,
    `mean_b temperature^2 * KL(softmax(source / temperature) ||
    softmax(target / temperature))`, which needs logits and the same classes in source
    and target; use `kd=0` if the classes differ. The target need not start from the
    source's weights. The meta network is trained together with the target, and its
    BatchNormalization uses the statistics of the global batch. Maps of any spatial size
    are accepted; all computations are in float32.

    Args:
        alpha: strength of `Omega`: a float or a Keras schedule; default 200.
        kd: strength of the distance of the outputs, default 0.9; 0 turns it off, and
            the source's outputs are then not needed.
        temperature: softens both outputs, default 4.
        dimension: length of the keys and queries, default 128.
        beta: strength of the head penalty, default 0.
        name: optional name.

    Raises:
        TypeError, ValueError: if an argument is not a number in its range.

    Source: Ji, Heo, Park, "Show, Attend and Distill: Knowledge Distillation via
    Attention-based Feature Matching", AAAI 2021; the authors' program at
    github.com/clovaai/attention-feature-distillation, whose means over positions and
    squared distances are used here. Keras's moving variances are smaller than
    PyTorch's by the factor `(n - 1) / n` for a batch of n rows, which matters only in
    inference mode.
    """

    starts_at_source = False

    def __init__(
        self,
        alpha: Strength = 200.0,
        kd: float = 0.9,
        temperature: float = 4.0,
        dimension: int = 128,
        beta: Strength = 0.0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)
        self.kd = _arguments.number("kd", kd)
        self.predictions = Predictions(temperature)
        self.dimension = _arguments.integer("dimension", dimension)
        self.needs = MAPS | {"source_outputs"} if self.kd else MAPS
        self.needs_classes = bool(self.kd)
        self.source_taps: tuple[str, ...] | None = None
        self.target_taps: tuple[str, ...] | None = None
        # A list: Keras keeps tracking a layer whose attribute is deleted.
        self._networks = []

    @property
    def network(self) -> MetaNetwork | None:
        """The `MetaNetwork`; None before `build_for`, `load_official` and `bind`."""
        return self._networks[0] if self._networks else None

    @property
    def temperature(self) -> float:
        """The temperature that softens the outputs."""
        return self.predictions.temperature

    def choose_taps(self, graph: Graph) -> list[str] | None:
        """See `Regularizer.choose_taps`: the end of each block."""
        return auto_taps.find_block_ends(graph)

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; needs maps of images, heads for the same classes."""
        super().check(networks)
        check_maps(networks)
        self._check_shapes(networks.source_map_shapes, networks.target_map_shapes)
        if self.kd:
            self.predictions.check(networks)

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; makes the meta network for the model's taps.

        Weights loaded before by `load_official` are kept.
        """
        shapes = networks.source_map_shapes, networks.target_map_shapes
        super().bind(networks)
        if self.kd:
            self.predictions.bind(networks)
        values = None
        if self.network is not None:
            # Variables made outside of the strategy's scope have no replicas.
            values = self.network.get_weights()
            self._networks.clear()
        self.build_for(*shapes)
        if values is not None:
            self.network.set_weights(values)

    def build_for(
        self, source_shapes: Mapping[str, Shape], target_shapes: Mapping[str, Shape]
    ) -> None:
        """Make the layers of the meta network, with or without a model.

        Calling it again for the same numbers of channels keeps the weights.

        Args:
            source_shapes: dict tap -> `(height, width, channels)`, in the order of the
                taps. Height and width may be None: they are not used.
            target_shapes: the same for the target, whose taps may differ in number and
                name.

        Raises:
            ValueError: if there are no taps, if a shape is not that of a map of images,
                or if the layers exist already for other channels.
        """
        theirs, ours = self._check_shapes(source_shapes, target_shapes)
        if self.network is None:
            self._networks.append(MetaNetwork(theirs, ours, self.dimension))
        self.source_taps, self.target_taps = tuple(source_shapes), tuple(target_shapes)

    def load_official(self, state: Mapping[str, np.ndarray]) -> None:
        """Load the weights of the authors' PyTorch module `AFD`.

        After `build_for`, every shape has to match. Otherwise the layers are made here:
        the arrays give the numbers of taps and channels and the `dimension`, and maps
        are then matched to them by their order, until `build_for` names the taps.

        Args:
            state: the module's state dict, as a dict from PyTorch name to NumPy array,
                such as `"attention.p_t"` or
                `"attention.linear_trans_s.bilinear.linear.weight"`. Counters
                (`num_batches_tracked`) are ignored.

        Raises:
            TypeError, ValueError: if `state` is not a dict, names are missing or
                unknown, or shapes are wrong; weights are then unchanged.
        """
        if not isinstance(state, Mapping):
            raise TypeError(invalid("state", "a dict from names to arrays", state))
        state = {
            name: np.asarray(value)
            for name, value in state.items()
            if not name.endswith("num_batches_tracked")
        }
        if self.network is not None:
            self.network.set_official(state)
            return
        network = infer_network(state)
        network.set_official(state)
        self._networks.append(network)
        self.dimension = network.dimension

    def feature_distance(
        self, source_maps: Maps, target_maps: Maps, training: bool = False
    ) -> Tensor:
        """The distance `Omega`, a scalar before alpha.

        Args:
            source_maps: dict tap -> `(B, H, W, C)`.
            target_maps: the same for the target; sizes and channels may differ.
            training: whether BatchNormalization uses the statistics of the batch and
                updates its moving ones.

        Returns:
            float32 scalar; 0 for an empty batch.

        Raises:
            ValueError: if called before `build_for`, or if the maps are not
                `(B, H, W, C)` with the taps and channels of `build_for`.
        """
        maps = self._ordered_maps(source_maps, target_maps)
        attention = self.network.attend(*maps, training=training)
        return mean(ops.sum(attention * distances.energy_distances(*maps), axis=(1, 2)))

    def attention_matrix(self, source_maps: Maps, target_maps: Maps) -> Tensor:
        """How much each source tap looks at each target tap, in inference mode.

        Args:
            source_maps, target_maps: as for `feature_distance`.

        Returns:
            `(B, T, S)` float32 for T source and S target taps; sums to 1 over S.

        Raises:
            ValueError: as for `feature_distance`.
        """
        maps = self._ordered_maps(source_maps, target_maps)
        return self.network.attend(*maps, training=False)

    def batch_distance(self, batch: Batch) -> Tensor:
        """See `Regularizer.batch_distance`; in training mode."""
        distance = self.feature_distance(
            batch.source_maps, batch.target_maps, training=True
        )
        return distance * batch.share

    def penalties(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Regularizer.penalties`; the first includes the distance of outputs."""
        feature, head = super().penalties(batch)
        if self.kd:
            feature = feature + self.kd * self.predictions.distance(batch) * batch.share
        return feature, head

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        return {
            **super().get_config(),
            "kd": self.kd,
            "temperature": self.predictions.temperature,
            "dimension": self.dimension,
        }

    def _check_shapes(self, source_shapes, target_shapes):
        """Channels of the source's and target's taps; refuse those that do not fit."""
        shapes = {"source_shapes": source_shapes, "target_shapes": target_shapes}
        channels = [_channels(name, each) for name, each in shapes.items()]
        if self.network is not None:
            built = self.network.source_channels, self.network.target_channels
            for name, new, old in zip(shapes, channels, built, strict=True):
                if new != old:
                    text = f"maps with {list(old)} channels, as the layers have them"
                    remedy = "Use a new `AFD` for other networks."
                    raise ValueError(invalid(name, text, shapes[name], remedy))
        return channels

    def _ordered_maps(self, source_maps, target_maps) -> tuple[Any, Any]:
        """Two lists of float32 maps, in the order of the taps."""
        if self.network is None:
            raise ValueError(
                "AFD has no layers yet. Call `build_for` with the shapes of the maps "
                "or `load_official`, or give the regularizer to a `DeltaModel`."
            )
        source_channels = self.network.source_channels
        target_channels = self.network.target_channels
        return (
            _order("source_maps", source_maps, self.source_taps, source_channels),
            _order("target_maps", target_maps, self.target_taps, target_channels),
        )


def _channels(argument, shapes):
    """Numbers of channels of a dict tap -> `(height, width, channels)`, as a tuple."""
    expected = "a dict from tap to the shape (height, width, channels) of its map"
    if not isinstance(shapes, Mapping) or not shapes:
        raise ValueError(
            invalid(argument, f"{expected}, with at least one tap", shapes)
        )
    for tap, shape in shapes.items():
        shape = tuple(shape)
        if len(shape) != 3 or not isinstance(shape[-1], (int, np.integer)):
            text = "(height, width, channels), the shape of a map of images"
            remedy = "AFD compares maps of images only: tap other layers."
            raise ValueError(invalid(f"{argument}[{tap!r}]", text, shape, remedy))
    return tuple(int(shape[-1]) for shape in shapes.values())


def _order(argument, maps, taps, channels):
    """Float32 maps as a list in the order of the taps; refuse others."""
    named = f"the taps {list(taps)}" if taps else f"{len(channels)} taps"
    expected = f"a dict from tap to map (B, H, W, C), with {named}"
    fits = isinstance(maps, Mapping) and len(maps) == len(channels)
    if not fits or (taps and set(maps) != set(taps)):
        received = list(maps) if isinstance(maps, Mapping) else maps
        raise ValueError(invalid(argument, expected, received))
    ordered = []
    for tap, count in zip(taps or maps, channels, strict=True):
        value = ops.convert_to_tensor(maps[tap])
        if len(value.shape) != 4 or value.shape[-1] != count:
            text = f"a map of shape (B, H, W, {count})"
            raise ValueError(invalid(f"{argument}[{tap!r}]", text, tuple(value.shape)))
        ordered.append(ops.cast(value, "float32"))
    return ordered
