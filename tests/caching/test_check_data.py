"""Which training data comes back, and which is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from toy import images

from keras_delta.caching import SourceMapCache, probe

pytestmark = pytest.mark.usefixtures("tensorflow_seed")


def dataset(count, augment=None, batch=16, shuffle=True, drop=False):
    x = images(count)
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(count) % 2))
    if shuffle:
        data = data.shuffle(count)
    if augment:
        data = data.map(lambda x, y: (augment(x), y))
    return data.batch(batch, drop_remainder=drop)


def flip(x):
    return tf.image.random_flip_left_right(x)


def noise(x):
    # TensorFlow's random numbers begin anew with the data set if there is a seed.
    more = tf.numpy_function(lambda: np.random.normal(), [], "float64")
    return x + tf.cast(tf.ensure_shape(more, ()), "float32")


def crop(x):
    return tf.image.random_crop(tf.pad(x, [[3, 3], [3, 3], [0, 0]]), (4, 4, 3))


def brighter(levels):
    def augment(x):
        return x + tf.cast(tf.random.uniform((), 0, levels, "int32"), "float32")

    return augment


REFUSED = (
    r"of {} samples, .* recurred .* {} view.*Random augmentation \(crops, colour\) "
    r"without fixed views.*batches\(views=4\)"
)


@pytest.mark.parametrize("count", [1, 3, 40, 500])
def test_data_that_comes_back(count):
    for data in (dataset(count), dataset(count, drop=count > 16)):
        SourceMapCache(views=1).check_data(data)
    SourceMapCache(views=2).check_data(dataset(count, flip))
    SourceMapCache(views=4).check_data(dataset(count, brighter(4)))


@pytest.mark.parametrize("count", [80, 500])
@pytest.mark.parametrize("augment", [noise, crop])
def test_random_augmentation_is_refused(count, augment):
    with pytest.raises(ValueError, match=REFUSED.format(count, 2)):
        SourceMapCache().check_data(dataset(count, augment))


def test_too_many_views_are_refused_though_some_come_back():
    with pytest.raises(ValueError, match=REFUSED.format(1000, 2)):
        SourceMapCache().check_data(dataset(1000, brighter(40)))
    SourceMapCache(views=40).check_data(dataset(1000, brighter(40)))


def test_few_samples_are_given_the_benefit_of_the_doubt():
    SourceMapCache().check_data(dataset(3, noise))


def test_more_than_a_pass_reads(monkeypatch):
    """Shuffled data, of which the first pass sees 32 samples, the second 128."""
    monkeypatch.setattr(probe, "MOST", 32)
    for count in (60, 200, 1000):
        SourceMapCache(views=1).check_data(dataset(count))
    SourceMapCache().check_data(dataset(60, flip))
    for count in (60, 1000):
        with pytest.raises(ValueError, match=REFUSED.format(32, 2)):
            SourceMapCache().check_data(dataset(count, noise))


def test_reads_no_more_than_it_says():
    read = []

    class Data(keras.utils.PyDataset):
        num_batches = 1000

        def __getitem__(self, index):
            read.append(index)
            return images(64, seed=len(read)), np.zeros(64)

    with pytest.raises(ValueError, match=REFUSED.format(2048, 2)):
        SourceMapCache().check_data(Data(max_queue_size=1))
    # 2,048 and 4 * 2,048 samples, and what waits in queues.
    assert len(read) <= 5 * 32 + 20


def test_arrays_are_not_looked_at(monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("read")

    monkeypatch.setattr(probe.samples, "batches", read)
    x, y = images(5), np.zeros(5)
    cache = SourceMapCache(views=1)
    cache.check_data(x, y, 2)
    cache.check_data({"a": x}, y)
    cache.check_data(tf.constant(x), y)
    cache.check_data((x, y))


def test_data_without_end_is_refused():
    with pytest.raises(ValueError, match=r"endless data \(`repeat\(\)`\)"):
        SourceMapCache().check_data(dataset(5).repeat())

    class Endless(keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index):
            return images(2), np.zeros(2)

    with pytest.raises(ValueError, match="endless"):
        SourceMapCache().check_data(Endless())


def test_generators_are_refused():
    with pytest.raises(ValueError, match=r"generator.*only be read once"):
        SourceMapCache().check_data((images(2), np.zeros(2)) for _ in range(3))


def test_least_against_counting():
    """Binomial by hand: none of 10 heads in 1 of 1,024 times, of 9 in 1 of 512."""
    assert [probe._least(n, 0.5) for n in (0, 1, 9, 10)] == [0, 0, 0, 1]
    rng = np.random.default_rng(0)
    thrown = np.sort(rng.binomial(2048, 0.25, 200_000))
    assert abs(probe._least(2048, 0.25) - thrown[200]) <= 2
