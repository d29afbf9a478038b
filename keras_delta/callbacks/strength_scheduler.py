"""`StrengthScheduler`: alpha and beta that change while the model trains."""

import math
from collections import Counter

from keras_delta import regularizers
from keras_delta._errors import invalid, unknown_name
from keras_delta.callbacks.base import DeltaCallback
from keras_delta.regularizers import Sum

NAMES = ("alpha", "beta")


class StrengthScheduler(DeltaCallback):
    """Sets the regularizer's alpha and beta by epoch or by step.

    As `keras.callbacks.LearningRateScheduler`, for the strengths. A schedule is

    - a number, for a constant;
    - a callable `f(index) -> number`;
    - a schedule of `keras.optimizers.schedules`: `PolynomialDecay(5.0, 9, 1.0)`
      goes straight from 5 at index 0 to 1 at index 9, `PolynomialDecay(0.0, 100,
      5.0)` is a warm-up, `CosineDecay(5.0, 100, alpha=0.2)` falls to 0.2 * 5.

    The index counts epochs, or steps, from 0. Both go on in a resumed training:
    the epoch is Keras's, the step the optimizer's iteration. The strengths are
    variables, so nothing is traced anew. They stay as last set when training ends,
    and are saved with the model; `fit(regularizer="delta")` with a name describes
    a regularizer with the default strengths, so leave it out in a later `fit`.

    A regularizer can also take a Keras schedule of the step itself,
    `Delta(alpha=schedule)`, without a callback. Its strength is computed in the
    step then, and this callback refuses to set it.

    Each epoch is logged with `alpha` and `beta` as they are at its end. Of a sum of
    regularizers, a schedule is set on every member; a dict from a member's name to
    a schedule sets those alone. Members are named as in
    `kd.regularizers.ALL`, the second of a kind `l2_sp_1` and so on. The logs of a
    sum are `alpha/<member>` and `beta/<member>`.

    With `by="step"` and the model's `steps_per_execution` above 1, the strengths
    are set before each execution and stay for all of its steps. Reading the
    iteration makes the host wait for the device once a step.

    Args:
        alpha: schedule of alpha, or dict member -> schedule; None leaves it alone.
        beta: the same for beta.
        by: `"epoch"`, set as an epoch begins, or `"step"`, before each step.
        verbose: 1 for a line an epoch, default 0.

    Raises:
        TypeError, ValueError: for bad arguments here; at the start of `fit` for a
            model without a regularizer, unknown members, a strength that is a
            schedule already, or a beta where there is no head; during `fit` for a
            schedule that gives something else than a non-negative finite number.

    Example:
        ```python
        fall = keras.optimizers.schedules.PolynomialDecay(5.0, 14, 1.0)
        scheduler = kd.callbacks.StrengthScheduler(alpha=fall)
        model.fit(train, epochs=15, regularizer="delta", callbacks=[scheduler])
        ```
    """

    def __init__(self, alpha=None, beta=None, by="epoch", verbose=0):
        super().__init__()
        if by not in ("epoch", "step"):
            raise ValueError(invalid("by", '"epoch" or "step"', by))
        if verbose not in (0, 1):
            raise ValueError(invalid("verbose", "0 or 1", verbose))
        if alpha is None and beta is None:
            expected = "a schedule, unless `beta` is one"
            raise ValueError(invalid("alpha", expected, None))
        self.alpha, self.beta = _checked("alpha", alpha), _checked("beta", beta)
        self.by, self.verbose = by, verbose

    def check(self, model):
        """Refuse strengths that cannot be set."""
        super().check(model)
        regularizer = model.regularizer
        if regularizer is None:
            raise ValueError(
                "StrengthScheduler sets the strengths of a regularizer, but the model "
                'has none. Pass `regularizer="delta"` or another to `fit`.'
            )
        for strength, label, member, _ in self._scheduled(regularizer):
            if callable(getattr(member, strength)):
                raise ValueError(
                    f"StrengthScheduler cannot set `{strength}` of the regularizer "
                    f"'{label}', because it is a schedule already. Give the "
                    f"regularizer a number, or leave `{strength}` out of the callback."
                )
        if self.beta is not None and not model.pairing.new_layers:
            remedy = (
                "The target has no head of its own: every layer of it has a "
                "counterpart in the source."
            )
            raise ValueError(invalid("beta", "None", self.beta, remedy))

    def on_epoch_begin(self, epoch, logs=None):
        """Set the strengths of this epoch."""
        if self.by == "epoch":
            self._set(epoch)
        if self.verbose:
            now = ", ".join(f"{k} {v:.6g}" for k, v in self._strengths().items())
            print(f"\nEpoch {epoch + 1}: {now}", flush=True)

    def on_train_batch_begin(self, batch, logs=None):
        """Set the strengths of this step."""
        if self.by == "step":
            self._set(int(self.model.optimizer.iterations.numpy()))

    def on_epoch_end(self, epoch, logs=None):
        """Log the strengths."""
        if logs is not None:
            logs.update(self._strengths())

    def _set(self, index):
        for strength, _, member, schedule in self._scheduled(self.model.regularizer):
            setattr(member, strength, self._value(strength, schedule, index))

    def _value(self, strength, schedule, index):
        if not callable(schedule):
            return schedule
        found = schedule(index)
        which = getattr(schedule, "__name__", type(schedule).__name__)
        which = f"The schedule {which} of `{strength}`"
        try:
            value = float(found)
        except (TypeError, ValueError):
            raise TypeError(
                f"{which} must give numbers. Received at {self.by} {index}: {found!r}."
            ) from None
        if not math.isfinite(value) or value < 0:
            raise ValueError(
                f"{which} must give non-negative finite numbers. Received at "
                f"{self.by} {index}: {value}."
            )
        return value

    def _scheduled(self, regularizer):
        """List of (strength, label, member, schedule)."""
        known = members(regularizer)
        found = []
        for strength in NAMES:
            given = getattr(self, strength)
            if given is None:
                continue
            schedules = given
            if not isinstance(given, dict):
                schedules = dict.fromkeys(known, given)
            for label, schedule in schedules.items():
                if label not in known:
                    raise ValueError(unknown_name(strength, label, known))
                found.append((strength, label, known[label], schedule))
        return found

    def _strengths(self):
        """Dict of what is logged."""
        regularizer, found = self.model.regularizer, {}
        for strength in NAMES:
            for label, member in members(regularizer).items():
                value = getattr(member, strength)
                if callable(value):
                    value = value(self.model.optimizer.iterations)
                several = isinstance(regularizer, Sum)
                found[f"{strength}/{label}" if several else strength] = float(value)
        return found


