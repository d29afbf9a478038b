"""Ten-crop evaluation: five crops each of an image and its mirror image."""

from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._types import ArrayLike, ImageSize, Tensor, Verbose

AVERAGES = ("logits", "probabilities")


def height_width(size, argument="size"):
    """(height, width) from a side in pixels or a pair."""
    try:
        pair = tuple(size)
    except TypeError:
        pair = (size, size)
    if isinstance(size, str) or len(pair) != 2:
        expected = "a positive integer or a pair (height, width)"
        raise ValueError(invalid(argument, expected, size))
    height, width = (_arguments.integer(argument, side) for side in pair)
    return height, width


def ten_crop(images: Tensor, size: ImageSize) -> tf.Tensor:
    """Cuts ten crops: four corners and the centre, of the image and its mirror image.

    The order is top left, top right, bottom left, bottom right, centre, then
    the same five positions in the horizontally mirrored image, as in
    AlexNet's evaluation (Krizhevsky et al., 2012, section 4.1).

    Args:
        images: tensor or array of shape (height, width, channels) or (batch,
            height, width, channels), of any type.
        size: side of the square crops in pixels, or (height, width).

    Returns:
        Tensor of the same type, of shape (10, h, w, channels) or (batch, 10, h,
        w, channels).

    Raises:
        ValueError: if the rank is neither 3 nor 4, or the images are smaller
            than `size`.
    """
    images = tf.convert_to_tensor(images)
    if images.shape.rank not in (3, 4):
        expected = "a tensor of shape ([batch,] height, width, channels)"
        raise ValueError(invalid("images", expected, images.shape))
    height, width = height_width(size)
    full_height, full_width = images.shape[-3], images.shape[-2]
    if (full_height or height) < height or (full_width or width) < width:
        expected = f"at most the images' height and width {full_height, full_width}"
        raise ValueError(invalid("size", expected, size))
    shape = tf.shape(images)
    places = crop_places(shape[-3] - height, shape[-2] - width)
    crops = [
        view[..., top : top + height, left : left + width, :]
        for view in (images, tf.reverse(images, axis=[-2]))
        for top, left in places
    ]
    crops = tf.stack(crops, axis=-4)
    return tf.ensure_shape(
        crops, [*images.shape[:-3], 10, height, width, images.shape[-1]]
    )


def crop_places(bottom, right):
    """(top, left) of the four corners and the centre, from the largest of each."""
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [*corners, (bottom // 2, right // 2)]


def average_ten_crop(
    predictions: ArrayLike,
    of: Literal["logits", "probabilities"] = "logits",
    *,
    from_logits: bool = True,
) -> np.ndarray:
    """Averages the predictions for the ten crops of each image.

    Args:
        predictions: array of shape (batch, 10, classes).
        of: "logits" or "probabilities". "logits" averages the logits, as DELTA's
            code does; "probabilities" averages the softmax, as the L2-SP code does.
        from_logits: whether `predictions` are logits. False for a model that
            ends in a softmax; "logits" then averages the logarithms, which are
            logits up to a constant per crop and so rank the classes the same.

    Returns:
        Array of shape (batch, classes): logits, or probabilities that sum to 1.

    Raises:
        ValueError: if `of` is unknown or the predictions have another shape.
    """
    _arguments.choice("of", of, AVERAGES)
    predictions = np.asarray(predictions)
    if predictions.ndim != 3 or predictions.shape[1] != 10:
        expected = "an array of shape (batch, 10, classes)"
        remedy = "Reshape the output of the model to (batch, 10, classes) first."
        raise ValueError(invalid("predictions", expected, predictions.shape, remedy))
    if of == "logits" and not from_logits:
        tiny = np.finfo(predictions.dtype).tiny
        predictions = np.log(np.maximum(predictions, tiny))
    if of == "probabilities" and from_logits:
        predictions = tf.nn.softmax(predictions).numpy()
    return predictions.mean(axis=1)


def predict_ten_crop(
    model: keras.Model,
    dataset: tf.data.Dataset,
    of: Literal["logits", "probabilities"] = "logits",
    *,
    from_logits: bool = True,
    verbose: Verbose = 0,
) -> np.ndarray:
    """Predicts the classes of images from ten crops each.

    Args:
        model: Keras model with one output of shape (batch, classes).
        dataset: `tf.data.Dataset` of crops (batch, 10, h, w, channels), with or
            without labels, as returned by `ImageSet.batches(..., ten_crop=True)`. The
            model sees ten times the batch size at once.
        of: "logits" or "probabilities", see `average_ten_crop`.
        from_logits: whether the model returns logits.
        verbose: passed on to `model.predict`.

    Returns:
        Array of shape (images, classes). The accuracy is
        `(result.argmax(-1) == image_set.labels).mean()`.

    Raises:
        ValueError: if the data set contains single images, or the model does not
            return one row of classes per crop.
    """
    spec = dataset.element_spec
    spec = spec[0] if isinstance(spec, tuple) else spec
    if spec.shape.rank != 5 or spec.shape[1] != 10:
        expected = "batches of crops of shape (batch, 10, height, width, channels)"
        remedy = "Create it with `batches(..., protocol='improved', ten_crop=True)`."
        raise ValueError(invalid("dataset", expected, spec.shape, remedy))
    crop_shape = spec.shape[2:]

    def flat(images, *labels):
        return tf.reshape(images, [-1, *crop_shape])

    predictions = np.asarray(model.predict(dataset.map(flat), verbose=verbose))
    if predictions.ndim != 2:
        expected = "a model with one output of shape (batch, classes)"
        raise ValueError(invalid("model", expected, predictions.shape))
    per_image = predictions.reshape(-1, 10, predictions.shape[-1])
    return average_ten_crop(per_image, of, from_logits=from_logits)
