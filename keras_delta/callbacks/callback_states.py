"""The state of callbacks during a training: read from them, and restored.

A callback with `get_state()` and `set_state(state)` provides it. For Keras's own,
it is listed in a table of their attributes, plus `CSVLogger`'s file.
"""

import csv
import os
from collections import Counter
from pathlib import Path

import keras
import numpy as np

from keras_delta import _compat

PACKAGES = ("keras", "keras_delta")  # whose callbacks without state have none


def named(callbacks):
    """Dict name -> callback; named by class, so that others may be added."""
    count, names = Counter(), {}
    for callback in callbacks:
        name = type(callback).__name__
        names[f"{name} {count[name]}"] = callback
        count[name] += 1
    return names


def state_of(callback):
    """The state of a callback, a dict; empty if it provides none."""
    if _says(callback):
        return callback.get_state()
    if isinstance(callback, keras.callbacks.CSVLogger):
        return _log_of(callback)
    return {k: v for k, v in vars(callback).items() if k in _attributes(callback)}


def put_back(callback, state):
    """Restore a callback's state, as returned by `state_of`."""
    if _says(callback):
        callback.set_state(state)
    elif isinstance(callback, keras.callbacks.CSVLogger):
        _write_log(callback, state)
    else:
        for name in _attributes(callback) & state.keys():
            setattr(callback, name, state[name])


def forgetful(callbacks):
    """Names of the callbacks whose state cannot be saved."""
    plain = vars(keras.callbacks.Callback()).keys()
    return [
        type(c).__name__
        for c in callbacks
        if not _says(c)
        and type(c).__module__.partition(".")[0] not in PACKAGES
        and vars(c).keys() - plain
    ]


def _says(callback):
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _attributes(callback):
    names = set()
    for kind, attributes in _compat.CALLBACK_STATE.items():
        if isinstance(callback, getattr(keras.callbacks, kind, ())):
            names.update(attributes)
    return names


def _log_of(logger):
    try:
        content = Path(logger.filename).read_bytes()
    except OSError:
        return {}
    return {"keys": logger.keys, "content": np.frombuffer(content, np.uint8)}


def _write_log(logger, state):
    """Fill the file that `on_train_begin` has opened and perhaps emptied."""
    Path(logger.filename).write_bytes(state["content"].tobytes())
    logger.csv_file.seek(0, os.SEEK_END)
    if state["keys"] is not None:  # else Keras would write them again
        logger.keys = state["keys"]
        columns = ["epoch", *logger.keys]
        logger.writer = csv.DictWriter(logger.csv_file, columns, delimiter=logger.sep)
