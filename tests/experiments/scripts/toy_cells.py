"""Trains toys in a process of its own: `toy_cells.py FOLDER METHOD,METHOD...`.

Prints the records.
"""

import json
import operator
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import toys
from experiments.train import Trainer

toys.put_in(setattr, operator.setitem)
trainer = Trainer(Path(sys.argv[1]))
cells = {"delta": toys.DELTA, "l2_sp": toys.L2_SP}
chosen = [cells[name] for name in sys.argv[2].split(",")]
print(json.dumps([toys.lasting(trainer.run(cell)) for cell in chosen]))
