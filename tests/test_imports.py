"""The house rules that can be read from the sources: imports, names, lengths."""

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import keras_tuner
import pytest
from networks import make_backbone

import keras_delta as kd

ROOT = Path(__file__).parent.parent / "keras_delta"
TOP = ROOT / "__init__.py"

# Each room may import what lies below it. A new one gets its place here.
FLOORS = [
    {"_errors", "_compat", "_progress", "_tasks", "_types"},
    {"_arguments", "_disk"},
    {"_checkpoint", "_plotting", "layers"},
    {"_network", "optimizers", "statistics"},
    {"_inputs", "averaging", "backbones", "data"},
    {"_answers", "attention", "caching"},
    {"_probe", "batch_norm", "regularizers"},
    {"recipe"},
    {"_training"},
    {"model"},
    {"fine_tuning"},
    {"analysis"},
    {"_runs", "callbacks"},
    {"serving", "tuning"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
LAZY = {
    "analysis",
    "probe",
    "serving",
    "statistics",
    "tuning",
}  # see keras_delta/__init__.py


def room(name):
    """`data.decode.read` -> `data`."""
    return name.split(".")[0]


def room_of(path):
    return room(".".join(path.relative_to(ROOT).with_suffix("").parts))


def imports(path, root=ROOT):
    """Full names that a file imports, `keras_delta` left out: `graph`, `..keras.ops`.

    Those of other packages begin with `..`; this package by itself is "". What type
    checkers alone see is left out.
    """
    found, nodes = [], [*ast.walk(ast.parse(path.read_text("utf-8")))]
    unseen = {
        id(node)
        for block in nodes
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
    }
    for node in nodes:
        if id(node) in unseen:
            continue
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
            found.append(rest if package == "keras_delta" else f"..{name}")
    return found


def own_imports(path, root=ROOT):
    return [name for name in imports(path, root) if not name.startswith("..")]


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
        "..keras",
        "model",
        "taps",
        "data.folders",
        "data.decode.a",
        "errors.invalid",
        "data.sampling",
    ]
    assert "..keras" not in own_imports(file, tmp_path)


def test_every_room_has_its_floor():
    assert {room_of(path) for path in sources()} - {"__main__"} == set(FLOOR)


def test_arrows():
    """The top, `__main__` and what is started as a program may import everything."""
    wrong = []
    for path in sources():
        here = room_of(path)
        for name in own_imports(path):
            other = room(name)
            if other != here and FLOOR.get(other, 99) >= FLOOR.get(here, 98):
                wrong.append(f"{path.relative_to(ROOT)} imports {name or ROOT.name}")
    assert wrong == []


def test_the_top_imports_lazy_rooms_when_asked():
    assert {room(name) for name in own_imports(TOP)} & LAZY == set()


def test_the_benchmarks_are_outside():
    """They may import everything of the package, and nothing of it imports them."""
    outside = {"experiments", *(p.stem for p in (ROOT.parent / "benchmarks").glob("*"))}
    assert "step_time" in outside
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in [TOP, *sources()]
        for name in imports(path)
        if name.startswith("..") and name[2:].split(".")[0] in outside
    ]
    assert wrong == []


def test_methods_import_no_method():
    """A regularizer's file holds one class by which `regularizers.ALL` knows it."""
    methods = {type(kd.regularizers.get(n)).__module__ for n in kd.regularizers.ALL}
    methods = {name.rpartition(".")[2] for name in methods}
    assert len(methods) >= 6
    wrong = [
        f"{method}.py imports {name}"
        for method in methods
        for name in own_imports(ROOT / "regularizers" / f"{method}.py")
        if name.startswith("regularizers") and name.split(".")[1] in methods
    ]
    assert wrong == []


# --- what users see ------------------------------------------------------------


def test_public_names():
    assert dir(kd) == [
        *("ChannelAttention", "DeltaModel", "Recipe", "SourceMapCache"),
        "__version__",
        *("analysis", "attach_head", "attention", "averaging", "backbones"),
        *(
            "batch_norm",
            "caching",
            "callbacks",
            "data",
            "export_for_serving",
            "fine_tune",
            "fit_head",
            "freeze_until",
            "layers",
            "optimizers",
            "regularizers",
        ),
        *("serving", "statistics", "tuning"),
    ]
    for name in dir(kd):
        assert getattr(kd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'checks'"):
        _ = kd.checks


FRESH = """
import sys, keras
before = set(sys.modules)
import keras_delta
print(*sorted({m.split(".")[0] for m in set(sys.modules) - before}))
print(*sorted(m for m in sys.modules if m.startswith("keras_delta.")))
"""


@pytest.mark.slow
def test_importing_is_light():
    """Of what Keras and TensorFlow have not loaded, only Pillow."""
    command = [sys.executable, "-c", FRESH]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    packages, modules = shown.splitlines()
    installed = set(packages.split()) - set(sys.stdlib_module_names) - {"_sqlite3"}
    assert installed == {"keras_delta", "PIL"}
    loaded = {m.split(".")[1] for m in modules.split()}
    assert loaded & LAZY <= {"analysis", "statistics"}  # callbacks measure by them


# --- private names of other packages -------------------------------------------

COMPAT = ROOT / "_compat.py"
PRIVATE_MODULES = ("..keras.src", "..keras_tuner.src", "..tensorflow.python")


def test_private_modules_are_imported_in_one_file():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name[2:]}"
        for path in [TOP, *sources()]
        for name in imports(path)
        if path != COMPAT and name.startswith(PRIVATE_MODULES)
    ]
    assert wrong == []


