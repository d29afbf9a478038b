"""`StrengthScheduler`: alpha and beta that change during training."""

import contextlib
import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import keras

from keras_delta import regularizers
from keras_delta._arguments import choice, number
from keras_delta._errors import invalid, unknown_name
from keras_delta._types import Logs, Strength
from keras_delta.callbacks.base import Callback

NAMES = ("alpha", "beta")


class StrengthScheduler(Callback):
    """Sets the regularizer's alpha and beta per epoch or per step.

    Like `keras.callbacks.LearningRateScheduler`, but for the strengths. A schedule is

    - a number, for a constant;
    - a callable `f(index) -> number`;
    - a schedule from `keras.optimizers.schedules`, such as
      `PolynomialDecay(5.0, 9, 1.0)`.

    The index counts epochs or steps from 0, also in a resumed training. The strengths
    are variables, so nothing is retraced; when training ends they keep their last
    values, which are saved with the model. With `steps_per_execution` above 1, they
    are set before each execution and stay the same for all of its steps.

    Each epoch logs `alpha` and `beta` as they are at its end. For a sum of
    regularizers, a schedule applies to every member; a dict of member names to
    schedules sets only those. Members are named as in `kd.regularizers.ALL`, the
    second of a kind `l2_sp_1` and so on. The logs of a sum are `alpha/<member>` and
    `beta/<member>`.

    Args:
        alpha: schedule of alpha, or dict member -> schedule; None: unchanged.
        beta: the same for beta.
        by: `"epoch"`, set as an epoch begins, or `"step"`, before each step.
        verbose: 1 for a line per epoch, default 0.

    Raises:
        TypeError, ValueError: if an argument is invalid; at the start of `fit`, if the
            model has no regularizer, a member is unknown, a strength already is a
            schedule, or beta is given but there is no head; during `fit`, if a
            schedule returns anything but a non-negative finite number.
    """

    def __init__(
        self,
        alpha: Strength | Mapping[str, Strength] | None = None,
        beta: Strength | Mapping[str, Strength] | None = None,
        by: Literal["epoch", "step"] = "epoch",
        verbose: int = 0,
    ) -> None:
        super().__init__()
        self.by = choice("by", by, ("epoch", "step"))
        self.verbose = choice("verbose", verbose, (0, 1))
        if alpha is None and beta is None:
            expected = "a schedule, unless `beta` is one"
            raise ValueError(invalid("alpha", expected, None))
        self.alpha, self.beta = _checked("alpha", alpha), _checked("beta", beta)

    def check(self, model: keras.Model) -> None:
        """Reject strengths that cannot be set."""
        super().check(model)
        regularizer = model.regularizer
        if regularizer is None:
            raise ValueError(
                "StrengthScheduler sets the strengths of a regularizer, but the model "
                'has none. Pass `regularizer="delta"` or another one to `fit`.'
            )
        for strength, label, member, _ in self._scheduled(regularizer):
            if callable(getattr(member, strength)):
                raise ValueError(
                    f"StrengthScheduler cannot set `{strength}` of the regularizer "
                    f"'{label}', because it already is a schedule. Give the "
                    f"regularizer a number, or omit `{strength}` from the callback."
                )
        if self.beta is not None and not model.pairing.new_layers:
            remedy = (
                "The target has no new head: every one of its layers has a "
                "counterpart in the source."
            )
            raise ValueError(invalid("beta", "None", self.beta, remedy))

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Set the strengths for this epoch."""
        if self.by == "epoch":
            self._set(epoch)
        if self.verbose:
            now = ", ".join(f"{k} {v:.6g}" for k, v in self._strengths().items())
            print(f"\nEpoch {epoch + 1}: {now}", flush=True)

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Set the strengths for this step."""
        if self.by == "step":
            self._set(int(self.model.optimizer.iterations.numpy()))

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Log the strengths."""
        if logs is not None:
            logs.update(self._strengths())

    def _set(self, index):
        for strength, _, member, schedule in self._scheduled(self.model.regularizer):
            setattr(member, strength, self._value(strength, schedule, index))

    def _value(self, strength, schedule, index):
        if not callable(schedule):
            return schedule
        value = schedule(index)
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)
        if not isinstance(value, float) or not 0 <= value < math.inf:
            name = getattr(schedule, "__name__", type(schedule).__name__)
            raise ValueError(
                f"The schedule {name} of `{strength}` must return non-negative finite "
                f"numbers. Received at {self.by} {index}: {value!r}."
            )
        return value

    def _scheduled(self, regularizer):
        """List of (strength, label, member, schedule)."""
        members, scheduled = name_members(regularizer), []
        for strength in NAMES:
            schedules = getattr(self, strength)
            if not isinstance(schedules, dict):
                schedules = (
                    {} if schedules is None else dict.fromkeys(members, schedules)
                )
            for label, schedule in schedules.items():
                if label not in members:
                    raise ValueError(unknown_name(strength, label, members))
                scheduled.append((strength, label, members[label], schedule))
        return scheduled

    def _strengths(self):
        """Dict of what is logged."""
        members, logs = name_members(self.model.regularizer), {}
        for strength in NAMES:
            for label, member in members.items():
                value = getattr(member, strength)
                if callable(value):
                    value = value(self.model.optimizer.iterations)
                name = f"{strength}/{label}" if self._is_sum else strength
                logs[name] = float(value)
        return logs

    @property
    def _is_sum(self):
        return isinstance(self.model.regularizer, regularizers.Sum)


def name_members(regularizer):
    """Dict name -> regularizer, for the members of a sum or a single regularizer.

    Names are those in `kd.regularizers.ALL`, or else the class name; the second of a
    kind is numbered, `l2_sp_1`.
    """
    names = {kind: name for name, kind in regularizers.ALL.items()}
    count, named = Counter(), {}
    for member in regularizers.members(regularizer):
        name = names.get(type(member), type(member).__name__)
        named[f"{name}_{count[name]}" if count[name] else name] = member
        count[name] += 1
    return named


def _checked(argument, schedule):
    """A schedule or a dict of them, its numbers as floats."""
    if isinstance(schedule, dict):
        if not schedule:
            raise ValueError(invalid(argument, "at least one member", schedule))
        return {k: _checked(f"{argument}[{k!r}]", v) for k, v in schedule.items()}
    if schedule is None or callable(schedule):
        return schedule
    also = "a callable or a Keras schedule, or a dict of these"
    return number(argument, schedule, also=also)
