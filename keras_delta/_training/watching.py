"""A closer look at a step: size and direction of each part's gradient."""

import math
from typing import Any

import tensorflow as tf
from keras import ops

from keras_delta._arguments import integer

NAMES = {"task": "task_loss", "feature": "feature_penalty", "head": "head_penalty"}


class CloserLooks:
    """Which steps of a model are watched, and the values of the last one.

    Attributes:
        every: number of steps from one look to the next; None for none.
        last: dict of scalars, None before the first look.
    """

    def __init__(self):
        self.every = self.last = None


class Watching:
    """Mix-in for `DeltaModel`: a closer look at some steps."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.closer_looks = CloserLooks()

    @property
    def watch_every(self) -> int | None:
        """Number of steps from one closer look to the next; None for none."""
        return self.closer_looks.every

    @property
    def watched(self) -> dict[str, Any] | None:
        """The last closer look, see `watch`; None before the first."""
        return self.closer_looks.last

    def watch(self, every: int | None) -> None:
        """Take a closer look every `every` steps; `PenaltyLogger` calls this itself.

        The property `watched` then holds the last closer look: a dict of scalars of
        that step and the global batch, with `step` (the optimizer's iteration before
        it), `task_loss`, `feature_penalty`, `head_penalty`, their
        `gradient_norm/task`, `/feature` and `/head`, `gradient_angle` (degrees,
        between task and feature penalty) and `penalty/<tap>`. Weights and logs of the
        training are unaffected; a watched step runs four backward passes.

        Args:
            every: number of steps from one look to the next, counted from the
                optimizer's first; None to stop.
        """
        every = integer("every", every, optional=True)
        if every is not None and not self.hosts.is_single:
            raise ValueError(
                f"Steps cannot be watched under {self.hosts.name}. Watch a training "
                "on one host, or omit `PenaltyLogger`."
            )
        self.closer_looks.last = None
        if every != self.closer_looks.every:
            self.closer_looks.every, self.train_function = every, None


def look(model, tape, parts, variables):
    """The parts of the objective, the norms of their gradients, and an angle.

    Values are of this step and the global batch; `fit` logs means over the epoch under
    the same names.

    Args:
        model: the `DeltaModel`.
        tape: its persistent tape.
        parts: dict, `"task"`, `"feature"` and `"head"` -> this replica's share of it.
        variables: the variables that the step trains.

    Returns:
        Dict of float32 scalars: the three values, `gradient_norm/<part>` and
        `gradient_angle`, in degrees between the gradients of task and feature
        penalty; nan if one of the two is zero. Below 90 the two agree, above 90 they
        oppose each other.
    """
    values = {NAMES[k]: _sum(ops.cast(part, "float32")) for k, part in parts.items()}
    # Scaled as in the step itself, so that half precision does not lose them.
    scale = model.optimizer.scale_loss(ops.ones((), "float32"))
    # A value that TensorFlow cannot predict. Otherwise it would merge these gradients
    # with the step's, add the parts in another order, and change a last bit.
    scale = tf.where(ops.convert_to_tensor(model.optimizer.iterations) < 0, 0.0, scale)
    gradients = {}
    for name, part in parts.items():
        upstream = ops.cast(scale, part.dtype)
        pulls = tape.gradient(part, variables, output_gradients=upstream)
        gradients[name] = [
            _sum(_dense(g, v) / scale) for g, v in zip(pulls, variables, strict=True)
        ]
    norms = {name: tf.linalg.global_norm(g) for name, g in gradients.items()}
    task, feature = gradients["task"], gradients["feature"]
    dots = [tf.reduce_sum(a * b) for a, b in zip(task, feature, strict=True)]
    both = norms["task"] * norms["feature"]
    cosine = tf.clip_by_value(tf.math.divide_no_nan(tf.add_n(dots), both), -1.0, 1.0)
    angle = tf.where(both > 0, tf.acos(cosine) * (180 / math.pi), math.nan)
    return values | {
        **{f"gradient_norm/{name}": norm for name, norm in norms.items()},
        "gradient_angle": angle,
    }


def penalties(regularizer, batch):
    """The penalty of each tap: dict `penalty/<tap>` -> scalar, of the global batch.

    Times alpha; they are the parts of `feature_penalty`.
    """
    parts = regularizer.tap_penalties(batch)
    return {f"penalty/{tap}": _sum(value) for tap, value in parts.items()}


def _dense(gradient, variable):
    if gradient is None:
        return tf.zeros(variable.shape, "float32")
    return tf.cast(tf.convert_to_tensor(gradient), "float32")


def _sum(share):
    """The sum over replicas."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return share
    return tf.distribute.get_replica_context().all_reduce("sum", share)
