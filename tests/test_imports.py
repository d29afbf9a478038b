"""Imports point one way: read from the sources, every violation listed."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "keras_delta"

# What each module or folder may import besides itself. A new one gets a row.
FOUNDATION = {"errors", "files", "graph", "distances", "fingerprint"}
PAIRING = FOUNDATION | {"pairing"}
READING = PAIRING | {"taps", "heads", "samples", "labels", "memory", "checkpoint"}
METHODS = READING | {"attention", "regularizers"}
ALLOWED = {
    "errors": set(),
    "files": set(),
    "distances": set(),
    "graph": {"errors"},
    "fingerprint": set(),
    "optimizers": {"errors"},
    "plotting": {"files"},
    "pairing": FOUNDATION,
    "taps": PAIRING,
    "heads": PAIRING,
    "samples": PAIRING,
    "labels": PAIRING,
    "attention": READING,
    "regularizers": READING | {"attention"},
    "multi_worker": set(),
    "checks": METHODS | {"multi_worker"},
    "memory": FOUNDATION,
    "checkpoint": FOUNDATION,
    "caching": READING,
    "saving": FOUNDATION | {"multi_worker"},
    "sharing": PAIRING,
    "watching": METHODS,
    "replay": READING | {"data"},
    "loop": METHODS | {"multi_worker", "replay"},
    "model": METHODS
    | {"caching", "checks", "loop", "multi_worker", "replay", "saving", "sharing"}
    | {"watching"},
    "data": {"errors", "files", "graph"},
    "backbones": {"errors", "graph"},
    # Above the model: what works on a DeltaModel.
    "callbacks": METHODS | {"model", "multi_worker"},
    "serving": METHODS | {"checks", "model", "multi_worker", "data"},
    "tuning": METHODS
    | {"checks", "model", "callbacks", "caching", "data"}
    | {"plotting"},
    "analysis": METHODS | {"model"},
    "experiments": METHODS
    | {"model", "callbacks", "tuning", "data", "backbones", "optimizers", "replay"}
    | {"plotting", "__version__"},
    "__version__": set(),  # of the package itself
}
TOP = ROOT / "__init__.py"
SHARED_BY_METHODS = {"base", "maps", "attended"}


def part_of(path):
    """`keras_delta/data/decode.py` -> `data`; `keras_delta/graph.py` -> `graph`."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path, root=ROOT):
    """What a file imports of this package, as `graph` or `data.decode.name`.

    The package by itself is "".
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module
            if node.level:
                here = ("keras_delta", *path.relative_to(root).parts)
                above = here[: len(here) - node.level]
                module = ".".join([*above, *([module] if module else [])])
            names = [f"{module}.{a.name}" for a in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "keras_delta":
                found.append(rest)
    return found


def sources():
    found = [p for p in sorted(ROOT.rglob("*.py")) if p != TOP]
    assert len(found) > 40
    return found


def test_the_reader_sees_every_form(tmp_path):
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "x.py"
    file.write_text(
        "import keras_delta\nimport keras_delta.graph\nimport keras\n"
        "from keras_delta import model, taps as t\n"
        "from . import folders\nfrom .decode import a\nfrom ..errors import invalid\n"
        "def f():\n    from keras_delta.data import sampling\n"
    )
    assert imports(file, tmp_path) == [
        "",
        "graph",
        "model",
        "taps",
        "data.folders",
        "data.decode.a",
        "errors.invalid",
        "data.sampling",
    ]


def test_arrows():
    wrong = []
    for path in sources():
        own = part_of(path)
        for name in imports(path):
            other = name.split(".")[0]
            if other != own and other not in ALLOWED.get(own, ()):
                wrong.append(
                    f"{path.relative_to(ROOT)} imports {name or 'keras_delta'}"
                )
    assert wrong == []


def test_the_table_has_no_circle():
    order = []
    rest = dict(ALLOWED)
    while rest:
        free = [part for part, needs in rest.items() if needs <= set(order)]
        assert free, f"a circle among {sorted(rest)}"
        order += free
        rest = {part: needs for part, needs in rest.items() if part not in free}


def test_methods_import_no_method():
    folder = ROOT / "regularizers"
    files = {p.stem: p for p in folder.glob("*.py") if p.stem != "__init__"}
    assert set(files) > SHARED_BY_METHODS
    wrong = [
        f"{path.name} imports {name}"
        for path in files.values()
        for name in imports(path)
        if name.startswith("regularizers")
        and [*name.split("."), ""][1] not in SHARED_BY_METHODS
    ]
    assert wrong == []
