"""Images that are in two sets, and the patches that excite channels."""

import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf
from skimage import data as photographs

import keras_delta as kd
from keras_delta.analysis.images import Images
from keras_delta.analysis.near_duplicates import near_duplicates
from keras_delta.analysis.patches import exciting_patches
from keras_delta.data.tfds_sets import StreamedSource

SIDE = 64


def as_images(x):
    return Images((x, np.zeros(len(x), int)), "x", x.shape[1:3])


@pytest.fixture(scope="module")
def pieces():
    """Fifty different pieces of real photographs."""
    rng, found = np.random.default_rng(0), []
    for name in ("astronaut", "coffee", "chelsea", "rocket", "cat"):
        image = getattr(photographs, name)()[..., :3]
        for _ in range(10):
            top, left = (rng.integers(0, n - SIDE) for n in image.shape[:2])
            found.append(image[top : top + SIDE, left : left + SIDE])
    return np.stack(found).astype("float32")


def test_changed_copies_are_found(pieces):
    first, others = pieces[:30], pieces[40:].copy()
    changed = {
        "same": pieces[3],
        "mirrored": pieces[7][:, ::-1],
        "darker": 0.6 * pieces[11] + 20,
        "noise": pieces[15] + np.random.default_rng(0).normal(0, 4, pieces[15].shape),
    }
    second = np.concatenate([others, np.stack(list(changed.values()))])
    found = near_duplicates(as_images(first), as_images(second))
    pairs = {(p.first, p.second - len(others)) for p in found if p.second >= 10}
    assert pairs == {(3, 0), (7, 1), (11, 2), (15, 3)}
    assert found[0].likeness == pytest.approx(1, abs=1e-4)
    assert [p.likeness for p in found] == sorted(p.likeness for p in found)[::-1]


def test_images_of_one_colour_are_no_copies():
    x = np.full((3, SIDE, SIDE, 3), 90.0)
    assert near_duplicates(as_images(x), as_images(x + 5)) == []


def test_patches_around_the_most_exciting_cell():
    inputs = keras.Input((32, 32, 3))
    cells = keras.layers.AveragePooling2D(4, name="cells")(inputs)
    model = keras.Model(inputs, cells)
    x = np.zeros((3, 32, 32, 3), "uint8")
    x[0, 12:16, 20:24, 1] = 200  # cell (3, 5)
    x[1, 0:4, 28:32, 1] = 250  # the corner
    x[2, 8, 8, 0] = 100
    found = exciting_patches(model, as_images(x), [1, 0], "cells", count=2)
    first, second = found[1]
    assert (first.image, second.image) == (1, 0)
    assert (first.activation, second.activation) == (250, 200)
    assert first.box == (0, 21, 11, 32)  # moved into the image
    assert second.box == (8, 16, 19, 27)
    assert found[0][0].image == 2


def test_a_folder_of_sets_is_refused(tmp_path):
    sets = {"train": kd.data.ImageSet.from_arrays(np.zeros((2, 8, 8, 3), "u1"), [0, 1])}
    with pytest.raises(ValueError, match="one set"):
        Images(sets, "test", (8, 8))
    with pytest.raises(ValueError, match="image_size"):
        Images(sets["train"], "test", (None, None))


@pytest.mark.parametrize("form", ["numbers", "column", "one-hot"])
def test_labels_of_every_form_are_renumbered(form):
    numbers = np.array([0, 1, 1, 0, 1])
    labels = {
        "numbers": numbers,
        "column": numbers[:, None].astype("float32"),
        "one-hot": np.eye(2, dtype="float32")[numbers],
    }[form]
    data = tf.data.Dataset.from_tensor_slices((np.zeros((5, 8, 8, 3)), labels))
    data = data.batch(2)
    data.class_names = ["wolf", "dog"]
    images = Images(data, "test", (8, 8))
    images.rename(("cat", "dog", "wolf"))
    expected = np.array([2, 1, 1, 2, 1])
    if form == "one-hot":
        expected = np.eye(3)[expected]
    found = images.labels[:, 0] if form == "column" else images.labels
    np.testing.assert_array_equal(found, expected)


def test_streamed_images_in_any_order():
    x = np.arange(6, dtype="uint8")[:, None, None, None] * np.ones((8, 8, 3), "uint8")
    stream = tf.data.Dataset.from_tensor_slices(x)
    source = StreamedSource(stream, np.arange(6), "numbers")
    images = Images(kd.data.ImageSet(source, [0] * 6, ["a"]), "x", (8, 8))
    assert images.take([4, 1, 4])[:, 0, 0, 0].tolist() == [4, 1, 4]


def test_images_are_kept_and_not_their_batches():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return np.full((32, 32, 32, 3), index, "uint8"), np.zeros(32, int)

    tracemalloc.start()
    images = Images(Batches(), "x", (32, 32), max_images=40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == 40
    assert peak < 12 * Batches()[0][0].nbytes
