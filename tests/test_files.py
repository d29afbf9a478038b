"""`_disk.lock`: one at a time, and never left locked."""

import subprocess
import sys
import threading
import time

import pytest

from keras_delta import _disk

HOLD = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_disk)
with _disk.lock(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


def taken(path, found):
    with _disk.lock(path):
        found.append(time.monotonic())


def test_another_process_waits_until_the_first_is_killed(tmp_path):
    path = tmp_path / "new" / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, _disk.__file__, str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        found = []
        waiting = threading.Thread(target=taken, args=(path, found))
        waiting.start()
        waiting.join(0.3)
        assert found == []
        with _disk.lock(tmp_path / "other"):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    waiting.join(30)
    assert len(found) == 1


def test_an_error_lets_go(tmp_path):
    path = tmp_path / "lock"
    with pytest.raises(KeyError), _disk.lock(path):
        raise KeyError
    with _disk.lock(path):
        assert path.exists()


def test_what_is_in_the_file_stays(tmp_path):
    path = tmp_path / "lock"
    path.write_text("mine")
    with _disk.lock(path):
        assert path.read_text() == "mine"


def test_without_locks(tmp_path, monkeypatch):
    """Windows has no `fcntl`."""
    monkeypatch.setattr(_disk, "fcntl", None)
    with _disk.lock(tmp_path / "lock"), _disk.lock(tmp_path / "lock"):
        pass
