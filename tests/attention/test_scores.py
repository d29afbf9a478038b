"""Scores are what a loop that zeroes filters and reruns the network finds."""

import warnings

import keras
import numpy as np
import plain_loop
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta.attention import ChannelAttention, calls

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
COUNT = 40  # a batch of 32 and a part of one


def data(count=COUNT, size=8):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(count, size, size, 3)).astype("float32")
    return x, rng.integers(0, 3, count)


def conv(width, name, **kwargs):
    return keras.layers.Conv2D(width, 3, padding="same", name=name, **kwargs)


def head(x, activation=None):
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.layers.Dense(3, activation, name="head")(x)


def plain():
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for i, width in enumerate((4, 5, 6)):
        x = conv(width, f"conv{i}", strides=1 + (i > 0), use_bias=i != 1)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, head(x))


def residual():
    """The shortcut goes around the tap `b1`, the last convolution of a block."""
    inputs = keras.Input((8, 8, 3))
    x = conv(5, "stem")(inputs)
    for i in range(2):
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(conv(4, f"a{i}")(x)))
        y = keras.layers.BatchNormalization()(conv(5, f"b{i}")(y))
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    return keras.Model(inputs, head(x))


def nested():
    inside = x = keras.Input((8, 8, 3))
    for i, width in enumerate((4, 5, 6)):
        x = keras.layers.BatchNormalization()(conv(width, f"conv{i}")(x))
        x = keras.layers.ReLU()(x)
    backbone = keras.Model(inside, x, name="backbone")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(0.5)(inputs)
    return keras.Model(inputs, head(backbone(x)))


def dropout():
    inputs = keras.Input((8, 8, 3))
    x = conv(5, "conv0", activation="relu")(inputs)
    x = keras.layers.SpatialDropout2D(0.5)(x)
    x = keras.layers.GaussianNoise(1.0)(conv(4, "conv1")(x))
    return keras.Model(inputs, head(keras.layers.Dropout(0.5)(x)))


def softmax():
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, head(conv(5, "conv0")(inputs), "softmax"))


def shared():
    """The tapped convolution runs once, a later one twice."""
    inputs = keras.Input((8, 8, 3))
    x = conv(4, "conv0")(inputs)
    twice = conv(4, "twice")
    return keras.Model(inputs, head(twice(keras.layers.ReLU()(twice(x)))))


NETWORKS = [
    (plain, {"conv0": "conv0", "conv1": "conv1", "conv2": "conv2"}),
    (residual, {"b0": "b0", "a1": "a1", "b1": "b1"}),
    (nested, {"conv0": "backbone/conv0", "conv2": "backbone/conv2"}),
    (dropout, {"conv0": "conv0", "conv1": "conv1"}),
    (softmax, {"conv0": "conv0"}),
    (shared, {"conv0": "conv0"}),
]


def random_weights(model, seed=3):
    """Weights of a trained network's kind: no statistics of 0 and 1."""
    rng = np.random.default_rng(seed)
    for v in model.variables:
        if len(v.shape) > 1:
            scale = (2 / np.prod(v.shape[:-1])) ** 0.5
            v.assign(rng.normal(size=v.shape) * scale)
        else:
            low = 0.5 if "variance" in v.path or "gamma" in v.path else -0.3
            v.assign(rng.uniform(low, low + 0.6, v.shape))
    return model.get_weights()


def compute(model, x, y, taps, **kwargs):
    with pytest.warns(UserWarning, match="no better than chance"):
        return ChannelAttention.compute(model, (x, y), taps, **kwargs)


