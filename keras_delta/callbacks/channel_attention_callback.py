"""`ChannelAttentionCallback`: channel attention of the target during training."""

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_delta._arguments import choice, folder, integer
from keras_delta._errors import invalid, unknown_name, warn
from keras_delta._inputs import replay, samples
from keras_delta._network import memory
from keras_delta._types import Data, Logs, PathLike, Verbose
from keras_delta.attention import ChannelAttention, compute, normalize
from keras_delta.callbacks.base import Callback
from keras_delta.regularizers import with_attention

# Arguments of `ChannelAttention.compute` that are not passed on.
OWN = ("cls", "model", "data", "progress", "checkpoint", "max_samples")
ADVICE = (
    'Pass `regularizer="delta"` or another that uses attention to `fit`, or '
    "`update=False` to the callback to watch only."
)


class ChannelAttentionCallback(Callback):
    """Recomputes the channel attention every few epochs, on the target as it trains.

    DELTA measures once, on the source, which channels matter. During training, other
    channels may become important. This callback measures again on the current target,
    passes the new weights to the regularizer, and logs how much they changed. The
    training step is not retraced.

    It runs at the end of epochs `every`, `2 * every`, ..., counted from 1, also in a
    resumed training. With `update=True`, it does not run after the last epoch or once
    `stop_training` is set, because no further step would use the weights. Epochs
    whose loss is not finite are skipped.

    Each epoch gets two logs per tap, nan if nothing was computed:

    - `attention_perplexity/<tap>`: `exp(-sum_j W_j log W_j)`, the number of channels
      over which the weights are spread, from 1 to C.
    - `attention_rank_change/<tap>`: 1 - Spearman's rank correlation of the weights
      before and after; 0 for the same order, 1 for an unrelated one, 2 for the
      reverse. "Before" refers to the weights that the (first) regularizer has used so
      far or, if none uses attention, to the previous computation. nan if there are
      none, or if all weights of a tap are equal and so have no order.

    Args:
        data: data as for `fit`, with labels: `(x, y)`, a `tf.data.Dataset`, a
            `PyDataset`. Preferably training data without augmentation.
        every: number of epochs between computations.
        update: whether the regularizer uses the new weights. False only watches:
            training is the same as without the callback.
        max_samples: number of samples, chosen at the start of `fit`, kept in memory
            and used each time, so that any change is due to the target; default 256,
            as for `attention="auto"`. None: all samples, read each time.
        log_dir: folder for `attention-0005.json` and so on, one file per
            computation, numbered by the epoch from 1; read them with
            `ChannelAttention.load`.
        verbose: 0 for silence, 1 for a line per computation, 2 for a progress bar as
            well; default `"auto"`: 0 if `fit` is silent, else 1.
        **kwargs: further arguments of `ChannelAttention.compute`, such as
            `normalization` and `temperature`; `taps` only with `update=False`.

    Attributes:
        history: list of `(epoch, ChannelAttention)` of the last `fit`; epochs from
            0, as in `History.epoch`.

    Raises:
        ValueError, TypeError: if an argument is invalid or, at the start of `fit`, if
            the data cannot be read again or has no labels, the model is not a
            `DeltaModel`, or `update=True` and no regularizer uses attention.
    """

    left_behind = (*Callback.left_behind, "_read")

    def __init__(
        self,
        data: Data,
        every: int = 1,
        update: bool = True,
        max_samples: int | None = 256,
        log_dir: PathLike | None = None,
        verbose: Verbose = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.data, self.update = data, update
        self.every = integer("every", every)
        self.max_samples = integer("max_samples", max_samples, optional=True)
        self.log_dir = folder("log_dir", log_dir, optional=True)
        self.verbose = choice("verbose", verbose, ("auto", 0, 1, 2))
        if isinstance(kwargs.get("taps"), str):
            kwargs["taps"] = [kwargs["taps"]]
        _check(kwargs, update)
        self.kwargs = kwargs
        self.history = []
        self._read = None

    def __deepcopy__(self, memo):
        # Keras Tuner copies callbacks for each trial, but data sets cannot be copied.
        new = copy.copy(self)
        new.history = []
        return new

    def check(self, model: keras.Model) -> None:
        """Reject weights for a regularizer that does not use them."""
        super().check(model)
        if self.update and not with_attention(model.regularizer):
            used = "no regularizer"
            if model.regularizer is not None:
                used = f"the regularizer {type(model.regularizer).__name__}"
            raise ValueError(
                "ChannelAttentionCallback(update=True) gives new weights to "
                f"regularizers that use attention, but the model has {used}. {ADVICE}"
            )

    def on_train_begin(self, logs: Logs = None) -> None:
        """Check the setup and choose the samples."""
        super().on_train_begin(logs)
        epochs = self.params.get("epochs", math.inf)
        if self.update and self.every >= epochs:
            warn(
                f"`every={self.every}`, but training ends after epoch {epochs}, so the "
                "channel attention is never recomputed. Pass a smaller "
                "`every`, or `update=False` to measure at the end too."
            )
        self.history = []
        if self.max_samples is None:
            with replay.unmoved(self.data):
                next(samples.batches(self.data), None)  # unreadable data fails now
            self._read = self.data
        else:
            self._read = replay.look(self.data, max_samples=self.max_samples)

    def get_state(self) -> dict[str, Any]:
        """Return what was computed."""
        return {"history": [[epoch, a.get_config()] for epoch, a in self.history]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what was computed."""
        self.history = [
            (epoch, ChannelAttention.from_config(config))
            for epoch, config in state["history"]
        ]

    def on_train_end(self, logs: Logs = None) -> None:
        """Release the samples."""
        self._read = None

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Compute if it is due, and log."""
        logs = {} if logs is None else logs
        # CSVLogger takes its columns from the first epoch.
        for tap in self.kwargs.get("taps") or self.model.taps:
            logs[f"attention_perplexity/{tap}"] = math.nan
            logs[f"attention_rank_change/{tap}"] = math.nan
        if not self._due(epoch, logs):
            return
        before, attention = self._weights_before(), self._compute()
        changes = {
            tap: rank_change(before[tap], weights) if tap in before else math.nan
            for tap, weights in attention.weights.items()
        }
        self.history.append((epoch, attention))
        if self.log_dir is not None and self.writes:
            attention.save(self.log_dir / f"attention-{epoch + 1:04d}.json")
        for tap, perplexity in attention.perplexity.items():
            logs[f"attention_perplexity/{tap}"] = perplexity
            logs[f"attention_rank_change/{tap}"] = changes[tap]
        if self._verbosity:
            print(_line(epoch, attention, changes), flush=True)

    def _compute(self):
        """The attention of the target as it is, given to the regularizers."""
        members = with_attention(self.model.regularizer) if self.update else []
        first = {"temperature": members[0].temperature} if members else {}
        attention = ChannelAttention.compute(
            self.model,
            self._read,
            max_samples=self.max_samples,
            progress=self._verbosity == 2,
            **{**first, **self.kwargs},
        )
        for member in members:
            if "temperature" in self.kwargs:
                member.set_attention_weights(attention)
            else:
                member.attention_weights.take_scores(attention)
            self.model.hosts.copy_first(member.variables)
        return attention

    def _due(self, epoch, logs):
        if (epoch + 1) % self.every or not math.isfinite(logs.get("loss", 0.0)):
            return False
        last = epoch + 1 >= self.params.get("epochs", math.inf)
        return not (self.update and (last or self.model.stop_training))

    @property
    def _verbosity(self):
        if self.verbose == "auto":
            return 0 if self.params.get("verbose") == 0 else 1
        return self.verbose

    def _weights_before(self):
        before = dict(self.history[-1][1].weights) if self.history else {}
        for regularizer in with_attention(self.model.regularizer)[:1]:
            before.update(regularizer.attention_weights())
        return before


def rank_change(before, after):
    """1 - Spearman's rank correlation of two vectors.

    Equal values share the mean of their ranks; the correlation is Pearson's on the
    ranks, so that ties are exact.

    Args:
        before, after: `(C,)`.

    Returns:
        Float from 0 (same order) to 2 (reverse order); nan if all values in one of
        the two are equal, so that there is no order to compare.
    """
    a, b = (_ranks(v) - (len(v) + 1) / 2 for v in (before, after))
    scale = math.sqrt((a @ a) * (b @ b))
    return math.nan if scale == 0 else float(1 - a @ b / scale)


def _ranks(values):
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _check(kwargs, update):
    known = inspect.signature(ChannelAttention.compute).parameters
    known = [name for name in known if name not in OWN]
    for name in kwargs:
        if name not in known:
            raise TypeError(unknown_name("kwargs", name, known))
    if update and kwargs.get("taps") is not None:
        remedy = "Omit it, or pass `update=False` to watch other layers."
        expected = "None with `update=True`, which weights the model's own taps"
        raise ValueError(invalid("taps", expected, kwargs["taps"], remedy))
    # Otherwise these would only be rejected after the first epochs.
    normalize.weights(
        [0.0, 1.0],
        kwargs.get("normalization", "standardized"),
        kwargs.get("temperature", 5.0),
    )
    early = ("method", "tolerance", "train_head")
    compute.check_arguments(**{k: v for k, v in kwargs.items() if k in early})
    memory.budget(kwargs.get("memory"))


def _line(epoch, attention, changes):
    taps = ", ".join(
        f"{tap} {value:.1f} of {len(attention.weights[tap])} "
        f"(rank change {changes[tap]:.2f})"
        for tap, value in attention.perplexity.items()
    )
    return (
        f"\nEpoch {epoch + 1}: channel attention of {attention.samples} samples, "
        f"effective channels: {taps}"
    )
