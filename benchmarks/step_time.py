"""Time of a training step: plain `fit`, DeltaModel and keras.distillation.Distiller.

    python benchmarks/step_time.py [--backbone resnet50 --size 96 --batch 16]

All three train the same network on the same images with the same optimizer, in
one process, step by step in turn, so that other load on the machine affects all of
them alike. The Distiller is Keras's closest equivalent: it compares feature maps of
a teacher and a student, here with the same number of classes because it requires
that.
"""

import argparse
import contextlib
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # first: it silences TensorFlow's start-up

import keras
import numpy as np
import pandas as pd
import keras_delta as kd

CLASSES, SOURCE_CLASSES = 10, 1000


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--backbone", default="resnet50", choices=kd.backbones.ALL)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--regularizers",
        nargs="+",
        default=["l2", "l2_sp", "l2_sp_att", "delta", "delta-recipe", "delta-cached"],
        help='names; "-cached" reads the maps of the source from a cache, "-watched" '
        'records more in each step, as for PenaltyLogger; "-recipe" fixes the '
        "statistics and clips the gradients, as `fit` does by default",
    )
    parser.add_argument(
        "--freeze-until", metavar="LAYER", help="freeze the first layers of every model"
    )
    parser.add_argument("--jit-compile", action="store_true")
    return parser.parse_args()


def compiled(model, args, **kwargs):
    model.compile(
        optimizer=keras.optimizers.SGD(0.001, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=args.jit_compile,
        **kwargs,
    )
    return model


def delta_model(name, target, source, args, x, y):
    """A DeltaModel with one regularizer, ready for `train_on_batch`."""
    method, _, way = name.partition("-")
    # How the weights of attention were found does not matter for the time of a step.
    attended = {"attention": "uniform"} if method in ("delta", "l2_sp_att") else {}
    regularizer = kd.regularizers.ALL[method](**attended)
    if regularizer.needs_source_head:
        source = kd.attach_head(source, SOURCE_CLASSES, activation="softmax")
    elif "source_outputs" in regularizer.needs:
        source = kd.attach_head(source, CLASSES)
    source_maps = "cache" if way == "cached" else "compute"
    model = kd.DeltaModel(target, source=source, source_maps=source_maps)
    compiled(model, args, regularizer=regularizer)
    # A head, fitted or not, does not matter either.
    fixed = kd.Recipe(batch_norm=0.0, fit_head=False)
    model.prepare(x, y, verbose=0, recipe=fixed if way == "recipe" else "none")
    if way == "watched":
        model.watch(1)
    return model


def distiller(source, target, taps, args):
    """Keras's Distiller with a feature distillation at the same taps."""
    from keras.distillation import Distiller, FeatureDistillation

    teacher = kd.attach_head(source, CLASSES, name="teacher")
    losses = [
        FeatureDistillation(loss="mse", teacher_layer_name=t, student_layer_name=t)
        for t in taps
    ]
    model = Distiller(
        teacher=teacher,
        student=target,
        distillation_losses=losses,
        distillation_loss_weights=[1.0] * len(losses),
    )
    return compiled(model, args)


def median_error(values, rng):
    """Bootstrapped standard error of a median."""
    drawn = rng.choice(values, (1000, len(values)))
    return np.median(drawn, axis=1).std()


def main():
    args = arguments()
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (args.batch, args.size, args.size, 3)).astype("float32")
    y = (np.arange(args.batch) % CLASSES).astype("int32")
    source = kd.backbones.get(args.backbone)(
        weights=None, input_shape=(args.size, args.size, 3)
    )

    def target():
        model = kd.attach_head(source, CLASSES)
        if args.freeze_until:
            kd.freeze_until(model, args.freeze_until)
        return model

    models, caches = {"plain fit": compiled(target(), args)}, contextlib.ExitStack()
    for name in args.regularizers:
        model = delta_model(name, target(), source, args, x, y)
        if name.endswith("-cached"):  # as `fit` does it
            given = {"x": x, "y": y, "batch_size": args.batch, "verbose": 0}
            caches.enter_context(model.open_session(given, recipe="none"))
        models[f"DeltaModel, {name}"] = model
    models["keras Distiller"] = distiller(source, target(), model.taps, args)

    times = {name: [] for name in models}
    for model in models.values():  # tracing, and filling the cache
        for _ in range(3):
            model.train_on_batch(x, y)
    for _ in range(args.steps):
        for name, model in models.items():
            began = time.perf_counter()
            model.train_on_batch(x, y)
            times[name].append(time.perf_counter() - began)

    table = pd.DataFrame(
        {"ms a step": {n: 1000 * np.median(t) for n, t in times.items()}}
    )
    # Of each turn, because the machine is faster in one minute than in another.
    ratios = {n: np.array(t) / times["plain fit"] for n, t in times.items()}
    table["times plain"] = {n: np.median(r) for n, r in ratios.items()}
    table["±"] = {n: median_error(r, rng) for n, r in ratios.items()}
    print(
        f"{args.backbone}, {args.size} px, batch {args.batch}, "
        f"{os.cpu_count()} cores, jit_compile={args.jit_compile}; "
        f"{f'frozen until {args.freeze_until}; ' if args.freeze_until else ''}"
        f"medians of {args.steps} steps in turn"
    )
    print(table.round({"ms a step": 0, "times plain": 2, "±": 3}).to_string())
    for name in args.regularizers:
        if name.startswith("delta"):
            row = f"DeltaModel, {name}"
            ratio = np.median(np.array(times["keras Distiller"]) / np.array(times[row]))
            print(f"{row} is {ratio:.2f} times as fast as the Distiller")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"Peak memory of the whole process: {peak:.1f} GiB; TensorFlow {tf.__version__}"
    )


if __name__ == "__main__":
    main()
