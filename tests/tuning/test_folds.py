"""`cut`: the data of a search in folds, each of which begins anew when asked for."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_delta.data import ImageSet
from keras_delta.data.sources import MemorySource
from keras_delta.tuning.folds import cut

SIZE = 6
COUNTS = (11, 8, 6)
LABELS = np.repeat(np.arange(3), COUNTS)
COUNT = len(LABELS)


def arrays(seed=0):
    """Samples whose first pixel is their number, in mixed order, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(COUNT, SIZE, SIZE, 3)).astype("float32")
    x[:, 0, 0, 0] = np.arange(COUNT)
    order = rng.permutation(COUNT)
    return x[order], LABELS[order]


def photos(count=24):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 12, 10, 3)).astype("uint8")
    images[:, 0, 0, 0] = np.arange(count)
    return ImageSet.from_arrays(images, np.arange(count) % 3, ("ant", "bee", "cat"))


def folded(x, y=None, **options):
    given = {
        "folds": 3,
        "seed": 0,
        "batch_size": 4,
        "image_size": None,
        "views": None,
        "protocol": "default",
        "batches": None,
    }
    return cut(x, y, **{**given, **options})


def run(dataset):
    """All batches of one epoch, as NumPy arrays."""
    return [
        keras.tree.map_structure(np.asarray, batch)
        for batch in dataset.as_numpy_iterator()
    ]


def numbers(dataset):
    """The number of each sample of an epoch, in order."""
    found = []
    for x, _ in run(dataset):
        found += keras.tree.flatten(x)[0][:, 0, 0, 0].astype(int).tolist()
    return found


def assert_same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, one, two)


def different(first, second):
    return any(
        a.shape != b.shape or not np.array_equal(a, b)
        for (a, _), (b, _) in zip(first, second, strict=True)
    )


# Which sample is where


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_each_sample_is_held_out_once(folds):
    x, y = arrays()
    data = folded(x, y, folds=folds)
    assert len(data) == folds
    held_out = [numbers(data.held_out(k)) for k in range(folds)]
    assert sorted(itertools.chain(*held_out)) == list(range(COUNT))
    sizes = [len(part) for part in held_out]
    assert max(sizes) - min(sizes) <= 1
    for k in range(folds):
        rest = numbers(data.train(k))
        assert sorted(rest + held_out[k]) == list(range(COUNT))
    assert sorted(numbers(data.train(None))) == list(range(COUNT))


def test_samples_keep_their_labels():
    x, y = arrays()
    of_number = dict(zip(x[:, 0, 0, 0].astype(int), y, strict=True))
    data = folded(x, y)
    for dataset in (data.train(1), data.held_out(1), data.train(None)):
        for bx, by in run(dataset):
            found = [of_number[int(n)] for n in bx[:, 0, 0, 0]]
            assert by.tolist() == found


def one_hot(y):
    return np.eye(3, dtype="float32")[y]


