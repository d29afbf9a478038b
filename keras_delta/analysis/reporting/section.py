"""Sections of a report, and the checks before one is made."""

from typing import Any, NamedTuple

import numpy as np

from keras_delta import _tasks

CLASSES = (_tasks.MULTICLASS, _tasks.BINARY)


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        kind: name of the template's macro that shows it, and its anchor.
        title: heading.
        data: arguments of the macro.
    """

    kind: str
    title: str
    data: dict[str, Any]


class LeftOut(Exception):
    """A section does not apply; the message says why."""


def need_labels(test, what):
    """Leave a section out if there are no test images with labels."""
    if test is None:
        raise LeftOut(f"{what}: no test images were given.")
    if test.labels is None:
        raise LeftOut(f"{what}: the test images have no labels.")


def need_numbers(model, test, what):
    """Leave a section out if the model outputs NaN."""
    bad = int((~np.isfinite(model.logits(test)).all(1)).sum())
    if bad:
        raise LeftOut(
            f"{what}: '{model.title}' outputs numbers that are not finite (NaN or "
            f"infinite) for {bad} of {len(test)} test images. If these are valid, "
            "training diverged: `keras_delta.callbacks.TerminateOnNaN` stops it."
        )


def classes(model, test, what):
    """`Answers`, if the model is a classifier and there are labels."""
    need_labels(test, what)
    if model.task not in CLASSES:
        raise LeftOut(f"{what}: only for models that distinguish classes.")
    need_numbers(model, test, what)
    return model.answers(test)