def members(regularizer):
    """Dict name -> regularizer, of the members of a sum or of the one itself.

    Names are those of `kd.regularizers.ALL`, or the class's where it is not there;
    the second of a kind is numbered, `l2_sp_1`.
    """
    names = {kind: name for name, kind in regularizers.ALL.items()}
    count, found = Counter(), {}
    for member in _flat(regularizer):
        name = names.get(type(member), type(member).__name__)
        found[f"{name}_{count[name]}" if count[name] else name] = member
        count[name] += 1
    return found


def _flat(regularizer):
    if isinstance(regularizer, Sum):
        return [found for m in regularizer.members for found in _flat(m)]
    return [regularizer]


def _checked(argument, given):
    """A schedule or a dict of them, its numbers as floats."""
    if isinstance(given, dict):
        if not given:
            raise ValueError(invalid(argument, "at least one member", given))
        return {k: _checked(f"{argument}[{k!r}]", v) for k, v in given.items()}
    if given is None or callable(given):
        return given
    try:
        if isinstance(given, (str, bytes, bool)):
            raise TypeError
        number = float(given)
    except (TypeError, ValueError):
        expected = "a number, a callable, a Keras schedule or a dict of these"
        raise TypeError(invalid(argument, expected, given)) from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(invalid(argument, "a non-negative finite number", given))
    return number
