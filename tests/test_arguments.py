"""`_arguments`: what is right comes back as a plain value, the rest is refused."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from keras_delta import _arguments
from keras_delta._arguments import choice, file, flag, folder, integer, number, seed

NAMES = ("exact", "gradient", "taylor")
RIGHT = [
    (integer, 1, {}, 1),
    (integer, np.int64(7), {}, 7),
    (integer, np.uint8(0), {"least": 0}, 0),
    (integer, 10**400, {}, 10**400),
    (integer, 2, {"least": 2, "most": 4}, 2),
    (integer, 4, {"least": 2, "most": 4}, 4),
    (integer, -3, {"least": -3}, -3),
    (integer, None, {"optional": True}, None),
    (integer, 3, {"optional": True}, 3),
    (number, 0, {}, 0.0),
    (number, 2, {}, 2.0),
    (number, Fraction(1, 4), {}, 0.25),
    (number, np.float32(0.5), {}, 0.5),
    (number, np.int32(3), {}, 3.0),
    (number, 1, {"most": 1}, 1.0),
    (number, -2.5, {"least": None}, -2.5),
    (number, -2.5, {"least": -3, "most": -2}, -2.5),
    (number, 1e-300, {"above": 0}, 1e-300),
    (number, None, {"optional": True}, None),
    (number, 0.5, {"above": 0, "below": 1}, 0.5),
    (number, 0, {"below": 1}, 0.0),
    (seed, 0, {}, 0),
    (seed, np.int64(2**31 - 1), {}, 2**31 - 1),
    (choice, "exact", {"choices": NAMES}, "exact"),
    (choice, np.str_("exact"), {"choices": NAMES}, "exact"),
    (choice, "exact", {"choices": dict.fromkeys(NAMES)}, "exact"),
    (flag, True, {}, True),
    (flag, False, {}, False),
    (flag, np.True_, {}, True),
    (folder, "some/new", {}, Path("some/new")),
    (folder, Path("."), {}, Path(".")),
    (folder, None, {"optional": True}, None),
    (file, "some/new.csv", {}, Path("some/new.csv")),
    (file, Path(__file__), {}, Path(__file__)),
    (file, None, {"optional": True}, None),
]
# Function, values, options, error, and what the message says was expected.
NO_INTEGERS = [0, -1, 1.0, np.float64(2), "1", True, np.True_, None, [1], 2j]
NO_NUMBERS = ["1", b"1", True, np.True_, None, [1.0], 1j, np.complex64(1), {}]
NOT_FINITE = [float("nan"), float("inf"), -float("inf"), np.float32("nan"), 10**400]
NO_PATHS = ["", 1, None, True, b"bytes", ["a"]]
SEED = "an integer from 0 to 2147483647"
FINITE = "a finite number"
REAL, POSITIVE = "a non-negative finite number", "a positive finite number"
ARRAYS = [np.array(1), np.array([1]), np.arange(3), np.array([]), np.zeros((9, 9, 9))]
TEXTS = [np.array("exact"), np.array(["exact"])]
WRONG = [
    (integer, NO_INTEGERS + ARRAYS, {}, ValueError, "a positive integer"),
    (integer, [-1, 0.0], {"least": 0}, ValueError, "a non-negative integer"),
    (integer, [1], {"least": 2}, ValueError, "an integer of 2 or more"),
    (integer, [1, 5], {"least": 2, "most": 4}, ValueError, "an integer from 2 to 4"),
    (integer, [0], {"optional": True}, ValueError, "a positive integer or None"),
    (seed, [-1, 2**31, 1.0, None, True], {}, ValueError, SEED),
    (number, NO_NUMBERS + ARRAYS, {}, TypeError, REAL),
    (number, [-0.1, *NOT_FINITE], {}, ValueError, REAL),
    (number, NOT_FINITE, {"least": None}, ValueError, FINITE),
    (number, [-2], {"least": -1}, ValueError, FINITE + " of -1 or more"),
    (number, [2], {"most": 1}, ValueError, REAL + " of at most 1"),
    (number, [0, 3], {"least": 1, "most": 2}, ValueError, FINITE + " from 1 to 2"),
    (number, [9], {"least": None, "most": 2}, ValueError, FINITE + " of at most 2"),
    (number, [0, -1], {"above": 0}, ValueError, POSITIVE),
    (number, [1], {"above": 1}, ValueError, FINITE + " above 1"),
    (number, [2], {"above": 0, "most": 1}, ValueError, POSITIVE + " of at most 1"),
    (number, [0, 1], {"above": 0, "below": 1}, ValueError, POSITIVE + " below 1"),
    (number, [-0.1, 1], {"below": 1}, ValueError, REAL + " below 1"),
    (number, ["a"], {"optional": True}, TypeError, REAL + " or None"),
    (number, ["a"], {"also": "'auto'"}, TypeError, REAL + " or 'auto'"),
    (choice, [None, 1, True, ["exact"], *TEXTS], {"choices": NAMES}, ValueError,
     "'exact', 'gradient' or 'taylor'"),
    (choice, [None], {"choices": ["one"]}, ValueError, "'one'"),
    (flag, [0, 1, None, "True", [], *ARRAYS], {}, ValueError, "True or False"),
    (folder, [*NO_PATHS, *TEXTS], {}, TypeError, "the path of a folder"),
    (folder, [1], {"optional": True}, TypeError, "the path of a folder or None"),
    (folder, [__file__], {}, ValueError, "the path of a folder"),
    (file, [*NO_PATHS, *TEXTS], {}, TypeError, "the path of a file"),
    (file, [1], {"optional": True}, TypeError, "the path of a file or None"),
    (file, [".", Path("/")], {}, ValueError, "the path of a file"),
]  # fmt: skip


def test_every_function_is_here():
    names = {
        name
        for name, value in vars(_arguments).items()
        if getattr(value, "__module__", "") == _arguments.__name__ and name[0] != "_"
    }
    for table in (RIGHT, WRONG):
        assert {function.__name__ for function, *_ in table} == names


@pytest.mark.parametrize(("check", "value", "options", "expected"), RIGHT)
def test_right(check, value, options, expected):
    checked = check("argument", value, **options)
    assert checked == expected
    if check is not choice:
        assert type(checked) is type(expected)


@pytest.mark.parametrize(("check", "values", "options", "error", "expected"), WRONG)
def test_wrong(check, values, options, error, expected):
    """The type of the error, and all that the message must say."""
    for value in values:
        with pytest.raises((TypeError, ValueError)) as raised:
            check("argument", value, **options)
        assert raised.type is error, repr(value)
        text = str(raised.value)
        start = f"Invalid value for argument `argument`. Expected {expected}. "
        assert text.startswith(f"{start}Received: argument={repr(value)[:300]}")


def test_an_unknown_name_brings_the_closest():
    with pytest.raises(ValueError) as raised:
        choice("method", "exakt", NAMES)
    assert str(raised.value) == (
        "Unknown name for `method`. Received: 'exakt'. Closest names: 'exact'."
    )


@pytest.mark.parametrize(
    ("check", "path", "kind"), [(folder, __file__, "file"), (file, ".", "folder")]
)
def test_the_other_kind_of_path(check, path, kind):
    with pytest.raises(ValueError, match=f"There is a {kind} of this name: pass ano"):
        check("argument", path)