@pytest.mark.parametrize(
    "build, taps", NETWORKS, ids=lambda v: getattr(v, "__name__", "")
)
def test_scores_equal_the_plain_loop(build, taps):
    x, y = data()
    model = build()
    weights = random_weights(model)
    attention = compute(model, x, y, list(taps), progress=False)
    probabilities = build is softmax
    ours, theirs, largest = [], [], 0
    for tap, path in taps.items():
        loop = plain_loop.scores(build, weights, path, x, y, probabilities)
        exact = plain_loop.scores(build, weights, path, x, y, probabilities, "float64")
        found = attention.scores[tap]
        assert found.dtype == np.float32 and np.abs(loop).max() > 1e-3
        np.testing.assert_allclose(found, loop, atol=1e-6, rtol=0)
        ours.extend(found - exact)
        theirs.extend(loop - exact)
        largest = max(largest, np.abs(exact).max())
    # No further from float64 than the loop; a few channels make a rough measure,
    # and float32 scores themselves are rounded: 6e-8 of the largest.
    rms = np.sqrt(np.mean(np.square([ours, theirs]), axis=1))
    assert rms[0] <= 1.5 * rms[1] + 6e-8 * largest
    assert attention.samples == COUNT
    for v, w in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(v, w)  # the model is as it was


def test_a_concatenation_is_masked():
    x, y = data()
    inputs = keras.Input((8, 8, 3))
    branches = [conv(2, "a")(inputs), keras.layers.ReLU()(conv(3, "b")(inputs))]
    joined = keras.layers.Concatenate(name="mixed")(branches)
    model = keras.Model(inputs, head(keras.layers.ReLU()(joined)))
    random_weights(model)
    attention = compute(model, x, y, ["mixed"], progress=False)
    front = keras.Model(inputs, joined)(x).numpy()
    back = keras.Model(joined, model.output)
    intact = plain_loop.cross_entropy(y, back(front))
    for j in range(5):
        masked = front.copy()
        masked[..., j] = 0
        each = plain_loop.cross_entropy(y, back(masked))
        expected = (each - intact).mean()
        assert attention.scores["mixed"][j] == pytest.approx(expected, abs=1e-6)


def calls_of(monkeypatch):
    """What is traced while a test runs: (pairs a call, the tapped network)."""
    made = []
    init = calls.Call.__init__

    def record(self, tapped, *args):
        init(self, tapped, *args)
        made.append((self.pairs, tapped))

    monkeypatch.setattr(calls.Call, "__init__", record)
    return made


def test_the_number_of_channels_in_a_call_does_not_matter(monkeypatch):
    x, y = data()
    model = residual()
    random_weights(model)
    whole = compute(model, x, y, ["b0", "b1"], progress=False)
    made = calls_of(monkeypatch)
    for budget in ("300KB", "400KB", "1MB"):
        parts = compute(model, x, y, ["b0", "b1"], progress=False, memory=budget)
        for tap in ("b0", "b1"):
            np.testing.assert_allclose(parts.scores[tap], whole.scores[tap], atol=1e-6)
    b0 = [pairs for pairs, _ in made[::2]]
    assert len(set(b0)) == 3 and min(b0) < 32, b0  # fewer than one channel's


def test_one_trace_a_tap(monkeypatch):
    """Partial batches and partial calls are padded, not traced again."""
    x, y = data(70)
    made = calls_of(monkeypatch)
    model = residual()
    random_weights(model)
    compute(model, x, y, ["b0", "b1"], progress=False, memory="400KB")
    assert [tapped.traces for _, tapped in made] == [1, 1]


def test_toy_numbers():
    """Expected values computed independently of this package, in NumPy float64."""
    f = (np.arange(60) ** 2 % 11 / 10 - 0.5).reshape(3, 2, 2, 5).astype("float32")
    inputs = keras.Input((2, 2, 5))
    x = keras.layers.Activation("linear", name="maps")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    kernel = 3 * np.sin(np.arange(10)).reshape(5, 2)
    model.get_layer("head").set_weights([kernel, np.array([0.1, -0.1])])
    y = np.array([0, 1, 0])
    intact = 0.679530
    zeroed = np.array([1.004271, 0.572234, 0.704406, 0.476843, 0.746306])
    attention = compute(model, f, y, ["maps"], progress=False)
    np.testing.assert_allclose(attention.scores["maps"], zeroed - intact, atol=2e-6)
    np.testing.assert_allclose(
        attention.weights["maps"],
        [0.274806, 0.169751, 0.196706, 0.152623, 0.206114],
        atol=2e-6,
    )
    summed = {"maps": 3 * (zeroed - intact)}
    np.testing.assert_allclose(
        ChannelAttention.from_scores(summed, "softmax", 1.0).weights["maps"],
        [0.426067, 0.116569, 0.173296, 0.087559, 0.196508],
        atol=2e-6,
    )


