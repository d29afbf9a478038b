"""L2: plain weight decay on every parameter."""

from typing import Any

import keras

from keras_delta._types import Strength, Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.distances import half_sum_of_squares


@keras.saving.register_keras_serializable("keras_delta")
class L2(Regularizer):
    """Pulls every parameter towards zero: plain fine-tuning with weight decay.

    `Omega = 1/2 ||w||^2` over all trainable parameters that the source has too,
    including biases and those of BatchNorm, as in the authors' program, which uses the
    optimizer's weight decay (gradient `alpha w`). `beta` applies to the head.

    Args:
        alpha: strength on the pretrained part, default 1e-4.
        beta: strength on the head, default 1e-4.
        name: optional name.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.2.
    """

    starts_at_source = False

    def __init__(
        self,
        alpha: Strength = 1e-4,
        beta: Strength = 1e-4,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)

    def weight_distance(self) -> Tensor:
        """`1/2 ||w||^2` over the trainable parameters that the source has too."""
        return half_sum_of_squares(v for v, _ in self.pairing.variables)