FORMS = {
    "integers": lambda y: y,
    "column": lambda y: y[:, None],
    "int8": lambda y: y.astype("int8"),
    "one_hot": one_hot,
    "one_hot_integers": lambda y: one_hot(y).astype(int),
    "tensor": tf.constant,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_stratified_whatever_the_form_of_the_labels(form):
    x, y = arrays()
    data = folded(x, form(y))
    plain = folded(x, y)
    for k in range(3):
        held_out = plain.parts.held_out[k]
        assert data.parts.held_out[k].tolist() == held_out.tolist()
        counts = np.bincount(y[held_out], minlength=3)
        assert (np.abs(counts - np.array(COUNTS) / 3) < 1).all()


def test_booleans_are_two_classes():
    x, y = arrays()
    data = folded(x, y == 0)
    counts = [int((y[part] == 0).sum()) for part in data.parts.held_out]
    assert sorted(counts) == [3, 4, 4]


@pytest.mark.parametrize(
    "y",
    [
        np.linspace(0, 1, COUNT),
        np.linspace(0, 1, 2 * COUNT).reshape(COUNT, 2),
        {"value": np.linspace(-1, 1, COUNT), "class": LABELS},
        [LABELS, LABELS],
    ],
    ids=["numbers", "vectors", "dict", "list"],
)
def test_what_is_not_of_classes_is_cut_at_random(y):
    data = folded(arrays()[0], y)
    parts = data.parts.held_out
    assert sorted(np.concatenate(parts)) == list(range(COUNT))
    assert sorted(map(len, parts)) == [8, 8, 9]
    ((_, by), *_) = run(data.held_out(0))
    keras.tree.map_structure(
        lambda ours, given: np.testing.assert_array_equal(ours, given[parts[0]]),
        by,
        tuple(y) if isinstance(y, list) else y,
    )


def test_the_seed_decides():
    x, y = arrays()
    first, same, other = (folded(x, y, seed=s) for s in (1, 1, 2))
    assert_same(run(first.train(0)), run(same.train(0)))
    assert numbers(first.held_out(0)) == numbers(same.held_out(0))
    assert numbers(first.held_out(0)) != numbers(other.held_out(0))


def test_structures_of_inputs():
    x, y = arrays()
    given = {"image": x, "extra": (np.arange(COUNT)[:, None], -np.arange(COUNT))}
    data = folded(given, y)
    number_of = dict(zip(x[:, 0, 0, 0].astype(int), range(COUNT), strict=True))
    for bx, _ in run(data.train(2)):
        row = [number_of[int(n)] for n in bx["image"][:, 0, 0, 0]]
        assert bx["extra"][0][:, 0].tolist() == row
        assert (-bx["extra"][1]).tolist() == row


def test_a_pair_is_data():
    x, y = arrays()
    assert folded((x, y)).digest == folded(x, y).digest


# What is refused


def test_too_few_samples_in_a_class_are_named():
    x, y = arrays()
    with pytest.raises(ValueError) as e:
        folded(x, y, folds=7)
    assert "`folds`" in str(e.value) and "2 (6)" in str(e.value)
    with pytest.raises(ValueError, match=r"2 \(6\)"):
        folded(x, one_hot(y), folds=7)
    with pytest.raises(ValueError, match=r"'all samples' \(25\)"):
        folded(x, y.astype("float32"), folds=26)
    with pytest.raises(ValueError, match=r"'ant' \(8\)"):
        folded(photos(), folds=9, image_size=8)


def test_labels_are_checked_before_they_are_counted():
    def check(y):
        raise ValueError(f"{y.max()} classes?")

    x, y = arrays()
    with pytest.raises(ValueError, match="1000000002 classes"):
        folded(x, y + 10**9, check=check)


def test_different_lengths():
    x, y = arrays()
    with pytest.raises(ValueError) as e:
        folded(x, y[:-1])
    assert str(e.value) == (
        "All arrays must have the same number of samples. Received: "
        "[(25, 6, 6, 3), (24,)]."
    )


@pytest.mark.parametrize("kind", ["arrays", "images", "dataset"])
def test_no_data(kind):
    x, y = arrays()
    given = {
        "arrays": (x[:0], y[:0]),
        "images": (photos().subset([]), None),
        "dataset": (tf.data.Dataset.from_tensor_slices((x, y)).batch(4).take(0), None),
    }[kind]
    with pytest.raises(ValueError, match="empty"):
        folded(*given, image_size=8)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((9, 2)), None),
        ("photos", None),
        (None, None),
        ([[1.0], [2.0]], [0, 1]),
        (np.zeros((3, 2)), [0, 1, 1]),
    ],
    ids=["no_targets", "text", "nothing", "lists", "list_of_labels"],
)
def test_other_data(x, y):
    with pytest.raises(TypeError, match=r"`x`.*ImageSet, arrays \(x, y\), or a tf"):
        folded(x, y)


def test_images_bring_their_labels():
    with pytest.raises(ValueError, match="`y`"):
        folded(photos(), np.arange(24), image_size=8)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="`seed`"):
        folded(*arrays(), seed=seed)


def test_bad_batches():
    with pytest.raises(TypeError, match=r"`batches`.*\(part, training\)"):
        folded(*arrays(), batches=3)


# tf.data


def test_a_dataset_is_read_into_memory():
    x, y = arrays()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    ours, theirs = folded(dataset), folded(x, y)
    assert ours.digest == theirs.digest
    for k in range(3):
        assert_same(run(ours.train(k)), run(theirs.train(k)))
        assert_same(run(ours.held_out(k)), run(theirs.held_out(k)))


