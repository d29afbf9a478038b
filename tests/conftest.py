"""Fixtures for every test: two fake devices, a seed, tiny networks."""

import gc
import os
import random
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import SIZE, make_backbone

pytest_plugins = ["cpu_budget"]

# In the background of a shell Ctrl-C is ignored, and would be in all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

_CPUS = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    _CPUS[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


# TensorFlow's own objects live as long as the process: no need to look at them again.
gc.freeze()


@pytest.fixture(autouse=True)
def _same_start():
    """The same random numbers and the default precision for each test.

    Not TensorFlow's own, see `tensorflow_seed`.
    """
    random.seed(0)  # all that Keras draws its seeds from
    np.random.seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def tensorflow_seed():
    """For tests with `tf.random` or `shuffle`.

    Setting it makes TensorFlow forget all kernels, a tenth of the time of all tests.
    """
    tf.random.set_seed(0)


@pytest.fixture(scope="session")
def strategy():
    """Two replicas on the two logical CPUs."""
    cpus = [d.name for d in tf.config.list_logical_devices("CPU")]
    assert len(cpus) == 2
    return tf.distribute.MirroredStrategy(cpus)


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
