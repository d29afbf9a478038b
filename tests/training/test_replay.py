"""After `fast_forward` the data are those of a training that was not interrupted."""

import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TFEpochIterator

from keras_delta._inputs import replay
from keras_delta.data import ImageSet

pytestmark = pytest.mark.usefixtures("tensorflow_seed")

COUNT, EPOCHS = 22, 5
X = np.arange(COUNT * 2, dtype="float32").reshape(COUNT, 2)
Y = np.arange(COUNT)


class Numbers(keras.utils.PyDataset):
    """Batches that depend on the epoch and on NumPy's random numbers."""

    epoch = 0

    def __len__(self):
        return 5

    def __getitem__(self, index):
        noise = np.random.rand(4, 2)
        return (noise + 100 * index + 1000 * self.epoch).astype("float32"), np.zeros(4)

    def on_epoch_end(self):
        self.epoch += 1


def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (COUNT, 10, 10, 3), np.uint8)
    return ImageSet.from_arrays(pixels, Y % 3)


def slices():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def noisy(x, y):
    return x + tf.random.normal([2]), y


DATA = {
    "arrays": lambda: {"x": X, "y": Y, "batch_size": 4, "shuffle": True},
    "arrays in parts": lambda: {
        "x": X,
        "y": Y,
        "batch_size": 4,
        "shuffle": True,
        "steps_per_epoch": 4,
    },
    "arrays in order": lambda: {"x": X, "y": Y, "batch_size": 4, "shuffle": False},
    "shuffle of a seed": lambda: {"x": slices().shuffle(COUNT, seed=3).batch(4)},
    "shuffle without": lambda: {"x": slices().shuffle(9).batch(4).prefetch(2)},
    "random map": lambda: {"x": slices().shuffle(COUNT).map(noisy).batch(4)},
    "unknown length": lambda: {
        "x": slices().shuffle(COUNT).filter(lambda x, y: y > 2).batch(4)
    },
    "without end": lambda: {
        "x": slices().shuffle(COUNT).repeat().batch(4).prefetch(2),
        "steps_per_epoch": 5,
    },
    "PyDataset": lambda: {"x": Numbers(), "shuffle": True},
    "images": lambda: {"x": images().batches(8, 4, training=True)},
    "images, mapped": lambda: {
        "x": images().batches(8, 4, training=True).map(lambda x, y: (x / 255, y))
    },
    "images without end": lambda: {
        "x": images().batches(8, 4, training=True).repeat(),
        "steps_per_epoch": 4,
    },
}


def epochs_of(make, skipped, steps_per_execution=1, strategy=None):
    """The epochs' batches as Keras's training loop takes them, after `skipped`."""
    keras.utils.set_random_seed(5)
    given = make()
    for count in (3, 30):  # what has looked at the data before the training
        replay.look(given["x"], given.get("y"), count)
    iterator = TFEpochIterator(
        **given,
        distribute_strategy=strategy or tf.distribute.get_strategy(),
        steps_per_execution=steps_per_execution,
    )
    iterator.reset()
    if skipped:
        replay.fast_forward(iterator, given["x"], skipped)
    found = []
    for _ in range(EPOCHS - skipped):
        found.append([])
        with iterator.catch_stop_iteration():
            for _, _, batches in iterator:
                for _ in range(steps_per_execution):
                    batch = keras.tree.flatten(next(batches))
                    if strategy is not None:
                        batch = map(strategy.experimental_local_results, batch)
                        batch = keras.tree.flatten(list(batch))
                    found[-1] += [np.asarray(v) for v in batch]
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert len(a) == len(b) > 0
        for v, w in zip(a, b, strict=True):
            np.testing.assert_array_equal(v, w)


@pytest.mark.filterwarnings("ignore:.*(ran out of data|shuffle=True)")
@pytest.mark.parametrize(
    "kind, steps",
    [(kind, 1) for kind in DATA]
    + [(kind, 2) for kind in ("arrays", "random map", "without end", "images")],
)
def test_the_next_epochs_are_the_same(kind, steps):
    expected = epochs_of(DATA[kind], 0, steps)
    assert_same(epochs_of(DATA[kind], 3, steps), expected[3:])
    if kind not in ("arrays", "arrays in order"):  # Keras: one order for each seed
        flat = [np.concatenate([v.ravel() for v in epoch]) for epoch in expected]
        assert not np.array_equal(flat[0], flat[3])


@pytest.mark.filterwarnings("ignore:.*shuffle=True")
@pytest.mark.parametrize("kind", ["arrays", "random map", "images"])
def test_several_replicas(kind, strategy):
    expected = epochs_of(DATA[kind], 0, strategy=strategy)
    assert_same(epochs_of(DATA[kind], 2, strategy=strategy), expected[2:])


@pytest.mark.parametrize("count", [1, 3, COUNT, 2 * COUNT])
def test_looking_moves_no_images_on(count):
    """However far ahead of what was taken they are read."""
    data = images().batches(8, 4, training=True)
    counter = data.epoch_counter
    counter.upcoming = 7
    ahead = data.repeat().map(lambda x, y: (x / 255, y)).prefetch(50)
    replay.look(ahead, max_samples=count)
    time.sleep(0.05)  # for a thread that still reads, if there were one
    assert counter.upcoming == 7


@pytest.mark.filterwarnings("ignore:.*shuffle=True")
def test_images_are_not_read(monkeypatch):
    """The number of the epoch is enough, where it decides everything."""
    read = []

    def fast_forward(make, epochs):
        given = make()
        iterator = TFEpochIterator(
            **given, distribute_strategy=tf.distribute.get_strategy()
        )
        replay.fast_forward(iterator, given["x"], epochs)

    source = "keras_delta.data.sources.MemorySource.read"
    from keras_delta.data.sources import MemorySource

    original = MemorySource.read
    monkeypatch.setattr(source, lambda s, i: read.append(i) or original(s, i))
    fast_forward(DATA["images"], 1000)
    assert read == []
    fast_forward(DATA["images, mapped"], 2)
    assert len(read) >= 2 * COUNT


def test_says_what_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(replay, "PATIENCE", 0.0)
    given = DATA["arrays"]()
    iterator = TFEpochIterator(
        **given, distribute_strategy=tf.distribute.get_strategy()
    )
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replay.fast_forward(iterator, X, 7)
    assert capsys.readouterr().err.count("the 7 finished epochs") == 1
    assert time.monotonic() - began < 30
