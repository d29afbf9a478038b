"""`fit_head` on networks: which layer, which data, which task."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_delta as kd
from keras_delta._inputs import samples
from keras_delta._probe import linear
from keras_delta._probe.fit import Fitting

CLASSES = 3
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def data():
    """Images whose colour tells the class."""
    rng = np.random.default_rng(0)
    y = np.arange(36) % CLASSES
    x = rng.uniform(0, 60, (36, 16, 16, 3)).astype("float32")
    x[np.arange(36), :, :, y] += 150
    return x, y


@pytest.fixture
def target(new_backbone):
    return kd.attach_head(new_backbone(batch_norm=True), CLASSES)


def accuracy(model, x, y):
    return (model.predict(x, verbose=0).argmax(-1) == y).mean()


def test_a_probe_of_the_pooled_features(target, data):
    """The twin: pool by hand, and solve for the strength that was found."""
    x, y = data
    before = [v.numpy() for v in target.weights if not v.path.startswith("head")]
    result = kd.fit_head(target, x, y, verbose=0)
    maps = keras.Model(target.input, target.get_layer("head_pool").input)
    pooled = maps.predict(x, verbose=0).mean(axis=(1, 2))
    rows = linear.Rows(
        *(pooled, np.eye(CLASSES)[y], np.ones(36), np.arange(36), np.ones(36, bool))
    )
    expected = linear.fit(rows, "multiclass", CLASSES)
    kernel, bias = target.get_layer("head").get_weights()
    np.testing.assert_allclose(kernel, expected.kernel, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(bias, expected.bias, rtol=1e-2, atol=1e-3)
    assert result.strengths == {"head": expected.strength}
    assert result.scores["head"] == pytest.approx(expected.scores)
    assert result.score == expected.scores[expected.strength]
    assert (result.samples, result.views, result.metric) == (36, 1, "accuracy")
    after = [v.numpy() for v in target.weights if not v.path.startswith("head")]
    for v, w in zip(before, after, strict=True):
        np.testing.assert_array_equal(v, w)
    assert accuracy(target, x, y) == 1


def test_what_a_user_sees(target, data, capsys):
    kd.fit_head(target, *data)
    shown = capsys.readouterr().out
    assert shown.startswith("Head fitted on 36 images in ")
    assert shown.endswith(" s: 100.0% accuracy, cross-validated\n")


@pytest.mark.parametrize(
    "loss, units, labels",
    [
        (keras.losses.CategoricalCrossentropy(from_logits=True), 3, "one-hot"),
        (keras.losses.BinaryCrossentropy(from_logits=True), 3, "one-hot"),
        (keras.losses.BinaryCrossentropy(from_logits=True), 1, "bit"),
        ("hinge", 1, "sign"),
        ("mse", 2, "numbers"),
    ],
)
def test_every_task(new_backbone, data, loss, units, labels):
    x, y = data
    y = {
        "one-hot": np.eye(3)[y],
        "bit": (y == 1).astype("float32"),
        "sign": np.where(y == 1, 1, -1),
        "numbers": np.stack([y * 10.0, 5.0 - y], axis=1),
    }[labels]
    model = kd.attach_head(new_backbone(batch_norm=True), units)
    if loss == "hinge":
        with pytest.raises(ValueError, match="hinge, of no known task"):
            kd.fit_head(model, x, y, loss=loss, verbose=0)
        return
    result = kd.fit_head(model, x, y, loss=loss, verbose=0)
    assert result.score > 0.9
    outputs = model.predict(x, verbose=0)
    if labels == "numbers":
        assert 1 - np.var(outputs - y) / np.var(y) > 0.95
    elif units == 3:
        np.testing.assert_array_equal(outputs.argmax(-1), y.argmax(-1))
    else:
        np.testing.assert_array_equal(outputs[:, 0] > 0, y > 0.5)


def test_a_softmax_head(new_backbone, data):
    model = kd.attach_head(new_backbone(batch_norm=True), 3, activation="softmax")
    kd.fit_head(model, *data, verbose=0)
    assert accuracy(model, *data) == 1


def test_several_outputs(data):
    x, y = data
    inputs = keras.Input((16, 16, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="c")(inputs))
    model = keras.Model(
        inputs,
        {
            "kind": layers.Dense(3, name="kind")(pooled),
            "size": layers.Dense(1, name="size")(pooled),
            "mask": layers.Conv2D(1, 1, name="mask")(model_map(inputs)),
        },
    )
    loss = {"kind": SPARSE, "size": "mse", "mask": None}
    given = {"kind": y, "size": y * 2.0}
    result = kd.fit_head(model, x, given, loss=loss, verbose=0)
    assert sorted(result.strengths) == ["kind", "size"]
    assert result.metric == "score"
    outputs = model.predict(x, verbose=0)
    assert (outputs["kind"].argmax(-1) == y).all()
    assert np.abs(outputs["size"][:, 0] - y * 2).max() < 0.5


def model_map(x):
    return layers.Conv2D(4, 3, name="d")(x)


def test_views_of_an_image_set(target, data):
    x, y = data
    images = kd.data.ImageSet.from_arrays(x.astype("uint8"), y)
    train = images.batches(16, 8, training=True)
    first = [b[1].numpy().tolist() for b in train]
    train = images.batches(16, 8, training=True)
    result = kd.fit_head(target, train, views=3, verbose=0)
    assert (result.samples, result.views) == (36, 4)
    # The data are where they were.
    assert [b[1].numpy().tolist() for b in train] == first
    few = kd.fit_head(target, train, views=3, max_samples=72, verbose=0)
    assert few.views == 2
    less = kd.fit_head(target, train, views=3, max_samples=20, verbose=0)
    assert (less.samples, less.views) == (20, 1)
    fixed = images.batches(16, 8, training=True, views=2)
    assert kd.fit_head(target, fixed, views=3, verbose=0).views == 3
    plain = images.batches(16, 8)
    assert kd.fit_head(target, plain, views=3, verbose=0).views == 1


def test_augmentation_inside_of_the_model(new_backbone, data):
    """Each view draws anew, and nothing that training will draw is used up."""
    backbone = new_backbone()
    inputs = keras.Input((16, 16, 3))
    flip = layers.RandomFlip("horizontal", seed=3)
    noise = layers.GaussianNoise(0.5)
    model = kd.attach_head(keras.Model(inputs, backbone(noise(flip(inputs)))), CLASSES)
    weights = {id(v) for v in model.weights}
    drawn = [v for v in model.variables if id(v) not in weights]
    states = [v.numpy() for v in drawn]
    assert len(states) == 2
    result = kd.fit_head(model, *data, views=2, verbose=0)
    assert result.views == 3 and result.score > 0.9
    for v, w in zip(states, drawn, strict=True):
        np.testing.assert_array_equal(v, w)


def test_weights_of_samples_and_classes(target, data):
    x, y = data
    wrong = y.copy()
    wrong[:12] = (y[:12] + 1) % 3
    weights = np.where(np.arange(36) < 12, 0.0, 1.0)
    kd.fit_head(target, x, wrong, sample_weight=weights, verbose=0)
    assert accuracy(target, x, y) == 1
    pairs = tf.data.Dataset.from_tensor_slices((x, wrong, weights)).batch(7)
    kd.fit_head(target, pairs, verbose=0)
    assert accuracy(target, x, y) == 1
    kd.fit_head(target, x, y, class_weight={0: 1.0, 1: 1.0, 2: 0.0}, verbose=0)
    assert 2 not in target.predict(x, verbose=0).argmax(-1)


@pytest.mark.parametrize("ignored", [-1, 255, None])
def test_images_without_labels_do_not_count(target, data, ignored):
    """By the loss's `ignore_class`, or by weights of 0."""
    x, y = data
    alone = kd.fit_head(target, x, y, verbose=0)
    head = target.get_layer("head").get_weights()
    # As many again whose colours say nothing.
    more = np.random.default_rng(1).uniform(0, 255, (72, 16, 16, 3)).astype("float32")
    options, labels = {"loss": SPARSE}, np.arange(72) % CLASSES
    if ignored is None:
        options["sample_weight"] = np.r_[np.ones(36), np.zeros(72)]
    else:
        labels = np.full(72, ignored)
        options["loss"] = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=ignored
        )
    both = np.concatenate([x, more]), np.r_[y, labels]
    found = kd.fit_head(target, *both, verbose=0, **options)
    assert (found.samples, found.score) == (36, alone.score)
    np.testing.assert_allclose(found.losses, alone.losses, rtol=1e-4)
    for v, w in zip(target.get_layer("head").get_weights(), head, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-4, atol=1e-6)
    if ignored is None:
        options["sample_weight"] = np.zeros(108)
    else:
        both = both[0], np.full(108, ignored)
    with pytest.raises(ValueError, match=r'No image has a label.*recipe="none"'):
        kd.fit_head(target, *both, verbose=0, **options)


