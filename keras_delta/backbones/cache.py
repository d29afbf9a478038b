"""A folder of converted weights: written whole or not at all, never trusted."""

import contextlib
import os
import uuid
import zipfile
from pathlib import Path

import numpy as np


def cache_folder():
    """Folder of the cache.

    Returns:
        `Path`: the environment variable `KERAS_DELTA_CACHE` where it is set, else
        `keras_delta` in `KERAS_HOME`, else `~/.keras/keras_delta`.
    """
    if folder := os.environ.get("KERAS_DELTA_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("KERAS_HOME") or Path("~", ".keras")
    return Path(home, "keras_delta").expanduser()


def cached_arrays(key, make):
    """Arrays from the cache, or made now and put there.

    The cache only saves time: a file that is missing or damaged is made again,
    and where nothing can be written nothing is. Writing goes through a temporary
    file in the same folder, so that processes that start at once cannot see each
    other's half-written files.

    Args:
        key: file name without its ending; it must change whenever `make` would
            return something else.
        make: function without arguments that returns dict name -> array.

    Returns:
        dict name -> `numpy.ndarray`.
    """
    path = cache_folder() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # What NumPy raises depends on which bytes are damaged.
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    arrays = make()
    with contextlib.suppress(OSError):
        _write(path, arrays)
    return arrays


def _write(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: its files are for one user's eyes only, and a cache is shared.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
