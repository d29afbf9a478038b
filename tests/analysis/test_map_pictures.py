"""Maps of channels: which, from what, and what is drawn."""

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from reference import TARGET_MAP

import keras_delta as kd
from keras_delta.analysis import activation_maps, plot_activation_maps
from keras_delta.analysis.maps import displayed, lowest, normalized

X = reference.data(3)[0]


@pytest.fixture(scope="module")
def model(new_backbone):
    target, source = reference.pair(new_backbone, batch_norm=True, dropout=0.3)
    return kd.DeltaModel(target, source=source, taps=list(reference.TAPS))


def slow_normalized(a):
    """One map at a time."""
    found = np.zeros(a.shape)
    for n in range(a.shape[0]):
        for c in range(a.shape[-1]):
            one = a[n, :, :, c]
            if one.max() > one.min():
                found[n, :, :, c] = (one - one.min()) / (one.max() - one.min())
    return found


def tapped(model, name, images):
    """(source's map, target's map) by Keras's own means."""
    return [
        keras.Model(m.inputs[0], m.get_layer(name).output)(
            images, training=False
        ).numpy()
        for m in (model.source, model.target)
    ]


def test_normalized_by_hand():
    found = normalized(TARGET_MAP)
    np.testing.assert_allclose(found[0, :, :, 0], [[0, 0.6], [0.2, 1]], atol=1e-6)
    np.testing.assert_allclose(found, slow_normalized(TARGET_MAP), atol=1e-6)


def test_a_constant_map_is_zero():
    a = np.full((1, 2, 2, 2), 7.0)
    a[0, 0, 0, 1] = 8
    expected = np.zeros((1, 2, 2, 2))
    expected[0, 0, 0, 1] = 1
    np.testing.assert_array_equal(normalized(a), expected)


def test_lowest_by_hand():
    source = np.zeros((2, 1, 1, 4))
    source[:, 0, 0] = [[1, -3, 0, 5], [1, 3, -2, 5]]  # means 1, 0, -1, 5
    assert lowest(source, 3) == [2, 1, 0]
    assert lowest(source, 9) == [2, 1, 0, 3]


@pytest.mark.parametrize("tap, channels", [(None, 2), ("conv0", [2, 0])])
def test_arrays(tap, channels, model):
    found = activation_maps(model, X, tap, channels)
    source, target = tapped(model, tap or "conv1", X)
    chosen = channels
    if tap is None:
        chosen = np.argsort(source.mean((0, 1, 2)))[:channels].tolist()
    assert found["channels"].tolist() == chosen
    np.testing.assert_array_equal(found["images"], X)
    for name, a in (("source", source), ("target", target)):
        raw = a[..., chosen]
        np.testing.assert_allclose(found[f"{name}_raw"], raw, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[name], slow_normalized(raw), atol=1e-4)
    assert np.abs(source - target).max() > 0.1


def test_two_replicas_and_half_precision(strategy, new_backbone):
    keras.config.set_dtype_policy("mixed_float16")
    with strategy.scope():
        target, source = reference.pair(new_backbone)
        model = kd.DeltaModel(target, source=source, taps=list(reference.TAPS))
    found = activation_maps(model, X)
    for name, a in zip(("source", "target"), tapped(model, "conv1", X), strict=True):
        raw = a[..., found["channels"]]
        np.testing.assert_allclose(found[f"{name}_raw"], raw, rtol=0.01, atol=0.01)
        assert found[f"{name}_raw"].dtype == "float32"


