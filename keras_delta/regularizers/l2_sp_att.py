"""L2-SP(ATT): L2-SP with channel attention on the filters of the taps."""

import math
from typing import Any

import keras
from keras import ops

from keras_delta._network.networks import Networks
from keras_delta._types import Attention, Strength, Tensor
from keras_delta.regularizers.attention_weights import AttentionWeights, of_part
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.distances import half_sum_of_squares

# Layers whose channels are those of their inputs, one by one.
BY_CHANNEL = (
    keras.layers.BatchNormalization,
    *(keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU),
)
# Layers whose channels are not the last axis of the kernel.
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
TRANSPOSED = (
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose),
    keras.layers.Conv3DTranspose,
)


@keras.saving.register_keras_serializable("keras_delta")
class L2SPAtt(Regularizer):
    """L2-SP that holds important filters more tightly.

    `Omega = 1/2 sum_l sum_j C_l W[l, j] ||K_l[..., j] - K*_l[..., j]||^2` over the
    kernels of the tapped layers (of a tapped activation or BatchNormalization the
    kernel in front of it), plus `1/2 ||w - w*||^2` over every other parameter
    that source and target share. The factor `C_l` makes uniform attention equal to
    L2-SP. The article names the method and gives no formula; this reading is ours.

    Args:
        alpha: strength, default 0.01.
        beta: strength of the head penalty, default 0.01.
        attention: as in `Delta`, default `"auto"`.
        attention_samples: as in `Delta`, default 256.
        temperature: as in `Delta`, default 5.
        name: optional name.

    Raises:
        ValueError: if no tap of the model has one (when bound).

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.2.
    """

    def __init__(
        self,
        alpha: Strength = 0.01,
        beta: Strength = 0.01,
        attention: Attention = "auto",
        attention_samples: int | None = 256,
        temperature: float = 5.0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)
        self.attention_weights = AttentionWeights(
            attention, attention_samples, temperature
        )
        self._tapped = {}  # id of the source's kernel -> (tap, shape of the filters)

    attention = of_part("attention")
    attention_samples = of_part("attention_samples")
    temperature = of_part("temperature")
    computed_attention = of_part("computed_attention")
    set_attention_weights = of_part("set_attention_weights")

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; the attention must be for the same taps."""
        super().check(networks)
        self.attention_weights.check(networks.target_map_shapes)

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; finds the kernels of the tapped layers."""
        super().bind(networks)
        pairing, taps = networks.pairing, networks.target_map_shapes
        self.attention_weights.bind(taps, self.add_weight)
        for tap in taps:
            if tap not in pairing.names:
                continue
            # The source's, as LoRA makes a new tensor of the target's each time.
            layer = find_layer(pairing.source, pairing.names[tap])
            if layer is not None:
                found = tap, filter_shape(layer)
                self._tapped.setdefault(id(find_kernel(layer)), found)
        if not self._tapped:
            raise ValueError(
                "The regularizer 'l2_sp_att' weights the filters of tapped layers, but "
                f"none of the taps {list(taps)} is a convolution or dense layer, or "
                "follows one directly. Tap convolutions, or use 'l2_sp'."
            )

    @property
    def ready(self) -> bool:
        """Whether the attention is known."""
        return self.attention_weights.ready

    def prepare(self, model: keras.Model, samples: Any, verbose: bool = True) -> None:
        """Compute the attention if it is `"auto"`."""
        self.attention_weights.prepare(model, samples, verbose)

    def weight_distance(self) -> Tensor:
        """The distance from the starting point, with filters weighted by attention."""
        return half_sum_of_squares(
            self._difference(v, start) for v, start in self.pairing.variables
        )

    def _difference(self, variable, start):
        difference = ops.cast(variable, "float32") - ops.cast(start, "float32")
        if id(start) not in self._tapped:
            return difference
        tap, shape = self._tapped[id(start)]
        weights = self.attention_weights.of_tap(tap, math.prod(shape))
        return difference * ops.sqrt(math.prod(shape) * ops.reshape(weights, shape))

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        return {**super().get_config(), **self.attention_weights.get_config()}


def find_layer(graph, name):
    """The layer whose filters make a tap's channels; None without one."""
    while name is not None:
        node = graph.nodes[name]
        if find_kernel(node.operation) is not None:
            return node.operation
        if not isinstance(node.operation, BY_CHANNEL):
            return None
        name = graph.name_of(node.inputs[0])
    return None


def find_kernel(layer):
    """The kernel whose filters make a layer's channels; None without one."""
    kernel = getattr(layer, "pointwise_kernel", getattr(layer, "kernel", None))
    return kernel if isinstance(kernel, keras.Variable) else None


def filter_shape(layer):
    """Shape of a kernel's last axes that number the channels, 1 for other axes."""
    *_, last_but_one, last = find_kernel(layer).shape
    if isinstance(layer, DEPTHWISE):
        return last_but_one, last
    return (last_but_one, 1) if isinstance(layer, TRANSPOSED) else (last,)
