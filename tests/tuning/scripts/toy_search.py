"""A search of a few seconds, as a user writes it: `toy_search.py FOLDER`.

Each line of `FOLDER/after.txt` says that the lines after `search` ran.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from networks import make_backbone

import keras_delta as kd

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
y = np.arange(36) % 3
x = (rng.normal(size=(36, 16, 16, 3)) + y[:, None, None, None] * 0.5).astype("float32")
space = kd.tuning.DeltaHyperModel(
    make_backbone,
    lambda source: kd.attach_head(source, 3),
    alpha=[0.1, 1.0],
    beta=[0.001, 0.01, 0.1],
    learning_rate=0.01,
)
tuner = kd.tuning.CrossValidatedGridSearch(space, folds=3, directory=folder)
tuner.search(x, y, epochs=int(sys.argv[2]), batch_size=8)
with open(folder / "after.txt", "a") as file:
    print(tuner.get_best_hyperparameters()[0].values, file=file)
