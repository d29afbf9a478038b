"""`WeightAverage`: the mean of the weights over training, set at its end."""

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
    """Sets the target to the mean of its weights over training when `fit` ends.

    This is stochastic weight averaging (SWA) or an exponential moving average (EMA).
    Towards the end of training, the weights oscillate around a point that is better
    than any of them, above all with a small, constant learning rate. The mean is close
    to it and costs no more than a copy of the weights.

    Without `decay`, it is the equally weighted mean of the weights at the end of each
    of the last epochs (or after each of their steps). With `decay` d, it is the
    exponential moving average of the weights w_1 to w_n after each step,

        sum_i d^(n - i) w_i / sum_i d^(n - i),

    which has no bias towards the first ones, however short the training.

    Until `fit` ends, the model keeps its own weights, and each epoch's losses,
    validation and checkpoints refer to these. To evaluate the mean, call `evaluate`
    after `fit`. Each `fit` starts a new mean. If a callback or Ctrl-C stops training,
    the mean so far is used; before the first of the last epochs there is none, and the
    weights are unchanged.

    Keras has `use_ema=True` for optimizers and `SwapEMAWeights`. These average the
    trained weights but not the BatchNormalization statistics, which then belong to
    other weights. They start from the weights of the first step, which dominate for a
    long time, and cannot average the last epochs. Using both raises an error.

    Args:
        last: share of the epochs to average, from the end, rounded up. Default: 0.25,
            or 1 with `decay`. Epochs count from 0 to the `epochs` of `fit`, even if
            `initial_epoch` or a backup skips the first ones.
        decay: d above, between 0 and 1, such as 0.999; default: none.
        every: `"epoch"` or `"step"`: when weights are added to the mean. Default:
            `"epoch"`, or `"step"` with `decay`. With `steps_per_execution` above 1,
            only the last step of an execution is seen, and counts as one.
        statistics: moving statistics of BatchNormalization: `"average"` averages them
            like all weights; `"estimate"` calls `kd.batch_norm.estimate_statistics`
            on `data` when training ends, for trainable layers; `"keep"` keeps those of
            the last step.
        data: for `"estimate"`, images as `estimate_statistics` takes them.

    Attributes:
        count: number of weights in the mean of the last `fit`.

    Raises:
        TypeError, ValueError: if an argument is invalid or, at the start of `fit`, if
            the model is not a `DeltaModel`, its optimizer has `use_ema=True`, or
            `EarlyStopping(restore_best_weights=True)` sets the weights as well.

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
        """Reject another callback that sets the weights when training ends."""
        for other in callbacks:
            if getattr(other, "restore_best_weights", False):
                raise ValueError(
                    "EarlyStopping(restore_best_weights=True) gives the model the "
                    "weights of its best epoch when training ends, and WeightAverage "
                    "the mean. Omit one of them, or pass "
                    "`restore_best_weights=False`: the mean then covers the epochs "
                    "until training stopped."
                )

    def check(self, model: keras.Model) -> None:
        """Reject a model whose optimizer also averages the weights."""
        super().check(model)
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if getattr(optimizer, "use_ema", False):
            raise ValueError(
                "The optimizer also averages the weights (`use_ema=True`). Use only "
                "one of the two."
            )

    def on_train_begin(self, logs: Logs = None) -> None:
        """Start a new mean."""
        super().on_train_begin(logs)
        epochs = self.params["epochs"]
        length = max(1, math.ceil(self.last * epochs - ROUNDING))
        self.count, self._mean, self._first = 0, None, epochs - length
        if length == 1 and self.every == "epoch":
            warn(
                f"WeightAverage(last={self.last:g}) with {epochs} epochs averages only "
                "one epoch and changes nothing. Train longer, pass a larger `last`, "
                'or every="step".'
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Discard a mean that began earlier, in a backup with fewer `epochs`."""
        if epoch == self._first:
            self.count, self._mean = 0, None
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Add the weights to the mean if it is per step."""
        if self.every == "step" and self._epoch >= self._first:
            self._take_in()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Add the weights to the mean if it is per epoch."""
        if self.every == "epoch" and epoch >= self._first:
            self._take_in()

    def on_train_end(self, logs: Logs = None) -> None:
        """Set the model's weights to the mean."""
        if not self.count:
            return
        if not all(np.isfinite(v).all() for v in self._mean):
            warn(
                "The mean of the weights is not finite (NaN or infinite), so the "
                "weights are unchanged. Use TerminateOnNaN to find the cause."
            )
            return
        for v, value in zip(self._averaged(), self._mean, strict=True):
            v.assign(tf.cast(value, v.dtype))
        normalizers = batch_norm.layers(self.model)
        if self.statistics == "estimate" and any(v.trainable for v in normalizers):
            batch_norm.estimate_statistics(self.model, self.data, frozen=False)

    def after_fit(self, session: Session) -> None:
        """Release the mean."""
        self._mean = None

    def get_state(self) -> dict[str, Any]:
        """Return the current mean and how it is computed."""
        mean = None if self._mean is None else [v.numpy() for v in self._mean]
        return {"count": self.count, "mean": mean, "kind": self._kind}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Resume with a mean of the same kind; ignore any other."""
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
