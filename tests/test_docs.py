"""The README's code runs, its links lead somewhere, its names exist."""

import functools
import re
from pathlib import Path
from types import ModuleType

import experiments
import keras
import numpy as np
import pytest
from experiments import rows_file, studies, tables
from networks import make_backbone

import keras_delta as kd

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for folder in (ROOT, ROOT / "docs")
    for path in sorted(folder.glob("*.md"))
    if path.name != "CHANGELOG.md"
]


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run(code, (printed, ours), ...)`: run code with some of it replaced.

    In a folder of its own, with a tiny network, without tracing.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kd.backbones, "efficientnet_lite0", tiny_backbone)
    compile_eagerly = functools.partialmethod(kd.DeltaModel.compile, run_eagerly=True)
    monkeypatch.setattr(kd.DeltaModel, "compile", compile_eagerly)

    def run(code, *replacements, names=None):
        for printed, ours in replacements:
            assert printed in code
            code = code.replace(printed, ours)
        names = {} if names is None else names
        exec(code, names)
        return names

    return run


def tiny_backbone(weights=None, input_shape=None):
    assert weights in (None, "imagenet")
    return make_backbone(size=input_shape[0])


@pytest.mark.slow
def test_readme_code_runs(run, tmp_path):
    """As printed, but on fewer and smaller images."""
    (code,) = python_blocks(ROOT / "README.md")
    names = run(
        code,
        ('from_directory("my_photos")', "embedded_photographs(40, 3, 2)"),
        ("160", "40"),
    )
    assert names["model"].optimizer.iterations.numpy() > 0
    for made in ("model.keras", "report.html", "served/photos/1/saved_model.pb"):
        assert (tmp_path / made).is_file()


def test_own_regularizers_train(new_backbone):
    """Those of the guide, on a tiny network."""
    source = new_backbone()
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    x, y = np.random.default_rng(0).normal(size=(6, 16, 16, 3)), np.arange(6) % 3
    names = {"kd": kd, "keras": keras, "model": model, "x": x, "y": y}
    text = (ROOT / "docs/own-regularizer.md").read_text()
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss, run_eagerly=True)
        code = code.replace("fit(train", "fit(x, y").replace(
            "epochs=10, ", "epochs=2, "
        )
        exec(code, names)
        assert model.history.history["feature_penalty"][-1] > 0
        assert model.regularizer.get_config()["beta"] == 0.01


def test_the_reference_has_every_public_name():
    """A page for each room, each name on it documented."""
    rooms = {"": kd} | {
        n: getattr(kd, n) for n in dir(kd) if isinstance(getattr(kd, n), ModuleType)
    }
    for room, module in rooms.items():
        page = ROOT / "docs/api" / f"{room or 'keras_delta'}.md"
        named = re.findall(r"^::: keras_delta\.(\S+)$", page.read_text(), re.MULTILINE)
        if room:
            public = {
                f"{room}.{name}": value
                for name, value in vars(module).items()
                if getattr(value, "__module__", "").startswith(module.__name__)
                and name[0] != "_"
            }
        else:
            public = {
                n: getattr(kd, n) for n in dir(kd) if n not in {*rooms, "__version__"}
            }
        assert sorted(named) == sorted(public)
        assert [n for n, value in public.items() if not value.__doc__] == []


def test_training_page_code_runs(run):
    names = {}
    for code in python_blocks(ROOT / "docs/training.md"):
        run(code.replace('"block2b_add"', '"relu1"'), names=names)
    assert names["model"].optimizer.iterations.numpy() == 2
    assert names["model"].sharing == ["conv0", "relu0", "conv1", "relu1"]


def test_pages_name_layers_that_exist():
    network = kd.backbones.efficientnet_lite0(weights=None, input_shape=(32, 32, 3))
    pages = [page.read_text() for page in PAGES]
    named = {name for text in pages for name in re.findall(r'"(block\w+)"', text)}
    assert named
    assert named <= {layer.name for layer in network.layers}


@pytest.mark.slow
def test_tuning_page_code_runs(run, tmp_path):
    """As printed, but for one cell of tiny images, on two folds, without attention."""
    (code,) = python_blocks(ROOT / "docs/tuning.md")
    names = run(
        code,
        ("input_shape=(112, 112, 3)", "input_shape=(32, 32, 3)"),
        ("alpha=[0.5, 1.6, 5, 16, 50]", 'alpha=5, regularizer="feature_map"'),
        ("beta=[0.001, 0.01, 0.1]", "beta=[0.01]"),
        ("folds=5", "folds=2"),
        ('from_directory("my_photos")', "embedded_photographs(40, 2, 2)"),
        ("epochs=15", "epochs=1"),
    )
    assert len(names["tuner"].cells()) == 1
    assert (tmp_path / "surface.png").is_file()
    assert names["model"].regularizer.alpha == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert missing == []


def test_every_regularizer_has_its_when():
    text = (ROOT / "docs/methods.md").read_text()
    table = text.split("## Which method when")[1].split("\n## ")[0]
    named = re.findall(r'^\| `"(\w+)"`(?:, `"(\w+)"`)? \|', table, flags=re.MULTILINE)
    assert sorted(filter(None, sum(named, ()))) == sorted(kd.regularizers.ALL)


def test_methods_has_every_regularizer():
    text = (ROOT / "docs/methods.md").read_text()
    assert [name for name in kd.regularizers.ALL if f"`{name}`" not in text] == []


def test_architecture_names_files_that_exist():
    text = (ROOT / "docs/architecture.md").read_text().split("## Which file to open")[1]
    table = text.split("\n## ")[0]
    files = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(files) > 10
    folders = (ROOT / "keras_delta", ROOT)
    assert [f for f in files if not any((p / f).exists() for p in folders)] == []


def test_experiments_page_code_runs(tmp_path, monkeypatch, capsys):
    """As printed, but with results that are made up."""
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks(ROOT / "docs/experiments.md")

    def run(plan, store, data_dir):
        while not plan.complete(store):
            for cell in plan.pending(store):
                store.put(cell, {"accuracy": 0.75, "correct": "1110"})

    monkeypatch.setattr(experiments, "run", run)
    exec(code, {})
    assert "75.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("study", "stem", "made"),
    [
        ("few_shot", "few-shot-accuracy", tables.few_shot_table),
        (
            *("why", "why-ablation"),
            lambda frame: tables.ablation_table(frame, studies.REFERENCE[1]),
        ),
        ("robustness", "robustness-differences", tables.robustness_differences),
    ],
)
def test_published_rows_are_of_the_studies(tmp_path, study, stem, made):
    """Whoever takes them over finds the whole table."""
    store = experiments.ResultStore(tmp_path, any_version=True)
    plan = experiments.Plan(getattr(studies, study)())
    name = study.replace("_", "-")
    for rows in (f"{name}-choices.csv", f"{name}.csv"):
        path = ROOT / "docs/results" / rows
        if plan.folds() or path.stem == name:
            known, cells = rows_file.read(path), plan.staged(store)
            images = {c.dataset: known[c.key][1] for c in cells if c.key in known}
            for dataset, digest in images.items():
                store.keep_data(dataset, digest)
            assert store.take(path, cells)[0] > 0
    text = (ROOT / f"docs/results/{stem}.md").read_text()
    table = made(store.frame(plan.results(store))).markdown()
    assert text.startswith(table)
    # What diverged has no row; the table names it.
    _, _, named = text.partition("Trainings that failed")
    assert [c.title for c in plan.pending(store) if c.title not in named] == []
