"""Standard errors, and channels that stop once their score is known well enough."""

import keras
import numpy as np
import plain_loop
import pytest
import tensorflow as tf
import toy_ablation as toy

import keras_delta as kd
from keras_delta.attention import ChannelAttention
from keras_delta.attention.tally import Tally

pytestmark = pytest.mark.filterwarnings("ignore:The head is no better than chance")
TAPS = ["conv0", "conv1"]


def twin(values, tolerance, batch=32):
    """The rule in plain NumPy, for one tap's differences `(N, C)`.

    A channel that was done is taken up again where the scores of its tap turn out to
    lie closer together than they seemed to.

    Returns:
        Means, standard errors and counts.
    """
    values = np.asarray(values, "float64")
    used = np.zeros(values.shape, bool)
    for start in range(0, len(values), batch):
        active = np.ones(values.shape[1], bool)
        if start > 1:
            means, errors, counts = moments(values, used)
            known = 1.96 * errors <= tolerance * means.std()
            active = ~(known & (counts >= 64))
        used[start : start + batch] = active
    return moments(values, used)


def moments(values, used):
    columns = [v[u] for v, u in zip(values.T, used.T, strict=True)]
    counts = np.array([len(c) for c in columns])
    means = np.array([c.mean() for c in columns])
    errors = np.array([c.std(ddof=1) for c in columns]) / np.sqrt(counts)
    return means, errors, counts


@pytest.mark.parametrize("tolerance", [1e-9, 0.1, 0.3, 0.5, 5.0])
@pytest.mark.parametrize("count", [60, 64, 70, 500])
def test_the_rule_for_stopping(tolerance, count, monkeypatch):
    values = toy.table(count, channels=12)
    found = toy.run(monkeypatch, values, tolerance=tolerance)
    stopped = set()
    for tap, part in {"a": values[:, :4], "b": values[:, 4:]}.items():
        means, errors, counts = twin(part, tolerance)
        np.testing.assert_array_equal(found.counts[tap], counts)
        np.testing.assert_allclose(found.scores[tap], means, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.standard_errors[tap], errors, rtol=1e-9)
        stopped.update(counts)
    assert found.samples == max(stopped)
    expected = {1e-9: {500}, 0.1: {500}, 5.0: {64}}
    if count == 500 and tolerance in expected:
        assert expected[tolerance] <= stopped
    elif count == 500:
        assert len(stopped) > 3
    elif count < 70:
        assert stopped == {count}


@pytest.mark.parametrize("batch", [1, 7, 10])
def test_small_batches(batch, monkeypatch):
    """As a small memory budget makes: never fewer than 64 samples."""
    values = toy.table(150)
    found = toy.run(monkeypatch, values, tolerance=5.0, memory=2 * batch)
    for tap, part in {"a": values[:, :4], "b": values[:, 4:]}.items():
        means, _, counts = twin(part, 5.0, batch)
        assert set(counts) == {{1: 64, 7: 70, 10: 70}[batch]}
        np.testing.assert_array_equal(found.counts[tap], counts)
        np.testing.assert_allclose(found.scores[tap], means, rtol=1e-12, atol=1e-14)


def test_a_tiny_tolerance_is_none(monkeypatch):
    values = toy.table(200)
    tiny = toy.run(monkeypatch, values, tolerance=1e-12)
    assert toy.same(tiny, toy.run(monkeypatch, values))


def test_channels_that_change_nothing_stop_at_64(monkeypatch):
    values = toy.table(200)
    values[:, [1, 5, 6]] = 0
    found = toy.run(monkeypatch, values, tolerance=1e-6)
    counts = np.concatenate(list(found.counts.values()))
    np.testing.assert_array_equal(counts == 64, values[0] == 0)
    assert found.standard_errors["a"][1] == 0


def test_errors_of_large_scores_are_not_lost_to_rounding():
    """Sums of squares cancel: still right where the mean is 1e4 spreads."""
    values = np.random.default_rng(0).normal(1e4, 1, (300, 2))
    tally = Tally.of_nothing(2)
    for start in range(0, 300, 32):
        part = values[start : start + 32]
        tally = tally.add(part, np.ones(2, bool))
    expected = values.std(axis=0, ddof=1) / 300**0.5
    np.testing.assert_allclose(tally.standard_error, expected, rtol=1e-6)


# --- on a real network -----------------------------------------------------------


@pytest.fixture
def model(new_backbone):
    return kd.attach_head(new_backbone(size=8, widths=(4, 5)), 3)