def underscored(names):
    return {n for n in names if n.startswith("_") and not n.startswith("__")}


def defined(tree):
    """Names that a file assigns or defines, attributes included."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def attributes(tree):
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


PYTHONS = {"_exit", "_getframe", "_replace", "_asdict", "_fields"}


def test_private_attributes_of_others_are_read_in_one_file():
    """All others are defined in this package, and are its own."""
    files = [TOP, *sources()]
    trees = {p: ast.parse(p.read_text("utf-8")) for p in files if p != COMPAT}
    own = {name for tree in trees.values() for name in defined(tree)} | PYTHONS
    modules = {f"_{p.stem.strip('_')}" for p in files}
    folders = {p.name for p in ROOT.iterdir()}
    wrong = [
        f"{path.relative_to(ROOT)} reads {name}"
        for path, tree in trees.items()
        for name in sorted(underscored(attributes(tree)) - own - modules - folders)
    ]
    assert wrong == []


@pytest.fixture(scope="module")
def examples():
    """One object of each class of others that classes here derive from."""
    model = make_backbone()
    model.compile("sgd", "mse")
    return [
        model,
        model.layers[1],
        model.optimizer,
        keras.callbacks.BackupAndRestore("x"),
        keras.losses.MeanSquaredError(),
        keras.metrics.Mean(),
        keras.optimizers.schedules.CosineDecay(1.0, 2),
        keras_tuner.HyperModel(),
        keras_tuner.oracles.RandomSearchOracle("loss"),
    ]


ROOTS = (
    *(keras.Model, keras.layers.Layer, keras.optimizers.Optimizer),
    *(keras.callbacks.Callback, keras.losses.Loss, keras.metrics.Metric),
    *(keras.optimizers.schedules.LearningRateSchedule, keras.utils.PyDataset),
    *(keras_tuner.HyperModel, keras_tuner.Oracle),
)


def classes():
    """Every class of the package."""
    for path in sources():
        if path.stem == "__main__" or path == COMPAT:
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(
            f"keras_delta.{name}".removesuffix(".__init__")
        )
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                yield value


def test_private_names_are_overridden_in_one_file(examples):
    """No class sets or overrides what a class of Keras or Keras Tuner keeps to itself.

    By chance as well: a new version of theirs would break it.
    """
    wrong, seen = [], 0
    for kind in classes():
        packages = ("keras.", "keras_tuner.", "tensorflow.")
        others = [k for k in kind.__mro__ if k.__module__.startswith(packages)]
        theirs = underscored(n for k in others for n in vars(k))
        roots = [k for k in others if k in ROOTS]
        theirs |= underscored(
            n for e in examples for k in roots if isinstance(e, k) for n in vars(e)
        )
        seen += bool(theirs)
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        for name in sorted(underscored(defined(tree)) & theirs):
            wrong.append(f"{kind.__module__}.{kind.__name__}: {name}")
    assert seen > 10
    assert wrong == []


# --- lengths -------------------------------------------------------------------

FUNCTION, CLASS, FILE = 60, 300, 350  # lines, docstrings included
EXCEPTIONS = {
    "attention/channel_attention.py:compute": "documents eleven arguments",
    "_network/attach.py:attach_head": "documents nine arguments",
    "_probe/fit.py:fit_head": "documents twelve arguments",
    "fine_tuning/fine_tune.py:fine_tune": "documents eleven arguments",
    "serving/export.py:export_for_serving": "documents eighteen arguments",
    "analysis/dissection.py:dissect": "documents ten arguments",
    "analysis/reporting/report.py:report": "documents ten arguments",
    "analysis/suspect_labels.py:suspect_labels": "documents nine arguments",
    "analysis/compared_maps.py:compare_activation_maps": "documents four rules",
    "batch_norm.py:estimate_statistics": "documents seven arguments",
    "data/embedded.py:embedded_photographs": "documents five arguments",
    "data/folders.py:from_directory": "documents six arguments",
    "statistics.py:paired_interval": "documents what the interval is good for",
    "attention/channel_attention.py": "documents ten methods, a line an argument",
    "attention/channel_attention.py:ChannelAttention": "likewise",
    "caching/source_map_cache.py": "documents seven methods, a line an argument",
    "caching/source_map_cache.py:SourceMapCache": "likewise",
    "data/image_set.py": "documents eleven methods, a line an argument",
    "data/image_set.py:ImageSet": "likewise",
    "tuning/cross_validated.py": "documents 21 arguments, a line each",
    "tuning/hyper_model.py": "documents 14 arguments, a line each",
}
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
    found = [item for path in [TOP, *sources()] for item in lengths(path)]
    assert len(found) > 500
    too_long = {name: lines for name, lines, limit in found if lines > limit}
    for name in EXCEPTIONS:
        assert too_long.pop(name, None), f"{name} is short enough by now"
    assert too_long == {}
