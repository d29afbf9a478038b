"""Labels: are they what the loss needs of the output, and what is chance."""

import numpy as np

from keras_delta import _tasks
from keras_delta._tasks import (
    BITS,
    INTEGERS,
    NUMBERS,
    POSITIVE,
    SHARES,
    SIGNS,
    loss_name,
)

IGNORED = (255, -1)  # what data sets of masks call "no class"
SUM = 1e-3  # how far shares of classes may be from one


def check(y, shape, loss, complete=False, output=None):
    """Refuse labels that an output cannot be trained on.

    Args:
        y: labels of some samples.
        shape: of the output, with the batch; None where it may be anything.
        loss: the loss of the output; one that is not Keras's own is not known, so
            that its labels are only checked to be numbers.
        complete: whether `y` is all of the training data, so that a single class
            is an error and not an accident of the batch.
        output: name of the output, where there are several.

    Raises:
        ValueError: for labels of another form, shape or range than the loss takes,
            that are no numbers, or of one class only.
    """
    y = np.asarray(y)
    known = _tasks.of_loss(loss)
    form = known.labels if known else None
    labels = _Labels(y, tuple(shape), loss, output)
    if form == INTEGERS:
        labels.check_integers(complete)
        return
    labels.check_numbers()
    if form not in (SHARES, BITS, SIGNS, NUMBERS, POSITIVE):
        return
    labels.check_shape(form)
    if form == SHARES:
        labels.check_shares()
    elif form == BITS:
        labels.check_bits(complete)
    elif form == SIGNS:
        labels.check_signs()
    elif form == POSITIVE and y.size and y.min() < 0:
        labels.refuse(
            f"needs labels of 0 or more, but they begin at {y.min():g}. Use "
            "MeanSquaredError for numbers of any sign."
        )


