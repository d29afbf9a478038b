"""The protocols: sizes, what is cut off, and what is random."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_delta.data import ImageSet, Protocol, resize_side
from keras_delta.data.random_box import box_size, random_box

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


def test_a_strip_that_would_become_huge_is_refused():
    strip = np.zeros((1, 400_000, 3), np.uint8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="89,478,485 pixels"):
        Protocol("improved", 224).resize(strip)
    assert Protocol("tllib", 8, training=True).resize(strip).shape == strip.shape


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


def photo(height, width, seed=0):
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 9, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), 2), np.int64)
    noisy = smooth + rng.integers(-20, 21, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def test_unknown_protocol():
    with pytest.raises(ValueError) as error:
        Protocol("tlib", 8)
    assert str(error.value) == (
        "Unknown name for `protocol`. Received: 'tlib'. Closest names: 'tllib'."
    )


@pytest.mark.parametrize(
    "name, training",
    [("default", False), ("tllib", False), ("improved", True), ("improved_code", True)],
)
def test_ten_crops_are_for_the_improved_test(name, training):
    with pytest.raises(ValueError) as error:
        Protocol(name, 8, training, ten_crop=True)
    assert str(error.value) == (
        "Invalid value for argument `ten_crop`. Expected False, except for "
        "`protocol='improved'` or 'improved_code' with `training=False`. Received: "
        f"ten_crop=True. Here protocol={name!r} and training={training}."
    )


@pytest.mark.parametrize("name", ["improved_code", "tllib"])
@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (20, 300)])
def test_the_other_protocols_test_as_improved(name, shape):
    image = photo(*shape)
    expected = prepared(Protocol("improved", (28, 32)), image=image)
    assert expected.shape == (28, 32, 3)
    ours = prepared(Protocol(name, (28, 32)), image=image)
    np.testing.assert_array_equal(ours, expected)


def test_ten_crops_of_the_code():
    first, second = (
        prepared(Protocol(name, 28, ten_crop=True), image=photo(50, 70))
        for name in ("improved", "improved_code")
    )
    np.testing.assert_array_equal(first, second)


def test_the_code_never_crops_at_random():
    """Two views alone: the centre, and the centre of the mirror image."""
    protocol = Protocol("improved_code", 56, training=True)
    image = np.asarray(protocol.resize(photo(64, 129)))
    assert image.shape == (64, 129, 3)  # 73 columns are left over
    straight, mirrored = image[4:60, 36:92], image[:, ::-1][4:60, 36:92]
    seen = []
    for seed in range(60):
        view = protocol.finish(image, (seed, 0)).numpy()
        found = [np.array_equal(view, each) for each in (straight, mirrored)]
        assert sum(found) == 1
        seen.append(found[1])
    assert 15 < sum(seen) < 45


def fitting(height, width, areas, ratios):
    """torchvision's `RandomResizedCrop.get_params`, without the place."""
    for area, ratio in zip(areas, ratios, strict=True):
        w = round(math.sqrt(height * width * area * ratio))
        h = round(math.sqrt(height * width * area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return h, w, True
    if width / height < 3 / 4:
        return round(width / (3 / 4)), width, False
    if width / height > 4 / 3:
        return height, round(height * (4 / 3)), False
    return height, width, False


SHAPES = [(300, 300), (375, 500), (500, 333), (60, 400), (300, 21), (1, 9), (2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes_of_boxes_against_the_loop(shape):
    rng = np.random.default_rng(1)
    compiled = tf.function(box_size)
    found = set()
    for tries in (1, 2, 10) * 20:
        areas = rng.uniform(0.2, 1, tries)
        ratios = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), tries))
        *size, fits = (x.numpy() for x in box_size(*shape, areas, ratios))
        assert (*size, fits) == fitting(*shape, areas, ratios)
        found.add(bool(fits))
    assert [x.numpy() for x in compiled(*shape, areas, ratios)] == [*size, fits]
    if shape in ((300, 300), (375, 500)):
        assert found == {True, False}


def boxes(height, width, count=2000):
    """Boxes of many seeds, (count, 4)."""

    @tf.function
    def draw():
        seeds = tf.stack([tf.range(count), tf.fill([count], 3)], -1)
        return tf.map_fn(
            lambda seed: tf.stack(random_box(height, width, seed)), seeds, tf.int32
        )

    return draw().numpy()


@pytest.mark.parametrize("shape", [(300, 300), (375, 500), (200, 80)], ids=str)
def test_boxes_are_distributed_as_those_of_torchvision(shape):
    height, width = shape
    top, left, h, w = boxes(*shape).T
    assert min(top.min(), left.min()) == 0
    assert (top + h).max() == height and (left + w).max() == width
    # Rounding moves an edge by half a pixel at most.
    assert ((h + 0.5) * (w + 0.5) >= 0.2 * height * width).all()
    assert ((w + 0.5) / (h - 0.5) >= 3 / 4).all()
    assert ((w - 0.5) / (h + 0.5) <= 4 / 3).all()

    rng = np.random.default_rng(0)
    theirs = []
    for _ in range(2000):
        areas = rng.uniform(0.2, 1, 10)
        ratios = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), 10))
        theirs.append(fitting(*shape, areas, ratios)[:2])
    their_h, their_w = np.array(theirs).T
    for ours, other in (
        (h * w, their_h * their_w),
        (w / h, their_w / their_h),
    ):
        quantiles = np.linspace(0.1, 0.9, 9)
        values = np.quantile(other, quantiles)
        shares = [(ours <= value).mean() for value in values]
        others = [(other <= value).mean() for value in values]
        np.testing.assert_allclose(shares, others, atol=0.05)

    # Places: uniform, where there is room.
    for start, room in ((top, height - h), (left, width - w)):
        place = (start + 0.5) / (room + 1)
        np.testing.assert_allclose(place.mean(), 0.5, atol=0.03)
        some = room > 20
        np.testing.assert_allclose(place[some].std(), 12**-0.5, atol=0.03)