def test_a_head_of_several_layers(new_backbone, data):
    """The last one is fitted, on what the others make of the features."""
    source = new_backbone(batch_norm=True)
    hidden = layers.GlobalAveragePooling2D()(source.output)
    hidden = layers.Dense(16, "relu", name="hidden")(hidden)
    model = keras.Model(source.input, layers.Dense(CLASSES, name="last")(hidden))
    assert list(kd.fit_head(model, *data, verbose=0).strengths) == ["last"]
    assert accuracy(model, *data) == 1


@pytest.mark.parametrize("case", ["dense", "no bias", "LoRA"])
def test_heads_that_cannot_be_fitted(new_backbone, data, case):
    source = new_backbone()
    x = source.output
    if case == "dense":
        x = layers.Conv2D(CLASSES, 1)(x)
    else:
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.Dense(CLASSES, use_bias=case != "no bias", name="last")(x)
    model = keras.Model(source.input, x)
    if case == "LoRA":
        model.get_layer("last").enable_lora(2)
    images, y = data
    y = np.zeros(x.shape[1:-1])[None] + y[:, None, None] if case == "dense" else y
    with pytest.raises(ValueError, match="does not come from a Dense layer"):
        kd.fit_head(model, images, y, loss=SPARSE, verbose=0)


@pytest.mark.parametrize("activation", ["exponential", "tanh", "softplus"])
def test_numbers_behind_an_activation_are_not_fitted(target, data, activation):
    """Ridge regression is linear."""
    layer = target.get_layer("head")
    layer.activation = keras.activations.get(activation)
    before, x = layer.get_weights(), data[0]
    with pytest.raises(ValueError, match="activation other than linear"):
        kd.fit_head(target, x, x.mean((1, 2)), loss="mse", verbose=0)
    np.testing.assert_array_equal(layer.get_weights()[0], before[0])


