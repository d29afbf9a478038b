"""Images that are in two sets, and the patches that excite channels."""

import keras
import numpy as np
import pytest
from skimage import data as photographs

import keras_delta as kd
from keras_delta.analysis.images import Images
from keras_delta.analysis.near_duplicates import near_duplicates
from keras_delta.analysis.patches import exciting_patches

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
