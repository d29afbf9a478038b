import os
import urllib.error

import h5py
import keras
import numpy as np
import pytest
from keras.src.applications import resnet as keras_resnet
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

import keras_delta.backbones as backbones
from keras_delta._network.graph import is_container
from keras_delta.backbones.registry import ALL

SMALL = (64, 64, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 75, 75, 3), dtype="uint8")
RESNET_TAPS = {
    "conv1_conv": (112, 112, 64),
    "conv2_block3_3_conv": (56, 56, 256),
    "conv3_block4_3_conv": (28, 28, 512),
    "conv5_block3_3_conv": (7, 7, 2048),
}
TAPS = {
    "resnet50": {**RESNET_TAPS, "conv4_block6_3_conv": (14, 14, 1024)},
    "resnet101": {**RESNET_TAPS, "conv4_block23_3_conv": (14, 14, 1024)},
    "inception_v3": {
        "activation_2": (147, 147, 64),
        "activation_4": (71, 71, 192),
        "mixed2": (35, 35, 288),
        "mixed7": (17, 17, 768),
    },
}


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


@pytest.fixture(scope="module")
def legacy(theirs, tmp_path_factory):
    """A file in the format that keras.applications downloads."""
    path = tmp_path_factory.mktemp("legacy") / "resnet50_notop.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
    return path


def same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("net", list(TAPS))
def test_taps_shapes_and_first_build_names(net):
    model = ALL[net].build(weights=None)
    side = ALL[net].size
    assert model.input.shape == (None, side, side, 3)
    for name, shape in TAPS[net].items():
        assert model.get_layer(name).output.shape == (None, *shape)
    assert type(model) is type(keras.Model(model.inputs, model.outputs))
    assert not any(is_container(layer) for layer in model.layers)
    assert model.name == net


def test_names_are_those_of_a_first_build(small, theirs):
    assert names(small) == ["image", "preprocessing", *names(theirs)[1:]]

    keras.backend.clear_session()  # Keras begins to count again
    first = keras.applications.InceptionV3(weights=None, include_top=False)
    second = keras.applications.InceptionV3(weights=None, include_top=False)
    assert names(second) != names(first)
    ours = backbones.inception_v3(weights=None, input_shape=(None, None, 3))
    assert names(ours) == ["image", "preprocessing", *names(first)[1:]]
    assert outputs(ours, IMAGES).shape == (2, 1, 1, 2048)


def test_preprocessing_is_inside(small, theirs):
    assert small.get_layer("preprocessing").mode == "caffe"
    images = IMAGES[:, :64, :64]
    bgr = images[..., ::-1].astype("float32") - [103.939, 116.779, 123.68]
    by_hand = outputs(theirs, bgr.astype("float32"))
    assert by_hand.std() > 0
    close = {"rtol": 1e-3, "atol": 1e-4 * by_hand.max()}
    np.testing.assert_allclose(outputs(small, images), by_hand, **close)
    np.testing.assert_allclose(outputs(small, images.astype("int32")), by_hand, **close)


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
def test_preprocessing_layer(mode, expected):
    layer = backbones.ImageNetPreprocessing(mode)
    pixel = np.array([[[[10, 20, 30]]]])
    for dtype in ("uint8", "float32"):
        found = keras.ops.convert_to_numpy(layer(pixel.astype(dtype)))
        assert found.dtype == np.float32 and found.shape == (1, 1, 1, 3)
        np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-5)
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert copy.mode == mode and copy.name == layer.name
    symbolic = layer(keras.Input((None, 5, 3)))
    assert symbolic.shape == (None, None, 5, 3)


def test_preprocessing_in_mixed_precision():
    """Rounded only at the end: 16 bits cannot tell 200.05 from 200."""
    layer = backbones.ImageNetPreprocessing("caffe", dtype="mixed_float16")
    found = layer(np.full((1, 1, 1, 3), 124.05, "float32"))
    assert found.dtype == "float16"
    exact = 124.05 - 123.68
    assert abs(float(found[0, 0, 0, 2]) - exact) < 1e-3
    assert abs(float(np.float16(124.05)) - 123.68 - exact) > 1e-2


def test_preprocessing_modes():
    with pytest.raises(ValueError, match=r"`mode`.*'tof'.*'torch'"):
        backbones.ImageNetPreprocessing("tof")


def test_classifier():
    model = backbones.inception_v3(weights=None, include_top=True, name="mine")
    assert model.name == "mine" and model.output.shape == (None, 1000)
    assert model.get_layer("predictions").activation is keras.activations.softmax
    logits = backbones.resnet50(
        weights=None, include_top=True, classifier_activation=None, input_shape=SMALL
    )
    assert names(logits)[-2:] == ["avg_pool", "predictions"]
    assert logits.get_layer("predictions").activation is keras.activations.linear


def test_bad_shapes():
    with pytest.raises(ValueError, match="input_shape"):
        backbones.resnet50(weights=None, input_shape=(224, 224))
    with pytest.raises(ValueError, match="at least 32x32"):
        backbones.resnet50(weights=None, input_shape=(20, 20, 3))


def test_save_and_load(small, tmp_path):
    images = IMAGES[:, :64, :64]
    expected = outputs(small, images)
    small.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    assert names(loaded) == names(small)
    np.testing.assert_allclose(outputs(loaded, images), expected, rtol=1e-5)


# -- weights by path ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "ending"), [("small", ".keras"), ("theirs", ".weights.h5")]
)
def test_files_of_ours_and_of_keras(request, small, tmp_path, ending, source):
    model, path = request.getfixturevalue(source), tmp_path / f"net{ending}"
    (model.save if ending == ".keras" else model.save_weights)(path)
    same_weights(backbones.resnet50(weights=path, input_shape=SMALL), small)


def test_legacy_files(small, legacy):
    loaded = backbones.resnet50(weights=str(legacy), input_shape=SMALL)
    same_weights(loaded, small)
    with pytest.raises(
        ValueError, match=r"weights of resnet50.*expected 107.*found 106"
    ):
        backbones.resnet50(weights=legacy, input_shape=SMALL, include_top=True)


def test_inception_by_path_whatever_was_built_before(tmp_path):
    path, shape = tmp_path / "net.weights.h5", (75, 75, 3)
    one = unlike_any_other(backbones.inception_v3(weights=None, input_shape=shape))
    one.save_weights(path)
    two = backbones.inception_v3(weights=path, input_shape=shape)
    same_weights(one, two)


def test_files_that_do_not_fit(small, tmp_path):
    path = tmp_path / "net.weights.h5"
    small.save_weights(path)
    with pytest.raises(ValueError, match=r"resnet50.*mismatch: layer 'predictions'"):
        backbones.resnet50(weights=path, input_shape=SMALL, include_top=True)
    (tmp_path / "a.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"`weights`.*resnet50.*Reason: \S"):
        backbones.resnet50(weights=tmp_path / "a.h5", input_shape=SMALL)
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ends in \.keras or \.weights\.h5 or \.h5"):
        backbones.resnet50(weights=tmp_path / "a.pth", input_shape=SMALL)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        backbones.resnet50(weights="nowhere.h5")


# -- weights from the network -----------------------------------------------------


def test_downloaded_weights(small, legacy, monkeypatch):
    asked = []

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
