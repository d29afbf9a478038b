"""`run` with a trainer that trains nothing: order, resuming, lines; killed processes.

`KERAS_DELTA_KILLS=20` kills more often than the test suite has time for.
"""

import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiments.cell import Cell
from experiments.plan import Choice, Entry, Plan
from experiments.run import rerun, run
from experiments.store import ResultStore
from fakes import FakeTrainer, plan, record
from launched import processes, wait

from keras_delta import _disk
from keras_delta._runs import status

# The package has a function of this name.
running = importlib.import_module("experiments.run")

HERE = Path(__file__).parent
LAUNCHER = HERE / "scripts" / "launch_fake.py"
SCRIPT = HERE / "scripts" / "fake_run.py"
KILLS = int(os.environ.get("KERAS_DELTA_KILLS", "2"))
CELL = Cell("toy", "delta")


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "store")


def contents(folder):
    """Dict key -> record of all cells, without versions."""
    found = {}
    for path in (folder / "cells").iterdir():
        if not path.name.startswith("."):
            found[path.stem] = json.loads(path.read_text("utf-8"))
            del found[path.stem]["versions"]
    return found


def test_choices_come_before_their_results(store):
    trainer = FakeTrainer()
    run(plan(seeds=2), store, verbose=0, trainer=trainer)
    assert len(trainer.trained) == len({c.key for c in trainer.trained}) == 26
    for method in ("l2_sp", "feature_map", "delta"):
        its = [c for c in trainer.trained if c.method == method]
        assert all(c.fold for c in its[:6])
        # 0.5 and 5 are a tie, and 20 is worse.
        chosen = [(c.alpha, c.fold, c.seed) for c in its[6:]]
        assert chosen == [(0.5, None, 0), (0.5, None, 1)]
    for cell in trainer.trained:
        found = store.get(cell)
        assert found["settings"] == cell.settings()
        assert {k: found[k] for k in record(cell)} == record(cell)


def test_stages_come_in_order(store):
    trainer = FakeTrainer()
    stages = (2, 0, 1, 0, 2)
    entries = [Entry(CELL.replace(seed=i), stage=s) for i, s in enumerate(stages)]
    run(Plan(entries), store, verbose=0, trainer=trainer)
    assert [c.seed for c in trainer.trained] == [1, 3, 2, 0, 4]


def test_results_of_the_first_stage_come_before_choices_of_the_second(store):
    trainer = FakeTrainer()
    pairs = ((0.5, None), (5.0, None))
    entries = []
    for stage, dataset in enumerate(("first", "second")):
        cell = Cell(dataset, "delta")
        entries.append(Entry(cell, Choice((cell,), pairs, 2), stage))
    run(Plan(entries[::-1]), store, verbose=0, trainer=trainer)
    assert [c.dataset for c in trainer.trained] == ["first"] * 5 + ["second"] * 5


def test_warm_models_come_first_within_a_stage(store):
    trainer = FakeTrainer(warm=lambda cell: cell.method == trainer.trained[-1].method)
    trainer.trained.append(CELL.replace(method="l2"))
    methods = ("delta", "l2", "l2_sp", "delta", "l2", "l2_sp")
    stages = (0, 1, 0, 0, 1, 0)
    entries = [
        Entry(Cell("toy", m, seed=i), stage=s)
        for i, (m, s) in enumerate(zip(methods, stages, strict=True))
    ]
    run(Plan(entries), store, verbose=0, trainer=trainer)
    assert [c.seed for c in trainer.trained[1:]] == [0, 3, 2, 5, 1, 4]


def test_workers_begin_at_different_places(monkeypatch):
    cells = dict.fromkeys((CELL.replace(seed=i) for i in range(6)), 0)
    monkeypatch.setenv(status.WORKERS, "worker-0,worker-1,worker-2")
    for i in range(3):
        monkeypatch.setenv("KERASTUNER_TUNER_ID", f"worker-{i}")
        found = [c.seed for c in running._ordered(cells, FakeTrainer())]
        assert found == [(2 * i + k) % 6 for k in range(6)]


