"""Checks of the arguments of a search space."""

import inspect
import math

import keras
import numpy as np

from keras_delta import _arguments, regularizers
from keras_delta._errors import invalid
from keras_delta.regularizers.maps import VARIANTS

SPACE = "a number, a list of numbers, or a range (low, high) with 0 < low < high"
FRESH = "a function that creates a new object each time"


def space(argument, given):
    """A search space: a float, a list of floats, or a pair (low, high)."""
    if getattr(given, "ndim", None) == 0:  # NumPy's numbers
        given = given.item()
    if not isinstance(given, (list, tuple, range, np.ndarray)):
        return _arguments.number(argument, given, also="a list or range of these")
    values = [_arguments.number(argument, value) for value in given]
    if isinstance(given, tuple):
        if len(values) != 2 or not 0 < values[0] < values[1]:
            raise ValueError(invalid(argument, SPACE, given))
        return tuple(values)
    return _different(argument, values)


def declare(hp, name, where):
    """The value of a hyperparameter that is searched in a `space`."""
    if isinstance(where, float):
        return where
    if isinstance(where, list):
        return hp.Choice(name, where, ordered=True)
    low, high = where
    middle = math.sqrt(low * high)
    return hp.Float(name, low, high, sampling="log", default=middle)


def temperatures(given):
    """List of positive floats; None for None."""
    if given is None:
        return None
    if isinstance(given, tuple):  # which is a range elsewhere
        raise ValueError(invalid("temperature", "None, or a list of numbers", given))
    values = given if isinstance(given, list) else np.ravel(given).tolist()
    values = [_arguments.number("temperature", v, above=0) for v in values]
    return _different("temperature", values)


def variants(given):
    """List of names in `VARIANTS`; None for None."""
    if given is None:
        return None
    names = [given] if isinstance(given, str) else list(given)
    names = [_arguments.choice("variant", name, VARIANTS) for name in names]
    return _different("variant", names)


def _different(argument, values):
    if not values or len(set(values)) < len(values):
        raise ValueError(invalid(argument, "one value or more, all different", values))
    return values


def named_taps(taps):
    """Dict name -> taps to search; with the single name "" if there is no search."""
    if not isinstance(taps, dict) or all(
        isinstance(v, str) and v != "auto" for v in taps.values()
    ):
        return {"": taps}
    if not all(isinstance(name, str) and name for name in taps):
        raise ValueError(invalid("taps", "a dict name -> taps", taps))
    return dict(taps)


def metric_factories(metrics):
    """Names and functions that return new metrics: a list, or a dict by output."""
    if isinstance(metrics, dict):
        return {name: metric_factories(some) for name, some in metrics.items()}
    metrics = [metrics] if isinstance(metrics, str) else list(metrics or ())
    for metric in metrics:
        makes = isinstance(metric, str) or callable(metric)
        if isinstance(metric, keras.metrics.Metric) or not makes:
            expected = "names, or functions that return new metrics"
            remedy = "Each model needs separate metrics: pass the class or a lambda."
            raise TypeError(invalid("metrics", expected, metric, remedy))
    return metrics


def factory(argument, given):
    """`given`, called with as many arguments as it accepts."""
    instances = (keras.Model, keras.optimizers.Optimizer)
    if isinstance(given, instances) or not callable(given):
        remedy = f"For example `{argument}=lambda ...: ...`."
        raise TypeError(invalid(argument, FRESH, given, remedy))
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(given).parameters.values()
    taken = [p for p in parameters if p.kind in kinds]
    most = 0 if argument == "source" else 1
    if sum(p.default is p.empty for p in taken) > most:
        expected = f"a function of {('no arguments', 'one argument')[most]}"
        raise TypeError(invalid(argument, expected, given))

    def make(*offered):
        return given(*offered[: len(taken)])

    make.takes_any = bool(taken)
    return make


def regularizer_factory(given):
    """The function that creates a regularizer from alpha, beta and more."""
    if isinstance(given, str):
        name = _arguments.choice("regularizer", given, regularizers.ALL)
        return regularizers.ALL[name]
    if isinstance(given, regularizers.Regularizer) or not callable(given):
        expected = "a name, a class, or a function (alpha, beta) -> Regularizer"
        remedy = (
            "For example `regularizer=lambda alpha, beta: "
            'kd.regularizers.Delta(alpha, beta, attention="uniform")`.'
        )
        raise TypeError(invalid("regularizer", expected, given, remedy))
    return given
