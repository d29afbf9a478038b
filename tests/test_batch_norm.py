"""Statistics of BatchNormalization, against a loop over batches in NumPy."""

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import make_backbone

import keras_delta as kd
from keras_delta import batch_norm
from keras_delta._inputs import samples

RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 2.0, (22, 5)).astype("float32")


def dense(dropout=0.0, policy=None):
    """Dense, BN, ReLU (dropout), Dense, BN, Dense on vectors."""
    inputs = keras.Input((5,), name="vector")
    x = layers.Dense(4, name="a", dtype=policy)(inputs)
    x = layers.BatchNormalization(name="bn_a", dtype=policy)(x)
    x = layers.ReLU(name="relu", dtype=policy)(x)
    x = layers.Dropout(dropout, name="drop", dtype=policy)(x)
    x = layers.Dense(3, name="b", dtype=policy)(x)
    x = layers.BatchNormalization(name="bn_b", center=False, dtype=policy)(x)
    return drawn(keras.Model(inputs, layers.Dense(2, name="head")(x), name="dense"))


def drawn(model):
    """With weights and statistics that are not as they were made."""
    rng = np.random.default_rng(3)
    model.set_weights(
        [
            rng.uniform(0.5, 1.5, w.shape)
            if w.ndim < 2
            else rng.normal(size=w.shape) * 0.7
            for w in model.get_weights()
        ]
    )
    return model


def ordered(x=X, seed=0):
    """As arrays are shuffled."""
    return x[np.random.default_rng(seed).permutation(len(x))]


def twin(model, batches, axis=0):
    """Dict layer -> mean and variance of the data, batch by batch."""
    means = {"bn_a": [], "bn_b": []}
    for x in batches:
        x = x.astype("float64")
        for name in "a", "b":
            kernel, bias = model.get_layer(name).get_weights()
            x = x @ kernel + bias
            bn = model.get_layer(f"bn_{name}")
            mean, variance = x.mean(axis), x.var(axis)
            means[f"bn_{name}"].append((mean, variance))
            x = (x - mean) / np.sqrt(variance + bn.epsilon)
            x = x * bn.gamma.numpy() + (bn.beta.numpy() if bn.center else 0)
            x = np.maximum(x, 0)
    return {name: np.mean(v, axis=0) for name, v in means.items()}


def statistics(model):
    return {
        v.name: np.stack([v.moving_mean.numpy(), v.moving_variance.numpy()])
        for v in batch_norm.layers(model)
    }


def assert_close(got, expected, **kwargs):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            got[name], value, **{"rtol": 1e-4, "atol": 1e-5, **kwargs}, err_msg=name
        )


def state(model):
    """All that estimating may not change, the statistics apart."""
    moving = {
        id(v)
        for bn in batch_norm.layers(model)
        for v in (bn.weights[-2], bn.weights[-1])
    }
    values = [v.numpy() for v in model.variables if id(v) not in moving]
    flags = [(v.trainable, v.path) for v in model.variables]
    momenta = [(v.momentum, v.trainable) for v in batch_norm.layers(model)]
    return repr((values, flags, momenta))


# --- what is estimated -------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_two_layers_in_a_row(share):
    """22 samples in batches of 8: the last of 6 is one more."""
    model = dense(dropout=0.5)
    old, before = statistics(model), state(model)
    x = ordered()
    of_data = twin(model, [x[:8], x[8:16], x[16:]])
    assert kd.batch_norm.estimate_statistics(model, X, share=share, batch_size=8) == 22
    expected = {n: (1 - share) * old[n] + share * of_data[n] for n in old}
    assert_close(statistics(model), expected)
    assert state(model) == before
    if share == 0:
        assert_close(statistics(model), old, rtol=0, atol=0)


def test_a_last_batch_of_less_than_half_is_left_out():
    model = dense()
    x = ordered(X[:19])
    assert batch_norm.estimate_statistics(model, X[:19], batch_size=8) == 16
    assert_close(statistics(model), twin(model, [x[:8], x[8:16]]))
    assert batch_norm.estimate_statistics(model, X[:3], batch_size=8) == 3
    assert_close(statistics(model), twin(model, [X[:3]]))