class _Labels:
    """Labels `y` of one output, and the refusals of them."""

    def __init__(self, y, shape, loss, output):
        self.y, self.shape, self.loss = y, shape, loss
        self.width = shape[-1]
        self._where = f" of the output '{output}'" if output else ""

    def refuse(self, text):
        raise ValueError(f"The loss {loss_name(self.loss)}{self._where} {text}")

    def check_numbers(self):
        y = self.y
        if y.dtype.kind not in "iubf":
            raise ValueError(
                f"Labels{self._where} must be numbers. Received: an array of {y.dtype} "
                f"such as {y.ravel()[:3].tolist()}. Number the classes, e.g. with "
                "`np.unique(y, return_inverse=True)`."
            )
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            count = int((~np.isfinite(y)).sum())
            raise ValueError(
                f"{count} of {y.size} labels{self._where} are missing or infinite "
                "(NaN). Remove these samples, or give them the weight 0 "
                "(`sample_weight`) and any label."
            )

    def check_shape(self, form):
        """Refuse what Keras would broadcast, or could not compare."""
        y, shape = self.y.shape, self.shape
        if len(y) == len(shape) - 1 and shape[-1] == 1:
            y = (*y, 1)
        elif len(y) == len(shape) + 1 and y[-1] == 1:
            y = y[:-1]
        if len(y) == len(shape) and all(
            a == b or b is None for a, b in zip(y[1:], shape[1:], strict=True)
        ):
            return
        wanted = f"(batch, {', '.join(str(d) for d in shape[1:])})"
        what = {SHARES: "one-hot labels", BITS: "labels from 0 to 1"}.get(
            form, "labels"
        )
        self.refuse(
            f"needs {what} {wanted}, but the labels have the shape {self.y.shape}."
            + self._remedy_of_shape(form)
        )

    def _remedy_of_shape(self, form):
        y, width = self.y, self.width
        if y.ndim == len(self.shape) > 2:
            return " Resize the masks to the output, or the output to the masks."
        flat = y.ndim == 1 or y.shape[-1] == 1
        if form in (SHARES, BITS) and flat and (y == np.floor(y)).all():
            return (
                " Use SparseCategoricalCrossentropy for integer labels, or "
                f"`keras.utils.to_categorical(y, {width})`."
            )
        return " Give the head as many units as there are labels."

    def check_integers(self, complete):
        y, classes = self.y, self.width
        where = f"The labels{self._where}"
        if classes == 1:
            self.refuse(
                "is always 0 on a head of one unit. Use BinaryCrossentropy for yes or "
                "no, or `attach_head(source, classes=2)`."
            )
        if y.ndim == len(self.shape) and y.shape[-1] == classes:
            self.refuse(
                "needs integer labels, but these look one-hot: their shape is "
                f"{y.shape}. Use CategoricalCrossentropy, or `y.argmax(axis=-1)`."
            )
        if y.dtype.kind not in "iub" and not (
            y.dtype.kind == "f" and (y == np.floor(y)).all()
        ):
            raise ValueError(
                f"Labels{self._where} must be integers from 0 to {classes - 1}. "
                f"Received: an array of {y.dtype} such as {y.ravel()[:3].tolist()}. "
                "Number the classes, e.g. with `np.unique(y, return_inverse=True)`."
            )
        self._check_positions()
        ignored = getattr(self.loss, "ignore_class", None)
        y = y[y != ignored] if ignored is not None else y
        if y.size == 0:
            return
        low, high = y.min(), y.max()
        if low < 0 or high >= classes:
            raise ValueError(
                f"{where} run from {low:g} to {high:g}, but the head has {classes} "
                f"classes, 0 to {classes - 1}. {self._remedy_of_range(y)}"
            )
        if complete and low == high and len(self.shape) == 2:
            self._refuse_one_class(low)

    def _check_positions(self):
        """One label for each position of a map."""
        y, shape = self.y.shape, self.shape[:-1]
        y = y[:-1] if len(y) == len(shape) + 1 and y[-1] == 1 else y
        if getattr(self.loss, "axis", -1) not in (-1, len(shape)):
            return
        if len(y) != len(shape) or any(
            a != b and b is not None for a, b in zip(y[1:], shape[1:], strict=True)
        ):
            wanted = ", ".join(["batch", *(str(d) for d in shape[1:])])
            self.refuse(
                f"needs one integer label a position, ({wanted}), but the labels have "
                f"the shape {self.y.shape}. Resize them to the output, or the output "
                "to them."
                if len(shape) > 1
                else f"needs one integer label a sample, but the labels have the shape "
                f"{self.y.shape}. Several labels a sample: use BinaryCrossentropy on "
                "0 and 1 for each label."
            )

    def _remedy_of_range(self, y):
        for ignored in IGNORED:
            rest = y[y != ignored]
            fits = rest.size and rest.min() >= 0 and rest.max() < self.width
            if rest.size < y.size and fits:
                return (
                    f"Classes count from 0. If {ignored} stands for no class, use "
                    "`keras.losses.SparseCategoricalCrossentropy(from_logits=..., "
                    f"ignore_class={ignored})`."
                )
        if y.min() < 0:
            return "Check the label encoding: classes count from 0."
        if y.min() > 0 and y.max() == self.width:
            return "Classes count from 0: subtract 1 from the labels."
        return (
            "Check the label encoding, or give the target a head with "
            f"`attach_head(source, classes={int(y.max()) + 1})`."
        )

    def check_shares(self):
        y = self.y
        sums = y.sum(axis=-1)
        if y.size and (y.min() < 0 or sums.max() > 1 + SUM):
            worst = y.reshape(-1, y.shape[-1])[sums.argmax()].tolist()
            remedy = "Check the label encoding."
            if np.isin(y, (0, 1)).all():
                remedy = "Several labels a sample: use BinaryCrossentropy."
            self.refuse(
                "needs one-hot labels, or shares of the classes that sum to 1, but "
                f"received such as {worst}. {remedy}"
            )

    def check_bits(self, complete):
        y = self.y
        if not y.size:
            return
        low, high = y.min(), y.max()
        if low < 0 or high > 1:
            values = np.unique(y)
            if low >= 0 and high > 2:
                remedy = "Masks and grey values: divide by 255."
            elif values.size == 2 and low == 1:
                remedy = "Classes count from 0: subtract 1 from the labels."
            elif set(values.tolist()) <= {-1, 1}:
                remedy = "Use `(y + 1) / 2`, or a hinge loss."
            else:
                remedy = "Check the label encoding."
            if values.size > 2 and self.width == 1 and len(self.shape) == 2:
                remedy = "For several classes use SparseCategoricalCrossentropy and "
                remedy += f"`attach_head(source, classes={int(high) + 1})`."
            self.refuse(
                f"needs labels from 0 to 1, but they run from {low:g} to {high:g}. "
                f"{remedy}"
            )
        if complete and low == high and self.width == 1 and len(self.shape) == 2:
            self._refuse_one_class(low)

    def check_signs(self):
        y = self.y
        if not (np.isin(y, (-1, 1)).all() or np.isin(y, (0, 1)).all()):
            self.refuse(
                "needs the labels -1 and 1, or 0 and 1, but received such as "
                f"{np.unique(y)[:4].tolist()}. Check the label encoding."
            )

    def _refuse_one_class(self, label):
        raise ValueError(
            f"All {self.y.size} training samples have the label {label:g}{self._where}"
            ": with a single class, a classifier has nothing to distinguish. Pass data "
            "of two or more classes."
        )


def chance(batches, loss):
    """Loss of the best constant prediction for a cross-entropy; None for others.

    Args:
        batches: list of labels, whose shapes may differ where images do.
        loss: the loss.
    """
    name = _tasks.class_name(loss)
    if name == "SparseCategoricalCrossentropy":
        y = np.concatenate([np.ravel(v) for v in batches]).astype(int)
        counted = y[y != getattr(loss, "ignore_class", None)]
        p = np.bincount(counted) / max(counted.size, 1)
        share = counted.size / y.size  # the others have a loss of 0
    elif name in ("CategoricalCrossentropy", "BinaryCrossentropy"):
        width = np.shape(batches[0])[-1] if np.ndim(batches[0]) > 1 else 1
        p = np.concatenate([np.reshape(v, (-1, width)) for v in batches]).mean(axis=0)
        share = 1.0
    else:
        return None
    if name == "BinaryCrossentropy":
        p = np.clip(p, 1e-12, 1 - 1e-12)
        return float(-np.mean(p * np.log(p) + (1 - p) * np.log(1 - p)))
    p = p[p > 0]
    return float(-share * (p * np.log(p)).sum())
