"""Channel scores the slow way: zero a filter, run the whole network, compare."""

import keras
import numpy as np


def cross_entropy(y, outputs, probabilities=False):
    """Loss per sample in float64."""
    outputs = np.asarray(outputs, "float64")
    if probabilities:
        return -np.log(outputs[np.arange(len(y)), y])
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -logs[np.arange(len(y)), y]


def layer_of(model, path):
    """A layer by its path through nested models."""
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


def scores(build, weights, path, x, y, probabilities=False, dtype="float32"):
    """Mean loss increase for each filter of the convolution at `path`.

    Args:
        build: function that makes the network.
        weights: of that network.
        path: the layer's path through nested models.
        dtype: of the whole rerun.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy(policy)
    model.set_weights(weights)
    layer = layer_of(model, path)
    assert layer.compute_dtype == dtype
    found = []
    intact = cross_entropy(y, model(x, training=False), probabilities)
    original = layer.get_weights()
    for j in range(original[0].shape[-1]):
        changed = [w.copy() for w in original]
        for w in changed:  # kernel and, where there is one, bias
            w[..., j] = 0
        layer.set_weights(changed)
        each = cross_entropy(y, model(x, training=False), probabilities)
        found.append((each - intact).mean())
        layer.set_weights(original)
    return np.array(found)