def test_without_dropout_and_as_training_sees_it():
    """One step of training with momentum 0 gives the same."""
    model = dense()
    trained = keras.models.clone_model(model)
    trained.set_weights(model.get_weights())
    for layer in batch_norm.layers(trained):
        layer.momentum = 0.0
    trained(X, training=True)
    batch_norm.estimate_statistics(model, X)
    assert_close(statistics(model), statistics(trained))


def test_frozen_layers_are_estimated_and_stay_frozen():
    model = dense()
    model.get_layer("bn_a").trainable = False
    model.get_layer("bn_b").gamma.trainable = False  # by itself
    before = state(model)
    batch_norm.estimate_statistics(model, X)
    assert_close(statistics(model), twin(model, [X]))
    assert state(model) == before
    assert not model.get_layer("bn_a").trainable_variables
    assert model.get_layer("bn_b").trainable


def test_training_and_prediction_go_on_as_they_were_traced():
    model = dense()
    model.compile("sgd", "mse")
    y = np.zeros((22, 2))
    model.fit(X, y, verbose=0)
    first = model.predict(X, verbose=0)
    functions = [model.train_function, model.predict_function]
    batch_norm.estimate_statistics(model, X)
    second = model.predict(X, verbose=0)
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_allclose(second, model(X, training=False), rtol=1e-4, atol=1e-5)
    before = statistics(model)
    model.fit(X, y, verbose=0, batch_size=22, shuffle=False)
    for name, value in statistics(model).items():  # momentum 0.99
        assert 0 < np.abs(value - before[name]).max() < 0.2
    assert [model.train_function, model.predict_function] == functions


def test_a_nested_model_in_a_delta_model(new_backbone):
    """Only the target; a nested one as the flat one. The source stays."""
    target, source = reference.pair(new_backbone, batch_norm=True, dropout=0.4)
    inner = keras.Sequential([keras.Input((8, 8, 3)), new_backbone(True, 8, (3, 4))])
    inner.layers[0].set_weights(source.get_weights())
    for v, w in zip(inner.weights, source.weights, strict=True):
        v.assign(w)
    x, _ = reference.data(9)
    model = kd.DeltaModel(target, source=source)
    frozen = statistics(model.source)
    names = [v.name for v in batch_norm.layers(model)]
    assert names == ["bn0", "bn1"]
    assert batch_norm.estimate_statistics(model, x, batch_size=4) == 8
    assert_close(statistics(model.source), frozen, atol=0, rtol=0)
    assert np.abs(statistics(model)["bn1"] - frozen["bn1"]).max() > 0.01
    batch_norm.estimate_statistics(inner, x, batch_size=4)
    batch_norm.estimate_statistics(source, x, batch_size=4)
    assert_close(statistics(inner), statistics(source))


def test_frozen_first_layers_are_shared_no_longer(new_backbone):
    """With other statistics they are not the source's any more."""
    target, source = reference.pair(new_backbone, batch_norm=True, drift=0.0)
    model = reference.compiled(target, source)
    kd.freeze_until(model, "relu0")
    x, y = reference.learnable_data(8)
    delta = kd.regularizers.FeatureMap(0.1)
    model.fit(x, y, regularizer=delta, batch_size=4, verbose=0)
    assert "bn0" in model.sharing
    batch_norm.estimate_statistics(model, x + 1)
    model.fit(x, y, batch_size=4, verbose=0)
    assert "bn0" not in model.sharing


def test_channels_first_and_images_of_several_sizes():
    inputs = keras.Input((None, None, 3))
    x = layers.Permute((3, 1, 2))(layers.Conv2D(4, 1, name="conv")(inputs))
    bn = layers.BatchNormalization(axis=1)
    model = drawn(keras.Model(inputs, bn(x)))
    rng = np.random.default_rng(0)
    parts = [
        rng.normal(size=(n, s, s, 3)).astype("float32") for n, s in ((4, 5), (3, 6))
    ]
    data = tf.data.Dataset.from_generator(
        lambda: ((p, np.zeros(len(p))) for p in parts),
        output_signature=(
            tf.TensorSpec((None, None, None, 3)),
            tf.TensorSpec((None,), "float32"),
        ),
    ).apply(tf.data.experimental.assert_cardinality(2))
    assert batch_norm.estimate_statistics(model, data, batch_size=4) == 7
    maps = [model.get_layer("conv")(p).numpy() for p in parts]
    means = np.mean([m.mean((0, 1, 2)) for m in maps], axis=0)
    np.testing.assert_allclose(bn.moving_mean, means, rtol=1e-4, atol=1e-5)


