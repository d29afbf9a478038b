"""Class labels: are they what the head and the loss expect, and what is chance."""

import keras
import numpy as np

SPARSE = ("SparseCategoricalCrossentropy", "sparse_categorical_crossentropy")
DENSE = ("CategoricalCrossentropy", "categorical_crossentropy")


def loss_name(loss):
    """Class name or function name of a loss; the string itself for a string."""
    if isinstance(loss, keras.losses.Loss):
        return type(loss).__name__
    return loss if isinstance(loss, str) else getattr(loss, "__name__", None)


def check(y, classes, loss, complete=False):
    """Refuse labels that a classifier cannot be trained on.

    Args:
        y: labels, `(B,)` or `(B, 1)` integers for a sparse loss.
        classes: width of the head's output.
        loss: the compiled loss; only categorical cross-entropies are checked.
        complete: whether `y` is all of the training data, so that a single class
            is an error and not an accident of the batch.

    Raises:
        ValueError: for labels outside `0..classes-1`, of another form than the loss
            takes, or one class only.
    """
    y = np.asarray(y)
    if loss_name(loss) in DENSE and y.shape[-1:] != (classes,):
        raise ValueError(
            f"The loss {loss_name(loss)} needs one-hot labels (batch, {classes}), but "
            f"the labels have the shape {y.shape}. Use SparseCategoricalCrossentropy "
            f"for integer labels, or `keras.utils.to_categorical(y, {classes})`."
        )
    if loss_name(loss) not in SPARSE:
        return
    if y.ndim > 1 and y.shape[-1] == classes > 1:
        raise ValueError(
            f"The loss {loss_name(loss)} needs integer labels, but these look one-hot: "
            f"their shape is {y.shape}. Use CategoricalCrossentropy, or "
            "`y.argmax(axis=-1)`."
        )
    if y.dtype.kind not in "iub" and not (y.dtype.kind == "f" and (y == y // 1).all()):
        raise ValueError(
            f"Labels must be integers from 0 to {classes - 1}. Received: an array of "
            f"{y.dtype} such as {y.ravel()[:3].tolist()}. Number the classes, e.g. "
            "with `np.unique(y, return_inverse=True)`."
        )
    ignored = getattr(loss, "ignore_class", None)
    y = y[y != ignored] if ignored is not None else y
    if y.size == 0:
        return
    low, high = y.min(), y.max()
    if low < 0 or high >= classes:
        raise ValueError(
            f"The labels run from {low} to {high}, but the head has {classes} "
            f"classes, 0 to {classes - 1}. Check the label encoding"
            + (
                f", or give the target a head with `attach_head(source, "
                f"classes={int(high) + 1})`."
                if low >= 0
                else ": classes count from 0."
            )
        )
    if complete and low == high:
        raise ValueError(
            f"All {y.size} training samples have the label {low}: one class only "
            "gives a classifier nothing to tell apart. Pass data of two classes or "
            "more."
        )


def chance(y, loss):
    """Loss of the best constant prediction for a cross-entropy; None for others."""
    y = np.asarray(y)
    if loss_name(loss) in SPARSE:
        p = np.bincount(y.astype(int).ravel()) / y.size
    elif loss_name(loss) in DENSE:
        p = y.reshape(-1, y.shape[-1]).mean(axis=0)
    else:
        return None
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
