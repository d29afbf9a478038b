"""KD: the target's predictions follow those of a source with a head of its own."""

import keras

from keras_delta import _arguments
from keras_delta._network.heads import check_heads, output_activation
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.distances import as_logits, distillation_loss


@keras.saving.register_keras_serializable("keras_delta")
class KD(Regularizer):
    """Knowledge distillation: the source's softened predictions as further labels.

    The objective is `task_weight * task loss + kd_weight * Omega` with

        Omega = T^2 mean_b sum_k p_k log(p_k / q_k),
        p = softmax(source logits / T), q = softmax(target logits / T).

    `T^2` keeps the gradient's size as the temperature changes. The source has a head
    for the target's classes, in the same order; it may be another network altogether.
    Heads may end in a softmax or in logits, each as it is.

    Args:
        alpha: weight of Omega, default 0.9.
        beta: strength of `1/2 ||w||^2` on parameters that only the target has, default
            0.
        temperature: T; higher values show more of the unlikely classes. Default 4.
        task_weight: weight of the task loss, default 0.1.
        kd_weight: another name of `alpha`.
        name: optional name.

    Raises:
        ValueError: for a source without a head, or with another number of classes.

    Source: Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network",
    2015, arXiv 1503.02531; the weights 0.1 and 0.9 and T = 4 are those of
    github.com/HobbitLong/RepDistiller.
    """

    needs = frozenset({"source_outputs"})
    starts_at_source = False

    def __init__(
        self,
        alpha=0.9,
        beta=0.0,
        temperature=4.0,
        task_weight=0.1,
        kd_weight=None,
        name=None,
        **kwargs,
    ):
        alpha = alpha if kd_weight is None else kd_weight
        super().__init__(alpha, beta, name=name, **kwargs)
        self.temperature = _arguments.number("temperature", temperature, above=0)
        self.task_weight = _arguments.number("task_weight", task_weight)
        self._activations = {"source": "linear", "target": "linear"}

    def check(self, networks):
        """See `Regularizer.check`; both networks need a head for the same classes."""
        super().check(networks)
        check_heads(networks.target, networks.source)

    def bind(self, networks):
        """See `Regularizer.bind`; looks at what the two heads end in."""
        super().bind(networks)
        for name in self._activations:
            graph = getattr(networks, name)
            self._activations[name] = output_activation(graph)

    def batch_distance(self, batch):
        """See `Regularizer.batch_distance`."""
        source = as_logits(batch.source_outputs, self._activations["source"])
        target = as_logits(batch.target_outputs, self._activations["target"])
        return self.logit_distance(source, target) * batch.share

    def logit_distance(self, source_logits, target_logits):
        """`Omega`, the mean over the batch, before its weight.

        Args:
            source_logits, target_logits: `(B, classes)`.

        Returns:
            float32 scalar.
        """
        losses = distillation_loss(source_logits, target_logits, self.temperature)
        # Not a mean: a replica may get no sample of the last batch.
        count = keras.ops.cast(keras.ops.shape(losses)[0], "float32")
        return keras.ops.sum(losses) / keras.ops.maximum(count, 1.0)

    def get_config(self):
        """See `Regularizer.get_config`."""
        own = {"temperature": self.temperature, "task_weight": self.task_weight}
        return {**super().get_config(), **own}
