"""`fold_indices`, `ImageSet.folds` and `ImageSet.resized`."""

import numpy as np
import pytest
from picture_files import write_image

from keras_delta.data import ImageSet
from keras_delta.data.sampling import fold_indices
from keras_delta.data.sources import FileSource

NAMES = ("ant", "bee", "cat")


def labels_of(*per_class):
    return np.repeat(np.arange(len(per_class)), per_class)


def numbered(per_class=(7, 6, 8)):
    """Pictures of 12 by 16, each of its own level of grey, which is its number."""
    levels = np.arange(sum(per_class), dtype=np.uint8)[:, None, None, None]
    images = np.tile(levels, (1, 12, 16, 3))
    return ImageSet.from_arrays(images, labels_of(*per_class), NAMES)


def noisy(count=12):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 20, 14, 3)).astype("uint8")
    return ImageSet.from_arrays(images, np.arange(count) % 3, NAMES)


def numbers(image_set):
    return image_set.arrays(4, dtype="uint8")[0][:, 0, 0, 0].tolist()


def run(dataset):
    """All batches of one epoch."""
    return list(dataset.as_numpy_iterator())


def same(first, second):
    return all(
        np.array_equal(x1, x2) and np.array_equal(y1, y2)
        for (x1, y1), (x2, y2) in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("per_class", [(5, 5, 5), (7, 6, 8), (5, 19, 103), (9,)])
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_fold_indices(per_class, folds):
    labels = labels_of(*per_class)
    rng = np.random.default_rng(1)
    labels = labels[rng.permutation(len(labels))]
    parts = fold_indices(labels, range(len(per_class)), folds, seed=7)
    assert len(parts) == folds
    joined = np.concatenate(parts)
    assert sorted(joined) == list(range(len(labels)))  # each once
    assert all((np.diff(part) > 0).all() for part in parts)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    counts = np.array([np.bincount(labels[p], minlength=len(per_class)) for p in parts])
    assert (np.ptp(counts, axis=0) <= 1).all()  # stratified
    assert counts.min() >= 1


def test_fold_indices_are_seeded():
    labels = labels_of(10, 10)

    def flat(seed):
        return np.concatenate(fold_indices(labels, NAMES[:2], 5, seed)).tolist()

    assert flat(3) == flat(3) == flat(np.int64(3))
    assert flat(3) != flat(4)


def test_a_class_without_images_is_no_obstacle():
    parts = fold_indices(labels_of(4, 0, 4), NAMES, 2, 0)
    assert [len(p) for p in parts] == [4, 4]


def test_too_few_names_the_classes():
    with pytest.raises(ValueError) as e:
        fold_indices(labels_of(2, 9, 1), NAMES, 3, 0)
    assert str(e.value) == (
        "Invalid value for argument `folds`. Expected at most the number of samples in "
        "each class. Received: folds=3. Classes with fewer samples: 'ant' (2), 'cat' "
        "(1). Use fewer folds, add samples, or remove the class."
    )


def test_bad_numbers():
    with pytest.raises(ValueError, match=r"`folds`.*an integer of 2 or more"):
        fold_indices(labels_of(9), NAMES[:1], 1, 0)
    with pytest.raises(ValueError, match="`seed`"):
        fold_indices(labels_of(9), NAMES[:1], 3, -1)


def test_nothing_to_cut():
    with pytest.raises(ValueError, match="Cannot cut the data into folds"):
        fold_indices(np.zeros(0, int), (), 2, 0)
    with pytest.raises(ValueError, match="Cannot cut the data into folds"):
        numbered().subset([]).folds(2)


def test_folds_of_an_image_set():
    images = numbered()
    found = images.folds(3, seed=2)
    assert len(found) == 3
    held_out = []
    for training, part in found:
        assert sorted(numbers(training) + numbers(part)) == list(range(21))
        assert training.class_names == part.class_names == NAMES
        assert part.labels.tolist() == images.labels[numbers(part)].tolist()
        held_out += numbers(part)
    assert sorted(held_out) == list(range(21))
    again = images.folds(3, seed=2)
    assert [numbers(p) for _, p in again] == [numbers(p) for _, p in found]
    other = images.folds(3, seed=3)
    assert [numbers(p) for _, p in other] != [numbers(p) for _, p in found]


def test_five_folds_are_the_default():
    assert len(numbered().folds()) == 5
    with pytest.raises(ValueError, match=r"'bee' \(6\)"):
        numbered().folds(7)


@pytest.mark.parametrize(
    ("protocol", "training"), [("default", True), ("improved", False)]
)
def test_resized_gives_the_same_batches(protocol, training):
    """Bit for bit, over epochs, and for what is made of it."""
    images = noisy()
    ready = images.resized(8, protocol=protocol, training=training)
    for ours, theirs in (
        (ready, images),
        (ready.subset([7, 3, 3]), images.subset([7, 3, 3])),
        (ready.folds(2)[1][0], images.folds(2)[1][0]),
        (ready.split(0.5)[0], images.split(0.5)[0]),
        (ready.few_shot(2), images.few_shot(2)),
    ):
        fast, slow = (
            each.batches(8, 4, protocol=protocol, training=training, seed=3)
            for each in (ours, theirs)
        )
        for _ in range(2):
            assert same(run(fast), run(slow))
    assert ready.class_names == NAMES and len(ready) == 12
    assert ready.labels.tolist() == images.labels.tolist()


def test_resized_serves_a_cache_as_well():
    images = noisy()
    ready = images.resized(8, training=True)
    fast, slow = (s.batches(8, 4, training=True, cache=True) for s in (ready, images))
    assert same(run(fast), run(slow))


def test_resized_for_ten_crops():
    images = noisy()
    ready = images.resized(8, protocol="improved")
    first, _ = ready.arrays(8, protocol="improved", ten_crop=True)
    second, _ = images.arrays(8, protocol="improved", ten_crop=True)
    assert first.shape == (12, 10, 8, 8, 3)
    assert np.array_equal(first, second)


def test_training_and_test_at_once():
    images = noisy()
    both = images.resized((8, 6), training=(True, False))
    assert isinstance(both, tuple)
    for ready, training in zip(both, (True, False), strict=True):
        fast, slow = (
            each.batches((8, 6), 4, training=training, seed=3)
            for each in (ready, images)
        )
        assert same(run(fast), run(slow))


@pytest.fixture
def counted_files(tmp_path, monkeypatch):
    """(an `ImageSet` of six files, list of the numbers that were read)."""
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        write_image(path, 30 * i)
    read, inner = [], FileSource.read

    def counted(self, index):
        read.append(int(index))
        return inner(self, index)

    monkeypatch.setattr(FileSource, "read", counted)
    return ImageSet.from_files(paths, np.arange(6) % 2, ("a", "b")), read


def test_each_file_is_decoded_once(counted_files):
    images, read = counted_files
    for ready in images.resized(8, training=(True, False)):
        assert ready.paths is None  # in memory
    assert sorted(read) == list(range(6))
    ready = images.resized(8)
    del read[:]
    run(ready.batches(8))
    run(ready.folds(2)[0][0].batches(8))
    assert read == []
    run(images.batches(8))
    assert sorted(read) == list(range(6))


def test_resized_twice_is_nothing_to_do(counted_files):
    images, read = counted_files
    ready = images.resized(8)
    del read[:]
    again = ready.resized(8)
    assert again.source is ready.source and read == []


@pytest.mark.parametrize(
    ("size", "kwargs"),
    [(9, {}), (8, {"protocol": "improved"}), (8, {"training": True})],
    ids=str,
)
def test_resized_is_for_the_same_arguments_alone(size, kwargs):
    ready = noisy().resized(8)
    for use in (ready.batches, ready.resized, ready.subset([1, 2]).batches):
        with pytest.raises(ValueError) as e:
            use(size, **kwargs)
        assert str(e.value).startswith(
            "The images were resized for ('default', (8, 8), False) and cannot be used "
            f"for ('{kwargs.get('protocol', 'default')}', ({size}, {size}), "
            f"{kwargs.get('training', False)})"
        )


def test_resized_refuses():
    with pytest.raises(ValueError, match="image_size"):
        noisy().resized(0)
    with pytest.raises(ValueError, match="protocol"):
        noisy().resized(8, protocol="best")
