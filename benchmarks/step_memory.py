"""Memory of a training: plain `fit`, DeltaModel and keras.distillation.Distiller.

    python benchmarks/step_memory.py [--backbone resnet50 --size 96]

Each row is a separate process that makes four steps on one batch; its peak is the
largest resident set, minus the one after TensorFlow was imported.
"""

import argparse
import resource
import subprocess
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

KINDS = ("l2_sp", "delta", "delta-cached", "Distiller")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32])
    text = 'names of regularizers, as for step_time.py, or "Distiller"'
    parser.add_argument("--kinds", nargs="+", default=KINDS, help=text)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.jit_compile = False
    return args


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB, on Linux


def measure(args):
    """Train in this process; MiB above the start."""
    from quiet import tf  # isort: skip

    import numpy as np
    import step_time
    import keras_delta as kd

    warnings.simplefilter("ignore")  # the weights are random ones
    tf.ones(3).numpy()
    before = peak()
    args.batch = args.batches[0]
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (args.batch, args.size, args.size, 3)).astype("float32")
    y = (np.arange(args.batch) % step_time.CLASSES).astype("int32")
    source = kd.backbones.get(args.backbone)(
        weights=None, input_shape=(args.size, args.size, 3)
    )
    target = kd.attach_head(source, step_time.CLASSES)
    if args.kind == "plain":
        del source
        model = step_time.compiled(target, args)
    elif args.kind == "Distiller":
        taps = kd.DeltaModel(target, source=source).taps
        model = step_time.distiller(source, target, taps, args)
    else:
        model = step_time.delta_model(args.kind, target, source, args, x, y)
        del source
        given = {"x": x, "y": y, "batch_size": args.batch, "verbose": 0}
        # With a cache, if the kind has one.
        session = model.open_session(given, recipe="none")
        session.__enter__()
    for _ in range(4):
        model.train_on_batch(x, y)
    print(f"{peak() - before:.0f}")


def main():
    args = arguments()
    if args.kind:
        measure(args)
        return
    import pandas as pd

    kinds = ("plain", *args.kinds)
    table = pd.DataFrame(index=kinds)
    for batch in args.batches:
        for kind in kinds:
            command = [sys.executable, __file__, "--backbone", args.backbone]
            command += ["--size", str(args.size), "--batches", str(batch)]
            out = subprocess.run(
                [*command, "--kind", kind], check=True, stdout=subprocess.PIPE
            ).stdout
            table.loc[kind, f"batch {batch}, MiB"] = int(out.split()[-1])
    for batch in args.batches:
        column = table[f"batch {batch}, MiB"]
        table[f"batch {batch}, times plain"] = (column / column["plain"]).round(2)
    print(f"{args.backbone}, {args.size} px; peak above the start")
    print(table.astype({c: int for c in table if "MiB" in c}).to_string())


if __name__ == "__main__":
    main()
