"""Corrupted images against NumPy and Pillow, one after the other."""

import io

import numpy as np
import pytest
from PIL import Image

from keras_delta.data import ImageSet, corrupt, corrupted
from keras_delta.data.corruptions import KINDS


def photos(count=3, height=64, width=80):
    """Smooth colours with some noise."""
    rng = np.random.default_rng(0)
    found = []
    for coarse in rng.integers(0, 256, (count, 5, 6, 3), np.uint8):
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), 2), int)
        noisy = smooth + rng.integers(-20, 21, smooth.shape)
        found.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return np.stack(found)


def gaussian(image, deviation):
    """Exactly blurred, along one axis and then the other; the border goes on."""
    reach = int(4 * deviation + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    for axis in (0, 1):
        margins = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(image.astype(float), margins, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis)
        image = windows @ (weights / weights.sum())
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_form_and_degrees(kind):
    images = photos(height=224, width=224)
    before = images.copy()
    errors = []
    for severity in range(1, 6):
        spoilt = corrupt(images, kind, severity)
        assert spoilt.shape == images.shape and spoilt.dtype == np.uint8
        errors.append(np.abs(spoilt.astype(int) - images).mean())
    assert errors[0] > 1 and (np.diff(errors) > 0).all()
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(
        corrupt(images, kind), corrupt(images, kind, severity=3, seed=0)
    )


@pytest.mark.parametrize("severity, quality", list(enumerate((25, 18, 15, 10, 7), 1)))
def test_jpeg_against_pillow(severity, quality):
    images = photos()
    for image, spoilt in zip(images, corrupt(images, "jpeg", severity), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=quality)
        np.testing.assert_array_equal(spoilt, np.asarray(Image.open(file)))


@pytest.mark.parametrize("severity, pixels", list(enumerate((1, 2, 3, 4, 6), 1)))
@pytest.mark.parametrize("height, width", [(224, 240), (112, 130)])
def test_blur_against_a_gaussian(severity, pixels, height, width):
    """Pillow's boxes come close."""
    images = photos(2, height, width)
    deviation = pixels * height / 224
    for image, spoilt in zip(images, corrupt(images, "blur", severity), strict=True):
        difference = np.abs(spoilt - gaussian(image, deviation))
        assert difference.mean() < 1 and difference.max() < 8


@pytest.mark.parametrize(
    "severity, deviation", list(enumerate((0.08, 0.12, 0.18, 0.26, 0.38), 1))
)
def test_noise_is_gaussian(severity, deviation):
    grey = np.full((2, 100, 100, 3), 127, np.uint8)
    noise = corrupt(grey, "noise", severity) / 255 - 127 / 255
    # Cut off at black and white: those parts of the distribution are at the ends.
    inside = np.abs(noise) < 0.49
    expected = {1: 1, 2: 1, 3: 0.9935, 4: 0.9405, 5: 0.8028}[severity]
    np.testing.assert_allclose(inside.mean(), expected, atol=0.01)
    quartiles = np.quantile(noise, [0.25, 0.5, 0.75]) / deviation
    np.testing.assert_allclose(quartiles, [-0.674, 0, 0.674], atol=0.03)


def test_noise_against_the_loop():
    images = photos()
    for number, spoilt in enumerate(corrupt(images, "noise", 2, seed=5)):
        rng = np.random.default_rng([5, number])
        noise = rng.standard_normal(images[number].shape)
        expected = np.clip(images[number] / 255 + 0.12 * noise, 0, 1) * 255
        assert np.abs(spoilt - expected).max() <= 0.5 + 1e-6


def test_the_seed_decides_the_noise():
    images = np.repeat(photos(1), 3, axis=0)
    spoilt = corrupt(images, "noise", 1, seed=1)
    np.testing.assert_array_equal(spoilt, corrupt(images, "noise", 1, seed=1))
    np.testing.assert_array_equal(spoilt[:2], corrupt(images[:2], "noise", 1, seed=1))
    assert not np.array_equal(spoilt, corrupt(images, "noise", 1, seed=2))
    assert not np.array_equal(spoilt[0], spoilt[1])
    for kind in ("blur", "jpeg"):
        first, second = (corrupt(images, kind, 1, seed=seed) for seed in (1, 2))
        np.testing.assert_array_equal(first, second)


def test_of_an_image_set():
    images = ImageSet.from_arrays([photos(1)[0], photos(1, 90, 50)[0]], [1, 0])
    pixels, labels = corrupted(images, (40, 32), "noise", 2, seed=4)
    expected, _ = images.arrays((40, 32), dtype="uint8")
    np.testing.assert_array_equal(pixels, corrupt(expected, "noise", 2, seed=4))
    assert labels.tolist() == [1, 0] and pixels.shape == (2, 40, 32, 3)
    pixels, _ = corrupted(images, 32, "jpeg", protocol="improved")
    expected, _ = images.arrays(32, protocol="improved", dtype="uint8")
    np.testing.assert_array_equal(pixels, corrupt(expected, "jpeg", 3))


def test_nothing_to_spoil():
    assert corrupt(photos()[:0], "noise").shape == (0, 64, 80, 3)


def test_bad_numbers():
    with pytest.raises(ValueError, match=r"`severity`.*an integer from 1 to 5"):
        corrupt(photos(), "blur", 6)
    with pytest.raises(ValueError, match="`severity`"):
        corrupted(ImageSet.from_arrays(photos(), [0] * 3), 8, "blur", 0)
    with pytest.raises(ValueError, match="`seed`"):
        corrupt(photos(), "noise", seed=-1)


def test_unknown_kind():
    with pytest.raises(ValueError) as error:
        corrupt(photos(), "blurr")
    assert str(error.value) == (
        "Unknown name for `kind`. Received: 'blurr'. Closest names: 'blur'."
    )


@pytest.mark.parametrize(
    "images",
    [photos().astype(np.float32), photos()[0], photos()[..., :1], photos()[None]],
)
def test_bad_images(images):
    with pytest.raises(ValueError) as error:
        corrupt(images, "blur")
    assert str(error.value) == (
        "Invalid value for argument `images`. Expected a uint8 array of shape (images, "
        f"height, width, 3). Received: images='{images.dtype} array of shape "
        f'{images.shape}\'. Create it with `ImageSet.arrays(size, dtype="uint8")`.'
    )