def augmented(x, y):
    rng = np.random.default_rng(0)

    def change(image):
        return (image + rng.normal(size=image.shape)).astype("float32")

    def on(image, label):
        new = tf.numpy_function(change, [image], tf.float32)
        return tf.ensure_shape(new, image.shape), label

    return tf.data.Dataset.from_tensor_slices((x, y)).map(on)


def test_random_augmentation_is_refused():
    x, y = (np.concatenate([a] * 2) for a in arrays())
    with pytest.raises(ValueError) as e:
        folded(augmented(x, y).batch(4))
    assert str(e.value) == (
        "A search cuts its data into folds, which is impossible for a tf.data.Dataset "
        "that is endless or has random augmentation. Pass the data without "
        "augmentation, and the augmentation as `batches`."
    )
    with pytest.raises(ValueError, match="random augmentation"):
        folded(photos().batches(8, 4, training=True))
    with pytest.raises(ValueError, match="random augmentation"):
        folded(photos().batches(8, 4, training=True, views=2))


def test_shuffled_data_would_give_other_folds_the_next_time():
    x, y = arrays()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(COUNT).batch(4)
    for data in (dataset, photos().batches(8, 4, shuffle=True)):
        with pytest.raises(ValueError, match=r"a different order each time.*`shuffle`"):
            folded(data)


def test_data_without_end():
    x, y = arrays()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).repeat()
    with pytest.raises(ValueError, match="is endless"):
        folded(dataset)


def test_other_datasets_are_refused_for_what_they_lack():
    x, y = arrays()
    slices = tf.data.Dataset.from_tensor_slices
    with pytest.raises(ValueError, match=r"one sample at a time. Batch it"):
        folded(slices((x, y)))
    with pytest.raises(ValueError, match="no targets"):
        folded(slices(x).batch(4))
    with pytest.raises(ValueError, match="takes no sample weights"):
        folded(slices((x, y, np.ones(COUNT))).batch(4))


# Each call begins anew


def kinds():
    x, y = arrays()
    return {
        "arrays": lambda: folded(x, y),
        "images": lambda: folded(photos(), image_size=8),
        "views": lambda: folded(photos(), image_size=8, views=2),
        "improved": lambda: folded(photos(), image_size=8, protocol="improved"),
    }


@pytest.fixture(params=["arrays", "views"])
def make(request):
    return kinds()[request.param]


def test_training_begins_anew_bit_for_bit(make):
    data = make()
    first = [run(data.train(1)) for _ in range(2)]
    epochs = data.train(1)
    one, two, three = (run(epochs) for _ in range(3))
    assert_same(first[0], first[1])
    assert_same(first[0], one)
    assert different(one, two) and different(two, three)

    # Whatever was read in between, of this fold or another, in part or whole.
    run(data.train(0)), run(data.held_out(1)), run(data.train(None))
    next(iter(data.train(1)))
    keras.utils.set_random_seed(99)
    again = data.train(1)
    for expected in (one, two, three):
        assert_same(run(again), expected)


def test_another_process_gets_the_same_batches(make):
    keras.utils.set_random_seed(1)
    first, dataset = make(), None
    dataset = first.train(2)
    expected = [run(dataset) for _ in range(2)]
    keras.utils.set_random_seed(2)
    dataset = make().train(2)
    for epoch in expected:
        assert_same(run(dataset), epoch)


def test_what_is_held_out_is_always_the_same(make):
    data = make()
    dataset = data.held_out(0)
    first = run(dataset)
    assert_same(first, run(dataset))
    assert_same(first, run(data.held_out(0)))
    assert len(first[0][1]) == min(32, sum(len(y) for _, y in first))


def test_digests_tell_data_apart(make):
    assert make().digest == make().digest
    assert len({kinds()[k]().digest for k in kinds()}) >= 2
    x, y = arrays()
    changed = x.copy()
    changed[3, 2, 2, 1] += 1e-3
    swapped = y.copy()
    swapped[[0, 1]] = y[[1, 0]] if y[0] != y[1] else (y[0] + 1) % 3
    digests = {folded(*d).digest for d in ((x, y), (changed, y), (x, swapped))}
    assert len(digests) == 3


