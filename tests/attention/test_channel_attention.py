"""Scores to weights, files, checks, and the head that is trained first."""

import inspect
import json
import logging
import os
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import polymorphic_function

import keras_delta as kd
from keras_delta.attention import ChannelAttention, ablation, head_fit, normalize

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TAPS = [("layer1", 4), ("layer2", 6)]
SCORES = {
    "a": np.array([0.3, -0.1, 0.0, 0.25, 0.05]),
    "b": np.array([1e-7, 3.0, -2.0]),
}


def zscore_softmax(s, temperature=5.0):
    z = (s - s.mean()) / s.std() / temperature
    return np.exp(z) / np.exp(z).sum()


# --- normalisation -------------------------------------------------------------


@pytest.mark.parametrize(
    "normalization, temperature, expected",
    [
        ("standardized", 5.0, zscore_softmax),
        ("standardized", 1.0, lambda s: zscore_softmax(s, 1.0)),
        ("softmax", 2.0, lambda s: np.exp(s / 2) / np.exp(s / 2).sum()),
        ("ratio", 5.0, lambda s: np.maximum(s, 0) / np.maximum(s, 0).sum()),
        ("uniform", 5.0, lambda s: np.full(len(s), 1 / len(s))),
    ],
)
def test_weights_of_scores(normalization, temperature, expected):
    attention = ChannelAttention.from_scores(SCORES, normalization, temperature)
    for tap, scores in SCORES.items():
        weights = attention.weights[tap]
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights, expected(scores), rtol=1e-6)
        assert (weights >= 0).all() and weights.sum() == pytest.approx(1, abs=1e-6)
        np.testing.assert_array_equal(attention.scores[tap], scores.astype("float32"))


def test_scores_all_alike_give_uniform_weights():
    for normalization in normalize.ALL:
        found = ChannelAttention.from_scores(
            {"a": np.zeros(4)}, normalization, samples=10
        )
        np.testing.assert_allclose(found.weights["a"], 0.25)


def test_large_scores_do_not_overflow():
    found = ChannelAttention.from_scores({"a": [1e4, 0.0]}, "softmax", 1.0)
    np.testing.assert_array_equal(found.weights["a"], [1, 0])


