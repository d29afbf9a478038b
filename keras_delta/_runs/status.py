"""The exchange of status between a process and the launcher.

The launcher names a file to each process that it starts, in the environment
variable `KERAS_DELTA_STATUS`. Elsewhere there is none, and nothing is told.
"""

import contextlib
import os
from pathlib import Path

from keras_delta import _disk

PATH = "KERAS_DELTA_STATUS"
WORKERS = "KERAS_DELTA_WORKERS"
NAME = "KERASTUNER_TUNER_ID"
ENDED = "ended.json"  # beside the status files

_told = {}


def launched():
    """Whether the launcher has started this process."""
    return WORKERS in os.environ


def workers():
    """Ids of the launcher's workers, such as `["worker-0", "worker-1"]`."""
    return [name for name in os.environ.get(WORKERS, "").split(",") if name]


def place():
    """Where this process stands among the workers, from 0 to below 1."""
    names, own = workers(), os.environ.get(NAME)
    return names.index(own) / len(names) if own in names else 0.0


def report(**fields):
    """Tell the launcher; what was told before and is not repeated stays.

    Args:
        **fields: any of
            `state`, "starting", "waiting for the chief", "waiting for a cell",
            "training" or "done";
            `cell`, `cells`, which cell this is, from 1, and of how many, or None;
            `values`, dict of the cell's hyperparameters;
            `fold`, `folds`, `epoch`, `epochs`;
            `done`, how many trainings this process has finished;
            `score`, mean of the last cell that it has finished;
            `note`, a sentence for the user, shown once;
            `fatal`, a mistake that a new start would only repeat, in one sentence.
    """
    if PATH not in os.environ:
        return
    _told.update(fields)
    # A full disk is no reason to stop a training.
    with contextlib.suppress(OSError):
        _disk.write_json(os.environ[PATH], _told)


@contextlib.contextmanager
def tell_mistakes(*kinds):
    """Tell exceptions of some kinds as fatal: a new start would only repeat them."""
    try:
        yield
    except kinds as error:
        report(fatal=f"{type(error).__name__}: {error}")
        raise


def told():
    """What this process has told so far, a dict."""
    return dict(_told)


def ended():
    """Ids of workers that will not ask the chief again: finished, or given up."""
    if PATH not in os.environ:
        return []
    return _disk.read_json(Path(os.environ[PATH]).with_name(ENDED)) or []
