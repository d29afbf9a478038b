"""A search in one process, and what it finds in the search's folder."""

import sys

from keras_delta import _compat, _disk
from keras_delta._runs import status


class Alone:
    """A process that has the oracle, and trains."""

    def join(self, oracle, timeout):
        """Get ready, once the tuner is made."""
        oracle.verbose = 0  # we tell in our own way

    def save(self, oracle):
        """Save what belongs to the tuner."""
        oracle.save()

    def reload(self, tuner):
        """Load what was saved."""
        tuner.oracle.reload()
        keep_ongoing(tuner.oracle, status.workers())

    def search(self, tuner, train):
        """Do this part of a search."""
        train()
        tuner.write_table()

    def leave(self):
        """End a process of the launcher: the rest of the script is for one alone."""
        if status.launched():
            sys.exit(0)


def whole_files():
    """Let Keras Tuner replace its JSON files as a whole.

    It writes oracle and trials in place, so that a process killed meanwhile leaves a
    file that no process can read again.
    """
    _compat.replace_save_json(_disk.replace_file)


def keep_ongoing(oracle, workers):
    """Put right what a reload makes of trials that had not ended; call it after one.

    Keras Tuner sends all of them to the queue, from where any worker takes them. But
    workers survive their chief, and go on with theirs. Afterwards, each trial that
    has begun has ended, is ongoing, or is in the queue, and that once.

    - The trials of `workers` are ongoing again.
    - Trials that had ended leave the queue. Killed between its two steps, the chief
      has saved them as ended and as ongoing.
    - Running trials that the oracle does not know are forgotten: the chief was killed
      before it gave them to a worker. Their numbers are given again.
    - Trials that were given up, with the worker that had them, are in the queue.
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
