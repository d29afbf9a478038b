"""DELTA: the attention-weighted distance of feature maps."""

from typing import Any

import keras
from keras import ops

from keras_delta._network.networks import Networks
from keras_delta._types import Attention, Strength, Tensor, Variant
from keras_delta.regularizers import distances
from keras_delta.regularizers.attention_weights import AttentionWeights, of_part
from keras_delta.regularizers.maps import MapRegularizer


@keras.saving.register_keras_serializable("keras_delta")
class Delta(MapRegularizer):
    """Keeps the feature maps close to the source's, weighted by channel attention.

    `D[l, b, j] = sum_hw (T_l - S_l)^2` for tap l, sample b, channel j, and
    `W[l, j] >= 0`, `sum_j W[l, j] = 1` is the channel attention: how much the loss
    rises when channel j is switched off. `H W` is the number of positions, `C`
    the number of channels. The term before alpha:

    - `"relative"`: `mean_b sum_l 1/E_l * sum_j W D / (H W)`, where `E_l` is the mean
      square of the source map over training data (256 samples, measured before the
      first step, saved with the model). A value of 1 per tap means "as far away as the
      map is large", for any backbone, resolution, number of channels and batch size.
    - `"code"`: `1/2 sum_l sum_b C sum_j W D / (H W)`: **summed** over the batch, as
      in the authors' program.
    - `"article"`: `mean_b sum_l sum_j W D` (Eq. 8): no 1/2, positions or channels.

    The head penalty is `1/2 ||w||^2`, in the variant `"article"` `||w||^2` (Eq. 7).

    Args:
        alpha: strength; default 5 for `"relative"`, else 0.01.
        beta: strength of the head penalty, default 0.01.
        attention: `"auto"` (computed from the training data at the start of `fit`,
            Algorithm 1), `"uniform"`, a `ChannelAttention`, a dict tap -> `(C,)`
            weights, or the path of a saved `ChannelAttention`.
        variant: see above.
        attention_samples: how many training samples `"auto"` looks at, default
            256 (the authors' program: 128); None for all.
        temperature: of the softmax that makes weights of the scores of `"auto"`,
            default 5 as in the authors' program; higher is more even.
        name: optional name.

    Raises:
        ValueError: if the variant or attention is unknown, or an attention file
            cannot be read.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Eq. 8 and Algorithm
    1; the program at github.com/lixingjian/DELTA.
    """

    def __init__(
        self,
        alpha: Strength | None = None,
        beta: Strength = 0.01,
        attention: Attention = "auto",
        variant: Variant = "relative",
        attention_samples: int | None = 256,
        temperature: float = 5.0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, variant, name=name, **kwargs)
        self.attention_weights = AttentionWeights(
            attention, attention_samples, temperature
        )

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
        """See `Regularizer.bind`; makes variables for scales and attention."""
        super().bind(networks)
        self.attention_weights.bind(networks.target_map_shapes, self.add_weight)

    @property
    def ready(self) -> bool:
        """Whether the scales of the source maps and the attention are known."""
        return super().ready and self.attention_weights.ready

    def prepare(self, model: keras.Model, samples: Any, verbose: bool = True) -> None:
        """Measure the scales and, if it is `"auto"`, the attention."""
        super().prepare(model, samples, verbose)
        self.attention_weights.prepare(model, samples, verbose)

    def tap_distance(self, tap: str, source_map: Tensor, target_map: Tensor) -> Tensor:
        """See `MapRegularizer.tap_distance`."""
        d = distances.channel_distances(source_map, target_map)
        channels = d.shape[-1]
        weighted = ops.sum(d * self.attention_weights.of_tap(tap, channels), axis=-1)
        if self.variant == "relative":
            return weighted / distances.positions(target_map)
        if self.variant == "code":
            return 0.5 * channels * weighted / distances.positions(target_map)
        return weighted

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        return {**super().get_config(), **self.attention_weights.get_config()}
