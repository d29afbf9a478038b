"""`ImageSet.with_wrong_labels`: how many, which, and what stays."""

import numpy as np
import pytest

from keras_delta.data import ImageSet
from keras_delta.data.sampling import wrong_labels

NAMES = ("ant", "bee", "cat", "dog")


def labels_of(*per_class):
    """Labels in a mixed order."""
    labels = np.repeat(np.arange(len(per_class)), per_class)
    return np.random.default_rng(0).permutation(labels)


def numbered(per_class=(7, 6, 8, 9)):
    """Pictures, each of its own level of grey, which is its number."""
    labels = labels_of(*per_class)
    levels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ImageSet.from_arrays(np.tile(levels, (1, 12, 16, 3)), labels, NAMES)


def numbers(image_set):
    return image_set.arrays(4, dtype="uint8")[0][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5, 0.8, 0.99])
def test_exactly_that_share_of_each_class(fraction):
    per_class = (40, 5, 1, 103)
    labels = labels_of(*per_class)
    wrong = wrong_labels(labels, NAMES, fraction, seed=7)
    for label, count in enumerate(per_class):
        given = wrong[labels == label]
        assert (given != label).sum() == round(fraction * count)
    assert wrong.min() >= 0 and wrong.max() < 4
    assert labels.tolist() == labels_of(*per_class).tolist()  # untouched


def test_symmetric():
    """Each of the other classes as often, also one without images of its own."""
    labels = labels_of(3000, 3000, 0, 0)
    wrong = wrong_labels(labels, NAMES, 0.9, 1)
    for label in (0, 1):
        given = wrong[(labels == label) & (wrong != label)]
        shares = np.bincount(given, minlength=4) / len(given)
        expected = np.where(np.arange(4) == label, 0, 1 / 3)
        np.testing.assert_allclose(shares, expected, atol=0.04)


def test_any_place_is_hit():
    labels = np.zeros(30, int)
    hit = sum(wrong_labels(labels, NAMES, 0.3, seed) != 0 for seed in range(200))
    assert hit.min() > 30 and hit.max() < 90  # 60 on average


def test_nested():
    images = numbered()
    before = set()
    for fraction in (0.1, 0.2, 0.4, 0.6, 0.95):
        noisy = images.with_wrong_labels(fraction, seed=3).labels
        pairs = {(i, noisy[i]) for i in np.flatnonzero(noisy != images.labels)}
        assert before < pairs
        before = pairs


def test_seeded():
    images = numbered()
    first, second, other = (
        images.with_wrong_labels(0.5, seed).labels.tolist() for seed in (3, 3, 4)
    )
    assert first == second != other
    default = images.with_wrong_labels(0.5).labels.tolist()
    assert default == images.with_wrong_labels(0.5, seed=0).labels.tolist()


def test_images_and_names_stay():
    images = numbered()
    noisy = images.with_wrong_labels(0.4)
    assert numbers(noisy) == numbers(images)
    assert noisy.class_names == NAMES and len(noisy) == 30
    assert not noisy.labels.flags.writeable
    assert images.labels.tolist() == labels_of(7, 6, 8, 9).tolist()
    assert images.with_wrong_labels(0).labels.tolist() == images.labels.tolist()
    (_, given), *_ = noisy.batches(8, 30).as_numpy_iterator()
    assert given.tolist() == noisy.labels.tolist()


def test_other_images_than_few_shot_takes():
    """A share of 5 of 50 with the same seed: chance, not all of them."""
    images = numbered((50, 50, 50, 50))
    wrong = images.labels != images.with_wrong_labels(0.1).labels
    chosen = images.few_shot(5)
    assert wrong[numbers(chosen)].sum() < 8


def test_of_resized_sets_and_subsets():
    images = numbered()
    for training in (True, False):
        ready = images.resized(8, training=training)
        noisy = ready.with_wrong_labels(0.4, seed=2)
        expected = images.with_wrong_labels(0.4, seed=2)
        assert noisy.labels.tolist() == expected.labels.tolist()
        assert noisy.source is ready.source
        options = {"training": training, "seed": 1}
        for ours, theirs in zip(
            noisy.batches(8, 7, **options).as_numpy_iterator(),
            expected.batches(8, 7, **options).as_numpy_iterator(),
            strict=True,
        ):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])
    part, _ = images.split(0.5)
    noisy = part.with_wrong_labels(0.5)
    assert numbers(noisy) == numbers(part)
    for label in range(4):
        here = part.labels == label
        assert (noisy.labels[here] != label).sum() == round(0.5 * here.sum())
    empty = images.subset([]).with_wrong_labels(0.5)
    assert len(empty) == 0


def test_bad_numbers():
    with pytest.raises(ValueError, match=r"`fraction`.*below 1"):
        numbered().with_wrong_labels(1)
    with pytest.raises(ValueError, match="`seed`"):
        numbered().with_wrong_labels(0.5, seed=-1)


def test_one_class_has_no_wrong_labels():
    images = ImageSet.from_arrays(np.zeros((2, 4, 4, 3), np.uint8), [0, 0])
    with pytest.raises(ValueError) as error:
        images.with_wrong_labels(0.5)
    assert str(error.value) == (
        "Cannot assign wrong labels: they come from the other classes, and there are "
        "1 classes. Name at least two."
    )
