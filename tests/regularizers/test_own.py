"""A user's own regularizer: its hooks run or are refused, never silently skipped."""

import numpy as np
import pytest
from keras import ops

import keras_delta as kd

X = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
Y = np.arange(8) % 3


class Own(kd.regularizers.Regularizer):
    """A user's method: nothing but what it is tested for."""

    def __init__(self):
        super().__init__(alpha=2.0, beta=0.0)
        self.looks = []

    def prepare(self, model, samples, verbose=True):
        self.looks.append(len(samples(4)[0]))


def test_prepare_runs_before_the_first_step_alone(bound):
    model = bound(Own())
    with pytest.raises(ValueError, match="needs to look at training data"):
        model.train_on_batch(X, Y)
    for _ in range(2):
        model.fit(X, Y, verbose=0)
    assert model.regularizer.looks == [4]


def test_a_distance_of_a_batch_needs_nothing_else(bound):
    class OfBatch(Own):
        def batch_distance(self, batch):
            return ops.cast(ops.shape(batch.images)[0], "float32") * batch.share

    logs = bound(OfBatch()).fit(X, Y, batch_size=4, verbose=0).history
    assert logs["feature_penalty"][0] == pytest.approx(2.0 * 4)


def test_a_distance_of_maps_that_nobody_computes_is_refused(bound):
    class OfMaps(Own):
        def feature_distance(self, source_maps, target_maps):
            return 0.0

    with pytest.raises(ValueError, match=r"names no maps.*regularizers.MAPS"):
        bound(OfMaps()).fit(X, Y, verbose=0)
