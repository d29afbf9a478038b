"""Versions of a model as TensorFlow Serving expects them: `NAME/1`, `NAME/2`, ..."""

import contextlib
import ctypes
import os
import re
import shutil
from pathlib import Path

from keras_delta import _arguments, _disk
from keras_delta._errors import invalid

EXCHANGE = 2  # RENAME_EXCHANGE of renameat2, linux/fs.h
HERE = -100  # AT_FDCWD
LEFT = re.compile(r"\.(\d+)\.(\d+)\.tmp(\.old)?")  # version, process


def version_folder(path, version, overwrite):
    """`Path` of a version, `NAME/3`, that does not exist yet or may be replaced.

    Raises:
        TypeError, ValueError: if the path or version is invalid, or exists and must
            not be overwritten.
        OSError: if the folder is not writable.
    """
    if not isinstance(path, (str, os.PathLike)):
        expected = "a path, a string or pathlib.Path"
        raise TypeError(invalid("path", expected, path))
    path, version = Path(path), _arguments.integer("version", version, optional=True)
    if not path.name:
        expected = "a folder whose name is the model's, such as 'served/flowers'"
        raise ValueError(invalid("path", expected, str(path)))
    if path.name.isdecimal():
        number = _arguments.integer("version", int(path.name))
        if version not in (None, number):
            expected = f"{number}, as in `path`, or None"
            raise ValueError(invalid("version", expected, version))
        path, version = path.parent, number
    folder = path / str(version or 1)
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(
            f"Cannot export to '{folder}': '{nearest}' is a file, not a folder."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(
            f"Cannot export to '{folder}': the folder '{nearest}' is read-only."
        )
    if folder.exists() and not overwrite:
        following = max(versions_in(path)) + 1
        raise ValueError(
            f"'{folder}' exists. Pass `version={following}` to add the model as a new "
            "version, which servers load by themselves, or `overwrite=True` to replace "
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
    """A temporary folder next to `folder` that replaces it on success.

    Its name is not a number, so that no server mistakes it for a version. An existing
    folder is replaced atomically on Linux; elsewhere neither exists for a moment.

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


def _exchange(new, old):
    rename = getattr(ctypes.CDLL(None), "renameat2", lambda *_: -1)
    if rename(HERE, bytes(new), HERE, bytes(old), EXCHANGE) == 0:
        return
    aside = new.with_name(f"{new.name}.old")
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


def _flush(path):
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sweep(path):
    """Remove leftovers of killed exports, of any version."""
    for left in path.iterdir():
        match = LEFT.fullmatch(left.name)
        if match is None or _disk.is_running(int(match[2])):
            continue
        version = path / match[1]
        if match[3] and not version.exists():
            os.rename(left, version)  # killed between two steps
        else:
            shutil.rmtree(left, ignore_errors=True)
