"""Trainings that are killed at a moment of one's choice, and what they came to.

A training counts the moments at which it could die: batches, begins and ends of
epochs, and stages of the backup's writing. It dies at the first one that is not before
the number `after` and, where a `stage` is given, is of that name.

Run as a script, it does trainings in processes of their own: it imports TensorFlow
once, reads a line of JSON for each training, forks a process that does it, and answers
with a line of JSON: how that process ended (`status`) and what was to be known of the
training (`found`, if it came to its end).
"""

import hashlib
import io
import json
import os
import signal
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_delta as kd
from keras_delta import _checkpoint

SIZE, EPOCHS, COUNT = 8, 4, 12
STAGES = ("opened", "half written", "written", "synced", "replaced", "deleting")


class Death(keras.callbacks.Callback):
    """Counts the moments, and dies at one of them."""

    def __init__(self, after=10**9, stage=None, kill=None):
        super().__init__()
        self.count, self.has_come = 0, False
        self.after, self.stage = 0 if stage and after == 10**9 else after, stage
        self.kill = kill or (lambda: os.kill(os.getpid(), signal.SIGKILL))

    def pass_by(self, name):
        """One moment."""
        self.count += 1
        if self.count >= self.after and self.stage in (None, name):
            self.has_come = True
            self.kill()

    def on_train_batch_end(self, batch, logs=None):
        self.pass_by("batch")

    def on_epoch_begin(self, epoch, logs=None):
        self.pass_by("epoch begins")

    def on_epoch_end(self, epoch, logs=None):
        self.pass_by("epoch ends")


def die_while_writing(death, patch=setattr):
    """Make a moment of each stage of the backup's writing; the dead delete nothing."""
    savez, fsync, replace = _checkpoint.np.savez, os.fsync, os.replace
    unlink = Path.unlink

    def in_two_parts(file, **arrays):
        death.pass_by("opened")
        whole = io.BytesIO()
        savez(whole, **arrays)
        whole = whole.getvalue()
        file.write(whole[: len(whole) // 2])
        file.flush()
        death.pass_by("half written")
        file.write(whole[len(whole) // 2 :])
        death.pass_by("written")

    def synced(handle):
        fsync(handle)
        death.pass_by("synced")

    def replaced(*paths):
        replace(*paths)
        death.pass_by("replaced")

    def deleting(path, **kwargs):
        if path.name == "state.npz":
            death.pass_by("deleting")
        if not death.has_come:
            unlink(path, **kwargs)

    patch(_checkpoint.np, "savez", in_two_parts)
    patch(os, "fsync", synced)
    patch(os, "replace", replaced)
    patch(Path, "unlink", deleting)


def network():
    """(target, source), with BatchNormalization and dropout in the target."""
    rng = np.random.default_rng(0)
    inputs = x = keras.Input((SIZE, SIZE, 3))
    for i, width in enumerate((4, 6)):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", name=f"conv{i}")(x)
        x = keras.layers.BatchNormalization(name=f"bn{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
    source = keras.Model(inputs, x)
    for v in source.trainable_variables:
        scale = (2 / np.prod(v.shape[:-1])) ** 0.5 if len(v.shape) > 1 else 0.1
        v.assign(scale * rng.normal(size=v.shape) + (len(v.shape) == 1))
    return kd.attach_head(source, 3, dropout=0.3), source


def data(kind):
    """Training data; the brightest colour is the label."""
    rng = np.random.default_rng(1)
    y = np.arange(COUNT) % 3
    x = rng.integers(0, 180, (COUNT, 10, 10, 3))
    x[np.arange(COUNT), ..., y] += 20
    images = kd.data.ImageSet.from_arrays(list(x.astype("uint8")), y)
    arrays = images.arrays(SIZE)
    if kind == "images":
        return (images.batches(SIZE, 6, training=True),)
    if kind == "arrays":
        return arrays
    dataset = tf.data.Dataset.from_tensor_slices(arrays).shuffle(COUNT)
    dataset = dataset.map(lambda x, y: (x + tf.random.normal([SIZE, SIZE, 3]), y))
    return (dataset.batch(6).prefetch(2),)


def others(kind, folder):
    """The callbacks besides the backup."""
    stop = keras.callbacks.EarlyStopping(
        "loss", patience=3, min_delta=1.0, restore_best_weights=True
    )
    callbacks = [
        stop,
        kd.callbacks.StartingPointDistance(every=2),
        kd.callbacks.PenaltyLogger(folder / "penalties", every=3),
        keras.callbacks.CSVLogger(folder / "log.csv"),
    ]
    if kind != "arrays":
        plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=2.0)
        callbacks.append(plateau)
    if kind == "dataset":
        callbacks.append(kd.callbacks.StrengthScheduler(lambda epoch: 1 / (epoch + 1)))
        callbacks.append(kd.callbacks.Rifle(2, epochs=8))
    return callbacks


def train(kind, folder, death, patch=setattr, **options):
    """One training; returns what there is to know of it."""
    keras.utils.set_random_seed(3)
    target, source = network()
    schedules = keras.optimizers.schedules
    rate, alpha = 0.02, schedules.PolynomialDecay(1.0, 15, 0.1)
    if kind == "arrays":  # Keras cannot lower the rate of a schedule
        rate = schedules.ExponentialDecay(0.02, 3, 0.8)
    if kind == "dataset":
        alpha = 1.0
    attention = "auto" if kind == "images" else "uniform"
    model = kd.DeltaModel(target, source=source, taps=["conv0", "conv1"])
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        regularizer=kd.regularizers.Delta(alpha, attention=attention),
        jit_compile=False,
        **options,
    )
    die_while_writing(death, patch)
    backup = kd.callbacks.BackupAndRestore(folder / "backup")
    callbacks = others(kind, folder)
    train = data(kind)
    history = model.fit(
        *train,
        batch_size=None if len(train) == 1 else 6,
        epochs=EPOCHS,
        recipe="none",
        callbacks=[death, *callbacks, backup],
        verbose=0,
    )

    def sha(variables):
        found = [np.ascontiguousarray(v.value.numpy()) for v in variables]
        return hashlib.sha256(b"".join(v.tobytes() for v in found)).hexdigest()

    (stop, moved), attention = callbacks[:2], model.regularizer.computed_attention
    return {
        "target": sha(target.variables),  # seeds of dropout included
        "optimizer": sha(model.optimizer.variables),
        "regularizer": sha(model.regularizer.variables),
        "attention": repr(attention and attention.get_config()),
        "history": repr((history.history, history.epoch)),
        "waited": repr((stop.wait, stop.best, stop.best_epoch)),
        "moved": repr(moved.history),
        "log": (folder / "log.csv").read_text(),
        "penalties": (folder / "penalties" / "penalties.csv").read_text(),
        "left": sorted(p.name for p in folder.iterdir()),
    }


def main():
    """Serve."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            tf.config.experimental.enable_op_determinism()
            options = json.loads(line)
            kind, folder = options.pop("kind"), Path(options.pop("folder"))
            found = train(kind, folder, Death(**options))
            os.write(write, json.dumps(found).encode())
            os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            found = pipe.read()
        _, status = os.waitpid(child, 0)
        status = os.waitstatus_to_exitcode(status)
        answer = {"status": status, "found": json.loads(found) if found else None}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
