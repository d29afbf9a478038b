"""The launcher with real processes, which play chief and workers without TensorFlow."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_delta import _disk
from keras_delta._runs import devices, display, status, supervisor
from keras_delta._runs.process import Process

SCRIPTS = Path(__file__).parent / "scripts"
PLAY = str(SCRIPTS / "play.py")
WORKERS = ("worker-0", "worker-1")


class Stage:
    """A folder in which a play runs, and what it has left there."""

    def __init__(self, folder):
        self.folder = folder
        self.logs = folder / "logs"

    def begin(self, *acts, options=(), env=(), **popen):
        command = [sys.executable, str(SCRIPTS / "launcher.py")]
        command += ["--workers", "2", "--cpu", "--logs", str(self.logs), *options]
        command += [PLAY, str(self.folder), *acts]
        env = {**os.environ, **dict(env)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
        return subprocess.Popen(command, env=env, text=True, **pipes)

    def play(self, *acts, **kwargs):
        """(exit code, stdout, stderr) of a launcher that ends by itself."""
        return self.end(self.begin(*acts, **kwargs))

    def end(self, process, seconds=30):
        out, err = process.communicate(timeout=seconds)
        assert self.alive() == []
        return process.returncode, out, err

    def starts(self, role):
        """[pid, arguments, environment] of each start."""
        path = self.folder / f"{role}.starts"
        return (
            [json.loads(s) for s in path.read_text().splitlines()]
            if path.exists()
            else []
        )

    def count(self):
        """How often chief, worker-0, worker-1 and the last run have started."""
        return [len(self.starts(role)) for role in ("chief", *WORKERS, "last")]

    def alive(self):
        roles = ("chief", *WORKERS)
        return [
            start[0] for role in roles for start in self.starts(role) if alive(start[0])
        ]

    def wait_for(self, *names):
        for _ in until(20):
            if all((self.folder / name).exists() for name in names):
                return
        raise AssertionError(f"{names} are not there")


def until(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)


def alive(pid):
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    for pid in stage.alive():
        os.kill(pid, signal.SIGKILL)


# --- to the end ----------------------------------------------------------------


def test_last_run(stage):
    env = {"KERASTUNER_TUNER_ID": "tuner9", "KERAS_DELTA_CACHE": "/kept"}
    code, out, err = stage.play("last=7", "--workers=9", env=env)
    assert (code, out) == (7, "last plays\n")
    assert stage.count() == [1, 1, 1, 1]
    _, arguments, left = stage.starts("last")[0]
    assert arguments[1:] == [str(stage.folder), "last=7", "--workers=9"]
    assert left["KERAS_DELTA_CACHE"] == "/kept"
    assert not {"KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", status.PATH} & set(left)
    assert left.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
    lines = err.splitlines()
    assert lines[0].startswith("A chief and 2 workers on ")
    assert lines[0].endswith(f"; their output: {stage.logs}/*.log")
    assert lines[-1] == f"The search is complete. {PLAY} runs once more:"
    progress = "1 training done; cell 1 of 4 (alpha=0.1), fold 2 of 5"
    assert sorted(lines[1:-1]) == [f"{worker}: {progress}" for worker in WORKERS]
    assert "worker-1 plays" in (stage.logs / "worker-1.log").read_text()


def test_roles(stage):
    stage.play(env={"CUDA_VISIBLE_DEVICES": "0"})
    ports = set()
    for role in ("chief", *WORKERS):
        env = stage.starts(role)[0][2]
        assert env["KERASTUNER_TUNER_ID"] == role
        assert env["KERAS_DELTA_WORKERS"] == "worker-0,worker-1"
        assert env["CUDA_VISIBLE_DEVICES"] == "-1"
        assert env["PYTHONUNBUFFERED"] == "1"
        ports.add(env["KERASTUNER_ORACLE_PORT"])
    threads = str(max(1, devices.cores() // 2))
    assert env["TF_NUM_INTRAOP_THREADS"] == threads
    assert len(ports) == 1 and 0 < int(ports.pop()) < 65536


def test_restarts(stage):
    code, _, err = stage.play("worker-0=fail,kill,ok", "chief=fail,serve")
    assert code == 0
    assert stage.count() == [2, 3, 1, 1]
    log = stage.logs / "worker-0.log"
    assert f"worker-0 ended with exit code 3; restarting it, 1 of 3. See {log}." in err
    assert (
        "worker-0 was killed by SIGKILL (which may mean that memory ran out); "
        "restarting it, 2 of 3." in err
    )
    assert "chief ended with exit code 3; restarting it, 1 of 3." in err
    assert log.read_text().count("worker-0 starts ---") == 3


def test_a_finished_training_gives_new_restarts(stage):
    code, _, err = stage.play("worker-0=fail,fail,fail,train,fail,fail,ok")
    assert code == 0
    assert stage.count() == [1, 7, 1, 1]
    assert "worker-0: 2 trainings done" in err


def test_a_worker_that_becomes_a_new_process_counts_on(tmp_path, capsys):
    one, lines = Process("worker-0", [], {}, tmp_path / "log"), display.Lines()
    one.env[status.PATH] = str(tmp_path / "told.json")
    shown = []
    for told in ({"done": 20}, {"state": "starting"}, {"done": 1}, {"done": 2}):
        _disk.write_json(one.env[status.PATH], told)
        one.look()
        lines.show([one])
        shown.append(one.total)
    assert shown == [20, 20, 21, 22]
    counts = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert counts == ["20", "21", "22"]


def test_given_up(stage):
    code, out, err = stage.play("worker-0=begin,fail", "worker-1=last_worker")
    assert (code, out) == (1, "")
    assert stage.count() == [1, 4, 1, 0]
    assert "worker-1: 1 training done" in err
    lines = err.splitlines()
    assert f"The end of {stage.logs}/worker-0.log:" in lines and "  alas" in lines
    assert (
        "worker-0 ended with exit code 3 for the 4th time without a training finished "
        "in between, and is abandoned." in lines
    )
    assert lines[-2:] == [
        "worker-0 left cell 2 of 4 (alpha=0.1).",
        f"The search is incomplete. {supervisor.AGAIN}",
    ]


def test_chief_given_up(stage):
    code, _, err = stage.play("chief=fail", "worker-0=sleep", "worker-1=sleep")
    assert code == 1
    assert stage.count()[::3] == [4, 0]
    end = f"The search cannot continue without its chief. {supervisor.AGAIN}\n"
    assert err.endswith(end)


@pytest.mark.parametrize("role", ["chief", "worker-0"])
def test_fatal(stage, role):
    code, _, err = stage.play(f"{role}=fatal", "worker-1=sleep")
    assert code == 1
    assert max(stage.count()) == 1 and stage.count()[-1] == 0
    end = f"{role} cannot go on: alpha must be positive"
    assert err.splitlines()[-2:] == ["  Traceback of the mistake", end]


@pytest.mark.parametrize("role", ["chief", "worker-0"])
def test_a_mistake_before_the_search(stage, role):
    code, _, err = stage.play(f"{role}=raising", "worker-1=sleep")
    assert code == 1
    assert max(stage.count()) == 1 and stage.count()[-1] == 0
    *_, reason, end = err.splitlines()
    assert reason == "  ValueError: no such folder"
    assert end.startswith(f"{PLAY} failed in {role} before the search")


def test_no_search(stage):
    code, _, err = stage.play("chief=silent", "worker-0=silent", "worker-1=sleep")
    assert code == 1
    assert stage.count()[-1] == 0
    assert (
        err.startswith("A chief and") and f"{PLAY} has ended without a search." in err
    )


def test_what_a_worker_started_ends_with_it(stage):
    assert stage.play("worker-0=parent")[0] == 0
    assert not alive(int((stage.folder / "grandchild.pid").read_text()))


def test_terminal(stage):
    """With `rich`, one line for each worker, written over."""
    ours, theirs = pty.openpty()
    process = stage.begin("worker-0=fail,ok", stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end, on Linux
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait(30) == 0
    assert b"worker-0      1 done  ended" in shown
    assert b"worker-0 ended with exit code 3; restarting it" in shown
    assert b"\x1b[2K" in shown
    process.stdout.close()


# --- stopped -------------------------------------------------------------------


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(stage, number, code):
    process = stage.begin("worker-0=sleep", "worker-1=sleep", "chief=sleep")
    stage.wait_for("worker-0.ready", "worker-1.ready", "chief.ready")
    process.send_signal(number)
    received, out, err = stage.end(process)
    assert (received, out) == (code, "")
    assert err.endswith(f"Stopped. {supervisor.AGAIN}\n")
    assert stage.count() == [1, 1, 1, 0]
    # The chief is there until the workers have saved what they have.
    seen = json.loads((stage.folder / "chief.saved").read_text())
    assert seen == ["worker-0.saved", "worker-1.saved"]


def test_second_ctrl_c(stage):
    process = stage.begin("worker-0=deaf", "worker-1=deaf", "chief=deaf")
    stage.wait_for("worker-0.ready", "worker-1.ready", "chief.ready")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert len(stage.alive()) == 3
    process.send_signal(signal.SIGINT)
    assert stage.end(process, seconds=5)[0] == 130


def test_deaf_workers_are_terminated(stage):
    process = stage.begin("worker-0=deaf", "worker-1=sleep", env={"SAVING": "3"})
    stage.wait_for("worker-0.ready", "worker-1.ready")
    process.send_signal(signal.SIGINT)
    assert stage.end(process, seconds=10)[0] == 130
    assert (stage.folder / "worker-1.saved").exists()
    assert not (stage.folder / "worker-0.saved").exists()


def test_launcher_killed(stage):
    """With SIGKILL, which leaves it no time: the system ends what it has started."""
    process = stage.begin("worker-0=deaf", "worker-1=deaf", "chief=deaf")
    stage.wait_for("worker-0.ready", "worker-1.ready", "chief.ready")
    process.kill()
    process.communicate(timeout=10)
    for _ in until(10):
        if not stage.alive():
            break
    assert stage.alive() == []


# --- arguments -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options, said",
    [
        (["--workers", "0"], "--workers: expected a positive integer, received 0"),
        (["--gpus", "0"], "--gpus: not allowed with argument --cpu"),
        (["no.py"], "script.py: file no.py does not exist"),
    ],
)
def test_bad_arguments(stage, options, said):
    code, out, err = stage.play(options=options)
    assert (code, out) == (2, "")
    assert err == f"python -m keras_delta.tuning: argument {said}\n"
    assert stage.count() == [0, 0, 0, 0]


def test_logs_that_cannot_be_written(stage):
    code, _, err = stage.play(options=["--logs", PLAY])
    assert code == 2
    assert "`--logs`. Expected a folder that can be written" in err


def test_port_in_use(stage):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = stage.play(options=["--port", str(port)])
    assert code == 2
    assert err == (
        f"python -m keras_delta.tuning: argument --port: port {port} is not "
        "available: Address already in use. Choose another, or omit it to use a "
        "free one\n"
    )


@pytest.mark.slow
def test_help():
    """The real command line, TensorFlow included."""
    run = [sys.executable, "-m", "keras_delta.tuning", "--help"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith(
        "usage: python -m keras_delta.tuning [-h] [--workers N]"
    )


# --- devices -------------------------------------------------------------------

TWO = "GPU 0: NVIDIA H200 (UUID: GPU-aa)\nGPU 1: NVIDIA H200 (UUID: GPU-bb)\n"
SPLIT = (
    "GPU 0: NVIDIA H200 (UUID: GPU-aa)\n"
    "  MIG 1g.18gb     Device  0: (UUID: MIG-cc)\n"
    "  MIG 1g.18gb     Device  1: (UUID: MIG-dd)\n"
    "GPU 1: NVIDIA H200 (UUID: GPU-bb)\n"
)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """`nvidia_smi(text)`: what the command lists."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def lists(text):
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{text}'\n")
        path.chmod(0o755)

    return lists


