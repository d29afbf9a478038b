"""Checks that Keras can use the weights of samples and of classes."""

import numbers

import numpy as np
from keras import tree

from keras_delta import _tasks
from keras_delta._errors import invalid, warn

ARGUMENT = "class_weight"


def each(weights, losses, names):
    """Sample weights as a list, one an output.

    Args:
        weights: as `fit` takes them: one array for all outputs, or a structure.
        losses, names: of the outputs.
    """
    if not tree.is_nested(weights):
        return [weights] * len(losses)
    needed = [n for n, loss in zip(names, losses, strict=True) if loss is not None]
    if isinstance(weights, dict) and set(needed) <= set(weights):
        return [weights.get(name) for name in names]
    if not isinstance(weights, dict) and len(weights) == len(losses):
        return list(weights)
    received = (
        f"those of {sorted(weights)}"
        if isinstance(weights, dict)
        else f"{len(weights)} of them"
    )
    raise ValueError(
        "`sample_weight` must be one array, or one per output, in the same structure "
        f"as the labels. The outputs with a loss are {needed}. Received: {received}."
    )


def check_samples(weights, shape, loss, output=None):
    """Refuse weights that would count for other samples, or make the loss NaN.

    Args:
        weights: array of some samples' weights.
        shape: of the output, with the batch.
        loss: the loss of the output.
        output: name of the output, where there are several.
    """
    where = f" of the output '{output}'" if output else ""
    if weights.dtype.kind not in "iubf":
        raise ValueError(
            f"Sample weights{where} must be numbers. Received: an array of "
            f"{weights.dtype} such as {weights.ravel()[:3].tolist()}."
        )
    if not np.isfinite(weights).all():
        count = int((~np.isfinite(weights)).sum())
        raise ValueError(
            f"{count} of {weights.size} sample weights{where} are not finite, which "
            "makes the loss NaN. Give samples that should not count the weight 0."
        )
    known = _tasks.of_loss(loss)
    if known is not None and known.labels != _tasks.ANY:
        _check_shape(weights, tuple(shape[:-1]), where)
    if weights.dtype.kind != "b" and weights.size and weights.min() < 0:
        warn(
            f"Some sample weights{where} are negative, the least {weights.min():g}: "
            "training makes the loss of these samples larger."
        )


def _check_shape(weights, wanted, where):
    """One weight a loss; others Keras would broadcast over other samples."""
    shape = weights.shape
    if len(shape) == len(wanted) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    pairs = zip(shape[1:], wanted[1:], strict=False)
    if len(shape) == len(wanted) and all(a in (1, b) or b is None for a, b in pairs):
        return
    sizes = ", ".join(["batch", *map(str, wanted[1:])])
    one = "position" if len(wanted) > 1 else "sample"
    remedy = ""
    if len(shape) == 1:
        added = ", None" * (len(wanted) - 1)
        remedy = f" One weight per sample: `sample_weight[:{added}]`."
    raise ValueError(
        f"`sample_weight`{where} needs one weight per {one}, ({sizes}"
        f"{',' * (len(wanted) == 1)}), but has the shape {weights.shape}.{remedy}"
    )


def of_classes(given, y, losses, shapes, activations, streamed):
    """`class_weight` with a weight for every class: those that are left out count 1.

    Keras goes by the class of a label, and for a `tf.data.Dataset` by a list that ends
    with the last class named.

    Args:
        given: as `fit` takes it.
        y: labels of some samples; None where they are not known.
        losses, shapes, activations: of the outputs.
        streamed: whether the data are a `tf.data.Dataset`.

    Raises:
        ValueError: for keys that are no classes, weights that are not finite or
            negative, and tasks without classes.
    """
    if not isinstance(given, dict) or not given:
        expected = "a dict from the numbers of classes to weights, such as {0: 1.0}"
        raise ValueError(invalid(ARGUMENT, expected, given))
    for key, value in given.items():
        is_number = isinstance(value, numbers.Real) and 0 <= value < np.inf
        if not isinstance(key, numbers.Integral) or not is_number:
            expected = "numbers of classes as keys, and finite weights of 0 or more"
            raise ValueError(invalid(ARGUMENT, expected, given))
    if len(losses) > 1:
        remedy = "Use `sample_weight`, in a structure as that of the labels."
        raise ValueError(invalid(ARGUMENT, "a model of one output", given, remedy))
    (loss,), (shape,), (activation,) = losses, shapes, activations
    task = _tasks.of_output(loss, (None, shape[-1]), activation)
    # Keras takes the last axis for the classes, unless there is one of size 1.
    positions = len(shape) > 2 and y is not None
    flat = positions and (not streamed or np.ndim(y) < len(shape))
    if flat or task in (_tasks.MULTILABEL, _tasks.REGRESSION):
        remedy = "Use `sample_weight`, of the shape "
        remedy += "of the labels." if flat else "(samples,)."
        what = "one class a sample" if flat else f"labels of one class, not {task}"
        raise ValueError(invalid(ARGUMENT, what, given, remedy))
    if task is None:
        return given
    classes = max(shape[-1], 2)
    if wrong := sorted(key for key in given if not 0 <= key < classes):
        expected = f"classes from 0 to {classes - 1} as keys"
        remedy = f"No label is {wrong[0]}: such weights would never count."
        raise ValueError(invalid(ARGUMENT, expected, given, remedy))
    return {i: float(given.get(i, 1.0)) for i in range(classes)}
