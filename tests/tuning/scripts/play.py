"""Plays chief, worker and last run: `play.py FOLDER ROLE=ACT,ACT,...`.

One act a start, the last one again and again. Each start leaves its pid, arguments
and environment in FOLDER.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bare  # noqa: F401

from keras_delta._runs import status

folder = Path(sys.argv[1])
role = os.environ.get("KERASTUNER_TUNER_ID", "last")
acts = dict(part.split("=") for part in sys.argv[2:])


def serve():
    status.report(state="training")
    while set(status.workers()) - set(status.ended()):
        time.sleep(0.02)


def ok():
    cell = {"cell": 1, "cells": 4, "values": {"alpha": 0.1}}
    status.report(state="training", **cell, fold=2, folds=5, done=1)


def begin():
    """Begins a cell and fails."""
    status.report(state="training", cell=2, cells=4, values={"alpha": 0.1})
    print("alas")
    sys.exit(3)


def fail():
    sys.exit(3)


def train():
    """Finishes a training and fails."""
    status.report(state="training", done=1)
    sys.exit(3)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fatal():
    """Makes a mistake while worker-1 sleeps."""
    while not (folder / "worker-1.ready").exists():
        time.sleep(0.02)
    status.report(fatal="alpha must be positive")
    time.sleep(0.5)  # longer than the launcher takes to see it
    print("Traceback of the mistake")
    sys.exit(1)


def raising():
    """Does not come as far as the tuner, while worker-1 sleeps."""
    while not (folder / "worker-1.ready").exists():
        time.sleep(0.02)
    raise ValueError("no such folder")


def last_worker():
    while "worker-0" not in status.ended():
        time.sleep(0.02)
    ok()


def sleep():
    status.report(state="training")
    (folder / f"{role}.ready").touch()
    try:
        time.sleep(1000)
    except KeyboardInterrupt:
        saved = sorted(p.name for p in folder.glob("*.saved"))
        (folder / f"{role}.saved").write_text(json.dumps(saved))
        raise


def deaf():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sleep()


def parent():
    """Leaves a process behind, which does not hear SIGINT."""
    child = [sys.executable, "-c", "import time; time.sleep(1000)"]
    with open(folder / "grandchild.pid", "w") as file:
        file.write(str(subprocess.Popen(child).pid))
    ok()


def silent():
    pass


with open(folder / f"{role}.starts", "a") as file:
    file.write(json.dumps([os.getpid(), sys.argv, dict(os.environ)]) + "\n")
start = len((folder / f"{role}.starts").read_text().splitlines())
default = {"chief": "serve", "last": "silent"}.get(role, "ok")
plan = acts.get(role, default).split(",")
print(f"{role} plays")
act = plan[min(start, len(plan)) - 1]
if act.isdecimal():
    sys.exit(int(act))
globals()[act]()
