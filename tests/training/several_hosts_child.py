"""One of the workers that test_several_hosts.py starts.

    TF_CONFIG=... python several_hosts_child.py FOLDER TASK [TASK]

TASK is a function of this file. What it returns goes to FOLDER/<TASK>-<index>.json.
The test calls the same functions with `strategy=None` for one process alone.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
from pathlib import Path

import conftest  # noqa: F401  sets the devices up, before the strategy looks at them
import keras
import model_reference as reference
import numpy as np
import tensorflow as tf
from networks import make_backbone

import keras_delta as kd
from keras_delta._training import hosts
from keras_delta.regularizers import L2SP, Delta, FeatureMap


def new_model(strategy, regularizer, batch_norm=False):
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        return reference.compiled(
            *reference.pair(make_backbone, batch_norm=batch_norm),
            regularizer,
            metrics=["accuracy"],
            run_eagerly=False,
        )


def weights(model):
    return [v.value.numpy().astype(float).tolist() for v in model.target.variables]


def image_batches():
    rng = np.random.default_rng(0)
    images = kd.data.ImageSet.from_arrays(
        rng.uniform(0, 255, (17, 10, 10, 3)).astype("uint8"), np.arange(17) % 3
    )
    batches = images.batches(reference.SIZE, 8, training=True)
    return batches.map(lambda x, y: (x / 128 - 1, y))


def equal(strategy, folder):
    """Trainings that must end as they do in one process, by name."""
    x, y = reference.learnable_data(19)
    val = reference.learnable_data(11, seed=5)
    keras.utils.set_random_seed(0)  # tf.data's own seeds count together with it
    shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(19, seed=3).batch(8)
    found = {}

    def train(name, regularizer, *data, batch_norm=False, **kwargs):
        model = new_model(strategy, regularizer, batch_norm)
        logs = model.fit(*data, verbose=0, epochs=2, **kwargs).history
        found[name] = {"weights": weights(model), "logs": logs}
        return model

    model = train(
        "delta auto, arrays",
        Delta(0.3, 0.2),
        *(x, y, 8),
        validation_data=val,
        class_weight={0: 1.0, 1: 3.0, 2: 0.2},
    )
    train(
        "l2_sp, tf.data", L2SP(0.3, 0.2), shuffled, validation_data=val, shuffle=False
    )
    uniform = Delta(0.3, 0.2, attention="uniform")
    train("delta uniform, ImageSet", uniform, image_batches(), shuffle=False)
    train("BatchNormalization", FeatureMap(0.3, 0.2), x, y, 8, batch_norm=True)
    logs = model.evaluate(*val, 4, return_dict=True, verbose=0)
    outputs = model.predict(val[0], 5, verbose=0)  # 5, 5 and 1: one worker has none
    found["evaluate, predict"] = {
        "weights": [outputs.tolist()],
        "logs": {k: [v] for k, v in logs.items()},
    }
    return found


def wrong(strategy, folder):
    """Messages of what is refused, by name; how many files each worker wrote."""
    index = strategy.extended._id_in_cluster
    x, y = reference.learnable_data(19)
    model = new_model(strategy, L2SP(0.3, 0.2))
    found = {}

    def refused(name, call, error=ValueError):
        try:
            call()
        except error as e:
            found[name] = str(e)
        else:
            found[name] = "nothing was refused"

    with strategy.scope():
        refused("fit in the scope", lambda: model.fit(x, y, 8, verbose=0))
        refused("save in the scope", lambda: model.save(folder / "x.keras"))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    data = strategy.experimental_distribute_dataset(data)
    refused("distributed data", lambda: model.evaluate(data, verbose=0))
    refused("train_on_batch", lambda: model.train_on_batch(x, y))
    model.compile("sgd", model.loss, steps_per_execution=2)
    refused("steps_per_execution", lambda: model.fit(x, y, 8, verbose=0))
    model = new_model(strategy, L2SP(0.3, 0.2))
    if index == 0:  # alone: nothing that this calls may wait for worker 1
        model.save(folder / "alone.keras")
        model.save_weights(folder / "alone.weights.h5")
        model.export(folder / "alone", verbose=False)
    own = folder / str(index)
    own.mkdir()
    model.save(own / "x.keras")
    model.save_weights(own / "x.weights.h5")
    model.export(own / "x", verbose=False)
    found["files"] = sorted(p.name for p in own.iterdir())
    if index == 1:
        model.target.layers[-1].bias.assign_add([1.0, 0.0, 0.0])
    refused("other weights", lambda: model.fit(x, y, 8, verbose=0))
    model = new_model(strategy, L2SP(0.3, 0.2))
    keras.utils.set_random_seed(index)
    refused("other order", lambda: model.fit(x, y, 8, verbose=0))
    model = new_model(strategy, L2SP(0.3, 0.2))
    keep = 19 if index == 0 else 8
    refused(
        "fewer batches",
        lambda: model.fit(x[:keep], y[:keep], 8, verbose=0, shuffle=False),
    )
    return found


class Backup(keras.callbacks.BackupAndRestore):
    """Keras's own, in which of several workers only the first writes."""

    def _save_model(self):
        if self.model.hosts.is_first:
            super()._save_model()

    def on_train_end(self, logs=None):
        if self.model.hosts.is_first:
            super().on_train_end(logs)


def resumed(strategy, folder, callbacks=()):
    """Four epochs with a backup after each."""
    model = new_model(strategy, Delta(0.3, 0.2, attention="uniform"))
    x, y = reference.learnable_data(19)
    backup = [Backup(folder / "backup")] if strategy else []
    logs = model.fit(
        *(x, y, 8),
        epochs=4,
        shuffle=False,
        verbose=0,
        callbacks=[*backup, *callbacks],
    )
    return {"weights": weights(model), "epochs": logs.epoch}


def killed(strategy, folder):
    """As `resumed`; the last worker kills itself in the third epoch."""

    class Die(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            last = not hosts.of(strategy).is_first
            if last and self.model.optimizer.iterations.numpy() == 8:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        resumed(strategy, folder, [Die()])
    except RuntimeError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    faulthandler.dump_traceback_later(100)  # tells where it hangs
    folder, *tasks = Path(sys.argv[1]), *sys.argv[2:]
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.extended._id_in_cluster
    for task in tasks:
        found = globals()[task](strategy, folder)
        (folder / f"{task}-{index}.json").write_text(json.dumps(found))
