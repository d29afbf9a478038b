"""The article's two protocols: sizes, what is cut off, and what is random."""

import numpy as np
import pytest
import tensorflow as tf

from keras_delta.data import Protocol, resize_side

# Rows count in the first channel, columns in the second: crops show their place.
ROWS, COLUMNS = np.mgrid[:64, :128].astype(np.float32)
PLACES = np.stack([ROWS, COLUMNS, np.zeros_like(ROWS)], -1)


def prepared(protocol, seed=(0, 0), image=PLACES):
    return protocol.finish(protocol.resize(image), seed).numpy()


@pytest.mark.parametrize(
    "size, side", [(224, 256), (299, 320), (112, 128), (96, 110), (7, 8)]
)
def test_resize_side(size, side):
    assert resize_side(size) == side


@pytest.mark.parametrize(
    "name, training, shape",
    [
        ("default", True, (64, 64)),
        ("default", False, (56, 56)),
        ("improved", True, (64, 128)),
        ("improved", False, (64, 128)),
    ],
)
def test_resized_shape(name, training, shape):
    resized = Protocol(name, 56, training).resize(PLACES)
    assert resized.shape == (*shape, 3)
    assert resized.dtype == tf.float32


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (3, 4), (500, 333)])
@pytest.mark.parametrize("size", [20, (20, 31)])
def test_shorter_edge_covers_the_crop(shape, size):
    protocol = Protocol("improved", size)
    full = [resize_side(side) for side in protocol.size]
    resized = protocol.resize(np.zeros((*shape, 3), np.uint8)).shape[:2]
    assert all(edge >= wanted for edge, wanted in zip(resized, full, strict=True))
    assert any(edge == wanted for edge, wanted in zip(resized, full, strict=True))
    error = resized[0] / resized[1] - shape[0] / shape[1]
    assert abs(error) < 1 / min(full)


def test_default_test_images_are_squashed_not_cropped():
    image = prepared(Protocol("default", 32))
    expected = tf.image.resize(PLACES, (32, 32), antialias=True)
    np.testing.assert_allclose(image, expected, atol=1e-4)
    assert image[..., 1].max() > 125  # the right border is still there


def test_improved_test_image_is_the_centre():
    image = prepared(Protocol("improved", 56))
    np.testing.assert_allclose(image, PLACES[4:60, 36:92], atol=1e-4)


def test_ten_crops_of_the_improved_test():
    crops = prepared(Protocol("improved", 56, ten_crop=True))
    assert crops.shape == (10, 56, 56, 3)
    np.testing.assert_allclose(crops[0], PLACES[:56, :56], atol=1e-4)
    np.testing.assert_allclose(crops[4], PLACES[4:60, 36:92], atol=1e-4)


@pytest.mark.parametrize("name, columns", [("default", 8), ("improved", 72)])
def test_training_crops_reach_every_place_and_are_mirrored(name, columns):
    protocol = Protocol(name, 56, training=True)
    resized = protocol.resize(PLACES)
    step = resized[0, 1, 1] - resized[0, 0, 1]
    tops, lefts, mirrored = set(), set(), 0
    for seed in range(300):
        crop = protocol.finish(resized, (seed, 1)).numpy()
        assert crop.shape == (56, 56, 3)
        tops.add(round(float(crop[0, 0, 0])))
        ends = crop[0, [0, -1], 1]
        mirrored += ends[0] > ends[1]
        lefts.add(round(float((ends.min() - resized[0, 0, 1]) / step)))
    assert tops == set(range(9))
    assert min(lefts) <= 1 and max(lefts) >= columns - 1
    assert len(lefts) >= min(columns, 60)
    assert 110 < mirrored < 190


def test_the_seed_decides():
    protocol = Protocol("default", 56, training=True)
    np.testing.assert_array_equal(prepared(protocol), prepared(protocol))
    assert not np.array_equal(prepared(protocol), prepared(protocol, (0, 1)))


def test_values_stay_in_range():
    noise = np.random.default_rng(0).integers(0, 2, (50, 70, 3)) * 255
    image = prepared(Protocol("default", 33), image=noise.astype(np.uint8))
    assert image.min() >= 0 and image.max() <= 255


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([[0.0], [255.0]], np.float32), (32, 64))[..., None]
    image = prepared(Protocol("default", 8), image=np.repeat(stripes, 3, -1))
    np.testing.assert_allclose(image[1:-1], 127.5, atol=8)
