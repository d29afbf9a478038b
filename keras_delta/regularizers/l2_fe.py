"""L2-FE: the pretrained network as a fixed feature extractor."""

from typing import Any

import keras

from keras_delta._network.networks import Networks
from keras_delta._types import Strength
from keras_delta.regularizers.base import Regularizer


@keras.saving.register_keras_serializable("keras_delta")
class L2FE(Regularizer):
    """Trains the head alone, on frozen features.

    The layers that source and target share run in inference mode, so BatchNorm's
    statistics do not move either (in the authors' program they drift, because
    the network is left in training mode). Layers of the head train as usual.

    Args:
        alpha: without effect, since the features do not move; accepted so that all
            regularizers take the same arguments. Default 0.
        beta: strength of `1/2 ||w||^2` on the head, default 0.01.
        name: optional name.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.2.
    """

    trains_features = False

    def __init__(
        self,
        alpha: Strength = 0.0,
        beta: Strength = 0.01,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; there must be something left to train."""
        if not networks.pairing.new_layers:
            raise ValueError(
                "The regularizer 'l2_fe' trains only layers that the source lacks, but "
                "every layer of the target has a counterpart in the source. "
                "Give the target a new head with `keras_delta.attach_head`."
            )
        super().check(networks)
