"""The command line: what it refuses, shows and writes."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from experiments import Plan, ResultStore, command, preview, studies
from experiments.cell import Cell
from PIL import Image

from keras_delta import data

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "article.py"


def arguments(*given):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(v) for v in given])


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """A data set: 4 images of each of 3 classes for training, 2 for a test."""
    few = {}
    for part, images in data.embedded_photographs(40, 4, 2).items():
        first = images.subset(np.flatnonzero(images.labels < 3))
        few[part] = data.ImageSet.from_arrays(*first.arrays(40, dtype="uint8"))
    monkeypatch.setattr(data, "load", lambda name, data_dir=None, **options: few)
    return few


def test_gpus_that_are_not_there(no_gpu, tmp_path):
    args = arguments("--table", 1, "--gpus", 2, "--store", tmp_path)
    with pytest.raises(ValueError) as error:
        command.main(args, SCRIPT)
    assert str(error.value) == (
        "--gpus 2: there is none, as far as CUDA_VISIBLE_DEVICES and nvidia-smi tell. "
        "Use fewer, or --workers N for processes on the CPU."
    )


def test_more_gpus_than_there_are(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    args = arguments("--table", 1, "--gpus", 2, "--store", tmp_path)
    with pytest.raises(ValueError, match=r"--gpus 2: there are 1 \(3\), as far"):
        command.main(args, SCRIPT)


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [
        ("--gpus", 0, 1),
        ("--workers", 0, 1),
        ("--repeats", 0, 1),
        ("--image-size", 5, 32),
    ],
)
def test_numbers_that_are_too_small(option, value, least, capsys):
    with pytest.raises(SystemExit) as error:
        arguments("--study", "why", option, value)
    assert error.value.code == 2
    said = f"argument {option}: expected {least} or more, not {value}"
    assert said in capsys.readouterr().err


def test_processes_by_default(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,5")
    assert command.processes(arguments("--table", 1)) == 3
    assert command.processes(arguments("--table", 1, "--workers", 7)) == 7
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command.processes(arguments("--table", 1)) == len(os.sched_getaffinity(0))


def test_data_that_are_not_there(no_gpu, tmp_path):
    args = arguments("--table", 1, "--datasets", "indoor67", "--store", tmp_path / "s")
    args.data_dir = tmp_path
    with pytest.raises(FileNotFoundError, match="MIT Indoor 67 was not found"):
        command.main(args, SCRIPT)


def test_weights_by_data_set(tmp_path):
    places, other = tmp_path / "places365.h5", tmp_path / "other.h5"
    places.touch()
    other.touch()
    args = arguments("--table", 1, "--datasets", "cub", "indoor67")
    args.weights = [f"indoor67={places}"]
    assert command._weights(args) == {"cub": "imagenet", "indoor67": str(places)}
    args.weights = [str(other), f"indoor67={places}"]
    assert command._weights(args) == {"cub": str(other), "indoor67": str(places)}
    args.weights = [str(other)]
    assert command._weights(args) == dict.fromkeys(("cub", "indoor67"), str(other))
    args.weights = ["cub=nowhere.h5"]
    with pytest.raises(ValueError, match=r"--weights: there is no file nowhere\.h5"):
        command._weights(args)
    args.weights = [f"dogs={places}"]
    with pytest.raises(ValueError, match="Unknown name for `--weights`"):
        command._weights(args)


def test_plan_of_the_article_needs_no_data(no_gpu, tmp_path, capsys):
    args = arguments("--table", 1, "--datasets", "cub", "--networks", "resnet101")
    args.plan, args.store = True, tmp_path
    guess = dict.fromkeys([("resnet101", None)], 1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "image_seconds", lambda *_: guess)
        assert command.main(args, SCRIPT) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["Not here yet: cub.", ""]
    shown = shown[2:]
    assert shown[1].split() == ["data", "network", "for", "cells", "to", "do", "hours"]
    # 6 methods, 5 repeats; 96 epochs of 5994 images, 1 ms each
    hours = 30 * round(9000 * 64 / 5994) * 5994 * 1e-3 / 3600
    assert shown[2].split() == [
        "cub",
        "resnet101",
        "result",
        "30",
        "30",
        f"{hours:.2f}",
    ]
    assert shown[3].startswith("30 cells to train: about ")
    assert not (tmp_path / "cells").exists()


def test_plan_knows_what_is_done(flowers, tmp_path, capsys):
    store = ResultStore(tmp_path)
    entries = studies.few_shot(
        (("folder:flowers", 3),), methods=("l2_fe", "l2"), repeats=2, image_size=32
    )
    plan = Plan(entries)
    record = {"accuracy": 0.5, "wall_seconds": 8.0, "epochs": 2, "images": 4}
    first = next(iter(plan.staged(store)))
    store.put(first, record)
    sizes = preview.check_data(plan, store, None)
    assert sizes == {"folder:flowers": (12, 3)}
    left = preview.show(plan, store, sizes, 2)
    # l2: 3 strengths in 3 folds, one of them done; 2 seeds of each method
    assert left == 9 - 1 + 2 + 2
    shown = capsys.readouterr().out
    assert (
        "flowers                efficientnet_lite0 choose alpha      9      8" in shown
    )
    assert (
        "flowers                efficientnet_lite0 result            4      4" in shown
    )
    assert "12 cells to train: about 68 minutes, in 2 processes." in shown


def test_too_few_images(flowers, tmp_path):
    plan = Plan(studies.few_shot((("folder:flowers", 5),), methods=("l2_fe",)))
    with pytest.raises(ValueError) as error:
        preview.check_data(plan, ResultStore(tmp_path), None)
    assert str(error.value) == (
        "folder:flowers has classes with fewer than 5 training images: '0' (4), "
        "'1' (4), '2' (4). Ask for fewer images a class, or add some."
    )
    plan = Plan(studies.few_shot((("folder:flowers", 2),), methods="delta"))
    with pytest.raises(ValueError) as error:
        preview.check_data(plan, ResultStore(tmp_path), None)
    assert str(error.value) == (
        "The strengths for folder:flowers are chosen by cross-validation in 3 folds, "
        "which needs as many images of each class. There are 2."
    )


def test_other_images_than_before(flowers, tmp_path, monkeypatch):
    plan = Plan(studies.few_shot((("folder:flowers", 2),), methods=("l2_fe",)))
    store = ResultStore(tmp_path)
    preview.check_data(plan, store, None)
    preview.check_data(plan, store, None)
    others = {**flowers, "train": flowers["train"].subset(np.arange(11))}
    monkeypatch.setattr(data, "load", lambda name, data_dir=None, **options: others)
    with pytest.raises(ValueError) as error:
        preview.check_data(plan, store, None)
    assert str(error.value) == (
        f"The results of folder:flowers in {tmp_path} are of other images than those "
        "that are there now. Choose another folder for new results, or bring the old "
        "images back."
    )


def test_failed_cells_are_trained_again_if_asked(flowers, tmp_path, monkeypatch):
    given = ("--study", "few-shot", "--datasets", "folder:flowers", "--per-class", 2)
    args = arguments(*given, "--methods", "l2_fe", "--repeats", 1, "--workers", 1)
    args.store, args.retry = tmp_path, True
    store = ResultStore(tmp_path)
    (cell,) = Plan(command._entries("few-shot", args)).staged(store)
    store.put(cell, {"failed": "out of memory"})
    seen = []
    monkeypatch.setattr(
        command.run,
        "run",
        lambda plan, store, *_, **__: seen.extend(plan.pending(store)),
    )
    monkeypatch.setattr(
        preview,
        "image_seconds",
        lambda cells, _: {(c.network, c.image_size): 1.0 for c in cells},
    )
    command.main(args, SCRIPT)
    assert seen == [cell]


def test_failed_cells_are_forgotten_once(tmp_path, monkeypatch):
    """The processes that train end in the same command."""
    got = []
    monkeypatch.setattr(command.launch, "launch", lambda *given: got.append(given) or 0)
    line = ["--study", "why", "--repeats", "2", "--workers", "2"]
    for given in ("--retry", "--ret"):
        monkeypatch.setattr(sys, "argv", ["article.py", *line, given])
        args = arguments(*line, given, "--store", tmp_path)
        assert args.retry
        command._launch(2, args, "article.py")
    assert [given[0] for given in got] == [[sys.executable, "article.py", *line]] * 2


def test_unknown_cell(tmp_path):
    store = ResultStore(tmp_path)
    store.put(Cell("cub", "l2"), {"accuracy": 0.5, "threads": 1})
    args = arguments("--cell", "0123", "--store", tmp_path)
    with pytest.raises(ValueError, match="Unknown name for `--cell`"):
        command.main(args, SCRIPT)


class Fast:
    """Trains nothing; what it gives is enough for all tables and figures."""

    def __init__(self, *given):
        pass

    def warm(self, cell):
        return False

    def run(self, cell):
        record = {"accuracy": 0.5, "correct": "01", "seconds": 1.0, "epochs": 2}
        record["loss"] = 0.7
        record |= {"prepare_seconds": 0.5, "wall_seconds": 2.0, "images": 12}
        return {**record, "corrupted": {name: "01" for name in cell.corruptions}}


SMOKE = ("--study", "few-shot", "why", "robustness", "--smoke", "--workers", 1)
BENCH = ("--study", "bench", "--smoke", "--workers", 1, "--repeats", 2)
SMOKE = (*SMOKE, "--repeats", 1)


def whole(tables):
    """Whether all tables, pictures and rows of the three studies are written."""
    names = {path.name for path in tables.iterdir()}
    kinds = ("accuracy", "differences", "times", "curves")
    expected = {f"few-shot-{n}.png" for n in kinds} | {"few-shot.parquet"}
    expected |= {f"why-ablation.{n}" for n in ("md", "tex", "csv", "png")}
    return names >= expected | {"few-shot.csv", "why.csv", "robustness.csv"}


def test_all_studies(tmp_path, capsys, monkeypatch):
    """Chooses, "trains", writes all tables."""
    monkeypatch.setattr(command.run, "Trainer", Fast)
    monkeypatch.setattr(preview, "check_sources", lambda plan, store: None)
    rates = {("efficientnet_lite0", 48): 1.0}
    monkeypatch.setattr(preview, "image_seconds", lambda cells, store: rates)
    assert command.main(arguments(*SMOKE, "--store", tmp_path), SCRIPT) == 0
    assert "failed" not in capsys.readouterr().out
    assert whole(tmp_path / "tables")


def test_study_of_the_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.run, "Trainer", Fast)
    monkeypatch.setattr(preview, "check_sources", lambda plan, store: None)
    args = arguments(*BENCH, "--store", tmp_path)
    (protocol,) = {e.cell.protocol.name for e in command._entries("bench", args)}
    assert protocol == "bench"
    rates = {("efficientnet_lite0", 48): 1.0}
    monkeypatch.setattr(preview, "image_seconds", lambda cells, store: rates)
    assert command.main(args, SCRIPT) == 0
    shown = capsys.readouterr().out
    assert "recipe minus the other methods" in shown and "failed" not in shown
    for stem in ("accuracy", "means", "differences", "times"):
        text = (tmp_path / "tables" / f"bench-{stem}.md").read_text()
        assert "fastai's fine_tune" in text and "linear probe" in text


def test_studies_around_the_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.run, "Trainer", Fast)
    monkeypatch.setattr(preview, "check_sources", lambda plan, store: None)
    rates = {("efficientnet_lite0", 48): 1.0}
    monkeypatch.setattr(preview, "image_seconds", lambda cells, store: rates)
    names = ("recipe", "distances", "search", "averages")
    line = ("--study", *names, "--smoke", "--workers", 1, "--repeats", 1)
    assert command.main(arguments(*line, "--store", tmp_path), SCRIPT) == 0
    assert "failed" not in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "tables").glob("*.md")}
    assert written == {
        *("recipe-parts.md", "distances-parts.md"),
        *("search-choice.md", "search-candidates.md"),
        *(f"averages-{n}.md" for n in ("accuracy", "differences", "losses")),
    }


def test_seconds_of_an_image_leave_out_heads_alone(tmp_path):
    store = ResultStore(tmp_path)
    record = {"accuracy": 0.5, "wall_seconds": 8.0, "epochs": 2, "images": 4}
    cell = Cell("cub", "l2", image_size=32)
    store.put(cell, record)
    store.put(cell.replace(method="probe"), {**record, "epochs": 0})
    assert preview.image_seconds([cell], store) == {("efficientnet_lite0", 32): 1.0}


@pytest.mark.slow
def test_smoke(tmp_path, capsys):
    """Chooses, trains, tests, writes all tables; again, it finds everything done."""
    line = [sys.executable, SCRIPT, *map(str, SMOKE), "--store", tmp_path]
    first = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    assert "failed" not in first.stdout
    assert whole(tmp_path / "tables")
    records = sorted((tmp_path / "cells").iterdir())
    before = {path: path.stat().st_mtime_ns for path in records}
    assert command.main(arguments(*SMOKE, "--store", tmp_path), SCRIPT) == 0
    assert "All cells are done." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in records} == before


@pytest.mark.parametrize("same", [True, False])
def test_a_cell_again(tmp_path, monkeypatch, capsys, same):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    cell, store = Cell("cub", "l2"), ResultStore(tmp_path)
    old = {"accuracy": 0.5, "loss": 0.7, "correct": "01", "threads": 1}
    store.put(cell, old)
    new = old if same else {**old, "loss": 0.7 + 1e-15}
    trained = []

    def rerun(*given):
        trained.append(given)
        return old, new

    monkeypatch.setattr(command.run, "rerun", rerun)
    args = arguments("--cell", cell.key, "--store", tmp_path, "--data-dir", "data")
    assert command.main(args, SCRIPT) == (0 if same else 1)
    ((asked, _, folder),) = trained
    assert asked == cell and folder == Path("data")
    shown = capsys.readouterr().out
    assert (
        "cub, efficientnet_lite0, L2, seed 0 again, on 1 thread an operation" in shown
    )
    assert ("The same to the last digit." if same else "They differ.") in shown


def done(args, tmp_path, accuracy):
    """A store in which all cells of a command are done, `accuracy(cell)` each."""
    store = ResultStore(tmp_path)
    for name in command._names(args):
        for cell in Plan(command._entries(name, args)).staged(store):
            value = accuracy(cell)
            points = [[1, value / 2], [2, value]] if cell.curve else None
            record = {"accuracy": value, "correct": "1" * 6, "curve": points}
            record |= {"seconds": 1.0, "prepare_seconds": 0.0, "wall_seconds": 2.0}
            store.put(cell, {**record, "epochs": 2, "images": 12})
    args.store, args.workers = tmp_path, 1
    return store


@pytest.mark.parametrize(
    ("options", "table", "augmentation"),
    [(("--table", 1), 1, "default"), (("--table", 2), 2, "improved")],
)
def test_tables_of_the_article(flowers, tmp_path, capsys, options, table, augmentation):
    args = arguments(*options, "--datasets", "cub", "--networks", "resnet101")
    store = done(args, tmp_path, lambda cell: 0.80 + 0.001 * cell.seed)
    assert command.main(args, SCRIPT) == 0
    shown = capsys.readouterr().out
    assert "All cells are done." in shown
    text = (tmp_path / "tables" / f"table-{table}-article.md").read_text()
    assert "80.2 ± 0.2" in text  # 80.0 to 80.4
    assert {1: "80.5", 2: "82.6"}[table] in text  # DELTA's, in the article
    # deviations 0.158 of ours and 0.3 of the article's, five repeats each
    error = ((0.158114**2 + 0.3**2) / 5) ** 0.5
    assert f"−{({1: 80.5, 2: 82.6}[table] - 80.2) / error:.1f}" in text
    settings = next(iter(store.records().values()))["settings"]
    assert settings["protocol"]["augmentation"] == augmentation
    assert settings["protocol"]["ten_crop"] == {1: None, 2: "logits"}[table]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--table", 2, "--protocol", "code"), "improved_code, schedule exponential"),
        (("--table", 1, "--protocol", "tllib"), "tllib, schedule step"),
        (("--table", 1, "--schedule", "exponential"), "default, schedule exponential"),
    ],
)
def test_the_articles_table_by_another_protocol(flowers, tmp_path, options, named):
    given = ("--datasets", "cub", "--networks", "resnet101", "--repeats", 2)
    args = arguments(*options, *given)
    done(args, tmp_path, lambda cell: 0.80 + 0.002 * cell.seed)
    assert command.main(args, SCRIPT) == 0
    text = (tmp_path / "tables" / f"table-{options[1]}-article.md").read_text()
    assert "80.1 ± 0.1 (2)" in text and f"Ours: augmentation {named}." in text


def test_trainings_that_failed_are_named_below_the_table(flowers, tmp_path, capsys):
    args = arguments("--study", "why", "--datasets", "folder:a", "--per-class", 2)
    store = done(args, tmp_path, lambda cell: 0.5)
    peaked = [
        cell
        for cell in Plan(command._entries("why", args)).staged(store)
        if cell.temperature == 1
    ]
    for cell in peaked[:2]:
        store.put(cell, {"failed": "Batch 1: the loss is nan.\nIt was alpha."})
    assert command.main(args, SCRIPT) == 0
    said = (
        "Trainings that failed, and are in no number: folder:a, 2 a class, "
        "efficientnet_lite0, DELTA, temperature 1 (2)."
    )
    assert said in (tmp_path / "tables" / "why-ablation.md").read_text()
    assert capsys.readouterr().out.count("failed: folder:a") == 2


def test_figure_of_the_article(flowers, tmp_path, capsys):
    args = arguments("--figure", 3, "--datasets", "cub")
    store = done(args, tmp_path, lambda cell: 0.5)
    assert command.main(args, SCRIPT) == 0
    assert (tmp_path / "tables" / "figure-3-curves.png").stat().st_size > 10_000
    found = [record["settings"] for record in store.records().values()]
    kinds = {(s["method"], s["protocol"]["schedule"]) for s in found}
    assert kinds == {
        (method, schedule)
        for method in ("l2", "l2_sp", "delta")
        for schedule in ("step", "exponential")
    }
    assert len(found) == 6 * 5 and all(s["curve"] for s in found)


def test_the_article_chooses_among_its_25_pairs(flowers, tmp_path):
    args = arguments("--table", 1, "--datasets", "cub", "--networks", "resnet101")
    args.choose, args.methods = True, ["delta"]
    cells = list(Plan(command._entries("table-1", args)).staged(ResultStore(tmp_path)))
    grid = (1e-4, 1e-3, 1e-2, 0.1, 0.2)
    assert len(cells) == 25 * 5
    assert {(c.alpha, c.beta) for c in cells} == {(a, b) for a in grid for b in grid}
    assert {c.fold for c in cells} == {(k, 5) for k in range(5)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--table", 1, "--per-class", 5), "--per-class goes with --study alone."),
        (("--figure", 3, "--smoke"), "--smoke goes with --study alone."),
        (("--table", 1, "--image-size", 64), "--image-size goes with --study alone."),
        (
            ("--study", "why", "--choose"),
            "--choose goes with --table or --figure alone.",
        ),
        (
            ("--study", "why", "--weights", "a.h5"),
            "--weights goes with --table or --figure alone.",
        ),
        (
            ("--study", "why", "--per-class", 5),
            "--per-class needs --datasets: the study's own data sets have their own "
            "numbers of images.",
        ),
        (
            ("--study", "why", "--smoke", "--datasets", "cub"),
            "--smoke has its own data and methods: omit --datasets.",
        ),
        (
            ("--table", 1, "--epochs", "--workers", 2),
            "--epochs shows those of one process: use --workers 1.",
        ),
        (
            ("--study", "few-shot", "family", "--methods", "l2"),
            "--study family has its own methods: omit --methods.",
        ),
    ],
)
def test_options_without_sense(tmp_path, options, said):
    with pytest.raises(ValueError) as error:
        command.main(arguments(*options, "--store", tmp_path), SCRIPT)
    assert str(error.value) == said


def test_an_image_that_cannot_be_read_is_looked_for_until_it_is_mended(tmp_path):
    folder = tmp_path / "data" / "mine"
    photographs = data.embedded_photographs(40, 4, 2)
    for part, images in photographs.items():
        pixels, labels = images.arrays(40, dtype="uint8")
        for i in np.flatnonzero(labels < 2):
            place = folder / part / f"class {labels[i]}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(place / f"{i}.png")
    broken = folder / "train" / "class 1" / "7.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    plan = Plan(studies.few_shot((("folder:mine", 2),), methods=("l2_fe",)))
    store = ResultStore(tmp_path / "store")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of 12 image files cannot be read"):
            preview.check_data(plan, store, tmp_path / "data")
    broken.write_bytes(whole)
    assert preview.check_data(plan, store, tmp_path / "data") == {"folder:mine": (8, 2)}


def test_a_cell_is_trained_again_as_it_was(tmp_path):
    ResultStore(tmp_path)
    args = arguments("--cell", "0123", "--store", tmp_path, "--iterations", 5)
    with pytest.raises(ValueError) as error:
        command.main(args, SCRIPT)
    assert str(error.value) == (
        "--iterations does not go with --cell: it is trained again as it was."
    )
    args = arguments("--cell", "0123", "--store", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--store: there are no results in"):
        command.main(args, SCRIPT)
    assert not (tmp_path / "nowhere").exists()


def test_output_that_cannot_be_written(tmp_path, no_gpu):
    (tmp_path / "file").touch()
    args = arguments("--study", "why", "--store", tmp_path / "s")
    args.output = tmp_path / "file"
    with pytest.raises(ValueError, match=r"`--output`. Expected a folder .* File exi"):
        command.main(args, SCRIPT)


def test_a_plan_notes_nothing(flowers, tmp_path, monkeypatch):
    given = ("--study", "few-shot", "--datasets", "folder:flowers", "--per-class", 2, 2)
    args = arguments(*given, "--methods", "l2_fe", "--plan", "--store", tmp_path)
    rates = {("efficientnet_lite0", 112): 1.0}
    monkeypatch.setattr(preview, "image_seconds", lambda *_: rates)
    assert command.main(args, SCRIPT) == 0
    assert not (tmp_path / "data.json").exists()
    assert len(command._entries("few-shot", args)) == 3  # seeds; 2 counts once


def test_weights_fail_first(flowers, tmp_path):
    path = tmp_path / "broken.keras"
    path.write_text("nothing of the kind")
    plan = Plan(studies.article(1, datasets="cub", networks="resnet50", weights=path))
    with pytest.raises(ValueError, match="resnet50"):
        preview.check_sources(plan, ResultStore(tmp_path / "s"))


@pytest.mark.parametrize(
    "settings", [("folder:mine", 10), (("folder:mine", "3"),), "cub", ((3, "cub"),)]
)
def test_settings_that_are_no_pairs(settings):
    with pytest.raises(TypeError, match=r"`settings`. Expected pairs \(data set, ima"):
        studies.few_shot(settings)


def test_known_results_are_not_trained_again(flowers, tmp_path, capsys, monkeypatch):
    """Choices first, so that the results that they lead to are found as well."""
    given = ("--study", "few-shot", "--datasets", "folder:flowers", "--per-class", 3)
    args = arguments(*given, "--methods", "l2_fe", "l2")
    done(args, tmp_path / "theirs", lambda cell: 0.5 + 0.1 * (cell.alpha == 1e-2))
    store = ResultStore(tmp_path / "theirs")
    for cell in Plan(command._entries("few-shot", args)).pending(store):
        store.put(cell, {"accuracy": 0.9, "correct": "01"})  # strengths are chosen now
    assert command.main(args, SCRIPT) == 0
    records = store.records().items()
    measured = {key: (r["accuracy"], r["correct"]) for key, r in records}
    assert len(measured) == 9 + 2 * 3
    args = arguments(*given, "--methods", "l2_fe", "l2", "--workers", 1)
    args.store, args.known = tmp_path / "ours", tmp_path / "theirs" / "tables"
    # Another study's file, with the same cells: our own comes first.
    other = (args.known / "few-shot.csv").read_text().replace("0.5", "0.4")
    (args.known / "bench.csv").write_text(other)
    capsys.readouterr()
    assert command.main(args, SCRIPT) == 0
    shown = capsys.readouterr().out
    assert "Took 9 results from" in shown and "few-shot-choices.csv." in shown
    assert "All cells are done." in shown and "Left out" not in shown
    assert [
        {key: (r["accuracy"], r["correct"]) for key, r in of.records().items()}
        for of in (ResultStore(args.store), store)
    ] == [measured] * 2
    # Not where the images are others.
    less = {**flowers, "train": flowers["train"].subset(np.arange(11))}
    monkeypatch.setattr(data, "load", lambda name, data_dir=None, **options: less)
    monkeypatch.setattr(command.run, "run", lambda *_, **__: None)
    monkeypatch.setattr(
        preview, "image_seconds", lambda *_: {("efficientnet_lite0", 112): 1.0}
    )
    args.store = tmp_path / "others"
    assert command.main(args, SCRIPT) == 0
    shown = capsys.readouterr().out
    path = args.known / "few-shot-choices.csv"
    assert f"Left out 9 of {path}, not known to be of the images here." in shown
    assert "Took" not in shown