def test_boxes_are_exactly_repeatable():
    first, second = boxes(375, 500, 20), boxes(375, 500, 20)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first, axis=0)) == 20
    tf.random.set_seed(5)  # must not matter
    eager = [[int(x) for x in random_box(375, 500, (n, 3))] for n in range(20)]
    assert eager == first.tolist()


@pytest.mark.parametrize("shape", [(60, 80), (150, 100), (20, 26), (30, 400)], ids=str)
def test_views_of_tllib_against_pillow(shape):
    """The box, cut out and resized; Pillow rounds to whole levels."""
    protocol = Protocol("tllib", (48, 40), training=True)
    image = photo(*shape)
    kept = protocol.resize(image)
    mirrored = 0
    for seed in range(24):
        view = protocol.finish(kept, (seed, 7)).numpy()
        assert view.shape == (48, 40, 3) and view.dtype == np.float32
        box_seed = tf.random.split((seed, 7), 2)[1]
        top, left, h, w = (int(x) for x in random_box(*shape, box_seed))
        cut = Image.fromarray(np.asarray(kept)[top : top + h, left : left + w])
        expected = np.asarray(cut.resize((40, 48), Image.Resampling.BILINEAR), float)
        errors = [abs(view - e).max() for e in (expected, expected[:, ::-1])]
        assert min(errors) < 1.1 < 10 < max(errors)
        mirrored += errors[1] < errors[0]
    assert 4 < mirrored < 20


def test_tllib_keeps_the_image_for_training():
    image = photo(60, 80)
    kept = Protocol("tllib", 20, training=True).resize(image)
    assert kept.dtype == tf.uint8
    np.testing.assert_array_equal(kept, image)


@pytest.mark.parametrize(
    "shape, kept",
    [
        ((60, 500), (60, 500)),
        ((61, 61), (60, 60)),
        ((400, 200), (120, 60)),
        ((90, 120), (60, 80)),
    ],
)
def test_tllib_shrinks_very_large_images(shape, kept):
    image = photo(*shape)
    small = Protocol("tllib", 20, training=True).resize(image)
    assert small.shape == (*kept, 3) and small.dtype == tf.uint8
    expected = Image.fromarray(image).resize(kept[::-1], Image.Resampling.BILINEAR)
    difference = np.asarray(small, int) - np.asarray(expected, int)
    assert abs(difference).max() <= 1


def test_shrinking_first_hardly_changes_the_views():
    """What the bound costs: boxes of the large image and of the shrunk one."""
    protocol = Protocol("tllib", 32, training=True)
    image = photo(480, 640)
    small = protocol.resize(image)
    assert small.shape == (96, 128, 3)
    exact = Image.fromarray(image).resize((32, 32), 2, box=(160, 100, 480, 370))
    after = Image.fromarray(small.numpy()).resize((32, 32), 2, box=(32, 20, 96, 74))
    assert abs(np.asarray(exact, float) - np.asarray(after, float)).mean() < 1


@pytest.mark.parametrize("cache", [False, True])
def test_batches_of_tllib(cache):
    """Images of many sizes; the same numbers from the cache and a second time."""
    shapes = [(40, 60), (30, 20), (200, 300), (25, 25), (10, 90)]
    images = ImageSet.from_arrays([photo(*shape) for shape in shapes], range(5))
    options = {"protocol": "tllib", "training": True, "seed": 3}
    plain = images.batches((24, 16), 5, **options)
    other = images.batches((24, 16), 5, cache=cache, **options)
    epochs = [next(plain.as_numpy_iterator()) for _ in range(3)]
    for pixels, labels in epochs:
        again, same_labels = next(other.as_numpy_iterator())
        np.testing.assert_array_equal(pixels, again)
        np.testing.assert_array_equal(labels, same_labels)
        assert pixels.shape == (5, 24, 16, 3) and pixels.dtype == np.float32
        assert pixels.min() >= 0 and pixels.max() <= 255
    ordered = [pixels[np.argsort(labels)] for pixels, labels in epochs]
    assert not np.array_equal(ordered[0], ordered[1])
    assert images.arrays(16, protocol="tllib")[0].shape == (5, 16, 16, 3)


def test_resized_sets_of_tllib():
    images = ImageSet.from_arrays([photo(40, 60), photo(30, 20)], [0, 1])
    ready, test = images.resized(16, protocol="tllib", training=(True, False))
    options = {"protocol": "tllib", "training": True}
    first = next(ready.batches(16, **options).as_numpy_iterator())
    second = next(images.batches(16, **options).as_numpy_iterator())
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(
        test.arrays(16, protocol="tllib")[0], images.arrays(16, protocol="tllib")[0]
    )