@pytest.mark.parametrize(
    "scores, kwargs, message",
    [
        ([1.0, np.nan], {}, "vector of finite numbers"),
        ([[1.0, 2.0]], {}, "vector of finite numbers"),
        ([1.0, 2.0], {"normalization": "softmx"}, "Closest names: 'softmax'"),
        ([1.0, 2.0], {"temperature": 0.0}, "a positive finite number"),
    ],
)
def test_bad_scores_are_refused(scores, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ChannelAttention.from_scores({"a": scores}, **kwargs)


def test_from_weights_scales_to_one():
    found = ChannelAttention.from_weights({"a": [1, 3, 0]})
    np.testing.assert_array_equal(found.weights["a"], [0.25, 0.75, 0])
    assert found.scores is None


@pytest.mark.parametrize("weights", [[0.5, -0.5], [], [[1.0]], [np.inf, 1], [0.0, 0.0]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"`weights\['a'\]`"):
        ChannelAttention.from_weights({"a": weights})


def test_perplexity_is_the_number_of_channels_that_count():
    weights = {"even": [0.25] * 4, "one": [1, 0, 0], "some": [0.5, 0.25, 0.25]}
    found = ChannelAttention.from_weights(weights).perplexity
    assert found["even"] == pytest.approx(4)
    assert found["one"] == pytest.approx(1)
    assert found["some"] == pytest.approx(2**1.5)
    shown = repr(ChannelAttention.from_weights(weights))
    assert "even: 4 of 4" in shown and "one: 1 of 3" in shown


# --- files ---------------------------------------------------------------------


@pytest.mark.parametrize("scores", [True, False])
def test_a_file_gives_back_the_same_bits(scores, tmp_path):
    rng = np.random.default_rng(0)
    found = {"a": rng.normal(size=100) * 1e-6, "block/b": rng.normal(size=7)}
    if scores:
        attention = ChannelAttention.from_scores(found, "softmax", 3.3, samples=17)
    else:
        attention = ChannelAttention.from_weights({t: s**2 for t, s in found.items()})
    attention.save(tmp_path / "new" / "a.json")
    loaded = ChannelAttention.load(tmp_path / "new" / "a.json")
    assert list(loaded.weights) == list(attention.weights)
    for tap in found:
        np.testing.assert_array_equal(loaded.weights[tap], attention.weights[tap])
        assert loaded.weights[tap].dtype == np.float32
        if scores:
            np.testing.assert_array_equal(loaded.scores[tap], attention.scores[tap])
    for name in ("normalization", "temperature", "samples"):
        assert getattr(loaded, name) == getattr(attention, name)
    assert (loaded.scores is None) == (not scores)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(attention)
    )
    np.testing.assert_array_equal(again.weights["a"], attention.weights["a"])


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    ChannelAttention.from_scores(SCORES).save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        ChannelAttention.from_scores({"a": [1, 2]}).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.json"]


def test_others_may_read_the_file(tmp_path):
    """As any file written by the user: the umask says who may read it."""
    ChannelAttention.from_scores(SCORES).save(tmp_path / "a.json")
    (tmp_path / "usual").write_text("")
    usual = (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "a.json").stat().st_mode == usual


def test_everything_known_comes_back(fresh, tmp_path):
    """Also through the config of a regularizer, as a saved model keeps it."""
    made = ChannelAttention.compute(
        fresh, learnable(70), ["conv1", "conv2"], tolerance=0.5, train_head=True
    )
    assert set(made.made_of) == {
        *("method", "loss", "weights", "architecture", "taps", "train_head"),
        *("tolerance", "data", "versions"),
    }
    assert made.made_of["versions"] == {
        "keras_delta": kd.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    assert made.made_of["taps"] == {"conv1": 6, "conv2": 8}
    assert len(made.made_of["data"]) == len(made.made_of["weights"]) == 32
    made.save(tmp_path / "a.json")
    loaded = ChannelAttention.load(tmp_path / "a.json")
    regularizer = kd.regularizers.Delta(attention=made)
    config = json.loads(json.dumps(regularizer.get_config()))
    again = kd.regularizers.Delta.from_config(config).attention
    for found in (loaded, again):
        assert found.get_config() == made.get_config()
        for name in ("weights", "scores", "standard_errors", "counts"):
            for tap, array in getattr(made, name).items():
                other = getattr(found, name)[tap]
                np.testing.assert_array_equal(other, array)
                assert other.dtype == array.dtype


def test_fingerprints_tell_data_and_networks_apart(fresh):
    def made_of(x, y, **kwargs):
        kwargs = {"progress": False, "loss": LOSS, **kwargs}
        return ChannelAttention.compute(fresh, (x, y), ["conv2"], **kwargs).made_of

    x, y = learnable(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = made_of(x, y)
        assert made_of(x.copy(), y.copy()) == first
        assert made_of(x[::-1], y)["data"] != first["data"]
        assert made_of(x, (y + 1) % 3)["data"] != first["data"]
        other = made_of(x, y, loss=keras.losses.SparseCategoricalCrossentropy(True, 0))
        assert {k for k in first if first[k] != other[k]} == {"loss"}
        kernel = fresh.get_layer("conv0").kernel
        kernel.assign(kernel * 1.001)
        assert {k for k in first if first[k] != made_of(x, y)[k]} == {"weights"}


def test_a_file_from_before_standard_errors(tmp_path):
    path = tmp_path / "a.json"
    attention = ChannelAttention.from_scores(SCORES, samples=5)
    attention.save(path)
    content = json.loads(path.read_text())
    for new in ("standard_errors", "counts", "made_of"):
        assert content.pop(new) is None
    path.write_text(json.dumps(content))
    loaded = ChannelAttention.load(path)
    assert loaded.get_config() == attention.get_config()


def test_numpy_numbers_can_be_saved(tmp_path):
    made = ChannelAttention.from_scores(
        SCORES, temperature=np.float32(2), samples=np.int64(7)
    )
    made.save(tmp_path / "a.json")
    loaded = ChannelAttention.load(tmp_path / "a.json")
    assert (loaded.temperature, loaded.samples) == (2.0, 7)


def test_the_authors_file_there_and_back(tmp_path):
    rng = np.random.default_rng(0)
    made = ChannelAttention.from_scores({t: rng.normal(size=n) for t, n in TAPS})
    path = tmp_path / "new" / "channel_wei.json"
    made.to_official_json(path)
    lists = json.loads(path.read_text())
    assert [len(scores) for scores in lists] == [n for _, n in TAPS]
    back = ChannelAttention.from_official_json(path, [t for t, _ in TAPS])
    for tap, scores in made.scores.items():
        np.testing.assert_array_equal(back.scores[tap], scores)
        np.testing.assert_allclose(back.weights[tap], made.weights[tap], rtol=1e-6)
    weights_only = ChannelAttention.from_weights({"a": [1, 2]})
    with pytest.raises(ValueError, match=r"authors' file contains scores.*`save`"):
        weights_only.to_official_json(tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "\x00\xff" * 20,
        lambda text: "[1, 2]",
        lambda text: json.dumps({"weights": {"a": [0.5, 0.5]}}),
        lambda text: text.replace("ChannelAttention/1", "ChannelAttention/2"),
        lambda text: text.replace('"weights"', '"wieghts"'),
        lambda text: json.dumps({**json.loads(text), "weights": {"a": [2.0, 3.0]}}),
        lambda text: json.dumps({**json.loads(text), "weights": {"a": "x"}}),
        lambda text: json.dumps({**json.loads(text), "weights": None}),
        lambda text: json.dumps({**json.loads(text), "scores": [1, 2]}),
    ],
)
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = tmp_path / "a.json"
    ChannelAttention.from_scores(SCORES).save(path)
    path.write_bytes(damage(path.read_text()).encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json' cannot be used.*compute"):
        ChannelAttention.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        ChannelAttention.load(tmp_path / "none.json")


def test_the_authors_file(tmp_path):
    """A list of four lists, one a tap, of mean loss differences."""
    rng = np.random.default_rng(0)
    lists = [(rng.normal(size=n) * 1e-3).tolist() for n in (4, 6, 8, 16)]
    path = tmp_path / "channel_wei.Toy.json"
    path.write_text(json.dumps(lists))
    taps = ["layer1", "layer2", "layer3", "layer4"]
    found = ChannelAttention.from_official_json(path, taps)
    assert list(found.weights) == taps
    for tap, scores in zip(taps, lists, strict=True):
        expected = zscore_softmax(np.array(scores))
        np.testing.assert_allclose(found.weights[tap], expected, rtol=1e-6)
        np.testing.assert_array_equal(found.scores[tap], np.float32(scores))
    with pytest.raises(ValueError, match=r"`taps`.*4 names"):
        ChannelAttention.from_official_json(path, taps[:3])
    for wrong in ("{}", "[1, 2, 3, 4]", "[[1, 2], [3"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"list of lists|JSON"):
            ChannelAttention.from_official_json(path, taps)
    path.write_text('[["a", "b"]]')
    with pytest.raises(ValueError, match=r"channel_wei\.Toy\.json"):
        ChannelAttention.from_official_json(path, ["layer1"])


# --- the head ------------------------------------------------------------------


def learnable(count=90):
    """Images whose brightest colour is their label."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    x = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    x[np.arange(count), ..., y] += 2
    return x, y


@pytest.fixture
def fresh(new_backbone):
    """A network with a head that was never trained."""
    target = kd.attach_head(new_backbone(batch_norm=True, size=8), 3)
    head = target.get_layer("head")
    rng = np.random.default_rng(0)
    head.set_weights([rng.normal(size=w.shape) for w in head.get_weights()])
    return target


def test_an_untrained_head_gets_a_warning_that_says_what_to_do(fresh):
    with pytest.warns(UserWarning, match=r"no better than chance.*`train_head=True`"):
        ChannelAttention.compute(fresh, learnable(), ["conv2"], progress=False)


def test_training_the_head_first(fresh, monkeypatch):
    """As fitting a head to frozen features by hand and scoring that network."""
    monkeypatch.setattr(head_fit, "LEAST_STEPS", 180)
    x, y = learnable()
    before = fresh.get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        found, auto = (
            ChannelAttention.compute(
                fresh, (x, y), ["conv2"], train_head=train_head, progress=False
            )
            for train_head in (True, "auto")
        )
    np.testing.assert_array_equal(found.scores["conv2"], auto.scores["conv2"])
    for v, w in zip(fresh.get_weights(), before, strict=True):
        np.testing.assert_array_equal(v, w)
    body = keras.Model(fresh.inputs, fresh.get_layer("head_pool").output)
    features = body(x, training=False).numpy()
    head = keras.layers.Dense(3)
    by_hand = keras.Sequential([keras.Input(features.shape[1:]), head])
    head.set_weights(fresh.get_layer("head").get_weights())
    steps_an_epoch = 3
    epochs = 60  # 180 steps
    rate = keras.optimizers.schedules.ExponentialDecay(
        0.01, steps_an_epoch * epochs / 10, 0.1 ** (1 / 6)
    )
    by_hand.compile(
        keras.optimizers.SGD(rate, momentum=0.9, weight_decay=1e-4),
        keras.losses.SparseCategoricalCrossentropy(True),
        jit_compile=False,
    )
    by_hand.fit(features, y, 32, epochs=epochs, verbose=0)
    twin = keras.models.clone_model(fresh)
    twin.set_weights([*before[:-2], *head.get_weights()])
    expected = ChannelAttention.compute(twin, (x, y), ["conv2"], progress=False)
    # The order of the samples differs, hence only close.
    scale = np.abs(expected.scores["conv2"]).max()
    assert scale > 0.01
    np.testing.assert_allclose(
        found.scores["conv2"], expected.scores["conv2"], atol=0.1 * scale
    )


def test_auto_leaves_a_good_head_alone(fresh):
    x, y = learnable()
    fresh.trainable = True
    for layer in fresh.layers[:-1]:
        layer.trainable = False
    fresh.compile(
        keras.optimizers.Adam(0.1),
        keras.losses.SparseCategoricalCrossentropy(True),
        jit_compile=False,
    )
    fresh.fit(x, y, epochs=20, verbose=0)
    as_is = ChannelAttention.compute(fresh, (x, y), ["conv2"], progress=False)
    auto = ChannelAttention.compute(
        fresh, (x, y), ["conv2"], train_head="auto", progress=False
    )
    trained = ChannelAttention.compute(
        fresh, (x, y), ["conv2"], train_head=True, progress=False
    )
    np.testing.assert_array_equal(auto.scores["conv2"], as_is.scores["conv2"])
    assert np.abs(trained.scores["conv2"] - as_is.scores["conv2"]).max() > 1e-5


def test_training_the_head_is_deterministic(fresh):
    data = learnable(64)
    found = []
    for seed in (1, 2):  # Keras's own seed has no part in it
        keras.utils.set_random_seed(seed)
        attention = ChannelAttention.compute(
            fresh, data, ["conv2"], train_head=True, progress=False
        )
        found.append(attention.scores["conv2"])
    np.testing.assert_array_equal(*found)


def test_a_head_that_cannot_learn_gets_the_other_warning(fresh):
    x, y = learnable(48)
    x[:] = x[:1]  # all images are the same
    with pytest.warns(UserWarning, match=r"did not help.*`attention='uniform'`"):
        ChannelAttention.compute(
            fresh, (x, y), ["conv2"], train_head=True, progress=False
        )


def test_training_the_head_with_no_samples(fresh):
    x, y = learnable(6)
    with pytest.raises(ValueError, match="No samples"):
        ChannelAttention.compute(
            fresh,
            (x[:0], y[:0]),
            ["conv2"],
            train_head=True,
            progress=False,
            loss=keras.losses.SparseCategoricalCrossentropy(True),
        )


def test_a_softmax_head_is_trained_too(new_backbone):
    target = kd.attach_head(new_backbone(size=8), 3, activation="softmax")
    x, y = learnable()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = ChannelAttention.compute(
            target, (x, np.eye(3)[y]), ["conv2"], train_head=True, progress=False
        )
    assert np.abs(found.scores["conv2"]).max() > 1e-3


def test_delta_auto_uses_the_attention_of_the_training_data(new_backbone):
    """What `fit` computes is what `compute` gives for the same samples."""
    x, y = learnable(48)
    source = new_backbone(size=8)
    target = kd.attach_head(source, 3)
    model = kd.DeltaModel(target, source=source, taps=["conv1", "conv2"])
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(True),
        run_eagerly=True,
    )
    regularizer = kd.regularizers.Delta(attention_samples=32)
    model.fit(x, y, regularizer=regularizer, verbose=0)
    assert regularizer.computed_attention.samples == 32
    chosen = np.sort(np.random.default_rng(0).choice(48, 32, replace=False))
    expected = ChannelAttention.compute(
        model, (x[chosen], y[chosen]), train_head="auto", progress=False
    )
    for tap, weights in regularizer.attention_weights().items():
        np.testing.assert_allclose(weights, expected.weights[tap], atol=1e-6)


@pytest.fixture
def binary(new_backbone):
    """`binary(loss)`: a model of one probability, and its data with labels (N,)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, *new_backbone().input_shape[1:])).astype("float32")

    def build(loss):
        source = new_backbone()
        body = keras.layers.GlobalAveragePooling2D()(source.output)
        out = keras.layers.Dense(1, activation="sigmoid")(body)
        model = kd.DeltaModel(keras.Model(source.input, out), source)
        model.compile("sgd", loss, jit_compile=False)
        return model, (x, np.arange(8) % 2)

    return build


def test_labels_without_the_last_axis_of_a_binary_head(binary):
    model, (x, y) = binary("binary_crossentropy")
    flat = ChannelAttention.compute(model, (x, y), progress=False)
    column = ChannelAttention.compute(model, (x, y[:, None]), progress=False)
    for tap, scores in flat.scores.items():
        assert np.abs(scores).max() > 0
        np.testing.assert_array_equal(scores, column.scores[tap])


def test_a_loss_without_a_value_per_sample_is_refused(binary):
    def total(y, p):
        return keras.ops.mean(keras.losses.binary_crossentropy(y, p))

    model, data = binary(total)
    with pytest.raises(ValueError) as e:
        ChannelAttention.compute(model, data, progress=False)
    assert str(e.value) == (
        "Channel attention needs a loss with one value per sample, but total returned "
        "shape () for 8 samples. Leave the mean over the batch to Keras, or use "
        "`attention='uniform'`."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_samples": -1},
            "Invalid value for argument `max_samples`. Expected a positive integer or "
            "None. Received: max_samples=-1",
        ),
        (
            {"train_head": "yes"},
            "Invalid value for argument `train_head`. Expected True, False or "
            "\"auto\". Received: train_head='yes'",
        ),
    ],
)
def test_arguments_of_compute(binary, options, message):
    with pytest.raises(ValueError) as e:
        ChannelAttention.compute(*binary("binary_crossentropy"), **options)
    assert str(e.value) == message


