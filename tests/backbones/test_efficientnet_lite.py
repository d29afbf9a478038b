import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from lite_nets import IMAGES, outputs, package_file, random_net

import keras_delta.backbones as backbones
from keras_delta._network.graph import is_container
from keras_delta.backbones.efficientnet_lite import _STAGES
from keras_delta.backbones.torch_pickle import read_state_dict


def reference(state, images, repeats):
    """EfficientNet-Lite in TensorFlow's own operations, from the PyTorch names."""
    state = {name: tf.constant(array) for name, array in state.items()}

    def normalise(x, name):
        mean, variance, beta, gamma = (
            state[f"{name}.{part}"]
            for part in ("running_mean", "running_var", "bias", "weight")
        )
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    def conv(x, name, stride=1):
        kernel = tf.transpose(state[f"{name}.weight"], (2, 3, 1, 0))
        return tf.nn.conv2d(x, kernel, stride, "SAME")

    def depthwise(x, name, stride):
        kernel = tf.transpose(state[f"{name}.weight"], (2, 3, 0, 1))
        return tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "SAME")

    x = (tf.cast(images, "float32") - 127) / 128
    x = tf.nn.relu6(normalise(conv(x, "_conv_stem", 2), "_bn0"))
    number = 0
    for stage, count in enumerate(repeats):
        for repeat in range(count):
            block, before = f"_blocks.{number}.", x
            if stage:
                x = normalise(conv(x, block + "_expand_conv"), block + "_bn0")
                x = tf.nn.relu6(x)
            stride = (1, 2, 2, 2, 1, 2, 1)[stage] if repeat == 0 else 1
            x = depthwise(x, block + "_depthwise_conv", stride)
            x = tf.nn.relu6(normalise(x, block + "_bn1"))
            x = normalise(conv(x, block + "_project_conv"), block + "_bn2")
            x = x + before if repeat else x
            number += 1
    x = tf.nn.relu6(normalise(conv(x, "_conv_head"), "_bn1"))
    logits = tf.linalg.matmul(
        tf.reduce_mean(x, (1, 2)), state["_fc.weight"], transpose_b=True
    )
    return x.numpy(), (logits + state["_fc.bias"]).numpy()


def test_equals_an_independent_implementation(with_top):
    """At an odd, oblong size, where wrong padding or scaling would show."""
    compare(with_top, 0, IMAGES, (1, 2, 2, 3, 3, 4, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "side"), [(1, 240), (2, 260)])
def test_larger_nets_equal_it_too(number, side):
    """At the default size, that of Lite2 being odd on the way down (65, 33, 17)."""
    model = getattr(backbones, f"efficientnet_lite{number}")(include_top=True)
    images = np.random.default_rng(1).integers(0, 256, (1, side, side, 3), "uint8")
    compare(model, number, images, (1, 3, 3, 4, 4, 5, 1))


def compare(model, number, images, repeats):
    state = read_state_dict(package_file(number).read_bytes())
    both = [model.get_layer("top_activation").output, model.output]
    found = outputs(keras.Model(model.input, both), images)
    for ours, expected in zip(found, reference(state, images, repeats), strict=True):
        assert expected.std() > 0.1
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_equals_keras_cv():
    """Keras-cv's own network, padding layers and all, on hand-scaled images."""
    from keras_cv.models import EfficientNetLiteBackbone

    ours = random_net(input_shape=(65, 70, 3))
    theirs = EfficientNetLiteBackbone(
        include_rescaling=False,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        input_shape=(65, 70, 3),
        **_STAGES,
    )
    pads = [layer.name for layer in theirs.layers if layer.name.endswith("_pad")]
    names = [layer.name for layer in theirs.layers[1:] if layer.name not in pads]
    assert [layer.name for layer in ours.layers] == ["image", "rescaling", *names]
    assert len(pads) == 5
    theirs.set_weights(ours.get_weights())
    images = IMAGES[:, :, :70]
    scaled = (images.astype("float32") - 127) / 128
    np.testing.assert_allclose(
        outputs(ours, images), outputs(theirs, scaled), rtol=1e-4, atol=1e-5
    )


def test_unknown_sizes(with_top, headless):
    body = keras.Model(with_top.input, with_top.get_layer("top_activation").output)
    headless.set_weights(body.get_weights())
    images = IMAGES[:, :64, :64]
    np.testing.assert_allclose(
        outputs(body, images), outputs(headless, images), rtol=1e-4, atol=1e-4
    )
    assert outputs(body, IMAGES[:, :64]).shape == (2, 2, 3, 1280)


