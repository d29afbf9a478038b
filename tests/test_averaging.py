"""Weights between two models, and means of several."""

import keras
import model_reference as reference
import numpy as np
import pytest
from keras import layers
from networks import make_backbone

import keras_delta as kd
from keras_delta.averaging import interpolate, soup


def drawn(model, seed):
    """With other weights, those of BatchNormalization as well."""
    rng = np.random.default_rng(seed)
    model.set_weights(
        [rng.uniform(0.5, 1.5, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    return model


def small(seed=0):
    return drawn(kd.attach_head(make_backbone(True, 8, (3, 4)), 3), seed)


def twin(lists, shares):
    """Each value by itself."""
    result = []
    for arrays in zip(*lists, strict=True):
        total = np.zeros(arrays[0].shape)
        for index in np.ndindex(*total.shape):
            for array, share in zip(arrays, shares, strict=True):
                total[index] += share * float(array[index])
        result.append(total.astype(arrays[0].dtype))
    return result


def assert_same(model, expected):
    expected = expected if isinstance(expected, list) else expected.get_weights()
    reference.assert_same_weights(model, expected, atol=0, rtol=1e-7)


# --- interpolate -------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.5, 0.7, 1])
def test_between_a_model_and_its_start(share):
    model, start = small(1), small(2)
    expected = twin([start.get_weights(), model.get_weights()], [1 - share, share])
    weights = model.get_weights()
    assert interpolate(model, start, share) is None
    assert_same(model, expected)
    model.set_weights(weights)
    interpolate(model, start.get_weights(), share)
    assert_same(model, expected)
    assert_same(start, small(2))


def test_the_mid_point_is_exact():
    model, start = small(1), small(2)
    mid = [
        ((a.astype("float64") + b) / 2).astype("float32")
        for a, b in zip(model.get_weights(), start.get_weights(), strict=True)
    ]
    interpolate(model, start)
    for a, b in zip(model.get_weights(), mid, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def delta(new_backbone):
    """A `DeltaModel` that has moved away, statistics as well."""
    target, source = reference.pair(new_backbone, batch_norm=True)
    model = reference.compiled(target, source, kd.regularizers.L2SP(0.1))
    drawn(target, 5)
    return model


def test_the_source_of_a_delta_model(delta):
    source = delta.source.get_weights()
    before = delta.target.get_weights()
    count = len(before) - 2  # the head's
    interpolate(delta, share=0.25)
    expected = twin([source, before[:count]], [0.75, 0.25]) + before[count:]
    assert_same(delta.target, expected)
    assert_same(delta.source, source)
    interpolate(delta, share=0)
    assert_same(delta.target, [*source, *before[count:]])


def test_lists_of_a_delta_model(delta):
    """Of the target alone, or of all of it, source and regularizer included."""
    start, all_of_it = delta.target.get_weights(), delta.get_weights()
    assert len(all_of_it) > len(start)
    for given in (start, all_of_it, tuple(start)):
        drawn(delta.target, 8)
        expected = twin([start, delta.target.get_weights()], [0.5, 0.5])
        interpolate(delta, given)
        assert_same(delta.target, expected)
    other = small(2)
    drawn(delta.target, 8)
    interpolate(delta, other, share=0)
    assert_same(delta.target, other)


def test_training_goes_on(delta):
    x, y = reference.learnable_data(8)
    delta.fit(x, y, verbose=0)
    interpolate(delta)
    delta.fit(x, y, verbose=0)


def test_seeds_integers_and_normalization_stay_consistent():
    def new(seed):
        rescale = layers.Normalization(name="normalization")
        steps = layers.Dropout(0.5, seed=seed)
        model = keras.Sequential([keras.Input((3,)), rescale, steps, layers.Dense(2)])
        rescale.adapt(np.random.default_rng(seed).normal(seed, 1, (50, 3)))
        return model

    model, start = new(1), new(2)
    seeds = [v.numpy() for v in model.variables if v.dtype != "float32"]
    assert seeds
    interpolate(model, start)
    after = [v.numpy() for v in model.variables if v.dtype != "float32"]
    for a, b in zip(seeds, after, strict=True):
        np.testing.assert_array_equal(a, b)
    loaded = new(1)
    loaded.set_weights(model.get_weights())
    loaded.get_layer("normalization").finalize_state()
    x = np.ones((2, 3), "float32")
    np.testing.assert_allclose(model(x), loaded(x), rtol=1e-6)


def test_nested_and_flat_are_one_architecture():
    flat = small(1)
    inner = make_backbone(True, 8, (3, 4))
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(inner(inputs))
    nested = keras.Model(inputs, layers.Dense(3)(x))
    nested.set_weights(flat.get_weights())
    mean = soup([nested, flat])
    assert_same(mean, flat)
    drawn(nested, 4)
    interpolate(nested, flat, 0)
    assert_same(nested, flat)


def test_half_precision_weights():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, dtype="bfloat16")])
    start = [np.ones((3, 2)), np.ones(2)]
    model.set_weights([3 * v for v in start])
    interpolate(model, start)
    assert [v.dtype for v in model.weights] == ["bfloat16"] * 2
    np.testing.assert_array_equal(model.get_weights()[0].astype("float32"), 2.0)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares(share):
    with pytest.raises(ValueError, match=r"`share`"):
        interpolate(small(), small(), share)


def test_what_does_not_fit(delta):
    model = small()
    before = model.get_weights()
    with pytest.raises(TypeError, match=r"None is for a DeltaModel"):
        interpolate(model)
    with pytest.raises(TypeError, match=r"a list of arrays as `model.get_weights\(\)`"):
        interpolate(model, "imagenet")
    with pytest.raises(ValueError, match=r"`start` has 1 arrays, but the model has 14"):
        interpolate(model, before[:1])
    with pytest.raises(
        ValueError, match=r"an array \(3,\) where the model has 'conv0/k"
    ):
        interpolate(model, [before[1], *before[1:]])
    with pytest.raises(ValueError, match=r"has 0 arrays, but the model has 14"):
        interpolate(delta, [])
    other = kd.attach_head(make_backbone(True, 8, (3, 5)), 3)
    with pytest.raises(
        ValueError, match=r"`start` and .* differ in arch.*call 3 is 'conv1'"
    ):
        interpolate(model, other)
    assert_same(model, before)


# --- soup --------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [3, 0, 1]])
def test_the_mean_of_models(weights):
    models = [small(i) for i in range(3)]
    shares = [1 / 3] * 3 if weights is None else [0.75, 0, 0.25]
    mean = soup(models, weights)
    expected = twin([m.get_weights() for m in models], shares)
    assert_same(mean, expected)
    for i, model in enumerate(models):
        assert_same(model, small(i))
        assert not {id(v) for v in model.variables} & {id(v) for v in mean.variables}
    x, _ = reference.data(4)
    models[0].set_weights(expected)
    np.testing.assert_allclose(mean(x), models[0](x), rtol=1e-5, atol=1e-6)
    kd.batch_norm.estimate_statistics(mean, x)


def test_soup_of_delta_models_is_a_target(delta, new_backbone):
    other = reference.compiled(*reference.pair(new_backbone, batch_norm=True))
    mean = soup([delta, other])
    assert not isinstance(mean, kd.DeltaModel) and not mean.compiled
    lists = [delta.target.get_weights(), other.target.get_weights()]
    assert_same(mean, twin(lists, [0.5, 0.5]))
    assert_same(soup([delta]), delta.target)


def branches(turned=False):
    inputs = keras.Input((4,))
    a = layers.Dense(4, activation="relu")(inputs)
    b = layers.Dense(4)(a)
    return keras.Model(inputs, layers.Subtract()([b, a] if turned else [a, b]))


def test_other_architectures():
    a = branches()
    with pytest.raises(ValueError, match=r"`models\[1\]` and .* differ .*: call 2 is"):
        soup([a, branches(turned=True)])
    longer = keras.Model(a.input, layers.Dense(2, name="more")(a.output))
    with pytest.raises(ValueError, match=r"call 3 is 'more' \(Dense \(4, 2\) \(2,\)\)"):
        soup([a, longer])
    with pytest.raises(ValueError, match=r"call 3 is none of the 3 calls and 'more'"):
        soup([longer, a])
    other = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    with pytest.raises(
        ValueError, match=r"call 0 is 'dense.*' \(Dense.*build all mode"
    ):
        soup([a, other])


def test_refusals():
    with pytest.raises(ValueError, match=r"at least one model"):
        soup([])
    a = branches()
    for weights in ([1], [0, 0], [1, 2, 3]):
        with pytest.raises(ValueError, match=r"2 numbers, one for each model"):
            soup([a, a], weights)
    with pytest.raises(ValueError, match=r"`weights`"):
        soup([a, a], [1, -1])

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match=r"`models\[1\]`.*subclassed"):
        soup([a, Own()])
    lora = branches()
    lora.layers[1].enable_lora(2)
    with pytest.raises(ValueError, match=r"of `models\[0\]` has LoRA"):
        soup([lora, lora])
    with pytest.raises(ValueError, match=r"of `model` has LoRA"):
        interpolate(lora, lora)
