"""Co-Tuning: the source's classes as further labels of each target class."""

from typing import Any, Literal

import keras
import numpy as np
from keras import ops, tree

from keras_delta import _arguments
from keras_delta._compat import array
from keras_delta._network.networks import Networks
from keras_delta._types import ArrayLike, Strength, Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.batch import Batch
from keras_delta.regularizers.class_relations import VARIANTS, relate
from keras_delta.regularizers.features import (
    SourceHead,
    check_source_head,
    read_labels,
)
from keras_delta.regularizers.predictions import Predictions, mean


@keras.saving.register_keras_serializable("keras_delta")
class CoTuning(Regularizer):
    """Fine-tunes the source's classifier as well, on labels derived for it.

    A copy of the source's classifier is placed on the target's features, beside the new
    head, and both are trained. Its label for an image of the target class `y` is the
    distribution `R[y]` over the source's classes, estimated before training:

        Omega = -mean_b sum_k R[y_b, k] log q_k

    where `q` are the copy's probabilities. With the variant `"direct"`, `R[y]` is the
    mean of the source's probabilities for the training images of class `y`. With
    `"bayes"` it is `p(y_s | y)`, by Bayes' rule, from `p(y | y_s)`, which a calibrated
    logistic regression of the labels on the source's probabilities estimates.
    See `keras_delta.regularizers.class_relations`.

    Args:
        alpha: strength (the paper's lambda), default 2.3.
        beta: strength of the head penalty, default 0.
        variant: `"direct"` (tllib's) or `"bayes"` (the authors').
        samples: training images for R, None for all. They are the images that training
            sees, augmented if those are.
        calibration: factor of the source's logits in `"bayes"`; the default 0.8840457
            is the authors' for torchvision's ResNet-50, 1 leaves them unchanged.
        name: optional name.

    Raises:
        ValueError: if the source has no classifier, the features do not fit it, or
            a class has no training images.

    Source: You, Kou, Long & Wang, "Co-Tuning for transfer learning", NeurIPS 2020,
    Eq. 4; github.com/thuml/CoTuning and github.com/thuml/Transfer-Learning-Library.
    """

    needs = frozenset({"target_features"})
    prepare_needs = frozenset({"source_outputs"})
    needs_classes = needs_source_head = True

    def __init__(
        self,
        alpha: Strength = 2.3,
        beta: Strength = 0.0,
        variant: Literal["direct", "bayes"] = "direct",
        samples: int | None = None,
        calibration: float = 0.8840456604957581,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)
        self.variant = _arguments.choice("variant", variant, VARIANTS)
        self.samples = _arguments.integer("samples", samples, optional=True)
        self.calibration = _arguments.number("calibration", calibration, above=0)
        self._predictions = Predictions(1.0)
        # Lists: Keras keeps tracking a layer whose attribute is deleted.
        self._heads, self._relations = [], []

    @property
    def source_head(self) -> SourceHead | None:
        """The `SourceHead` on the target's features; None until bound to a model."""
        return self._heads[0] if self._heads else None

    @property
    def relations(self) -> np.ndarray | None:
        """R, `(classes, classes of the source)`; None before it is known."""
        return array(self._relations[0]) if self._relations and self.ready else None

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`."""
        super().check(networks)
        check_source_head(networks, "co_tuning")

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; copies the source's classifier."""
        super().bind(networks)
        self._predictions.bind(networks)
        self._heads.append(SourceHead(networks, trainable=True))
        (outputs,) = tree.flatten(networks.target.outputs)
        shape = outputs.shape[-1], self.source_head.dense.units
        relations = self.add_weight(
            name="relations", shape=shape, initializer="zeros", trainable=False
        )
        self._relations.append(relations)

    @property
    def ready(self) -> bool:
        """Whether R is known."""
        return bool(self._relations) and bool(array(self._relations[0]).any())

    def prepare(self, model: keras.Model, samples: Any, verbose: bool = True) -> None:
        """Estimate R from the training images and the source's predictions for them."""
        classes, logits, numbers = self._relations[0].shape[0], [], []
        for x, y in samples.batches(self.samples):
            predicted = model.networks.run_source_outputs(x)
            each = self._predictions.source_logits(Batch(source_outputs=predicted))
            shares, weights = map(
                ops.convert_to_numpy, read_labels(Batch(labels=y), classes)
            )
            kept = weights > 0
            logits.append(ops.convert_to_numpy(each)[kept])
            numbers.append(shares[kept].argmax(-1))
        found = np.concatenate(logits), np.concatenate(numbers)
        self.set_relations(relate(*found, classes, self.variant, self.calibration))

    def set_relations(self, relations: ArrayLike) -> None:
        """Use relations that were estimated before.

        Args:
            relations: `(classes, classes of the source)`, with rows that sum to 1.
        """
        if not self.bound:
            raise ValueError(
                "No model uses this regularizer yet, so its classes are unknown. Pass "
                "it to a DeltaModel first."
            )
        self._relations[0].assign(relations)

    def batch_distance(self, batch: Batch) -> Tensor:
        """See `Regularizer.batch_distance`."""
        relations = self._relations[0]
        shares, weights = read_labels(batch, relations.shape[0])
        head: Any = self.source_head
        logits = head(batch.target_features)
        return label_distance(relations, logits, shares, weights) * batch.share

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        own = ("variant", "samples", "calibration")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


def label_distance(relations, logits, shares, weights=1.0):
    """`-mean_b sum_k (shares R)_bk log softmax(logits)_bk`, a float32 scalar.

    Args:
        relations: R, `(classes, K)`.
        logits: `(B, K)`.
        shares: `(B, classes)`, the labels; one-hot for `R[y_b]`.
        weights: `(B,)`, of the images in the sum.
    """
    shares, relations = (
        ops.cast(ops.convert_to_tensor(v), "float32") for v in (shares, relations)
    )
    wanted = ops.matmul(shares, relations)
    log_shares = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    each = -ops.sum(wanted * log_shares, axis=-1)
    return mean(each * ops.cast(weights, "float32"))
