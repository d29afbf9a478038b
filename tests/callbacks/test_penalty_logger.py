"""The CSV file of penalties: its rows, and what becomes of it over several runs."""

import csv
import math

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

from keras_delta.callbacks import PenaltyLogger
from keras_delta.callbacks.step_table import StepTable
from keras_delta.regularizers import L2SP, Delta

X, Y = reference.learnable_data(16)
NORMS = [f"gradient_norm/{part}" for part in ("task", "feature", "head")]
LOSSES = ["task_loss", "feature_penalty", "head_penalty"]
COLUMNS = [
    *("epoch", "step", *LOSSES, "penalty/conv0", "penalty/conv1"),
    *(*NORMS, "gradient_angle"),
]


def make(new_backbone, regularizer="delta", **kwargs):
    if regularizer == "delta":
        regularizer = Delta(0.5, 0.1, attention=reference.WEIGHTS)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    pair = reference.pair(new_backbone, batch_norm=True)
    kwargs = {"run_eagerly": True, "optimizer": optimizer, **kwargs}
    return reference.compiled(*pair, regularizer, **kwargs)


def fit(model, *callbacks, epochs=2, **kwargs):
    """Four steps an epoch, in the order of the data."""
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs)


def read(path):
    with open(path, newline="") as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


def column(path, name):
    return [row[name] for row in read(path)]


def test_one_step_an_epoch_gives_what_fit_logs(new_backbone, tmp_path):
    logger = PenaltyLogger(tmp_path / "new" / "logs", every=1)
    logs = fit(make(new_backbone), logger, epochs=3, batch_size=16).history
    rows = read(logger.path)
    assert list(rows[0]) == COLUMNS
    assert [row["epoch"] for row in rows] == [row["step"] for row in rows] == [0, 1, 2]
    for name in LOSSES:
        found = [row[name] for row in rows]
        np.testing.assert_allclose(found, logs[name], rtol=1e-6)
    for row in rows:
        taps = row["penalty/conv0"] + row["penalty/conv1"]
        assert taps == pytest.approx(row["feature_penalty"], rel=1e-5)
        # The head's penalty is 0.1 / 2 ||w||^2, so its gradient is 0.1 ||w||.
        expected = math.sqrt(2 * 0.1 * row["head_penalty"])
        assert row["gradient_norm/head"] == pytest.approx(expected, rel=1e-5)
        assert row["gradient_norm/task"] > 0 and 0 < row["gradient_angle"] < 180


def test_rows_hold_the_step_and_not_the_mean_of_the_epoch(new_backbone, tmp_path):
    logger = PenaltyLogger(tmp_path, every=1)
    logs = fit(make(new_backbone), logger).history
    rows = read(logger.path)
    for name in LOSSES:
        epochs = np.reshape([row[name] for row in rows], (2, 4))
        np.testing.assert_allclose(epochs.mean(1), logs[name], rtol=1e-5)
        assert len(set(epochs.ravel())) == 8


