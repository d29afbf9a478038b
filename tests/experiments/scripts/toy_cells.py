"""Trains toys in a process of its own: `toy_cells.py FOLDER`.

DELTA comes first, here; prints the records.
"""

import json
import operator
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[1]))
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import toys
from experiments.train import Trainer

toys.put_in(setattr, operator.setitem)
trainer = Trainer(Path(sys.argv[1]))
cells = [toys.DELTA, toys.L2_SP, toys.DELTA]
print(json.dumps([toys.lasting(trainer.run(cell)) for cell in cells]))
