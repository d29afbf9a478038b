"""Keras's own callbacks do on a `DeltaModel` what they are for."""

import csv

import keras
import model_reference as reference
import numpy as np
import pytest
from tensorflow.core.util import event_pb2
from tensorflow.data import TFRecordDataset

from keras_delta.regularizers import Delta

EPOCHS, STEPS = 4, 2
callbacks = keras.callbacks


class Training:
    """A short training with callbacks, and what is to be known of it."""

    def __init__(self, new_backbone, folder):
        self._backbone, self.folder = new_backbone, folder
        self.x, self.y = reference.learnable_data(8)

    def model(self, optimizer=None):
        """The same one each time."""
        keras.utils.set_random_seed(5)
        return reference.compiled(
            *reference.pair(self._backbone, batch_norm=True, dropout=0.3),
            Delta(0.3, attention="uniform"),
            optimizer=optimizer or keras.optimizers.Adam(0.01),
            metrics=["accuracy"],
            run_eagerly=True,
        )

    def fit(self, *given, model=None, epochs=EPOCHS, **kwargs):
        """The model after training, `history` set; weights of each epoch's end."""
        model = model or self.model()
        self.ends = []

        def note(epoch, logs):
            self.ends.append(model.target.get_weights())

        after = callbacks.LambdaCallback(on_epoch_end=note)
        model.fit(
            self.x,
            self.y,
            4,
            epochs=epochs,
            shuffle=False,
            validation_data=(self.x, self.y),
            callbacks=[after, *given],
            verbose=0,
            **kwargs,
        )
        self.log = model.history.history
        return model


@pytest.fixture
def training(new_backbone, tmp_path):
    return Training(new_backbone, tmp_path)


def same(a, b):
    reference.assert_same_weights(a, b, atol=0, rtol=0)


