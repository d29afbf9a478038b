"""Cost and result of a cross-validated search of alpha and beta.

    python benchmarks/search.py speed --data-dir FOLDER
    python benchmarks/search.py quality --data-dir FOLDER

FOLDER holds train/ and test/ with one folder per class, or class folders.

`speed` runs a few cells on all folds, with `CrossValidatedGridSearch` in one process
and in two workers, and some of the trainings in a straightforward loop: each builds and
traces a model, decodes the images, computes its attention, and runs the source in each
step. Half of the loop's trainings run before the searches, half after. Times of the
article's 25 cells are extrapolated from the cost of one more cell.

`quality` runs a whole grid, then a Bayesian search of a few cells on the same folds,
which shares nothing with the grid, and prints how far the default strengths, which need
no search, are from the best. Processor seconds are less affected by other programs than
wall-clock seconds.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # first: it silences TensorFlow's start-up

import keras
import keras_tuner
import numpy as np
import pandas as pd
import keras_delta as kd


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("part", choices=("speed", "quality", "search"))
    add("--data-dir", type=Path, required=True)
    add("--backbone", default="efficientnet_lite0", choices=kd.backbones.ALL)
    add("--per-class", type=int, default=10)
    add("--image-size", type=int, default=112)
    add("--epochs", type=int, default=8)
    add("--batch-size", type=int, default=16)
    add("--folds", type=int, default=5)
    add("--alphas", type=float, nargs="+", default=None)
    add("--betas", type=float, nargs="+", default=None)
    add("--bayesian-cells", type=int, default=4)
    add("--seed", type=int, default=0)
    add("--straightforward", type=int, default=4, help="trainings in the loop")
    add("--output", type=Path, help="folder for results and picture")
    return parser.parse_args()


def space(args, alphas, betas):
    size = args.image_size
    return kd.tuning.DeltaHyperModel(
        source=lambda: kd.backbones.get(args.backbone)(input_shape=(size, size, 3)),
        target=lambda source: kd.attach_head(source, args.classes),
        alpha=alphas,
        beta=betas,
        jit_compile=False,
    )


def search(tuner, train_set, args):
    """Seconds that a search took, of the clock and of the processor."""
    began = time.perf_counter(), time.process_time()
    tuner.search(train_set, epochs=args.epochs, batch_size=args.batch_size)
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    return dict(zip(("seconds", "of the processor"), seconds, strict=True))


def straightforward(hypermodel, hp, train, held_out, args):
    """One training that shares nothing with others: dict of seconds."""
    seconds, began = {}, time.perf_counter()

    def mark(name):
        nonlocal began
        now = time.perf_counter()
        seconds[name], began = now - began, now

    keras.utils.clear_session()
    keras.utils.set_random_seed(args.seed)
    options = {"image_size": args.image_size, "seed": args.seed, "cache": True}
    train = train.batches(batch_size=args.batch_size, training=True, views=4, **options)
    held_out = held_out.batches(batch_size=32, **options)
    mark("decode images")
    model = hypermodel.build(hp)
    mark("build the model")
    model.prepare(train, verbose=0)
    mark("attention, scales")
    starts = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: starts.append(time.perf_counter())
    )
    model.fit(train, epochs=args.epochs, shuffle=False, verbose=0, callbacks=[clock])
    epoch = (time.perf_counter() - starts[1]) / (args.epochs - 1)
    mark("trace the step")
    seconds["train"] = epoch * args.epochs
    seconds["trace the step"] -= seconds["train"]  # the first epoch takes longer
    model.evaluate(held_out, verbose=0)
    mark("evaluate")
    return seconds


def grid(args, folder):
    hypermodel = space(
        args, args.alphas or [1.0, 5.0, 20.0, 50.0], args.betas or [0.01]
    )
    return kd.tuning.CrossValidatedGridSearch(
        hypermodel, folds=args.folds, seed=args.seed, directory=folder
    )


def speed(train_set, args):
    folds = train_set.folds(args.folds, args.seed)
    rows = []

    def straight(count):
        hypermodel = grid(args, tempfile.mkdtemp()).hypermodel
        for _ in range(count):
            hp = keras_tuner.HyperParameters()
            hypermodel.declare_hyperparameters(hp)
            fold = folds[len(rows) % len(folds)]
            rows.append(straightforward(hypermodel, hp, *fold, args))
            print(f"straightforward: {sum(rows[-1].values()):.1f} s", flush=True)

    half = args.straightforward // 2
    straight(half)
    ours = {}
    for name, workers in (("one process", 1), ("two workers", 2)):
        folder = tempfile.mkdtemp()
        command = [sys.executable]
        if workers > 1:
            command += ["-m", "keras_delta.tuning", "--workers", str(workers)]
            command += ["--logs", f"{folder}/logs"]
        given = [a for a in sys.argv[1:] if a != "speed"]
        began = time.perf_counter()
        command += [__file__, "search", *given, "--output", folder]
        subprocess.run(command, check=True)
        whole = time.perf_counter() - began
        cells = [cell.seconds for cell in grid(args, folder).cells()]
        # The first cells compute what the further ones find.
        further = float(np.median(cells[workers:])) / workers
        ours[name] = whole - further * len(cells), further
    straight(args.straightforward - half)

    frame = pd.DataFrame(rows)
    naive = frame.sum(axis=1).mean()
    print(f"\nSeconds of a straightforward training (mean of {len(rows)})")
    print(frame.mean().round(1).to_string())
    table = []
    for name, (once, further) in ours.items():
        for count in (len(cells), 25):
            straight_time = naive * count * args.folds
            table.append(
                {
                    "search": f"{name}, {count} cells",
                    "straightforward s": straight_time,
                    "once s": once,
                    "a cell s": further,
                    "ours s": once + further * count,
                    "times less": straight_time / (once + further * count),
                }
            )
    print("\nStart of the processes included; 25 cells are extrapolated\n")
    print(pd.DataFrame(table).round(1).to_string(index=False))


def quality(train_set, args):
    alphas = args.alphas or [0.5, 1.6, 5.0, 16.0, 50.0]
    betas = args.betas or [0.001, 0.003, 0.01, 0.03, 0.1]
    folder = args.output or Path(tempfile.mkdtemp())
    common = {"folds": args.folds, "seed": args.seed}
    grid = kd.tuning.CrossValidatedGridSearch(
        space(args, alphas, betas), directory=folder / "grid", **common
    )
    grid_time = search(grid, train_set, args)
    print(grid.summary())
    grid.plot_surface(folder / "surface.png")
    count = len(alphas) * len(betas)
    bayesian = kd.tuning.CrossValidatedBayesianOptimization(
        space(args, (min(alphas), max(alphas)), (min(betas), max(betas))),
        max_trials=args.bayesian_cells,
        num_initial_points=2,
        directory=folder / "bayesian",
        **common,
    )
    bayesian_time = search(bayesian, train_set, args)
    best = grid.results_frame().iloc[0]
    other = bayesian.results_frame().iloc[0]
    frame = grid.results_frame()
    default = frame[(frame["alpha"] == 5.0) & (frame["beta"] == 0.01)]
    rows = [
        {"what": f"grid, {count} cells", **_row(best), **grid_time},
        {
            "what": f"Bayesian, {args.bayesian_cells} cells",
            **_row(other),
            **bayesian_time,
        },
    ]
    if len(default):
        rows.append({"what": "default, no search", **_row(default.iloc[0])})
    print()
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    if args.output is None:
        shutil.rmtree(folder)


def _row(row):
    names = ("alpha", "beta", "val_accuracy", "standard_error")
    return {name: row[name] for name in names}


def main():
    args = arguments()
    sets = kd.data.from_directory(args.data_dir)
    pool = sets["train"] if isinstance(sets, dict) else sets
    train_set = pool.few_shot(args.per_class, seed=args.seed)
    args.classes = len(train_set.class_names)
    print(
        f"{args.backbone}, {args.image_size} px, {len(train_set)} images of "
        f"{args.classes} classes, {args.folds} folds, {args.epochs} epochs of batches "
        f"of {args.batch_size} (TensorFlow {tf.__version__}, Keras "
        f"{keras.__version__}, Keras Tuner {keras_tuner.__version__})",
        flush=True,
    )
    if args.part == "search":
        search(grid(args, args.output), train_set, args)
    else:
        (speed if args.part == "speed" else quality)(train_set, args)


if __name__ == "__main__":
    main()
