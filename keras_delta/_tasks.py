"""Tasks of a network, from one table of Keras's losses.

The table gives each loss's labels, the activation it expects of the head, and the task
it stands for.
"""

import re
from typing import Final, NamedTuple

import keras

MULTICLASS: Final = "multiclass"  # one of several classes: softmax
MULTILABEL: Final = "multilabel"  # any of several labels: a sigmoid each
BINARY: Final = "binary"  # one sigmoid, yes or no
REGRESSION: Final = "regression"  # numbers
DENSE = "dense"  # one of the others at each position
TASKS = (MULTICLASS, MULTILABEL, BINARY, REGRESSION)

# Forms of labels, by what their values may be.
INTEGERS = "integers"  # class numbers
SHARES = "shares"  # one-hot, or shares of the classes that sum to one
BITS = "bits"  # from 0 to 1, each by itself
SIGNS = "signs"  # -1 and 1, or 0 and 1
NUMBERS = "numbers"  # any
POSITIVE = "positive"  # 0 or more
ANY = "any"  # of another shape than the output: not looked at


class Loss(NamedTuple):
    """Properties of a Keras loss.

    Attributes:
        labels: form of the labels, see above.
        activation: activation at the end of the head if the loss takes probabilities;
            None if the loss takes any output.
        task: one of `TASKS`; None if the loss does not determine it.
    """

    labels: str
    activation: str | None
    task: str | None


_SHARES = Loss(SHARES, "softmax", MULTICLASS)
_BITS = Loss(BITS, "sigmoid", MULTILABEL)
_SIGNS = Loss(SIGNS, None, None)
_NUMBERS = Loss(NUMBERS, None, REGRESSION)
_POSITIVE = Loss(POSITIVE, None, REGRESSION)

LOSSES = {
    "SparseCategoricalCrossentropy": Loss(INTEGERS, "softmax", MULTICLASS),
    "CategoricalCrossentropy": _SHARES,
    "CategoricalFocalCrossentropy": _SHARES,
    "CategoricalGeneralizedCrossEntropy": Loss(INTEGERS, "softmax", MULTICLASS),
    "KLDivergence": _SHARES,
    "CategoricalHinge": Loss(SHARES, None, MULTICLASS),
    "BinaryCrossentropy": _BITS,
    "BinaryFocalCrossentropy": _BITS,
    "Dice": _BITS,
    "Tversky": _BITS,
    "Hinge": _SIGNS,
    "SquaredHinge": _SIGNS,
    "MeanSquaredError": _NUMBERS,
    "MeanAbsoluteError": _NUMBERS,
    "MeanAbsolutePercentageError": _NUMBERS,
    "MeanSquaredLogarithmicError": _POSITIVE,
    "Huber": _NUMBERS,
    "LogCosh": _NUMBERS,
    "Poisson": _POSITIVE,
    "CosineSimilarity": Loss(NUMBERS, None, None),
    "Circle": Loss(ANY, None, None),
    "CTC": Loss(ANY, None, None),
}
# "KLDivergence" -> "kl_divergence": Keras has each as a class and as a function.
_FUNCTIONS = {
    re.sub("(?<!^)(?=[A-Z][a-z])", "_", name).lower(): name for name in LOSSES
}


def loss_name(loss):
    """Class name or function name of a loss; the string itself for a string."""
    if isinstance(loss, keras.losses.Loss):
        return type(loss).__name__
    return loss if isinstance(loss, str) else getattr(loss, "__name__", None)


def class_name(loss):
    """Name of Keras's class for a loss from Keras; else None."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return None
    kind = type(loss) if isinstance(loss, keras.losses.Loss) else loss
    name = getattr(kind, "__name__", None)
    if not str(getattr(kind, "__module__", "")).startswith("keras."):
        return None
    return name if name in LOSSES else _FUNCTIONS.get(name)


def of_loss(loss):
    """The `Loss` of one of Keras's losses; None for others."""
    return LOSSES.get(class_name(loss))


def of_output(loss, shape, activation):
    """The task of one output, or None if it cannot be determined.

    Args:
        loss: a Keras loss (an instance, a name or a function), or None.
        shape: of the output, with the batch.
        activation: of the output as `heads.output_activation` returns it, or None.
    """
    known = of_loss(loss)
    if len(shape) > 2:
        return DENSE
    task = known.task if known else None
    if known is None and loss is None:
        task = {"softmax": MULTICLASS, "sigmoid": MULTILABEL}.get(activation)
    elif task in (MULTILABEL, REGRESSION) and activation == "softmax":
        task = MULTICLASS  # cross-entropy or Brier score of each class by itself
    elif task == REGRESSION and activation == "sigmoid":
        task = None  # a number from 0 to 1, or a probability
    return BINARY if task == MULTILABEL and shape[-1] == 1 else task
