"""A small model whose target has moved away from its source."""

import keras
import numpy as np
import pytest

import keras_delta as kd


def move(model, seed=5, by=0.1):
    """Add noise to every trainable parameter."""
    rng = np.random.default_rng(seed)
    for v in model.trainable_variables:
        v.assign(v + by * rng.normal(size=v.shape))


@pytest.fixture
def bound(new_backbone):
    """`bound(regularizer, moved=True, batch_norm=False)`: a compiled DeltaModel."""

    def make(regularizer, moved=True, batch_norm=False, taps="auto", source=None):
        source = source or new_backbone(batch_norm=batch_norm)
        keras.utils.set_random_seed(0)  # the same head for every model
        target = kd.attach_head(source, 3)
        if moved:
            move(target)
        model = kd.DeltaModel(target, source, taps, regularizer)
        model.compile(
            keras.optimizers.SGD(0.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )
        return model

    return make