# --- forms of data, of labels, of losses ---------------------------------------


class Sequence(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.x[10 * i : 10 * i + 10], self.y[10 * i : 10 * i + 10]


@pytest.mark.parametrize("form", ["tf.data", "PyDataset", "weights", "large batches"])
def test_forms_of_data(form):
    x, y = data()
    model = plain()
    random_weights(model)
    expected = compute(model, x, y, ["conv2"], progress=False)
    given = {
        "tf.data": tf.data.Dataset.from_tensor_slices((x, y)).batch(16),
        "PyDataset": Sequence(x, y),
        "weights": tf.data.Dataset.from_tensor_slices((x, y, np.ones(40))).batch(7),
        "large batches": tf.data.Dataset.from_tensor_slices((x, y)).batch(40),
    }[form]
    with pytest.warns(UserWarning, match="no better than chance"):
        found = ChannelAttention.compute(model, given, ["conv2"], progress=False)
    assert found.samples == 40
    np.testing.assert_allclose(
        found.scores["conv2"], expected.scores["conv2"], atol=1e-6
    )


def test_max_samples():
    x, y = data()
    model = plain()
    random_weights(model)
    expected = compute(model, x[:37], y[:37], ["conv2"], progress=False)
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(5).repeat()
    with pytest.warns(UserWarning, match="no better than chance"):
        found = ChannelAttention.compute(
            model, endless, ["conv2"], max_samples=37, progress=False
        )
    assert found.samples == 37
    np.testing.assert_allclose(
        found.scores["conv2"], expected.scores["conv2"], atol=1e-6
    )
    with pytest.raises(ValueError, match=r"no end.*max_samples"):
        ChannelAttention.compute(model, endless, ["conv2"], progress=False)


def test_categorical_labels_give_the_same_scores():
    x, y = data()
    model = plain()
    random_weights(model)
    sparse = compute(model, x, y, ["conv2"], progress=False)
    dense = compute(model, x, np.eye(3)[y], ["conv2"], progress=False)
    np.testing.assert_allclose(dense.scores["conv2"], sparse.scores["conv2"], atol=1e-6)


@pytest.mark.parametrize("kind", ["compiled", "string", "argument", "own class"])
def test_the_loss_is_the_models_own(kind):
    """Half the loss, half the scores; a user's own loss class will do."""
    x, y = data()
    model = softmax()
    random_weights(model)
    expected = compute(model, x, y, ["conv0"], progress=False).scores["conv0"]

    class Half(keras.losses.Loss):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, y_true, y_pred):
            return self.factor * keras.losses.sparse_categorical_crossentropy(
                y_true, y_pred
            )

    kwargs, factor = {}, 1.0
    if kind == "compiled":
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy())
    elif kind == "string":
        model.compile(loss="sparse_categorical_crossentropy")
    elif kind == "argument":
        model.compile(loss="mse")
        kwargs["loss"] = "sparse_categorical_crossentropy"
    else:
        model.compile(loss=Half(0.5))
        factor = 0.5
    if kind == "own class":
        found = ChannelAttention.compute(model, (x, y), ["conv0"], progress=False)
    else:
        found = compute(model, x, y, ["conv0"], progress=False, **kwargs)
    np.testing.assert_allclose(found.scores["conv0"], factor * expected, atol=1e-6)


