"""A search that trains nothing: `sleepy_search.py FOLDER worker-1=N chief=M`.

What it says of chief and workers is what a search by `keras_delta.tuning` does. The
worker is killed in its Nth trial, and the chief when it has given M.
"""

import os
import signal
import sys
import time
from pathlib import Path

import bare  # noqa: F401
import keras_tuner as kt
from keras_tuner.src.distribute import utils as roles

from keras_delta.tuning import chief, status

folder = Path(sys.argv[1])
kills = dict(part.split("=") for part in sys.argv[2:])
role = os.environ.get("KERASTUNER_TUNER_ID", "last")
TRIALS = 6


def maybe_die(count):
    mark = folder / f"{role}.killed"
    if count == int(kills.get(role, -1)) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for(*names):
    while not all((folder / name).exists() for name in names):
        time.sleep(0.02)


class Oracle(kt.Oracle):
    def populate_space(self, trial_id):
        maybe_die(len(self.start_order))
        return {"status": "RUNNING", "values": {"alpha": float(len(self.start_order))}}

    def reload(self):
        super().reload()
        chief.keep_ongoing(self, status.workers())


class Tuner(kt.engine.base_tuner.BaseTuner):
    def __init__(self, **kwargs):
        chief.whole_files()
        super().__init__(**kwargs)
        if self._is_worker():
            chief.connect(self.oracle)

    def _get_tuner_fname(self):
        name = self.tuner_id if self._is_worker() else "tuner"
        return os.path.join(str(self.project_dir), f"{name}.json")

    def search(self):
        if roles.is_chief_oracle():
            self.save()
            chief.serve(self.oracle)
        else:
            super().search()
        status.report(state="done")
        if status.launched():
            raise SystemExit(0)

    def run_trial(self, trial):
        self.done = getattr(self, "done", 0) + 1
        with open(folder / f"{role}.trials", "a") as file:
            file.write(f"{trial.trial_id}\n")
        status.report(state="training", cell=int(trial.trial_id) + 1, cells=TRIALS)
        maybe_die(self.done)
        # Neither worker does everything before the other has begun, and has died.
        if self.done == 1:
            wait_for("worker-0.trials", "worker-1.trials")
        elif role == "worker-0":
            wait_for("worker-1.killed")
        status.report(done=self.done)
        return {"score": trial.hyperparameters.values["alpha"]}


tuner = Tuner(
    oracle=Oracle(objective=kt.Objective("score", "max"), max_trials=TRIALS),
    directory=folder,
    project_name="search",
)
tuner.search()
[best] = tuner.oracle.get_best_trials()
print(len(tuner.oracle.end_order), best.score)
