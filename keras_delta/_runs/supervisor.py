"""Restarts processes that die, and ends all of them together."""

import signal
import time

from keras_delta import _disk
from keras_delta._runs import status
from keras_delta._runs.process import RESTARTS

POLL = 0.1  # seconds
SAVING = 30  # seconds for a worker to save what it has, once asked to stop
CLOSING = 10  # likewise for the chief
TERMINATING = 5  # from SIGTERM to SIGKILL
LINGERING = 60  # seconds from the end of the chief, or of all workers, to the rest's
AGAIN = "Run the same command again to resume the search."


class Supervisor:
    """One run of workers, and of a chief where there is one."""

    def __init__(self, chief, workers, folder, script, display):
        self.chief, self.workers, self.folder = chief, workers, folder
        self.script, self.display, self.say = script, display, display.say
        self.processes = [chief, *workers] if chief else workers
        # One of these ends by itself once all work is done.
        self.leaders = [chief] if chief else workers
        self.signals = []  # those that have come
        self.done = False
        self._since, self._notes = None, set()

    def run(self):
        """Run until the work has ended; no process is left."""
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
                while (code := self._turn()) is None:
                    time.sleep(POLL)
            return code or (128 + self.signals[0] if self.signals else 0)
        finally:
            for process in self.processes:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _turn(self):
        """Look once at everything; the exit code once there is one."""
        if self.signals:
            return self._interrupted()
        ended = [process for process in self.processes if process.look()]
        self.display.show(self.workers)
        for process in self.processes:
            note = process.told.get("note")
            if note and note not in self._notes:
                self._notes.add(note)
                self.say(note)
            if mistake := self._mistake(process):
                self._wait([process], CLOSING)  # it writes why to its log
                self._stop()
                self.say(process.log_end())
                self.say(mistake)
                return 1
        for process in ended:
            if process.code and not self.done:
                self._died(process)
            self.done = self.done or any(p.code == 0 for p in self.leaders)
        if ended:
            quiet = [w.name for w in self.workers if not w.running]
            _disk.write_json(self.folder / status.ENDED, quiet)
        return self._outcome()

    def _interrupted(self):
        number = self.signals[0]
        self.say(
            f"Stopping: the workers have up to {SAVING} seconds to save what they "
            "have. Ctrl-C kills them at once."
        )
        self._stop()
        self.say(f"Stopped. {AGAIN}")
        return 128 + number

    def _mistake(self, process):
        """Why a new start of a process would be no use; None where it would."""
        if "fatal" in process.told:
            return f"{process.name} cannot go on: {process.told['fatal']}"
        if process.running or process.told or self.done:
            return None
        if process.code == 1:  # an exception's, before anything was told
            return (
                f"{self.script} failed in {process.name} before the search, which a "
                "new start would only repeat."
            )
        if process.code == 0 and process in self.leaders:
            return (
                f"{self.script} has ended without a search. It has to call `search` of "
                "a tuner of `keras_delta.tuning`, whatever process it runs in."
            )
        return None

    def _died(self, process):
        progress = sum(worker.total for worker in self.workers)
        if process is not self.chief:
            progress = process.total
        told = f"{process.name} {process.how_it_ended()}"
        if process.failed(progress):
            self.say(
                f"{told}; restarting it, {process.failures} of {RESTARTS}. "
                f"See {process.log}."
            )
            process.start()
            return
        self.say(process.log_end())
        self.say(
            f"{told} for the {process.failures}th time without a training finished in "
            "between, and is abandoned."
        )

    def _outcome(self):
        """The exit code once everything has come to an end."""
        if self.chief and self.chief.given_up:
            self._stop()
            self.say(f"The search cannot continue without its chief. {AGAIN}")
            return 1
        busy = any(worker.running for worker in self.workers)
        lost = [worker for worker in self.workers if worker.given_up]
        if busy and not self.done:
            return None
        if any(process.running for process in self.processes):
            now = time.monotonic()
            self._since = self._since or now
            if (busy or not lost) and now - self._since < LINGERING:
                return None
            self._stop()
        # Without a chief, another worker has done what one has left.
        if not lost or (self.done and not self.chief):
            return 0
        for worker in lost:
            self.say(f"{worker.name} left {worker.cell or 'no cell'}.")
        self.say(f"The search is incomplete. {AGAIN}")
        return 1

    def _stop(self):
        """Ask all to end, the chief last: workers save their state with it."""
        self._end(self.workers, SAVING)
        if self.chief:
            self._end([self.chief], CLOSING)

    def _end(self, group, patience):
        steps = (
            (signal.SIGINT, patience),
            (signal.SIGTERM, TERMINATING),
            (signal.SIGKILL, TERMINATING),
        )
        for number, seconds in steps:
            for process in group:
                process.signal(number)
            self._wait(group, seconds)

    def _wait(self, group, seconds):
        """Until all of a group have ended; Ctrl-C kills everything."""
        asked = len(self.signals)
        until = time.monotonic() + seconds
        while any([p.look() or p.running for p in group]):
            if len(self.signals) > asked:
                for process in self.processes:
                    process.kill()
            if time.monotonic() > until:
                break
            self.display.show(self.workers)
            time.sleep(POLL)
