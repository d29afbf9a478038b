"""Ctrl-C ends a training after the step under way; nothing of it is lost."""

import signal
import threading

import keras
import model_reference as reference
import numpy as np
import pytest

from keras_delta.callbacks import BackupAndRestore
from keras_delta.regularizers import Delta


class Press(keras.callbacks.Callback):
    """Presses Ctrl-C after some steps."""

    def __init__(self, *steps):
        super().__init__()
        self.steps, self.seen = set(steps), np.array(["none"])  # no simple value
        self.passed = iter(range(1, 1000))

    def on_train_batch_end(self, batch, logs=None):
        if next(self.passed) in self.steps:
            signal.raise_signal(signal.SIGINT)


class Ends(keras.callbacks.Callback):
    """Notes which ends were reached."""

    def __init__(self):
        super().__init__()
        self.log = []

    def on_epoch_end(self, epoch, logs=None):
        self.log.append(f"epoch {epoch}")

    def on_train_end(self, logs=None):
        self.log.append("training")


@pytest.fixture(autouse=True)
def python_handler():
    """Python's own handler before each test, and after it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def model(new_backbone):
    """`model()`: the same one each time."""

    def new():
        keras.utils.set_random_seed(5)
        return reference.compiled(
            *reference.pair(new_backbone, batch_norm=True, dropout=0.3),
            Delta(0.3, attention="uniform"),
            optimizer=keras.optimizers.Adam(0.01),
        )

    return new


def fit(model, *callbacks, epochs=3, **kwargs):
    x, y = reference.learnable_data(16)
    return model.fit(
        x,
        y,
        4,
        epochs=epochs,
        shuffle=False,
        callbacks=list(callbacks),
        verbose=0,
        **kwargs,
    )


def assert_same(a, b):
    for part in ("target", "optimizer", "regularizer"):
        one, two = (getattr(m, part).variables for m in (a, b))
        for v, w in zip(one, two, strict=True):
            np.testing.assert_array_equal(v.value.numpy(), w.value.numpy())


@pytest.mark.parametrize("steps", [1, 4, 6])  # first, last of an epoch, in its midst
def test_the_weights_are_those_of_the_last_step(steps, model, capsys):
    stopped, ends = model(), Ends()
    history = fit(stopped, Press(steps), ends)
    epochs = -(-steps // 4)
    assert history.epoch == list(range(epochs))
    assert len(history.history["loss"]) == epochs
    assert ends.log == [*(f"epoch {e}" for e in range(epochs)), "training"]
    assert stopped.interrupted and stopped.stop_training
    assert stopped.optimizer.iterations.numpy() == steps
    assert "Ctrl-C again" in capsys.readouterr().err

    exact = model()
    fit(exact, epochs=steps // 4)
    if steps % 4:
        fit(exact, epochs=1, steps_per_epoch=steps % 4)
    assert_same(stopped, exact)


def test_the_next_training_is_none_the_wiser(model):
    stopped = model()
    fit(stopped, Press(2))
    assert fit(stopped).epoch == [0, 1, 2]
    assert not stopped.interrupted


def test_a_second_one_stops_at_once(model):
    stopped = model()

    class Twice(keras.callbacks.Callback):
        reached = []

        def on_train_batch_end(self, batch, logs=None):
            signal.raise_signal(signal.SIGINT)
            self.reached.append(1)
            signal.raise_signal(signal.SIGINT)
            self.reached.append(2)

    with pytest.raises(KeyboardInterrupt):
        fit(stopped, Twice())
    assert Twice.reached == [1]
    assert stopped.optimizer.iterations.numpy() == 1


def test_somebody_elses_handler_is_left(model):
    seen = []
    signal.signal(signal.SIGINT, lambda *args: seen.append(args[0]))
    trained = model()
    try:
        assert fit(trained, Press(2)).epoch == [0, 1, 2]
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert seen == [signal.SIGINT] * 2 and not trained.interrupted


def test_an_error_gives_the_handler_back(model):
    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fit(model(), Fail())  # `python_handler` looks at what is left


def test_a_thread_trains_and_leaves_signals_alone(model):
    trained, found = model(), []
    thread = threading.Thread(target=lambda: found.append(fit(trained)))
    thread.start()
    thread.join()
    assert found[0].epoch == [0, 1, 2] and not trained.interrupted


@pytest.mark.parametrize(
    "step, delete",
    [(6, True), (8, False), (12, False)],
    ids=["in an epoch", "at its end", "at the last step"],
)
def test_the_backup_is_kept_and_goes_on(step, delete, model, tmp_path):
    def backup():
        return BackupAndRestore(tmp_path / "b", delete_checkpoint=delete)

    straight, resumed = model(), model()
    expected = fit(straight)
    fit(model(), Press(step), backup())
    assert (tmp_path / "b" / "state.npz").exists()
    found = fit(resumed, backup())
    assert found.history == expected.history
    assert_same(resumed, straight)
    assert (tmp_path / "b").exists() is not delete


def test_several_replicas(model, strategy):
    with strategy.scope():
        stopped, exact = model(), model()
    fit(stopped, Press(2))
    assert stopped.optimizer.iterations.numpy() == 2
    fit(exact, epochs=1, steps_per_epoch=2)
    assert_same(stopped, exact)
