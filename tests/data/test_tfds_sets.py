"""TensorFlow Datasets, replaced by generated data: no network."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_delta.data import ImageSet, from_tfds
from keras_delta.data.tfds_sets import StreamedSource


@pytest.fixture
def flowers():
    with tfds.testing.mock_data(num_examples=30):
        yield from_tfds("oxford_flowers102")


def test_names_and_labels(flowers):
    assert len(flowers) == 30
    assert len(flowers.class_names) == 102
    assert flowers.class_names[0] == "pink primrose"
    expected = [
        int(y)
        for y in tfds.load("oxford_flowers102", split="train").map(
            lambda example: example["label"]
        )
    ]
    assert flowers.labels.tolist() == expected


def test_pixels(flowers):
    x, y = flowers.arrays(16)
    assert x.shape == (30, 16, 16, 3)
    np.testing.assert_array_equal(y, flowers.labels)
    stored = tfds.load("oxford_flowers102", split="train")
    decoded = next(iter(stored))["image"]
    expected = tf.image.resize(decoded, (16, 16), antialias=True)
    # TensorFlow and Pillow decode a JPEG of noise a little differently.
    assert np.abs(x[0] - expected).mean() < 4


def test_subsets_stream_the_right_images(flowers):
    indices = np.arange(2, 30, 5)
    part = flowers.subset(indices)
    x, y = part.arrays(16)
    np.testing.assert_array_equal(x, flowers.arrays(16)[0][indices])
    np.testing.assert_array_equal(y, flowers.labels[indices])
    again = part.subset([1, 3])
    np.testing.assert_array_equal(again.arrays(16)[0], x[[1, 3]])


def test_unordered_subsets_are_refused(flowers):
    with pytest.raises(ValueError, match=r"increasing.*np.unique"):
        flowers.subset([3, 1])


@pytest.mark.parametrize("cache", [False, True])
def test_training_batches(flowers, cache):
    part = flowers.subset(np.arange(0, 30, 3))

    def dataset():
        return part.batches(16, 4, training=True, cache=cache)

    first, second = dataset(), dataset()
    assert len(first) == 3
    epochs = [list(first.as_numpy_iterator()) for _ in range(2)]
    for epoch in epochs:
        for (x1, y1), (x2, y2) in zip(epoch, second.as_numpy_iterator(), strict=True):
            np.testing.assert_array_equal(x1, x2)
            np.testing.assert_array_equal(y1, y2)
    orders = [np.concatenate([y for _, y in epoch]) for epoch in epochs]
    assert not np.array_equal(*orders)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(part.labels)


def test_grey_sets_become_rgb():
    with tfds.testing.mock_data(num_examples=3):
        x, _ = from_tfds("mnist", "test").arrays(28)
    assert x.shape == (3, 28, 28, 3)
    np.testing.assert_array_equal(x[..., 0], x[..., 2])


def test_sets_that_come_decoded():
    levels = np.arange(5, dtype=np.uint8)[:, None, None, None]
    stream = tf.data.Dataset.from_tensor_slices(np.tile(levels, (1, 6, 6, 1)))
    images = ImageSet(StreamedSource(stream, np.arange(5), "x"), [0] * 5, ["a"])
    x, _ = images.subset([1, 4]).arrays(6)
    assert x[:, 0, 0].tolist() == [[1, 1, 1], [4, 4, 4]]


def test_a_damaged_record_is_named():
    stream = tf.data.Dataset.from_tensor_slices([b"no image"])
    images = ImageSet(StreamedSource(stream, np.arange(1), "pets[train]"), [0], ["a"])
    with pytest.raises(Exception, match=r"Cannot read image 0 of pets\[train\]"):
        images.arrays(8)


def test_unlabelled_images():
    def unlabelled(self, *args, **kwargs):
        example = {"image": np.zeros((28, 28, 1), np.uint8), "label": -1}
        return tf.data.Dataset.from_tensors(example)

    with (
        tfds.testing.mock_data(as_dataset_fn=unlabelled),
        pytest.raises(ValueError, match="1 images without a label"),
    ):
        from_tfds("mnist")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("oxford_flower", {}, "`name`.*'oxford_flowers102'"),
        ("coco/2017", {}, "`label_key`.*ClassLabel.*objects"),
        ("imdb_reviews", {}, "`image_key`.*Image.*text"),
        ("mnist", {"label_key": "digit"}, "`label_key`.*label"),
        ("mnist", {"split": None}, "`split`.*'train'"),
    ],
)
def test_errors(name, options, message):
    with (
        tfds.testing.mock_data(num_examples=1),
        pytest.raises(ValueError, match=message),
    ):
        from_tfds(name, **options)


def test_unknown_split(monkeypatch):
    size = SimpleNamespace(num_bytes=0)
    splits = {"train": size, "test": size}
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", splits)
    with tfds.testing.mock_data(num_examples=2):
        assert len(from_tfds("mnist", "train[:50%]+test")) == 2
        with pytest.raises(ValueError, match=r"`split`.*'tests'.*'test'"):
            from_tfds("mnist", "train+tests")


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"`download`.*'mnist' is not in"):
        from_tfds("mnist", data_dir=str(tmp_path), download=False)
