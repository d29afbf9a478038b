"""Channel attention on two replicas: the same scores as on one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta.attention import ChannelAttention
from keras_delta.attention import calls as _calls

pytestmark = pytest.mark.filterwarnings("ignore:The head is no better than chance")
TAPS = ["conv0", "conv2"]


def data(count=37):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(count, 16, 16, 3)).astype("float32")
    return x, rng.integers(0, 3, count)


def compute(model, given=None, taps=TAPS, **kwargs):
    given = data() if given is None else given
    return ChannelAttention.compute(model, given, taps, progress=False, **kwargs)


@pytest.fixture
def build(new_backbone):
    def make():
        keras.utils.set_random_seed(0)  # of the head
        return kd.attach_head(new_backbone(batch_norm=True), 3)

    return make


@pytest.fixture
def spread(strategy, build):
    """A model made in the strategy's scope."""
    with strategy.scope():
        return build()


@pytest.fixture
def calls(monkeypatch):
    """The shapes (replicas, pairs each) that are traced; `limit` interrupts."""

    class Calls(list):
        count, limit = 0, None

    made, init, call = Calls(), _calls.Call.__init__, _calls.Call.__call__

    def record(self, *args):
        init(self, *args)
        made.append(self.shape)

    def counted(self, *args):
        made.count += 1
        if made.count == made.limit:
            raise KeyboardInterrupt
        return call(self, *args)

    monkeypatch.setattr(_calls.Call, "__init__", record)
    monkeypatch.setattr(_calls.Call, "__call__", counted)
    return made


def assert_close(one, two):
    for tap in TAPS:
        assert np.abs(two.scores[tap]).max() > 1e-3
        np.testing.assert_allclose(one.scores[tap], two.scores[tap], atol=1e-6)
        np.testing.assert_allclose(
            one.standard_errors[tap], two.standard_errors[tap], rtol=1e-4
        )


@pytest.mark.parametrize("memory", [None, "130KB", "201KB"])
def test_two_replicas_give_the_scores_of_one(memory, build, spread, calls):
    """Also where pairs do not divide evenly among the replicas."""
    expected = compute(build(), memory=memory)
    assert {replicas for replicas, _ in calls} == {1}
    del calls[:]
    found = compute(spread, memory=memory)
    assert {replicas for replicas, _ in calls} == {2}
    assert_close(found, expected)
    np.testing.assert_array_equal(found.counts or 0, expected.counts or 0)


def test_inside_of_a_scope(strategy, build, spread, calls):
    expected = compute(build())
    plain = build()
    with strategy.scope():
        del calls[:]
        assert_close(compute(spread), expected)
        assert_close(compute(plain), expected)  # made outside
    assert {replicas for replicas, _ in calls} == {2}


def test_one_pair_for_two_replicas(spread, build):
    """The second replica computes what nobody asked for, and it is dropped."""
    given = tuple(v[:1] for v in data())
    kwargs = {"memory": "48KB"}
    found, expected = compute(spread, given, **kwargs), compute(build(), given)
    for tap in TAPS:
        np.testing.assert_allclose(found.scores[tap], expected.scores[tap], atol=1e-6)


def test_a_checkpoint(spread, calls, tmp_path):
    expected = compute(spread, memory="201KB")
    for limit in (3, 2, 4):
        calls.count, calls.limit = 0, limit
        with pytest.raises(KeyboardInterrupt):
            compute(spread, memory="201KB", checkpoint=tmp_path / "c")
    calls.limit = None
    found = compute(spread, memory="201KB", checkpoint=tmp_path / "c")
    assert found.get_config() == expected.get_config()


def test_tolerance(spread, build):
    given = data(150)
    found, expected = (compute(m, given, tolerance=1.0) for m in (spread, build()))
    for tap in TAPS:
        np.testing.assert_array_equal(found.counts[tap], expected.counts[tap])
    assert_close(found, expected)


def test_a_head_that_is_trained_first(strategy, spread, build):
    with strategy.scope():
        found = compute(spread, train_head=True)
    assert_close(found, compute(build(), train_head=True))


@pytest.mark.parametrize("rank_one", [False, True])
def test_a_wide_tap(rank_one, strategy, calls):
    """From 160 channels on a convolution gets rank-one updates."""

    def build():
        rng = np.random.default_rng(0)
        inputs = keras.Input((4, 4, 3))
        x = keras.layers.Conv2D(160 if rank_one else 20, 3, name="tap")(inputs)
        x = keras.layers.Conv2D(4, 2, activation="relu")(x)
        x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
        model = keras.Model(inputs, x)
        for v in model.variables:
            v.assign(rng.normal(size=v.shape) * 0.5)
        return model

    rng = np.random.default_rng(5)
    given = rng.normal(size=(5, 4, 4, 3)).astype("float32"), np.arange(5) % 3
    kwargs = {"loss": keras.losses.SparseCategoricalCrossentropy(True)}
    expected = compute(build(), given, ["tap"], **kwargs)
    with strategy.scope():
        found = compute(build(), given, ["tap"], **kwargs)
    assert np.abs(expected.scores["tap"]).max() > 1e-3
    np.testing.assert_allclose(found.scores["tap"], expected.scores["tap"], atol=1e-6)


def test_inside_of_fit(strategy, new_backbone, calls):
    """`Delta(attention="auto")` under a strategy is what it is without one."""
    x, y = data(8)

    def train():
        keras.utils.set_random_seed(0)
        source = new_backbone()
        model = kd.DeltaModel(kd.attach_head(source, 3), source, taps=TAPS)
        model.compile(
            keras.optimizers.SGD(0.0),
            keras.losses.SparseCategoricalCrossentropy(True),
            run_eagerly=True,
        )
        regularizer = kd.regularizers.Delta(attention="auto")
        model.fit(x, y, 8, regularizer=regularizer, verbose=0)
        return regularizer

    expected = train()
    del calls[:]
    with strategy.scope():
        found = train()
    assert {replicas for replicas, _ in calls} == {2}
    assert_close(found.computed_attention, expected.computed_attention)
    for tap, weights in expected.attention_weights().items():
        np.testing.assert_allclose(found.attention_weights()[tap], weights, atol=1e-6)
    assert tf.distribute.get_strategy().num_replicas_in_sync == 1
