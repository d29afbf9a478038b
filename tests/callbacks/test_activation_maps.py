"""Pictures of channels: which, from what, and what is drawn."""

import copy
import pickle
import sys

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from reference import TARGET_MAP

from keras_delta.callbacks import ActivationMaps
from keras_delta.callbacks.activation_maps import displayed, lowest, normalized, plot
from keras_delta.regularizers import L2SP

X, Y = reference.learnable_data(8)
FILES = ("activation_maps-{:04d}.npz", "activation_maps-{:04d}.png")


def make(new_backbone, **kwargs):
    pair = reference.pair(new_backbone, batch_norm=True, dropout=0.3)
    return reference.compiled(*pair, L2SP(0.1, 0.1), **kwargs)


def fit(model, *callbacks, epochs=2, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs)


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
def test_arrays(tap, channels, new_backbone, tmp_path):
    model = make(new_backbone)
    maps = ActivationMaps(X[:3], tmp_path / "new", tap, channels)
    fit(model, maps)
    found = np.load(tmp_path / "new" / FILES[0].format(2))
    source, target = tapped(model, tap or "conv1", X[:3])
    chosen = channels
    if tap is None:
        chosen = np.argsort(source.mean((0, 1, 2)))[:channels].tolist()
    assert found["channels"].tolist() == maps.drawn == chosen
    np.testing.assert_array_equal(found["images"], X[:3])
    for name, a in (("source", source), ("target", target)):
        raw = a[..., chosen]
        np.testing.assert_allclose(found[f"{name}_raw"], raw, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[name], slow_normalized(raw), atol=1e-4)
    assert np.abs(source - target).max() > 0.1


@pytest.mark.parametrize("every, expected", [(1, [1, 2, 3]), (2, [2]), (4, [])])
def test_files(every, expected, new_backbone, tmp_path):
    fit(make(new_backbone), ActivationMaps(X[:1], tmp_path, every=every), epochs=3)
    names = sorted(name.format(epoch) for epoch in expected for name in FILES)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_training_is_the_same(new_backbone, tmp_path):
    """Dropout and BatchNorm included, so nothing is drawn and no statistic moves."""
    a = make(new_backbone)
    fit(a, ActivationMaps(X[:2], tmp_path))
    keras.utils.set_random_seed(0)  # as before the first one
    b = make(new_backbone)
    fit(b)
    for v, w in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(v, w)


def test_resumed_twice_and_copied(new_backbone, tmp_path):
    model, maps = make(new_backbone), ActivationMaps(X[:1], tmp_path, every=2)
    copies = [copy.deepcopy(maps), pickle.loads(pickle.dumps(maps))]
    fit(model, maps, epochs=3)
    fit(model, maps, initial_epoch=3, epochs=4)
    names = sorted(name.format(epoch) for epoch in (2, 4) for name in FILES)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for again in (*copies, copy.deepcopy(maps), pickle.loads(pickle.dumps(maps))):
        assert again.model is None
        np.testing.assert_array_equal(again.images, X[:1])
    fit(model, copies[0])
    assert copies[0].drawn == maps.drawn


def test_images_are_no_state_for_a_backup(tmp_path):
    simple = (int, float, str, list, dict, np.ndarray)
    kept = {
        k for k, v in vars(ActivationMaps(X, tmp_path)).items() if type(v) in simple
    }
    assert kept == {"channels", "every", "drawn"}


def test_two_replicas_and_half_precision(strategy, new_backbone, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    with strategy.scope():
        model = make(new_backbone)
    fit(model, ActivationMaps(X[:3], tmp_path), epochs=1)
    found = np.load(tmp_path / FILES[0].format(1))
    for name, a in zip(
        ("source", "target"), tapped(model, "conv1", X[:3]), strict=True
    ):
        raw = a[..., found["channels"]]
        np.testing.assert_allclose(found[f"{name}_raw"], raw, rtol=0.01, atol=0.01)
        assert found[f"{name}_raw"].dtype == "float32"


# --- the picture --------------------------------------------------------------------


def test_plot():
    """Two images of two channels; maps lie over the image, not stretched."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (2, 12, 18, 3))
    source, target = rng.uniform(size=(2, 2, 4, 6, 2))
    figure = plot(images, source, target, [7, 3], "conv, epoch 5")
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
    np.testing.assert_allclose(shown, images[1] / 255)
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


# --- errors -------------------------------------------------------------------------


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match='`pip install "matplotlib'):
        ActivationMaps(X, tmp_path)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"images": X[0]}, ValueError, r"a single image is `image\[None\]`"),
        ({"images": X[..., :2]}, ValueError, "`images`. Expected an array"),
        ({"images": X[:0]}, ValueError, "`images`. Expected an array"),
        ({"images": X * np.nan}, ValueError, "of finite numbers"),
        ({"images": "photos"}, TypeError, "pass a batch"),
        ({"images": tf.data.Dataset.range(2)}, TypeError, "pass a batch"),
        ({"images": [X[0], X[0, :2]]}, TypeError, "`images`. Expected an array"),
        ({"log_dir": None}, TypeError, "`log_dir`. Expected the path of a folder"),
        ({"tap": 3}, TypeError, "`tap`. Expected the name of a tap"),
        ({"channels": 0}, ValueError, "`channels`. Expected a positive integer or"),
        ({"channels": []}, ValueError, "`channels`. Expected a positive integer or"),
        ({"channels": [-1]}, ValueError, "`channels`. Expected a positive integer or"),
        ({"channels": True}, ValueError, "`channels`. Expected a positive integer or"),
        ({"channels": "3"}, ValueError, "`channels`. Expected a positive integer or"),
        ({"every": 0}, ValueError, "`every`. Expected a positive integer"),
    ],
)
def test_bad_arguments(kwargs, error, match, tmp_path):
    with pytest.raises(error, match=f"(?i){match}"):
        ActivationMaps(**{"images": X, "log_dir": tmp_path, **kwargs})


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"tap": "conv"}, "Unknown name for `tap`. Received: 'conv'. Closest names"),
        ({"channels": [1, 4]}, "`channels`. Expected numbers below 4, the channels of"),
        ({"images": X[:, :4]}, "Invalid shape for the input"),
    ],
)
def test_what_does_not_fit_the_model(kwargs, match, new_backbone, tmp_path):
    maps = ActivationMaps(**{"images": X, "log_dir": tmp_path, **kwargs})
    with pytest.raises(ValueError, match=match):
        fit(make(new_backbone), maps)


def test_a_plain_model_is_refused(new_backbone, tmp_path):
    model, _ = reference.pair(new_backbone)
    model.compile("sgd", reference.LOSS)
    with pytest.raises(TypeError, match="ActivationMaps works on a DeltaModel"):
        fit(model, ActivationMaps(X, tmp_path))
