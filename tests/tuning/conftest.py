"""Searches that take seconds: no tracing, and attention that is not computed."""

import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta._network import fingerprint


@pytest.fixture(scope="module")
def eagerly():
    """No tracing, which takes longer than all trainings of a test."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def cheap_attention():
    """Scores that depend on the data and the head, as the real ones do."""

    def compute(model, data, *args, temperature=5.0, **kwargs):
        head = model.target.get_layer("head").get_weights()
        seed = int(fingerprint.digest([*data, head]), 16)
        rng = np.random.default_rng(seed)
        shapes = {t: model.target.get_layer(t).output.shape for t in model.taps}
        scores = {tap: rng.normal(size=s[-1]) for tap, s in shapes.items()}
        return kd.ChannelAttention.from_scores(scores, temperature=temperature)

    real = kd.ChannelAttention.compute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kd.ChannelAttention, "compute", compute)
        yield real
