"""Attention of the moving target: when, on what, into which weights and logs."""

import copy
import csv
import math

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta.attention import ChannelAttention
from keras_delta.callbacks import ChannelAttentionCallback
from keras_delta.callbacks.channel_attention_callback import rank_change
from keras_delta.regularizers import L2SP, Delta, FeatureMap, L2SPAtt, Sum

# The heads here are random; that compute warns of them is tested elsewhere.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The head is no better than chance"),
    pytest.mark.usefixtures("tensorflow_seed"),
]

TAPS = reference.TAPS
X, Y = reference.learnable_data(8)


def make(new_backbone, regularizer="delta", rate=0.05, eagerly=True, **kwargs):
    """A compiled model; `"delta"` is one with known weights."""
    if isinstance(regularizer, str) and regularizer == "delta":
        regularizer = Delta(0.5, 0.1, attention=reference.WEIGHTS)
    optimizer = keras.optimizers.SGD(rate)
    if keras.config.dtype_policy().name == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**8)
    pair = reference.pair(new_backbone, **kwargs)
    eagerly = {"run_eagerly": True} if eagerly else {}
    return reference.compiled(*pair, regularizer, optimizer=optimizer, **eagerly)


def fit(model, *callbacks, epochs=3, verbose=0, **kwargs):
    """Two steps per epoch, in the order of the data."""
    kwargs = {"batch_size": 4, "shuffle": False, **kwargs}
    return model.fit(
        X, Y, epochs=epochs, callbacks=list(callbacks), verbose=verbose, **kwargs
    )


def computed_at(callback):
    return [epoch for epoch, _ in callback.history]


def assert_weights(found, expected):
    assert set(found) == set(expected) == set(TAPS)
    for tap in TAPS:
        np.testing.assert_array_equal(found[tap], expected[tap], err_msg=tap)


# --- rank change ---------------------------------------------------------------


def slow_rank_change(before, after):
    """Ranks by counting, ties averaged, and NumPy's Pearson correlation."""

    def ranks(values):
        return [
            sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2
            for v in values
        ]

    return 1 - np.corrcoef(ranks(before), ranks(after))[0, 1]


@pytest.mark.parametrize(
    "before, after, expected",
    [
        ([0.1, 0.2, 0.7], [0.3, 0.33, 0.37], 0.0),
        ([0.1, 0.2, 0.7], [0.7, 0.2, 0.1], 2.0),
        # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = 0, 1, 1: rho = 1/2.
        ([0.1, 0.2, 0.7], [0.1, 0.7, 0.2], 0.5),
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3.5, 3.5, less 2.5: rho = 3.75 / 4.5.
        ([0.1, 0.2, 0.2, 0.5], [0.1, 0.2, 0.35, 0.35], 1 / 6),
        # Ranks 1.5, 1.5, 3.5, 3.5 and 1.5, 3.5, 1.5, 3.5: rho = 0.
        ([0.0, 0.0, 0.5, 0.5], [0.0, 0.5, 0.0, 0.5], 1.0),
    ],
)
def test_rank_change_by_hand(before, after, expected):
    assert rank_change(before, after) == pytest.approx(expected, abs=1e-12)
    assert slow_rank_change(before, after) == pytest.approx(expected, abs=1e-12)


def test_rank_change_with_many_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, after = rng.integers(0, 5, (2, 40)).astype("float32")
        expected = slow_rank_change(before, after)
        assert rank_change(before, after) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("a, b", [([0.5, 0.5], [0.1, 0.9]), ([1.0], [1.0])])
def test_rank_change_of_weights_without_an_order_is_nan(a, b):
    assert math.isnan(rank_change(a, b))
    assert math.isnan(rank_change(b, a))


# --- when ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "every, epochs, update, expected",
    [
        (2, 5, True, [1, 3]),
        (2, 4, True, [1]),
        (2, 4, False, [1, 3]),
    ],
)
def test_epochs(every, epochs, update, expected, new_backbone):
    callback = ChannelAttentionCallback((X, Y), every, update)
    logs = fit(make(new_backbone), callback, epochs=epochs).history
    assert computed_at(callback) == expected
    for tap in TAPS:
        for name in (f"attention_perplexity/{tap}", f"attention_rank_change/{tap}"):
            known = [i for i, value in enumerate(logs[name]) if not np.isnan(value)]
            assert len(logs[name]) == epochs and known == expected