def test_features_that_are_not_finite(target, data):
    x, y = data
    x = x.copy()
    x[3] = np.nan
    with pytest.raises(ValueError, match=r"layer 'head' is not finite.*1 of 36"):
        kd.fit_head(target, x, y, verbose=0)


def test_features_that_say_nothing(target, data):
    for layer in target.layers[:-1]:
        layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    with pytest.warns(UserWarning, match="the same for all images"):
        result = kd.fit_head(target, *data, verbose=0)
    assert result.score == pytest.approx(1 / 3, abs=0.1)


def test_data_that_repeat_are_not_tested_on_what_they_were_trained_on(target, data):
    """Labels that mean nothing cannot be known, however often an image comes."""
    x = data[0]
    y = np.random.default_rng(1).integers(0, 3, len(x))
    once = kd.fit_head(target, x, y, loss=SPARSE, strengths=1.0, verbose=0)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).repeat(5).batch(8)
    often = kd.fit_head(target, batches, loss=SPARSE, strengths=0.2, verbose=0)
    assert once.samples == often.samples == len(x)
    assert often.score == pytest.approx(once.score, abs=0.15)
    assert often.score < 0.6


def test_readings_of_a_data_set_that_shuffles_are_in_one_order(target, data):
    """The losses of two fits are compared image by image."""
    x = np.concatenate([data[0], data[0][:5]])  # some come twice
    y = np.r_[data[1], data[1][:5]]
    y[::4] = (y[::4] + 1) % CLASSES
    images = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(50).batch(8)
    fitting = Fitting(target, images, loss=SPARSE)
    first, second = fitting.fit(verbose=0), fitting.fit(verbose=0)
    assert np.ptp(first.losses) > 0.5
    np.testing.assert_allclose(second.losses, first.losses, rtol=1e-2, atol=1e-3)
    rows = [fitting.read()[0] for _ in range(2)]
    np.testing.assert_array_equal(rows[0].groups, rows[1].groups)
    np.testing.assert_array_equal(rows[0].labels, rows[1].labels)
    np.testing.assert_allclose(rows[0].features, rows[1].features, rtol=1e-4, atol=1e-4)


def test_arrays_that_are_sorted_by_class(target, data, monkeypatch):
    """What is more than enough leaves no class out."""
    order = np.argsort(data[1], kind="stable")
    x, y = (v[order] for v in data)
    given = {"x": x, "y": y, "loss": SPARSE}
    fittings = [Fitting(target, **given, max_samples=12)]
    monkeypatch.setattr(samples, "MOST", 12)
    fittings.append(Fitting(target, **given))
    for fitting in fittings:
        (rows,) = fitting.read()
        assert rows.labels.sum(0).min() > 1 and len(rows.labels) == 12


def test_a_bar_for_who_looks(target, data, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    kd.fit_head(target, *data)
    assert "36/Unknown" in sys.stdout.shown


class Terminal:
    """What is written to a terminal."""

    def __init__(self, stream):
        self._stream, self.shown = stream, ""

    def write(self, text):
        self.shown += text

    def isatty(self):
        return True

    def __getattr__(self, name):
        return getattr(self._stream, name)


def test_one_image_a_class(target, data):
    x, y = data
    result = kd.fit_head(target, x[:3], y[:3], verbose=0)
    assert result.score is None and "cross-validated" not in str(result)
    assert accuracy(target, x[:3], y[:3]) == 1


@pytest.mark.parametrize(
    "given, message",
    [
        ({"strengths": 0}, "`strengths`"),
        ({"views": -1}, "`views`"),
        ({"folds": 1}, "`folds`"),
        ({"max_samples": 0}, "`max_samples`"),
    ],
)
def test_arguments(target, data, given, message):
    with pytest.raises(ValueError, match=message):
        kd.fit_head(target, *data, verbose=0, **given)


def test_labels_the_loss_does_not_take(target, data):
    x, y = data
    with pytest.raises(ValueError, match="run from 1 to 3"):
        kd.fit_head(target, x, y + 1, loss=SPARSE, verbose=0)