def test_no_gpus(nvidia_smi):
    assert devices.chosen_gpus() == []
    with pytest.raises(
        ValueError, match=r"--gpus: there is no GPU here that could be 0"
    ):
        devices.chosen_gpus("0")


def test_gpus(nvidia_smi, monkeypatch):
    nvidia_smi(TWO)
    assert devices.chosen_gpus() == ["0", "1"]
    assert devices.chosen_gpus("1") == ["1"]
    for text in ("2", "0,0", "0,", "one"):
        with pytest.raises(ValueError) as caught:
            devices.chosen_gpus(text)
        assert str(caught.value) == (
            f"argument --gpus: expected some of 0,1, each once, received {text}"
        )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-ff,-1,5")
    assert devices.chosen_gpus() == ["3", "GPU-ff"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.chosen_gpus() == []


def test_parts_of_a_gpu(nvidia_smi):
    nvidia_smi(SPLIT)
    assert devices.chosen_gpus() == ["MIG-cc", "MIG-dd", "1"]


def test_a_gpu_each(monkeypatch):
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert devices.shares(["0", "1"], 2) == [
        {"CUDA_VISIBLE_DEVICES": "0", **order},
        {"CUDA_VISIBLE_DEVICES": "1", **order},
    ]
    grow = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    assert devices.shares(["0", "1"], 3) == [
        {"CUDA_VISIBLE_DEVICES": gpu, **order, **grow} for gpu in "010"
    ]


def test_cores(monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 8)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    [first, *_] = devices.shares([], 3)
    assert first["TF_NUM_INTRAOP_THREADS"] == "2"
    [*_, last] = devices.shares([], 9)
    assert last["TF_NUM_INTRAOP_THREADS"] == "1"
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "5")
    [first, *_] = devices.shares([], 3)
    assert first["TF_NUM_INTRAOP_THREADS"] == "5"