def test_a_second_fit_goes_on_counting_and_starts_its_history_anew(new_backbone):
    model, callback = make(new_backbone), ChannelAttentionCallback((X, Y), every=2)
    fit(model, callback, epochs=3)
    fit(model, callback, initial_epoch=3, epochs=5)
    assert computed_at(callback) == [3]


def test_a_callback_that_never_computes_is_reported(new_backbone):
    callback = ChannelAttentionCallback((X, Y), every=2)
    with pytest.warns(UserWarning, match="`every=2`, but training ends after epoch 2"):
        fit(make(new_backbone), callback, epochs=2)
    assert callback.history == []


class Stop(keras.callbacks.Callback):
    """Stops after the first epoch, as EarlyStopping does."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


@pytest.mark.parametrize("update, expected", [(True, []), (False, [0])])
def test_nothing_is_updated_once_training_has_been_stopped(
    update, expected, new_backbone
):
    callback = ChannelAttentionCallback((X, Y), update=update)
    fit(make(new_backbone), Stop(), callback)
    assert computed_at(callback) == expected


def test_training_that_diverged_is_passed_over(new_backbone):
    callback = ChannelAttentionCallback((X, Y))
    logs = fit(make(new_backbone, rate=1e30), callback).history
    assert np.isnan(logs["loss"]).all()
    assert callback.history == []


# --- what ----------------------------------------------------------------------


class Look(keras.callbacks.Callback):
    """Computes by itself, and keeps the weights in use; stands behind the callback."""

    def __init__(self, **kwargs):
        super().__init__()
        self.kwargs, self.computed, self.used, self.flags = kwargs, [], [], []

    def on_epoch_end(self, epoch, logs=None):
        self.computed.append(
            ChannelAttention.compute(self.model, (X, Y), progress=False, **self.kwargs)
        )
        self.used.append(self.model.regularizer.attention_weights())
        self.flags.append([layer.trainable for layer in self.model._flatten_layers()])


def test_weights_and_logs(new_backbone):
    """Each epoch's attention is the moving target's, in use, and in the logs."""
    options = {"normalization": "softmax", "temperature": 0.5}
    callback, look = ChannelAttentionCallback((X, Y), **options), Look(**options)
    model = make(new_backbone)
    before = model.regularizer.attention_weights()
    flags = [layer.trainable for layer in model._flatten_layers()]
    logs = fit(model, callback, look, epochs=4).history
    for i, (epoch, attention) in enumerate(callback.history):
        assert epoch == i
        assert_weights(attention.weights, look.computed[i].weights)
        assert_weights(look.used[i], attention.weights)
        for tap in TAPS:
            w = attention.weights[tap].astype("float64")
            assert logs[f"attention_perplexity/{tap}"][i] == pytest.approx(
                np.exp(-(w * np.log(w)).sum()), rel=1e-5
            )
            assert logs[f"attention_rank_change/{tap}"][i] == pytest.approx(
                slow_rank_change(before[tap], w.astype("float32"))
            )
        before = attention.weights
    assert look.flags == [flags] * 4
    scores = [attention.scores["conv1"] for _, attention in callback.history]
    assert not np.allclose(scores[0], scores[1])  # the target did move


def test_training_goes_on_with_the_new_weights(new_backbone):
    """The same as computing between two calls of `fit`."""
    model = make(new_backbone)
    fit(model, ChannelAttentionCallback((X, Y)), epochs=2)
    by_hand, without = make(new_backbone), make(new_backbone)
    fit(by_hand, epochs=1)
    attention = ChannelAttention.compute(by_hand, (X, Y), progress=False)
    by_hand.regularizer.set_attention_weights(attention)
    fit(by_hand, initial_epoch=1, epochs=2)
    reference.assert_same_weights(model, by_hand, atol=1e-6)
    fit(without, epochs=2)
    moved = (
        without.target.get_layer("conv0").kernel
        - model.target.get_layer("conv0").kernel
    )
    assert np.abs(moved).max() > 1e-5


@pytest.mark.parametrize("given", [{}, {"temperature": 2.0}])
def test_the_temperature_is_the_regularizers(given, new_backbone):
    """Unless the callback has one."""
    first, second = (Delta(temperature=t) for t in (50.0, 1.0))
    model = make(new_backbone, [first, second])
    callback = ChannelAttentionCallback((X, Y), **given)
    fit(model, callback, epochs=2)
    (_, attention), *_ = callback.history
    for member in model.regularizer.members:
        temperature = given.get("temperature", member.temperature)
        expected = ChannelAttention.from_scores(
            attention.scores, temperature=temperature
        )
        for tap, weights in member.attention_weights().items():
            np.testing.assert_allclose(weights, expected.weights[tap], rtol=1e-5)


def test_watching_changes_nothing(new_backbone):
    """Dropout, shuffling and moving statistics would show any trace of it."""
    models = []
    for callbacks in (
        [],
        [ChannelAttentionCallback((X, Y), update=False, train_head=True)],
    ):
        keras.utils.set_random_seed(3)
        models.append(make(new_backbone, batch_norm=True, dropout=0.5))
        fit(models[-1], *callbacks, epochs=2, shuffle=True)
    reference.assert_same_weights(*models, atol=0, rtol=0)


def test_watching_compares_with_the_weights_in_use(new_backbone):
    callback = ChannelAttentionCallback((X, Y), update=False)
    model = make(new_backbone)
    logs = fit(model, callback, epochs=2).history
    used = {t: np.asarray(w, "float32") for t, w in reference.WEIGHTS.items()}
    assert_weights(model.regularizer.attention_weights(), used)
    for epoch, attention in callback.history:
        for tap in TAPS:
            found = logs[f"attention_rank_change/{tap}"][epoch]
            expected = slow_rank_change(used[tap], attention.weights[tap])
            assert found == pytest.approx(expected)


def test_watching_without_attention_compares_with_the_time_before(new_backbone):
    callback = ChannelAttentionCallback((X, Y), update=False, taps="relu0")
    logs = fit(make(new_backbone, "l2_sp"), callback, epochs=3).history
    found = logs["attention_rank_change/relu0"]
    assert np.isnan(found[0])
    for i in (1, 2):
        pair = [callback.history[j][1].weights["relu0"] for j in (i - 1, i)]
        assert found[i] == pytest.approx(slow_rank_change(*pair))
    assert "attention_perplexity/conv1" not in logs


def test_uniform_weights_have_no_order_to_change(new_backbone):
    model = make(new_backbone, Delta(0.5, 0.1, attention="uniform"))
    callback = ChannelAttentionCallback((X, Y))
    logs = fit(model, callback).history
    found = logs["attention_rank_change/conv1"]
    assert np.isnan(found[0]) and np.isfinite(found[1])
    assert_weights(
        model.regularizer.attention_weights(), callback.history[-1][1].weights
    )


def test_every_regularizer_of_a_sum_gets_the_weights(new_backbone):
    inner = Sum([L2SP(0.1, 0.1), L2SPAtt(0.1, 0.1, attention="uniform")])
    members = [
        FeatureMap(0.1, 0.1),
        Delta(0.5, 0.1, attention=reference.WEIGHTS),
        inner,
    ]
    model, callback = make(new_backbone, members), ChannelAttentionCallback((X, Y))
    fit(model, callback)
    _, delta, inner = model.regularizer.members
    for regularizer in (delta, inner.members[1]):
        assert regularizer.computed_attention is callback.history[-1][1]
        assert_weights(regularizer.attention_weights(), callback.history[-1][1].weights)


def test_the_step_is_not_traced_again(new_backbone, monkeypatch):
    """Python sees `tap_distance` while tracing alone."""
    calls = []
    original = Delta.tap_distance

    def counting(self, tap, *maps):
        calls.append(tap)
        return original(self, tap, *maps)

    monkeypatch.setattr(Delta, "tap_distance", counting)
    counts = []
    for callbacks in ([], [ChannelAttentionCallback((X, Y))]):
        calls.clear()
        fit(make(new_backbone, eagerly=False), *callbacks, epochs=4)
        counts.append(len(calls))
    assert counts[0] > 0 and counts[1] == counts[0]


# --- data ----------------------------------------------------------------------


class Sequence(keras.utils.PyDataset):
    """Batches of four."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4]


