"""`FeatureMap` and `Delta` on maps alone, against numbers worked out elsewhere."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import HEAD, SCORES, SOURCE_MAP, TARGET_MAP, half_sum_of_squares, softmax

import keras_delta as kd
from keras_delta import ChannelAttention, regularizers
from keras_delta.regularizers import Delta, FeatureMap, L2SPAtt

SOURCE, TARGET = {"tap": SOURCE_MAP}, {"tap": TARGET_MAP}
CODE = ChannelAttention.from_scores({"tap": SCORES})


def test_weights_of_the_authors_program():
    """softmax(zscore(scores) / 5)."""
    np.testing.assert_allclose(
        CODE.weights["tap"],
        [0.165610, 0.264523, 0.219337, 0.150803, 0.199727],
        atol=1e-6,
    )


def test_weights_of_a_sharp_softmax():
    sharp = ChannelAttention.from_scores({"tap": SCORES}, "softmax", temperature=0.25)
    np.testing.assert_allclose(
        sharp.weights["tap"],
        [0.068470, 0.505925, 0.227327, 0.045897, 0.152382],
        atol=1e-6,
    )


def test_weights_of_the_losses_of_algorithm_1():
    """Intact loss .679530; with channel j off as listed; the article sums over 3."""
    intact = 0.679530
    without = np.array([1.004271, 0.572234, 0.704406, 0.476843, 0.746306])
    scores = without - intact
    np.testing.assert_allclose(
        ChannelAttention.from_scores({"tap": scores}).weights["tap"],
        [0.274806, 0.169751, 0.196706, 0.152623, 0.206114],
        atol=2e-6,
    )
    summed = ChannelAttention.from_scores({"tap": 3 * scores}, "softmax", 1.0)
    np.testing.assert_allclose(
        summed.weights["tap"],
        [0.426067, 0.116569, 0.173296, 0.087559, 0.196508],
        atol=2e-6,
    )


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (FeatureMap(variant="code"), 8.555),
        (FeatureMap(variant="article"), 5.703333),
        (FeatureMap(variant="relative"), 1.926802),
        (Delta(attention=CODE, variant="code"), 2.179319),
        (Delta(attention="uniform", variant="code"), 2.138750),
        (Delta(attention=CODE, variant="relative"), 1.963350),
        (Delta(attention="uniform", variant="relative"), 1.926802),
        (
            Delta(
                attention={"tap": [0.068470, 0.505925, 0.227327, 0.045897, 0.152382]},
                variant="article",
            ),
            1.221145,
        ),
        (
            Delta(
                attention=ChannelAttention.from_scores(
                    {"tap": 4 * SCORES}, "softmax", temperature=1.0
                ),
                variant="article",
            ),
            1.221145,
        ),
    ],
)
def test_distance(regularizer, expected):
    found = regularizer.feature_distance(SOURCE, TARGET)
    assert found.dtype == "float32" and found.shape == ()
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_whole_objective():
    """CE 1, alpha = beta = 0.01, head arange(6)/10: 1.024543."""
    feature = Delta(attention=CODE, variant="code").feature_distance(SOURCE, TARGET)
    total = 1 + 0.01 * float(feature) + 0.01 * half_sum_of_squares([HEAD])
    assert total == pytest.approx(1.024543, abs=1e-6)


def test_taps_are_summed():
    one = FeatureMap(variant="code")
    two = one.feature_distance({**SOURCE, "b": SOURCE_MAP}, {**TARGET, "b": TARGET_MAP})
    assert float(two) == pytest.approx(2 * 8.555, rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "factor"), [("code", 2), ("article", 1), ("relative", 1)]
)
@pytest.mark.parametrize("kind", [FeatureMap, Delta])
def test_twice_the_batch(kind, variant, factor):
    """The program sums over the batch; the others take the mean."""
    kwargs = {"attention": "uniform"} if kind is Delta else {}
    regularizer = kind(variant=variant, **kwargs)
    once = float(regularizer.feature_distance(SOURCE, TARGET))
    double = [{"tap": np.concatenate([m["tap"]] * 2)} for m in (SOURCE, TARGET)]
    assert float(regularizer.feature_distance(*double)) == pytest.approx(
        factor * once, rel=1e-5
    )


def test_relative_does_not_depend_on_units_channels_and_positions():
    relative = FeatureMap()
    expected = float(relative.feature_distance(SOURCE, TARGET))
    for change in (
        lambda m: 100 * m,
        lambda m: np.concatenate([m, m], axis=-1),
        lambda m: np.concatenate([m, m], axis=1),
    ):
        maps = [{"tap": change(m["tap"])} for m in (SOURCE, TARGET)]
        assert float(relative.feature_distance(*maps)) == pytest.approx(
            expected, rel=1e-5
        )


def test_relative_is_one_where_the_target_has_vanished():
    nothing = {"tap": np.zeros_like(SOURCE_MAP)}
    for regularizer in (FeatureMap(), Delta(attention="uniform")):
        found = float(regularizer.feature_distance(SOURCE, nothing))
        assert found == pytest.approx(1, rel=1e-6)


def test_the_gradient_is_finite_where_maps_agree():
    maps = tf.constant(SOURCE_MAP, "float32")
    with tf.GradientTape() as tape:
        tape.watch(maps)
        total = Delta(attention=CODE).feature_distance(SOURCE, {"tap": maps})
    np.testing.assert_array_equal(tape.gradient(total, maps), 0 * SOURCE_MAP)


def test_default_strengths():
    for kind in (FeatureMap, Delta):
        assert kind().alpha == kind.default_alpha["relative"]
        assert kind(variant="code").alpha == 0.01
        assert kind(variant="article").alpha == 0.01
        assert kind(alpha=0.5).alpha == 0.5
        assert kind().beta == 0.01


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"`variant`. Received: 'paper'. Known names"):
        FeatureMap(variant="paper")
    for kind in (Delta, L2SPAtt):
        with pytest.raises(ValueError, match=r"`temperature`. Expected a positive"):
            kind(temperature=0)
        with pytest.raises(ValueError, match=r"`attention_samples`. Expected a pos"):
            kind(attention_samples=0)


def test_scales_are_measured_once_and_saved(bound, images):
    model = bound(FeatureMap())
    assert not model.regularizer.ready and model.regularizer.scales == {}
    model.prepare(*images, verbose=0)
    maps = model.source_maps(images[0])
    expected = {t: float(np.square(m).mean()) for t, m in maps.items()}
    assert model.regularizer.scales == pytest.approx(expected, rel=1e-5)
    model.prepare(100 * images[0], images[1], verbose=0)
    assert model.regularizer.scales == pytest.approx(expected, rel=1e-5)
    stored = sorted(v.path.split("/")[-1] for v in model.regularizer.weights)
    assert stored == ["alpha", "beta", "scale_0", "scale_1", "scale_2"]


def test_variables_are_where_saved_models_have_them(bound):
    """Files of every version store a regularizer's variables by their number."""
    scales = [f"scale_{i}" for i in range(3)]
    weights = [f"attention_{i}" for i in range(3)]
    for kind, expected in (
        (Delta, ["alpha", "beta", *scales, *weights]),
        (L2SPAtt, ["alpha", "beta", *weights]),
    ):
        regularizer = bound(kind()).regularizer
        assert [v.name for v in regularizer.variables] == expected


