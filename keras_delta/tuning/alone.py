"""A search in one process, and its state in the folder of the search."""

import sys

from keras_delta import _compat, _disk
from keras_delta._runs import status


class Alone:
    """A process that both has the oracle and trains."""

    def join(self, oracle, timeout):
        """Prepare, once the tuner has been created."""
        oracle.verbose = 0  # we print our own messages

    def save(self, oracle):
        """Save the tuner's state."""
        oracle.save()

    def reload(self, tuner):
        """Load the saved state."""
        tuner.oracle.reload()
        keep_ongoing(tuner.oracle, status.workers())

    def search(self, tuner, train):
        """Do this process's part of a search."""
        train()
        tuner.write_table()

    def leave(self):
        """End a launcher process: only one process runs the rest of the script."""
        if status.launched():
            sys.exit(0)


def whole_files():
    """Make Keras Tuner replace its JSON files atomically.

    It writes oracle and trials in place, so a process killed while writing would leave
    an unreadable file.
    """
    _compat.replace_save_json(_disk.replace_file)


def keep_ongoing(oracle, workers):
    """Correct the state of unfinished trials; call it after a reload.

    Keras Tuner puts all of them in the queue, from which any worker takes them. But
    workers survive their chief and continue with theirs. Afterwards, each trial that
    has begun is in exactly one state: ended, ongoing, or in the queue.

    - The trials of `workers` are ongoing again.
    - Trials that had ended leave the queue. A chief killed between its two steps has
      saved them as both ended and ongoing.
    - Running trials unknown to the oracle are removed: the chief was killed before it
      gave them to a worker. Their numbers are reused.
    - Trials that were abandoned together with their worker are in the queue.
    """
    saved = _compat.saved_oracle(oracle)
    ended = set(oracle.end_order)
    passed = ended | set(saved["retry_queue"])
    for worker, trial_id in saved["ongoing_trials"].items():
        if worker in workers and trial_id not in passed:
            trial = oracle.trials[trial_id]
            trial.status = "RUNNING"
            oracle.ongoing_trials[worker] = trial
    ongoing = {trial.trial_id for trial in oracle.ongoing_trials.values()}
    begun = dict.fromkeys([*_compat.retry_queue(oracle), *oracle.start_order])
    _compat.retry_queue(oracle)[:] = [
        i for i in begun if i in oracle.trials and i not in ended | ongoing
    ]
    for trial_id, trial in list(oracle.trials.items()):
        known = trial_id in begun or trial_id in ended | ongoing
        if trial.status == "RUNNING" and not known:
            del oracle.trials[trial_id]