@pytest.mark.parametrize(
    ("number", "side", "cells", "parameters"),
    [
        (0, 224, 7, 3413024),
        (1, 240, 8, 4189344),
        pytest.param(2, 260, 9, 4869168, marks=pytest.mark.slow),
    ],
)
def test_shapes_and_names(number, side, cells, parameters, nets):
    model = nets(f"efficientnet_lite{number}")
    assert model.input.shape == (None, side, side, 3)
    assert model.output.shape == (None, cells, cells, 1280)
    assert model.count_params() == parameters
    names = [layer.name for layer in model.layers]
    assert model.name == f"efficientnet_lite{number}"
    assert {"stem_conv", "block1a_project_conv", "block6d_project_conv"} <= set(names)
    assert (names[-1], names[-3]) == ("top_activation", "top_conv")
    assert type(model) is type(keras.Model(model.inputs, model.outputs))
    assert not any(is_container(layer) for layer in model.layers)
    for layer in model.layers:
        assert type(layer).__module__.startswith("keras.src.layers."), layer
        assert layer.output is not None  # a layer in two models would raise
    assert model.get_layer("block3a_project_conv").output.shape[1] == -(-side // 8)


def test_classifier(with_top):
    names = [layer.name for layer in with_top.layers[-4:]]
    assert names == ["top_activation", "avg_pool", "top_dropout", "predictions"]
    assert with_top.get_layer("predictions").activation is keras.activations.linear
    assert with_top.get_layer("top_dropout").rate == 0.2
    assert with_top.output.shape == (None, 1000)
    assert outputs(with_top, IMAGES).min() < 0


def test_raw_images_of_any_dtype(with_top):
    logits = outputs(with_top, IMAGES)
    for dtype in ("int32", "float32", "float64"):
        np.testing.assert_array_equal(outputs(with_top, IMAGES.astype(dtype)), logits)
    inner = keras.Model(
        with_top.get_layer("stem_conv").input, with_top.get_layer("stem_conv").output
    )
    by_hand = (IMAGES.astype("float32") - 127) / 128
    first = keras.Model(with_top.input, with_top.get_layer("stem_conv").output)
    np.testing.assert_allclose(
        outputs(first, IMAGES), outputs(inner, by_hand), rtol=1e-5, atol=1e-6
    )


def test_drop_connect(nets):
    layers = nets("efficientnet_lite1").layers
    rates = {x.name: x.rate for x in layers if x.name.endswith("_drop")}
    assert len(rates) == 14
    assert rates["block2b_drop"] == pytest.approx(0.2 * 2 / 21)
    assert rates["block6e_drop"] == pytest.approx(0.2 * 19 / 21)
    none = random_net(drop_connect_rate=0.0)
    assert not [x for x in none.layers if x.name.endswith("_drop")]
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="drop_connect_rate"):
            random_net(drop_connect_rate=rate)


@pytest.mark.parametrize(
    "shape", [224, (224, 224), (224, 224, 1), (0, 9, 3), (9.5, 9, 3)]
)
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match=r"input_shape.*height"):
        random_net(input_shape=shape)


def test_mixed_precision(with_top):
    keras.config.set_dtype_policy("mixed_float16")  # put back after each test
    model = backbones.efficientnet_lite0(input_shape=(64, 64, 3))
    assert model.output.dtype == "float16"
    full = keras.Model(with_top.input, with_top.get_layer("top_activation").output)
    images = IMAGES[:, :64, :64]
    np.testing.assert_allclose(outputs(model, images), outputs(full, images), atol=0.1)


def test_clone_save_and_load(with_top, tmp_path, monkeypatch):
    """Plain layers: neither needs keras-cv."""
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    clone = keras.models.clone_model(with_top)
    clone.set_weights(with_top.get_weights())
    expected = outputs(with_top, IMAGES)
    np.testing.assert_array_equal(outputs(clone, IMAGES), expected)
    with_top.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(outputs(loaded, IMAGES), expected)


ELSEWHERE = """
import sys
folder = sys.argv[1]
sys.modules["keras_cv"] = sys.modules["keras_delta"] = None
import keras
import numpy as np
model = keras.models.load_model(folder + "/net.keras")
np.save(folder + "/out.npy", model(np.load(folder + "/in.npy")))
print("loaded")

del sys.modules["keras_cv"], sys.modules["keras_delta"]
import keras_delta.backbones as backbones
assert "keras_cv" not in sys.modules, "imported before it is needed"
backbones.efficientnet_lite0(weights=None, input_shape=(64, 64, 3))
assert "keras_cv" in sys.modules
print("built")
"""


@pytest.mark.slow
def test_load_and_build_in_silence(with_top, tmp_path):
    """In a new process: loading needs no keras-cv, and building prints nothing."""
    expected = outputs(with_top, IMAGES)
    with_top.save(tmp_path / "net.keras")
    np.save(tmp_path / "in.npy", IMAGES)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "loaded\nbuilt\n"
    assert "keras_cv" not in done.stderr and "Warning" not in done.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), expected, rtol=1e-4, atol=1e-4
    )
