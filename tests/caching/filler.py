"""Fills a cache in processes that are killed: run as a script, with the folder.

The parent imports TensorFlow once and forks; each child opens the cache, asks for the
maps of sample after sample and is killed at a random moment. Each time, the parent
tries to open the cache as well, while the child has it.
"""

import json
import os
import random
import signal
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from keras_delta.caching import SourceMapCache

SPEC = {"a": (20, 20, 8), "b": (5, 7, 3)}
BATCH = 8


def sample(i):
    """The image of sample i: its number."""
    return np.full((2, 2, 1), i, "float32")


def oracle(i):
    """The maps of sample i, in NumPy."""
    grids = {
        tap: np.arange(np.prod(shape), dtype="float32").reshape(shape)
        for tap, shape in SPEC.items()
    }
    return {tap: i + grid / 1024 for tap, grid in grids.items()}


def compute(x):
    """The same in TensorFlow."""
    number = x[:, 0, 0, 0][:, None, None, None]
    return {
        tap: number + tf.reshape(tf.range(np.prod(s), dtype="float32"), s)[None] / 1024
        for tap, s in SPEC.items()
    }


def fill(folder, started):
    """Ask for maps, from the last ones that are there, until killed."""
    cache = SourceMapCache(folder, dtype="float32", memory=1)
    cache.open("source", SPEC)
    start = max(0, len(cache) - 2 * BATCH)
    while True:
        cache.maps(np.stack([sample(start + i) for i in range(BATCH)]), compute)
        start += BATCH
        if cache.misses:
            os.write(started, b"x")


def refused(folder):
    """What a second process is told."""
    try:
        SourceMapCache(folder).open("source", SPEC)
    except RuntimeError as e:
        return str(e)


def main(folder, kills):
    """Fork and kill; a line a child: its id, the signal, bytes left, the refusal."""
    rng = random.Random(0)
    for _ in range(kills):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            fill(folder, write)
        os.close(write)
        assert os.read(read, 1) == b"x", "the child failed"
        told = refused(folder)
        time.sleep(rng.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(read)
        size = os.path.getsize(os.path.join(folder, "source", "maps.sqlite"))
        print(json.dumps([child, os.WTERMSIG(status), size, told]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
