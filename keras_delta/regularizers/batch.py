"""`Batch`: everything a regularizer can use in one training step."""

from typing import Any, Literal, NamedTuple, Self

import keras
from keras import ops


class Batch(NamedTuple):
    """Everything a regularizer can use in one training step, on one replica.

    Attributes:
        source_maps: dict tap -> `(B, ..., C)`, without gradient; None if the
            regularizer does not need maps.
        target_maps: the same of the target; None if the regularizer does not need them.
        step: the optimizer's iteration, for schedules.
        share: this replica's share of the global batch, `B / sum of B`; 1 on one
            replica. Multiply a mean over the samples by it.
        replicas: number of replicas. Divide a term without samples by it, because
            gradients are summed over replicas.
        target_outputs: the target's predictions for the batch.
        source_outputs: the predictions of the source's head, without gradient; None if
            the regularizer does not need them.
        target_features: the vectors `(B, D)` that enter the target's last layer; None
            if the regularizer does not need them.
        images: the target's inputs.
        labels: the labels, as in the data.
        label_weights: their `sample_weight`; None if there are none.
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
        """The same batch with the values of `"source"` or `"target"` held constant."""
        names = [f"{network}_{what}" for what in ("maps", "outputs", "features")]
        given = {n: getattr(self, n, None) for n in names}
        given = {n: value for n, value in given.items() if value is not None}
        return self._replace(**keras.tree.map_structure(ops.stop_gradient, given))