@pytest.mark.parametrize(
    "every, expected",
    [(1, range(8)), (3, [0, 3, 6]), (10, [0])],
)
def test_steps(every, expected, new_backbone, tmp_path):
    logger = PenaltyLogger(tmp_path, every=every)
    fit(make(new_backbone), logger)
    assert column(logger.path, "step") == list(expected)
    assert column(logger.path, "epoch") == [step // 4 for step in expected]


def test_a_regularizer_without_maps_has_no_taps(new_backbone, tmp_path):
    logger = PenaltyLogger(tmp_path)
    fit(make(new_backbone, L2SP(0.3, 0.2)), logger)
    (row,) = read(logger.path)
    assert list(row) == [c for c in COLUMNS if not c.startswith("penalty/")]


def test_rows_are_on_the_disk_when_their_step_is_done(new_backbone, tmp_path):
    logger = PenaltyLogger(tmp_path, every=1)
    counts = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            counts.append(len(read(logger.path)))

    fit(make(new_backbone), logger, Count(), epochs=1)
    assert counts == [1, 2, 3, 4]


# --- several trainings, one folder ----------------------------------------------------


def test_a_resumed_training_goes_on_with_the_file(new_backbone, tmp_path):
    whole = PenaltyLogger(tmp_path / "whole", every=3)
    fit(make(new_backbone), whole, epochs=5)

    model = make(new_backbone)
    fit(model, PenaltyLogger(tmp_path / "cut", every=3), epochs=2)
    model.save(tmp_path / "model.keras")
    # Dies in epoch 4, of which the model saved after epoch 2 knows nothing.
    fit(model, PenaltyLogger(tmp_path / "cut", every=3), epochs=4, initial_epoch=2)
    assert column(tmp_path / "cut/penalties.csv", "step") == [0, 3, 6, 9, 12, 15]

    model = keras.saving.load_model(tmp_path / "model.keras")
    resumed = PenaltyLogger(tmp_path / "cut", every=3)
    fit(model, resumed, epochs=5, initial_epoch=2)
    assert resumed.path.read_text() == whole.path.read_text()
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["penalties.csv"]


def test_a_backup_that_is_put_back_counts_as_resumed(new_backbone, tmp_path):
    """Between `on_train_begin` and the first epoch, within the first epoch even."""

    class PutBack(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            logger.set_state({"step": 3})
            self.model.optimizer.iterations.assign(2)

    fit(make(new_backbone), PenaltyLogger(tmp_path, every=1), epochs=1)
    logger = PenaltyLogger(tmp_path, every=1)
    fit(make(new_backbone), logger, PutBack(), epochs=1)
    assert column(logger.path, "step") == [0, 1, 2, 3, 4, 5]
    assert len(list(tmp_path.iterdir())) == 1


def test_another_training_renames_the_old_file(new_backbone, tmp_path):
    """Also with the same instance, and another model."""
    kept, logger = [], PenaltyLogger(tmp_path, every=2)
    for _ in range(3):
        fit(make(new_backbone), logger, epochs=1)
        kept.append(logger.path.read_text())
        assert column(logger.path, "step") == [0, 2]
    names = ["penalties-1.csv", "penalties-2.csv", "penalties.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert [(tmp_path / n).read_text() for n in names] == kept


def test_the_same_instance_twice_appends(new_backbone, tmp_path):
    model, logger = make(new_backbone), PenaltyLogger(tmp_path, every=3)
    fit(model, logger)
    fit(model, logger)
    assert column(logger.path, "step") == [0, 3, 6, 9, 12, 15]
    assert column(logger.path, "epoch") == [0, 0, 1, 0, 1, 1]


def test_other_columns_begin_a_new_file(new_backbone, tmp_path):
    model, logger = make(new_backbone), PenaltyLogger(tmp_path, every=4)
    fit(model, logger)
    fit(model, logger, regularizer=L2SP(0.3, 0.2))
    assert column(logger.path, "step") == [8, 12]
    assert column(tmp_path / "penalties-1.csv", "step") == [0, 4]


TABLE = "epoch,step,loss\r\n0,0,1.5\r\n0,2,1.25\r\n1,4,1.0\r\n"


@pytest.mark.parametrize(
    "text, step, resumed, left, aside",
    [
        (TABLE, 5, False, TABLE, None),
        (TABLE, 5, True, TABLE, None),
        (TABLE, 4, True, TABLE[:-9], None),
        (TABLE, 0, True, TABLE[:17], None),
        (TABLE, 4, False, None, TABLE),
        (TABLE, 0, False, None, TABLE),
        (TABLE + "1,6", 7, True, TABLE, None),  # the crash cut the row off
        (TABLE + "1,6", 7, False, TABLE, None),
        ("a,b\r\n1,2\r\n", 7, True, None, "a,b\r\n1,2\r\n"),  # not ours
        ("epoch,step\r\n0,x\r\n", 7, True, None, "epoch,step\r\n0,x\r\n"),
        ("", 7, True, None, ""),
    ],
)
def test_table(text, step, resumed, left, aside, tmp_path):
    path, other = tmp_path / "t.csv", tmp_path / "t-1.csv"
    path.write_bytes(text.encode())
    table = StepTable(path)
    table.open(step, resumed)
    assert (path.read_bytes().decode() if path.exists() else None) == left
    assert (other.read_bytes().decode() if other.exists() else None) == aside
    table.append({"epoch": 9, "step": step, "loss": math.nan})
    begin = left or "epoch,step,loss\r\n"
    assert path.read_bytes().decode() == f"{begin}9,{step},nan\r\n"


# --- the rest ------------------------------------------------------------------


def test_tensorboard_gets_the_same_scalars(new_backbone, tmp_path):
    logger = PenaltyLogger(tmp_path, every=3, tensorboard=True)
    fit(make(new_backbone), logger)
    (events,) = tmp_path.glob("events.out.tfevents.*")
    found = {}
    for record in tf.data.TFRecordDataset(str(events)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            found[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
    rows = read(logger.path)
    expected = {
        (int(row["step"]), name): row[name] for row in rows for name in COLUMNS[2:]
    }
    assert found.keys() == expected.keys() and len(rows) == 3
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6)


def test_two_replicas_write_what_one_writes(strategy, new_backbone, tmp_path):
    def trained(folder):
        pair = reference.pair(new_backbone)
        delta = Delta(0.5, 0.1, attention=reference.WEIGHTS)
        model = reference.compiled(*pair, delta, run_eagerly=True)
        logger = PenaltyLogger(tmp_path / folder, every=3)
        fit(model, logger)
        return read(logger.path)

    one = trained("one")
    with strategy.scope():
        two = trained("two")
    assert [row["step"] for row in two] == [0, 3, 6]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-3)


def test_several_steps_per_execution(new_backbone, tmp_path):
    logger = PenaltyLogger(tmp_path, every=2)
    fit(make(new_backbone, steps_per_execution=2, run_eagerly=False), logger)
    assert column(logger.path, "step") == [0, 2, 4, 6]
    model = make(new_backbone, steps_per_execution=3, run_eagerly=False)
    with pytest.raises(
        ValueError, match=r"`every`.*at least the model's steps_per_exec"
    ):
        fit(model, logger)


def test_two_loggers(new_backbone, tmp_path):
    model = make(new_backbone)
    loggers = [PenaltyLogger(tmp_path / name, every=4) for name in "ab"]
    fit(model, *loggers)
    assert loggers[0].path.read_text() == loggers[1].path.read_text()
    with pytest.raises(ValueError, match="already watched every 4 steps"):
        fit(model, loggers[0], PenaltyLogger(tmp_path / "c", every=3))
