"""Functions, classes and files of the package stay short enough to read at once."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "keras_delta"
FUNCTION, CLASS, FILE = 60, 300, 350  # lines, docstrings included
EXCEPTIONS = {}
"""Name -> why it may be longer."""


def lengths(path):
    """Yield (name, lines, limit) of a file and of all that it defines."""
    text = path.read_text("utf-8")
    yield str(path.relative_to(ROOT)), len(text.splitlines()), FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            limit = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
            lines = node.end_lineno - node.lineno + 1
            yield f"{path.relative_to(ROOT)}:{node.name}", lines, limit


def test_nothing_is_too_long():
    found = [item for path in sorted(ROOT.rglob("*.py")) for item in lengths(path)]
    assert len(found) > 500
    too_long = {name: lines for name, lines, limit in found if lines > limit}
    for name in EXCEPTIONS:
        assert too_long.pop(name, None), f"{name} is short enough by now"
    assert too_long == {}