@pytest.mark.parametrize("kind, max_samples", [("PyDataset", 256), ("tf.data", None)])
def test_forms_of_data(kind, max_samples, new_backbone):
    if kind == "tf.data":
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    else:
        data = Sequence()
    found = []
    for each in (data, (X, Y)):
        callback = ChannelAttentionCallback(each, max_samples=max_samples)
        fit(make(new_backbone), callback, epochs=2)
        found.append(callback.history[0][1])
    assert found[0].samples == found[1].samples == 8
    for tap in TAPS:
        np.testing.assert_allclose(
            found[0].scores[tap], found[1].scores[tap], rtol=1e-4, atol=1e-6
        )


def test_the_same_samples_each_time(new_backbone):
    """A target that stands still has the same attention, in shuffled data too."""
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(8).batch(4).repeat()
    callback = ChannelAttentionCallback(data, max_samples=6)
    logs = fit(make(new_backbone, rate=0.0), callback, epochs=4).history
    first = callback.history[0][1]
    assert first.samples == 6
    for _, attention in callback.history[1:]:
        np.testing.assert_array_equal(attention.scores["conv1"], first.scores["conv1"])
    assert logs["attention_rank_change/conv1"][1:3] == pytest.approx([0, 0], abs=1e-9)


# --- together with ... ---------------------------------------------------------


