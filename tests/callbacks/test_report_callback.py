"""The report as a callback."""

import keras
import model_reference as reference
import pytest

from keras_delta.analysis import report
from keras_delta.callbacks import Report
from keras_delta.regularizers import L2SP

X, Y = reference.learnable_data(8)


def make(new_backbone):
    pair = reference.pair(new_backbone)
    return reference.compiled(*pair, L2SP(0.1, 0.1), run_eagerly=True)


def fit(model, *callbacks, epochs, **kwargs):
    return model.fit(X, Y, 4, epochs, 0, callbacks=list(callbacks), **kwargs)


def test_at_the_end_it_is_what_the_function_writes(new_backbone, tmp_path):
    model, path = make(new_backbone), tmp_path / "new" / "a.html"
    fit(model, Report(path, test=(X, Y), title="now"), epochs=2)
    written = path.read_text("utf-8")
    report(model, test=(X, Y), path=path, title="now", verbose=0)
    assert path.read_text("utf-8") == written
    assert "How did the training go?" in written


def test_on_the_way(new_backbone, tmp_path):
    model, path, seen = make(new_backbone), tmp_path / "a.html", []

    class Looks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(path.read_text("utf-8") if path.exists() else None)

    fit(model, Report(path, test=(X, Y), every=2), Looks(), epochs=3)
    assert seen[0] is None and seen[1] == seen[2] != path.read_text("utf-8")
    fit(model, Report(path, test=(X, Y), every=2), Looks(), initial_epoch=3, epochs=4)
    assert seen[3] != seen[2]


def test_what_does_not_fit_is_refused_before_it_trains(new_backbone, tmp_path):
    model = make(new_backbone)
    with pytest.raises(TypeError, match="`test`"):
        fit(model, Report(tmp_path / "a.html", test=3), epochs=1)
    with pytest.raises(ValueError, match="class_names"):
        wrong = Report(tmp_path / "a.html", test=(X, Y), class_names=["a"])
        fit(model, wrong, epochs=1)
    with pytest.raises(ValueError, match="the head has"):
        fit(model, Report(tmp_path / "a.html", test=(X, Y + 90)), epochs=1)
    assert model.optimizer.iterations.numpy() == 0
    with pytest.raises(ValueError, match="folder"):
        Report(tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword"):
        fit(model, Report(tmp_path / "a.html", tests=(X, Y)), epochs=1)