def test_nothing_is_trained_twice(store):
    run(plan(), store, verbose=0, trainer=FakeTrainer())
    before = {p: p.stat().st_mtime_ns for p in (store.folder / "cells").iterdir()}
    again = FakeTrainer()
    run(plan(), ResultStore(store.folder), verbose=0, trainer=again)
    assert again.trained == []
    assert {
        p: p.stat().st_mtime_ns for p in (store.folder / "cells").iterdir()
    } == before
    # A larger plan: what is new of it.
    run(plan(seeds=4), ResultStore(store.folder), verbose=0, trainer=again)
    assert [(c.method, c.seed) for c in again.trained] == [
        *(("l2_sp", 3), ("feature_map", 3), ("delta", 3), ("l2_fe", 3))
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_goes_on_after_an_exception(store, tmp_path, error):
    def fail(count):
        if count == 7:
            raise error("alas")

    first, second = FakeTrainer(failing=fail), FakeTrainer()
    with pytest.raises(error, match="alas"):
        run(plan(), store, verbose=0, trainer=first)
    assert len(first.trained) == len(store) == 7
    run(plan(), ResultStore(store.folder), verbose=0, trainer=second)
    keys = [c.key for c in first.trained + second.trained]
    assert len(keys) == len(set(keys)) == 30
    whole = ResultStore(tmp_path / "whole")
    run(plan(), whole, verbose=0, trainer=FakeTrainer())
    assert contents(store.folder) == contents(whole.folder)


def test_failed_cells_are_done(store):
    trainer = FakeTrainer()
    ours = Plan([Entry(CELL.replace(alpha=a)) for a in (100.0, 5.0)])
    run(ours, store, verbose=0, trainer=trainer)
    run(ours, store, verbose=0, trainer=trainer)
    assert len(trainer.trained) == 2
    reason = "Batch 1: the loss is nan.\nIt was alpha."
    assert store.failed(ours.results(store)) == [(CELL.replace(alpha=100.0), reason)]
    assert list(store.frame(ours.results(store))["alpha"]) == [5.0]


def test_strengths_that_diverge_are_not_chosen(store):
    run(plan(alphas=(1000.0, 20.0)), store, verbose=0, trainer=FakeTrainer())
    frame = store.frame(plan(alphas=(1000.0, 20.0)).results(store))
    ours = frame[frame["method"] != "l2_fe"]
    assert set(ours["alpha"]) == {20.0} and len(ours) == 9


def test_strengths_that_all_diverge_end_nothing_else(store):
    trainer = FakeTrainer()
    ours = plan(alphas=(100.0, 1000.0), methods=("delta",))
    run(ours, store, verbose=0, trainer=trainer)
    assert len(trainer.trained) == 2 * 2 + 3
    assert {c.method for c in ours.results(store)} == {"l2_fe"}
    assert [e.cell.seed for e in ours.lost(store)] == [0, 1, 2]
    again = FakeTrainer()
    run(ours, store, verbose=0, trainer=again)
    assert again.trained == []


def test_lines(store, capsys, monkeypatch):
    clock = iter(range(0, 1000, 60))
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    cells = [CELL.replace(alpha=a) for a in (5.0, 20.0, 100.0)]
    run(Plan(map(Entry, cells)), store, trainer=FakeTrainer())
    name = "toy, efficientnet_lite0, DELTA"
    shown = [f"{record(c)['accuracy']:.1%}" for c in cells[:2]]
    assert capsys.readouterr().out.splitlines() == [
        f"{name}, alpha 5, seed 0: {shown[0]}  60 s, 2 left, about 0:02:00",
        f"{name}, alpha 20, seed 0: {shown[1]}  60 s, 1 left, about 0:01:00",
        f"{name}, alpha 100, seed 0: failed: Batch 1: the loss is nan.  60 s, 0 left, "
        "about 0:00:00",
    ]


def test_what_is_left_falls_to_nothing(store, capsys):
    run(plan(), store, trainer=FakeTrainer())
    lines = capsys.readouterr().out.splitlines()
    left = [int(re.search(r", (\d+) left, about", line)[1]) for line in lines]
    assert left == list(range(29, -1, -1))


def test_silent(store, capsys):
    run(plan(), store, verbose=0, trainer=FakeTrainer())
    assert capsys.readouterr() == ("", "")


def test_second_run_is_refused(store):
    def second(count):
        run(plan(), ResultStore(store.folder), verbose=0, trainer=FakeTrainer())

    sentence = (
        f"Another run (process {os.getpid()}) works on {store.folder}. Wait for it, "
        "stop it, or choose another folder."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        run(plan(), store, trainer=FakeTrainer(failing=second))


def test_cell_of_another_process_is_left_to_it(store, monkeypatch):
    cells = [CELL.replace(seed=i) for i in range(3)]
    trainer, waits = FakeTrainer(), []

    def sleep(seconds):
        # All else is done; now the other process finishes, too.
        waits.append([c.seed for c in trainer.trained])
        other.put(cells[0], {"accuracy": 0.123})

    monkeypatch.setattr(running.time, "sleep", sleep)
    other = ResultStore(store.folder)
    with other.claimed(cells[0]) as mine:
        assert mine
        run(Plan(map(Entry, cells)), store, verbose=0, trainer=trainer)
    assert waits == [[1, 2]]
    assert [c.seed for c in trainer.trained] == [1, 2]
    assert store.get(cells[0])["accuracy"] == 0.123


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """This process is the launcher's only worker; gives what it tells."""
    monkeypatch.setenv(status.WORKERS, "worker-0")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker-0")
    monkeypatch.setenv(status.PATH, str(tmp_path / "status.json"))
    monkeypatch.setattr(status, "_told", {})
    return lambda: _disk.read_json(tmp_path / "status.json")


def test_worker_tells_and_exits(store, worker, monkeypatch):
    seen = []
    trainer = FakeTrainer(failing=lambda count: seen.append(worker()))
    ours = Plan([Entry(CELL.replace(seed=i)) for i in range(3)])
    with pytest.raises(SystemExit) as end:
        run(ours, store, verbose=0, trainer=trainer)
    assert end.value.code == 0
    assert [told["state"] for told in seen] == ["training"] * 3
    assert [(told["cell"], told["cells"]) for told in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [told["values"]["what"] for told in seen] == [
        str(c) for c in trainer.trained
    ]
    assert [told.get("done", 0) for told in seen] == [0, 1, 2]
    assert worker()["state"] == "done" and worker()["done"] == 3
    # Another one finds all done.
    with pytest.raises(SystemExit) as end:
        run(ours, store, trainer=FakeTrainer(failing=pytest.fail))
    assert end.value.code == 0


def test_worker_begins_again_as_a_new_process(store, worker, monkeypatch):
    class Began(Exception):
        pass

    def execv(program, command):
        assert (program, command) == (sys.executable, sys.orig_argv)
        raise Began

    monkeypatch.setattr(running.os, "execv", execv)
    monkeypatch.setattr(running, "CELLS_PER_PROCESS", 2)
    trainer = FakeTrainer()
    ours = Plan([Entry(CELL.replace(seed=i)) for i in range(3)])
    with pytest.raises(Began):
        run(ours, store, verbose=0, trainer=trainer)
    assert len(trainer.trained) == 2 and worker()["state"] != "done"
    with pytest.raises(SystemExit):
        run(ours, store, verbose=0, trainer=trainer)
    assert len(trainer.trained) == 3 and worker()["state"] == "done"


def test_mistake_of_a_worker_is_told(store, worker):
    def fail(count):
        raise ValueError("no such folder")

    with pytest.raises(ValueError, match="no such folder"):
        run(plan(), store, verbose=0, trainer=FakeTrainer(failing=fail))
    assert worker()["fatal"] == "ValueError: no such folder"


def test_rerun_refuses_what_was_not_trained(store):
    sentence = (
        "Invalid value for argument `cell`. Expected one with a result in the store. "
        "Received: cell='toy, efficientnet_lite0, DELTA, seed 0'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        rerun(CELL, store)


# Real processes.


def launch(folder):
    return subprocess.Popen(
        [sys.executable, str(LAUNCHER), str(folder), "0.1"],
        stdout=subprocess.DEVNULL,
        stderr=open(folder / "launcher.log", "a"),
        start_new_session=True,
    )


def written(folder):
    """Dict key -> time of writing of all records."""
    cells = folder / "store" / "cells"
    if not cells.is_dir():
        return {}
    found = {}
    for path in cells.iterdir():
        if not path.name.startswith("."):
            found[path.stem] = path.stat().st_mtime_ns
    return found


def kill(there, victim):
    number = there.get(victim)
    if number is not None:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            return False
    return number is not None


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "everything"])
def test_killed_at_random_moments(tmp_path, victim):
    draw = random.Random(f"{victim} 1")
    seen, killed, launcher = {}, 0, launch(tmp_path)
    try:
        for i in range(KILLS):
            # After three deaths without a finished training a worker is given up.
            wait_for_progress(tmp_path, launcher, len(seen) + 4)
            if launcher.poll() == 0:  # too late
                break
            time.sleep(draw.uniform(0, 0.3))
            seen.update(written(tmp_path))
            there = processes(tmp_path)
            names = [f"worker-{i % 2}"] if victim == "worker" else list(there)
            killed += any([kill(there, name) for name in names])
            if victim == "everything":
                launcher.wait()
                wait(lambda: not processes(tmp_path), 10)
                launcher = launch(tmp_path)
        assert launcher.wait(120) == 0, (tmp_path / "launcher.log").read_text()
        assert killed, "nothing was left to kill"
    finally:
        there = processes(tmp_path)
        for name in there:
            kill(there, name)
    assert there == {}
    check(tmp_path, seen)


def wait_for_progress(folder, launcher, records):
    wait(lambda: len(written(folder)) >= records or launcher.poll() is not None)


def check(folder, seen):
    """The store of an undisturbed run; each cell trained until it had a record."""
    whole = ResultStore(folder / "whole")
    run(plan(), whole, verbose=0, trainer=FakeTrainer())
    assert contents(folder / "store") == contents(whole.folder)
    for key, at in seen.items():
        assert written(folder)[key] == at, f"{key} was written again"
    lines = (folder / "store" / "trained.txt").read_text().splitlines()
    assert {line.split()[0] for line in lines} == contents(whole.folder).keys()
    assert [line for line in lines if len(line.split()) != 2] == []
    # Only what was killed in the middle was trained again: a cell a worker.
    assert 30 <= len(lines) <= 30 + 2 * KILLS
    assert len({line.split()[1] for line in lines}) > 1, "one worker did all"
    after = (folder / "after.txt").read_text().splitlines()
    assert set(after) == {"30 of 30"}


def test_all_begin_at_once(tmp_path):
    """Neither finds half a store, and each cell is trained once."""
    for i in range(2):
        folder = tmp_path / str(i)
        folder.mkdir()
        command = [sys.executable, str(SCRIPT), str(folder), "0"]
        env = {**os.environ, status.WORKERS: "worker-0,worker-1,worker-2"}
        started = [
            subprocess.Popen(
                command,
                env={**env, "KERASTUNER_TUNER_ID": f"worker-{k}"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for k in range(3)
        ]
        for process in started:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0 and not errors, errors
        lines = (folder / "store" / "trained.txt").read_text().splitlines()
        assert len(lines) == 30 and {len(line.split()) for line in lines} == {2}