def test_shared_gpus(stage, nvidia_smi):
    nvidia_smi(TWO)
    options = ["--workers", "3", "--gpus", "1", "--logs", stage.logs]
    process = subprocess.run(
        [sys.executable, SCRIPTS / "launcher.py", *options, PLAY, stage.folder],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert process.returncode == 0
    lines = process.stderr.splitlines()
    assert lines[0].startswith("A chief and 3 workers on GPU 1;")
    assert lines[1].startswith("There are more workers than GPUs, 3 for 1:")
    assert stage.starts("chief")[0][2]["CUDA_VISIBLE_DEVICES"] == "-1"
    assert stage.starts("worker-2")[0][2]["CUDA_VISIBLE_DEVICES"] == "1"
    assert stage.starts("worker-2")[0][2]["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert "CUDA_VISIBLE_DEVICES" not in stage.starts("last")[0][2]


# --- status --------------------------------------------------------------------


def test_status(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setattr(status, "_told", {})
    monkeypatch.delenv(status.PATH, raising=False)
    monkeypatch.delenv(status.WORKERS, raising=False)
    status.report(cell=1)
    assert (status.launched(), status.workers(), status.ended()) == (False, [], [])
    monkeypatch.setenv(status.PATH, str(tmp_path / "worker-0.json"))
    monkeypatch.setenv(status.WORKERS, "worker-0,worker-1")
    assert (status.launched(), status.workers()) == (True, list(WORKERS))
    status.report(cell=2, score=np.float32(0.5), values={"n": np.int64(3)})
    status.report(cell=3)
    told = {"cell": 3, "score": 0.5, "values": {"n": 3}}
    assert _disk.read_json(tmp_path / "worker-0.json") == told
    _disk.write_json(tmp_path / status.ENDED, ["worker-1"])
    assert status.ended() == ["worker-1"]


@pytest.mark.parametrize(
    "told, line",
    [
        ({}, "starting"),
        ({"state": "training"}, "training"),
        ({"state": "waiting for the chief"}, "waiting for the chief"),
        (
            {"state": "training", "cell": 3, "cells": None, "values": {"a": 0.12345678}}
            | {"fold": 1, "folds": 5, "epoch": 2, "epochs": 15, "score": 0.91237},
            "cell 3 (a=0.1235), fold 1 of 5, epoch 2 of 15, last cell 0.9124",
        ),
        ({"state": "training", "cell": None, "values": {"a": 2}}, "cell (a=2)"),
        ({"state": "done", "cell": 3, "score": 0.5}, "done, last cell 0.5"),
        ({"state": "waiting for a cell", "cell": 3}, "waiting for a cell"),
    ],
)
def test_progress(told, line):
    assert display.progress(told) == line
