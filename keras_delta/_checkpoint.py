"""Interruptible work: a file that records the progress."""

import json
import time

import numpy as np

from keras_delta import _arguments
from keras_delta._disk import remove_leftovers, replace_file
from keras_delta._errors import warn

FORMAT = "keras_delta.attention.checkpoint/1"
SHARE = 0.05  # of the time may go into writing


class Checkpoint:
    """Arrays in a file that is replaced as a whole or not at all.

    Args:
        path: of the file; None for no file.
        made_for: dict that identifies the work (weights, taps, loss, ...). A file
            made for other work is refused.

    Attributes:
        written: whether the file contains progress of this work.
    """

    def __init__(self, path, made_for):
        self.path = _arguments.file("checkpoint", path, optional=True)
        self._made_for = {key: str(value) for key, value in made_for.items()}
        self._next, self._warned = 0.0, False
        self.written = False

    def load(self):
        """The arrays of the file, a dict; None if the file does not exist.

        Raises:
            ValueError: if the file is damaged or was made for other work.
        """
        if self.path is None:
            return None
        remove_leftovers(self.path)
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            made_for = dict(json.loads(str(arrays.pop("made_for"))))
        except Exception as e:  # NumPy and zipfile raise a dozen kinds
            raise ValueError(
                f"'{self.path}' cannot be read as a checkpoint: it is damaged or "
                "another kind of file. Pass another path."
            ) from e
        expected = {"format": FORMAT, **self._made_for}
        if differing := [k for k in expected if made_for.get(k) != expected[k]]:
            what = "; ".join(
                f"{key}: {made_for.get(key)} in the file, {expected[key]} now"
                for key in differing
            )
            raise ValueError(
                f"The checkpoint '{self.path}' was made for something else ({what}). "
                "Pass another path, or delete the file if it is no longer needed."
            )
        self.written = True
        return arrays

    def save(self, arrays, now=False):
        """Write, unless the last write was a moment ago.

        A full disk causes a warning and does not stop the work.

        Args:
            arrays: function that returns a dict of arrays.
            now: write in any case.
        """
        if self.path is None or not (now or time.monotonic() >= self._next):
            return False
        began = time.monotonic()
        made_for = json.dumps({"format": FORMAT, **self._made_for})
        try:
            with replace_file(self.path) as temporary, open(temporary, "wb") as file:
                np.savez(file, made_for=np.array(made_for), **arrays())
        except OSError as e:
            if not self._warned:
                warn(
                    f"The checkpoint '{self.path}' could not be written ({e}). The "
                    "computation continues; an interruption would lose the work "
                    "since the last checkpoint."
                )
            self._warned = True
            return False
        finally:
            ended = time.monotonic()
            self._next = ended + (ended - began) / SHARE
        self.written = True
        return True