def test_the_variants_of_others_need_no_scale(bound):
    assert bound(FeatureMap(variant="code")).regularizer.ready
    assert not bound(Delta(variant="code")).regularizer.ready  # attention="auto"
    assert bound(Delta(variant="code", attention="uniform")).regularizer.ready


def test_a_source_map_of_zeros_is_refused(bound, images, new_backbone):
    source = new_backbone()
    for w in source.get_layer("conv1").weights:
        w.assign(0 * w)
    model = bound(FeatureMap(), source=source)
    with pytest.raises(ValueError) as e:
        model.prepare(*images, verbose=0)
    assert str(e.value) == (
        "The source map at tap 'conv1' is zero on all 8 samples looked at, so "
        "distances cannot be measured in units of it. Tap another layer, or check the "
        "source's weights and the images."
    )


def test_images_that_are_not_finite_are_refused(bound, images):
    model = bound(FeatureMap())
    with pytest.raises(ValueError, match="at tap 'conv0' is not finite on all 8 "):
        model.prepare(np.full_like(images[0], np.nan), images[1], verbose=0)


def test_a_step_before_the_data_was_seen_is_refused(bound, images):
    model = bound(FeatureMap())
    with pytest.raises(ValueError) as e:
        model.train_on_batch(*images)
    assert str(e.value) == (
        "The regularizer FeatureMap needs to look at training data before the first "
        "step. Use `fit`, or call `model.prepare(x, y)` first."
    )


# The argument `attention` --------------------------------------------------------

FORMS = '"auto", "uniform", a ChannelAttention, a dict tap -> weights, or a path'


def test_auto_is_not_known_before_fit():
    with pytest.raises(ValueError) as e:
        Delta().feature_distance(SOURCE, TARGET)
    assert str(e.value) == (
        "`attention='auto'` is computed by `fit` from the training data and is not "
        "known yet. Pass `attention='uniform'` or a ChannelAttention to use the "
        "distance by itself."
    )
    assert Delta().attention_weights() is None


def test_auto_is_computed_from_the_training_data(bound, images):
    model = bound(Delta(variant="code"))
    model.prepare(*images, verbose=0)
    weights = model.regularizer.attention_weights()
    assert {t: len(w) for t, w in weights.items()} == {
        "conv0": 4,
        "conv1": 6,
        "conv2": 8,
    }
    for tap, w in weights.items():
        assert w.sum() == pytest.approx(1, abs=1e-5) and w.std() > 0
        found = model.regularizer.computed_attention.weights[tap]
        np.testing.assert_array_equal(found, w)


