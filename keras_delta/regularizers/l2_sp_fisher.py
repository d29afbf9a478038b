"""L2-SP-Fisher: important parameters stay nearer to their starting values."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_delta import _arguments
from keras_delta._compat import array
from keras_delta._errors import invalid
from keras_delta._inputs.samples import regrouped
from keras_delta._network.networks import Networks
from keras_delta._types import ArrayLike, Strength, Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.features import check_features
from keras_delta.regularizers.predictions import Predictions


@keras.saving.register_keras_serializable("keras_delta")
class L2SPFisher(Regularizer):
    """L2-SP with the Fisher information as weights: elastic weight consolidation.

    `Omega = 1/2 sum_k F_k (w_k - w*_k)^2` over the trainable parameters that source and
    target share, with the diagonal of the Fisher information at the start,

        F_k = mean_x E_y (d log p(y | x) / d w_k)^2,

    `y` drawn once per image from the network's predictions. The papers use images of
    the source's task; `fit` uses training images and the target at the start, whose
    head has to be fitted first, as recipes do. `set_fisher` accepts values measured
    elsewhere.

    Args:
        alpha: strength, default 0.01.
        beta: strength of the head penalty, default 0.01.
        samples: training images that F is measured on, one by one; default 256.
        normalize: whether F is divided by its mean over the parameters that train when
            it is measured, so that alpha is on the scale of L2-SP and one alpha suits
            all networks. Default True; the papers do not.
        name: optional name.

    Raises:
        ValueError: if the target does not predict classes.

    Source: Li, Grandvalet & Davoine, "Explicit inductive bias for transfer learning",
    ICML 2018 (L2-SP-Fisher); Kirkpatrick et al., "Overcoming catastrophic forgetting in
    neural networks", PNAS 2017.
    """

    needs_classes = True

    def __init__(
        self,
        alpha: Strength = 0.01,
        beta: Strength = 0.01,
        samples: int | None = 256,
        normalize: bool = True,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)
        self.samples = _arguments.integer("samples", samples, optional=True)
        self.normalize = _arguments.flag("normalize", normalize)
        # Not a plain list: Keras would take the target's variables for ours.
        self._bound, self._fisher = SimpleNamespace(pairs=[]), []

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; the target must predict classes."""
        super().check(networks)
        check_features(networks, "target", "l2_sp_fisher")
        if not all(
            isinstance(v, keras.Variable) for v, _ in networks.pairing.variables
        ):
            expected = "a target without LoRA, which freezes the kernels"
            raise ValueError(invalid("target", expected, networks.target.model.name))

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; makes a variable for each parameter's information."""
        super().bind(networks)
        # Frozen ones too: layers may be frozen or thawed until a file is loaded.
        self._bound.pairs.extend(self.pairing.parameters)
        for i, (variable, _) in enumerate(self._bound.pairs):
            fisher = self.add_weight(
                name=f"fisher_{i}",
                shape=variable.shape,
                initializer="zeros",
                trainable=False,
            )
            self._fisher.append(fisher)

    @property
    def ready(self) -> bool:
        """Whether the information is known."""
        return any(array(f).any() for f in self._fisher)

    @property
    def fisher(self) -> dict[str, np.ndarray]:
        """Dict path of a variable of the target -> its information, an array."""
        return {v.path: array(f) for (v, _), f in self._with_fisher()}

    def set_fisher(self, fisher: Mapping[str, ArrayLike]) -> None:
        """Use information that was measured before, unchanged.

        Args:
            fisher: dict path of a variable of the target -> array, with the keys of
                the attribute `fisher`.
        """
        if not self.bound:
            raise ValueError(
                "No model uses this regularizer yet, so its parameters are unknown. "
                "Pass it to a DeltaModel first."
            )
        paths = [v.path for v, _ in self._bound.pairs]
        if set(fisher) != set(paths):
            raise ValueError(invalid("fisher", f"arrays for {paths}", list(fisher)))
        for (v, _), variable in self._with_fisher():
            variable.assign(fisher[v.path])

    def _with_fisher(self):
        return zip(self._bound.pairs, self._fisher, strict=True)

    def prepare(self, model: keras.Model, samples: Any, verbose: bool = True) -> None:
        """Measure the information on training images."""
        variables = [v for v, _ in self._bound.pairs]
        totals, count = measure(model.networks, variables, samples, self.samples)
        found = [total / count for total in totals]
        penalised = {id(v) for v, _ in self.pairing.variables}
        if not penalised:  # all are frozen, and thawed later
            penalised = set(map(id, variables))
        those = [f for v, f in zip(variables, found, strict=True) if id(v) in penalised]
        mean = sum(f.sum() for f in those) / sum(f.size for f in those)
        if not np.isfinite(mean) or mean == 0:
            raise ValueError(
                f"The Fisher information is {'zero' if mean == 0 else 'not finite'} on "
                f"all {count} images looked at, so it cannot serve as weights. Is "
                "the head fitted, and are the images in the form the network expects?"
            )
        for variable, values in zip(self._fisher, found, strict=True):
            variable.assign(values / mean if self.normalize else values)

    def weight_distance(self) -> Tensor:
        """`1/2 sum F (w - w*)^2`, over the currently trainable parameters."""
        trained = {id(v) for v, _ in self.pairing.variables}
        total = ops.zeros((), "float32")
        for (v, start), fisher in self._with_fisher():
            if id(v) not in trained:
                continue
            moved = ops.cast(v, "float32") - ops.cast(start, "float32")
            total = total + 0.5 * ops.sum(fisher * ops.square(moved))
        return total

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        own = {"samples": self.samples, "normalize": self.normalize}
        return {**super().get_config(), **own}


def measure(networks, variables, samples, most):
    """Sums of squared gradients of the log-likelihood, and the number of images.

    Args:
        networks: the `Networks`; the target is run in inference mode.
        variables: of the target.
        samples: see `Regularizer.prepare`.
        most: number of images at most.

    Returns:
        `(list of float64 arrays, int)`.
    """
    predictions = Predictions(1.0)
    predictions.bind(networks)

    @tf.function(reduce_retracing=True)
    def squares(x, seed):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            values = [v.value for v in variables]
            tape.watch(values)
            outputs, _ = networks.run_target(x, training=False)
            logits = predictions.as_logits("target", outputs)
            sound = tf.where(tf.math.is_finite(logits), logits, 0.0)
            drawn = tf.random.stateless_categorical(sound, 1, seed)
            log_shares = tf.nn.log_softmax(logits)
            likelihood = tf.gather(log_shares, drawn, batch_dims=1)
        zero = tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(likelihood, values, unconnected_gradients=zero)
        return [tf.square(g) for g in gradients]

    totals = [np.zeros(v.shape) for v in variables]
    count = 0
    for x, _ in regrouped(samples.batches(most), 1):
        found = squares(x, tf.constant([0, count]))
        totals = [t + s.numpy() for t, s in zip(totals, found, strict=True)]
        count += 1
    return totals, count
