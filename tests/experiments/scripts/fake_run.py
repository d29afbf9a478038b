"""A plan whose trainings only take time: `fake_run.py FOLDER SECONDS`.

The line in `FOLDER/after.txt` says that what follows `run` ran.
"""

import sys
from pathlib import Path

import light  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import run as running
from experiments.store import ResultStore
from fakes import FakeTrainer, plan

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
running.POLL = 0.05
store = ResultStore(folder / "store")
running.run(plan(), store, verbose=0, trainer=FakeTrainer(seconds, store.folder))
with open(folder / "after.txt", "a") as file:
    done = sum(cell in store for cell in plan().staged(store))
    print(f"{done} of {plan().size()}", file=file)
