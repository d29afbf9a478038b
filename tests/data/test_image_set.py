"""`ImageSet`: subsets are stratified and seeded, batches repeat bit for bit."""

import numpy as np
import pytest
import tensorflow as tf
from picture_files import write_image

from keras_delta.data import ImageSet, from_directory

NAMES = ("ant", "bee", "cat")


def numbered(per_class=(10, 20, 30), names=NAMES):
    """Pictures in memory, each of its own level of grey, which is its number."""
    count = sum(per_class)
    levels = np.arange(count, dtype=np.uint8)[:, None, None, None]
    labels = np.repeat(np.arange(len(per_class)), per_class)
    return ImageSet.from_arrays(np.tile(levels, (1, 12, 12, 3)), labels, names)


def numbers(image_set):
    return image_set.arrays(4)[0][:, 0, 0, 0].astype(int).tolist()


def run(dataset):
    """All batches of one epoch."""
    return list(dataset.as_numpy_iterator())


def same(first, second):
    return all(
        np.array_equal(x1, x2) and np.array_equal(y1, y2)
        for (x1, y1), (x2, y2) in zip(first, second, strict=True)
    )


def test_value():
    images = numbered()
    assert len(images) == 60
    assert images.class_names == NAMES
    assert images.counts == {"ant": 10, "bee": 20, "cat": 30}
    assert images.paths is None and images.skipped == []
    assert repr(images) == "ImageSet(60 images, 3 classes: ant 10, bee 20, cat 30)"
    with pytest.raises(ValueError):
        images.labels[0] = 1
    with pytest.raises(AttributeError):
        images.labels = []


def test_long_repr_is_cut():
    images = numbered([1] * 9, range(9))
    assert repr(images).endswith("4 1, 5 1, ...)")


def test_folder_without_parts_says_how_to_split():
    with pytest.raises(TypeError, match=r"train, test = images\.split\(0\.25\)"):
        numbered()["train"]
    with pytest.raises(TypeError):
        list(numbered())


def test_subset_keeps_order_and_labels():
    part = numbered().subset([40, 3, 12])
    assert numbers(part) == [40, 3, 12]
    assert part.labels.tolist() == [2, 0, 1]
    assert len(numbered().subset([])) == 0


@pytest.mark.parametrize("indices", [[60], [-1], [0.5], [True] * 60, 3])
def test_subset_refuses(indices):
    with pytest.raises(ValueError, match=r"`indices`.*0 to 59"):
        numbered().subset(indices)


def test_split_is_stratified_and_complete():
    rest, held_out = numbered().split(0.2)
    assert list(rest.counts.values()) == [8, 16, 24]
    assert list(held_out.counts.values()) == [2, 4, 6]
    assert sorted(numbers(rest) + numbers(held_out)) == list(range(60))


@pytest.mark.parametrize("fraction, counts", [(0.01, (1, 1, 1)), (0.99, (9, 19, 29))])
def test_split_leaves_no_part_without_a_class(fraction, counts):
    _, held_out = numbered().split(fraction)
    assert tuple(held_out.counts.values()) == counts


def test_split_seed():
    images = numbered()
    assert numbers(images.split(0.5, 1)[0]) == numbers(images.split(0.5, 1)[0])
    assert numbers(images.split(0.5, 1)[0]) != numbers(images.split(0.5, 2)[0])


def test_split_errors():
    with pytest.raises(ValueError, match="the class 'bee': it has one image"):
        numbered((5, 1, 5)).split(0.5)
    with pytest.raises(ValueError, match=r"`fraction`.*below 1"):
        numbered().split(1)
    with pytest.raises(ValueError, match="`seed`"):
        numbered().split(0.5, seed=-1)


def test_few_shot():
    images = numbered()
    five = images.few_shot(5, seed=3)
    assert list(five.counts.values()) == [5, 5, 5]
    assert numbers(five) == numbers(images.few_shot(5, seed=3))
    assert numbers(five) != numbers(images.few_shot(5, seed=4))
    assert set(numbers(five)) < set(numbers(images.few_shot(8, seed=3)))


def test_few_shot_errors():
    with pytest.raises(ValueError) as error:
        numbered().few_shot(15)
    assert "'ant' (10)" in str(error.value) and "'bee'" not in str(error.value)
    with pytest.raises(ValueError, match=r"`k`.*positive integer"):
        numbered().few_shot(0)


