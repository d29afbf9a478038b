"""The embedded images: disjoint parts, enough of them, reproducible."""

import sys

import numpy as np
import pytest
from PIL import Image

from keras_delta.data import embedded_digits, embedded_photographs
from keras_delta.data.embedded import MIN_CONTRAST, PHOTOGRAPHS


@pytest.fixture(scope="module")
def sets():
    return embedded_photographs()


def patches(image_set, size=40):
    return image_set.arrays(size, dtype="uint8")[0]


def test_counts(sets):
    assert set(sets) == {"train", "test"}
    assert set(sets["train"].counts.values()) == {10}
    assert set(sets["test"].counts.values()) == {25}
    assert sets["train"].class_names == tuple(PHOTOGRAPHS)


def test_patches_are_grey_and_show_something(sets):
    pixels = patches(sets["train"])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 1])
    assert pixels[..., 0].std((1, 2)).min() >= MIN_CONTRAST


def test_no_two_patches_are_the_same(sets):
    both = np.concatenate([patches(sets["train"]), patches(sets["test"])])
    assert len(np.unique(both.reshape(len(both), -1), axis=0)) == len(both)


def test_train_is_left_and_test_is_right(sets):
    import skimage

    folder = skimage.__path__[0] + "/data/"
    label = list(PHOTOGRAPHS).index("brick")
    brick = np.asarray(Image.open(folder + "brick.png"))
    width = brick.shape[1]
    for part, half in (
        ("train", brick[:, : width // 2]),
        ("test", brick[:, width // 2 :]),
    ):
        pixels = patches(sets[part])[sets[part].labels == label][..., 0]
        squares = np.lib.stride_tricks.sliding_window_view(half, (40, 40))
        grid = squares[::40, ::40].reshape(-1, 40, 40)
        assert all((grid == patch).all((1, 2)).any() for patch in pixels)


def test_seed_and_options(sets):
    again, other = embedded_photographs(), embedded_photographs(seed=1)
    np.testing.assert_array_equal(patches(again["test"]), patches(sets["test"]))
    assert not np.array_equal(patches(other["test"]), patches(sets["test"]))
    colour = embedded_photographs(32, 2, 3, colour=True)
    assert len(colour["train"]) == 24 and len(colour["test"]) == 36
    pixels = patches(colour["train"], 32)
    assert not np.array_equal(pixels[..., 0], pixels[..., 2])


def test_errors():
    with pytest.raises(ValueError, match=r"`test_per_class`.*'coins'.*patch_size"):
        embedded_photographs(test_per_class=30)
    with pytest.raises(ValueError, match=r"`patch_size`.*positive integer"):
        embedded_photographs(0)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"pip install \"keras_delta\[examples\]\""):
        embedded_photographs()


def test_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    sets = embedded_digits(20, 154)
    assert set(sets["train"].counts.values()) == {20}
    assert set(sets["test"].counts.values()) == {154}
    assert sets["test"].class_names == tuple("0123456789")
    # Each is one of the scans, with its label; none is in both parts.
    where = {
        (16 * scan).astype(int).tobytes(): i for i, scan in enumerate(digits.images)
    }
    drawn = []
    for part in sets.values():
        pixels = part.arrays(8, dtype="uint8")[0][..., 0]
        grey = np.rint(pixels / 255 * 16).astype(int) * 16
        drawn += [where[g.tobytes()] for g in grey]
    labels = np.concatenate([part.labels for part in sets.values()])
    np.testing.assert_array_equal(digits.target[drawn], labels)
    assert len(set(drawn)) == len(drawn) == 1740


def test_digits_depend_on_the_seed_alone():
    first, again, other = (embedded_digits(2, 2, seed=s)["test"] for s in (0, 0, 1))
    np.testing.assert_array_equal(patches(again, 8), patches(first, 8))
    assert not np.array_equal(patches(other, 8), patches(first, 8))


def test_too_many_digits():
    with pytest.raises(ValueError, match="at most 154 beside 20 for training"):
        embedded_digits(20, 155)
