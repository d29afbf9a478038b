"""Two processes on one machine train as one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import several_hosts_child as child

CHILD = Path(child.__file__)
TESTS = CHILD.parent.parent
pytestmark = pytest.mark.slow
LONGEST = 150  # seconds, for a pair of workers on a busy machine


def workers(folder, *tasks):
    """Start two workers; their exit codes and the ends of what they printed."""
    sockets = [socket.socket() for _ in range(2)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    hosts = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    started = []
    for index in range(2):
        place = {"type": "worker", "index": index}
        config = {"cluster": {"worker": hosts}, "task": place}
        paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            "TF_CONFIG": json.dumps(config),
            "CUDA_VISIBLE_DEVICES": "",  # one CPU device each
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        with open(folder / f"{index}.log", "w") as log:
            command = [sys.executable, CHILD, folder, *tasks]
            started.append(
                subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
            )
    end, codes = time.monotonic() + LONGEST, []
    try:
        for process in started:
            codes.append(process.wait(max(0.1, end - time.monotonic())))
    finally:
        for process in started:
            process.kill()
    logs = [(folder / f"{i}.log").read_text()[-3000:] for i in range(2)]
    return codes, "\n".join(logs)


def returned(folder, task):
    """What a task returned on the two workers."""
    return [json.loads((folder / f"{task}-{i}.json").read_text()) for i in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two workers have left the results of `equal` and `wrong`."""
    folder = tmp_path_factory.mktemp("workers")
    codes, logs = workers(folder, "equal", "wrong")
    assert codes == [0, 0], logs
    return folder


def assert_close(one, other, atol):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_two_workers_equal_one_process(folder):
    first, second = returned(folder, "equal")
    alone = child.equal(None, folder)
    assert first.keys() == second.keys() == alone.keys()
    for name, expected in alone.items():
        assert_close(first[name]["weights"], second[name]["weights"], 0)
        assert first[name]["logs"] == second[name]["logs"]
        if name == "BatchNormalization":
            continue  # on one process, it sees all of the batch
        assert_close(first[name]["weights"], expected["weights"], 1e-5)
        logs = first[name]["logs"]
        assert logs.keys() == expected["logs"].keys()
        for key, values in expected["logs"].items():
            np.testing.assert_allclose(logs[key], values, rtol=1e-5, err_msg=key)


def test_what_would_go_wrong_is_refused_on_both_workers(folder):
    found = returned(folder, "wrong")
    for messages in found:
        for name, part in (
            ("fit in the scope", "`predict` after `with strategy.scope():`"),
            ("save in the scope", "call `save` after `with strategy.scope():`"),
            ("distributed data", "Pass the tf.data.Dataset of global batches"),
            ("train_on_batch", "Use `fit` and `evaluate`"),
            ("steps_per_execution", "Use steps_per_execution=1"),
            ("other weights", "do not start from the same model"),
            ("other order", "The workers read different batches"),
            ("fewer batches", "The workers have different numbers of batches"),
        ):
            assert part in messages[name], name
    assert "e.g. head/bias" in found[1]["other weights"]
    assert found[0]["files"] == ["x", "x.keras", "x.weights.h5"]
    assert found[1]["files"] == []
    loaded = keras.saving.load_model(folder / "alone.keras")
    assert_close(child.weights(loaded), child.weights(child.new_model(None, None)), 0)


def test_a_killed_worker_ends_the_other_and_a_backup_goes_on(tmp_path):
    codes, logs = workers(tmp_path, "killed")  # in bounded time
    assert codes[1] == -signal.SIGKILL
    assert codes[0] == 0, logs
    error = json.loads((tmp_path / "killed-0.json").read_text())["error"]
    assert "MultiWorkerMirroredStrategy has lost one of its 2 workers" in error
    assert "Start all workers again with the same command" in error
    codes, logs = workers(tmp_path, "resumed")
    assert codes == [0, 0], logs
    found = returned(tmp_path, "resumed")
    expected = child.resumed(None, tmp_path)
    for worker in found:
        assert worker["epochs"] == [2, 3]
        assert_close(worker["weights"], expected["weights"], 1e-5)
    assert not (tmp_path / "backup").exists()
