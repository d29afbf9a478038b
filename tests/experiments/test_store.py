"""`ResultStore`: what is put there is found, whoever else writes and is killed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import keras
import pandas as pd
import pytest
import tensorflow as tf
from experiments.cell import Cell
from experiments.store import ResultStore, versions

import keras_delta as kd

HERE = Path(__file__).parent
CHILD = HERE / "scripts" / "store_child.py"
CELL = Cell("cub", "delta", per_class=5, factor="alpha", label="5", alpha=5.0)
FAILED = CELL.replace(seed=1)
LACKING = CELL.replace(seed=2)
RECORD = {
    "accuracy": 0.75,
    "loss": 0.5,
    "correct": "0111",
    "seconds": 12.0,
    "prepare_seconds": 1.5,
    "epochs": 3,
    "curve": [[1, 0.5], [2, 0.75]],
    "corrupted": {"blur 3": "0101"},
}
COLUMNS = [
    *("key", "dataset", "data", "per_class", "network", "image_size", "method"),
    *("factor", "protocol", "augmentation", "schedule"),
    *("label", "alpha", "beta", "seed", "label_noise", "fold"),
    *("accuracy", "loss", "calibration_error", "seconds", "prepare_seconds"),
    *("wall_seconds", "epochs"),
    *("images", "training_accuracy", "feature_penalty", "threads"),
    *("correct", "curve", "corrupted", "versions"),
]


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "store")


@pytest.fixture
def filled(store):
    store.put(CELL, RECORD)
    store.put(FAILED, {"failed": "Batch 1: the loss is nan."})
    return store


def refused(sentence, error=ValueError):
    return pytest.raises(error, match=f"^{re.escape(sentence)}$")


def child(*arguments):
    """A process that uses a store, in versions of its own ("0")."""
    return subprocess.Popen(
        [sys.executable, str(CHILD), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_was_put_is_found(store):
    assert CELL not in store and store.get(CELL) is None and len(store) == 0
    store.put(CELL, RECORD)
    whole = {"settings": CELL.settings(), "versions": versions(), **RECORD}
    for there in (store, ResultStore(store.folder)):
        assert CELL in there and len(there) == 1
        assert there.get(CELL) == there.get(CELL.key) == whole
        assert there.records() == {CELL.key: whole}
    # What it is for is not part of it.
    assert CELL.replace(factor="", label="") in store
    assert CELL.replace(alpha=4.0) not in store


def test_file_of_a_record(store):
    store.put(CELL, RECORD)
    path = store.folder / "cells" / f"{CELL.key}.json"
    assert json.loads(path.read_text("utf-8")) == store.get(CELL)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_versions():
    assert versions() == {
        "keras_delta": kd.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }


def test_put_again_and_forget(store):
    store.put(CELL, RECORD)
    store.put(CELL, {"accuracy": 0.5})
    assert store.get(CELL)["accuracy"] == 0.5
    assert ResultStore(store.folder).get(CELL)["accuracy"] == 0.5
    store.forget(CELL)
    store.forget(CELL)
    assert CELL not in store and len(store) == 0
    assert CELL not in ResultStore(store.folder)


def test_record_of_another_process_is_seen(store):
    assert CELL not in store
    ResultStore(store.folder).put(CELL, RECORD)
    assert CELL in store and len(store) == 1


def test_record_that_comes_while_it_is_looked_for(store, monkeypatch):
    """It is not there yet; that is no damage."""
    read = Path.read_text

    def late(path, *arguments):
        monkeypatch.undo()
        with pytest.raises(FileNotFoundError) as error:
            read(path, *arguments)
        ResultStore(store.folder).put(CELL, RECORD)
        raise error.value

    monkeypatch.setattr(Path, "read_text", late)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CELL not in store
    assert CELL in store


def test_broken_file_is_no_record(store):
    store.put(CELL, RECORD)
    path = store.folder / "cells" / f"{CELL.key}.json"
    for text in ("", '{"accuracy": 0.', "\x00\xff", "{}", '{"settings": {}}'):
        path.write_bytes(text.encode("latin-1"))
        again = ResultStore(store.folder)
        with pytest.warns(UserWarning, match=f"{CELL.key}.json is damaged: its cell"):
            assert CELL not in again
        assert again.records() == {}
        assert again.frame([CELL]).empty and again.failed([CELL]) == []


def test_what_a_killed_writer_left_is_no_record(filled):
    left = filled.folder / "cells" / f".{LACKING.key}.12345.tmp.json"
    left.write_text(json.dumps(RECORD))
    assert len(filled) == 2
    assert filled.records().keys() == {CELL.key, FAILED.key}


def test_folder_in_which_the_first_was_killed(tmp_path):
    # In the middle of writing store.json, or before anything else.
    (tmp_path / ".store.12345.tmp.json").write_text('{"form')
    assert len(ResultStore(tmp_path)) == 0
    assert (tmp_path / "store.json").exists()


def test_table(filled):
    frame = filled.frame([CELL, FAILED, LACKING, CELL.replace(label="again")])
    assert sorted(frame.columns) == sorted(COLUMNS)
    assert list(frame["label"]) == ["5", "again"]
    first = frame.iloc[0].to_dict()
    expected = {
        **{k: v for k, v in RECORD.items()},
        "key": CELL.key,
        "dataset": "cub",
        "per_class": 5,
        "network": "efficientnet_lite0",
        "method": "delta",
        "factor": "alpha",
        "label": "5",
        "protocol": "few_shot",
        "augmentation": "default",
        "schedule": "step",
        "alpha": 5.0,
        "beta": 0.01,  # the regularizer's own
        "seed": 0,
        "label_noise": 0.0,
    }
    assert {k: first[k] for k in expected} == expected
    assert first["image_size"] is None and first["fold"] is None
    assert first["data"] is None
    filled.keep_data("cub", "0123456789abcdef")
    assert list(filled.frame([CELL])["data"]) == ["0123456789ab"]


def test_strengths_of_the_recipe(store):
    cell = Cell("cub", "recipe", recipe={"regularizer": "l2_sp"})
    own = kd.regularizers.get("l2_sp").alpha
    for alpha, expected in ((None, own), (0.3, 0.3)):
        its = cell.replace(alpha=alpha)
        store.put(its, RECORD)
        assert store.frame([its])["alpha"].tolist() == [expected]
    plain = Cell("cub", "recipe", recipe={"regularizer": "none"})
    store.put(plain, RECORD)
    assert store.frame([plain])["alpha"].isna().all()


def test_table_of_folds_and_of_nothing(store):
    cell = CELL.replace(fold=(2, 5))
    store.put(cell, RECORD)
    assert list(store.frame([cell])["fold"]) == [2]
    empty = store.frame([LACKING])
    assert sorted(empty.columns) == sorted(COLUMNS) and len(empty) == 0


def test_failed(filled):
    assert filled.failed([CELL, FAILED, LACKING]) == [
        (FAILED, "Batch 1: the loss is nan.")
    ]


def test_saved_tables(filled, tmp_path):
    made = filled.save(
        [CELL, FAILED, CELL.replace(label="b")], tmp_path / "out" / "a.b"
    )
    assert made == [tmp_path / "out" / f"a.b.{kind}" for kind in ("csv", "parquet")]
    assert sorted(p.name for p in made[0].parent.iterdir()) == [
        "a.b.csv",
        "a.b.parquet",
    ]
    for found in (pd.read_csv(made[0]), pd.read_parquet(made[1])):
        assert sorted(found.columns) == sorted(COLUMNS)
        assert list(found["label"].astype(str)) == ["5", "b"]
        assert list(found["accuracy"]) == [0.75, 0.75]
        assert [json.loads(text) for text in found["curve"]] == [RECORD["curve"]] * 2
        assert json.loads(found["corrupted"][0]) == {"blur 3": "0101"}
    # Digits, not a number: 0 comes first.
    assert list(pd.read_parquet(made[1])["correct"]) == ["0111"] * 2
    text = pd.read_csv(made[0], dtype={"correct": str})
    assert list(text["correct"]) == ["0111"] * 2


def test_saved_rows_are_results_again(filled, tmp_path):
    """To the last digit; of cells that are asked for, lack, and have these versions."""
    filled.keep_data("cub", "0123456789abcdef")
    third = CELL.replace(seed=3)
    exact = {**RECORD, "loss": 1 / 3, "accuracy": 0.1 + 0.2}
    filled.put(third, exact)
    path, _ = filled.save([CELL, FAILED, third], tmp_path / "rows")
    other = with_images(tmp_path / "other")
    assert other.take(path, [third, FAILED, LACKING]) == (1, 0)
    assert other.get(third) == filled.get(third)
    assert CELL not in other and FAILED not in other
    assert other.take(path, [CELL, third]) == (1, 0)  # the third is there
    path.write_text(path.read_text().replace(keras.__version__, "2.0"))
    fresh = with_images(tmp_path / "fresh")
    assert fresh.take(path, [third]) == (0, 0)
    assert ResultStore(fresh.folder, any_version=True).take(path, [third]) == (1, 0)


def with_images(folder, digest="0123456789abcdef"):
    store = ResultStore(folder)
    store.keep_data("cub", digest)
    return store


def test_rows_of_other_images_are_left(filled, tmp_path):
    """Or of unknown ones, there or here."""
    path, _ = filled.save([CELL], tmp_path / "unknown")
    here = with_images(tmp_path / "here")
    assert here.take(path, [CELL]) == (0, 1)
    text = path.read_text().replace(",data,", ",")  # as before there was a column
    path.write_text(text.replace(",cub,,", ",cub,"))
    assert here.take(path, [CELL]) == (0, 1)
    filled.keep_data("cub", "0123456789abcdef")
    path, _ = filled.save([CELL], tmp_path / "known")
    assert with_images(tmp_path / "b", "0123456789ad").take(path, [CELL]) == (0, 1)
    assert ResultStore(tmp_path / "c").take(path, [CELL]) == (0, 1)
    assert here.take(path, [CELL]) == (1, 0)


def test_rows_of_something_else(tmp_path, store):
    (tmp_path / "a.csv").write_text("method,accuracy\nl2,0.5\n")
    with pytest.raises(ValueError, match="Unknown name for `columns`"):
        store.take(tmp_path / "a.csv", [CELL])


def test_saved_tables_of_nothing(store, tmp_path):
    for path in store.save([], tmp_path / "none"):
        read = pd.read_csv if path.suffix == ".csv" else pd.read_parquet
        assert sorted(read(path).columns) == sorted(COLUMNS) and len(read(path)) == 0


def test_saved_tables_without_pyarrow(filled, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert filled.save([CELL], tmp_path / "a") == [tmp_path / "a.csv"]
    assert [p.name for p in tmp_path.glob("a.*")] == ["a.csv"]


def test_same_version_goes_on(filled):
    assert len(ResultStore(filled.folder)) == 2
    assert len(ResultStore(str(filled.folder))) == 2


def test_other_version_is_refused(filled):
    path = filled.folder / "store.json"
    there = json.loads(path.read_text())
    there["versions"]["keras"] = "2.0"
    del there["versions"]["tensorflow"]
    path.write_text(json.dumps(there))
    with refused(
        f"The results in {filled.folder} are of another version (keras 2.0 there and "
        f"{keras.__version__} now, tensorflow None there and {tf.__version__} now). "
        "Choose another folder for new ones, or go on nonetheless with "
        "any_version=True (on the command line --any-version)."
    ):
        ResultStore(filled.folder)
    assert len(ResultStore(filled.folder, any_version=True)) == 2
    assert json.loads(path.read_text()) == there


@pytest.mark.parametrize("any_version", [True, False])
def test_other_format_is_refused(tmp_path, any_version):
    text = '{"format": 3, "versions": {}}'
    (tmp_path / "store.json").write_text(text)
    with refused(
        f"The result store {tmp_path} was written in format 3; this version reads "
        "format 2. Choose another folder."
    ):
        ResultStore(tmp_path, any_version)
    assert (tmp_path / "store.json").read_text() == text


@pytest.mark.parametrize("text", ["{}", "[1, 2]", '{"form'])
def test_damaged_store_can_be_mended(filled, text):
    path = filled.folder / "store.json"
    path.write_text(text)
    with refused(
        f"{path} is damaged. If the results beside it are of these versions of "
        "keras_delta, Keras and TensorFlow, delete that file alone; else choose "
        "another folder."
    ):
        ResultStore(filled.folder, any_version=True)
    path.unlink()
    assert len(ResultStore(filled.folder)) == 2


@pytest.mark.parametrize("name", ["package.json", "photo.jpg"])
def test_folder_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with refused(
        f"The folder {tmp_path} is no result store: it holds {name} and no "
        "store.json. Choose an empty folder."
    ):
        ResultStore(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_path_that_is_none(tmp_path):
    with pytest.raises(TypeError, match=r"`folder`\. Expected the path of a folder"):
        ResultStore(None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`folder`\. Expected the path of a folder"):
        ResultStore(tmp_path / "file")


def test_images_of_a_data_set(store):
    assert not store.same_data("cub", "0123")
    assert not store.same_data("cub", "4567")  # nothing is known yet
    store.keep_data("cub", "0123")
    store.keep_data("pets", "89ab")
    assert ResultStore(store.folder).same_data("cub", "0123")
    with refused(
        f"The results of cub in {store.folder} are of other images than those that are "
        "there now. Choose another folder for new results, or bring the old images "
        "back."
    ):
        store.same_data("cub", "4567")


def test_claims(store):
    other = ResultStore(store.folder)
    with (
        store.claimed(CELL) as mine,
        other.claimed(CELL) as theirs,
        other.claimed(LACKING) as free,
    ):
        assert (mine, theirs, free) == (True, False, True)
    with other.claimed(CELL) as theirs:
        assert theirs


def taken(store, process):
    """The refusal of a second run."""
    return refused(
        f"Another run (process {process}) works on {store.folder}. Wait for it, stop "
        "it, or choose another folder.",
        RuntimeError,
    )


def test_alone_in_one_process(store):
    other = ResultStore(store.folder)
    for _ in range(2):
        with store.alone(), taken(store, os.getpid()), other.alone():
            pass
    with pytest.raises(KeyError), store.alone():
        raise KeyError
    with store.alone():
        pass


def test_alone_ends_with_a_killed_process(store):
    process = child("alone", store.folder)
    assert process.stdout.readline() == "mine\n"
    with taken(store, process.pid), store.alone():
        pass
    process.kill()
    process.wait()
    with store.alone():
        assert (store.folder / "run.lock").read_text() == str(os.getpid())


def test_two_processes_share_a_store(store):
    theirs = [child("put", store.folder, k, 2, 40) for k in range(2)]
    for process in theirs:
        assert process.wait(60) == 0
    cells = [CELL.replace(seed=seed) for seed in range(40)]
    assert [store.get(c)["accuracy"] for c in cells] == [s / 40 for s in range(40)]
    assert [store.get(c)["settings"] for c in cells] == [c.settings() for c in cells]
    assert len(store) == 40


def test_killed_writers_leave_whole_files(store):
    """Every file parses, at every moment and after every death."""
    draw = random.Random(1)
    for _ in range(int(os.environ.get("KERAS_DELTA_KILLS", "6"))):
        writer = child("forever", store.folder)
        assert writer.stdout.readline() == "ready\n"
        until = time.monotonic() + draw.uniform(0, 0.2)
        while True:
            over = time.monotonic() > until
            if over:
                os.kill(writer.pid, signal.SIGKILL)
                writer.wait()
            for path in (store.folder / "cells").iterdir():
                if not path.name.startswith("."):
                    found = json.loads(path.read_text("utf-8"))
                    assert len(found["padding"]) == found["length"]
            if over:
                break
    again = ResultStore(store.folder)
    assert len(again) == len(again.records()) == 5
    # The next writer of a cell sweeps up what the killed ones left of it.
    for seed in range(5):
        again.put(CELL.replace(seed=seed), RECORD)
    assert len(list((store.folder / "cells").iterdir())) == 5
