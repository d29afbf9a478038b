"""`_disk` and `_checkpoint`: whole files, locks, folders that can be written."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from keras_delta import _disk
from keras_delta._checkpoint import Checkpoint

NOBODY = 2**22 + 1  # no process has so high a number
STAGES = ("opened", "half", "whole", "synced", "renamed")


class KillError(BaseException):
    """Stands for what ends a process."""


def write_plain(path, value):
    with _disk.replace_file(path) as temporary:
        temporary.write_bytes(bytes([value]) * 1000)


def read_plain(path):
    content = Path(path).read_bytes()
    assert content == content[:1] * 1000
    return content[0]


def read_json(path):
    values = _disk.read_json(path)
    assert values == values[:1] * 1000
    return values[0]


def write_checkpoint(path, value):
    assert Checkpoint(path, {"a": 1}).save(lambda: {"x": np.full(1000, value)}, True)


def read_checkpoint(path):
    values = Checkpoint(path, {"a": 1}).load()["x"]
    assert values.shape == (1000,) and np.ptp(values) == 0
    return values[0]


# A kind of user: writes a number, reads it, and the function that fills the file.
USERS = {
    "plain": (write_plain, read_plain, (Path, "write_bytes")),
    "json": (
        lambda path, value: _disk.write_json(path, [value] * 1000),
        read_json,
        (Path, "write_text"),
    ),
    "checkpoint": (write_checkpoint, read_checkpoint, (np, "savez")),
}


def end_at(stage, fill, patch):
    """Raise `KillError` at a stage of a write."""
    if stage in ("synced", "renamed"):
        owner, name = os, {"synced": "fsync", "renamed": "replace"}[stage]
    else:
        owner, name = fill
    share = {"opened": 0, "half": 0.5}.get(stage)
    function = getattr(owner, name)

    def ends(target, *args, **kwargs):
        function(target, *args, **kwargs)
        if share is not None:
            if hasattr(target, "flush"):
                target.flush()
                target = target.name
            os.truncate(target, int(share * os.path.getsize(target)))
        raise KillError

    patch.setattr(owner, name, ends)


@pytest.mark.parametrize("killed", [False, True], ids=["raised", "killed"])
@pytest.mark.parametrize("before", [None, 1])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("user", USERS)
def test_the_old_file_or_the_new_one(user, stage, before, killed, tmp_path):
    write, read, fill = USERS[user]
    path = tmp_path / "new" / "file.x"
    if before is not None:
        write(path, before)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KillError):
        end_at(stage, fill, patch)
        if killed:  # nobody cleans up
            patch.setattr(os, "getpid", lambda: NOBODY)
            patch.setattr(Path, "unlink", lambda *args, **kwargs: None)
        write(path, 2)
    after = 2 if stage == "renamed" else before
    left = [] if after is None else ["file.x"]
    names = [name for name in os.listdir(path.parent) if name != "file.x"]
    assert bool(names) == (killed and stage != "renamed")
    assert path.exists() == bool(left)
    if after is not None:
        assert read(path) == after
    write(path, 3)
    assert read(path) == 3 and os.listdir(path.parent) == ["file.x"]


@pytest.mark.parametrize("killed", [False, True], ids=["raised", "killed"])
def test_a_folder_appears_whole(killed, tmp_path):
    path = tmp_path / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KillError):
        if killed:
            patch.setattr(os, "getpid", lambda: NOBODY)
            patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with _disk.make_folder(path) as temporary:
            (temporary / "half").touch()
            raise KillError
    assert not path.exists() and len(os.listdir(path.parent)) == killed
    with _disk.make_folder(path) as temporary:
        (temporary / "whole").touch()
        assert not path.exists()
    assert os.listdir(path) == ["whole"] and os.listdir(path.parent) == ["folder"]


def test_leftovers_of_others_stay(tmp_path):
    """Of processes that run, of other files, and what is only called alike."""
    running = os.getppid()
    names = {
        f".file.{running}.tmp.csv",
        f".other.{NOBODY}.tmp.csv",
        f".file.{NOBODY}.tmp.txt",
        f".file.{NOBODY}.csv",
        "file.tmp.csv",
    }
    for name in {*names, f".file.{NOBODY}.tmp.csv"}:
        (tmp_path / name).touch()
    _disk.remove_leftovers(tmp_path / "file.csv")
    assert set(os.listdir(tmp_path)) == names
    assert _disk.is_running(running)
    assert not _disk.is_running(os.getpid()) and not _disk.is_running(NOBODY)


def test_the_suffix_stays(tmp_path):
    """Keras and matplotlib look at it."""
    for name, end in (("a.weights.h5", ".tmp.weights.h5"), ("b.c.png", ".tmp.png")):
        with _disk.replace_file(tmp_path / name) as temporary:
            temporary.touch()
            assert temporary.name.endswith(end) and temporary.parent == tmp_path


def test_a_checkpoint_on_a_full_disk(tmp_path, monkeypatch):
    """The old one stays, the work goes on, with one warning."""
    checkpoint = Checkpoint(tmp_path / "c", {"a": 1})
    assert checkpoint.save(lambda: {"x": np.zeros(3)}, now=True)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="could not be written.*No space left") as seen:
        for _ in range(3):
            assert not checkpoint.save(lambda: {"x": np.ones(3)}, now=True)
    assert len(seen) == 1 and os.listdir(tmp_path) == ["c"]
    np.testing.assert_array_equal(checkpoint.load()["x"], np.zeros(3))


def test_a_checkpoint_of_something_else(tmp_path):
    path = tmp_path / "c"
    assert Checkpoint(path, {"a": 1}).load() is None
    assert Checkpoint(None, {}).load() is None
    write_checkpoint(path, 1)
    with pytest.raises(ValueError, match=r"something else \(a: 1 in the file, 2 now\)"):
        Checkpoint(path, {"a": 2}).load()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        Checkpoint(path, {"a": 1}).load()
    with pytest.raises(ValueError, match="There is a folder of this name"):
        Checkpoint(tmp_path, {})


def test_locks_wait(tmp_path, monkeypatch):
    """The second one comes in when the first is out, error or not."""
    path = tmp_path / "new" / "lock"
    waits, order = threading.Event(), []
    flock = _disk.fcntl.flock

    def announce(file, how):
        waits.set()
        flock(file, how)

    def enter():
        with _disk.lock(path) as mine:
            order.append(mine)

    second = threading.Thread(target=enter)
    with pytest.raises(KeyError), _disk.lock(path):
        monkeypatch.setattr(_disk.fcntl, "flock", announce)
        second.start()
        assert waits.wait(60)
        with _disk.lock(tmp_path / "other"):
            order.append("first")
        raise KeyError
    second.join(60)
    assert order == ["first", True]


def test_locks_that_do_not_wait(tmp_path):
    path = tmp_path / "lock"
    path.write_text("stays")
    with _disk.lock(path, wait=False) as first:
        with _disk.lock(path, wait=False) as second:
            assert (first, second) == (True, False)
        with _disk.lock(path, wait=False) as third:
            assert not third  # who was turned away took nothing along
    with _disk.lock(path, wait=False) as fourth:
        assert fourth
    assert path.read_text() == "stays" and not _disk._open_locks


def test_a_forked_child_has_no_lock(tmp_path):
    """One that lives longer would keep its parent's."""
    path = tmp_path / "lock"
    to_child, ready = os.pipe(), os.pipe()
    with _disk.lock(path):
        child = os.fork()
        if child == 0:
            os.close(to_child[1])
            os.write(ready[1], b"x")
            os.read(to_child[0], 1)  # until the parent closes its end
            os._exit(0)
        os.read(ready[0], 1)
        with _disk.lock(path, wait=False) as before:
            pass
    with _disk.lock(path, wait=False) as after:
        pass
    lives = os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(to_child[1])
    os.waitpid(child, 0)
    for end in (to_child[0], *ready):
        os.close(end)
    assert lives and not before and after


