"""Ten crops and their average, against numbers worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_delta.data import ImageSet, average_ten_crop, predict_ten_crop, ten_crop

SQUARE = np.arange(16).reshape(4, 4, 1)


def test_order_and_places():
    crops = ten_crop(SQUARE, 2).numpy()
    assert crops.shape == (10, 2, 2, 1)
    assert crops[:5].sum((1, 2, 3)).tolist() == [10, 18, 42, 50, 30]
    assert crops[5:, 0, 0, 0].tolist() == [3, 1, 11, 9, 6]


def test_batches_and_types():
    batch = np.stack([SQUARE, SQUARE + 100]).astype(np.uint8)
    crops = ten_crop(batch, 2)
    assert crops.shape == (2, 10, 2, 2, 1) and crops.dtype == tf.uint8
    np.testing.assert_array_equal(crops[0], ten_crop(batch[0], 2))
    np.testing.assert_array_equal(crops[1], ten_crop(batch[1], 2))


def test_rectangles_and_unknown_shapes():
    image = np.arange(5 * 6).reshape(5, 6, 1)
    traced = tf.function(
        lambda x: ten_crop(x, (3, 2)),
        input_signature=[tf.TensorSpec((None, None, 1), tf.int64)],
    )
    assert traced.get_concrete_function().output_shapes == (10, 3, 2, 1)
    crops = traced(image).numpy()
    np.testing.assert_array_equal(crops[3], image[2:, 4:])
    np.testing.assert_array_equal(crops[4], image[1:4, 2:4])


def test_errors():
    with pytest.raises(ValueError, match=r"`images`.*height, width, channels"):
        ten_crop(np.zeros((4, 4)), 2)
    with pytest.raises(ValueError, match=r"`size`.*\(4, 4\)"):
        ten_crop(SQUARE, 5)


LOGITS = np.zeros((1, 10, 2), np.float32)
LOGITS[0, 0] = [20, 0]
LOGITS[0, 1:] = [0, 1]


def test_averages_differ_where_they_should():
    logits = average_ten_crop(LOGITS)
    np.testing.assert_allclose(logits, [[2.0, 0.9]], rtol=1e-6)
    probabilities = average_ten_crop(LOGITS, "probabilities")
    p = 1 / (1 + np.e)  # softmax of (0, 1)
    np.testing.assert_allclose(probabilities, [[0.1 + 0.9 * p, 0.9 - 0.9 * p]], 1e-5)
    assert logits.argmax() == 0 and probabilities.argmax() == 1


def test_models_that_end_in_a_softmax():
    softmax = tf.nn.softmax(LOGITS).numpy()
    probabilities = average_ten_crop(softmax, "probabilities", from_logits=False)
    np.testing.assert_allclose(probabilities, average_ten_crop(LOGITS, "probabilities"))
    logits = average_ten_crop(softmax, from_logits=False)[0]
    np.testing.assert_allclose(logits[0] - logits[1], 1.1, rtol=1e-3)
    certain = np.tile(np.float32([0, 1]), (1, 10, 1))
    assert np.isfinite(average_ten_crop(certain, from_logits=False)).all()


def test_average_errors():
    with pytest.raises(ValueError, match=r"'logit'.*'logits'"):
        average_ten_crop(LOGITS, "logit")
    with pytest.raises(ValueError, match=r"`predictions`.*\(batch, 10, classes\)"):
        average_ten_crop(LOGITS[:, :9])


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 12, 15, 3), np.uint8)
    return ImageSet.from_arrays(pixels, np.arange(7) % 3)


@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_predictions(model, images, of):
    dataset = images.batches(8, 3, protocol="improved", ten_crop=True)
    result = predict_ten_crop(model, dataset, of)
    crops, _ = images.arrays(8, protocol="improved", ten_crop=True)
    each = np.stack([model(ten).numpy() for ten in crops])
    expected = (tf.nn.softmax(each).numpy() if of == "probabilities" else each).mean(1)
    assert result.shape == (7, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    unlabelled = dataset.map(lambda crops, labels: crops)
    np.testing.assert_allclose(predict_ten_crop(model, unlabelled, of), result)


def test_predict_errors(model, images):
    with pytest.raises(ValueError, match=r"`dataset`.*ten_crop=True"):
        predict_ten_crop(model, images.batches(8))
    maps = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.ReLU()])
    dataset = images.batches(8, protocol="improved", ten_crop=True)
    with pytest.raises(ValueError, match=r"`model`.*one output"):
        predict_ten_crop(maps, dataset)
