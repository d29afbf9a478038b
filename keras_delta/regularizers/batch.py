"""What a regularizer may look at in one training step."""

from typing import Any, Literal, NamedTuple, Self

import keras
from keras import ops


class Batch(NamedTuple):
    """What a regularizer may look at in one training step, on one replica.

    Attributes:
        source_maps: dict tap -> `(B, ..., C)`, without gradient; None if the
            regularizer does not need maps.
        target_maps: the same of the target; None if the regularizer does not need them.
        step: the optimizer's iteration, for schedules.
        share: this replica's share of the global batch, `B / sum of B`; 1 on one
            replica. A mean over the samples is to be multiplied by it.
        replicas: number of replicas. A term that has no samples is to be divided
            by it, because gradients are summed over replicas.
        target_outputs: what the target predicts for the batch.
        source_outputs: what the source's own head predicts, without gradient; None if
            the regularizer does not need it.
        target_features: the vectors `(B, D)` that enter the target's last layer; None
            if the regularizer does not need them.
        images: what the target was fed with.
        labels: as the data have them.
        label_weights: their `sample_weight`, None for none.
    """

    source_maps: Any = None
    target_maps: Any = None
    step: Any = 0
    share: Any = 1.0
    replicas: int = 1
    target_outputs: Any = None
    source_outputs: Any = None
    target_features: Any = None
    images: Any = None
    labels: Any = None
    label_weights: Any = None

    def without_gradient(self, network: Literal["source", "target"]) -> Self:
        """The same, with what is of `"source"` or of `"target"` held constant."""
        names = [f"{network}_{what}" for what in ("maps", "outputs", "features")]
        given = {n: getattr(self, n, None) for n in names}
        given = {n: value for n, value in given.items() if value is not None}
        return self._replace(**keras.tree.map_structure(ops.stop_gradient, given))
