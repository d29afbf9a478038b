"""FSP: how one layer's channels correlate with the next one's."""

import itertools
from typing import Any, Literal

import keras
from keras import ops

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._network.networks import Networks
from keras_delta._types import Maps, Strength, Tensor
from keras_delta.layers.pooling import adaptive_average_pool
from keras_delta.regularizers.paired_maps import PairedMaps
from keras_delta.regularizers.predictions import mean
from keras_delta.regularizers.stages import Staged

VARIANTS = ("code", "article")


@keras.saving.register_keras_serializable("keras_delta")
class FSP(Staged, PairedMaps):
    """Flow of the solution procedure: Gram matrices between successive taps.

    For the maps `X` and `Y` of a tap and the next one, on a common grid,

        M_ij = 1/(hw) sum_hw X_hwi Y_hwj

    and `Omega` is the squared difference of the source's and the target's `M`, summed
    over the pairs of taps: its mean over elements and samples in the variant `"code"`,
    its sum over elements, averaged over the samples, in `"article"`. The larger of two
    maps is average-pooled to the grid of the other. Source and target may be different
    networks with the same numbers of channels at the taps.

    Args:
        alpha: strength; default 50, as in RepDistiller.
        beta: strength of the head penalty, default 0.
        variant: `"code"` or `"article"`.
        stage_steps: length of a first stage that minimises `alpha * Omega` alone; later
            steps minimise the task loss alone, as in article and program. Default 0:
            both are minimised together throughout.
        name: optional name.

    Raises:
        ValueError: if there is a single tap, or channels of source and target differ.

    Source: Yim, Joo, Bae & Kim, "A gift from knowledge distillation", CVPR 2017, Eqs. 1
    and 2; github.com/HobbitLong/RepDistiller (`FSP`).
    """

    def __init__(
        self,
        alpha: Strength = 50.0,
        beta: Strength = 0.0,
        variant: Literal["code", "article"] = "code",
        stage_steps: int = 0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, stage_steps=stage_steps, name=name, **kwargs)
        self.variant = _arguments.choice("variant", variant, VARIANTS)

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; needs at least two taps, with the same channels."""
        super().check(networks)
        shapes = networks.source_map_shapes, networks.target_map_shapes
        channels = [[shape[-1] for shape in found.values()] for found in shapes]
        if len(channels[0]) < 2 or channels[0] != channels[1]:
            expected = "two or more layers with the same channels in source and target"
            each = [{t: s[-1] for t, s in found.items()} for found in shapes]
            received = f"{each[0]} in the source, {each[1]} in the target"
            remedy = "Pass matching layers as `taps` and `source_taps`; "
            remedy += '"at" and "afd" compare maps with any channels.'
            raise ValueError(invalid("taps", expected, received, remedy))

    def feature_distance(self, source_maps: Maps, target_maps: Maps) -> Tensor:
        """The distance `Omega`, a scalar before alpha.

        Args:
            source_maps: dict tap -> `(B, H, W, C)`, two or more.
            target_maps: the same for the target, with the same channels.

        Returns:
            float32 scalar.
        """
        sources, targets = zip(*self.pairs(source_maps, target_maps), strict=True)
        total = ops.zeros((), "float32")
        for theirs, ours in zip(_flows(sources), _flows(targets), strict=True):
            reduce = ops.mean if self.variant == "code" else ops.sum
            total = total + mean(reduce(ops.square(theirs - ours), axis=(1, 2)))
        return total

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        return {**super().get_config(), "variant": self.variant}


def flow_matrix(first, second):
    """`M_ij = 1/(hw) sum_hw X_hwi Y_hwj` of two maps, `(B, C1, C2)` float32.

    Args:
        first, second: `(B, H, W, C)`; the larger is pooled to the grid of the other.
    """
    first, second = (ops.cast(m, "float32") for m in (first, second))
    grids = [ops.shape(m)[1:3] for m in (first, second)]
    if not _are_equal(*grids):
        smaller = [_smaller(a, b) for a, b in zip(*grids, strict=True)]
        first, second = (adaptive_average_pool(m, smaller) for m in (first, second))
    height, width = ops.shape(first)[1:3]
    product = ops.einsum("bhwi,bhwj->bij", first, second)
    return product / ops.cast(height * width, "float32")


def _flows(maps):
    return [flow_matrix(a, b) for a, b in itertools.pairwise(maps)]


def _are_equal(*grids):
    """Whether grids are known to be equal; lengths are numbers if known, or tensors."""
    return all(isinstance(n, int) for n in sum(grids, ())) and grids[0] == grids[1]


def _smaller(a, b):
    known = isinstance(a, int) and isinstance(b, int)
    return min(a, b) if known else ops.minimum(a, b)