def test_from_arrays():
    images = ImageSet.from_arrays([np.zeros((5, 7), np.uint8)] * 2, [0, 1])
    assert images.class_names == ("0", "1")
    assert images.arrays(4)[0].shape == (2, 4, 4, 3)
    for wrong in (np.zeros((1, 5, 7, 3)), np.zeros((1, 5, 7, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"`images`.*Received"):
            ImageSet.from_arrays(wrong, [0])


@pytest.mark.parametrize("labels", [[0], [0, 3], [0, -1], [0.0, 1.0], ["a", "b"]])
def test_wrong_labels(labels):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="`labels`"):
        ImageSet.from_arrays(images, labels, NAMES)


@pytest.mark.parametrize("labels", [["a", "b"], [0.0, 1.0]])
def test_wrong_labels_without_names(labels):
    with pytest.raises(ValueError, match="`labels`"):
        ImageSet.from_arrays(np.zeros((2, 4, 4, 3), np.uint8), labels)


def test_from_files(tmp_path):
    write_image(tmp_path / "a.png", 100)
    images = ImageSet.from_files([tmp_path / "a.png"], [1], NAMES)
    assert images.paths == (str(tmp_path / "a.png"),)
    assert run(images.batches(8))[0][1].tolist() == [1]


def test_batches_are_plain_typed_datasets(tree):
    dataset = from_directory(tree).batches((16, 24), 5)
    image, label = dataset.element_spec
    assert isinstance(dataset, tf.data.Dataset)
    assert image == tf.TensorSpec((None, 16, 24, 3), tf.float32)
    assert label == tf.TensorSpec((None,), tf.int64)
    assert len(dataset) == 3
    assert [len(y) for _, y in run(dataset)] == [5, 5, 2]
    full = from_directory(tree).batches(16, 5, drop_remainder=True)
    assert full.element_spec[0].shape == (5, 16, 16, 3)
    assert len(run(full)) == 2


def test_test_batches_keep_the_order(tree):
    images = from_directory(tree)
    first, second = run(images.batches(16)), run(images.batches(16))
    assert same(first, second)
    np.testing.assert_array_equal(first[0][1], images.labels)


@pytest.mark.parametrize(
    ("protocol", "cache"), [("default", False), ("improved", True)]
)
def test_epochs_repeat_bit_for_bit(tree, protocol, cache):
    images = from_directory(tree)
    options = {"protocol": protocol, "training": True, "cache": cache}
    tf.random.set_seed(1)
    first = images.batches(16, 4, seed=7, **options)
    tf.random.set_seed(2)  # must not matter
    second = images.batches(16, 4, seed=7, **options)
    epochs = [run(first) for _ in range(3)]
    assert all(same(epoch, run(second)) for epoch in epochs)
    assert not same(epochs[0], epochs[1]) and not same(epochs[1], epochs[2])
    assert not same(epochs[0], run(images.batches(16, 4, seed=8, **options)))
    assert sorted(np.concatenate([y for _, y in epochs[0]])) == images.labels.tolist()


def test_labels_stay_with_their_images_when_shuffled():
    images = numbered((100, 100), ("low", "high"))
    for x, y in run(images.batches(8, 7, training=True)):
        np.testing.assert_array_equal(x[:, 0, 0, 0] >= 100, y == 1)


def test_the_cache_changes_nothing_but_the_reading(tree):
    images = from_directory(tree)
    plain = images.batches(16, 5, training=True)
    cached = images.batches(16, 5, training=True, cache=True)
    for _ in range(3):
        assert same(run(plain), run(cached))
    for path in images.paths:
        open(path, "w").close()
    assert len(run(cached)) == 3
    with pytest.raises(Exception, match="the file is empty"):
        run(plain)


@pytest.mark.parametrize("protocol", ["default", "improved", "tllib"])
def test_the_cache_does_not_change_the_test_view(tree, protocol):
    images = from_directory(tree)
    options = {"protocol": protocol, "training": True}
    expected = run(images.batches(16, 5, protocol=protocol))
    for cache in (False, True):
        batches = images.batches(16, 5, cache=cache, **options)
        assert same(run(batches.as_tested()), expected)


@pytest.mark.parametrize("shuffle", [True, False])
def test_shuffling_and_augmentation_are_apart(shuffle):
    images = numbered()
    still = images.batches(12, 60, shuffle=shuffle)
    moving = images.batches(12, 60, training=True, shuffle=shuffle)
    for dataset in (still, moving):
        orders = [run(dataset)[0][0][:, 0, 0, 0].tolist() for _ in range(2)]
        assert (orders[0] != orders[1]) == shuffle


def test_augmentation_differs_between_epochs_and_images():
    one = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    images = ImageSet.from_arrays([one] * 8, [0] * 8)
    dataset = images.batches(32, 8, training=True, shuffle=False)
    (first, _), (second, _) = run(dataset)[0], run(dataset)[0]
    assert not np.array_equal(first, second)
    assert len(np.unique(first.reshape(8, -1), axis=0)) > 4


def test_repeat_goes_on_through_the_epochs():
    images = numbered()
    repeated = run(images.batches(12, 60, training=True).repeat(2))
    once = images.batches(12, 60, training=True)
    assert same(repeated, run(once) + run(once))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": (8, 8, 3)}, "`image_size`"),
        ({"image_size": 0}, "`image_size`"),
        ({"image_size": "88"}, "`image_size`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"protocol": "improve"}, "'improved'"),
        ({"ten_crop": True}, "`ten_crop`"),
        ({"protocol": "improved", "ten_crop": True, "training": True}, "`ten_crop`"),
        ({"seed": 1.5}, "`seed`"),
    ],
)
def test_batches_errors(options, message):
    with pytest.raises(ValueError, match=message):
        numbered().batches(**{"image_size": 8, **options})