# --- where things are said ---------------------------------------------------------


def line_of(text):
    """Number of the line of this file that ends with a mark."""
    lines = inspect.getsource(inspect.getmodule(line_of)).splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"# {text}")]
    return number


def test_warnings_point_at_the_users_line(fresh):
    with pytest.warns(UserWarning, match="no better than chance") as warned:
        ChannelAttention.compute(fresh, learnable(9), ["conv2"], progress=False)  # one
    lines = {(w.filename, w.lineno) for w in warned if w.category is UserWarning}
    assert lines == {(__file__, line_of("one"))}
    with pytest.warns(UserWarning, match="collapses") as warned:
        ChannelAttention.from_scores({"a": np.arange(20)}, "softmax", 0.1)  # two
    assert {(w.filename, w.lineno) for w in warned} == {(__file__, line_of("two"))}


def test_warnings_from_inside_of_fit_point_at_fit(new_backbone):
    x, y = learnable(12)
    x[:] = x[:1]  # nothing to learn: the trained head is no better than chance
    source = new_backbone(size=8)
    model = kd.DeltaModel(kd.attach_head(source, 3), source, taps=["conv2"])
    model.compile("sgd", LOSS, run_eagerly=True)
    with pytest.warns(UserWarning, match="did not help") as warned:
        model.fit(x, y, 6, regularizer=kd.regularizers.Delta(), verbose=0)  # three
    (warning,) = [w for w in warned if "did not help" in str(w.message)]
    assert (warning.filename, warning.lineno) == (__file__, line_of("three"))