class Fail(keras.callbacks.Callback):
    """An error as the third epoch begins."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise ArithmeticError


def test_backup_and_restore(training):
    """Ours goes on bit for bit; Keras's knows neither dropout's seeds nor history."""
    backup = training.folder / "backup"
    with pytest.raises(ArithmeticError):
        training.fit(callbacks.BackupAndRestore(backup), Fail())
    before = training.ends[-1]
    resumed = training.model()
    begin = []
    callback = callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: begin.append(resumed.target.get_weights())
    )
    training.fit(callbacks.BackupAndRestore(backup), callback, model=resumed)
    same(begin[0], before)
    assert len(training.ends) == EPOCHS - 2
    assert resumed.optimizer.iterations.numpy() == EPOCHS * STEPS
    assert not backup.exists()


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_model_checkpoint_of_the_best(suffix, training):
    path = training.folder / f"best{suffix}"
    training.fit(
        callbacks.ModelCheckpoint(
            path,
            monitor="val_loss",
            mode="max",
            save_best_only=True,
            save_weights_only=suffix != ".keras",
        ),
        model=training.model(keras.optimizers.SGD(1.5)),
    )
    best = int(np.argmax(training.log["val_loss"]))
    assert best < EPOCHS - 1  # else the last would do
    if suffix == ".keras":
        loaded = keras.saving.load_model(path)
        assert loaded.optimizer.iterations.numpy() == (best + 1) * STEPS
    else:
        loaded = training.model(keras.optimizers.SGD(1.5))
        loaded.load_weights(path)
    same(loaded.target, training.ends[best])
    found = loaded.evaluate(training.x, training.y, 4, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(training.log["val_loss"][best], rel=1e-5)


def test_early_stopping_restores_the_best(training):
    model = training.fit(
        callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
        model=training.model(keras.optimizers.SGD(1.5)),
        epochs=9,
    )
    best = int(np.argmin(training.log["val_loss"]))
    assert len(training.ends) == best + 2 < 9
    same(model.target, training.ends[best])


def test_reduce_lr_on_plateau(training):
    plateau = callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=1e9)
    model = training.fit(plateau)
    # The first epoch is the best for ever; each later one halves.
    expected = [0.01 * 0.5**k for k in range(EPOCHS)]
    np.testing.assert_allclose(training.log["learning_rate"], [0.01, *expected[:-1]])
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(expected[-1])


def test_learning_rate_scheduler(training):
    frozen_from = 2
    training.fit(
        callbacks.LearningRateScheduler(lambda e, rate: rate * (e < frozen_from)),
    )
    np.testing.assert_allclose(training.log["learning_rate"], [0.01, 0.01, 0, 0])
    trained = training.model().target.trainable_variables
    where = [i for i, w in enumerate(training.model().target.weights) if w.trainable]
    assert len(where) == len(trained)
    same(*([training.ends[e][i] for i in where] for e in (1, 3)))


def test_a_schedule_in_the_optimizer(training):
    """Steps after the fourth have the rate zero, and no penalty pulls any more."""
    schedules = keras.optimizers.schedules
    rate = schedules.PiecewiseConstantDecay([3], [0.01, 0.0])
    model = training.fit(model=training.model(keras.optimizers.SGD(rate)))
    where = [i for i, w in enumerate(model.target.weights) if w.trainable]
    same(*([training.ends[e][i] for i in where] for e in (1, 3)))
    assert any(
        not np.array_equal(training.ends[0][i], training.ends[1][i]) for i in where
    )


def test_moving_averages_of_the_weights(training):
    """What `use_ema` leaves is the average over the steps, by hand."""
    plain, average = training.model(keras.optimizers.SGD(0.01)), []

    def note(batch, logs):
        now = [v.numpy() for v in plain.target.trainable_variables]
        before = average[-1] if average else now  # begins after the first step
        both = zip(before, now, strict=True)
        average.append([0.9 * a + 0.1 * v for a, v in both])

    training.fit(callbacks.LambdaCallback(on_train_batch_end=note), model=plain)
    optimizer = keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=0.9)
    found = training.fit(model=training.model(optimizer))
    assert len(average) == EPOCHS * STEPS
    variables = found.target.trainable_variables
    for v, w in zip(variables, average[-1], strict=True):
        np.testing.assert_allclose(v.numpy(), w, atol=1e-5)


def test_swap_ema_weights(training):
    """Validation sees the averages, training the weights themselves."""
    optimizer = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)
    model = training.model(optimizer)
    training.fit(callbacks.SwapEMAWeights(swap_on_epoch=True), model=model)
    swapped = dict(training.log)
    averages = optimizer._model_variables_moving_average
    for v, w in zip(model.target.trainable_variables, averages, strict=False):
        np.testing.assert_allclose(v.numpy(), w.numpy(), atol=1e-6)
    training.fit(model=training.model(keras.optimizers.SGD(0.05)))
    # Not to the bit: Keras swaps by adding and subtracting.
    np.testing.assert_allclose(swapped["loss"], training.log["loss"], rtol=1e-4)
    assert not np.allclose(swapped["val_loss"], training.log["val_loss"], rtol=1e-2)


def test_csv_logger(training):
    training.fit(callbacks.CSVLogger(training.folder / "log.csv"))
    with open(training.folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    parts = {"task_loss", "feature_penalty", "head_penalty"}
    assert parts < set(rows[0]) and len(rows) == EPOCHS
    for name in training.log:
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, training.log[name], rtol=1e-6)
    for row in rows:
        total = sum(float(row[part]) for part in parts)
        assert total == pytest.approx(float(row["loss"]), rel=1e-5)


def test_tensorboard(training):
    training.fit(callbacks.TensorBoard(training.folder, write_graph=False))
    found = {}
    for part in ("train", "validation"):
        (file,) = (training.folder / part).glob("*.v2")
        for record in TFRecordDataset([str(file)]).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                number = np.frombuffer(value.tensor.tensor_content, "float32")
                number = number if number.size else value.tensor.float_val
                found.setdefault((part, value.tag), []).append(float(number[0]))
    for name in ("loss", "feature_penalty", "head_penalty", "task_loss"):
        expected = training.log[name]
        np.testing.assert_allclose(found["train", f"epoch_{name}"], expected, rtol=1e-6)
    expected = training.log["val_loss"]
    np.testing.assert_allclose(found["validation", "epoch_loss"], expected, rtol=1e-6)
    assert ("validation", "epoch_feature_penalty") not in found


def test_terminate_on_nan(training):
    """The batch whose loss is infinite is the last."""
    weights, seen = np.ones(8), []
    weights[4:] = 3e38  # the second batch, whose sum is no float32
    model = training.fit(
        callbacks.TerminateOnNaN(),
        callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: seen.append(b)),
        sample_weight=weights,
    )
    assert seen == [0, 1] and len(training.ends) == 1
    assert not np.isfinite(training.log["loss"][0]) and model.stop_training


def test_lambda_callback_gets_every_part_of_the_loss(training):
    seen = []
    training.fit(
        callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: seen.append(logs)),
        epochs=1,
    )
    for logs in seen:
        parts = [logs[k] for k in ("task_loss", "feature_penalty", "head_penalty")]
        assert float(logs["loss"]) == pytest.approx(float(sum(parts)), rel=1e-5)
