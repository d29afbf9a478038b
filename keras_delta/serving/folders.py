"""Versions of a model as TensorFlow Serving looks for them: `NAME/1`, `NAME/2`, ..."""

import contextlib
import ctypes
import errno
import os
import re
import shutil
from pathlib import Path

from keras_delta import _disk
from keras_delta._errors import invalid

EXCHANGE = 2  # RENAME_EXCHANGE of renameat2, linux/fs.h
HERE = -100  # AT_FDCWD
LEFT = re.compile(r"\.(\d+)\.(\d+)\.tmp(\.old)?")  # version, process


def version_folder(path, version, overwrite):
    """The folder of a version, which is not there yet or may be replaced.

    Args:
        path: folder of all versions, `NAME`, or of one, `NAME/3`.
        version: positive integer; None: that of `path`, else 1.
        overwrite: whether it may be there.

    Returns:
        `Path`, `NAME/version`.

    Raises:
        ValueError: for another version, and where there is something already.
        NotADirectoryError: where `NAME` is a file.
        PermissionError: where nothing can be written.
    """
    try:
        path = Path(path)
    except TypeError:
        expected = "a path, a string or pathlib.Path"
        raise TypeError(invalid("path", expected, path)) from None
    if not path.name:
        expected = "a folder whose name is the model's, such as 'served/flowers'"
        raise ValueError(invalid("path", expected, str(path)))
    if path.name.isdecimal():
        if version not in (None, int(path.name)):
            expected = f"{int(path.name)}, as `path` says, or None"
            raise ValueError(invalid("version", expected, version))
        path, version = path.parent, int(path.name)
    version = 1 if version is None else version
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(invalid("version", "a positive integer or None", version))
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise NotADirectoryError(
                    f"Cannot export to '{path}': '{part}' is a file, not a folder."
                )
            if not os.access(part, os.W_OK | os.X_OK):
                raise PermissionError(
                    f"Cannot export to '{path}': the folder '{part}' is read-only."
                )
            break
    folder = path / str(version)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"Cannot export to '{folder}': it is a file, not a folder."
        )
    if folder.exists() and not overwrite:
        following = max(versions_in(path)) + 1
        raise ValueError(
            f"'{folder}' exists. Pass `version={following}` to put the model beside "
            "it, which servers take up by themselves, or `overwrite=True` to replace "
            "it."
        )
    return folder


def versions_in(path):
    """Dict from the versions of a model to their folders, `NAME/1`, `NAME/2`, ..."""
    return {
        int(folder.name): folder
        for folder in Path(path).iterdir()
        if folder.name.isascii() and folder.name.isdecimal() and folder.is_dir()
    }


@contextlib.contextmanager
def replacing(folder):
    """A temporary folder beside `folder`, which takes its place if all goes well.

    Its name is no number, so that no server takes it for a version. What is there is
    replaced in one step on Linux; elsewhere there is a moment without either.

    Args:
        folder: `Path`; the folder above it is made if there is none.

    Yields:
        `Path` of an empty folder, removed after an exception.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _flush(path)
        if folder.exists():
            _exchange(temporary, folder)
        else:
            os.rename(temporary, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(a, b):
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        if library.renameat2(HERE, bytes(a), HERE, bytes(b), EXCHANGE) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), f"cannot replace '{b}'")
    old = a.with_name(f"{a.name}.old")
    os.rename(b, old)
    os.rename(a, b)
    os.rename(old, a)


def _flush(path):
    if path.is_symlink():
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sweep(path):
    """Remove what killed exports left, of any version."""
    for left in path.iterdir():
        match = LEFT.fullmatch(left.name)
        if match is None or _disk.is_running(int(match[2])):
            continue
        version = path / match[1]
        if match[3] and not version.exists():
            os.rename(left, version)  # killed between two steps
        else:
            shutil.rmtree(left, ignore_errors=True)
