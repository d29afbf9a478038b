"""Time of a training step: plain `fit`, DeltaModel and keras.distillation.Distiller.

    python benchmarks/step_time.py [--backbone resnet50 --size 96 --batch 16]

All three train the same network on the same images with the same optimizer, in
one process, step by step in turn, so that whatever else the machine does falls on
all of them alike. The Distiller is the nearest thing that Keras has: it compares
feature maps of a teacher and a student, here of the same number of classes,
because it refuses others.
"""

import argparse
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

CLASSES = 10


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--backbone", default="resnet50", choices=kd.backbones.ALL)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--regularizers", nargs="+", default=["l2_sp", "delta"])
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


def main():
    args = arguments()
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (args.batch, args.size, args.size, 3)).astype("float32")
    y = rng.integers(0, CLASSES, args.batch).astype("int32")
    source = kd.backbones.get(args.backbone)(
        weights=None, input_shape=(args.size, args.size, 3)
    )

    def target():
        return kd.attach_head(source, CLASSES)

    models = {"plain fit": compiled(target(), args)}
    for name in args.regularizers:
        model = kd.DeltaModel(target(), source=source)
        if name in ("delta", "l2_sp_att"):
            # How the weights were found does not matter for the time of a step.
            name_or_instance = kd.regularizers.ALL[name](attention="uniform")
        else:
            name_or_instance = name
        compiled(model, args, regularizer=name_or_instance)
        model.prepare(x, y, verbose=0)
        models[f"DeltaModel, {name}"] = model
    models["keras Distiller"] = distiller(source, target(), model.taps, args)

    times = {name: [] for name in models}
    for model in models.values():  # tracing
        model.train_on_batch(x, y)
        model.train_on_batch(x, y)
    for _ in range(args.steps):
        for name, model in models.items():
            began = time.perf_counter()
            model.train_on_batch(x, y)
            times[name].append(time.perf_counter() - began)

    table = pd.DataFrame(
        {"ms a step": {n: 1000 * np.median(t) for n, t in times.items()}}
    )
    table["times plain"] = table["ms a step"] / table["ms a step"]["plain fit"]
    print(
        f"{args.backbone}, {args.size} px, batch {args.batch}, "
        f"{os.cpu_count()} cores, jit_compile={args.jit_compile}; "
        f"median of {args.steps} steps in turn"
    )
    print(table.round({"ms a step": 0, "times plain": 2}).to_string())
    ratio = table["ms a step"]["keras Distiller"] / table["ms a step"].iloc[-2]
    print(f"{table.index[-2]} is {ratio:.2f} times as fast as the Distiller")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"Peak memory of the whole process: {peak:.1f} GiB; TensorFlow {tf.__version__}"
    )


if __name__ == "__main__":
    main()
