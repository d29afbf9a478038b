"""Digests tell networks apart by what they compute, not by what they are called."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_delta as kd
from keras_delta._network import fingerprint
from keras_delta._network.graph import Graph

SETTINGS = {
    "scale": 127.5,
    "constant": 1.0,
    "array": np.ones(3, "float32"),
    "crop": 2,
    "epsilon": 1e-3,
    "slope": 0.3,
    "inner": 0.3,
}
OTHERS = {
    "scale": 255.0,
    "constant": 0.5,
    "array": np.full(3, 2.0, "float32"),
    "crop": 0,
    "epsilon": 1e-5,
    "slope": 0.1,
    "inner": 0.1,
}


class Unknown(layers.Layer):
    """Keras cannot describe it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def network(own=False, **changed):
    """Without names of layers, which Keras numbers."""
    given = {**SETTINGS, **changed}
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / given["scale"])(inputs) - given["constant"]
    x = (x * given["array"])[:, given["crop"] : given["crop"] + 5]
    x = layers.Lambda(lambda v: 2 * v)(x)
    x = layers.Conv2D(4, 3, kernel_initializer="ones", activation=ops.tanh)(x)
    x = layers.BatchNormalization(epsilon=given["epsilon"])(x)
    x = layers.LeakyReLU(given["slope"])(x)
    x = layers.TimeDistributed(layers.LeakyReLU(given["inner"]))(x)
    if own:
        x = Unknown(lambda v: v + 1)(x)
    return keras.Model(inputs, x)


def test_names_and_addresses_do_not_count():
    one, two = (fingerprint.of_architecture(Graph(network(own=True))) for _ in "ab")
    assert one == two


@pytest.mark.parametrize("name", OTHERS)
def test_settings_and_constants_count(name):
    found = [Graph(network(**change)) for change in ({}, {name: OTHERS[name]})]
    one, two = map(fingerprint.of_architecture, found)
    assert one != two


@pytest.mark.parametrize("name", ["scale", "constant", "epsilon"])
def test_maps_of_other_settings_are_apart(name):
    """In front of the source, where the target computes, and behind."""

    def maps(**changed):
        source = network(**changed)
        model = kd.DeltaModel(kd.attach_head(source, 2), source=source)
        return model.networks.maps_fingerprint

    assert maps() == maps() != maps(**{name: OTHERS[name]})
