"""`WeightAverage`: at the end of training, the mean of the weights on the way."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_delta import averaging, batch_norm
from keras_delta._arguments import choice, number
from keras_delta._errors import invalid, warn
from keras_delta._inputs import samples
from keras_delta._training.session import Session
from keras_delta._types import Data, Logs
from keras_delta.callbacks.base import Callback

LAST = 0.25
ROUNDING = 1e-6  # 0.1 * 30 is a little above 3


class WeightAverage(Callback):
    """When `fit` ends, gives the target the mean of its weights on the way (SWA, EMA).

    Weights at the end of a training go back and forth around a place that is better
    than each of them, with a small and constant learning rate above all. The mean is
    near it, and costs no more than a copy of the weights.

    Without `decay` it is the mean of the weights as the last epochs end (or of those
    after each of their steps), all alike. With `decay` d it is the exponential moving
    average of the weights w_1 to w_n after each step,

        sum_i d^(n - i) w_i / sum_i d^(n - i),

    that is without a bias towards the first ones, however short the training.

    Until `fit` ends the model has its own weights: losses, validation and checkpoints
    of the epochs are of these. To see what the mean is worth, call `evaluate` after
    `fit`. Each `fit` begins a new mean. Of a training that is stopped, by a callback or
    by Ctrl-C, it is the mean so far; before the first of the last epochs there is none,
    and the weights stay as they are.

    Keras has `use_ema=True` of optimizers and `SwapEMAWeights`. These average what the
    optimizer trains and not the statistics of BatchNormalization, which then belong to
    other weights; they begin at the weights of the first step, which count for most for
    long, and know no mean of the last epochs. Both together are refused.

    Args:
        last: share of the epochs that is averaged, those at the end, rounded up.
            Default: 0.25, and with `decay` 1. Epochs count from 0 to the `epochs` of
            `fit`, also where `initial_epoch` or a backup leaves the first ones out.
        decay: d above, between 0 and 1, as 0.999; default: none.
        every: `"epoch"` or `"step"`, after which weights are taken into the mean.
            Default: `"epoch"`, and with `decay` `"step"`. With `steps_per_execution`
            above 1 only the last step of an execution is seen, and counts as one.
        statistics: moving statistics of BatchNormalization: `"average"` as all weights;
            `"estimate"` by `kd.batch_norm.estimate_statistics` on `data` when training
            ends, for layers that train; `"keep"` those of the last step.
        data: for `"estimate"`, images as `estimate_statistics` takes them.

    Attributes:
        count: how many weights the mean of the last `fit` is of.

    Raises:
        TypeError, ValueError: for bad arguments here; at the start of `fit` for a model
            that is no `DeltaModel`, an optimizer with `use_ema=True`, and
            `EarlyStopping(restore_best_weights=True)`, which sets the weights, too.

    Source: Izmailov et al., "Averaging weights leads to wider optima and better
    generalization" (SWA), UAI 2018, arXiv:1803.05407.
    """

    left_behind = (*Callback.left_behind, "_mean")

    def __init__(
        self,
        last: float | None = None,
        decay: float | None = None,
        statistics: Literal["average", "estimate", "keep"] = "average",
        data: Data = None,
        every: Literal["epoch", "step"] | None = None,
    ) -> None:
        super().__init__()
        self.decay = number("decay", decay, above=0, below=1, optional=True)
        if last is None:
            last = LAST if decay is None else 1.0
        self.last = number("last", last, above=0, most=1)
        if every is None:
            every = "epoch" if decay is None else "step"
        self.every = choice("every", every, ("epoch", "step"))
        choices = ("average", "estimate", "keep")
        self.statistics = choice("statistics", statistics, choices)
        if (data is None) == (statistics == "estimate"):
            expected = 'images with statistics="estimate", else None'
            raise ValueError(invalid("data", expected, data))
        if data is not None:
            samples.check_inputs(data)
        self.data = data
        self._mean: Any = None
        self.count, self._first = 0, 0

    def arrange(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Refuse another callback that sets the weights when training ends."""
        for other in callbacks:
            if getattr(other, "restore_best_weights", False):
                raise ValueError(
                    "EarlyStopping(restore_best_weights=True) gives the model the "
                    "weights of its best epoch when training ends, and WeightAverage "
                    "the mean. Leave one of them out, or pass "
                    "`restore_best_weights=False`: the mean is then of the epochs "
                    "until it stopped."
                )

    def check(self, model: keras.Model) -> None:
        """Refuse a model whose optimizer averages the weights, too."""
        super().check(model)
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if getattr(optimizer, "use_ema", False):
            raise ValueError(
                "The optimizer averages the weights as well (`use_ema=True`). Leave "
                "one of both out."
            )

    def on_train_begin(self, logs: Logs = None) -> None:
        """Begin a new mean."""
        super().on_train_begin(logs)
        epochs = self.params["epochs"]
        length = max(1, math.ceil(self.last * epochs - ROUNDING))
        self.count, self._mean, self._first = 0, None, epochs - length
        if length == 1 and self.every == "epoch":
            warn(
                f"WeightAverage(last={self.last:g}) of {epochs} epochs is the mean of "
                "one epoch, and changes nothing. Train longer, pass a larger `last`, "
                'or every="step".'
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Forget a mean that began earlier, by a backup of fewer `epochs`."""
        if epoch == self._first:
            self.count, self._mean = 0, None
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Take the weights in, where steps count."""
        if self.every == "step" and self._epoch >= self._first:
            self._take_in()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Take the weights in, where epochs count."""
        if self.every == "epoch" and epoch >= self._first:
            self._take_in()

    def on_train_end(self, logs: Logs = None) -> None:
        """Give the model the mean."""
        if not self.count:
            return
        if not all(np.isfinite(v).all() for v in self._mean):
            warn(
                "The mean of the weights is not finite (NaN or infinite), and the "
                "weights stay as they are. TerminateOnNaN says what came to nothing."
            )
            return
        for v, value in zip(self._averaged(), self._mean, strict=True):
            v.assign(tf.cast(value, v.dtype))
        normalizers = batch_norm.layers(self.model)
        if self.statistics == "estimate" and any(v.trainable for v in normalizers):
            batch_norm.estimate_statistics(self.model, self.data, frozen=False)

    def after_fit(self, session: Session) -> None:
        """Let go of the mean."""
        self._mean = None

    def get_state(self) -> dict[str, Any]:
        """The mean as it is, and what it is the mean of."""
        mean = None if self._mean is None else [v.numpy() for v in self._mean]
        return {"count": self.count, "mean": mean, "kind": self._kind}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on with a mean of the same kind; one of another is left out."""
        if state["kind"] == self._kind:
            mean = state["mean"]
            self.count = state["count"]
            self._mean = None if mean is None else list(map(tf.constant, mean))

    @property
    def _kind(self):
        return [self._first, self.every, self.decay, self.statistics == "keep"]

    def _averaged(self):
        """The target's weights that are averaged."""
        left_out = set()
        if self.statistics == "keep":
            for layer in batch_norm.layers(self.model):
                left_out.update(map(id, layer.non_trainable_weights))
        weights = self.model.target.weights
        return [
            v for v in weights if averaging.is_averaged(v) and id(v) not in left_out
        ]

    def _take_in(self):
        self.count += 1
        share = 1 / self.count
        if self.decay is not None:
            share = (1 - self.decay) / -math.expm1(self.count * math.log(self.decay))
        now = [tf.convert_to_tensor(v.value) for v in self._averaged()]
        now = [v if v.dtype == tf.float64 else tf.cast(v, tf.float32) for v in now]
        if self._mean is None:
            self._mean = now
        else:
            pairs = zip(self._mean, now, strict=True)
            self._mean = [old + (new - old) * share for old, new in pairs]
