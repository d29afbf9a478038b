"""Regularizers of feature maps: taps, variants, reduction, scale."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_delta import _arguments
from keras_delta._compat import array
from keras_delta._errors import invalid, warn
from keras_delta._inputs.samples import length, regrouped
from keras_delta._network.networks import Networks
from keras_delta._network.taps import check_pairs, no_maps
from keras_delta._types import Maps, Strength, Tensor, Variant
from keras_delta.regularizers import distances
from keras_delta.regularizers.base import MAPS, Regularizer
from keras_delta.regularizers.batch import Batch

VARIANTS = ("relative", "code", "article")
SCALE_SAMPLES = 256
SMALLEST_SCALE = 1e-6


class MapRegularizer(Regularizer):
    """Common part of `FeatureMap` and `Delta`: a sum of distances over taps.

    A subclass defines `tap_distance`, the distance of one tap per sample.

    Args:
        alpha: strength; None: the variant's default (`default_alpha`).
        beta: strength of the head penalty.
        variant: `"relative"`, `"code"` or `"article"`.
        name: optional name.
    """

    needs = MAPS
    default_alpha = {"relative": 5.0, "code": 0.01, "article": 0.01}

    def __init__(
        self,
        alpha: Strength | None = None,
        beta: Strength = 0.01,
        variant: Variant = "relative",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        variant = _arguments.choice("variant", variant, VARIANTS)
        alpha = self.default_alpha[variant] if alpha is None else alpha
        super().__init__(alpha, beta, name=name, **kwargs)
        self.variant = variant
        self.head_factor = 2.0 if variant == "article" else 1.0
        self._scales = {}

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; maps are compared in pairs of the same shape."""
        super().check(networks)
        if not networks.target_taps:
            raise ValueError(no_maps(networks.target))
        check_pairs(networks)

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; makes a variable for the scale of each tap."""
        super().bind(networks)
        if self.variant == "relative":
            for i, tap in enumerate(networks.target_taps):
                self._scales[tap] = self.add_weight(
                    name=f"scale_{i}", shape=(), initializer="zeros", trainable=False
                )

    @property
    def ready(self) -> bool:
        """Whether the scales of the source maps are known."""
        return len(self.scales) == len(self._scales)

    @property
    def scales(self) -> dict[str, float]:
        """Dict tap -> mean square of the source map, `E_l`; empty until prepared."""
        scales = {tap: float(array(s)) for tap, s in self._scales.items()}
        return scales if all(s > 0 for s in scales.values()) else {}

    def set_scales(self, scales: Mapping[str, float]) -> None:
        """Use scales that were measured before, for the same taps and training data.

        Args:
            scales: dict tap -> number, in the form of the attribute `scales`.
        """
        if set(scales) != set(self._scales):
            raise ValueError(
                invalid("scales", f"one number for each of {[*self._scales]}", scales)
            )
        for tap, value in scales.items():
            self._scales[tap].assign(value)

    def prepare(self, model: keras.Model, samples: Any, verbose: bool = True) -> None:
        """Measure the scale of each source map, on 256 training samples."""
        if len(self.scales) == len(self._scales):
            return
        totals, count = dict.fromkeys(self._scales, 0.0), 0
        for x, _ in regrouped(samples.batches(SCALE_SAMPLES), 32):
            maps, count = model.source_maps(x), count + length(x)
            for tap in totals:
                squares = ops.convert_to_numpy(distances.mean_square(maps[tap]))
                totals[tap] += squares.astype(np.float64).sum()
        for tap, total in totals.items():
            _check_scale(tap, total, count)
            self._scales[tap].assign(total / count)

    def tap_distance(self, tap: str, source_map: Tensor, target_map: Tensor) -> Tensor:
        """Distance of one tap per sample, `(B,)`, before the scale."""
        raise NotImplementedError

    def feature_distance(self, source_maps: Maps, target_maps: Maps) -> Tensor:
        """The distance, a scalar before alpha.

        Args:
            source_maps: dict tap -> `(B, ..., C)`.
            target_maps: dict tap -> the same shape.

        Returns:
            float32 scalar: the sum over the taps, summed over the batch in the
            variant `"code"` and averaged in the others. If the regularizer has
            not been prepared by `fit`, the scale of the variant `"relative"` is
            the mean square of `source_maps` itself.
        """
        parts = self.tap_distances(source_maps, target_maps)
        return sum(parts.values(), ops.zeros((), "float32"))

    def tap_distances(self, source_maps: Maps, target_maps: Maps) -> dict[str, Tensor]:
        """Each tap's part of `feature_distance`: dict tap -> scalar."""
        return {
            tap: self._reduced(tap, source_maps[tap], target_map)
            for tap, target_map in target_maps.items()
        }

    def _reduced(self, tap, source_map, target_map):
        per_sample = self.tap_distance(tap, source_map, target_map)
        if self.variant == "relative":
            per_sample = per_sample / self._scale(tap, source_map)
        summed = ops.sum(per_sample)
        if self.variant == "code":
            return summed
        # Not ops.mean: a replica may get no sample of the last batch.
        count = ops.cast(ops.shape(per_sample)[0], "float32")
        return summed / ops.maximum(count, 1.0)

    def _scale(self, tap, source_map):
        if tap in self._scales:
            return ops.convert_to_tensor(self._scales[tap])
        return ops.mean(distances.mean_square(source_map))

    def feature_share(self, batch: Batch) -> Tensor:
        """See `Regularizer.feature_share`; a sum over the batch has weight 1."""
        return 1.0 if self.variant == "code" else batch.share

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        return {**super().get_config(), "variant": self.variant}


def _check_scale(tap, total, count):
    """Refuse a source map that cannot serve as a unit of distance."""
    if not np.isfinite(total) or total == 0:
        raise ValueError(
            f"The source map at tap '{tap}' is "
            f"{'zero' if total == 0 else 'not finite'} on all {count} samples looked "
            "at, so distances cannot be measured in units of it. Tap another layer, "
            "or check the source's weights and the images."
        )
    if total / count < SMALLEST_SCALE:
        warn(
            f"The source map at tap '{tap}' is all but zero (mean square "
            f"{total / count:.1e}), so the slightest change of the target counts as a "
            "large distance and training will diverge. Check that the source has "
            "pretrained weights and that the images have the range it expects."
        )
