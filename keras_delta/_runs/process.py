"""A process of the launcher, across all of its starts."""

import contextlib
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from keras_delta import _disk
from keras_delta._runs import status
from keras_delta._runs.display import cell_in_words

RESTARTS = 3  # without a training finished in between
SHOWN = 20  # lines of a log
NO_CELL = ("waiting for a cell", "done")  # states of a worker

# Ties the process to the launcher's life, and becomes the script. A process of its
# own, because Python must not run after a fork of one with TensorFlow's threads.
TIE = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # the launcher died before
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Process:
    """A chief or a worker, over all of its starts."""

    def __init__(self, name, command, env, log):
        self.name, self.command, self.env, self.log = name, command, env, log
        self.told, self.popen = {}, None
        self.code = None  # as of `subprocess.Popen`, once it has ended
        self.cell = ""  # that it has begun, over all starts
        self.given_up, self.failures = False, 0
        self._before = 0  # trainings of earlier starts, also of those by itself
        self._at_failure = -1  # progress of the search then
        self._offset = log.stat().st_size if log.exists() else 0

    def start(self):
        """Start it, with nothing told yet."""
        Path(self.env[status.PATH]).unlink(missing_ok=True)
        self._before, self.told, self.code = self.total, {}, None
        tied = [sys.executable, "-I", "-S", "-c", TIE, str(os.getpid())]
        with open(self.log, "ab") as log:
            line = f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {self.name} starts ---\n"
            log.write(line.encode())
            log.flush()
            self.popen = subprocess.Popen(
                [*tied, *self.command],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def total(self):
        """Trainings that it has finished, over all starts."""
        return self._before + (self.told.get("done") or 0)

    @property
    def running(self):
        """Whether it has been started and has not ended."""
        return self.popen is not None and self.code is None

    def look(self):
        """See whether it runs and what it tells; True if it has just ended."""
        ended = self.running and self.popen.poll() is not None
        if ended:
            self.code = self.popen.returncode
            self._signal_group(signal.SIGKILL)  # what it may have started
        told = _disk.read_json(self.env[status.PATH])
        if told is not None:
            done = self.told.get("done") or 0
            if done > (told.get("done") or 0):  # it has become a new process
                self._before += done
            self.told = told
            if told.get("state") == "training":
                self.cell = cell_in_words(told)
            elif told.get("state") in NO_CELL:
                self.cell = ""
        return ended

    def failed(self, progress):
        """Count a failure; whether to start it again."""
        if progress > self._at_failure:
            self.failures = 0
        self.failures, self._at_failure = self.failures + 1, progress
        self.given_up = self.failures > RESTARTS
        return not self.given_up

    def signal(self, number):
        """Send a signal to it and to what it has started."""
        if self.running:
            self._signal_group(number)

    def _signal_group(self, number):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, number)

    def kill(self):
        """End it now."""
        self.signal(signal.SIGKILL)
        if self.running:
            self.code = self.popen.wait()

    def how_it_ended(self):
        """What became of it, as the end of a sentence."""
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        if self.code == -signal.SIGKILL:
            return "was killed by SIGKILL (which may mean that memory ran out)"
        return f"was killed by {signal.Signals(-self.code).name}"

    def log_end(self):
        """The last lines that it has written since the launcher runs."""
        with open(self.log, "rb") as file:
            file.seek(self._offset)
            lines = file.read().decode(errors="replace").splitlines()
        shown = "\n".join(f"  {line}" for line in lines[-SHOWN:])
        return f"The end of {self.log}:\n{shown}"