def test_without_locks(tmp_path, monkeypatch):
    """Windows has no `fcntl`."""
    monkeypatch.setattr(_disk, "fcntl", None)
    with _disk.lock(tmp_path / "lock"), _disk.lock(tmp_path / "lock") as mine:
        assert mine


def test_occupy_names_the_process(tmp_path):
    path = tmp_path / "new" / "lock"
    with _disk.occupy(path, "The cache", "Pass another folder."):
        user = f"process {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(RuntimeError) as error,
            _disk.occupy(path, "The cache", "No."),
        ):
            pass
        assert str(error.value) == f"The cache is in use by {user}. No."
        path.write_text("")
        with pytest.raises(RuntimeError, match="by another process"):
            _disk.occupy(path, "It", "").__enter__()
    with pytest.raises(KeyError), _disk.occupy(path, "The cache", "No."):
        raise KeyError
    with _disk.occupy(path, "The cache", "No."):
        pass


HOLD = """
import sys, time
from keras_delta import _disk
with _disk.occupy(sys.argv[1], "It", ""):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_process_holds_nothing(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    waiting = threading.Thread(target=lambda: _disk.lock(path).__enter__())
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=f"by process {holder.pid} on"):
            _disk.occupy(path, "It", "").__enter__()
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    waiting.join(60)
    assert not waiting.is_alive()


def test_check_writable(tmp_path, monkeypatch):
    """As many bytes as asked for, and nothing left."""
    sizes, fsync = [], os.fsync

    def measure(descriptor):
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", measure)
    monkeypatch.setattr(_disk, "BLOCK", 1000)
    for size in (0, 999, 1000, 2500):
        _disk.check_writable("directory", tmp_path / "new" / "one", size)
    assert sizes == [0, 999, 1000, 2500]
    assert os.listdir(tmp_path / "new" / "one") == []


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()

    def check(folder, reason, size=0):
        with pytest.raises(ValueError) as error:
            _disk.check_writable("directory", folder, size)
        start = "Invalid value for argument `directory`. Expected a folder that can be "
        text = f"{start}written. Received: directory={str(folder)!r}. Reason: "
        assert str(error.value).startswith(text) and reason in str(error.value)

    check(tmp_path / "file", "File exists")
    check(tmp_path / "file" / "below", "Not a directory")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    def read_only(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "fsync", full)
    check(tmp_path / "full", "No space left on device", 10)
    assert os.listdir(tmp_path / "full") == []
    monkeypatch.setattr(_disk, "open", read_only, raising=False)
    check(tmp_path, "Permission denied")


def test_json(tmp_path):
    path = tmp_path / "new" / "a.json"
    value = {"ä": np.float32(0.5), "n": np.int64(3), "b": np.True_, "list": np.eye(2)}
    _disk.write_json(path, {**value, "path": Path("a"), "none": None})
    expected = {"ä": 0.5, "n": 3, "b": True, "list": [[1, 0], [0, 1]]}
    assert _disk.read_json(path) == {**expected, "path": "a", "none": None}
    with pytest.raises(TypeError):
        _disk.write_json(path, {(1, 2): 3})  # JSON has no such keys
    assert _disk.read_json(path)["n"] == 3
    for damaged in (b"", b'{"a": ', b"\xff\xfe"):
        path.write_bytes(damaged)
        assert _disk.read_json(path, default=7) == 7
    assert _disk.read_json(tmp_path / "missing.json") is None
