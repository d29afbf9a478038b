"""Rejects objectives that cannot be optimized, before any training."""

import keras
from keras_tuner.errors import FatalValueError

from keras_delta import _compat
from keras_delta._errors import unknown_name
from keras_delta._inputs import outputs

# In names of metrics to be minimized.
ERRORS = ("loss", "error", "entropy", "divergence", "mae", "mse", "mape", "msle")


def check_direction(name, metrics):
    """Reject metric names whose direction Keras Tuner would guess wrong or not at all.

    It treats every unknown metric, F1 for example, as an error to minimize.
    """
    direction = _compat.infer_metric_direction(name)
    is_error = any(word in name for word in ERRORS)
    if direction == "max" or (direction == "min" and is_error):
        return
    names = _names(metrics, lambda make: make().name)
    logged = ["val_loss", *(f"val_{metric}" for metric in names)]
    if name not in logged:
        raise ValueError(unknown_name("objective", name, logged))
    raise ValueError(
        f"The name `{name}` does not show whether a larger value is better. Pass "
        f'`objective=keras_tuner.Objective("{name}", "max")`, or "min".'
    )


def check_objective(objective, model, validation=None):
    """Reject, before training, an objective that will not be in the logs."""
    names = getattr(objective, "name_to_direction", None) or [objective.name]
    training = ["loss", "task_loss", "feature_penalty", "head_penalty"]
    known = metric_names(model)
    logged = {*training, *known}
    if validation is not None:
        logged |= {f"val_{name}" for name in known}
    for name in names:
        if name in logged or name == "default_objective":
            check_task(name, model)
            continue
        hint = ""
        if validation is None and name.startswith("val_"):
            hint = " There is no validation data: pass `validation_data`."
        raise FatalValueError(unknown_name("objective", name, sorted(logged)) + hint)


def metric_names(model):
    """Names that `evaluate` returns, for a compiled model that has seen no data yet."""
    # Keras knows the names only after the first batch, and always uses the name
    # "accuracy", whatever metric it stands for.
    heads, metrics = model.target.output_names, _compat.compiled_metrics(model) or []
    losses = [f"{name}_loss" for name in heads] if len(heads) > 1 else []
    return ["loss", *losses, *_names(metrics, _name_of)]


def check_task(name, model):
    """Reject an accuracy that does not match the task."""
    metrics, graph = _compat.compiled_metrics(model), model.networks.target
    wrong = outputs.wrong_accuracies(metrics, model.loss, graph)
    if text := wrong.get(name.removeprefix("val_")):
        raise FatalValueError(
            f"`objective={name!r}` does not fit the task. {text} Pass it as `metrics` "
            'and its name as `objective`, such as "val_binary_accuracy" or "val_mae"; '
            'or `objective="val_loss"`.'
        )


def _names(metrics, name_of):
    """Names of metrics in the logs, of a list or of a dict by outputs."""
    if isinstance(metrics, dict):
        names = {key: _names(some, name_of) for key, some in metrics.items()}
        return [f"{key}_{name}" for key, some in names.items() for name in some]
    metrics = keras.tree.flatten(metrics)
    return [m if isinstance(m, str) else name_of(m) for m in metrics]


def _name_of(metric):
    return getattr(metric, "name", None) or metric.__name__
