"""DELTA without attention: the distance of feature maps, all channels alike."""

import keras
from keras import ops

from keras_delta._types import Tensor
from keras_delta.regularizers import distances
from keras_delta.regularizers.maps import MapRegularizer


@keras.saving.register_keras_serializable("keras_delta")
class FeatureMap(MapRegularizer):
    """Keeps the target's feature maps close to the source's, all channels alike.

    `D[l, b, j] = sum_hw (T_l - S_l)^2` for tap l, sample b, channel j; `H W` is
    the number of positions and `C` the number of channels. The term before alpha:

    - `"relative"`: `mean_b sum_l 1/E_l * mean_j D / (H W)`, where `E_l` is the mean
      square of the source map over training data. A value of 1 per tap means "as far
      away as the map is large", for any backbone, resolution and batch size.
    - `"code"`: `1/2 sum_l sum_b sum_j D`: summed over the batch, not divided by
      the positions, as in the authors' program.
    - `"article"`: `mean_b sum_l sum_j D` (Eq. 5).

    The head penalty is `1/2 ||w||^2`, in the variant `"article"` `||w||^2` (Eq. 7).

    Args:
        alpha: strength; default 5 for `"relative"`, else 0.01.
        beta: strength of the head penalty, default 0.01.
        variant: see above.
        name: optional name.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Eq. 5; the program
    at github.com/lixingjian/DELTA.
    """

    def tap_distance(self, tap: str, source_map: Tensor, target_map: Tensor) -> Tensor:
        """See `MapRegularizer.tap_distance`."""
        d = distances.channel_distances(source_map, target_map)
        if self.variant == "relative":
            return ops.mean(d, axis=-1) / distances.positions(target_map)
        if self.variant == "code":
            return 0.5 * ops.sum(d, axis=-1)
        return ops.sum(d, axis=-1)
