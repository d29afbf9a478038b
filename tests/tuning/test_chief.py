"""Chief and workers that are killed: nothing is lost, nothing runs twice."""

import os
import re
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import keras_tuner as kt
import pytest
from keras_tuner.src import utils
from keras_tuner.src.distribute import oracle_client

from keras_delta import _disk
from keras_delta._runs import launch, status
from keras_delta.tuning import alone, chief, results

SCRIPTS = Path(__file__).parent / "scripts"


class Oracle(kt.Oracle):
    """Alpha is the number of the trial; idle once a trial, where told to be."""

    idle = 0

    def populate_space(self, trial_id):
        if self.idle:
            self.idle -= 1
            return {"status": "IDLE"}
        return {"status": "RUNNING", "values": {"alpha": float(trial_id)}}


def new_oracle(folder, trials=6, **kwargs):
    objective = kt.Objective("score", "max")
    oracle = Oracle(objective=objective, max_trials=trials, **kwargs)
    oracle._set_project_dir(folder, "search")
    oracle.verbose = 0
    return oracle


def reloaded(folder, workers=()):
    oracle = new_oracle(folder)
    oracle.reload()
    alone.keep_ongoing(oracle, workers)
    return oracle


def end(oracle, trial, status="COMPLETED"):
    oracle.update_trial(trial.trial_id, {"score": 1.0})
    trial.status = status
    oracle.end_trial(trial)


def held(oracle):
    return {name: trial.trial_id for name, trial in oracle.ongoing_trials.items()}


# --- what a restarted chief has ------------------------------------------------


def test_workers_keep_their_trials(tmp_path):
    oracle = new_oracle(tmp_path)
    for name in ("worker-0", "worker-1", "worker-2"):
        oracle.create_trial(name)
    oracle = reloaded(tmp_path, ["worker-0", "worker-1"])
    assert held(oracle) == {"worker-0": "0", "worker-1": "1"}
    assert oracle._retry_queue == ["2"]
    assert oracle.create_trial("worker-1").trial_id == "1"
    assert oracle.create_trial("worker-3").trial_id == "2"
    assert oracle.create_trial("worker-4").trial_id == "3"


def test_without_workers_all_are_queued_once(tmp_path):
    oracle = new_oracle(tmp_path)
    oracle.create_trial("worker-0")
    oracle.create_trial("worker-1")
    reloaded(tmp_path).save()
    oracle = reloaded(tmp_path)
    assert (held(oracle), oracle._retry_queue) == ({}, ["0", "1"])


def test_ended_trials_stay_ended(tmp_path, monkeypatch):
    """Killed after the end was saved, and before the trial was no longer ongoing."""
    oracle = new_oracle(tmp_path)
    trial = oracle.create_trial("worker-0")
    end(oracle, trial)
    oracle.ongoing_trials["worker-0"] = trial
    oracle.save()
    oracle = reloaded(tmp_path, ["worker-0"])
    assert (held(oracle), oracle._retry_queue, oracle.end_order) == ({}, [], ["0"])
    assert oracle.create_trial("worker-0").trial_id == "1"


def test_end_that_was_half_saved(tmp_path):
    """Killed between trial.json and oracle.json: the worker says it again."""
    oracle = new_oracle(tmp_path)
    trial = oracle.create_trial("worker-0")
    trial.status = "COMPLETED"
    oracle._save_trial(trial)
    oracle = reloaded(tmp_path, ["worker-0"])
    assert held(oracle) == {"worker-0": "0"}
    trial = oracle.create_trial("worker-0")
    assert (trial.trial_id, trial.status) == ("0", "RUNNING")
    end(oracle, trial)
    assert (oracle.end_order, oracle.ongoing_trials) == (["0"], {})


def test_failed_trial_that_waits_for_its_retry(tmp_path):
    oracle = new_oracle(tmp_path, max_retries_per_trial=1)
    trial = oracle.create_trial("worker-0")
    end(oracle, trial, "INVALID")
    oracle.ongoing_trials["worker-0"] = trial  # killed before this was undone
    oracle.save()
    oracle = reloaded(tmp_path, ["worker-0"])
    assert (held(oracle), oracle._retry_queue) == ({}, ["0"])


def test_trial_that_nobody_got(tmp_path):
    """Killed between the new trial's trial.json and oracle.json."""
    oracle = new_oracle(tmp_path)
    oracle.create_trial("worker-0")
    before = Path(oracle._get_oracle_fname()).read_text()
    oracle.create_trial("worker-1")
    Path(oracle._get_oracle_fname()).write_text(before)
    oracle = reloaded(tmp_path, ["worker-0", "worker-1"])
    assert (sorted(oracle.trials), oracle._retry_queue) == (["0"], [])
    assert oracle.remaining_trials() == 5
    assert oracle.create_trial("worker-1").trial_id == "1"


