"""Computations in processes of their own, to be killed: run as a script.

It imports TensorFlow once, reads a line of JSON for each computation, forks a process
that does it, and answers with a line of JSON: how that process ended (`status`) and
what it printed (`shown`).

A computation has a `kind` (see `KINDS`), a `checkpoint`, and either `out`, a file for
the results, or `seconds` after which to die; `signal` to die of, SIGKILL by default.
Seconds count from before the first call of the computation.
"""

import json
import os
import signal
import sys
import threading
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_delta import _checkpoint
from keras_delta.attention import ChannelAttention, calls

KINDS = {
    # The last batch is a part of one, calls are much smaller than a batch's pairs.
    "arrays": {"memory": "400KB"},
    # Several sources of state at once; writes take half of the time.
    "everything": {
        "memory": "400KB",
        "tolerance": 0.4,
        "train_head": True,
        "max_samples": 330,
    },
}
COUNT, SIZE = 430, 12


def network():
    """A small network, the same in each process."""
    rng = np.random.default_rng(0)
    inputs = x = keras.Input((SIZE, SIZE, 3))
    for i, width in enumerate((12, 16, 20)):
        x = keras.layers.Conv2D(width, 3, padding="same", name=f"conv{i}")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    for v in model.variables:
        fan_in = np.prod(v.shape[:-1])
        v.assign(
            rng.normal(size=v.shape) * (2 / fan_in) ** 0.5
            if len(v.shape) > 1
            else rng.uniform(0.5, 1.0, v.shape)
        )
    return model


def data(kind):
    """Images whose brightest colour is their label."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, COUNT)
    x = rng.normal(size=(COUNT, SIZE, SIZE, 3)).astype("float32")
    x[np.arange(COUNT), ..., y] += 1
    if kind == "arrays":
        return x, y
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(50).prefetch(2)


def main(options):
    """Compute, or die on the way."""
    warnings.simplefilter("ignore")
    kind = options["kind"]
    if kind == "everything":
        _checkpoint.SHARE = 0.9  # about half of the kills hit a write
    count = 0
    call = calls.Call.__call__

    def die():
        time.sleep(options["seconds"])
        os.kill(os.getpid(), getattr(signal, options.get("signal", "SIGKILL")))

    def counted(*args):
        nonlocal count
        if not count and "seconds" in options:
            threading.Thread(target=die, daemon=True).start()
        count += 1
        return call(*args)

    calls.Call.__call__ = counted
    began = time.monotonic()
    found = ChannelAttention.compute(
        network(),
        data(kind),
        ["conv0", "conv1", "conv2"],
        checkpoint=options["checkpoint"],
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        progress=False,
        **KINDS[kind],
    )
    results = {}
    for name in ("weights", "scores", "standard_errors", "counts"):
        for tap, array in (getattr(found, name) or {}).items():
            results[f"{name}/{tap}"] = array
    seconds = time.monotonic() - began
    if "out" in options:
        np.savez(options["out"], calls=count, seconds=seconds, **results)
    print("finished", flush=True)


def serve():
    """A forked process for each line; TensorFlow has started no thread yet."""
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(write, sys.stdout.fileno())
            try:
                main(json.loads(line))
            except KeyboardInterrupt:  # end as Python does
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        os.close(write)
        with open(read) as pipe:
            shown = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"status": status, "shown": shown}), flush=True)


if __name__ == "__main__":
    serve()
