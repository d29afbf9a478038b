"""`TerminateOnNaN`: stops when the loss is not finite, and reports likely causes."""

import math

import keras
import numpy as np

from keras_delta._arguments import flag
from keras_delta._types import Logs
from keras_delta.regularizers import members, with_attention
from keras_delta.regularizers.maps import MapRegularizer

PEAKED = 0.5  # of the channels, that the weights are spread over
PARTS = ("task_loss", "feature_penalty", "head_penalty")


class LossNotFinite(RuntimeError):
    """Raised when the loss has become NaN or infinite."""


class TerminateOnNaN(keras.callbacks.TerminateOnNaN):
    """Stops training when the loss is not finite, and reports the likely causes.

    Keras's own callback only says that the loss is invalid. With a `DeltaModel`, this
    one says which part of the loss is not finite and checks the usual causes: an alpha
    that is too large for the variant, attention on few channels (the largest `C W_j`
    multiplies the step), the learning rate.

    Args:
        raise_error: whether to raise `LossNotFinite` instead of stopping, so that
            callbacks do not clean up (a backup is kept). Default False.
    """

    def __init__(self, raise_error: bool = False) -> None:
        super().__init__(flag("raise_error", raise_error))

    def on_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Stop if the loss is NaN or infinite.

        Raises:
            LossNotFinite: a RuntimeError, if `raise_error=True`, instead of stopping.
        """
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(float(np.asarray(loss))):
            return
        message = explanation(self.model, batch, logs)
        if self.raise_error:
            raise LossNotFinite(message)
        self.model.stop_training = True
        print("\n" + message, flush=True)


def explanation(model, batch, logs):
    """The message for a loss that is not finite.

    Args:
        model: the model in training.
        batch: number of the batch, from 0.
        logs: its logs.
    """
    parts = {k: float(np.asarray(logs[k])) for k in PARTS if k in logs}
    shown = ", ".join(f"{name} {value:g}" for name, value in parts.items())
    lines = [
        f"Batch {batch + 1}: the loss is {float(np.asarray(logs['loss'])):g}"
        f"{f' ({shown})' if shown else ''}.",
        "Training stops. Likely causes:",
    ]
    causes = [
        cause
        for regularizer in members(getattr(model, "regularizer", None))
        for cause in _causes(regularizer)
    ]
    rate = float(np.asarray(getattr(model.optimizer, "learning_rate", np.nan)))
    causes.append(f"The learning rate, now {rate:g}, is too large.")
    causes.append("The images contain NaN or are not in the range the model expects.")
    return "\n".join([*lines, *(f"- {cause}" for cause in causes)])


def _causes(regularizer):
    variant = regularizer.variant if isinstance(regularizer, MapRegularizer) else None
    alpha = regularizer.alpha
    shown = "a schedule" if callable(alpha) else f"{alpha:g}"
    if variant == "relative":
        yield f"alpha is {shown}; the variant 'relative' is meant for 1 to 30."
    elif variant is not None:
        yield (
            f"The variant '{variant}' sums raw squares, so its alpha ({shown}) "
            "depends on network, resolution and batch size. Divide alpha by 100, or "
            "use variant='relative', which does not depend on them."
        )
    else:
        yield f"alpha of {type(regularizer).__name__} is {shown}."
    if with_attention(regularizer):
        for tap, weights in (regularizer.attention_weights() or {}).items():
            positive = weights[weights > 0].astype("float64")
            effective = math.exp(-(positive * np.log(positive)).sum())
            if effective < PEAKED * len(weights):
                yield (
                    f"The attention at '{tap}' covers only about {effective:.0f} of "
                    f"{len(weights)} channels, and the largest weight multiplies the "
                    "step. Use attention='uniform', or a higher `temperature` in "
                    "ChannelAttention.compute."
                )
