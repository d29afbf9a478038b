"""What a process of a parallel search tells the launcher, and what it is told.

The launcher names a file to each process that it starts, in the environment
variable `KERAS_DELTA_STATUS`. Elsewhere there is none, and nothing is told.
"""

import contextlib
import json
import os
from pathlib import Path

from keras_delta import _disk

PATH = "KERAS_DELTA_STATUS"
WORKERS = "KERAS_DELTA_WORKERS"
ENDED = "ended.json"  # beside the status files

_told = {}


def launched():
    """Whether the launcher has started this process."""
    return WORKERS in os.environ


def workers():
    """Ids of the launcher's workers, such as `["worker-0", "worker-1"]`."""
    return [name for name in os.environ.get(WORKERS, "").split(",") if name]


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
        write(os.environ[PATH], _told)


def told():
    """What this process has told so far, a dict."""
    return dict(_told)


def ended():
    """Ids of workers that will not ask the chief again: finished, or given up."""
    if PATH not in os.environ:
        return []
    return read(Path(os.environ[PATH]).with_name(ENDED)) or []


def write(path, value):
    """Replace a JSON file as a whole; NumPy's numbers become plain ones."""
    text = json.dumps(
        value, default=lambda v: v.item() if hasattr(v, "item") else f"{v}"
    )
    with _disk.replace_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def read(path):
    """What `write` wrote there; None where there is no such file."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return None
