"""Files and folders: atomic writes, locks, write tests, JSON."""

import contextlib
import json
import os
import re
import shutil
import socket
from pathlib import Path

from keras_delta._errors import invalid

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BLOCK = 2**24  # bytes written at once
SUFFIXES = (".weights.h5",)  # of two parts, which Keras looks at


@contextlib.contextmanager
def replace_file(path):
    """A temporary path beside `path`, which replaces it on success.

    A reader of `path` sees the old file or the new one, never a part of one, even if
    the process is killed.

    Args:
        path: of the file; its folder is created if missing.

    Yields:
        `Path` in the same folder, with the same suffix. The file written there is
        flushed to disk and renamed at the end; after an exception it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = _temporary(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def make_folder(path):
    """A temporary folder beside `path`, which is renamed to it on success.

    Args:
        path: of a folder that does not exist yet.

    Yields:
        `Path` of an empty folder. After an exception it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def lock(path, wait=True):
    """A context that only one process at a time can enter.

    The lock belongs to the open file, so it always ends with the process. It has no
    effect on Windows.

    Args:
        path: of a file for the lock, created if missing.
        wait: whether to wait until another process has finished.

    Yields:
        Whether this process has the lock; always True with `wait=True`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        _open_locks.add(file)  # before the wait, in which another thread may fork
        try:
            yield _take(file, wait)
        finally:
            _open_locks.discard(file)


_open_locks = set()


def _take(file, wait):
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def _leave_locks():
    for file in _open_locks:
        file.close()
    _open_locks.clear()


# A forked child that outlives this process would hold its locks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def remove_leftovers(path):
    """Remove files beside `path` left by processes that were killed while writing."""
    stem, suffix = _parts(path)
    left = re.compile(rf"\.{re.escape(stem)}\.(\d+)\.tmp{re.escape(suffix)}")
    with contextlib.suppress(OSError):
        for file in list(path.parent.iterdir()):
            match = left.fullmatch(file.name)
            if not match or is_running(int(match[1])):
                continue
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)


def _temporary(path):
    stem, suffix = _parts(path)
    return path.with_name(f".{stem}.{os.getpid()}.tmp{suffix}")


def _parts(path):
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), path.suffix)
    return path.name.removesuffix(suffix), suffix


def is_running(process):
    """Whether a process with this number exists, other than this one."""
    if os.name == "nt":  # where `kill` would be a Ctrl-C
        return process != os.getpid()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()


@contextlib.contextmanager
def occupy(path, what, remedy):
    """A context that reserves something for this process.

    Args:
        path: of the lock file, created if missing; it names the owner of the lock.
        what: what is reserved, for the message.
        remedy: a sentence that tells the other process's user what to do.

    Raises:
        RuntimeError: if another process holds it, naming that process.
    """
    with lock(path, wait=False) as mine:
        if not mine:
            user = Path(path).read_text("utf-8").strip() or "another process"
            raise RuntimeError(f"{what} is in use by {user}. {remedy}")
        owner = f"process {os.getpid()} on {socket.gethostname()}\n"
        Path(path).write_text(owner, "utf-8")
        yield


def check_writable(argument, folder, size=0):
    """Refuse a folder in which no file can be written; it is created if missing.

    Args:
        argument: name of the argument that named it.
        folder: its path.
        size: bytes that must fit; written and removed.

    Raises:
        ValueError: if writing fails, with the reason.
    """
    path = Path(folder) / f".write_test.{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for start in range(0, size, BLOCK):
                file.write(bytes(min(BLOCK, size - start)))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        expected = "a folder that can be written"
        reason = f"Reason: {error}"
        raise ValueError(invalid(argument, expected, str(folder), reason)) from error
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def write_json(path, value, indent=None):
    """Replace a JSON file as a whole; NumPy's values become plain ones."""
    text = json.dumps(value, indent=indent, default=_plain)
    with replace_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def read_json(path, default=None):
    """The contents of a JSON file; `default` if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return default


def _plain(value):
    return value.tolist() if hasattr(value, "tolist") else str(value)
