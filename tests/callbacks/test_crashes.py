"""A training that is killed, at any moment, ends with the bits of one that was not."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from interrupted_training import STAGES, Death, train

pytestmark = [
    pytest.mark.usefixtures("tensorflow_seed"),
    pytest.mark.filterwarnings("ignore:.*but the backup does not contain"),
    pytest.mark.filterwarnings("ignore:The head is no better than chance"),
    pytest.mark.filterwarnings("ignore:BatchNormalization"),
]
HERE = Path(__file__).parent
KINDS = ("images", "arrays", "dataset")


class Killed(BaseException):
    """In place of SIGKILL."""


def killed():
    raise Killed


def run(kind, folder, monkeypatch, **how):
    folder.mkdir(exist_ok=True)
    death = Death(**how, kill=killed)
    with monkeypatch.context() as patches:
        return train(kind, folder, death, patches.setattr, run_eagerly=True)


@pytest.fixture(scope="module", params=KINDS)
def undisturbed(request, tmp_path_factory):
    """A kind of data, and what a training comes to that nobody kills."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return request.param, run(request.param, folder / "f", monkeypatch)


def assert_whole(folder):
    """The backup, if there is one, can be read to the last byte."""
    file = folder / "backup" / "state.npz"
    if file.exists():
        with np.load(file) as arrays:  # checks its sums
            assert all(arrays[name] is not None for name in arrays.files)


@pytest.mark.parametrize("i", [0, 3])
def test_killed_while_it_writes(i, undisturbed, tmp_path, monkeypatch):
    """At each stage once, over the kinds of data, in the second epoch or later."""
    kind, expected = undisturbed
    with pytest.raises(Killed):
        stage = STAGES[KINDS.index(kind) + i]
        run(kind, tmp_path / "f", monkeypatch, stage=stage, after=14)
    assert_whole(tmp_path / "f")
    assert run(kind, tmp_path / "f", monkeypatch) == expected


@pytest.mark.slow
def test_real_kills(tmp_path):
    """By SIGKILL, in processes of their own, with a step that is traced."""
    server = subprocess.Popen(
        [sys.executable, HERE / "interrupted_training.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(folder, **how):
        (tmp_path / folder).mkdir(exist_ok=True)
        options = {"kind": "images", "folder": str(tmp_path / folder), **how}
        server.stdin.write(json.dumps(options) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        return answer["status"], answer["found"]

    status, expected = run("alone")
    assert status == 0
    for how in (
        {"stage": "half written", "after": 14},
        {"after": 20},
        {"stage": "deleting"},
    ):
        assert run("killed", **how) == (-signal.SIGKILL, None)
        assert_whole(tmp_path / "killed")
    assert run("killed") == (0, expected)
    server.stdin.close()
    server.wait(60)
