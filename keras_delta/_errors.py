"""Texts of errors: argument, expected value, received value, remedy."""

import contextlib
import difflib
import importlib
import os
import sys
import warnings
from pathlib import Path

import keras

LONGEST = 300  # characters of a value that a message repeats


def invalid(argument, expected, received, remedy=""):
    """The text of an error about one argument.

    Args:
        argument: name of the argument as the user typed it.
        expected: the valid values, without a final full stop.
        received: the value received; shown with `repr`.
        remedy: one sentence that tells the user what to do.

    Returns:
        One string, ready for `ValueError` or `TypeError`.
    """
    shown = repr(received)
    if len(shown) > LONGEST:
        shown = f"{shown[:LONGEST]}... ({type(received).__name__})"
    text = (
        f"Invalid value for argument `{argument}`. Expected {expected}. "
        f"Received: {argument}={shown}"
    )
    return f"{text}. {remedy}" if remedy else text


def unknown_name(argument, name, known):
    """The text of an error about a name, with the closest known ones.

    Args:
        argument: name of the argument, or of the kind of thing named.
        name: the name that was not found.
        known: all valid names.

    Returns:
        One string that lists up to five close names, or, if none is close,
        up to twenty of the known ones.
    """
    known = [str(k) for k in known]
    lower = {k.lower(): k for k in reversed(known)}
    close = difflib.get_close_matches(str(name).lower(), lower, n=5, cutoff=0.5)
    close = [lower[k] for k in close]
    if close:
        hint = "Closest names: " + ", ".join(repr(c) for c in close)
    else:
        shown = ", ".join(repr(k) for k in known[:20])
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        hint = f"Known names: {shown}{more}"
    return f"Unknown name for `{argument}`. Received: {name!r}. {hint}."


def import_optional(module, what, extra):
    """An optional module, or an ImportError that says how to install it.

    Args:
        module: its name.
        what: what needs it, as the beginning of a sentence.
        extra: the extra of `keras_delta` that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{what} needs {package}, which is not installed. Run "
            f'`pip install "keras_delta[{extra}]"`.'
        ) from error


def warn(message):
    """Warn, pointing at the line of the user's code that led here."""
    # With the separator: `keras_delta_trials` beside the package is the user's.
    packages = (Path(__file__).parent, Path(keras.__file__).parent)
    inside = (*(os.path.join(p, "") for p in packages), contextlib.__file__)
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