def test_a_delta_model_gives_its_taps_target_and_loss(new_backbone):
    x, y = data()
    source = new_backbone(size=8)
    target = kd.attach_head(source, 3)
    model = kd.DeltaModel(target, source=source, taps=["conv2", "conv1"])
    model.compile("sgd", LOSS)
    with pytest.warns(UserWarning, match="no better than chance"):
        found = ChannelAttention.compute(model, (x, y), progress=False)
    assert list(found.scores) == ["conv2", "conv1"]
    expected = compute(target, x, y, ["conv1"], progress=False)
    np.testing.assert_allclose(
        found.scores["conv1"], expected.scores["conv1"], atol=1e-6
    )


def test_computing_twice_gives_the_same_bits():
    x, y = data()
    model = residual()
    random_weights(model)
    a, b = (compute(model, x, y, ["b0"], progress=False) for _ in range(2))
    np.testing.assert_array_equal(a.scores["b0"], b.scores["b0"])


def test_progress_names_the_work(capsys):
    x, y = data()
    model = plain()
    random_weights(model)
    compute(model, x, y, ["conv0", "conv1"], progress=True)
    shown = capsys.readouterr().out
    assert "Channel attention" in shown and "18/18" in shown  # (4 + 5) x 2 batches
    compute(model, x, y, ["conv0"], progress=False)
    assert capsys.readouterr().out == ""


def test_mixed_precision_scores_are_close():
    x, y = data()
    expected = plain()
    weights = random_weights(expected)
    expected = compute(expected, x, y, ["conv1"], progress=False)
    keras.config.set_dtype_policy("mixed_float16")
    model = plain()
    model.set_weights(weights)
    found = compute(model, x, y, ["conv1"], progress=False, loss=LOSS)
    np.testing.assert_allclose(
        found.scores["conv1"], expected.scores["conv1"], atol=5e-3
    )


# --- refusals ------------------------------------------------------------------


def test_unknown_taps_list_the_closest_names():
    x, y = data()
    with pytest.raises(ValueError, match=r"'conv9'.*Closest names: .*'conv0'"):
        ChannelAttention.compute(plain(), (x, y), ["conv9"])


def test_no_labels():
    x, _ = data()
    with pytest.raises(ValueError, match=r"no targets.*\(x, y\)"):
        ChannelAttention.compute(plain(), x, ["conv0"], loss=LOSS, progress=False)


@pytest.mark.parametrize("loss", [LOSS, None])
def test_no_samples(loss):
    x, y = data()
    empty = tf.data.Dataset.from_tensor_slices((x[:0], y[:0])).batch(4)
    with pytest.raises(ValueError, match="No samples"):
        ChannelAttention.compute(plain(), empty, ["conv0"], loss=loss, progress=False)


def test_a_loss_that_is_not_finite():
    x, y = data()
    x[3] = np.nan
    with pytest.raises(ValueError, match=r"loss is not finite.*'conv0'"):
        ChannelAttention.compute(plain(), (x, y), ["conv0"], progress=False)


def test_two_outputs():
    x, y = data()
    inputs = keras.Input((8, 8, 3))
    maps = conv(4, "conv0")(inputs)
    model = keras.Model(inputs, [head(maps), keras.layers.Flatten()(maps)])
    with pytest.raises(ValueError, match="2 outputs"):
        ChannelAttention.compute(model, (x, y), ["conv0"], progress=False)


def test_wrong_normalization_is_refused_before_the_work():
    x, y = data()
    with pytest.raises(ValueError, match="normalization"):
        ChannelAttention.compute(plain(), (x, y), ["conv0"], normalization="standard")
    with pytest.raises(ValueError, match="temperature"):
        ChannelAttention.compute(plain(), (x, y), ["conv0"], temperature=0)


def test_the_graph_of_the_model_is_left_alone():
    """Outputs, config and layers' own outputs are what they were."""
    x, y = data()
    model = residual()
    random_weights(model)
    before = model.get_config(), model(x).numpy(), model.get_layer("b0").output
    compute(model, x, y, ["b0"], progress=False)
    assert model.get_config() == before[0]
    np.testing.assert_array_equal(model(x), before[1])
    assert model.get_layer("b0").output is before[2]