def test_two_replicas_equal_one(strategy, new_backbone):
    one, expected = make(new_backbone), ChannelAttentionCallback((X, Y))
    fit(one, expected)
    callback = ChannelAttentionCallback((X, Y))
    with strategy.scope():
        two = make(new_backbone)
    fit(two, callback)
    assert computed_at(callback) == [0, 1]
    for (_, a), (_, b) in zip(callback.history, expected.history, strict=True):
        for tap in TAPS:
            np.testing.assert_allclose(a.weights[tap], b.weights[tap], rtol=1e-3)
    assert_weights(two.regularizer.attention_weights(), callback.history[-1][1].weights)
    for v in two.regularizer.variables:
        copies = strategy.experimental_local_results(v.value)
        np.testing.assert_array_equal(copies[0], copies[1])
    reference.assert_same_weights(one.target, two.target, atol=1e-4)


def test_mixed_precision(new_backbone):
    expected = ChannelAttentionCallback((X, Y))
    fit(make(new_backbone), expected)
    keras.config.set_dtype_policy("mixed_float16")
    callback = ChannelAttentionCallback((X, Y))
    logs = fit(make(new_backbone), callback).history
    for tap in TAPS:
        np.testing.assert_allclose(
            callback.history[-1][1].weights[tap],
            expected.history[-1][1].weights[tap],
            rtol=0.1,
        )
        assert np.isfinite(logs[f"attention_rank_change/{tap}"][:2]).all()


