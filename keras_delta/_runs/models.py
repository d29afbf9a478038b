"""Models that are traced once and reset for each training."""

import collections
import contextlib
import gc
import random

import keras
import numpy as np

from keras_delta import regularizers
from keras_delta._compat import array, flatten_layers
from keras_delta._runs.store import digest


class Models:
    """The models of a process, each for all trainings that differ in variables alone.

    Before a training the variables of its model are set back, so that a result does
    not depend on what ran before.
    """

    def __init__(self, most=1, strategy=None):
        self._most, self._strategy = most, strategy
        self._models = collections.OrderedDict()

    def __len__(self):
        return len(self._models)

    def has(self, key):
        """Whether there is a model of a key."""
        return digest(key) in self._models

    def begin(self, key, build):
        """The model of a key, as it was when it was built."""
        key = digest(key)
        if key not in self._models:
            while len(self._models) >= self._most:
                self._drop_oldest()
            model = build()
            model.optimizer.build(model.trainable_variables)
            self._models[key] = model, _state(model), _trainable(model)
        self._models.move_to_end(key)
        model, start, trainable = self._models[key]
        for layer, value in trainable:
            layer.trainable = value
        for variable, value in start:
            variable.assign(value)
        model.recipe = None
        return model

    def drop(self):
        """Let go of all models."""
        while self._models:
            self._drop_oldest()

    def _drop_oldest(self):
        self._models.popitem(last=False)
        gc.collect()
        if not self._models and self._strategy is None:
            policy = keras.config.dtype_policy()  # it is lost as well
            keras.utils.clear_session()
            keras.config.set_dtype_policy(policy)


def scope_of(strategy):
    """Context in which models of a strategy are made; None is no strategy."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def set_seeds(seed):
    """Let a training's random numbers depend on nothing that ran before.

    Dropout's state is among the variables; TensorFlow's own seed would cost seconds,
    since it forgets all kernels.
    """
    random.seed(seed)
    np.random.seed(seed)


def kind_of_regularizer(regularizer):
    """What about a regularizer is part of the traced step, for the key of a model.

    Strengths and attention are variables, of which the temperature decides the values.
    """
    config = regularizers.settings(regularizer)
    return _without(config, lambda name, value: name == "temperature")


def kind_of_optimizer(optimizer):
    """The same of an optimizer: everything but a learning rate that is a number."""

    def varies(name, value):
        is_rate = name == "learning_rate" and isinstance(value, float)
        return is_rate or name == "name"

    return _without(keras.optimizers.serialize(optimizer), varies)


def _without(config, varies):
    if isinstance(config, dict):
        return {k: _without(v, varies) for k, v in config.items() if not varies(k, v)}
    if isinstance(config, (list, tuple)):
        return [_without(v, varies) for v in config]
    return config


def _state(model):
    """What a training changes: list of (variable, value)."""
    fixed = {id(v) for v in model.source.variables}
    variables = {id(v): v for v in [*model.variables, *model.optimizer.variables]}
    return [(v, array(v)) for i, v in variables.items() if i not in fixed]


def _trainable(model):
    """List of (layer, whether it trains), as a recipe may freeze some."""
    layers = model.networks.target.layers().values()
    parts = [part for layer in layers for part in flatten_layers(layer)]
    return [(part, part.trainable) for part in parts]
