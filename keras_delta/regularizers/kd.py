"""KD: the target's predictions follow those of a source with a head."""

from typing import Any

import keras

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._network.networks import Networks
from keras_delta._types import Strength, Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.batch import Batch
from keras_delta.regularizers.predictions import Predictions, distillation_loss, mean

DEFAULT = 0.9


@keras.saving.register_keras_serializable("keras_delta")
class KD(Regularizer):
    """Knowledge distillation: the source's softened predictions as additional labels.

    The objective is `task_weight * task loss + kd_weight * Omega` with

        Omega = T^2 mean_b sum_k p_k log(p_k / q_k),
        p = softmax(source logits / T), q = softmax(target logits / T).

    `T^2` keeps the gradient's size as the temperature changes. The source has a head
    for the target's classes, in the same order; it may be an entirely different
    network. Each head may end in a softmax or in logits.

    Args:
        alpha: weight of Omega, default 0.9.
        beta: strength of `1/2 ||w||^2` on parameters that only the target has, default
            0.
        temperature: T; higher values show more of the unlikely classes. Default 4.
        task_weight: weight of the task loss, default 0.1.
        kd_weight: another name for `alpha`.
        name: optional name.

    Raises:
        ValueError: if the source has no head or another number of classes.

    Source: Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network",
    2015, arXiv 1503.02531; the weights 0.1 and 0.9 and T = 4 are those of
    github.com/HobbitLong/RepDistiller.
    """

    needs = frozenset({"source_outputs"})
    needs_classes = True
    starts_at_source = False

    def __init__(
        self,
        alpha: Strength = DEFAULT,
        beta: Strength = 0.0,
        temperature: float = 4.0,
        task_weight: float = 0.1,
        kd_weight: Strength | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if kd_weight is not None:
            if alpha not in (DEFAULT, kd_weight):
                expected = "one of `alpha` and `kd_weight`, which are the same"
                raise ValueError(invalid("kd_weight", expected, kd_weight))
            alpha = kd_weight
        super().__init__(alpha, beta, name=name, **kwargs)
        self.predictions = Predictions(temperature)
        self.task_weight = _arguments.number("task_weight", task_weight)

    @property
    def temperature(self) -> float:
        """The temperature that softens the outputs."""
        return self.predictions.temperature

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; both networks need a head for the same classes."""
        super().check(networks)
        self.predictions.check(networks)

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; looks up the activations of the two heads."""
        super().bind(networks)
        self.predictions.bind(networks)

    def batch_distance(self, batch: Batch) -> Tensor:
        """See `Regularizer.batch_distance`."""
        return self.predictions.distance(batch) * batch.share

    def logit_distance(self, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        """`Omega`, the mean over the batch, before its weight.

        Args:
            source_logits, target_logits: `(B, classes)`.

        Returns:
            float32 scalar.
        """
        return mean(distillation_loss(source_logits, target_logits, self.temperature))

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        own = {"temperature": self.temperature, "task_weight": self.task_weight}
        return {**super().get_config(), **own}