def test_many_attentions_in_a_process(fresh, monkeypatch):
    """Each traces functions of its own, which TensorFlow must not take for a fault."""
    # The features are computed; Keras's own `fit` is not what this is about.
    monkeypatch.setattr(head_fit.HeadFit, "train", lambda *args: [])
    # TensorFlow warns twice a process; earlier tests do not count.
    fresh_manager = polymorphic_function._FrequentTracingDetectorManager()
    manager = "_frequent_tracing_detector_manager"
    monkeypatch.setattr(polymorphic_function, manager, fresh_manager)
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = tf.get_logger()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for count in range(8, 16):
                ChannelAttention.compute(
                    fresh,
                    learnable(count),
                    ["conv2"],
                    train_head="auto",
                    progress=False,
                )
        assert not records
        for _ in range(8):  # as it would be heard
            tf.function(lambda v: v + 1)(1.0)
        assert "lambda" in records[-1] and "retracing" in records[-1]
    finally:
        logger.removeHandler(handler)


# --- what cannot be computed -------------------------------------------------------


@pytest.mark.parametrize("layer", ["conv0", "bn1", "head"])
def test_weights_that_are_not_finite_are_named(layer, fresh):
    variable = fresh.get_layer(layer).weights[0]
    values = variable.numpy()
    values[..., 1] = np.nan
    variable.assign(values)
    with pytest.raises(ValueError) as e:
        ChannelAttention.compute(fresh, learnable(6), ["conv2"], progress=False)
    assert str(e.value) == (
        f"The loss is not finite on some samples: layer '{layer}' outputs numbers "
        "that are not finite, before any channel was switched off. Check the images, "
        "the labels and the weights."
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_that_is_not_finite(bad, fresh):
    """In the second batch."""
    x, y = learnable(40)
    x[35, 2, 2, 0] = bad
    with pytest.raises(ValueError, match=r"'conv0' outputs.*Check the images"):
        ChannelAttention.compute(fresh, (x, y), ["conv2"], progress=False)


@pytest.mark.parametrize(("label", "low", "high"), [(3, 0, 3), (-1, -1, 2)])
def test_labels_out_of_range_in_a_later_batch(label, low, high, fresh):
    x, y = learnable(40)
    y[39] = label
    with pytest.raises(ValueError, match=f"labels run from {low} to {high}.*3 classes"):
        ChannelAttention.compute(fresh, (x, y), ["conv2"], loss=LOSS, progress=False)


def test_no_samples(fresh):
    x, y = learnable(3)
    with pytest.raises(ValueError, match="No samples"):
        ChannelAttention.compute(fresh, (x[:0], y[:0]), ["conv2"], tolerance=0.1)


def test_a_method_that_is_no_more(fresh):
    with pytest.raises(ValueError, match=r'"taylor"` was removed.*`max_samples`'):
        ChannelAttention.compute(fresh, learnable(3), ["conv2"], method="taylor")


def test_a_channel_without_which_the_loss_is_not_finite():
    """Named, with the tap; the intact network is in order."""
    inputs = keras.Input((2, 2, 3))
    x = keras.layers.Activation("linear", name="tap")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, x)

    def logarithm(y, p):
        return -keras.ops.log(p[:, 1])

    x = np.ones((4, 2, 2, 3))
    with pytest.raises(ValueError, match=r"channel 1 of 'tap' switched off.*finite"):
        ChannelAttention.compute(
            model, (x, np.zeros(4)), ["tap"], loss=logarithm, progress=False
        )


def test_nothing_is_written_where_nothing_can_be_computed(fresh, tmp_path, monkeypatch):
    """Wrong arguments are found before the work, and before a checkpoint is made."""
    monkeypatch.setattr(ablation.Ablation, "run", None)
    for options, message in (
        ({"memory": "2XB"}, "memory"),
        ({"tolerance": -1}, "tolerance"),
        ({"normalization": "soft"}, "normalization"),
        ({"method": "none"}, "method"),
    ):
        with pytest.raises(ValueError, match=message):
            ChannelAttention.compute(
                fresh, learnable(4), ["conv2"], checkpoint=tmp_path / "c", **options
            )
    assert not list(tmp_path.iterdir())
