"""Checks of arguments: each function returns the value or raises an error.

views = integer("views", views, least=1)
method = choice("method", method, ("exact", "gradient"))
"""

import math
import numbers
import os
from pathlib import Path

import numpy as np

from keras_delta._errors import invalid, unknown_name


def integer(argument, value, least=1, most=None, optional=False):
    """An integer between two bounds.

    Args:
        argument: name of the argument as the user typed it.
        value: the value received; NumPy's integers are allowed, `True` is not.
        least, most: bounds, both included; `most=None` for none.
        optional: whether None is allowed as well.

    Returns:
        The value as an int, or None.

    Raises:
        ValueError: if it is anything else.
    """
    if value is None and optional:
        return None
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if whole and value >= least and (most is None or value <= most):
        return int(value)
    expected = {(0, None): "a non-negative integer", (1, None): "a positive integer"}
    bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
    text = expected.get((least, most), f"an integer {bounds}")
    raise ValueError(invalid(argument, text + " or None" * optional, value))


def number(
    argument,
    value,
    least=0.0,
    most=None,
    above=None,
    optional=False,
    also="",
    below=None,
):
    """A finite real number between two bounds.

    Args:
        argument, value: as for `integer`; text and booleans are refused.
        least, most: bounds, both included; `None` for none.
        above: a lower bound in place of `least`, itself excluded.
        optional: whether None is allowed as well.
        also: other values that the caller accepts, for the message.
        below: an upper bound in place of `most`, itself excluded.

    Returns:
        The value as a float, or None.

    Raises:
        TypeError: if the value is not a number.
        ValueError: if the number is not finite or out of bounds.
    """
    if value is None and optional:
        return None
    least = None if above is not None else least
    text = _describe_interval(least, most, above, below)
    text += f" or {also}" * bool(also) + " or None" * optional
    # NumPy's booleans are not `Real`, Python's are.
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(invalid(argument, text, value))
    try:
        real = float(value)
    except OverflowError:  # an integer of more than 308 digits
        real = math.inf
    fits = (
        math.isfinite(real)
        and (least is None or real >= least)
        and (most is None or real <= most)
        and (above is None or real > above)
        and (below is None or real < below)
    )
    if not fits:
        raise ValueError(invalid(argument, text, value))
    return real


def _describe_interval(least, most, above, below):
    sign = " positive" if above == 0 else " non-negative" if least == 0 else ""
    text = f"a{sign} finite number"
    if above:
        text += f" above {above:g}"
    elif least:
        text += f" of {least:g} or more" if most is None else f" from {least:g}"
    if most is not None:
        text += f" to {most:g}" if least else f" of at most {most:g}"
    return text if below is None else f"{text} below {below:g}"


def seed(argument, value):
    """A seed that NumPy and TensorFlow accept, an integer from 0 to 2**31 - 1."""
    return integer(argument, value, least=0, most=2**31 - 1)


def choice(argument, value, choices):
    """One of several names or numbers.

    Args:
        argument, value: as for `integer`.
        choices: all valid names (or integers, as for `verbose`).

    Returns:
        The value.

    Raises:
        ValueError: if it is another name (the closest ones are listed) or not a name.
    """
    if isinstance(value, (str, int)) and value in choices:
        return value
    if isinstance(value, str):
        raise ValueError(unknown_name(argument, value, choices))
    *most, last = [repr(name) for name in choices]
    expected = f"{', '.join(most)} or {last}" if most else last
    raise ValueError(invalid(argument, expected, value))


def flag(argument, value):
    """True or False.

    Raises:
        ValueError: if it is anything else, including 0 and 1.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(invalid(argument, "True or False", value))


def folder(argument, value, optional=False):
    """The path of a folder, which need not exist.

    Returns:
        `Path`, or None.

    Raises:
        TypeError: if it is not a path.
        ValueError: if it is the path of a file.
    """
    path = _path(argument, value, "the path of a folder", optional)
    if path is not None and path.exists() and not path.is_dir():
        remedy = "There is a file of this name: pass another one."
        raise ValueError(invalid(argument, "the path of a folder", value, remedy))
    return path


def file(argument, value, optional=False):
    """The path of a file, which need not exist.

    Returns:
        `Path`, or None.

    Raises:
        TypeError: if it is not a path.
        ValueError: if it is the path of a folder.
    """
    path = _path(argument, value, "the path of a file", optional)
    if path is not None and path.is_dir():
        remedy = "There is a folder of this name: pass another one."
        raise ValueError(invalid(argument, "the path of a file", value, remedy))
    return path


def _path(argument, value, expected, optional):
    if value is None and optional:
        return None
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise TypeError(invalid(argument, expected + " or None" * optional, value))
    return Path(value)
