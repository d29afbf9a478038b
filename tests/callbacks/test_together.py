"""All callbacks in one training: the examples of docs/callbacks.md, and a crash."""

import re
from pathlib import Path

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta.regularizers import FeatureMap

PAGE = Path(__file__).parents[2] / "docs/callbacks.md"


@pytest.mark.filterwarnings("ignore:Rifle.* never redraws")
def test_examples_run(new_backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 12
    x, y = reference.learnable_data(8)
    names = {"kd": kd, "keras": keras, "x": x}
    names["train"] = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    names["model"] = reference.compiled(
        *reference.pair(new_backbone), rate=0.01, run_eagerly=True
    )
    names["uniform"] = kd.regularizers.Delta(attention="uniform")
    for code in blocks:
        # As printed, but short, silent and without computing attention.
        code = code.replace(".fit(train,", ".fit(train, verbose=0, shuffle=False,")
        for begin in ("regularizer=", "regularizer=["):
            code = code.replace(f'{begin}"delta"', f"{begin}uniform")
        code = code.replace("ActivationMaps(x[:4]", "ActivationMaps(x[:1]")
        code = code.replace("epochs=15", "epochs=5")
        exec(code, names)
    assert 0 < names["largest"].largest < 10
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    assert found >= {
        "epochs.csv",
        "logs/penalties.csv",
        "logs/distances/distances-0005.npz",
        "logs/maps/activation_maps-0005.png",
        "moved.png",
        "both.png",
    }


class Die(keras.callbacks.Callback):
    """A crash in the fifth of eight epochs, behind a logged step."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == 10:
            raise RuntimeError("killed")


def test_a_training_that_was_killed_ends_as_one_that_was_not(new_backbone, tmp_path):
    """By a new model, new callbacks and `BackupAndRestore`, as in a new process."""

    def train(folder, *more):
        keras.utils.set_random_seed(0)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        pair = reference.pair(new_backbone)
        options = {"optimizer": optimizer, "run_eagerly": True}
        model = reference.compiled(*pair, FeatureMap(0.5, 0.1), **options)
        callbacks = {
            "backup": kd.callbacks.BackupAndRestore(tmp_path / f"{folder}-backup"),
            "rifle": kd.callbacks.Rifle(2),
            "alpha": kd.callbacks.StrengthScheduler(lambda i: 1 / (i + 1), by="step"),
            "moved": kd.callbacks.StartingPointDistance(every=2),
            "logger": kd.callbacks.PenaltyLogger(tmp_path / folder, every=3),
            "maps": kd.callbacks.ActivationMaps(x[:1], tmp_path / folder, every=6),
        }
        listed = [*callbacks.values(), *more]
        fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
        model.fit(x, y, epochs=8, callbacks=listed, **fit)
        return model, callbacks

    x, y = reference.learnable_data(16)
    whole, expected = train("whole")
    with pytest.raises(RuntimeError, match="killed"):
        train("cut", Die())
    model, found = train("cut")
    assert model.optimizer.iterations.numpy() == 16
    for a, b in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [(tmp_path / f / "penalties.csv").read_text() for f in ("cut", "whole")]
    assert rows[0] == rows[1] and rows[0].count("\n") == 7
    names = [{p.name for p in (tmp_path / f).iterdir()} for f in ("cut", "whole")]
    assert names[0] == names[1] and "penalties-1.csv" not in names[0]
    assert found["rifle"].drawn == expected["rifle"].drawn == [4]
    assert [h["epoch"] for h in found["moved"].history] == [1, 3, 5, 7]
    for a, b in zip(found["moved"].history, expected["moved"].history, strict=True):
        for stage, layers in b["distances"].items():
            for name, values in layers.items():
                np.testing.assert_array_equal(a["distances"][stage][name], values)