def test_a_shared_layer_has_the_mean_of_its_calls():
    bn = layers.BatchNormalization()
    inputs = [keras.Input((5,)), keras.Input((5,))]
    model = keras.Model(inputs, layers.Add()([bn(v) for v in inputs]))
    batch_norm.estimate_statistics(model, [X, 3 * X])
    np.testing.assert_allclose(bn.moving_mean, 2 * X.mean(0), rtol=1e-4)
    np.testing.assert_allclose(bn.moving_variance, 5 * X.var(0), rtol=1e-4)


def test_inside_of_wrappers():
    bn = layers.BatchNormalization()
    model = keras.Sequential([keras.Input((2, 5)), layers.TimeDistributed(bn)])
    assert batch_norm.layers(model) == [bn]
    x = X.reshape(11, 2, 5)
    batch_norm.estimate_statistics(model, x)
    np.testing.assert_allclose(bn.moving_mean, X.mean(0), rtol=1e-4)
    np.testing.assert_allclose(bn.moving_variance, x.var(0).mean(0), rtol=1e-4)


def test_batch_renormalization_keeps_deviation_and_variance_alike():
    bn = layers.BatchNormalization(renorm=True)
    model = keras.Sequential([keras.Input((5,)), bn])
    batch_norm.estimate_statistics(model, X, share=0.5)
    np.testing.assert_allclose(bn.moving_variance, 0.5 + 0.5 * X.var(0), rtol=1e-4)
    deviation = np.sqrt(bn.moving_variance.numpy() + bn.epsilon)
    np.testing.assert_allclose(bn.moving_stddev, deviation, rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_precisions(policy):
    model = dense(policy=policy)
    expected = twin(model, [X])
    batch_norm.estimate_statistics(model, X)
    (a, _) = batch_norm.layers(model)
    assert a.moving_variance.dtype == ("float64" if policy == "float64" else "float32")
    assert_close(statistics(model), expected, rtol=0.05, atol=0.05)


def test_two_replicas(strategy):
    with strategy.scope():
        model = dense()
    batch_norm.estimate_statistics(model, X)
    assert_close(statistics(model), twin(model, [X]))


# --- data in all forms -------------------------------------------------------------


class Parts(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[8 * i : 8 * i + 8], np.zeros(len(X[8 * i : 8 * i + 8]))


def dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays or X).batch(5)


FORMS = {
    "x alone": lambda: dataset(),
    "x and y": lambda: dataset(X, np.zeros(22)),
    "with weights": lambda: dataset(X, np.zeros(22), np.zeros(22)),
    "PyDataset": Parts,
    "generator": lambda: ((X[i : i + 4], 0 * X[i : i + 4]) for i in range(0, 22, 4)),
    "dict": lambda: dataset(X, np.zeros(22)).map(lambda x, y: ({"vector": x}, y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_in_their_order(form):
    model = dense()
    given = {"batch_size": 8, "max_samples": 22}
    assert batch_norm.estimate_statistics(model, FORMS[form](), **given) == 22
    assert_close(statistics(model), twin(model, [X[:8], X[8:16], X[16:]]))


@pytest.mark.parametrize("form", ["array", "tensor", "pair", "dict", "list"])
def test_arrays_are_shuffled(form):
    model, x = dense(), ordered(seed=4)
    data = {
        "array": X,
        "tensor": tf.constant(X),
        "pair": (X, np.zeros(22)),
        "dict": {"vector": X},
        "list": [X],
    }[form]
    given = {"batch_size": 8, "max_samples": 12, "seed": 4}
    assert batch_norm.estimate_statistics(model, data, **given) == 12
    assert_close(statistics(model), twin(model, [x[:8], x[8:12]]))


def test_sets_of_images_are_seen_as_in_a_test_and_shuffled():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 20, 20, 3)).astype("uint8")
    data = kd.data.ImageSet.from_arrays(images, np.repeat([0, 1], 6))
    train = data.batches(16, training=True, batch_size=4)
    seen = [np.concatenate([x for x, _ in train.as_tested(shuffle=True)])]
    upcoming = train.epoch_counter.upcoming
    (x,) = seen
    got = list(samples.inputs(train))
    np.testing.assert_array_equal(np.concatenate(got), x)
    in_order = np.concatenate([x for x, _ in train.as_tested()])
    assert (x != in_order).any()
    np.testing.assert_allclose(np.sort(x.ravel()), np.sort(in_order.ravel()))
    model = make_backbone(batch_norm=True)
    assert batch_norm.estimate_statistics(model, train) == 12
    assert train.epoch_counter.upcoming == upcoming


# --- refusals ----------------------------------------------------------------------


def test_a_model_without():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    assert batch_norm.layers(model) == []
    with pytest.raises(
        ValueError, match=r"has no BatchNormalization that.*Pass a model"
    ):
        batch_norm.estimate_statistics(model, X)


@keras.saving.register_keras_serializable("keras_delta_tests")
class Stubborn(layers.Layer):
    """Normalises in inference mode always."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bn = layers.BatchNormalization()

    def build(self, shape):
        self.bn.build(shape)

    def call(self, x):
        return self.bn(x, training=False)


def test_one_that_always_infers_stays():
    stubborn, bn = Stubborn(), layers.BatchNormalization()
    alone = keras.Sequential([keras.Input((5,)), stubborn])
    with pytest.raises(ValueError, match=r"has no BatchNormalization that"):
        batch_norm.estimate_statistics(alone, X)
    model = keras.Sequential([keras.Input((5,)), stubborn, bn])
    batch_norm.estimate_statistics(model, X)
    np.testing.assert_array_equal(stubborn.bn.moving_mean, np.zeros(5))
    np.testing.assert_allclose(bn.moving_mean, X.mean(0) / np.sqrt(1.001), rtol=1e-3)


def test_a_subclassed_model():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn = layers.BatchNormalization()

        def call(self, x):
            return self.bn(x)

    model = Own()
    model(X)
    assert batch_norm.layers(model) == [model.bn]
    with pytest.raises(TypeError, match=r"graph of a subclassed model cannot be read"):
        batch_norm.estimate_statistics(model, X)
    inputs = keras.Input((5,))
    batch_norm.estimate_statistics(keras.Model(inputs, model(inputs)), X)
    np.testing.assert_allclose(model.bn.moving_mean, X.mean(0), rtol=1e-4)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares(share):
    with pytest.raises(ValueError, match=r"`share`"):
        batch_norm.estimate_statistics(dense(), X, share=share)


def test_no_samples():
    with pytest.raises(ValueError, match=r"No samples: statistics"):
        batch_norm.estimate_statistics(dense(), X[:0])
    with pytest.raises(ValueError, match=r"No samples: statistics"):
        batch_norm.estimate_statistics(dense(), dataset().take(0))


def test_what_is_not_finite_changes_nothing():
    model = dense()
    before = model.get_weights()
    x = X.copy()
    x[7] = np.nan
    with pytest.raises(ValueError, match=r"'bn_a', 'bn_b' are not finite"):
        batch_norm.estimate_statistics(model, x)
    for v, w in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(v, w)
    bn = model.get_layer("bn_a")
    bn.moving_mean.assign(np.full(4, np.nan))
    with pytest.raises(ValueError, match=r"of 'bn_a' are not finite"):
        batch_norm.estimate_statistics(model, X, share=0.5)
    batch_norm.estimate_statistics(model, X)  # which mends it
    assert_close(statistics(model), twin(model, [X]))


def test_data_without_end_or_of_another_kind():
    with pytest.raises(ValueError, match=r"no end.*`estimate_statistics`"):
        batch_norm.estimate_statistics(dense(), dataset().repeat())
    with pytest.raises(ValueError, match=r"no end"):
        batch_norm.estimate_statistics(dense(), FORMS["generator"]())
    with pytest.raises(TypeError, match=r"a tf.data.Dataset or"):
        batch_norm.estimate_statistics(dense(), None)
    with pytest.raises(ValueError, match=r"arrays with the same number"):
        batch_norm.estimate_statistics(dense(), {"vector": X, "more": X[:3]})
    with pytest.raises(ValueError, match=r"Invalid shape for the input 'vector'"):
        batch_norm.estimate_statistics(dense(), X[:, :3])


def test_an_error_leaves_flags_and_momenta():
    model = dense()
    model.get_layer("bn_a").trainable = False
    before = state(model)

    def fail(*args, **kwargs):
        raise RuntimeError("out of order")

    model.get_layer("b").call = fail
    with pytest.raises(RuntimeError, match=r"out of order"):
        batch_norm.estimate_statistics(model, X)
    assert state(model) == before
