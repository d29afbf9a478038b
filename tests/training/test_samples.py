"""Training data read outside of `fit`, and labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta._inputs import labels, samples, training_data
from keras_delta._inputs.look import Samples

X, Y = np.arange(20.0).reshape(10, 2), np.arange(10)
WEIGHTS = {"sample_weight": None}


class Pairs(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4]


def dataset(size=4):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(size)


FORMS = {
    "arrays": lambda: (X, Y),
    "tuple": lambda: ((X, Y), None),
    "dataset": lambda: (dataset(), None),
    "pydataset": lambda: (Pairs(), None),
    "tensors": lambda: (tf.constant(X), tf.constant(Y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_in_order(form):
    got = list(samples.batches(*FORMS[form](), batch_size=4))
    assert [len(y) for _, y in got] == [4, 4, 2]
    assert all(type(v) is np.ndarray for pair in got for v in pair)
    np.testing.assert_allclose(np.concatenate([x for x, _ in got]), X)
    np.testing.assert_array_equal(np.concatenate([y for _, y in got]), Y)


@pytest.mark.parametrize("form", FORMS)
def test_max_samples(form):
    """Of arrays any, in their order, and the same each time: they may be sorted."""
    given = {"batch_size": 4, "max_samples": 6}
    got = list(samples.batches(*FORMS[form](), **given))
    assert [len(y) for _, y in got] == [4, 2]
    expected = np.arange(6)
    if form in ("arrays", "tuple", "tensors"):
        drawn = np.random.default_rng(0).choice(10, 6, replace=False)
        expected = np.sort(drawn)
        assert expected.max() > 6
    np.testing.assert_array_equal(np.concatenate([y for _, y in got]), Y[expected])
    np.testing.assert_array_equal(np.concatenate([x for x, _ in got]), X[expected])


def test_max_samples_takes_their_weights_along():
    weights = {"sample_weight": np.arange(10) / 10, "class_weight": None}
    got = samples.batches(X, Y, max_samples=6, weights=weights)
    ((x, _, found),) = got
    rows = [np.flatnonzero((row == X).all(1))[0] for row in x]
    np.testing.assert_allclose(found, weights["sample_weight"][rows])


def test_sample_weights_are_left_out():
    data = tf.data.Dataset.from_tensor_slices((X, Y, np.ones(10))).batch(10)
    ((x, y),) = samples.batches(data)
    assert x.shape == (10, 2) and y.shape == (10,)
    ((x, y),) = samples.batches((X, Y, np.ones(10)))
    assert x.shape == (10, 2) and y.shape == (10,)


def test_structures():
    x = {"a": X, "b": X[:, :1]}
    (first, *_) = samples.batches(x, Y, batch_size=4)
    assert {k: v.shape for k, v in first[0].items()} == {"a": (4, 2), "b": (4, 1)}


def test_generators_are_refused_unread():
    read = []

    def generate():
        read.append(1)
        yield X, Y

    with pytest.raises(ValueError) as e:
        list(samples.batches(generate()))
    assert str(e.value) == (
        "A generator can be read only once, so checking it would use it up. Pass "
        "arrays, a tf.data.Dataset or a keras.utils.PyDataset; or let `fit` read it, "
        "which also trains on the samples it has checked."
    )
    assert read == []


def test_data_without_end_needs_a_number():
    with pytest.raises(ValueError, match=r"no end.*`max_samples=256`"):
        list(samples.batches(dataset().repeat()))
    got = samples.batches(dataset().repeat(), max_samples=23)
    assert sum(len(y) for _, y in got) == 23


@pytest.mark.parametrize(
    "data",
    [tf.data.Dataset.from_tensor_slices(X).batch(4), X],
    ids=["dataset", "array"],
)
def test_targets_are_needed(data):
    with pytest.raises(ValueError) as e:
        list(samples.batches(data))
    assert str(e.value) == "The data has no targets: pass `(x, y)`."


def test_an_image_set_is_not_data_yet():
    class ImageSet:
        def batches(self, size):
            raise AssertionError

        def __repr__(self):
            return "ImageSet()"

    with pytest.raises(TypeError) as e:
        list(samples.batches(ImageSet()))
    assert str(e.value) == (
        "Invalid value for argument `x`. Expected a tf.data.Dataset. Received: "
        "x=ImageSet(). Call `.batches(image_size)` on it."
    )


def test_collect_chooses_from_arrays_over_all_of_them():
    """The first ones may be of one class alone; the choice is always the same."""
    ((x, y),) = samples.collect(X, Y, 4)
    assert len(y) == 4 and sorted(set(y)) == list(y) and y.max() > 4
    np.testing.assert_array_equal(x, X[y])
    np.testing.assert_array_equal(samples.collect((X, Y), None, 4)[0][1], y)


@pytest.mark.parametrize("count", [None, 10, 99])
def test_collect_takes_all_of_few(count):
    ((x, y),) = samples.collect(X, Y, count)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_collect_reads_the_beginning_of_a_dataset():
    x, y = Samples(lambda n: samples.collect(dataset(), None, n, WEIGHTS))(6)
    np.testing.assert_allclose(x, X[:6])
    np.testing.assert_array_equal(y, Y[:6])


FORMS_OF_WEIGHTED = {
    "arrays": lambda w: (X, Y, {"sample_weight": w}),
    "dataset": lambda w: (
        tf.data.Dataset.from_tensor_slices((X, Y, w)).batch(3),
        None,
        WEIGHTS,
    ),
}


@pytest.mark.parametrize("form", FORMS_OF_WEIGHTED)
def test_a_regularizer_sees_no_sample_of_weight_zero(form):
    given = np.array([1, 0, 0, 0, 0, 0, 2, 1, 0, 1.0])
    x, y, weights = FORMS_OF_WEIGHTED[form](given)
    found = Samples(lambda n: samples.collect(x, y, n, weights))()
    np.testing.assert_array_equal(found[1], [0, 6, 7, 9])
    np.testing.assert_array_equal(found[0], X[[0, 6, 7, 9]])


def test_collect_needs_samples():
    with pytest.raises(ValueError) as e:
        samples.collect(dataset().take(0), None, 6)
    assert str(e.value) == ("The training data is empty: it yields no samples.")


def test_without_validation_is_what_keras_trains_on():
    seen = []
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", lambda y, p: seen.append(y.numpy()) or p, run_eagerly=True)
    model.fit(X, Y, 99, 1, 0, shuffle=False, validation_split=0.25)
    trained_on = next(y for y in seen if len(y) > 1)
    _, y = samples.without_validation(X, Y, 0.25)
    np.testing.assert_array_equal(y, trained_on.ravel())
    np.testing.assert_array_equal(y, Y[:7])
    assert samples.without_validation(X, Y, 0.0)[1] is Y
    data = dataset()
    assert samples.without_validation(data, None, 0.25)[0] is data


def test_take_and_length():
    data = {"a": X, "b": (Y, Y)}
    part = samples.take(data, 2, 5)
    np.testing.assert_array_equal(part["b"][1], [2, 3, 4])
    assert samples.length(data) == 10 and samples.length(part) == 3


# Labels --------------------------------------------------------------------------


def test_chance_is_the_entropy_of_the_labels():
    y = np.array([0, 0, 0, 1])
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    for loss in (
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
    ):
        assert labels.chance([y[:2], y[2:]], loss) == pytest.approx(expected)
        assert labels.chance([y[:, None]], loss) == pytest.approx(expected)
    dense = keras.losses.CategoricalCrossentropy()
    assert labels.chance([np.eye(3)[y]], dense) == pytest.approx(expected)
    assert labels.chance([y], "mse") is None
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=9)
    half = [y, np.full(len(y), 9)]
    assert labels.chance(half, ignoring) == pytest.approx(expected / 2)


def test_loss_name():
    assert labels.loss_name("mse") == "mse"
    assert labels.loss_name(keras.losses.Huber()) == "Huber"
    assert labels.loss_name(keras.losses.huber) == "huber"
    assert labels.loss_name({"a": "mse"}) is None


def test_count_is_at_most():
    """A last batch that is dropped is another one in each epoch."""
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(10)
    assert samples.count(data.batch(4, drop_remainder=True), 4) >= 10
    assert samples.count(data.batch(4), 4) >= 10
    assert samples.count(X, None) == 10
    images = kd.data.ImageSet.from_arrays(np.zeros((9, 8, 8, 3), "uint8"), [0] * 9)
    batches = images.batches(8, 4, training=True, drop_remainder=True)
    assert samples.count(batches, 4) == 9


def test_a_batch_of_zeros_has_the_sizes_of_the_network():
    def unknown(x, y):
        x = tf.numpy_function(lambda v: v, [x], tf.float32)
        return tf.ensure_shape(x, (None, None, 3)), y

    data = tf.data.Dataset.from_tensors((tf.zeros((6, 5, 3)), 1)).map(unknown).batch(4)
    inputs = [keras.Input((6, 5, 3))]
    x, y = training_data.batch_spec(data, inputs)
    assert (x.shape, y.shape, y.dtype) == ((2, 6, 5, 3), (2,), tf.int32)
    x, _ = training_data.batch_spec(data, [keras.Input((None, None, 3))])
    assert x.shape == (2, 1, 1, 3)
