"""A source whose maps are simple enough for NumPy, and a cache opened for it."""

import sqlite3

import numpy as np
import tensorflow as tf

from keras_delta.caching import SourceMapCache

SPEC = {"low": (4, 4, 3), "high": (2, 2, 5)}
ROW = 4 * (4 * 4 * 3 + 2 * 2 * 5)  # bytes, float32


def images(count, seed=0, size=4):
    return np.random.default_rng(seed).normal(size=(count, size, size, 3)).astype("f4")


def oracle(x):
    """Maps in NumPy: the image times 2, and sums over 2 by 2 pixels."""
    b, h, w, _ = x.shape
    pooled = x.reshape(b, h // 2, 2, w // 2, 2, 3).sum((2, 4, 5))[..., None]
    return {"low": 2 * x, "high": pooled * np.arange(1, 6, dtype="f4")}


class Source:
    """The same in TensorFlow, counting the samples that it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, x):
        tf.numpy_function(self._count, [tf.shape(x)[0]], [])
        pooled = tf.nn.avg_pool2d(tf.reduce_sum(x, -1, keepdims=True), 2, 2, "VALID")
        return {"high": pooled * 4 * tf.range(1.0, 6.0), "low": 2 * x}

    def _count(self, n):
        self.seen.append(int(n))


def opened(directory=None, spec=SPEC, samples=None, fingerprint="source", **kwargs):
    kwargs.setdefault("dtype", "float32")
    return SourceMapCache(directory, **kwargs).open(fingerprint, spec, samples)


def ask(cache, x, source=None):
    """Eager maps as NumPy arrays, and how many samples were computed."""
    source = source or Source()
    before = sum(source.seen)
    maps = cache.maps(x, source)
    assert all(m.dtype == tf.float32 for m in maps.values())
    assert list(maps) == list(cache._store.spec)
    return {t: m.numpy() for t, m in maps.items()}, sum(source.seen) - before


def check(maps, x, **tolerance):
    """Against the oracle, to float32 rounding."""
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-5}
    for tap, expected in oracle(np.asarray(x)).items():
        assert maps[tap].shape == expected.shape
        np.testing.assert_allclose(maps[tap], expected, err_msg=tap, **tolerance)


def database(folder):
    return folder / "source" / "maps.sqlite"


def changed(folder, *statements):
    """Change the database as somebody else would."""
    connection = sqlite3.connect(database(folder))
    for statement in statements:
        connection.execute(*statement)
    connection.commit()
    connection.close()
