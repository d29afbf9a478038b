"""`AFD` against a slow NumPy twin, numbers worked out elsewhere, and by hand."""

from types import SimpleNamespace

import afd_reference as ref
import keras
import numpy as np
import pytest
import tensorflow as tf
from afd_reference import (
    SOURCE,
    SOURCE_SHAPES,
    STATE,
    TARGET,
    TARGET_SHAPES,
    D,
    built,
    loaded,
    twin,
)
from reference import SOURCE_MAP, TARGET_MAP, p

from keras_delta.regularizers import Regularizer, distances
from keras_delta.regularizers.afd import AFD
from keras_delta.regularizers.afd_network import attend


def test_distances_of_energies():
    """Students p(240) and TARGET_MAP, teacher SOURCE_MAP; checked in PyTorch."""
    targets = [p(240).reshape(3, 4, 4, 5), TARGET_MAP]
    values = distances.energy_distances([SOURCE_MAP], targets)
    assert values.shape == (3, 1, 2) and values.dtype == "float32"
    expected = [[0.003348, 0.045044], [0.030145, 0.083338], [0.016111, 0.039982]]
    np.testing.assert_allclose(values[:, 0], expected, atol=1e-6)
    attention = np.array([[0.25, 0.75], [0.6, 0.4], [0.5, 0.5]])
    total = (attention * np.array(values)[:, 0]).sum(axis=1).mean()
    assert total == pytest.approx(0.0380295, abs=1e-6)


def test_attention_by_hand():
    keys = np.array([[[[1, 2]], [[3, 1]]]], "float32")
    attention = attend(
        np.array([[[1, -1]]], "float32"),
        keys,
        np.array([[0.5, 0.5]], "float32"),
        np.eye(2, dtype="float32"),
    )
    np.testing.assert_allclose(attention, [[[0.107042, 0.892958]]], atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [False, True])
def test_equals_the_numpy_twin(training, build):
    regularizer = built() if build else AFD()
    regularizer.load_official(STATE)
    assert regularizer.dimension == D
    value = regularizer.feature_distance(SOURCE, TARGET, training=training)
    assert value.dtype == "float32" and value.shape == ()
    assert float(value) == pytest.approx(twin(training), abs=1e-6)


def test_attention_matrix():
    attention = loaded().attention_matrix(SOURCE, TARGET)
    expected = ref.attention([*SOURCE.values()], [*TARGET.values()], STATE, False)
    assert attention.shape == (5, 3, 2) and attention.dtype == "float32"
    np.testing.assert_allclose(attention, expected, atol=1e-5)
    np.testing.assert_allclose(np.sum(attention, axis=-1), 1, atol=1e-6)


def test_the_mode_of_batch_normalization():
    """Training moves the statistics by a tenth; inference leaves them."""
    regularizer = loaded()
    norm = regularizer.network.queries[0].norm
    before = norm.moving_mean.numpy()
    regularizer.feature_distance(SOURCE, TARGET)
    regularizer.attention_matrix(SOURCE, TARGET)
    np.testing.assert_array_equal(norm.moving_mean, before)
    regularizer.feature_distance(SOURCE, TARGET, training=True)
    rows = SOURCE["a"].mean(axis=(1, 2)) @ STATE[f"{ref.QUERY}.0.linear.weight"].T
    rows = rows + STATE[f"{ref.QUERY}.0.linear.bias"]
    expected = 0.9 * before + 0.1 * rows.mean(axis=0)
    np.testing.assert_allclose(norm.moving_mean, expected, atol=1e-5)


def test_names_decide_and_not_the_order_of_a_dict():
    regularizer = loaded()
    backwards = [dict(reversed(maps.items())) for maps in (SOURCE, TARGET)]
    value = regularizer.feature_distance(*backwards)
    assert float(value) == pytest.approx(twin(False), abs=1e-6)


def test_sizes_known_only_at_run_time():
    regularizer = AFD(dimension=D)
    regularizer.build_for(
        {tap: (None, None, s[-1]) for tap, s in SOURCE_SHAPES.items()},
        {tap: (None, None, s[-1]) for tap, s in TARGET_SHAPES.items()},
    )
    regularizer.load_official(STATE)
    signature = [
        {tap: tf.TensorSpec((None, None, None, s[-1])) for tap, s in shapes.items()}
        for shapes in (SOURCE_SHAPES, TARGET_SHAPES)
    ]
    run = tf.function(regularizer.feature_distance, input_signature=signature)
    assert float(run(SOURCE, TARGET)) == pytest.approx(twin(False), abs=1e-6)


def test_half_precision():
    """Squares of 300 overflow float16."""
    half = [
        {tap: (300 * m).astype("float16") for tap, m in maps.items()}
        for maps in (SOURCE, TARGET)
    ]
    full = [{tap: m.astype("float32") for tap, m in maps.items()} for maps in half]
    keras.config.set_dtype_policy("mixed_float16")
    regularizer = loaded()
    assert {v.dtype for v in regularizer.variables} == {"float32"}
    value = regularizer.feature_distance(*half, training=True)
    assert value.dtype == "float32"
    assert float(value) == pytest.approx(twin(True, *full), abs=1e-6)