def test_trial_of_a_worker_that_was_given_up(tmp_path):
    oracle = new_oracle(tmp_path)
    oracle.create_trial("worker-0")
    del oracle.ongoing_trials["worker-0"]
    oracle.save()
    oracle = reloaded(tmp_path, ["worker-0"])
    assert (held(oracle), oracle._retry_queue) == ({}, ["0"])


# --- files ---------------------------------------------------------------------


def test_whole_files_of_the_oracle(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "save_json", utils.save_json)
    replaced = []
    real = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (replaced.append(Path(b).name), real(a, b))
    )
    alone.whole_files()
    alone.whole_files()
    oracle = new_oracle(tmp_path)
    oracle.create_trial("worker-0")
    assert replaced == ["trial.json", "oracle.json"]
    assert utils.load_json(oracle._get_oracle_fname())["start_order"] == ["0"]
    assert not list(tmp_path.rglob("*.tmp*"))


# --- server and workers --------------------------------------------------------


@pytest.fixture
def port(monkeypatch, tmp_path):
    port = launch.free_port()
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(port))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker-0")
    monkeypatch.setattr(status, "_told", {})
    monkeypatch.setenv(status.PATH, str(tmp_path / "status" / "chief.json"))
    monkeypatch.delenv(status.WORKERS, raising=False)
    return port


@pytest.fixture
def serving(port):
    """`serving(oracle)`: a thread with its chief, and what it has raised."""
    threads = []

    def serve(oracle):
        def run():
            try:
                chief.serve(oracle)
            except Exception as error:
                thread.error = error

        thread = threading.Thread(target=run, daemon=True)
        thread.error = None
        thread.start()
        threads.append(thread)
        return thread

    yield serve
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def new_client(timeout=10):
    client = oracle_client.OracleClient(None)
    chief.connect(client, timeout)
    return client


def test_search_ends_at_once(serving, tmp_path):
    thread = serving(new_oracle(tmp_path, trials=2))
    client = new_client()
    trials = [client.create_trial(f"worker-{i}") for i in (0, 1)]
    assert [t.hyperparameters.values for t in trials] == [
        {"alpha": 0.0},
        {"alpha": 1.0},
    ]
    for i, trial in enumerate(trials):
        assert thread.is_alive()
        client.update_trial(trial.trial_id, {"score": 0.5})
        trial.status = "COMPLETED"
        client.end_trial(trial)
        assert client.create_trial(f"worker-{i}").status == "STOPPED"
    thread.join(10)  # Keras Tuner itself waits for up to 20 s
    assert not thread.is_alive()
    assert thread.error is None
    assert _disk.read_json(tmp_path / "status" / "chief.json") == {"state": "done"}


def test_chief_waits_for_the_launchers_workers(serving, tmp_path, monkeypatch):
    monkeypatch.setenv(status.WORKERS, "worker-0,worker-1,worker-2")
    thread = serving(new_oracle(tmp_path, trials=0))
    client = new_client()
    for name in ("worker-0", "worker-1"):  # the third has not come yet
        assert thread.is_alive()
        client.create_trial(name).status = "COMPLETED"
    thread.join(0.6)
    assert thread.is_alive()
    _disk.write_json(
        tmp_path / "status" / status.ENDED, ["worker-0", "worker-1", "worker-2"]
    )
    thread.join(10)
    assert not thread.is_alive()


def test_trial_of_a_dead_worker_holds_nobody_up(serving, tmp_path, monkeypatch):
    """Oracles may wait for ongoing trials, as grid search does."""
    monkeypatch.setenv(status.WORKERS, "worker-0,worker-1")
    oracle = new_oracle(tmp_path, trials=1)
    serving(oracle)
    client = new_client()
    assert client.create_trial("worker-0").status == "RUNNING"
    _disk.write_json(tmp_path / "status" / status.ENDED, ["worker-0"])
    assert client.create_trial("worker-1").status == "STOPPED"
    assert oracle.ongoing_trials == {}


def test_calls_may_be_repeated(serving, tmp_path):
    oracle = new_oracle(tmp_path, trials=1)
    serving(oracle)
    client = new_client()
    trial, again = (client.create_trial("worker-0") for _ in range(2))
    assert again.trial_id == trial.trial_id
    for _ in range(2):
        client.update_trial(trial.trial_id, {"score": 0.5})
    trial.status = "COMPLETED"
    for _ in range(2):
        client.end_trial(trial)
    assert (oracle.end_order, oracle._run_times["0"]) == (["0"], 1)
    assert oracle.trials["0"].score == 0.5
    assert client.create_trial("worker-0").status == "STOPPED"


