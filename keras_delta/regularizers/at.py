"""AT: the target looks where the source looks."""

from typing import Any, Literal

import keras
from keras import ops

from keras_delta import _arguments
from keras_delta._types import Maps, Strength, Tensor
from keras_delta.regularizers.distances import energy_distances, positions
from keras_delta.regularizers.paired_maps import PairedMaps
from keras_delta.regularizers.predictions import mean

VARIANTS = ("code", "article")
DEFAULT = {"code": 1000.0, "article": 1.0}


@keras.saving.register_keras_serializable("keras_delta")
class AT(PairedMaps):
    """Attention transfer: spatial attention maps of the target follow the source's.

    The attention map of a tap is `Q = A / ||A||_2`, where `A` is the sum over the
    channels of the squared map, as a vector over the positions. The target's `A` is
    average-pooled to the source's grid first. Then

        Omega = sum_l mean_b mean_hw (Q_source - Q_target)^2      variant "code"
        Omega = 1/2 sum_l mean_b ||Q_source - Q_target||_2        variant "article"

    Source and target may be different networks, with maps of any size and any number
    of channels.

    Args:
        alpha: strength; None for the default: 1000 in the variant `"code"`, as in the
            authors' program, 1 in `"article"`, where distances are not squared.
        beta: strength of the head penalty, default 0.
        variant: `"code"` or `"article"`.
        name: optional name.

    Source: Zagoruyko & Komodakis, "Paying more attention to attention", ICLR 2017,
    Eq. 2; github.com/szagoruyko/attention-transfer.
    """

    def __init__(
        self,
        alpha: Strength | None = None,
        beta: Strength = 0.0,
        variant: Literal["code", "article"] = "code",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.variant = _arguments.choice("variant", variant, VARIANTS)
        alpha = DEFAULT[variant] if alpha is None else alpha
        super().__init__(alpha, beta, name=name, **kwargs)

    def feature_distance(self, source_maps: Maps, target_maps: Maps) -> Tensor:
        """The distance `Omega`, a scalar before alpha.

        Args:
            source_maps: dict tap -> `(B, H, W, C)`.
            target_maps: the same for the target; sizes and channels may differ.

        Returns:
            float32 scalar.
        """
        parts = self.tap_distances(source_maps, target_maps)
        return sum(parts.values(), ops.zeros((), "float32"))

    def tap_distances(self, source_maps: Maps, target_maps: Maps) -> dict[str, Tensor]:
        """See `Regularizer.tap_distances`."""
        names = self.target_taps or target_maps
        pairs = self.pairs(source_maps, target_maps)
        return {
            tap: mean(self._distance(*pair))
            for tap, pair in zip(names, pairs, strict=True)
        }

    def _distance(self, source_map, target_map):
        """`(B,)`."""
        squared = energy_distances([source_map], [target_map])[:, 0, 0]
        if self.variant == "code":
            return squared
        # The norm has no gradient where the maps agree.
        apart = squared > 0
        norm = ops.sqrt(ops.where(apart, squared, 1.0) * positions(source_map))
        return 0.5 * ops.where(apart, norm, 0.0)

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        return {**super().get_config(), "variant": self.variant}
