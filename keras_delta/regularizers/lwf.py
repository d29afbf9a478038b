"""LwF: the source's task is not forgotten."""

from typing import Any, Literal

import keras
from keras import ops

from keras_delta import _arguments
from keras_delta._network.networks import Networks
from keras_delta._types import Strength, Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.batch import Batch
from keras_delta.regularizers.features import SourceHead, check_source_head
from keras_delta.regularizers.predictions import Predictions, mean

VARIANTS = ("article", "tllib")
DEFAULT = {"article": (1.0, 2.0), "tllib": (4.0, 3.0)}  # alpha, temperature


@keras.saving.register_keras_serializable("keras_delta")
class LwF(Regularizer):
    """Learning without forgetting: the target keeps answering as the source did.

    A copy of the source's classifier is placed on the target's features, beside the new
    head. `p` are the probabilities that the frozen source gives for an image, `q` those
    of the copy, both softened by the temperature T (`softmax(logits / T)`, which
    the paper writes as `y^(1/T)`, divided by its sum). Then

        Omega = -mean_b sum_k p_k log q_k             variant "article"; copy trained
        Omega = mean_b sum_k p_k log(p_k / q_k)       variant "tllib"; copy fixed

    The source sees the same augmented images as the target. It needs the classifier
    that it was pretrained with, and the target's features must fit this classifier.

    Args:
        alpha: strength; None for the default: 1 in the variant `"article"`, 4 in
            `"tllib"`.
        beta: strength of the head penalty, default 0.
        temperature: T; None for the default: 2 in `"article"`, 3 in `"tllib"`.
        variant: `"article"` or `"tllib"`.
        name: optional name.

    Raises:
        ValueError: if the source has no classifier, or the features do not fit it.

    Source: Li & Hoiem, "Learning without forgetting", ECCV 2016, Eqs. 2 and 3;
    github.com/thuml/Transfer-Learning-Library (`lwf.py`), which keeps the source's
    classifier fixed.
    """

    needs = frozenset({"source_outputs", "target_features"})
    needs_source_head = True

    def __init__(
        self,
        alpha: Strength | None = None,
        beta: Strength = 0.0,
        temperature: float | None = None,
        variant: Literal["article", "tllib"] = "article",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.variant = _arguments.choice("variant", variant, VARIANTS)
        default_alpha, default_temperature = DEFAULT[variant]
        alpha = default_alpha if alpha is None else alpha
        super().__init__(alpha, beta, name=name, **kwargs)
        self.predictions = Predictions(
            default_temperature if temperature is None else temperature
        )
        # A list: Keras keeps tracking a layer whose attribute is deleted.
        self._heads = []

    @property
    def temperature(self) -> float:
        """The temperature that softens the predictions."""
        return self.predictions.temperature

    @property
    def source_head(self) -> SourceHead | None:
        """The `SourceHead` on the target's features; None until bound to a model."""
        return self._heads[0] if self._heads else None

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`."""
        super().check(networks)
        check_source_head(networks, "lwf")

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; copies the source's classifier."""
        super().bind(networks)
        self.predictions.bind(networks)
        self._heads.append(SourceHead(networks, trainable=self.variant == "article"))

    def batch_distance(self, batch: Batch) -> Tensor:
        """See `Regularizer.batch_distance`."""
        source = self.predictions.source_logits(batch)
        head: Any = self.source_head
        target = head(batch.target_features)
        return self.logit_distance(source, target) * batch.share

    def logit_distance(self, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        """`Omega`, the mean over the batch, before its weight.

        Args:
            source_logits, target_logits: `(B, classes of the source)`.

        Returns:
            float32 scalar.
        """
        source, target = (
            ops.log_softmax(ops.cast(v, "float32") / self.temperature, axis=-1)
            for v in (source_logits, target_logits)
        )
        crossed = -ops.sum(ops.exp(source) * target, axis=-1)
        if self.variant == "article":
            return mean(crossed)
        return mean(crossed + ops.sum(ops.exp(source) * source, axis=-1))

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        own = {"temperature": self.temperature, "variant": self.variant}
        return {**super().get_config(), **own}
