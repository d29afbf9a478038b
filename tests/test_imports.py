"""Imports point one way, public names are few, private ones of others in one file."""

import ast
import subprocess
import sys
from pathlib import Path

import keras
import keras_tuner
import pytest
import tensorflow as tf
from networks import make_backbone

import keras_delta as kd

ROOT = Path(__file__).parent.parent / "keras_delta"
TOP = ROOT / "__init__.py"

# Each room may import what lies below it. A new one gets its place here.
FLOORS = [
    {"_errors", "_compat"},
    {"_arguments", "_disk", "_training.hosts"},
    {"_checkpoint", "_plotting"},
    {"_network", "optimizers", "statistics"},
    {"_inputs", "backbones", "data"},
    {"attention", "caching"},
    {"regularizers"},
    {"_training"},
    {"model"},
    {"analysis", "callbacks"},
    {"_runs", "serving", "tuning"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
LAZY = {"analysis", "serving", "statistics", "tuning"}  # see keras_delta/__init__.py


def room(name):
    """`data.decode.read` -> `data`; hosts.py is a room of its own."""
    first, second = [*name.split("."), ""][:2]
    both = f"{first}.{second}"
    return both if both in FLOOR else first


def room_of(path):
    return room(".".join(path.relative_to(ROOT).with_suffix("").parts))


def imports(path, root=ROOT):
    """Full names that a file imports, `keras_delta` left out: `graph`, `..keras.ops`.

    Those of other packages begin with `..`; this package by itself is "".
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
        *("ChannelAttention", "DeltaModel", "SourceMapCache", "__version__"),
        *("analysis", "attach_head", "attention", "backbones", "caching", "callbacks"),
        *("data", "export_for_serving", "freeze_until", "optimizers", "regularizers"),
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
    assert {m.split(".")[1] for m in modules.split()} & LAZY == set()


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


def private_names():
    """What objects of Keras, Keras Tuner and TensorFlow have behind an underscore."""
    model = make_backbone()
    model.compile("sgd", "mse")
    objects = [
        model,
        model.layers[1],
        model.layers[1].kernel,
        model.optimizer,
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
        keras.optimizers.schedules.CosineDecay(1.0, 2),
        keras.losses.MeanSquaredError(),
        keras.metrics.Mean(),
        keras.callbacks.CallbackList(),
        keras.callbacks.BackupAndRestore("x"),
        keras_tuner.Oracle,
        keras_tuner.Tuner,
        keras_tuner.HyperModel,
        keras_tuner.HyperParameters(),
        tf.data.Dataset.range(1),
        tf.distribute.get_strategy(),
        tf.distribute.get_strategy().extended,
    ]
    names = underscored(name for thing in objects for name in dir(thing))
    assert {"_initial_epoch", "_learning_rate", "_inputs", "_num_workers"} - names == {
        "_num_workers"  # of several hosts alone
    }
    return names | {"_num_workers", "_is_chief", "_keras_logits", "_dataset"}


def attributes(path):
    """Attributes that a file reads, sets, or defines as a method."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ClassDef):
            yield from (n.name for n in node.body if isinstance(n, ast.FunctionDef))


def test_private_names_are_used_in_one_file():
    """None is read, overridden, or by chance used for something else."""
    private = private_names()
    wrong = [
        f"{path.relative_to(ROOT)} uses {name}"
        for path in [TOP, *sources()]
        for name in sorted(underscored(attributes(path)) & private)
        if path != COMPAT
    ]
    assert wrong == []
