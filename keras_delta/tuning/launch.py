"""Runs a script in the processes of a parallel search, and keeps them running."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from keras_delta.tuning import status

RESTARTS = 3  # without a training finished in between
POLL = 0.1  # seconds
SAVING = 30  # seconds for a worker to save what it has, once asked to stop
CLOSING = 10  # likewise for the chief
TERMINATING = 5  # from SIGTERM to SIGKILL
LINGERING = 60  # seconds from the end of the chief, or of all workers, to the rest's
SHOWN = 20  # lines of a log
NO_CELL = ("waiting for a cell", "done")  # states of a worker
AGAIN = "Run the same command again: the search goes on where it has stopped."

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
    """A chief or a worker, over all of its starts.

    Args:
        name: its id, `"chief"` or `"worker-0"` and so on.
        command: list of strings.
        env: dict, its whole environment.
        log: `Path` of the file that takes its output; it is appended to.

    Attributes:
        told: what it has told last, a dict.
        cell: the cell that it has begun, over all starts; "" for none.
        code: how it has ended, as of `subprocess.Popen`; None while it runs.
        given_up: whether it has failed too often.
    """

    def __init__(self, name, command, env, log):
        self.name, self.command, self.env, self.log = name, command, env, Path(log)
        self.told, self.code, self.cell = {}, None, ""
        self.given_up, self.failures = False, 0
        self._before = 0  # trainings of earlier starts
        self._at_failure = -1  # progress of the search then
        self._offset = self.log.stat().st_size if self.log.exists() else 0

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
        return self.code is None

    def look(self):
        """See whether it runs and what it tells; True if it has just ended."""
        ended = self.running and self.popen.poll() is not None
        if ended:
            self.code = self.popen.returncode
            self._signal_group(signal.SIGKILL)  # what it may have started
        told = status.read(self.env[status.PATH])
        if isinstance(told, dict):
            self.told = told
            if told.get("state") == "training":
                self.cell = _cell(told)
            elif told.get("state") in NO_CELL:
                self.cell = ""
        return ended

    def failed(self, progress):
        """Count a failure; whether to start it again.

        Args:
            progress: a number that grows with each finished training.
        """
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
        with contextlib.suppress(ValueError):
            name = signal.Signals(-self.code).name
            short = " (which may mean that memory ran out)" * (name == "SIGKILL")
            return f"was killed by {name}{short}"
        return f"was killed by signal {-self.code}"

    def log_end(self):
        """The last lines that it has written since the launcher runs."""
        with open(self.log, "rb") as file:
            file.seek(self._offset)
            lines = file.read().decode(errors="replace").splitlines()
        shown = "\n".join(f"  {line}" for line in lines[-SHOWN:])
        return f"The end of {self.log}:\n{shown}"


class Search:
    """One run of chief and workers.

    Args:
        chief: `Process`.
        workers: list of `Process`.
        folder: `Path` where their status files are.
        script: the script's name, for messages.
        display: `Lines` or `Table`.
    """

    def __init__(self, chief, workers, folder, script, display):
        self.chief, self.workers, self.folder = chief, workers, folder
        self.script, self.display = script, display
        self.processes = [chief, *workers]
        self.signals = []  # those that have come
        self.done = False
        self._since, self._notes = None, []

    def run(self):
        """Run until the search has ended; no process is left.

        Returns:
            Exit code: 0 if all cells are done, else 1, or 128 and the signal's number.
        """
        caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # One that is ignored, as by nohup, stays so.
        caught = [s for s in caught if signal.getsignal(s) != signal.SIG_IGN]
        before = {
            s: signal.signal(s, lambda n, _: self.signals.append(n)) for s in caught
        }
        try:
            with self.display:
                for process in self.processes:
                    process.start()
                code = None
                while code is None:
                    time.sleep(POLL)
                    code = self._turn()
            return code or (128 + self.signals[0] if self.signals else 0)
        finally:
            for process in self.processes:
                if hasattr(process, "popen"):
                    process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _turn(self):
        """Look once at everything; the exit code once there is one."""
        if self.signals:
            number = self.signals[0]
            self.say(
                f"Stopping: the workers have up to {SAVING} seconds to save what they "
                "have. Ctrl-C kills them at once."
            )
            self._stop()
            self.say(f"Stopped. {AGAIN}")
            return 128 + number
        ended = [process for process in self.processes if process.look()]
        self.display.show(self.workers)
        for process in self.processes:
            note = process.told.get("note")
            if note and note not in self._notes:
                self._notes.append(note)
                self.say(note)
            if "fatal" in process.told:
                self._stop()
                self.say(process.log_end())
                self.say(f"{process.name} cannot go on: {process.told['fatal']}")
                return 1
        for process in ended:
            # An exception's code, before the tuner has told anything.
            if process.code == 1 and not process.told and not self.done:
                self._stop()
                self.say(process.log_end())
                self.say(
                    f"{self.script} failed in {process.name} before the search, which "
                    "a new start would only repeat."
                )
                return 1
            if process.code and not self.done:
                self._died(process)
            elif process is self.chief and not self._searched():
                self._stop()
                self.say(
                    f"{self.script} has ended without a search. It has to call "
                    "`search` of a tuner of `keras_delta.tuning`, whatever process "
                    "it runs in."
                )
                return 1
            self.done = self.done or self.chief.code == 0
        if ended:
            quiet = [w.name for w in self.workers if not w.running]
            status.write(self.folder / status.ENDED, quiet)
        return self._outcome()

    def _searched(self):
        return bool(self.chief.told)

    def _died(self, process):
        progress = sum(worker.total for worker in self.workers)
        if process is not self.chief:
            progress = process.total
        told = f"{process.name} {process.how_it_ended()}"
        if process.failed(progress):
            self.say(
                f"{told}; it is started again, {process.failures} of {RESTARTS}. "
                f"See {process.log}."
            )
            process.start()
            return
        self.say(process.log_end())
        self.say(
            f"{told} for the {process.failures}th time without a training finished in "
            "between, and is given up."
        )

    def _outcome(self):
        if self.chief.given_up:
            self._stop()
            self.say(f"The search cannot go on without its chief. {AGAIN}")
            return 1
        busy = any(worker.running for worker in self.workers)
        left = [worker for worker in self.workers if worker.given_up]
        if busy and not self.done:
            return None
        if busy or self.chief.running:
            now = time.monotonic()
            self._since = self._since or now
            if (busy or not left) and now - self._since < LINGERING:
                return None
            self._stop()
        if not left:
            return 0
        for worker in left:
            self.say(f"{worker.name} left {worker.cell or 'no cell'}.")
        self.say(f"The search is not complete. {AGAIN}")
        return 1

    def _stop(self):
        """Ask all to end, the chief last: workers save their state with it."""
        asked = len(self.signals)
        for group, patience in (self.workers, SAVING), ([self.chief], CLOSING):
            steps = (
                (signal.SIGINT, patience),
                (signal.SIGTERM, TERMINATING),
                (signal.SIGKILL, TERMINATING),
            )
            for number, seconds in steps:
                for process in group:
                    process.signal(number)
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    for process in group:
                        process.look()
                    if not any(process.running for process in group):
                        break
                    if len(self.signals) > asked:
                        for process in self.processes:
                            process.kill()
                        return
                    self.display.show(self.workers)
                    time.sleep(POLL)

    def say(self, text):
        """A line for the user."""
        self.display.say(text)


class Lines:
    """A line for each training that a worker finishes; also for files."""

    def __init__(self):
        self._totals = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def say(self, text):
        """A line for the user."""
        print(text, file=sys.stderr, flush=True)

    def show(self, workers):
        """What the workers do now."""
        for worker in workers:
            if worker.total > self._totals.get(worker.name, 0):
                self._totals[worker.name] = worker.total
                count = f"{worker.total} training{'s' * (worker.total > 1)}"
                self.say(f"{worker.name}: {count} done; {progress(worker.told)}")


class Table:
    """A line for each worker, which changes; for terminals, with `rich`."""

    def __init__(self):
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False, markup=False)
        self._live = Live(console=self._console, auto_refresh=False)
        self._shown = None

    def __enter__(self):
        self._live.start()
        return self

    def __exit__(self, *error):
        self._live.stop()

    def say(self, text):
        """A line for the user."""
        self._console.print(text, soft_wrap=True)

    def show(self, workers):
        """What the workers do now."""
        from rich.text import Text

        lines = "\n".join(f"{w.name:10} {w.total:4} done  {_line(w)}" for w in workers)
        if lines != self._shown:
            self._shown = lines
            text = Text(lines, no_wrap=True, overflow="ellipsis")
            self._live.update(text, refresh=True)


def display():
    """`Table` on a terminal where `rich` is installed, else `Lines`."""
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            return Table()
    return Lines()


def _line(worker):
    if worker.given_up:
        return f"given up in {worker.cell or 'no cell'}"
    if not worker.running:
        return "ended"
    return progress(worker.told)


def progress(told):
    """What a worker does, from what it has told: one line."""
    state = told.get("state", "starting")
    parts = [state]
    if state == "training" and _cell(told):
        parts = [_cell(told)]
        for name in ("fold", "epoch"):
            if told.get(name) is not None:
                parts.append(f"{name} {_of(told[name], told.get(name + 's'))}")
    if told.get("score") is not None:
        parts.append(f"last cell {told['score']:.4g}")
    return ", ".join(parts)


def _cell(told):
    """`cell 3 of 25 (alpha=0.1)`, or what is known of that; "" for nothing."""
    values = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in (told.get("values") or {}).items()
    )
    number = told.get("cell")
    if number is None:
        return f"cell ({values})" if values else ""
    cell = f"cell {_of(number, told.get('cells'))}"
    return f"{cell} ({values})" if values else cell


def _of(number, total):
    return f"{number}" if total is None else f"{number} of {total}"
