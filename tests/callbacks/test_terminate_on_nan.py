"""A loss that is not finite ends training, with the likely causes."""

import keras
import model_reference as reference
import numpy as np
import pytest

import keras_delta as kd
from keras_delta.callbacks import TerminateOnNaN
from keras_delta.callbacks.terminate_on_nan import _causes
from keras_delta.regularizers import L2SP, Delta, FeatureMap

PEAKED = {"conv0": [0.98, 0.01, 0.01], "conv1": [0.3, 0.3, 0.2, 0.2]}


def diverging(new_backbone, regularizer, epochs=4, rate=1e30, **kwargs):
    model = reference.compiled(
        *reference.pair(new_backbone), regularizer, rate=rate, run_eagerly=True
    )
    x, y = reference.data(16)
    callback = TerminateOnNaN(**kwargs)
    history = model.fit(x, y, 4, epochs=epochs, verbose=0, callbacks=[callback])
    return model, history


@pytest.mark.parametrize(
    ("regularizer", "expected", "absent"),
    [
        (
            lambda: Delta(1e30, attention=PEAKED),
            ["alpha is 1e+30; the variant 'relative'", "'conv0' covers only about 1"],
            ["'conv1' covers"],
        ),
        (
            lambda: FeatureMap(1e30, variant="code"),
            ["'code' sums raw squares", "variant='relative'"],
            ["covers only", "'relative' is meant"],
        ),
        (
            lambda: [FeatureMap(1e30), L2SP(0.25)],
            ["'relative' is meant for 1 to 30", "alpha of L2SP is 0.25"],
            ["covers only"],
        ),
        (lambda: None, ["The learning rate, now 1e+30"], ["alpha"]),
    ],
    ids=["delta", "code", "sum", "none"],
)
def test_what_is_said(regularizer, expected, absent, new_backbone, capsys):
    model, history = diverging(new_backbone, regularizer())
    assert model.stop_training
    assert len(history.epoch) < 4
    said = capsys.readouterr().out
    assert "Training stops. Likely causes:" in said
    assert "task_loss" in said
    for text in expected:
        assert text in said
    for text in absent:
        assert text not in said


def test_a_finite_loss_goes_on(new_backbone, capsys):
    _, history = diverging(new_backbone, FeatureMap(0.1), rate=0.01)
    assert len(history.epoch) == 4
    assert "causes" not in capsys.readouterr().out


def test_raising(new_backbone):
    with pytest.raises(RuntimeError, match=r"(?s)the loss is .*Likely causes") as e:
        diverging(new_backbone, FeatureMap(1e30), raise_error=True)
    assert type(e.value) is kd.callbacks.LossNotFinite


def test_a_plain_keras_model(capsys):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5), "mse", run_eagerly=True)
    x = np.full((4, 2), np.nan, "float32")
    model.fit(x, np.zeros(4), verbose=0, callbacks=[kd.callbacks.TerminateOnNaN()])
    said = capsys.readouterr().out
    assert "the loss is nan." in said and "Training stops" in said


def test_a_variant_of_another_method():
    """4Ds has variants as well, whose alpha is not that of sums of squares."""
    (cause,) = _causes(kd.regularizers.FourDs(alpha=0.5))
    assert cause == "alpha of FourDs is 0.5."
