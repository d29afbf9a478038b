"""Progress of long work: a bar on a terminal, a line now and then in a file."""

import sys
import time

import keras

SECONDS = 15  # between two lines


class Progress:
    """Keras's bar on a terminal; elsewhere a line every `SECONDS`.

    Args:
        total: number of units to do.
        unit: name of the unit, in the singular.
        quiet: whether to show nothing.

    Attributes:
        done: number of units done.
    """

    def __init__(self, total, unit="image", quiet=False):
        self.total, self.done, self._unit, self._quiet = total, 0, unit, quiet
        self._began = self._said = time.monotonic()
        self._bar = None
        if sys.stdout.isatty() and not quiet:
            self._bar = keras.utils.Progbar(total, unit_name=unit)

    def add(self, count):
        """Add `count` to the units done."""
        self.done += count
        if self._bar:
            self._bar.update(min(self.done, self.total))
        elif time.monotonic() - self._said > SECONDS:
            self._said = time.monotonic()
            self._say(f"{self.done} of {self.total} {self._unit}s")

    def end(self):
        """Print how long it took."""
        seconds = time.monotonic() - self._began
        self._say(f"{self.done} {self._unit}s in {seconds:.1f} s")

    def _say(self, text):
        if not self._quiet:
            rate = self.done / max(time.monotonic() - self._began, 1e-9)
            print(f"{text}, {rate:.1f} {self._unit}s a second", flush=True)


def epoch_verbosity(verbose):
    """Keras's `verbose`: a line per epoch if `"auto"` would draw bars into a file."""
    return 2 if verbose == "auto" and not sys.stdout.isatty() else verbose
