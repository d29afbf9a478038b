"""Fixtures for every test: two fake devices, a seed, tiny networks."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import numpy as np
import pytest
import tensorflow as tf

_CPUS = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    _CPUS[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

SIZE = 16
WIDTHS = (4, 6, 8)


@pytest.fixture(autouse=True)
def _same_start():
    """The same random numbers and the default precision for each test."""
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="session")
def strategy():
    """Two replicas on the two logical CPUs."""
    cpus = [d.name for d in tf.config.list_logical_devices("CPU")]
    assert len(cpus) == 2
    return tf.distribute.MirroredStrategy(cpus)


def make_backbone(batch_norm=False, size=SIZE, widths=WIDTHS, seed=0, name="tiny"):
    """16x16x3 -> convolutions `conv0..2` at strides 1, 2 and 4, widths 4, 6, 8.

    A different seed gives different weights; with `batch_norm` there is one
    BatchNormalization `bn0..2` behind each convolution, with moving statistics
    that are not 0 and 1.
    """
    rng = np.random.default_rng(seed)
    inputs = keras.Input((size, size, 3), name="image")
    x = inputs
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


@pytest.fixture
def backbone():
    """A network of three convolutions without BatchNormalization."""
    return make_backbone()


@pytest.fixture
def bn_backbone():
    """The same with BatchNormalization."""
    return make_backbone(batch_norm=True, name="tiny_bn")


@pytest.fixture(scope="session")
def new_backbone():
    """`make_backbone`, for tests that need several or inside of a scope."""
    return make_backbone


@pytest.fixture
def images():
    """Eight images and their labels, three classes."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, SIZE, SIZE, 3)).astype("float32")
    return x, np.arange(8) % 3
