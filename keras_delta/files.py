"""Files that are replaced as a whole or not at all."""

import contextlib
import os
import re
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SUFFIXES = (".weights.h5",)  # of two parts, which Keras looks at


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside `path`, which takes its place if all goes well.

    Whoever reads `path` finds the old file or the new one, never a part of one,
    whenever the process is killed.

    Args:
        path: of the file; its folder is made if there is none.

    Yields:
        `Path` of the same folder and suffix. What is written there is flushed to the
        disk and renamed at the end; after an exception it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    stem, suffix = _parts(path)
    temporary = path.with_name(f".{stem}.{os.getpid()}.tmp{suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path, wait=True):
    """Only one process at a time is within.

    The lock belongs to the open file, so it ends with the process, however that ends.
    Without effect on Windows.

    Args:
        path: of a file for the lock, made if there is none.
        wait: whether to wait until another process is through.

    Yields:
        Whether this process has the lock; always True with `wait=True`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        mine = True
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                mine = False
        yield mine


def sweep(path):
    """Remove what processes left beside `path` that were killed while they wrote."""
    stem, suffix = _parts(path)
    left = re.compile(rf"\.{re.escape(stem)}\.(\d+)\.tmp{re.escape(suffix)}")
    with contextlib.suppress(OSError):
        for file in list(path.parent.iterdir()):
            match = left.fullmatch(file.name)
            if match and not alive(int(match[1])):
                file.unlink(missing_ok=True)


def _parts(path):
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), path.suffix)
    return path.name.removesuffix(suffix), suffix


def alive(process):
    """Whether there is a process of this number, other than this one."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()
