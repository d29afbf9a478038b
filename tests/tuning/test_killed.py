"""Searches of real processes that are killed: nothing is lost, nothing runs twice.

`KERAS_DELTA_KILLS=5` kills more often than the test suite has time for.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launched import processes, wait

HERE = Path(__file__).parent
SCRIPT = HERE / "scripts" / "toy_search.py"
KILLS = int(os.environ.get("KERAS_DELTA_KILLS", "1"))
EPOCHS = "12"


def environment():
    """Ours, but as a user's: without the tests' Keras Tuner variables."""
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def launch(folder):
    command = [sys.executable, "-m", "keras_delta.tuning", "--workers", "2", "--cpu"]
    return subprocess.Popen(
        [*command, "--logs", str(folder / "logs"), str(SCRIPT), str(folder), EPOCHS],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=open(folder / "launcher.log", "a"),
        start_new_session=True,
    )


def folds(folder):
    """Dict path -> (time of writing, content) of all trainings that are finished."""
    found = {}
    for path in (folder / "alpha_beta" / "cells").glob("*/fold_*.json"):
        values = (path.parent / "values.json").read_text()
        found[values, path.name] = path.stat().st_mtime_ns, json.loads(path.read_text())
    return found


def wait_for_progress(folder, launcher, trainings):
    before = len(folds(folder))
    wait(lambda: len(folds(folder)) >= before + trainings or launcher.poll() == 0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), EPOCHS],
        env=environment(),
        check=True,
        capture_output=True,
    )
    assert len(folds(folder)) == 18
    return folder


def check(folder, seen, uninterrupted):
    """All trainings of the uninterrupted search, each written once; the same winner."""
    found, expected = folds(folder), folds(uninterrupted)
    assert found.keys() == expected.keys()
    for key, (_, content) in expected.items():
        loss = content["metrics"]["val_loss"]
        # One thread an operation adds in another order than two.
        assert found[key][1]["metrics"]["val_loss"] == pytest.approx(loss, rel=1e-3)
    for key, (written, _) in seen.items():
        assert found[key][0] == written, f"{key} was trained again"
    assert (folder / "after.txt").read_text() == (
        uninterrupted / "after.txt"
    ).read_text()
    trials = [
        json.loads(p.read_text())
        for p in (folder / "alpha_beta").glob("trial_*/trial.json")
    ]
    assert [t["status"] for t in trials] == ["COMPLETED"] * 6
    assert processes(folder) == {}


@pytest.mark.slow
@pytest.mark.parametrize("victims", [("worker", "chief"), ("all",)])
def test_killed_at_random_moments(tmp_path, uninterrupted, victims):
    draw = random.Random(f"{victims} 1")
    seen, launcher = {}, launch(tmp_path)
    try:
        for i, victim in enumerate(victims * KILLS):
            # After three deaths without a finished training a worker is given up.
            wait_for_progress(tmp_path, launcher, 2 if victim == "worker" else 1)
            time.sleep(draw.uniform(0, 2))
            seen.update(folds(tmp_path))
            there = processes(tmp_path)
            if victim == "all":
                for process in there.values():
                    os.kill(process, signal.SIGKILL)
                launcher.wait()
                wait(lambda: not processes(tmp_path), 10)
                launcher = launch(tmp_path)
                continue
            name = f"worker-{i // 2 % 2}" if victim == "worker" else victim
            if name in there:
                os.kill(there[name], signal.SIGKILL)
        assert launcher.wait(240) == 0, (tmp_path / "launcher.log").read_text()
    finally:
        for process in processes(tmp_path).values():
            os.kill(process, signal.SIGKILL)
    check(tmp_path, seen, uninterrupted)
