"""`fit` begins at a fitted head, where the head is new."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).uniform(0, 60, (24, 16, 16, 3)).astype("float32")
Y = np.arange(24) % 3
X[np.arange(24), :, :, Y] += 150


@pytest.fixture
def model(new_backbone, monkeypatch):
    monkeypatch.setattr(kd.DeltaModel, "fit_head", "auto")  # as users have it
    keras.utils.set_random_seed(0)
    source = new_backbone()
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    model.compile(keras.optimizers.SGD(0.0), SPARSE, metrics=["accuracy"])
    return model


def head(model):
    return model.target.get_layer("head").get_weights()


def probe_of(model, **given):
    """The head that `fit_head` finds, on a copy."""
    copy = keras.models.clone_model(model.target)
    copy.set_weights(model.target.get_weights())
    kd.fit_head(copy, X, Y, loss=SPARSE, verbose=0, **given)
    return copy.get_layer("head").get_weights()


def check_same(first, second):
    for v, w in zip(first, second, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("regularizer", ["delta", "l2", "l2_fe", "l2_sp"])
def test_a_new_head_is_fitted_before_the_first_step(model, regularizer):
    expected = probe_of(model)
    history = model.fit(X, Y, regularizer=regularizer, verbose=0).history
    check_same(head(model), expected)
    assert history["accuracy"][0] == 1


def test_the_default():
    command = "import keras_delta as kd; print(kd.DeltaModel.fit_head)"
    shown = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip() == "auto"


def test_what_a_user_sees(model, capsys):
    model.fit(X, Y, regularizer="l2", verbose=2)
    assert capsys.readouterr().out.startswith("Head fitted on 24 images in ")
    model.fit(X, Y, regularizer="l2", verbose=2)
    assert "Head fitted" not in capsys.readouterr().out


@pytest.mark.parametrize("form", ["dataset", "generator", "pydataset"])
def test_any_data(model, form):
    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]

    data = {
        "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
        "generator": lambda: ((X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)),
        "pydataset": Data,
    }[form]()
    expected = probe_of(model)
    history = model.fit(data, regularizer="l2", verbose=0).history
    check_same(head(model), expected)
    assert len(history["loss"]) == 1


def test_weights_and_the_part_for_validation_do_not_count(model):
    weights = np.ones(24)
    weights[:6] = 0
    wrong = Y.copy()
    wrong[:6] = (Y[:6] + 1) % 3
    wrong[18:] = 0
    model.fit(
        *(X, wrong),
        sample_weight=weights,
        validation_split=0.25,
        regularizer="l2",
        verbose=0,
    )
    assert (model.predict(X, verbose=0).argmax(-1) == Y).all()


@pytest.mark.parametrize("case", ["trained", "stepped", "off", "no regularizer"])
def test_other_heads_stay(model, case):
    before, given = head(model), {"regularizer": "l2"}
    if case == "trained":
        before = [before[0], before[1] + 0.5]
        model.target.get_layer("head").set_weights(before)
    elif case == "stepped":
        model.fit(X, Y, regularizer="l2", fit_head=False, verbose=0)
    elif case == "off":
        given["fit_head"] = False
    else:
        given = {}
    model.fit(X, Y, verbose=0, **given)
    check_same(head(model), before)
    model.fit(X, Y, verbose=0, fit_head=True)
    assert np.abs(head(model)[0] - before[0]).max() > 1e-3


def test_attention_is_measured_with_the_fitted_head(model):
    expected = probe_of(model)
    model.prepare(X, Y, verbose=0, regularizer="delta")
    check_same(head(model), expected)
    model.target.get_layer("head").set_weights(expected)
    attention = kd.ChannelAttention.compute(model, (X, Y), progress=False)
    found = model.regularizer.attention_weights()
    for tap, weights in attention.weights.items():
        np.testing.assert_allclose(found[tap], weights, rtol=1e-3)


def test_two_replicas(new_backbone, strategy, monkeypatch):
    monkeypatch.setattr(kd.DeltaModel, "fit_head", "auto")
    with strategy.scope():
        source = new_backbone()
        model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
        model.compile(keras.optimizers.SGD(0.0), SPARSE)
    expected = probe_of(model)
    model.fit(X, Y, batch_size=8, regularizer="l2", verbose=0)
    check_same(head(model), expected)


def test_an_interrupted_training_goes_on_bit_for_bit(
    new_backbone, monkeypatch, tmp_path
):
    """Though the head is fitted once, and reading for it moves the shuffle on."""
    monkeypatch.setattr(kd.DeltaModel, "fit_head", "auto")

    class Stop(Exception):
        pass

    def stop(epoch, logs):
        raise Stop

    def train(*callbacks):
        keras.utils.set_random_seed(1)
        source = new_backbone()
        model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
        model.compile(keras.optimizers.SGD(1e-5), SPARSE)
        data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(24).batch(8)
        given = {"epochs": 3, "shuffle": False, "verbose": 0, "callbacks": callbacks}
        model.fit(data, regularizer="l2_sp", **given)
        return model.target.get_weights()

    whole = train()
    backup = kd.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(Stop):
        train(backup, keras.callbacks.LambdaCallback(on_epoch_end=stop))
    backup = kd.callbacks.BackupAndRestore(tmp_path / "backup")
    for v, w in zip(whole, train(backup), strict=True):
        np.testing.assert_array_equal(v, w)


def test_data_without_end(model):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).repeat()
    expected = probe_of(model)
    model.fit(data, steps_per_epoch=3, regularizer="l2", verbose=0)
    check_same(head(model), expected)
    with pytest.raises(ValueError, match=r"no end.*`fit_head`"):
        kd.fit_head(model, data, verbose=0)


def test_other_words(model):
    with pytest.raises(ValueError, match=r"`fit_head`.*'yes'.*'True'"):
        model.fit(X, Y, regularizer="l2", fit_head="yes", verbose=0)