def test_idle_workers_do_not_hammer(serving, tmp_path):
    oracle = new_oracle(tmp_path, trials=1)
    oracle.idle = 1
    serving(oracle)
    client = new_client()
    begin = time.monotonic()
    assert client.create_trial("worker-0").status == "IDLE"
    assert time.monotonic() - begin >= chief.IDLE
    trial = client.create_trial("worker-0")
    client.update_trial(trial.trial_id, {"score": 0.5})
    trial.status = "COMPLETED"
    client.end_trial(trial)
    client.create_trial("worker-0")


def test_a_worker_waits_for_the_cells_of_others(capsys, monkeypatch):
    """So that its winner is that of all."""
    looked = []

    class Tuner:
        def cells(self):
            looked.append(1)
            states = ["COMPLETED", "RUNNING" if len(looked) < 3 else "COMPLETED"]
            return [
                results.Cell(str(i), {}, s, {}, 0.5, False, 0.0, None, {})
                for i, s in enumerate(states)
            ]

    monkeypatch.setattr(chief, "IDLE", 0)
    trained = []
    chief.Worker().search(Tuner(), lambda: trained.append(len(looked)))
    assert (trained, len(looked)) == ([0], 3)
    assert capsys.readouterr().err == "Waiting for other workers to end trial 1 ...\n"
    monkeypatch.setenv(status.WORKERS, "worker-0")
    chief.Worker().search(Tuner(), lambda: None)
    assert len(looked) == 3  # one of the launcher's ends here


def test_error_of_the_oracle_ends_the_chief(serving, tmp_path):
    thread = serving(new_oracle(tmp_path, trials=1))
    client = new_client()
    trial = client.create_trial("worker-0")
    with pytest.raises(grpc.RpcError, match="Objective value missing"):
        client.update_trial(trial.trial_id, {"scores": 0.5})
    thread.join(5)
    message = r"The search cannot continue: Objective value missing .*\['score'\]"
    assert re.match(message, str(thread.error))
    told = _disk.read_json(tmp_path / "status" / "chief.json")
    assert told["fatal"] == str(thread.error)


@pytest.mark.parametrize("reuse", [0, 1])
def test_port_in_use(port, serving, tmp_path, reuse):
    """Also by another chief: gRPC would let both have the port."""
    options = [("grpc.so_reuseport", reuse)]
    other = grpc.server(futures.ThreadPoolExecutor(1), options=options)
    other.add_insecure_port(f"127.0.0.1:{port}")
    other.start()
    thread = serving(new_oracle(tmp_path))
    thread.join(5)
    other.stop(None).wait()
    assert isinstance(thread.error, OSError)
    assert str(thread.error) == (
        f"The chief cannot listen on 127.0.0.1:{port}: port {port} is in use by "
        "another process, or 127.0.0.1 is not an address of this machine. Choose "
        "another port with the launcher's `--port` or, for chief and workers alike, "
        "with KERASTUNER_ORACLE_PORT; or end the other search."
    )
    assert "fatal" in _disk.read_json(tmp_path / "status" / "chief.json")


def test_bad_port(port, monkeypatch, tmp_path):
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "eighty")
    with pytest.raises(ValueError, match=r"from 1 to 65535\. Received: 'eighty'"):
        chief.serve(new_oracle(tmp_path))


def fake_chief(port, act):
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "fake_chief.py", str(port), act],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_chief_killed_in_a_call(port, capsys, tmp_path, monkeypatch):
    """Six times, more than gRPC itself repeats a call; the last chief answers."""
    monkeypatch.setattr(chief, "PATIENCE", 0.1)
    got = []
    client = new_client()
    waiting = threading.Thread(
        target=lambda: got.append(client.get_space()), daemon=True
    )
    waiting.start()
    for _ in range(6):
        with fake_chief(port, "hang") as process:
            assert process.stdout.readline() == "called\n"
            process.kill()
    path, end = tmp_path / "status" / "chief.json", time.monotonic() + 10
    while _disk.read_json(path) != {"state": "waiting for the chief"}:
        assert time.monotonic() < end
        time.sleep(0.02)
    with fake_chief(port, "answer") as process:
        waiting.join(10)
        process.kill()
    assert [hp.values for hp in got] == [{}]
    said = capsys.readouterr().err
    waited = f"Waiting for the chief at 127.0.0.1:{port} ..."
    assert f"{waited}\nThe chief is available.\n" in said


def test_no_chief(port, monkeypatch):
    monkeypatch.setattr(chief, "PATIENCE", 0.1)
    begin = time.monotonic()
    with pytest.raises(ConnectionError) as caught:
        new_client(timeout=0.5).create_trial("worker-0")
    assert time.monotonic() - begin < 3
    assert str(caught.value).startswith(
        f"No chief has answered at 127.0.0.1:{port} for 0.5 seconds. "
        "`python -m keras_delta.tuning --workers 2 script.py` starts chief and workers"
    )
