"""A folder of converted weights, written atomically and never trusted."""

import contextlib
import os
import threading
import zipfile
from pathlib import Path

import numpy as np

from keras_delta import _disk

_writing = threading.Lock()


def cache_folder():
    """`KERAS_DELTA_CACHE` if set, else `keras_delta` in `KERAS_HOME` or `~/.keras`."""
    if folder := os.environ.get("KERAS_DELTA_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("KERAS_HOME") or Path("~", ".keras")
    return Path(home, "keras_delta").expanduser()


def cached_arrays(key, make):
    """Arrays from the cache, or newly computed and stored in it.

    The cache only saves time: a missing or damaged file is recreated, and a folder that
    is not writable is ignored.

    Args:
        key: file name without its suffix; it must change whenever `make` would
            return something else.
        make: function without arguments that returns a dict name -> array.

    Returns:
        Dict name -> `numpy.ndarray`.
    """
    path = cache_folder() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # What NumPy raises depends on which bytes are damaged.
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    arrays = make()
    with contextlib.suppress(OSError), _writing, _disk.replace_file(path) as temporary:
        np.savez(temporary, **arrays)
    return arrays