def test_plot(tmp_path):
    """Two images of two channels; maps lie over the image, not stretched."""
    rng = np.random.default_rng(0)
    source, target = rng.uniform(size=(2, 2, 4, 6, 2))
    maps = {"images": rng.uniform(0, 255, (2, 12, 18, 3)), "channels": np.array([7, 3])}
    maps.update(source=source, target=target)
    figure = plot_activation_maps(maps, tmp_path / "p.png", "conv, epoch 5", dpi=20)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle() == "conv, epoch 5"
    axes = np.array(figure.axes[:16]).reshape(4, 4)
    for row in range(4):
        image, k = divmod(row, 2)
        pair = source[image, ..., k], target[image, ..., k]
        for axis, expected in zip(
            axes[row, 1:], (*pair, pair[1] - pair[0]), strict=True
        ):
            (shown,) = axis.images
            np.testing.assert_allclose(shown.get_array(), expected)
            assert shown.get_extent() == [0, 18, 12, 0] and axis.get_aspect() == 1
        assert axes[row, 3].images[0].get_clim() == (-1, 1)
        assert axes[row, 1].images[0].get_clim() == (0, 1)
        assert axes[row, 1].get_ylabel() == f"channel {[7, 3][k]}"
        assert axes[row, 0].get_visible() == (k == 0)
    shown = axes[2, 0].images[0].get_array()
    np.testing.assert_allclose(shown, maps["images"][1] / 255)
    headings = [axis.get_title() for axis in axes[0]]
    assert headings == ["image 0", "source", "target", "target − source"]


@pytest.mark.parametrize(
    "image, expected",
    [
        ([[0, 255]], [[0, 1]]),
        ([[0, 51]], [[0, 0.2]]),
        ([[0.25, 0.5]], [[0.25, 0.5]]),
        ([[-1, 3]], [[0, 1]]),
        ([[-2, -2]], [[0, 0]]),
        ([[0, 0]], [[0, 0]]),
    ],
)
def test_displayed(image, expected):
    found = displayed(np.array(image, "float32")[..., None])
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"images": X[0]}, ValueError, r"A single image is `image\[None\]`"),
        ({"images": X[..., :2]}, ValueError, "`images`. Expected an array"),
        ({"images": X * np.nan}, ValueError, "of finite numbers"),
        ({"images": tf.data.Dataset.range(2)}, TypeError, "pass a batch"),
        ({"images": [X[0], X[0, :2]]}, TypeError, "`images`. Expected an array"),
        ({"images": X[:, :4]}, ValueError, "Invalid shape for the input"),
        ({"tap": "conv"}, ValueError, "`tap`. Received: 'conv'. Closest names"),
        ({"channels": 0}, ValueError, "`channels`. Expected a positive integer"),
        ({"channels": []}, ValueError, "`channels`. Expected at least one number"),
        ({"channels": [1, 4]}, ValueError, "numbers below 4, the channels of 'conv1'"),
    ],
)
def test_what_does_not_fit(kwargs, error, match, model):
    with pytest.raises(error, match=match):
        activation_maps(**{"model": model, "images": X, **kwargs})


def test_another_model_is_refused(new_backbone):
    with pytest.raises(TypeError, match=r"`model`\. Expected a DeltaModel"):
        activation_maps(new_backbone(), X)


def test_a_source_without_the_tap(new_backbone, tmp_path):
    """Its maps are others, and nothing to subtract."""
    target, source = reference.pair(new_backbone)
    wider = new_backbone(widths=(4, 9, 9), size=8)
    for model in (
        kd.DeltaModel(target, source, ["conv0", "conv1"], source_taps=["conv0"]),
        kd.DeltaModel(target, wider, ["conv1"], source_taps=["conv1"]),
    ):
        with pytest.raises(ValueError, match=r"tap='conv1'.*compare_activation_maps"):
            activation_maps(model, X)
        callback = kd.callbacks.ActivationMaps(X, tmp_path)
        with pytest.raises(ValueError, match=r"compare_activation_maps"):
            callback.check(model)
        found = kd.analysis.compare_activation_maps(model, X, channels="mean")
        assert list(found.maps) == ["target"]


def test_a_model_without_taps():
    network = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model = kd.DeltaModel(kd.attach_head(network, 2), network, regularizer="l2_sp")
    assert not model.taps
    with pytest.raises(ValueError, match="a DeltaModel with taps"):
        activation_maps(model, np.zeros((1, 4, 4, 3)))