def test_batches_of_nothing():
    with pytest.raises(ValueError, match="empty"):
        numbered().subset([]).batches(8)


def test_arrays(tree):
    images = from_directory(tree)
    x, y = images.arrays(16)
    assert x.shape == (12, 16, 16, 3) and x.dtype == np.float32
    assert x.min() >= 0 and x.max() <= 255
    np.testing.assert_array_equal(y, images.labels)
    rounded, _ = images.arrays(16, dtype="uint8")
    assert rounded.dtype == np.uint8
    np.testing.assert_array_equal(rounded, np.rint(x))
    assert images.arrays(8, protocol="improved", ten_crop=True)[0].shape[1] == 10
    with pytest.raises(ValueError, match="`dtype`"):
        images.arrays(16, dtype="float16")


def test_batches_under_a_distribution_strategy(tree):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    images = from_directory(tree)
    dataset = images.batches(16, 4, training=True)
    shared = strategy.experimental_distribute_dataset(dataset)
    seen = np.concatenate([y.numpy() for _, y in shared])
    assert sorted(seen) == images.labels.tolist()


def test_views_come_back_in_turn(tree):
    """Epoch e shows view `e % views`, each image the same one as two epochs ago."""
    images = from_directory(tree)
    options = {"protocol": "improved", "training": True, "shuffle": False}
    fixed = images.batches(16, 4, views=2, **options)
    epochs = [run(fixed) for _ in range(5)]
    assert same(epochs[0], epochs[2]) and same(epochs[0], epochs[4])
    assert same(epochs[1], epochs[3]) and not same(epochs[0], epochs[1])
    free = images.batches(16, 4, **options)
    assert [same(run(free), epoch) for epoch in epochs[:3]] == [True, True, False]


def test_views_leave_the_order_to_the_epoch():
    """An image looks the same in each epoch, and comes at another place."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 16, 16, 3), np.uint8)
    images = ImageSet.from_arrays(pixels, range(9))
    dataset = images.batches(8, 9, training=True, views=1)
    (first, y1), (second, y2) = run(dataset)[0], run(dataset)[0]
    assert y1.tolist() != y2.tolist()
    np.testing.assert_array_equal(first[np.argsort(y1)], second[np.argsort(y2)])
    (_, y3), (_, y4) = (run(images.batches(8, 9, training=True))[0] for _ in "ab")
    assert y3.tolist() == y4.tolist() == y1.tolist()


def test_wrong_views():
    with pytest.raises(ValueError, match=r"`views`.*positive integer or None"):
        numbered().batches(8, views=0)
    with pytest.raises(ValueError, match=r"`views`.*training=True"):
        numbered().batches(8, views=2)


@pytest.mark.parametrize("cache", [False, True])
def test_the_counter_of_epochs_can_be_set(cache):
    images = numbered()
    read, told = (images.batches(8, 7, training=True, cache=cache) for _ in "ab")
    for _ in range(3):
        run(read)
    told.epoch_counter.upcoming += 3
    assert same(run(read), run(told)) and same(run(read), run(told))