def test_the_size_of_the_data_is_known(make):
    """`fit` and the cache of source maps ask for it."""
    data = make()
    assert int(data.train(0).cardinality()) == len(run(data.train(0)))
    assert data.train(0).element_spec[0].shape[0] is None


# ImageSet


@pytest.fixture
def reads(monkeypatch):
    """Numbers of the images that were read from their source, as they were."""
    read, inner = [], MemorySource.read

    def counted(self, index):
        if self.resized_for is None:
            read.append(int(index))
        return inner(self, index)

    monkeypatch.setattr(MemorySource, "read", counted)
    return read


def test_each_image_is_decoded_once(reads):
    data = folded(photos(), image_size=8)
    data.digest  # noqa: B018
    for k in range(3):
        for _ in range(2):
            run(data.train(k)), run(data.held_out(k))
    run(data.train(None))
    assert sorted(reads) == list(range(24))


@pytest.mark.parametrize("protocol", ["improved"])
def test_images_are_prepared_as_by_batches(protocol):
    """The parts are those of `ImageSet.folds`, prepared for training and for a test."""
    images = photos()
    data = folded(images, seed=4, image_size=(8, 6), views=2, protocol=protocol)
    for k, (training, part) in enumerate(images.folds(3, seed=4)):
        options = {"protocol": protocol, "seed": 4}
        slow = training.batches((8, 6), 4, training=True, views=2, **options)
        fast = data.train(k)
        for _ in range(3):
            assert_same(run(fast), run(slow))
        test = part.batches((8, 6), 32, protocol=protocol)
        assert_same(run(data.held_out(k)), run(test))


def test_views_are_known_to_a_cache():
    assert folded(photos(), image_size=8, views=2).train(0).image_views == 2
    assert folded(photos(), image_size=8).train(0).image_views == np.inf


# Batches of one's own


def test_batches_of_ones_own():
    calls = []

    def batches(part, training):
        x, y = part
        calls.append((len(y), training))
        return tf.data.Dataset.from_tensor_slices((2 * x, y)).batch(5)

    x, y = arrays()
    data, plain = folded(x, y, batches=batches), folded(x, y)
    assert len(data) == 3
    rows = plain.parts.held_out[1]
    assert_same(
        run(data.held_out(1)),
        [(2 * x[part], y[part]) for part in (rows[:5], rows[5:])],
    )
    assert numbers(data.train(1)) == [
        2 * n for n in x[plain.parts.training(1), 0, 0, 0].astype(int)
    ]
    assert numbers(data.train(None)) == (2 * x[:, 0, 0, 0]).astype(int).tolist()
    counts = [(len(rows), False), (COUNT - len(rows), True), (COUNT, True)]
    assert calls == counts


def test_batches_of_ones_own_get_an_image_set(reads):
    def batches(part, training):
        assert isinstance(part, ImageSet)
        return part.batches(8, 4, training=training, seed=2)

    images = photos()
    data = folded(images, batches=batches)  # without an image size
    assert reads == []
    training, part = images.folds(3)[1]
    assert_same(run(data.train(1)), run(training.batches(8, 4, training=True, seed=2)))
    assert_same(run(data.held_out(1)), run(part.batches(8, 4)))


def test_digests_of_batches_of_ones_own():
    def make(factor):
        def batches(part, training):
            x, y = part
            return tf.data.Dataset.from_tensor_slices((factor * x, y)).batch(5)

        return folded(*arrays(), batches=batches).digest

    assert make(2) == make(2) != make(3)


def test_what_counts_as_classes_depends_on_the_task():
    x, y = arrays()
    whole, signs = (y == 0).astype("float32"), 2 * (y == 0) - 1
    counts = {
        task: [
            [int((v[part] == v.max()).sum()) for part in folded(x, v, task=task)
             .parts.held_out]
            for v in (whole, signs)
        ]
        for task in (None, "binary", "regression")
    }  # fmt: skip
    even = [4, 4, 3]
    assert sorted(counts["binary"][0]) == sorted(even)
    assert sorted(counts[None][1]) == sorted(counts["binary"][1]) == sorted(even)
    assert counts[None][0] == counts["regression"][0] == counts["regression"][1]
    for task in ("regression", "multilabel", "dense"):
        folded(x, np.arange(COUNT), task=task)
