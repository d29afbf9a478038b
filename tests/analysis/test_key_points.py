"""Key points: where a blob at known pixels is found, for every protocol."""

import keras
import numpy as np
import pytest

import keras_delta as kd
from keras_delta.analysis import cub_points, key_point_activation
from keras_delta.analysis.reading import aggregate
from keras_delta.data.augment import PROTOCOLS, RECIPES, Protocol

SIZE = 28
CELL = 4


def pooled_photographs():
    """A network whose map is the photograph, averaged over cells of 4 x 4 pixels."""
    inputs = keras.Input((SIZE, SIZE, 3))
    return keras.Model(
        inputs, keras.layers.AveragePooling2D(CELL, name="cells")(inputs)
    )


def blob(height, width, x, y, radius=3):
    """A bright blob around a pixel of a black image."""
    rows, columns = np.ogrid[:height, :width]
    inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return (255 * inside[..., None] * np.ones(3)).astype("uint8")


@pytest.mark.parametrize("protocol", RECIPES)
@pytest.mark.parametrize("shape", [(70, 90), (96, 64), (33, 33)])
def test_a_blob_at_known_pixels(protocol, shape):
    height, width = shape
    rng = np.random.default_rng(0)
    middle = [(x, y) for x in (0.4, 0.5, 0.6) for y in (0.42, 0.57)]
    places = [(int(x * width), int(y * height)) for x, y in middle]
    images = [blob(height, width, x, y) for x, y in places]
    points = np.array([[place, rng.uniform(0, 1, 2)] for place in places])
    found = key_point_activation(
        pooled_photographs(), images, points, tap="cells", protocol=protocol
    )
    assert found.by_point[0] > 0.75  # on the blob: the highest cell or next to it
    assert np.isnan(found.by_point[1]) or found.by_point[1] < 0.01  # top left corner
    assert found.counts[0] == found.images == len(images)


def test_all_ten_crops_find_it():
    shape, place = (50, 60), (31, 22)
    prepare = Protocol("improved", SIZE, ten_crop=True)
    moved = prepare.move_points([place], shape)
    crops = prepare.finish(prepare.resize(blob(*shape, *place, 1)), None).numpy()
    assert moved.shape == (10, 1, 2)
    for crop, ((x, y),) in zip(crops, moved, strict=True):
        rows, columns = np.nonzero(crop[..., 0] > 0.5 * crop.max())
        assert abs(rows.mean() - y) < 1.1
        assert abs(columns.mean() - x) < 1.1
    found = key_point_activation(
        pooled_photographs(),
        [blob(*shape, *place)],
        [[place, (0, 0), (np.nan, np.nan)]],
        tap="cells",
        protocol="improved",
        ten_crop=True,
    )
    assert found.by_point[0] > 0.6
    assert found.by_point[1] < 0.01  # in the corner, which some crops show
    assert found.counts.tolist() == [1, 1, 0]


@pytest.mark.parametrize("protocol", RECIPES)
def test_moved_points_against_a_ramp(protocol):
    """An image whose pixel values are its coordinates says where each pixel went."""
    height, width = 80, 120
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([columns * 2, rows * 2, 0 * rows], -1).astype("uint8")
    prepare = Protocol(protocol, SIZE)
    seen = prepare.finish(prepare.resize(ramp), None).numpy()
    for x, y in ((60, 40), (50, 30), (70, 55)):
        ((to,),) = prepare.move_points([(x, y)], (height, width))
        column, row = np.floor(to).astype(int)
        assert abs(seen[row, column, 0] / 2 - x) < 3
        assert abs(seen[row, column, 1] / 2 - y) < 3


def test_by_hand():
    """Two cells a side: sums over visible points, means over images and points."""
    inputs = keras.Input((2, 2, 3))
    model = keras.Model(inputs, keras.layers.Activation("linear", name="map")(inputs))
    images = np.zeros((2, 2, 2, 3), "uint8")
    images[0, 0, 1] = 200, 100, 0  # mean 100
    images[0, 1, 1] = 75, 75, 0  # mean 50
    images[1, 1, 0] = 90
    nan = (np.nan, np.nan)
    points = [[(1, 0), (1.9, 1), (0, 0)], [nan, (0, 1.5), nan]]
    found = key_point_activation(model, images, points, tap="map")
    assert found.total == pytest.approx(((1 + 0.5 + 0) + 1) / 2)
    assert found.mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    np.testing.assert_allclose(found.by_point, [1, 0.75, 0])
    assert found.counts.tolist() == [1, 2, 1]


def test_aggregate_by_hand():
    a = np.zeros((2, 1, 3, 2))
    a[0, 0] = [[0, 2], [4, 4], [1, 1]]  # means 1, 4, 1
    np.testing.assert_allclose(aggregate(a), [[[0, 1, 0]], [[0, 0, 0]]])


def test_resized_images_are_refused():
    images = kd.data.ImageSet.from_arrays([blob(50, 60, 31, 22)], [0])
    with pytest.raises(ValueError, match="images of their original sizes"):
        key_point_activation(
            pooled_photographs(), images.resized(SIZE), [[(31, 22)]], tap="cells"
        )


def test_several_models_and_the_last_tap(new_backbone):
    source = new_backbone()
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source, taps=["relu2"])
    images = kd.data.ImageSet.from_arrays(np.zeros((3, 20, 20, 3), "uint8"), [0, 1, 2])
    points = np.full((3, 2, 2), 7.0)
    found = key_point_activation({"a": model, "b": model}, images, points)
    assert found["a"].total == found["b"].total
    with pytest.raises(ValueError, match="tap"):
        key_point_activation(source, images, points)
    with pytest.raises(ValueError, match="conv2"):
        key_point_activation(source, images, points, tap="conv9")
    with pytest.raises(ValueError, match=r"(?s)points.*3 images"):
        key_point_activation(model, images, points[:2])
    with pytest.raises(ValueError, match="map"):
        key_point_activation(model, images, points, tap="head")


def test_cub_part_locations(tmp_path):
    (tmp_path / "parts").mkdir()
    folder = tmp_path / "images" / "001.Albatross"
    folder.mkdir(parents=True)
    (tmp_path / "images.txt").write_text("1 001.Albatross/a.jpg\n2 001.Albatross/b.jpg")
    (tmp_path / "parts" / "parts.txt").write_text("1 back\n2 left eye\n")
    (tmp_path / "parts" / "part_locs.txt").write_text(
        "1 1 10.0 20.0 1\n1 2 0.0 0.0 0\n2 1 5.5 6.0 1\n2 2 7.0 8.0 1\n"
    )
    paths = [folder / "b.jpg", folder / "a.jpg"]
    images = kd.data.ImageSet.from_files(paths, [0, 0], ["albatross"])
    points, names = cub_points(tmp_path, images)
    assert names == ["back", "left eye"]
    np.testing.assert_array_equal(
        points, [[[5.5, 6], [7, 8]], [[10, 20], [np.nan, np.nan]]]
    )
    others = kd.data.ImageSet.from_files([folder / "c.jpg"], [0], ["albatross"])
    with pytest.raises(ValueError, match=r"c\.jpg"):
        cub_points(tmp_path, others)


def test_every_test_protocol_is_here():
    assert set(PROTOCOLS) <= set(RECIPES)