@pytest.mark.parametrize("kind", [Delta, L2SPAtt])
def test_the_temperature_of_the_computed_attention(bound, images, kind):
    """`softmax(z-score of the scores / temperature)`; 5 is the default."""
    for kwargs, temperature in (({}, 5.0), ({"temperature": 2}, 2.0)):
        model = bound(kind(0.1, **kwargs))
        assert model.regularizer.temperature == temperature
        model.prepare(*images, verbose=0)
        attention = model.regularizer.computed_attention
        assert attention.temperature == temperature
        for tap, weights in model.regularizer.attention_weights().items():
            scores = attention.scores[tap].astype("float64")
            z = (scores - scores.mean()) / scores.std()
            expected = softmax(z / temperature)
            np.testing.assert_allclose(weights, expected, rtol=1e-3)
            assert np.ptp(weights) > 0
        again = regularizers.get(regularizers.serialize(model.regularizer))
        assert again.temperature == temperature


def test_a_saved_attention_by_its_path(tmp_path):
    path = tmp_path / "attention.json"
    CODE.save(path)
    for form in (path, str(path)):
        found = Delta(attention=form, variant="code").feature_distance(SOURCE, TARGET)
        assert float(found) == pytest.approx(2.179319, abs=1e-5)


def test_a_missing_file(tmp_path):
    path = str(tmp_path / "none.json")
    with pytest.raises(ValueError) as e:
        Delta(attention=path)
    assert str(e.value) == (
        f"Invalid value for argument `attention`. Expected {FORMS}. Received: "
        f"attention={path!r}. No file of that name exists."
    )


def test_a_damaged_file(tmp_path):
    path = tmp_path / "attention.json"
    path.write_bytes(b'{"format": "keras_delta.Ch')
    with pytest.raises(ValueError) as e:
        Delta(attention=path)
    text = str(e.value)
    assert text.startswith(
        f"The attention file '{path}' cannot be used: expected JSON (Unterminated"
    )
    assert text.endswith(
        "It is damaged or of another kind; compute the attention again."
    )


def test_other_types_of_attention():
    with pytest.raises(TypeError) as e:
        Delta(attention=[0.5, 0.5])
    assert str(e.value) == (
        f"Invalid value for argument `attention`. Expected {FORMS}. Received: "
        "attention=[0.5, 0.5]"
    )


def test_attention_for_other_taps(bound):
    with pytest.raises(ValueError) as e:
        bound(Delta(attention={"relu0": np.ones(4)}))
    assert str(e.value) == (
        "The attention has no weights for the tap 'conv0': it was made for ['relu0']. "
        "Compute it for this model's taps, or pass `taps=['relu0']` to the DeltaModel."
    )


def test_attention_of_another_width(bound):
    attention = {"conv0": np.ones(4), "conv1": np.ones(5), "conv2": np.ones(8)}
    with pytest.raises(ValueError) as e:
        bound(Delta(attention=attention))
    assert str(e.value) == (
        "The attention has 5 weights for the tap 'conv1', but its map has 6 channels: "
        "it was made for another network. Compute it for this one."
    )
    with pytest.raises(ValueError, match=r"has 4 weights .* its map has 5 channels"):
        Delta(attention={"tap": np.ones(4)}).feature_distance(SOURCE, TARGET)


def test_more_taps_in_the_attention_than_in_the_model(bound):
    attention = {"conv1": np.arange(6) + 1, "other": np.ones(3)}
    model = bound(Delta(attention=attention), taps=["conv1"])
    weights = model.regularizer.attention_weights()
    assert list(weights) == ["conv1"]
    np.testing.assert_allclose(weights["conv1"], (np.arange(6) + 1) / 21, rtol=1e-6)


def test_a_config_of_attention_is_plain():
    config = Delta(attention=CODE).get_config()
    again = Delta.from_config(json.loads(json.dumps(config)))
    np.testing.assert_array_equal(again.attention.scores["tap"], CODE.scores["tap"])
    assert again.attention.temperature == 5.0


def test_float32_under_every_policy():
    keras.config.set_dtype_policy("mixed_float16")
    half = [{"tap": m["tap"].astype("float16")} for m in (SOURCE, TARGET)]
    found = Delta(attention=CODE, variant="code").feature_distance(*half)
    assert found.dtype == "float32"
    assert float(found) == pytest.approx(2.179319, rel=1e-3)


def test_a_source_that_is_all_but_zero_gets_a_warning(new_backbone, images):
    """Its scale divides the distance: 1e-12 would make any step diverge."""
    source = new_backbone()
    for weight in source.weights:
        weight.assign(1e-6 * weight)
    model = kd.DeltaModel(kd.attach_head(source, 3), source, regularizer="feature_map")
    with pytest.warns(UserWarning, match="is all but zero") as caught:
        model.prepare(*images)
    assert model.taps[0] in str(caught[0].message)
