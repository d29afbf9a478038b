"""Channel scores of any network the slow way: one call is masked, all is run again.

Not by the `Graph`: the tapped layer's own `call` is replaced for a while, and
Keras runs the model, eagerly, once for each channel.
"""

import contextlib
import functools

import keras
import numpy as np
import plain_loop
import tensorflow as tf

from keras_delta import _compat
from keras_delta.attention import ChannelAttention, suffix

FIRST = "channels_first"


@functools.cache
def convolves_channels_first():
    """Whether TensorFlow does on this processor; without oneDNN it does not."""
    try:
        keras.ops.conv(np.ones((1, 1, 4, 4)), np.ones((1, 1, 1, 1)), data_format=FIRST)
    except tf.errors.UnimplementedError:
        return False
    return True


def random_weights(model, seed=3):
    """Weights of a trained network's kind: no statistics of 0 and 1."""
    rng = np.random.default_rng(seed)
    for v in model.weights:
        if len(v.shape) > 1:
            scale = (2 / np.prod(v.shape[:-1])) ** 0.5
            v.assign(rng.normal(size=v.shape) * scale)
        elif v.dtype.startswith("float"):
            low = 0.5 if "variance" in v.path or "gamma" in v.path else -0.3
            v.assign(rng.uniform(low, low + 0.6, v.shape))
    return model.get_weights()


def layer_of(model, tap):
    """The layer of a tap, and the number of the call: `"block/conv#1"`."""
    name, _, number = tap.partition("#")
    name = name.rpartition("/")[2]
    found = [x for x in _compat.flatten_layers(model) if x.name == name]
    assert len(found) == 1, (tap, found)
    return found[0], int(number or 0)


@contextlib.contextmanager
def masked(layer, number, channel, axis):
    """Channel `channel` of the layer's call `number` is zero; None: nothing is."""
    original, calls = layer.call, []

    def call(*args, **kwargs):
        outputs = original(*args, **kwargs)
        calls.append(layer)
        if len(calls) - 1 != number or channel is None:
            return outputs
        values = keras.ops.convert_to_numpy(outputs).copy()
        np.moveaxis(values, axis, 0)[channel] = 0
        return keras.ops.convert_to_tensor(values)

    layer.call = call
    try:
        yield
    finally:
        del layer.call
    assert len(calls) > number  # it was called


def scores(model, tap, x, losses, axis=-1):
    """Mean loss increase for each channel of a tap, by a plain loop.

    Args:
        model: the model.
        tap: `"conv"`, `"block/conv"`, `"conv#1"`.
        x: what the model is called with.
        losses: function of the model's outputs, the loss of each sample.
        axis: of the channels.
    """
    layer, number = layer_of(model, tap)

    def run(channel):
        # What layers assign to their variables is dropped.
        with masked(layer, number, channel, axis), keras.StatelessScope():
            return np.asarray(losses(model(x, training=False)))

    intact = run(None)
    # A shared layer's other calls may have other shapes, but not other channels.
    count = range(layer.output.shape[axis] if number == 0 else width(layer, axis))
    return np.array([(run(j) - intact).mean() for j in count])


def width(layer, axis):
    """Number of channels of a layer that is called more than once."""
    return layer._inbound_nodes[0].outputs[0].shape[axis]


def suffixes_of(monkeypatch):
    """The cut networks that a test makes from now on: dict tap -> `Suffix`."""
    found = {}
    init = suffix.Suffix.__init__

    def record(self, graph, tap, *args):
        init(self, graph, tap, *args)
        found[tap] = self

    monkeypatch.setattr(suffix.Suffix, "__init__", record)
    return found


def cross_entropy(y, probabilities=False):
    """The loss of each sample, from logits or probabilities."""
    return lambda outputs: plain_loop.cross_entropy(y, outputs, probabilities)


def in_float64(build, weights):
    """The network with another precision."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy(policy)
    model.set_weights(weights)
    return model


def compare(build, taps, x, losses, y, axis=-1, atol=1e-6, double=True, **kwargs):
    """Compute the scores and compare them with a plain loop's, in both precisions.

    Args:
        build: function that makes the network.
        taps: names of the tapped calls.
        x: arrays to call the model with.
        losses: as of `scores`.
        y: the labels.
        axis: of the channels.
        atol: allowed distance from the plain loop.
        double: whether TensorFlow has all of it in float64 (on the CPU).
        **kwargs: of `ChannelAttention.compute`.

    Returns:
        The model and its `ChannelAttention`.
    """
    model = build()
    weights = random_weights(model)
    state = [np.asarray(v.value) for v in model.variables]
    found = ChannelAttention.compute(model, (x, y), taps, progress=False, **kwargs)
    for v, before in zip(model.variables, state, strict=True):
        np.testing.assert_array_equal(v.value, before)  # seeds and counters too
    for layer in _compat.flatten_layers(model):
        assert "call" not in vars(layer)
    slow = in_float64(build, weights) if double else model
    ours, theirs, largest = [], [], 0
    for tap in taps:
        loop = scores(model, tap, x, losses, axis)
        exact = scores(slow, tap, x, losses, axis) if double else loop
        assert found.scores[tap].shape == loop.shape, tap
        np.testing.assert_allclose(
            found.scores[tap], loop, atol=atol, rtol=1e-6, err_msg=tap
        )
        ours.extend(found.scores[tap] - exact)
        theirs.extend(loop - exact)
        largest = max(largest, np.abs(exact).max())
    assert largest > 1e-3  # there is something to find
    # As near to float64 as the loop. The rounding of the intact network's loss is in
    # all scores of a tap alike, so one small network makes a very rough measure.
    rms = np.sqrt(np.mean(np.square([ours, theirs]), axis=1))
    assert not double or rms[0] <= 4 * rms[1] + 6e-8 * largest, rms
    return model, found