def data(count):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    return x, rng.integers(0, 3, count)


def compute(model, given, taps=TAPS, **kwargs):
    return ChannelAttention.compute(model, given, taps, progress=False, **kwargs)


def differences(model, tap, x, y):
    """Loss increase `(N, C)`, by zeroing a filter and running all of the network."""
    layer, found = model.get_layer(tap), []
    intact = plain_loop.cross_entropy(y, model(x, training=False))
    original = layer.get_weights()
    for j in range(original[0].shape[-1]):
        changed = [w.copy() for w in original]
        for w in changed:
            w[..., j] = 0
        layer.set_weights(changed)
        found.append(plain_loop.cross_entropy(y, model(x, training=False)) - intact)
    layer.set_weights(original)
    return np.stack(found, axis=1)


@pytest.mark.parametrize("tolerance", [None, 1.0])
def test_counts_and_errors_of_a_network(tolerance, model, tmp_path):
    x, y = data(200)
    found = compute(model, (x, y), tolerance=tolerance)
    found.save(tmp_path / "a.json")
    loaded, different = ChannelAttention.load(tmp_path / "a.json"), set()
    for tap in TAPS:
        each = differences(model, tap, x, y)
        means, errors, counts = twin(each, tolerance or 0)
        np.testing.assert_allclose(found.scores[tap], means, atol=1e-6)
        np.testing.assert_allclose(found.standard_errors[tap], errors, rtol=1e-4)
        np.testing.assert_array_equal(
            loaded.standard_errors[tap], found.standard_errors[tap]
        )
        if tolerance:
            different.update(counts)
            np.testing.assert_array_equal(found.counts[tap], counts)
            np.testing.assert_array_equal(loaded.counts[tap], counts)
            assert loaded.counts[tap].dtype == "int64"
    if tolerance:
        assert len(different) > 1
    else:
        assert found.counts is loaded.counts is None


def test_one_sample_has_no_error(model, tmp_path):
    """Not a number, which JSON has no word for."""
    found = compute(model, data(1))
    assert np.isnan(found.standard_errors["conv0"]).all()
    found.save(tmp_path / "a.json")
    assert "NaN" not in (tmp_path / "a.json").read_text()
    loaded = ChannelAttention.load(tmp_path / "a.json")
    assert np.isnan(loaded.standard_errors["conv0"]).all()
    assert loaded.standard_errors["conv0"].dtype == "float32"


def test_reading_ends_when_all_is_known(model):
    x, y = data(64)
    read = 0

    def samples():
        nonlocal read
        for i in range(2000):
            read += 1
            yield x[i % 64], y[i % 64]

    given = tf.data.Dataset.from_generator(
        samples,
        output_signature=(
            tf.TensorSpec((8, 8, 3), tf.float32),
            tf.TensorSpec((), tf.int64),
        ),
    ).batch(32)
    found = compute(model, given, tolerance=10.0)
    assert found.samples == 64
    assert read < 300  # tf.data itself reads ahead


def test_tolerance_with_endless_data_needs_max_samples(model):
    x, y = data(64)
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(32).repeat()
    with pytest.raises(ValueError, match=r"no end.*`max_samples=256`"):
        compute(model, endless, tolerance=10.0)
    assert compute(model, endless, tolerance=10.0, max_samples=500).samples == 64


def test_taps_that_reach_nothing(model):
    """Their scores are 0 and known from 64 samples on."""
    beside = keras.layers.Conv2D(3, 1, name="beside")(model.get_layer("conv0").output)
    nowhere = keras.layers.GlobalAveragePooling2D()(beside)
    both = keras.Model(model.input, [model.output, nowhere])
    loss = [keras.losses.SparseCategoricalCrossentropy(from_logits=True), None]
    x, y = data(150)
    found = compute(both, (x, [y, y]), ["beside"], tolerance=0.1, loss=loss)
    np.testing.assert_array_equal(found.scores["beside"], 0)
    assert found.samples == 64


def test_the_tolerance_is_checked(model):
    with pytest.raises(ValueError, match=r"`tolerance`. Expected a positive finite"):
        compute(model, data(2), tolerance=-0.5)


def test_a_tolerance_of_numpys_can_be_saved(model, tmp_path):
    found = compute(model, data(70), tolerance=np.float32(5))
    found.save(tmp_path / "a.json")
    assert ChannelAttention.load(tmp_path / "a.json").made_of["tolerance"] == 5
