"""`Ablation` on a network that is a table: fast, and with scores that are known.

Switching off channel j for sample i raises the loss by `table[i, j]`, exactly.
"""

import numpy as np
import tensorflow as tf

from keras_delta._checkpoint import Checkpoint
from keras_delta.attention import ablation, calls


class Tap:
    """Columns `first` to `first + channels` of the table."""

    def __init__(self, first, channels):
        self.first, self.channels, self.reaches = first, channels, True

    def outputs(self, base, rows, channels):
        rows, channels = rows.numpy(), channels.numpy()
        table = base["table"].numpy()[:, self.first :]
        return [tf.constant(np.where(channels < 0, 0, table[rows, channels]))]


class Network:
    def __init__(self, **channels):
        self.taps, first = {}, 0
        for tap, count in channels.items():
            self.taps[tap] = Tap(first, count)
            first += count
        self.intact_calls = 0

    def feed(self, x):
        return [tf.constant(x)]

    def run_intact(self, feeds):
        self.intact_calls += 1
        bases = [
            {"table": feeds[0], "changes": tf.ones((len(feeds[0]), t.channels), bool)}
            for t in self.taps.values()
        ]
        return bases, [tf.zeros(len(feeds[0]), "float64")]

    def needs(self, feeds):
        return 0, 1, dict.fromkeys(self.taps, 1)


class Loss:
    """The output itself."""

    def targets(self, y):
        return [y]

    def check(self, targets, outputs):
        pass

    def __call__(self, targets, outputs):
        return np.asarray(outputs[0])


class Eager:
    """In place of a traced function."""

    def __init__(self, function, *arguments):
        self._function, self._arguments = function, arguments

    @property
    def structured_outputs(self):
        return self._function(*self._arguments)

    def __call__(self, *arguments):
        return self._function(*arguments)


def table(count=100, channels=9, seed=0):
    """Differences of different means and spreads."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.1, 2, channels)
    values = rng.normal(size=(count, channels)) * spread + rng.normal(size=channels)
    return values.astype("float32")


def run(monkeypatch, values, path=None, tolerance=None, memory=100, made_for=None):
    """An `Ablation` over a table, with taps "a" of four channels and "b".

    Returns:
        The `Progress` at its end.
    """
    for module in (ablation, calls):
        monkeypatch.setattr(module, "trace", Eager)
    file = Checkpoint(path, made_for or {})
    network = Network(a=4, b=values.shape[1] - 4)
    work = ablation.Ablation(
        network, Loss(), memory, tolerance, checkpoint=file, state=file.load()
    )
    return work.run((values, np.zeros(len(values))), progress=False)[0]


def same(one, two):
    """Whether two results agree in every bit."""
    alike = one.done == two.done and np.array_equal(one.loss, two.loss)
    return alike and all(
        np.array_equal(a, b)
        for tap, tally in one.tallies.items()
        for a, b in zip(tally, two.tallies[tap], strict=True)
    )
