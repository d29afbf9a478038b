"""Weights of samples and classes, and data that is looked at batch by batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_delta as kd

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


def compiled(backbone, units=3, loss=SPARSE, target=None):
    model = kd.DeltaModel(target or kd.attach_head(backbone, units), source=backbone)
    model.compile("sgd", loss, run_eagerly=True)
    return model


def dense(backbone):
    x = layers.Conv2D(3, 1, name="head")(backbone.output)
    return keras.Model(backbone.input, x)  # (B, 4, 4, 3)


class Pairs(keras.utils.PyDataset):
    """Two batches, which remembers what was read of it."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays, self.read = arrays, []

    def __len__(self):
        return len(self.arrays[0]) // 4

    def __getitem__(self, i):
        self.read.append(i)
        return tuple(v[4 * i : 4 * i + 4] for v in self.arrays)


def streams(*arrays):
    yield lambda: tf.data.Dataset.from_tensor_slices(arrays).batch(4)
    yield lambda: Pairs(*arrays)
    yield lambda: (tuple(v[i : i + 4] for v in arrays) for i in (0, 4))


def test_a_py_dataset_is_looked_at(backbone, images):
    x, y = images
    model = compiled(backbone)
    with pytest.raises(ValueError, match="run from 1 to 3"):
        model.fit(Pairs(x, y + 1), verbose=0)
    with pytest.raises(ValueError, match="run from 1 to 3"):
        model.fit(x, y, validation_data=Pairs(x, y + 1), verbose=0)
    with pytest.raises(ValueError, match=r"validation data is empty.*Pairs"):
        model.fit(x, y, validation_data=Pairs(x[:0], y[:0]), verbose=0)
    with pytest.raises(ValueError, match="not finite"):
        model.fit(Pairs(x * np.nan, y), verbose=0)
    assert model.optimizer.iterations == 0
    data = Pairs(x, y)
    model.fit(data, verbose=0)
    assert data.read[0] == 0 and model.optimizer.iterations == 2


WRONG = {
    "short": (np.ones(7), r"as many labels and weights.*'sample_weight': \[7\]"),
    "NaN": (np.array([1, np.nan] * 4), "4 of 8 sample weights are not finite"),
    "text": (np.array(["1"] * 8), "must be numbers"),
    "each class": (np.ones((8, 3)), r"one weight per sample, \(batch,\).*, 3\)"),
    "list": ([1.0] * 8, r"one array, or one per output.*8 of them"),
}


@pytest.mark.parametrize(("weights", "text"), WRONG.values(), ids=WRONG)
def test_wrong_weights(backbone, images, weights, text):
    model = compiled(backbone)
    with pytest.raises(ValueError, match=text):
        model.fit(*images, sample_weight=weights, verbose=0)
    if len(weights) == 8 and not isinstance(weights, list):
        with pytest.raises(ValueError, match=text):
            model.fit(*images, validation_data=(*images, weights), verbose=0)
        for stream in streams(*images, weights):
            with pytest.raises(ValueError, match=text.removeprefix("4 of 8")):
                model.fit(stream(), verbose=0)
    assert model.optimizer.iterations == 0


def test_negative_weights_are_told(backbone, images):
    with pytest.warns(UserWarning, match="negative, the least -1"):
        compiled(backbone).fit(*images, sample_weight=-np.ones(8), verbose=0)


def test_right_weights(backbone, images):
    for weights in (np.ones(8), np.ones((8, 1)), np.arange(8) % 2 == 0):
        compiled(backbone).fit(*images, sample_weight=weights, verbose=0)


def test_weights_of_positions(backbone, images):
    x = images[0]
    y = np.arange(8 * 16).reshape(8, 4, 4) % 3
    model = compiled(backbone, target=dense(backbone))
    for shape in ((8, 4, 4), (8, 1, 1), (8, 4, 4, 1)):
        model.fit(x, y, sample_weight=np.ones(shape), verbose=0)
    remedy = r"one weight per position, \(batch, 4, 4\).*sample_weight\[:, None, None\]"
    with pytest.raises(ValueError, match=remedy):
        # Of four samples, Keras would take these for the weights of four columns.
        model.fit(x[:4], y[:4], sample_weight=np.ones(4), verbose=0)


