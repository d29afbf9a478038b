"""The layers that a recipe keeps from training."""

import weakref

from keras_delta import _compat, batch_norm
from keras_delta._errors import warn
from keras_delta._network.freeze import freeze_until
from keras_delta.layers import StochNorm

# Networks -> layers: as an attribute of a model, Keras would save them again.
_fixed = weakref.WeakKeyDictionary()


def fix(model, recipe):
    """Freeze the layers that a recipe fixes; those of an earlier one stay so.

    Returns:
        List of the BatchNormalization layers whose statistics it fixes: the target's
        that the source has and that trained so far; if the source is another network,
        all that trained.
    """
    trained = [part for part in _compat.flatten_layers(model.target) if part.trainable]
    normalizers = _fix_statistics(model, recipe)
    if recipe.freeze:
        last = max(1, round(recipe.freeze * len(model.taps))) - 1
        freeze_until(model, model.taps[last])
    _fixed[model.networks] = [part for part in trained if not part.trainable]
    return normalizers


def _fix_statistics(model, recipe):
    if recipe.batch_norm == "training" or not model.trains_features:
        return []
    layers = [layer for layer in batch_norm.layers(model) if layer.trainable]
    if model.networks.mismatch is None:
        paired = {id(v) for v, _ in model.pairing.weights}
        layers = [layer for layer in layers if id(layer.moving_mean) in paired]
    for layer in layers:
        layer.trainable = False
    if any(isinstance(layer, StochNorm) for layer in layers):
        warn(
            "StochNorm has no effect: the recipe fixes the statistics. Train with "
            '`recipe=keras_delta.Recipe(batch_norm="training")`, or `recipe="none"`.'
        )
    return layers


def thaw(model):
    """Let the layers train that a recipe froze."""
    for layer in _fixed.pop(model.networks, ()):
        layer.trainable = True


def places(model):
    """The numbers of these layers among all of the target's, for a file."""
    fixed = {id(layer) for layer in _fixed.get(model.networks, ())}
    parts = _compat.flatten_layers(model.target)
    return [i for i, part in enumerate(parts) if id(part) in fixed]


def recall(model, numbers):
    """Take over what `places` found in the model of a file."""
    parts = _compat.flatten_layers(model.target)
    _fixed[model.networks] = [parts[i] for i in numbers]
