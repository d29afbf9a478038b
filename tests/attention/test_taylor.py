"""First-order scores: `-sum a * dL/da`, per sample."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta.attention import ChannelAttention

pytestmark = pytest.mark.filterwarnings("ignore:The head is no better than chance")
TAPS = ["conv0", "conv1", "conv2"]


def data(count):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(count, 16, 16, 3)).astype("float32")
    return x, rng.integers(0, 3, count)


def compute(model, given, taps=TAPS, **kwargs):
    kwargs = {"method": "taylor", "progress": False, **kwargs}
    return ChannelAttention.compute(model, given, taps, **kwargs)


@pytest.fixture
def model(bn_backbone):
    return kd.attach_head(bn_backbone, 3)


def oracle(model, tap, x, y):
    """Effects `(N, C)` with TensorFlow's own tape and a model cut in two."""
    maps = model.get_layer(tap).output
    front, back = keras.Model(model.input, maps), keras.Model(maps, model.output)
    a = tf.convert_to_tensor(front(x, training=False))
    with tf.GradientTape() as tape:
        tape.watch(a)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, back(a))
    return -np.sum(a * tape.gradient(losses, a), axis=(1, 2))


@pytest.mark.parametrize("count", [70, 3])
def test_scores_and_errors_equal_the_tapes(count, model):
    """Two batches and a part of one; a part of one alone."""
    x, y = data(count)
    found = compute(model, (x, y))
    for tap in TAPS:
        each = oracle(model, tap, x, y)
        assert np.abs(each.mean(axis=0)).max() > 1e-2
        np.testing.assert_allclose(found.scores[tap], each.mean(axis=0), atol=1e-6)
        errors = each.std(axis=0, ddof=1) / count**0.5
        np.testing.assert_allclose(found.standard_errors[tap], errors, rtol=1e-4)
    assert found.samples == count and found.counts is None
    assert found.made_of["method"] == "taylor"


def test_exact_where_the_loss_is_linear_in_the_maps():
    inputs = keras.Input((10, 10, 3))
    x = keras.layers.Conv2D(4, 3, name="tap")(inputs)
    x = keras.layers.Conv2D(5, 3, strides=2)(x)
    x = keras.layers.AveragePooling2D(1, strides=2)(x)
    x = keras.layers.Dense(1)(keras.layers.Flatten()(x))
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(0)
    given = rng.normal(size=(40, 10, 10, 3)).astype("float32"), np.zeros(40)

    def output(y, p):
        return p[:, 0]

    taylor, exact = (
        compute(model, given, ["tap"], method=method, loss=output)
        for method in ("taylor", "exact")
    )
    assert np.abs(exact.scores["tap"]).max() > 1e-3
    np.testing.assert_allclose(taylor.scores["tap"], exact.scores["tap"], atol=1e-6)
    np.testing.assert_allclose(
        taylor.standard_errors["tap"], exact.standard_errors["tap"], rtol=1e-4
    )


def test_two_outputs_one_without_a_loss(model):
    x, y = data(10)
    both = keras.Model(model.input, [model.output, model.get_layer("conv2").output])
    loss = [keras.losses.SparseCategoricalCrossentropy(from_logits=True), None]
    found = compute(both, (x, [y, y]), loss=loss)
    expected = compute(model, (x, y))
    for tap in TAPS:
        np.testing.assert_allclose(found.scores[tap], expected.scores[tap], atol=1e-6)


def test_images_of_two_sizes(new_backbone):
    model = kd.attach_head(new_backbone(size=None), 3)
    rng = np.random.default_rng(0)
    parts = [
        (rng.normal(size=(n, size, size, 3)).astype("float32"), rng.integers(0, 3, n))
        for n, size in ((10, 16), (4, 12))
    ]
    batches = [tf.data.Dataset.from_tensors(part) for part in parts]
    found = compute(model, batches[0].concatenate(batches[1]))
    alone = [compute(model, part).scores["conv1"] for part in parts]
    expected = (10 * alone[0] + 4 * alone[1]) / 14
    np.testing.assert_allclose(found.scores["conv1"], expected, atol=1e-6)


def test_a_trained_head(model):
    x, y = data(64)
    x[np.arange(64), ..., y] += 1
    found = compute(model, (x, y), train_head=True)
    assert np.abs(found.scores["conv2"] - compute(model, (x, y)).scores["conv2"]).max()


def test_max_samples(model):
    x, y = data(40)
    found = compute(model, (x, y), max_samples=37)
    expected = compute(model, (x[:37], y[:37]))
    assert found.get_config() == expected.get_config()


@pytest.mark.parametrize("options", [{"tolerance": 0.5}, {"checkpoint": "c"}])
def test_what_it_does_not_take(options, model):
    with pytest.raises(ValueError, match=r"taylor.*no `tolerance` and no `checkpoint`"):
        compute(model, data(4), **options)


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(4, 3, name="conv0")

        def call(self, x):
            return keras.ops.mean(self.conv(x), axis=(1, 2))

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match=r"taylor.*whose graph can be read"):
        compute(Own(), data(4), ["conv0"], loss=loss)


def test_a_loss_that_is_not_finite_names_the_layer(model):
    kernel = model.get_layer("conv1").kernel
    kernel.assign(kernel.numpy() * np.nan)
    with pytest.raises(ValueError, match=r"not finite.*layer 'conv1'"):
        compute(model, data(4))


def test_an_unknown_method(model):
    with pytest.raises(ValueError, match=r"Closest names: 'taylor'"):
        compute(model, data(4), method="tailor")