def test_weights_of_several_outputs(backbone, images):
    x, y = images
    pooled = layers.GlobalAveragePooling2D()(backbone.output)
    heads = {n: layers.Dense(3, name=n)(pooled) for n in "ab"}
    loss = {"a": SPARSE, "b": SPARSE}
    model = compiled(backbone, loss=loss, target=keras.Model(backbone.input, heads))
    labels, one = {"a": y, "b": y}, np.ones(8)
    for weights in (one, {"a": one, "b": one}):
        model.fit(x, labels, sample_weight=weights, verbose=0)
    with pytest.raises(ValueError, match=r"loss are \['a', 'b'\].*those of \['a'\]"):
        model.fit(x, labels, sample_weight={"a": one}, verbose=0)
    with pytest.raises(ValueError, match=r"of the output 'b' are not finite"):
        model.fit(x, labels, sample_weight={"a": one, "b": one * np.nan}, verbose=0)
    with pytest.raises(ValueError, match=r"a model of one output"):
        model.fit(x, labels, class_weight={0: 1.0}, verbose=0)


@pytest.mark.parametrize(
    ("units", "loss", "weights", "text"),
    [
        (3, SPARSE, {1: 1.0, 3: 2.0}, "classes from 0 to 2.*No label is 3"),
        (3, SPARSE, {"cat": 1.0}, "numbers of classes as keys"),
        (3, SPARSE, {0: np.nan}, "finite weights"),
        (3, SPARSE, {0: -1.0}, "finite weights"),
        (3, SPARSE, [1.0, 2.0, 3.0], "a dict"),
        (1, BINARY, {2: 1.0}, "classes from 0 to 1"),
        (3, BINARY, {0: 1.0}, "not multilabel"),
        (1, "mse", {0: 1.0}, "not regression"),
    ],
)
def test_wrong_class_weights(backbone, images, units, loss, weights, text):
    y = np.arange(8) % 2
    y = np.stack([y] * units, 1) if units > 1 and loss is BINARY else y
    model = compiled(backbone, units, loss)
    with pytest.raises(ValueError, match=f"class_weight.*{text}"):
        model.fit(images[0], y, class_weight=weights, verbose=0)


def test_class_weights_that_leave_the_last_class_out(images, new_backbone):
    """Of a data set Keras looks them up in a list that ends before it."""
    x, y = images
    given, losses = {0: 3.0}, []
    for data in ((x, y), (tf.data.Dataset.from_tensor_slices((x, y)).batch(8),)):
        model = compiled(new_backbone())
        keras.utils.set_random_seed(0)
        model.target.get_layer("head").kernel.assign(np.ones((8, 3)) * [0, 0.1, 0.2])
        losses.append(model.fit(*data, class_weight=given, verbose=0).history["loss"])
    assert losses[0] == pytest.approx(losses[1]) and given == {0: 3.0}


def test_class_weights_of_positions(backbone, images):
    x, y = images[0], np.arange(8 * 16).reshape(8, 4, 4) % 3
    model = compiled(backbone, target=dense(backbone))
    with pytest.raises(ValueError, match=r"class_weight.*the shape of the labels"):
        model.fit(x, y, class_weight={0: 2.0}, verbose=0)
    data = tf.data.Dataset.from_tensor_slices((x, y[..., None])).batch(4)
    model.fit(data, class_weight={0: 2.0}, verbose=0)


def test_a_loss_that_labels_cannot_give(backbone, images):
    x, y = images
    wrong = np.where(np.arange(8) == 7, 50.0, y > 0)
    data = tf.data.Dataset.from_tensor_slices((x, wrong)).batch(4)
    model = compiled(backbone, 1, BINARY)
    with pytest.warns(UserWarning, match=r"task loss is -.*whole data set") as found:
        model.fit(data, epochs=8, verbose=0)
    assert sum("task loss" in str(w.message) for w in found) == 1
