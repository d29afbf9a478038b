"""Files of attention: our JSON, and that of the authors' program."""

import json
from pathlib import Path

from keras_delta._errors import invalid


def read(path):
    """The contents of a JSON file.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except ValueError as e:  # no JSON, or no text
        raise ValueError(damaged(path, f"JSON ({e})")) from e


def read_official(path, taps):
    """Scores of the authors' file, dict tap -> list, for taps in the same order."""
    taps = [taps] if isinstance(taps, str) else list(taps)
    if len(set(taps)) != len(taps):
        raise ValueError(invalid("taps", "different names", taps))
    lists = read(path)
    if not isinstance(lists, list) or not all(map(_is_list_of_numbers, lists)):
        raise ValueError(damaged(path, "a list of lists of numbers"))
    if len(lists) != len(taps):
        expected = f"{len(lists)} names, one per list in '{path}'"
        raise ValueError(invalid("taps", expected, taps))
    return dict(zip(taps, lists, strict=True))


def _is_list_of_numbers(value):
    return isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)


def damaged(path, expected):
    """The text of an error about a file."""
    return (
        f"The attention file '{path}' cannot be used: expected {expected}. It is "
        "damaged or of another kind; compute the attention again."
    )
