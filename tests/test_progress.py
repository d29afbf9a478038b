"""How far long work is, where somebody looks and where nobody does."""

import sys

import keras
import model_reference as reference
import pytest

from keras_delta import _progress
from keras_delta.regularizers import L2SP


@pytest.fixture
def clock(monkeypatch):
    """A list with the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_in_a_file(clock, capsys):
    progress = _progress.Progress(100, "file")
    for _ in range(100):
        clock[0] += 1.0
        progress.add(1)
    progress.end()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "16 of 100 files, 1.0 files a second"
    assert lines[-1] == "100 files in 100.0 s, 1.0 files a second"
    assert len(lines) == 7
    quiet = _progress.Progress(100, quiet=True)
    clock[0] += 100
    quiet.add(50)
    quiet.end()
    assert capsys.readouterr().out == "" and quiet.done == 50


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = _progress.Progress(4)
    for _ in range(4):
        progress.add(1)
    assert "4/4" in capsys.readouterr().out


def test_fit_writes_no_control_characters_into_a_file(new_backbone, capsys):
    model = reference.compiled(*reference.pair(new_backbone), L2SP(0.1, 0.1))
    model.fit(*reference.data(8), batch_size=2, epochs=2)
    out = capsys.readouterr().out
    assert "\x08" not in out and "\x1b" not in out and "━" not in out
    assert out.count("Epoch ") == 2 and len(out.splitlines()) < 8
    assert keras.config.is_interactive_logging_enabled()
