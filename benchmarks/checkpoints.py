"""Size of checkpoints, and the time to write one.

    python benchmarks/checkpoints.py [--backbone resnet50]

"naive wrapper" is a `keras.Model` with two attributes, source and target: the obvious
first version. It is saved after the same training step with the same optimizer.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quiet  # noqa: F401  first: it silences TensorFlow's start-up

import keras
import numpy as np
import pandas as pd
from step_time import CLASSES, compiled
import keras_delta as kd


class Wrapper(keras.Model):
    """What one writes first."""

    def __init__(self, target, source):
        super().__init__()
        self.target, self.source = target, source
        self.source.trainable = False

    def call(self, x, training=None):
        return self.target(x, training=training)

    def get_config(self):
        parts = {"target": self.target, "source": self.source}
        serialize = keras.saving.serialize_keras_object
        return {name: serialize(part) for name, part in parts.items()}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--backbone", default="resnet50", choices=kd.backbones.ALL)
    parser.add_argument("--size", type=int, default=96)
    args = parser.parse_args()
    args.jit_compile = False
    return args


def main():
    args = arguments()
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (4, args.size, args.size, 3)).astype("float32")
    y = np.arange(4) % CLASSES
    source = kd.backbones.get(args.backbone)(
        weights=None, input_shape=(args.size, args.size, 3)
    )
    model = kd.DeltaModel(kd.attach_head(source, CLASSES), source=source)
    delta = kd.regularizers.Delta(attention="uniform")
    compiled(model, args, regularizer=delta)
    model.prepare(x, y, verbose=0)
    wrapper = compiled(Wrapper(kd.attach_head(source, CLASSES), source), args)
    for m in (model, wrapper):
        m.train_on_batch(x, y)

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)

        def row(name, write, path):
            seconds = []
            for _ in range(3 if write is not None else 0):
                began = time.perf_counter()
                write(path)
                seconds.append(time.perf_counter() - began)
            files = [path] if path.is_file() else path.rglob("*")
            size = sum(f.stat().st_size for f in files if f.is_file())
            rows[name] = {"MB": size / 1e6}
            if write is not None:
                rows[name]["seconds"] = np.median(seconds)

        def backup(path):
            callback = kd.callbacks.BackupAndRestore(path, delete_checkpoint=False)
            model.fit(x, y, epochs=2, verbose=0, callbacks=[callback])

        for name, m in (
            ("target alone", model.target),
            ("DeltaModel", model),
            ("naive wrapper", wrapper),
        ):
            for suffix in (".weights.h5", ".keras"):
                save = m.save if suffix == ".keras" else m.save_weights
                row(f"{name}, {suffix}", save, folder / f"m{suffix}")
        backup(folder / "backup")
        row("kd.callbacks.BackupAndRestore", None, folder / "backup")
    table = pd.DataFrame(rows).T
    table["times target"] = table["MB"] / table["MB"]["target alone, .weights.h5"]
    print(f"{args.backbone}, SGD with momentum; median of 3")
    print(table.round({"MB": 1, "seconds": 2, "times target": 2}).to_string(na_rep="-"))


if __name__ == "__main__":
    main()
