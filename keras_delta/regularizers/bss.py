"""BSS: batch spectral shrinkage, against features that do not transfer."""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_delta import _arguments
from keras_delta._network.networks import Networks
from keras_delta._types import Strength, Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.batch import Batch
from keras_delta.regularizers.features import check_features, gather


@keras.saving.register_keras_serializable("keras_delta")
class BSS(Regularizer):
    """Shrinks the smallest singular values of a batch's features.

    `Omega = sum_{i <= k} sigma_{-i}^2`, over the `k` smallest singular values of the
    matrix `(B, D)` of the vectors that enter the target's last layer, over the global
    batch. Directions in which a batch hardly varies are assumed not to transfer. The
    method needs no source. An incomplete last batch has larger singular values: drop
    it, or be aware that it counts for more.

    Args:
        alpha: strength (the paper's eta), default 0.001.
        beta: strength of the head penalty, default 0.
        k: number of singular values, default 1.
        name: optional name.

    Raises:
        ValueError: if the target does not end in a `Dense` layer.

    Source: Chen et al., "Catastrophic forgetting meets negative transfer: batch
    spectral shrinkage for safe transfer learning", NeurIPS 2019, Eq. 5;
    github.com/thuml/Batch-Spectral-Shrinkage.
    """

    needs = frozenset({"target_features"})
    starts_at_source = False

    def __init__(
        self,
        alpha: Strength = 0.001,
        beta: Strength = 0.0,
        k: int = 1,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)
        self.k = _arguments.integer("k", k)

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`."""
        super().check(networks)
        check_features(networks, "target", "bss", classes=False)

    def batch_distance(self, batch: Batch) -> Tensor:
        """See `Regularizer.batch_distance`; over the global batch."""
        features = gather(batch.target_features, batch.replicas)
        return self.spectral_penalty(features) / batch.replicas

    def spectral_penalty(self, features: Tensor) -> Tensor:
        """The distance `Omega`, a float32 scalar.

        Args:
            features: `(B, D)`; if it has fewer than `k` singular values, all count.
        """
        # Not eigenvalues of the Gram matrix: squaring would cost half the digits.
        values = tf.linalg.svd(ops.cast(features, "float32"), compute_uv=False)
        return ops.sum(ops.square(values[-self.k :]))

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        return {**super().get_config(), "k": self.k}
