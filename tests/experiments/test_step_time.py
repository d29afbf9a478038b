"""The benchmark of a training step."""

import sys
from pathlib import Path

import pytest
import toys

import keras_delta as kd

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


class Nothing:
    """In place of the Distiller, which takes long to trace."""

    def train_on_batch(self, x, y):
        pass


def test_all_rows_train_alike(monkeypatch, capsys):
    """A session that `fit` would open would fit the head and clip the gradients."""
    step_time = pytest.importorskip("step_time")
    toys.put_in(monkeypatch.setattr, monkeypatch.setitem)
    options = ["--backbone", "toy", "--size", "16", "--batch", "4", "--steps", "1"]
    options += ["--regularizers", "l2_sp-cached"]
    monkeypatch.setattr(sys, "argv", ["step_time.py", *options])
    monkeypatch.setattr(step_time, "distiller", lambda *given: Nothing())
    opened, original = [], kd.DeltaModel.open_session

    def open_session(model, arguments, recipe=None):
        opened.append(recipe)
        return original(model, arguments, recipe)

    monkeypatch.setattr(kd.DeltaModel, "open_session", open_session)
    step_time.main()
    assert opened == ["none"]
    assert "DeltaModel, l2_sp-cached" in capsys.readouterr().out
