"""The public surface has type hints, all of it: what `docs/api` lists."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parent.parent / "docs" / "api").glob("*.md"))
NAMES = [
    name
    for page in PAGES
    for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)
]
STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def without_hints(function):
    """Parameters without an annotation, of a function or a class's `__init__`."""
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.annotation is p.empty
        and p.kind not in STARRED
        and p.name not in ("self", "cls")
    ]


def check(name):
    """What is not annotated of one public name."""
    module, _, attribute = name.rpartition(".")
    public = getattr(importlib.import_module(module), attribute)
    if inspect.isclass(public):
        init = vars(public).get("__init__")
        return without_hints(init) if init else []
    found = without_hints(public)
    returns = inspect.signature(public).return_annotation
    return [*found, "return"] if returns is inspect.Signature.empty else found


def test_the_pages_name_what_is_public():
    assert len(NAMES) > 100


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_public_names_have_hints(name):
    assert check(name) == []


def test_the_check_sees_what_is_missing():
    def function(a, b: int, *args, c=0, **kwargs):
        pass

    class Public:
        def __init__(self, a, b: int = 0):
            pass

    assert without_hints(function) == ["a", "c"]
    assert without_hints(Public.__init__) == ["a"]