def gradients(regularizer, source, target, training=True):
    """Distance; gradients by the maps of both, and by the meta network's weights."""
    source, target = (
        {tap: tf.constant(m) for tap, m in maps.items()} for maps in (source, target)
    )
    weights = [v.value for v in regularizer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch((source, target))
        stopped = {tap: tf.stop_gradient(m) for tap, m in source.items()}
        value = regularizer.feature_distance(stopped, target, training=training)
    return value, *tape.gradient(value, (source, target, weights))


def test_gradients_reach_the_target_and_the_meta_network():
    regularizer = loaded()
    _, by_source, by_target, by_weights = gradients(regularizer, SOURCE, TARGET)
    assert set(by_source.values()) == {None}
    assert all(np.abs(g).max() > 0 for g in by_target.values())
    reached = {
        v.path: float(np.abs(g).max())
        for v, g in zip(regularizer.trainable_variables, by_weights, strict=True)
    }
    # A shift before BatchNormalization makes no difference.
    assert all(g > 0 for path, g in reached.items() if "bias" not in path)
    # Three queries, two keys and one more, each of four; two lists of positions.
    assert len(reached) == 6 * 4 + 2


def test_the_gradient_is_that_of_finite_differences():
    regularizer = loaded()
    _, _, by_target, _ = gradients(regularizer, SOURCE, TARGET)
    direction = np.random.default_rng(3).normal(size=TARGET["y"].shape)
    step = 1e-5
    ends = [
        twin(True, target={**TARGET, "y": TARGET["y"] + sign * step * direction})
        for sign in (1, -1)
    ]
    numeric = (ends[0] - ends[1]) / (2 * step)
    analytic = float((by_target["y"].numpy() * direction).sum())
    assert analytic == pytest.approx(numeric, rel=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("which", ["source", "target", "both"])
def test_maps_of_zeros(which, training):
    source, target = (
        {tap: m * (which not in (side, "both")) for tap, m in maps.items()}
        for side, maps in (("source", SOURCE), ("target", TARGET))
    )
    value, _, by_target, by_weights = gradients(loaded(), source, target, training)
    assert float(value) == pytest.approx(twin(training, source, target), abs=1e-6)
    assert all(np.isfinite(g).all() for g in [*by_target.values(), *by_weights])


def test_an_empty_batch():
    empty = [{tap: m[:0] for tap, m in maps.items()} for maps in (SOURCE, TARGET)]
    value, _, _, by_weights = gradients(loaded(), *empty)
    assert float(value) == 0
    assert all(np.isfinite(g).all() for g in by_weights)


@pytest.mark.parametrize("first", [3, 5])
def test_two_replicas_equal_one(strategy, first):
    """Three and two samples on two replicas, or five and none: as five on one."""
    one = loaded()
    value, _, _, expected = gradients(one, SOURCE, TARGET)
    with strategy.scope():
        two = loaded()
    parts = [slice(0, first), slice(first, 5)]

    def run(batch):
        with tf.GradientTape() as tape:
            value = two.batch_distance(SimpleNamespace(**batch))
        weights = [v.value for v in two.trainable_variables]
        context = tf.distribute.get_replica_context()
        return context.all_reduce("sum", [value, *tape.gradient(value, weights)])

    def distribute(context):
        part = parts[context.replica_id_in_sync_group]
        maps = [{t: m[part] for t, m in each.items()} for each in (SOURCE, TARGET)]
        share = np.float32((part.stop - part.start) / 5)
        return {"source_maps": maps[0], "target_maps": maps[1], "share": share}

    batches = strategy.experimental_distribute_values_from_function(distribute)
    results = tf.function(lambda: strategy.run(run, args=(batches,)))()
    total, *sums = [strategy.experimental_local_results(r)[0] for r in results]
    np.testing.assert_allclose(total, value, atol=1e-6)
    for ours, theirs in zip(sums, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for ours, theirs in zip(two.variables, one.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- the term of the outputs ---

LOGITS = np.array([[2, 1, -1], [0, 3, 1]]), np.array([[1, 0.5, 0], [-1, 2, 0.5]])


def penalties(regularizer, monkeypatch, source, target, share=1.0):
    monkeypatch.setattr(Regularizer, "penalties", lambda self, batch: (2.0, 0.25))
    batch = SimpleNamespace(source_outputs=source, target_outputs=target, share=share)
    return [float(v) for v in regularizer.penalties(batch)]


def test_penalties_add_the_term_of_the_outputs(monkeypatch):
    values = penalties(AFD(), monkeypatch, *LOGITS)
    assert values == pytest.approx([2 + 0.9 * 0.166773, 0.25], abs=1e-6)
    values = penalties(AFD(kd=2.0, temperature=2), monkeypatch, *LOGITS, share=0.25)
    assert values == pytest.approx([2 + 0.5 * 0.132364, 0.25], abs=1e-6)
    assert penalties(AFD(kd=0), monkeypatch, None, None) == [2.0, 0.25]
    assert penalties(AFD(), monkeypatch, *(v[:0] for v in LOGITS))[0] == 2.0


def test_what_a_step_has_to_compute():
    assert AFD().needs == {"source_maps", "target_maps", "source_outputs"}
    assert AFD(kd=0).needs == {"source_maps", "target_maps"}
    assert not AFD().starts_at_source