class Break(keras.callbacks.Callback):
    """A crash at the start of the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_backup_and_restore(new_backbone, tmp_path):
    """Interrupted and resumed in a new process is the same as not interrupted."""
    whole, expected = make(new_backbone), ChannelAttentionCallback((X, Y), every=2)
    logs = fit(whole, expected, epochs=5).history
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    callback = ChannelAttentionCallback((X, Y), every=2)
    with pytest.raises(KeyboardInterrupt):
        fit(make(new_backbone), callback, backup, Break(), epochs=5)
    assert computed_at(callback) == [1]
    resumed, callback = make(new_backbone), ChannelAttentionCallback((X, Y), every=2)
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    rest = fit(resumed, callback, backup, epochs=5).history
    assert computed_at(callback) == [3]
    for name in logs:
        np.testing.assert_allclose(rest[name], logs[name][2:], rtol=1e-4, atol=1e-5)
    assert_weights(
        resumed.regularizer.attention_weights(), callback.history[-1][1].weights
    )
    reference.assert_same_weights(resumed, whole)


def test_csv_logger(new_backbone, tmp_path):
    callback = ChannelAttentionCallback((X, Y), every=2, update=False)
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    logs = fit(make(new_backbone), callback, logger, epochs=3).history
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("attention_perplexity/conv0", "attention_rank_change/conv1"):
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, logs[name])
        assert np.isnan(found).tolist() == [True, False, True]


def test_files(new_backbone, tmp_path):
    callback = ChannelAttentionCallback((X, Y), every=2, log_dir=tmp_path / "new")
    fit(make(new_backbone), callback, epochs=5)
    files = sorted((tmp_path / "new").iterdir())
    assert [f.name for f in files] == ["attention-0002.json", "attention-0004.json"]
    for file, (_, attention) in zip(files, callback.history, strict=True):
        assert_weights(ChannelAttention.load(file).weights, attention.weights)


@pytest.mark.parametrize(
    "verbose, of_fit, lines",
    [("auto", 0, 0), ("auto", 2, 1), (0, 2, 0), (1, 0, 1)],
)
def test_what_is_printed(verbose, of_fit, lines, new_backbone, capsys):
    callback = ChannelAttentionCallback((X, Y), verbose=verbose)
    model = make(new_backbone)
    model.prepare(X, Y, verbose=0)
    fit(model, callback, epochs=2, verbose=of_fit)
    out = capsys.readouterr().out
    assert out.count("Epoch 1: channel attention of 8 samples") == lines
    assert out.count(" of 3 (rank change ") == lines  # conv0 has three channels
    assert "Channel attention:" not in out  # compute's own bar


def test_a_tuner_can_copy_it(new_backbone):
    """Keras Tuner does so for each trial; a tf.data.Dataset cannot be copied."""
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    callback = ChannelAttentionCallback(data)
    fit(make(new_backbone), callback, epochs=2)
    other = copy.deepcopy(callback)
    assert other.history == [] and len(callback.history) == 1
    model = make(new_backbone)
    fit(model, other, epochs=3)
    assert other.model is model is not callback.model
    assert computed_at(other) == [0, 1] and computed_at(callback) == [0]


# --- errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"verbose": 3}, ValueError, r"`verbose`\. Expected 'auto', 0, 1 or 2"),
        ({"temperture": 2}, TypeError, r"'temperture'. Closest names: 'temperature'"),
        ({"progress": True}, TypeError, r"'progress'"),
        ({"normalization": "std"}, ValueError, r"`normalization`. .*'standardized'"),
        ({"taps": ["conv0"]}, ValueError, r"`taps`. Expected None .*`update=False`"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        ChannelAttentionCallback((X, Y), **kwargs)


@pytest.mark.parametrize(
    "regularizer, used",
    [(None, "no regularizer"), (L2SP(0.1, 0.1), "the regularizer L2SP")],
)
def test_no_regularizer_that_uses_attention(regularizer, used, new_backbone):
    message = rf"but the model has {used}. Pass `regularizer=\"delta\"` .*update=False"
    model = make(new_backbone, regularizer)
    with pytest.raises(ValueError, match=message):
        fit(model, ChannelAttentionCallback((X, Y)))
    assert model.optimizer.iterations.numpy() == 0


@pytest.mark.parametrize("max_samples", [4, None])
@pytest.mark.parametrize(
    "data, message",
    [
        (lambda: X, "The data has no targets"),
        (lambda: tf.data.Dataset.from_tensor_slices(X).batch(4), "has no targets"),
        (lambda: (batch for batch in [(X, Y)]), "A generator can be read only once"),
    ],
)
def test_data_that_cannot_be_used_is_refused_before_the_first_step(
    data, message, max_samples, new_backbone
):
    model = make(new_backbone)
    with pytest.raises(ValueError, match=message):
        fit(model, ChannelAttentionCallback(data(), max_samples=max_samples))
    assert model.optimizer.iterations.numpy() == 0


# --- Attended.set_attention_weights --------------------------------------------


def test_set_attention_weights_is_saved_with_the_model(new_backbone, tmp_path):
    model = make(new_backbone)
    new = ChannelAttention.from_weights({"conv0": [3, 1, 1], "conv1": [1, 2, 3, 4]})
    model.regularizer.set_attention_weights(new)
    model.prepare(X, Y, verbose=0)
    assert_weights(model.regularizer.attention_weights(), new.weights)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert_weights(loaded.regularizer.attention_weights(), new.weights)


def test_set_attention_weights_refuses_other_taps(new_backbone):
    regularizer = make(new_backbone).regularizer
    before = regularizer.attention_weights()
    for weights, message in (
        ({"conv0": [1, 1, 1]}, "no weights for the tap 'conv1'"),
        ({"conv0": [1, 2, 3], "conv1": [1, 1]}, "has 2 weights .*has 4 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            regularizer.set_attention_weights(ChannelAttention.from_weights(weights))
    assert_weights(regularizer.attention_weights(), before)


def test_set_attention_weights_needs_a_model():
    with pytest.raises(ValueError, match="No model uses this regularizer yet"):
        kd.regularizers.get("delta").set_attention_weights(
            ChannelAttention.from_weights(reference.WEIGHTS)
        )
