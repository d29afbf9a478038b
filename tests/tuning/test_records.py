"""`Record`: what a cell's trainings gave, found by whoever has the same values."""

import json
import multiprocessing
import time

import numpy as np
import pytest

from keras_delta.tuning.records import Record, mean_metrics

VALUES = {"alpha": 0.1, "beta": 0.01, "taps": "all"}


def add(record, fold, accuracy=0.5):
    record.add(fold, {"val_accuracy": accuracy}, seconds=1.5, epochs=3)


def test_an_empty_cell(tmp_path):
    record = Record(tmp_path, VALUES)
    assert (record.folds, record.end) == ({}, {})
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


def test_what_was_added_is_found_in_the_order_of_the_folds(tmp_path):
    record = Record(tmp_path, VALUES)
    for fold in (10, 2, 0):
        add(record, fold, fold / 10)
    again = Record(tmp_path, VALUES).folds
    assert list(again) == [0, 2, 10]
    assert again[2] == {"metrics": {"val_accuracy": 0.2}, "seconds": 1.5, "epochs": 3}


def test_the_order_of_the_values_does_not_matter(tmp_path):
    add(Record(tmp_path, VALUES), 1)
    same = dict(reversed(VALUES.items()))
    assert list(same) != list(VALUES)
    assert list(Record(tmp_path, same).folds) == [1]


@pytest.mark.parametrize(
    "other",
    [
        {**VALUES, "alpha": 0.1 + 1e-15},
        {**VALUES, "taps": "last"},
        {**VALUES, "tuner/epochs": 2},
        {"alpha": 0.01, "beta": 0.1, "taps": "all"},
        {},
    ],
    ids=str,
)
def test_other_values_are_another_cell(tmp_path, other):
    add(Record(tmp_path, VALUES), 1)
    assert Record(tmp_path, other).folds == {}


@pytest.mark.parametrize("number", [np.float64(0.1), np.asarray(0.1)[()]])
def test_numpy_numbers_are_the_same_values(tmp_path, number):
    add(Record(tmp_path, VALUES), 1)
    assert list(Record(tmp_path, {**VALUES, "alpha": number}).folds) == [1]


def test_numpy_integers_are_the_same_values(tmp_path):
    add(Record(tmp_path, {"tuner/epochs": 3}), 1)
    assert list(Record(tmp_path, {"tuner/epochs": np.int64(3)}).folds) == [1]


def test_numpy_metrics_are_stored_as_numbers(tmp_path):
    record = Record(tmp_path, VALUES)
    record.add(0, {"val_loss": np.float32(0.5)}, np.float64(1.0), np.int64(2))
    stored = {"metrics": {"val_loss": 0.5}, "seconds": 1.0, "epochs": 2}
    assert record.folds == {0: stored}


def test_a_fold_that_was_not_written_whole_is_not_there(tmp_path):
    record = Record(tmp_path, VALUES)
    add(record, 0)
    (file,) = tmp_path.glob("*/fold_0.json")
    file.with_name("fold_1.json").write_text(file.read_text()[:-10])
    file.with_name(".fold_2.123.tmp.json").write_text(file.read_text())
    assert list(record.folds) == [0]


def test_an_interrupted_write_leaves_the_old_result(tmp_path, monkeypatch):
    record = Record(tmp_path, VALUES)
    add(record, 0, 0.25)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        add(record, 0, 0.75)
    assert record.folds[0]["metrics"] == {"val_accuracy": 0.25}


def test_how_it_ended(tmp_path):
    record = Record(tmp_path, VALUES)
    record.ended(failed="Fold 1: the loss is NaN.")
    end = Record(tmp_path, VALUES).end
    assert end["failed"] == "Fold 1: the loss is NaN." and "discarded" not in end
    assert abs(end["at"] - time.time()) < 60
    assert record.folds == {}


def test_the_folder_says_what_it_is_of(tmp_path):
    record = Record(tmp_path, VALUES)
    with record.locked():
        (file,) = tmp_path.glob("*/values.json")
        assert json.loads(file.read_text()) == VALUES
        add(record, 0)  # the holder of the lock may write


def _hold(folder, held, release):
    with Record(folder, VALUES).locked():
        held.set()
        release.wait(30)


def _take(folder, taken):
    with Record(folder, VALUES).locked():
        taken.put(time.monotonic())


def test_one_process_at_a_time(tmp_path):
    """The second gets in when the first lets go, and at once after a kill."""
    context = multiprocessing.get_context("fork")
    held, release, taken = context.Event(), context.Event(), context.Queue()
    first = context.Process(target=_hold, args=(tmp_path, held, release))
    first.start()
    assert held.wait(30)
    second = context.Process(target=_take, args=(tmp_path, taken))
    second.start()
    second.join(0.5)
    assert second.is_alive() and taken.empty()
    with Record(tmp_path, {**VALUES, "alpha": 9.0}).locked():
        pass  # another cell is free
    first.kill()
    assert taken.get(timeout=30)
    first.join()
    second.join()


def test_mean_metrics():
    folds = {
        0: {"metrics": {"val_loss": 1.0, "val_accuracy": 0.25}},
        2: {"metrics": {"val_loss": 2.0, "val_accuracy": 0.75}},
        3: {"metrics": {"val_loss": 6.0, "val_accuracy": 0.5}},
    }
    assert mean_metrics(folds) == {"val_loss": 3.0, "val_accuracy": 0.5}
    assert mean_metrics({}) == {}


def test_a_folder_of_the_version_before(tmp_path):
    """The same hash, the same files."""
    folder = tmp_path / "baac172796a1e4a6"
    folder.mkdir()
    (folder / "values.json").write_text('{"alpha": 0.1, "beta": 0.01, "taps": "all"}')
    fold = '{"metrics": {"val_accuracy": 0.25}, "seconds": 1.5, "epochs": 3}'
    (folder / "fold_2.json").write_text(fold)
    (folder / "end.json").write_text('{"discarded": 0.5, "at": 1.0}')
    record = Record(tmp_path, VALUES)
    assert record.folds == {2: json.loads(fold)}
    assert record.end["discarded"] == 0.5
