"""Where the time of a training step goes, and how fast photographs are read.

    python benchmarks/profile_step.py [--data-dir FOLDER --backbone resnet50]

The parts are differences of medians: target forward, with backward, with optimizer,
with the source, with the penalty, each compiled separately and run in turn. "input"
is the extra time that `fit` takes per step when it reads JPEG files instead of one
batch in memory: 0 if reading keeps up. FOLDER has one folder per class, or train/ with
such folders; by default some photographs of scikit-image are written as JPEG files.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # first: it silences TensorFlow's start-up

import keras
import numpy as np
import pandas as pd
from PIL import Image
from step_time import compiled
import keras_delta as kd


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--backbone", default="resnet50", choices=kd.backbones.ALL)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    args.jit_compile = False
    return args


def photographs(folder, scratch):
    """An `ImageSet` of JPEG files."""
    if folder is None:
        images = kd.data.embedded_photographs()["train"]
        x, y = images.arrays(256, dtype="uint8")
        for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
            path = Path(scratch) / images.class_names[label] / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path, quality=90)
        folder = scratch
    found = kd.data.from_directory(folder)
    return found["train"] if isinstance(found, dict) else found


def cumulative(model, x, y):
    """name -> function of one step as far as that part."""

    def forward(tape):
        return model.outputs_and_maps(x, training=True)

    def target(update=False, source=False):
        with tf.GradientTape() as tape:
            y_pred, maps = forward(tape)
            loss = model.compute_loss(x, y, y_pred)
        gradients = tape.gradient(loss, model.trainable_variables)
        if update:
            model.optimizer.apply_gradients(
                zip(gradients, model.trainable_variables, strict=True)
            )
        maps = model.source_maps(x) if source else {}
        return loss, [tf.reduce_sum(m) for m in maps.values()], gradients[0]

    return {
        "target, forward": lambda: tf.reduce_sum(forward(None)[0]),
        "backward": lambda: target(),
        "optimizer": lambda: target(update=True),
        "source": lambda: target(update=True, source=True),
        "penalty, logs": lambda: model.train_step((x, y)),
    }


def seconds_of(function):
    began = time.perf_counter()
    tf.nest.map_structure(lambda v: v.numpy(), function())
    return time.perf_counter() - began


class Times(keras.callbacks.Callback):
    """Seconds of each step of `fit`, reading included."""

    def on_epoch_begin(self, epoch, logs=None):
        self.last, self.steps = time.perf_counter(), []

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.last = now


def fit_step(model, data, epochs=3):
    times = Times()
    model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=[times])
    return np.median(times.steps)


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        images = photographs(args.data_dir, scratch)
        read = images.batches(args.size, args.batch, training=True, drop_remainder=True)
        x, y = next(iter(read))
        source = kd.backbones.get(args.backbone)(
            weights=None, input_shape=(args.size, args.size, 3)
        )
        classes = len(images.class_names)
        model = kd.DeltaModel(kd.attach_head(source, classes), source=source)
        compiled(model, args, regularizer=kd.regularizers.Delta(attention="uniform"))
        model.prepare(x, y, verbose=0, recipe="none")
        model.make_train_function()

        parts = {
            name: tf.function(f, autograph=False)
            for name, f in cumulative(model, x, y).items()
        }
        times = {name: [] for name in parts}
        for function in parts.values():
            function()
        for _ in range(args.steps):
            for name, function in parts.items():
                times[name].append(seconds_of(function))
        medians = 1000 * pd.Series({n: np.median(t) for n, t in times.items()})
        table = medians.diff().fillna(medians.iloc[0]).to_frame("ms a step")

        there = tf.data.Dataset.from_tensors((x, y)).repeat(len(read))
        waiting = fit_step(model, read) - fit_step(model, there)
        table.loc["input"] = 1000 * max(waiting, 0)
        table["share %"] = 100 * table["ms a step"] / table["ms a step"].sum()
        print(
            f"{args.backbone}, {args.size} px, batch {args.batch}, {os.cpu_count()} "
            f"cores; delta; {len(images)} JPEG files"
        )
        print(table.round({"ms a step": 0, "share %": 1}).to_string())

        began, count = time.perf_counter(), 0
        for _ in range(3):
            count += sum(len(labels) for _, labels in read)
        rate = count / (time.perf_counter() - began)
        step = args.batch / (table["ms a step"].sum() / 1000)
        print(
            "Reading alone (decode, resize, mirror, crop): "
            f"{rate:.0f} images a second; training takes {step:.0f}"
        )


if __name__ == "__main__":
    main()
