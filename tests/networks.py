"""The tiny network of most tests. Not in conftest.py: there are several of them."""

import keras
import numpy as np

import keras_delta as kd

# In tests and the scripts that they start, training begins at the head as it was made:
# oracles compute steps, not starts. tests/training/test_beginning.py asks for others.
kd.DeltaModel.default_recipe = "none"

SIZE = 16
WIDTHS = (4, 6, 8)


def make_backbone(batch_norm=False, size=SIZE, widths=WIDTHS, seed=0, name="tiny"):
    """16x16x3 -> convolutions `conv0..2` at strides 1, 2 and 4, widths 4, 6, 8.

    A different seed gives different weights; with `batch_norm` there is one
    BatchNormalization `bn0..2` behind each convolution, with moving statistics
    that are not 0 and 1.
    """
    rng = np.random.default_rng(seed)
    sizes = size if isinstance(size, tuple) else (size, size)
    x = inputs = keras.Input((*sizes, 3), name="image")
    for i, width in enumerate(widths):
        x = keras.layers.Conv2D(
            width, 3, strides=1 if i == 0 else 2, padding="same", name=f"conv{i}"
        )(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(name=f"bn{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
    model = keras.Model(inputs, x, name=name)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            low_high = ((0.5, 1.5), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5))
            new = [
                rng.uniform(*r, w.shape)
                for r, w in zip(low_high, layer.weights, strict=True)
            ]
            layer.set_weights(new)  # scale, shift, moving mean, moving variance
        elif layer.weights:
            new = [
                rng.normal(size=w.shape) * (2 / np.prod(w.shape[:-1])) ** 0.5
                if len(w.shape) > 1
                else rng.normal(size=w.shape) * 0.1
                for w in layer.weights
            ]
            layer.set_weights(new)
    return model


def make_deeper(size=SIZE, widths=WIDTHS, seed=0, name="deeper"):
    """As `make_backbone(True)`, with a second convolution in front of each `relu`."""
    rng = np.random.default_rng(seed)
    sizes = size if isinstance(size, tuple) else (size, size)
    x = inputs = keras.Input((*sizes, 3), name="image")
    for i, filters in enumerate(widths):
        for part, strides in (("a", min(i, 1) + 1), ("b", 1)):
            convolution = keras.layers.Conv2D(
                filters, 3, strides, "same", name=f"conv{i}{part}"
            )
            x = convolution(x)
        x = keras.layers.BatchNormalization(name=f"bn{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
    model = keras.Model(inputs, x, name=name)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape) * (2 / max(1, np.prod(v.shape[:-1]))) ** 0.5)
    return model
