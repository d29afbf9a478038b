"""Maps of several models side by side: which channels, and what is drawn."""

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from networks import make_backbone

import keras_delta as kd
from keras_delta.analysis import compare_activation_maps, plot_compared_maps
from keras_delta.analysis.maps import normalized
from keras_delta.analysis.overlays import overlaid

X = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype("float32")


def make_model(seed, regularizer="feature_map"):
    source = make_backbone(True)
    model = kd.DeltaModel(
        kd.attach_head(source, 3),
        source=source,
        taps=["relu1", "relu2"],
        regularizer=regularizer,
    )
    rng = np.random.default_rng(seed)
    for v in model.target.trainable_variables:
        v.assign(v + 0.2 * rng.normal(size=v.shape))
    return model


@pytest.fixture(scope="module")
def models():
    models = {"one": make_model(1, "delta"), "two": make_model(2)}
    weights = {"relu1": np.full(6, 1 / 6), "relu2": np.arange(8) / 28.0}
    attention = kd.ChannelAttention(weights)
    models["one"].regularizer.set_attention_weights(attention)
    return models


def layer(model, name):
    return keras.Model(model.inputs[0], model.get_layer(name).output)(X).numpy()


def test_lowest_channels(models):
    found = compare_activation_maps(models, X, count=2)
    assert list(found.maps) == ["source", "one", "two"]
    source = layer(models["one"].source, "relu2")
    chosen = np.argsort(source.mean((0, 1, 2)), kind="stable")[:2]
    assert found.names == [f"channel {c}" for c in chosen]
    for label, model in models.items():
        expected = normalized(layer(model.target, "relu2")[..., chosen])
        np.testing.assert_allclose(found.maps[label], expected, atol=1e-5)
    np.testing.assert_allclose(
        found.maps["source"], normalized(source[..., chosen]), atol=1e-5
    )


def test_other_rules(models):
    assert compare_activation_maps(models, X, channels="attention").names == [
        "channel 7",
        "channel 6",
        "channel 5",
    ]
    given = compare_activation_maps(models["two"], X, "relu1", [3, 0])
    assert list(given.maps) == ["source", "target"]
    assert given.maps["target"].shape == (3, 8, 8, 2)
    mean = compare_activation_maps(models, X, channels="mean").maps["two"]
    expected = layer(models["two"].target, "relu2").mean(-1, keepdims=True)
    np.testing.assert_allclose(mean, normalized(expected), atol=1e-5)


def test_grad_cam(models):
    """Average pooling and a Dense layer: the class activation map."""
    found = compare_activation_maps(models, X, channels="grad_cam").maps
    assert list(found) == ["one", "two"]
    target = models["two"].target
    maps, kernel = layer(target, "relu2"), target.get_layer("head").kernel.numpy()
    said = target.predict(X, verbose=0).argmax(1)
    expected = np.maximum(np.einsum("nhwc,cn->nhw", maps, kernel[:, said]), 0)
    expected /= expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(found["two"][..., 0], expected, atol=1e-4)


def test_the_picture(models, tmp_path):
    found = compare_activation_maps(models, X, count=2)
    figure = plot_compared_maps(found, tmp_path / "maps.png", dpi=50)
    assert len(figure.axes) == 3 * 2 * 4
    titles = [axis.get_title() for axis in figure.axes[:4]]
    assert titles == ["image", "source", "one", "two"]
    assert matplotlib.image.imread(tmp_path / "maps.png").std() > 0.05


def test_higher_is_lighter():
    """In grey as well: what is printed tells the same."""
    ramp = np.linspace(0, 1, 64)[None].repeat(8, 0)
    shown = overlaid(np.full((8, 64, 3), 0.4), ramp)
    luminance = tf.image.rgb_to_grayscale(shown).numpy()[0, :, 0].astype(int)
    assert (np.diff(luminance) >= -1).all() and luminance[-1] - luminance[0] > 90


def test_attention_that_was_given(models):
    """Or that came with a file: the weights in use, whoever computed them."""
    given = kd.ChannelAttention(models["one"].regularizer.attention_weights())
    model = make_model(1, kd.regularizers.Delta(attention=given))
    found = compare_activation_maps(model, X, channels="attention")
    assert found.names == ["channel 7", "channel 6", "channel 5"]
    uniform = make_model(1, kd.regularizers.Delta(attention="uniform"))
    with pytest.raises(ValueError, match="no model has attention"):
        compare_activation_maps(uniform, X, channels="attention")


def test_bad_input(models):
    with pytest.raises(TypeError, match="models"):
        compare_activation_maps(models["one"].target, X)
    with pytest.raises(ValueError, match="labels other than 'source'"):
        compare_activation_maps({"source": models["one"]}, X)
    with pytest.raises(ValueError, match="count"):
        compare_activation_maps(models, X, count=0)
    found = compare_activation_maps(models, X, channels=2)
    assert found.names == compare_activation_maps(models, X, count=2).names
    with pytest.raises(ValueError, match="channels"):
        compare_activation_maps(models, X, channels="highest")
    with pytest.raises(ValueError, match="attention"):
        compare_activation_maps(models["two"], X, channels="attention")
    with pytest.raises(ValueError, match="relu1"):
        compare_activation_maps(models, X, tap="relu3")
