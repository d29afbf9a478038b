"""A recipe of several runs: each from one start, and the mean of their ends."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import make_backbone, make_deeper

import keras_delta as kd

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).normal(size=(24, 16, 16, 3)).astype("float32")
Y = np.arange(24) % 3
RUNS = kd.Recipe(epochs=2, runs=2, batch_norm=0.0, optimizer="adam")


def make(regularizer="l2", source=None, run_eagerly=True):
    keras.utils.set_random_seed(0)
    source = make_backbone(True, seed=1) if source is None else source()
    target = kd.attach_head(make_backbone(True, seed=1), 3)
    model = kd.DeltaModel(target, source=source, regularizer=regularizer)
    model.compile(loss=SPARSE, metrics=["accuracy"], run_eagerly=run_eagerly)
    return model


def in_order(size=8):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(size)


def shuffled():
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    return data.shuffle(24, seed=1).batch(8)


def train(model, data=None, recipe=RUNS, **given):
    data = shuffled() if data is None else data
    model.fit(data, recipe=recipe, **{"verbose": 0, **given})
    return model


class Ends(keras.callbacks.Callback):
    """Weights as each epoch ends."""

    def on_train_begin(self, logs=None):
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append([v.copy() for v in self.model.target.get_weights()])


def check_same(weights, others):
    for v, w in zip(weights, others, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-5, atol=1e-6)


def changed(weights, others):
    return max(np.abs(v - w).max() for v, w in zip(weights, others, strict=True))


REGULARIZERS = {
    "delta": ("delta", None),
    "four_ds": ("four_ds", lambda: kd.attach_head(make_deeper(seed=3), 3)),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_runs_that_are_alike_end_alike(name):
    """Weights, both optimizers, schedules, and what the regularizer trains, go back."""
    one = train(make(*REGULARIZERS[name]), in_order(24), RUNS.replace(runs=1))
    two = train(make(*REGULARIZERS[name]), in_order(24))
    for key, values in one.history.history.items():
        found = two.history.history[key]
        np.testing.assert_allclose(found, [*values, *values], rtol=1e-4, err_msg=key)
    assert int(two.optimizer.iterations) == int(one.optimizer.iterations) == 2
    check_same(two.target.get_weights(), one.target.get_weights())


def test_the_mean_of_the_ends():
    ends = Ends()
    model = train(make(), recipe=RUNS.replace(runs=3), callbacks=[ends])
    assert len(ends.weights) == 6
    columns = zip(*ends.weights[1::2], strict=True)
    check_same(model.target.get_weights(), [np.mean(c, axis=0) for c in columns])
    assert changed(ends.weights[1], ends.weights[3]) > 1e-4
    assert (len(model.recipe.runs), model.recipe.epochs) == (3, 2)
    before = model.target.get_weights()
    model.fit(shuffled(), epochs=1, verbose=0)  # goes on, and is one run
    assert changed(before, model.target.get_weights()) > 1e-5


@pytest.mark.parametrize("stopped_in", [1, 2])
def test_a_run_that_is_stopped_counts_only_alone(stopped_in):
    def stop(epoch, logs):
        model.stop_training = epoch == 2 * (stopped_in - 1)

    ends, model = Ends(), make()
    callbacks = [ends, keras.callbacks.LambdaCallback(on_epoch_end=stop)]
    train(model, callbacks=callbacks)
    assert len(ends.weights) == 2 * stopped_in - 1
    check_same(model.target.get_weights(), ends.weights[stopped_in - 1])


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_backup_goes_on_bit_for_bit(tmp_path, killed_at):
    def kill(epoch, logs):
        if epoch == killed_at:
            raise InterruptedError

    recipe = RUNS.replace(runs=(1, 0.5))
    straight = train(make("delta"), recipe=recipe)
    callbacks = [
        kd.callbacks.BackupAndRestore(tmp_path),
        keras.callbacks.LambdaCallback(on_epoch_begin=kill),
    ]
    with pytest.raises(InterruptedError):
        train(make("delta"), recipe=recipe, callbacks=callbacks)
    again = train(make("delta"), recipe=recipe, callbacks=callbacks[:1])
    assert again.regularizer.alpha == straight.regularizer.alpha == 5
    assert len(again.history.history["loss"]) == 4
    for v, w in zip(straight.variables, again.variables, strict=True):
        np.testing.assert_array_equal(v, w, err_msg=v.path)


class Alphas(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.found = []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(self.model.regularizer.alpha)


@pytest.mark.parametrize("fails", [False, True])
def test_alpha_in_each_run(fails):
    alphas, model = Alphas(), make(kd.regularizers.L2SP(alpha=0.5))
    callbacks = [alphas]
    if fails:
        fail = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: 1 / (3 - epoch)
        )
        callbacks.append(fail)
    with contextlib.suppress(ZeroDivisionError):
        train(model, recipe=RUNS.replace(runs=(0.5, 0.0)), callbacks=callbacks)
    assert alphas.found == [0.25, 0.25, 0.0, 0.0][: 3 if fails else 4]
    assert model.regularizer.alpha == 0.5


def test_alpha_that_is_a_schedule_stays():
    alpha = keras.optimizers.schedules.PolynomialDecay(0.5, 4)
    alphas = Alphas()
    train(make(kd.regularizers.L2SP(alpha=alpha)), callbacks=[alphas])
    assert all(callable(v) for v in alphas.found)


def test_a_fit_that_is_given_epochs_is_one_run():
    model = train(make(), epochs=3)
    assert len(model.history.history["loss"]) == 3
    assert model.recipe.runs == (1.0,) and int(model.optimizer.iterations) == 9


def test_one_average_is_enough():
    with pytest.raises(ValueError, match=r"WeightAverage averages.*of 2.*`runs=1`"):
        train(make(), callbacks=[kd.callbacks.WeightAverage()])


def test_two_replicas_equal_one(strategy):
    one = train(make("l2_sp"), in_order())
    with strategy.scope():
        two = make("l2_sp", run_eagerly=False)
    train(two, in_order())
    for v, w in zip(one.target.weights, two.target.weights, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-3, atol=1e-4, err_msg=v.path)


def test_what_is_told(capsys):
    train(make(), verbose=2)
    said = capsys.readouterr().out
    assert "\nruns           1 alpha, 1 alpha\n12 steps, about 0:00:" in said
