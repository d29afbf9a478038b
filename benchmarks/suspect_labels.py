"""How many wrong labels does `kd.analysis.suspect_labels` find? Precision and recall.

    python benchmarks/suspect_labels.py --data-dir FOLDER [--per-class 20 --seeds 3]
    python benchmarks/suspect_labels.py --data-dir FOLDER --methods probe l2 feature_map

FOLDER holds train/ and test/ with one folder per class, or class folders. A share of
the training images gets a wrong label, drawn uniformly. `probe` judges by a linear
model on the source's features, other methods by networks fine-tuned without the images,
with 5 folds each. A list drawn at random would have the share itself as its precision.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # noqa: F401  first: it silences TensorFlow's start-up

import numpy as np
import pandas as pd

import keras_delta as kd


def judge(source, images, share, method, seed, size):
    """A row: how many are listed, and how many of these are wrong."""
    given = images.with_wrong_labels(share, seed=seed)
    wrong = set(np.flatnonzero(given.labels != images.labels).tolist())
    began = time.process_time()
    found = kd.analysis.suspect_labels(
        source, given, method=method, image_size=size, seed=seed
    )
    seconds = time.process_time() - began
    listed = {suspect.index for suspect in found}
    right = sum(
        suspect.suggestion == images.class_names[images.labels[suspect.index]]
        for suspect in found
        if suspect.index in wrong
    )
    hits = len(listed & wrong)
    return {
        "listed": len(listed),
        "wrong": len(wrong),
        "precision %": 100 * hits / max(len(listed), 1),
        "recall %": 100 * hits / max(len(wrong), 1) if wrong else np.nan,
        "suggestion right %": 100 * right / max(hits, 1) if hits else np.nan,
        "CPU s": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-dir", type=Path, required=True)
    add("--per-class", type=int, default=20)
    add("--seeds", type=int, default=3)
    add("--size", type=int, default=112)
    add("--shares", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2])
    add("--methods", nargs="+", default=["probe"])
    args = parser.parse_args()
    sets = kd.data.from_directory(args.data_dir)
    train = sets["train"] if isinstance(sets, dict) else sets
    shape = (args.size, args.size, 3)
    source = kd.backbones.efficientnet_lite0(input_shape=shape)
    rows = []
    for method in args.methods:
        for share in args.shares:
            for seed in range(args.seeds):
                images = train.few_shot(args.per_class, seed=seed)
                row = judge(source, images, share, method, seed, args.size)
                rows.append({"method": method, "wrong %": 100 * share, **row})
                print(".", end="", flush=True)
    print(
        f"\n{args.data_dir.name}, efficientnet_lite0, {args.size} px, {args.per_class} "
        f"images a class, {len(images)} in all; mean over {args.seeds} seeds"
    )
    table = pd.DataFrame(rows).groupby(["method", "wrong %"], sort=False).mean()
    print(table.round(1).to_string())


if __name__ == "__main__":
    main()
