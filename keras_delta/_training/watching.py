"""A closer look at a step: how strongly each part of the objective pulls, and where."""

import math

import tensorflow as tf
from keras import ops

NAMES = {"task": "task_loss", "feature": "feature_penalty", "head": "head_penalty"}


def values(parts):
    """The parts of the objective of this very step and the global batch.

    What `fit` logs under the same names are means over the epoch.
    """
    return {NAMES[k]: _whole(ops.cast(part, "float32")) for k, part in parts.items()}


def gradients(model, tape, parts, variables):
    """Norms of the gradients of the parts of the objective, and an angle.

    Args:
        model: the `DeltaModel`.
        tape: its persistent tape.
        parts: dict, `"task"`, `"feature"` and `"head"` -> this replica's share of it.
        variables: the variables that the step trains.

    Returns:
        Dict of float32 scalars, of the global batch: `gradient_norm/<part>` and
        `gradient_angle`, in degrees between the gradients of task and feature
        penalty; nan where one of the two is zero. Below 90 both pull the same way,
        above 90 against each other.
    """
    # As large as in the step itself, so that half precision does not lose them.
    scale = model.optimizer.scale_loss(ops.ones((), "float32"))
    # A value that TensorFlow cannot foresee. It would merge these gradients with the
    # step's own otherwise, add the parts in another order, and move a last bit.
    scale = tf.where(ops.convert_to_tensor(model.optimizer.iterations) < 0, 0.0, scale)
    found = {}
    for name, part in parts.items():
        upstream = ops.cast(scale, part.dtype)
        pulls = tape.gradient(part, variables, output_gradients=upstream)
        found[name] = [
            _whole(_dense(g, v) / scale) for g, v in zip(pulls, variables, strict=True)
        ]
    norms = {name: tf.linalg.global_norm(g) for name, g in found.items()}
    task, feature = found["task"], found["feature"]
    dots = [tf.reduce_sum(a * b) for a, b in zip(task, feature, strict=True)]
    both = norms["task"] * norms["feature"]
    cosine = tf.clip_by_value(tf.math.divide_no_nan(tf.add_n(dots), both), -1.0, 1.0)
    angle = tf.where(both > 0, tf.acos(cosine) * (180 / math.pi), math.nan)
    return {
        **{f"gradient_norm/{name}": norm for name, norm in norms.items()},
        "gradient_angle": angle,
    }


def penalties(regularizer, batch):
    """The penalty of each tap: dict `penalty/<tap>` -> scalar, of the global batch.

    Times alpha, as in `feature_penalty`, of which they are the parts.
    """
    parts = regularizer.tap_penalties(batch)
    return {f"penalty/{tap}": _whole(value) for tap, value in parts.items()}


def _dense(gradient, variable):
    if gradient is None:
        return tf.zeros(variable.shape, "float32")
    return tf.cast(tf.convert_to_tensor(gradient), "float32")


def _whole(share):
    """The sum over replicas."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return share
    return tf.distribute.get_replica_context().all_reduce("sum", share)