# --- probabilities, as Keras takes them --------------------------------------------


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.filterwarnings("ignore:.*from_logits.*")
def test_confident_probabilities_are_not_clipped(kind, from_logits):
    """The loss is that of `evaluate`, which goes back to the logits."""
    x, y = data()
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.GlobalAveragePooling2D()(conv(5, "conv0")(inputs))
    width, loss = (3, "SparseCategoricalCrossentropy")
    if kind == "sigmoid":
        width, loss, y = 1, "BinaryCrossentropy", y % 2
    model = keras.Model(inputs, keras.layers.Dense(width, kind, name="head")(maps))
    random_weights(model)
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([300 * kernel, bias])
    model.compile(loss=getattr(keras.losses, loss)(from_logits=from_logits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the head is no better than chance
        found = ChannelAttention.compute(model, (x, y), ["conv0"], progress=False)
    found = found.scores["conv0"]
    intact = model.evaluate(x, y, verbose=0)
    layer = model.get_layer("conv0")
    weights = layer.get_weights()
    for j in range(5):
        changed = [w.copy() for w in weights]
        for w in changed:
            w[..., j] = 0
        layer.set_weights(changed)
        expected = model.evaluate(x, y, verbose=0) - intact
        assert found[j] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert np.abs(found).max() > 5


def test_two_outputs_and_a_trained_head():
    x, y = data()
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.GlobalAveragePooling2D()(conv(5, "conv0")(inputs))
    outputs = [
        keras.layers.Dense(3, name="a")(maps),
        keras.layers.Dense(1, name="b")(maps),
    ]
    model = keras.Model(inputs, outputs)
    random_weights(model)
    found = ChannelAttention.compute(
        model,
        (x, [y, y.astype("float32")]),
        ["conv0"],
        loss=[LOSS, "mse"],
        train_head=True,
        progress=False,
    )
    assert np.abs(found.scores["conv0"]).max() > 0


# --- what a first user does wrong ---------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, y: None, "argument `data`"),
        (lambda x, y: (x,), "no targets"),
        (lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)), r"\.batch\(32\)"),
        (lambda x, y: (x, y.astype(str)), "np.unique"),
        (lambda x, y: (x, np.eye(4)[y]), "needs one integer label a sample"),
    ],
)
def test_data_of_a_wrong_form(given, message):
    x, y = data()
    with pytest.raises((TypeError, ValueError), match=message):
        ChannelAttention.compute(plain(), given(x, y), ["conv0"], loss=LOSS)


def test_labels_as_a_list():
    x, y = data()
    model = plain()
    random_weights(model)
    expected = compute(model, x, y, ["conv2"], progress=False)
    found = compute(model, x, y.tolist(), ["conv2"], progress=False)
    np.testing.assert_array_equal(found.scores["conv2"], expected.scores["conv2"])


@pytest.mark.parametrize(
    "loss", [5, "nope", "mse", "sparse_categorical_crossentropy"], ids=str
)
def test_a_wrong_loss(loss):
    x, y = data()
    with pytest.raises(ValueError, match=r"loss"):
        ChannelAttention.compute(plain(), (x, y), ["conv0"], loss=loss)


def test_sample_weights_are_said_not_to_count():
    x, y = data()
    model = plain()
    random_weights(model)
    with pytest.warns(UserWarning, match="Sample weights are not used"):
        ChannelAttention.compute(
            model, (x, y, np.ones(len(x))), ["conv2"], train_head=True, progress=False
        )


def test_a_checkpoint_that_is_no_file():
    x, y = data()
    with pytest.raises(ValueError, match="argument `checkpoint`"):
        ChannelAttention.compute(plain(), (x, y), ["conv0"], checkpoint=".")


def test_arrays_that_do_not_fit_the_weights():
    for wrong in ({"a": [1.0]}, {"b": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="`standard_errors`"):
            ChannelAttention.from_scores({"a": [1.0, 2.0]}, standard_errors=wrong)
