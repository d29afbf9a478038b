import os
import subprocess
import sys
import urllib.error

import h5py
import keras
import numpy as np
import pytest
from keras.src.applications import resnet as keras_resnet
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

import keras_delta.backbones as backbones
from keras_delta._network.attach import attach_head
from keras_delta._network.graph import is_container
from keras_delta.backbones.preprocessing import ImageNetPreprocessing, preprocess
from keras_delta.backbones.registry import ALL

SMALL = (64, 64, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 75, 75, 3), dtype="uint8")


def outputs(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def names(model):
    return [layer.name for layer in model.layers]


def unlike_any_other(model):
    """Random values for all weights, also those that begin as zeros or ones."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if len(variable.shape) > 1:
            scale = (2 / np.prod(variable.shape[:-1])) ** 0.5
            variable.assign(rng.normal(0, scale, variable.shape))
        else:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# -- the networks ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return unlike_any_other(backbones.resnet50(weights=None, input_shape=SMALL))


@pytest.fixture(scope="module")
def theirs(small):
    """Plain keras.applications with the weights of `small`."""
    model = keras.applications.ResNet50(
        weights=None, input_shape=SMALL, include_top=False
    )
    model.set_weights(small.get_weights())
    return model


def legacy_file(model, path):
    """A file in the format that keras.applications downloads."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


@pytest.mark.parametrize(
    "net",
    ["resnet50", "inception_v3", pytest.param("resnet101", marks=pytest.mark.slow)],
)
def test_one_flat_network_of_plain_layers(net, nets):
    model, side = nets(net), ALL[net].size
    assert model.input.shape == (None, side, side, 3)
    assert model.output.shape[-1] == 2048
    assert type(model) is type(keras.Model(model.inputs, model.outputs))
    assert not any(is_container(layer) for layer in model.layers)
    assert model.name == net
    assert names(model)[:2] == ["image", "preprocessing"]


def test_resnet_is_that_of_keras(small, theirs):
    assert names(small) == ["image", "preprocessing", *names(theirs)[1:]]
    images = IMAGES[:, :64, :64]
    bgr = images[..., ::-1].astype("float32") - [103.939, 116.779, 123.68]
    by_hand = outputs(theirs, bgr.astype("float32"))
    assert by_hand.std() > 0
    close = {"rtol": 1e-3, "atol": 1e-4 * by_hand.max()}
    np.testing.assert_allclose(outputs(small, images), by_hand, **close)
    np.testing.assert_allclose(outputs(small, images.astype("int32")), by_hand, **close)


@pytest.mark.slow
def test_inception_is_that_of_a_first_build(tmp_path):
    """Whatever was built before, also with weights by path."""
    keras.backend.clear_session()  # Keras begins to count again
    first = keras.applications.InceptionV3(weights=None, include_top=False)
    second = keras.applications.InceptionV3(weights=None, include_top=False)
    assert names(second) != names(first)
    shape = (75, 75, 3)
    one = unlike_any_other(backbones.inception_v3(weights=None, input_shape=shape))
    assert names(one) == ["image", "preprocessing", *names(first)[1:]]
    one.save_weights(tmp_path / "net.weights.h5")
    two = backbones.inception_v3(tmp_path / "net.weights.h5", (None, None, 3))
    same_weights(one, two)
    first.set_weights(one.get_weights())
    by_hand = outputs(first, IMAGES.astype("float32") / 127.5 - 1)
    assert by_hand.shape == (2, 1, 1, 2048) and by_hand.std() > 0
    close = {"rtol": 1e-3, "atol": 1e-4 * by_hand.max()}
    np.testing.assert_allclose(outputs(two, IMAGES), by_hand, **close)


def test_classifier():
    model = backbones.resnet50(
        None, SMALL, include_top=True, classifier_activation=None, name="mine"
    )
    assert model.name == "mine" and model.output.shape == (None, 1000)
    assert names(model)[-2:] == ["avg_pool", "predictions"]
    assert model.get_layer("predictions").activation is keras.activations.linear


def test_bad_shapes():
    with pytest.raises(ValueError, match="input_shape"):
        backbones.resnet50(weights=None, input_shape=(224, 224))
    with pytest.raises(ValueError, match="at least 32x32"):
        backbones.resnet50(weights=None, input_shape=(20, 20, 3))


# -- weights from the network ---------------------------------------------------------


def test_downloaded_weights(small, theirs, monkeypatch, tmp_path):
    legacy, asked = legacy_file(theirs, tmp_path / "resnet50_notop.h5"), []

    def get_file(name, origin, **kwargs):
        asked.append(origin)
        return str(legacy)

    monkeypatch.setattr(keras_resnet.file_utils, "get_file", get_file)
    same_weights(backbones.resnet50(input_shape=SMALL), small)
    assert len(asked) == 1 and asked[0].startswith("https://storage.googleapis.com/")


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route to host"),
        urllib.error.HTTPError("https://x", 404, "not found", None, None),
    ],
)
def test_a_failed_download_names_the_file(monkeypatch, tmp_path, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(file_utils, "urlretrieve", fail)
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    with pytest.raises(ConnectionError) as caught:
        backbones.resnet50(input_shape=SMALL)
    assert "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5" in str(caught.value)
    assert "`weights=path`" in str(caught.value)
    assert not [file for _, _, files in os.walk(tmp_path) for file in files]


# -- weights by path: the same for all, so with a network of five layers --------------


def tiny_application(weights, input_shape, include_top, classifier_activation):
    """In place of a network of keras.applications; most names are Keras's numbers."""
    assert weights is None
    layers = keras.layers
    x = image = keras.Input(input_shape)
    for kernel in (3, 5, 1):
        x = layers.Conv2D(4, kernel)(x)
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(9, classifier_activation, name="predictions")(x)
    return keras.Model(image, x, name="inception_v3")


@pytest.fixture
def tiny(monkeypatch):
    """Builder of a network whose core is the tiny one."""
    monkeypatch.setattr(keras.applications, "InceptionV3", tiny_application)

    def build(weights=None, **kwargs):
        return backbones.inception_v3(weights, (16, 16, 3), **kwargs)

    return build


def test_names_are_those_of_a_first_build(tiny):
    expected = [
        name + number
        for number in ("", "_1", "_2")
        for name in ("conv2d", "batch_normalization", "activation")
    ]
    for _ in range(2):
        assert names(tiny()) == ["image", "preprocessing", *expected]


def test_save_and_load(tiny, tmp_path):
    model, images = unlike_any_other(tiny(include_top=True)), IMAGES[:, :16, :16]
    model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    assert names(loaded) == names(model)
    expected = outputs(model, images)
    np.testing.assert_allclose(outputs(loaded, images), expected, rtol=1e-5)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5", "keras's.weights.h5"])
def test_files_of_ours_and_of_keras(tiny, tmp_path, ending):
    model, path = unlike_any_other(tiny()), tmp_path / f"net{ending}"
    if ending.startswith("keras"):
        core = tiny_application(None, (16, 16, 3), False, None)
        core.set_weights(model.get_weights())
        core.save_weights(path)
    else:
        (model.save if ending == ".keras" else model.save_weights)(path)
    same_weights(tiny(path), model)


def test_legacy_files(tiny, tmp_path):
    model = unlike_any_other(tiny())
    core = tiny_application(None, (16, 16, 3), False, None)
    core.set_weights(model.get_weights())
    path = legacy_file(core, tmp_path / "notop.h5")
    same_weights(tiny(str(path)), model)
    with pytest.raises(
        ValueError, match=r"weights of inception_v3.*expected 7.*found 6"
    ):
        tiny(path, include_top=True)


def test_files_that_do_not_fit(tiny, tmp_path):
    path = tmp_path / "net.weights.h5"
    tiny().save_weights(path)
    with pytest.raises(ValueError, match=r"inception_v3.*layer 'predictions'"):
        tiny(path, include_top=True)
    (tmp_path / "a.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"`weights`.*inception_v3.*Reason: \S"):
        tiny(tmp_path / "a.h5")
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ends in \.keras or \.weights\.h5 or \.h5"):
        tiny(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tiny("nowhere.h5")


# -- preprocessing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("caffe", [30 - 103.939, 20 - 116.779, 10 - 123.68]),
        ("tf", [10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1]),
        (
            "torch",
            [
                (10 / 255 - 0.485) / 0.229,
                (20 / 255 - 0.456) / 0.224,
                (30 / 255 - 0.406) / 0.225,
            ],
        ),
    ],
)
def test_preprocessing(mode, expected):
    image = keras.Input((None, 5, 3))
    model = keras.Model(image, preprocess(image, mode))
    assert model.output.shape == (None, None, 5, 3)
    for dtype in ("uint8", "float32"):
        found = model(np.full((1, 1, 5, 3), [10, 20, 30], dtype))
        assert found.dtype == "float32"
        np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_files_with_the_layer_of_old_are_the_same(mode):
    """It is registered still; the arithmetic is the same to float32's rounding."""
    layer = ImageNetPreprocessing(mode)
    layer = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    x = IMAGES.astype("float32")
    image = keras.Input(x.shape[1:])
    found = keras.Model(image, preprocess(image, mode))(x)
    np.testing.assert_allclose(found, layer(x), rtol=1e-6, atol=1e-5)


def test_preprocessing_in_mixed_precision():
    """In float32: 16 bits cannot tell 124.05 from 124."""
    keras.config.set_dtype_policy("mixed_float16")
    image = keras.Input((1, 1, 3))
    found = keras.Model(image, preprocess(image, "caffe"))(
        np.full((1, 1, 1, 3), 124.05)
    )
    assert abs(float(found[0, 0, 0, 2]) - (124.05 - 123.68)) < 1e-4


def test_preprocessing_modes():
    with pytest.raises(ValueError, match=r"`mode`.*'tof'.*'torch'"):
        preprocess(keras.Input((1, 1, 3)), "tof")


def test_preprocessing_is_of_keras_own_layers():
    for mode in ("caffe", "tf", "torch"):
        image = keras.Input((4, 4, 3))
        model = keras.Model(image, preprocess(image, mode))
        modules = {type(operation).__module__ for operation in model.operations}
        assert all(module.startswith("keras.") for module in modules)


@pytest.mark.slow
def test_targets_load_without_this_package(tmp_path):
    """For every backbone: `model.target` is a plain Keras model."""
    paths = []
    for name in ALL:
        side = 75 if name == "inception_v3" else 32
        build = getattr(backbones, name)
        source = build(weights=None, input_shape=(side, side, 3))
        paths.append(str(tmp_path / f"{name}.keras"))
        attach_head(source, 3).save(paths[-1])
    code = f"import keras, sys\nfor p in {paths}: keras.saving.load_model(p)\n"
    code += "assert 'keras_delta' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, stderr=-1
    )
    assert done.returncode == 0, done.stderr[-500:]


# -- the table -----------------------------------------------------------------------


def test_table():
    assert list(ALL) == [
        "efficientnet_lite0",
        "efficientnet_lite1",
        "efficientnet_lite2",
        "resnet50",
        "resnet101",
        "inception_v3",
    ]
    for name, backbone in backbones.ALL.items():
        assert backbones.get(name) is backbone.build is getattr(backbones, name)
        defaults = dict(
            zip(
                ("weights", "input_shape", "include_top"),
                backbone.build.__defaults__,
                strict=False,
            )
        )
        assert defaults["weights"] == "imagenet" and not defaults["include_top"]
        assert defaults["input_shape"] == (backbone.size, backbone.size, 3)
        assert "Returns:" in backbone.build.__doc__
    with pytest.raises(ValueError, match=r"backbone.*'resnet51'.*'resnet50'"):
        backbones.get("resnet51")
