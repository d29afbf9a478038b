"""Replaces a version and is killed on the way. Usage: folders_child.py FOLDER WHEN."""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_delta.serving import folders


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder, when):
    if when == "flushing":
        folders._flush = die
    if when == "exchanged":
        exchange = folders._exchange
        folders._exchange = lambda *paths: (exchange(*paths), die())
    if when == "between two renames":  # as where there is no exchange
        folders.ctypes.CDLL = lambda *_, **__: object()
        rename, steps = os.rename, []

        def counted(*paths):
            rename(*paths)
            steps.append(paths)
            if len(steps) == 1:
                die()

        os.rename = counted
    with folders.replacing(Path(folder)) as temporary:
        (temporary / "a").write_text("new")
        if when == "writing":
            die()
        (temporary / "b").write_text("new")


if __name__ == "__main__":
    main(*sys.argv[1:])
