"""A network's variables, held constant during a computation."""

import functools

import keras
import tensorflow as tf

from keras_delta import _compat
from keras_delta._network.fingerprint import digest


class Frozen:
    """Values of variables, for running a network that nothing can change.

    Inside `scope()` layers compute with these values, and their assignments to
    variables are dropped.

    Args:
        layers: iterable of layers.
        replaced: list of (variable, array) that override the variables' values.
    """

    def __init__(self, layers, replaced=()):
        self._held = {id(v): v for layer in layers for v in layer.weights}
        self._replaced = {id(v): a for v, a in replaced}

    def _array(self, key, variable):
        if key in self._replaced:
            return self._replaced[key]
        return _compat.array(variable)

    @functools.cached_property
    def _values(self):
        # The variables' own memory, not a copy, where nothing is replaced.
        return [
            (v, tf.convert_to_tensor(self._replaced.get(key, v.value)))
            for key, v in self._held.items()
        ]

    def scope(self):
        """A context in which the variables have these values."""
        with tf.init_scope():  # tensors that every trace can refer to
            values = self._values
        return keras.StatelessScope(values)

    def fingerprint(self):
        """A digest of all values, as hexadecimal digits."""
        return digest([self._array(k, v) for k, v in self._held.items()])
