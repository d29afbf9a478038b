"""`export_for_serving`: what others load must answer as the model does here."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import make_backbone
from served_models import (
    MODELS,
    NAMES,
    POOL,
    SETTINGS,
    SIDE,
    call,
    checkpoint,
    dense,
    head,
    raw_pixels,
    shapes,
    softmax,
)

import keras_delta as kd
from keras_delta._answers import calibration
from keras_delta.data import ImageSet
from keras_delta.data.ten_crop import predict_ten_crop
from keras_delta.serving import warmup
from keras_delta.serving.endpoints import Endpoints

CHILD = Path(__file__).with_name("fresh_child.py")


@pytest.fixture(scope="module")
def given(contents):
    """Inputs of every signature, as arrays."""
    encoded = np.array(contents, object)
    prepared = raw_pixels(5, SIDE, SIDE)
    any_size = raw_pixels(3, 23, 41, seed=1)
    both = {
        "classify_bytes:image_bytes": encoded,
        "classify_tensor:images": any_size,
        "classify_tensor_uint8:images": any_size.astype("uint8"),
        "prepare:image_bytes": encoded,
        "classify_prepared:images": prepared,
        "activation_map:images": prepared,
        "activation_map:class_ids": np.int64([-1, 0, 1, 2, -7]),
    }
    default = {
        "plain": ("image_bytes", encoded),
        "other": ("images", any_size),
    }
    names = "serving_default", "classify_ten_crop", "features"
    return {
        key: {**both, **{f"{name}:{argument}": value for name in names}}
        for key, (argument, value) in default.items()
    }


@pytest.fixture(scope="module", params=SETTINGS)
def key(request):
    return request.param


@pytest.fixture(scope="module")
def answers(key, exported, given, tmp_path_factory):
    """What a fresh process with TensorFlow alone answers, `signature:output`."""
    folder = tmp_path_factory.mktemp("answers")
    np.savez(folder / "in.npz", **given[key])
    # Moved: nothing in it may point to where it was written, the labels neither.
    shutil.copytree(exported[key], folder / "moved")
    command = [sys.executable, CHILD, "moved", "in.npz", "out.npz"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "out.npz", allow_pickle=True) as found:
        return dict(found)


@pytest.fixture(scope="module")
def images(photos, key):
    """The photos as our own pipeline prepares them."""
    return photos.arrays(SIDE, protocol=SETTINGS[key].get("protocol", "default"))[0]


def expect_answer(answers, signature, probabilities):
    k = answers[f"{signature}:scores"].shape[1]
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(answers[f"{signature}:class_ids"], order)
    scores = np.take_along_axis(probabilities, order, axis=-1)
    np.testing.assert_allclose(answers[f"{signature}:scores"], scores, atol=1e-5)
    labels = [
        [label.decode() for label in row] for row in answers[f"{signature}:labels"]
    ]
    assert labels == [[NAMES[i] for i in row] for row in order]


def test_a_fresh_process_has_every_signature(answers, given, key):
    asked = {name.split(":")[0] for name in given[key]}
    assert {name.split(":")[0] for name in answers} == asked
    assert len(asked) == 9


def test_prepared_images_are_ours_bit_for_bit(answers, images):
    np.testing.assert_array_equal(answers["prepare:images"], images)


def test_bytes_get_the_answers_of_predict(answers, images, model, key):
    probabilities = softmax(model.predict(images, verbose=0))
    expect_answer(answers, "classify_bytes", probabilities)
    if key == "plain":
        expect_answer(answers, "serving_default", probabilities)


def test_pixels_get_the_answers_of_predict(answers, given, model, key):
    prepared = given[key]["classify_prepared:images"]
    expect_answer(
        answers, "classify_prepared", softmax(model.predict(prepared, verbose=0))
    )
    large = given[key]["classify_tensor_uint8:images"]
    protocol = SETTINGS[key].get("protocol", "default")
    own = kd.data.ImageSet.from_arrays(large, [0] * len(large))
    resized = own.arrays(SIDE, protocol=protocol)[0]
    probabilities = softmax(model.predict(resized, verbose=0))
    expect_answer(answers, "classify_tensor_uint8", probabilities)
    expect_answer(answers, "classify_tensor", probabilities)
    if key == "other":
        expect_answer(answers, "serving_default", probabilities)


def test_ten_crops_get_the_answers_of_predict_ten_crop(
    answers, given, photos, model, key
):
    own, of = photos, SETTINGS[key].get("ten_crop_average", "logits")
    if key == "other":
        pixels = given[key]["classify_ten_crop:images"].astype("uint8")
        own = kd.data.ImageSet.from_arrays(pixels, [0] * len(pixels))
    crops = own.batches(SIDE, protocol="improved", ten_crop=True)
    averaged = predict_ten_crop(model, crops, of=of)
    if of == "logits":
        averaged = softmax(averaged)
    expect_answer(answers, "classify_ten_crop", averaged)


def test_features_are_those_of_a_keras_model(answers, images, given, model, key):
    if key == "other":
        pixels = given[key]["features:images"].astype("uint8")
        own = kd.data.ImageSet.from_arrays(pixels, [0] * len(pixels))
        images = own.arrays(SIDE, protocol="improved")[0]
    target = model.target
    outputs = {name: target.get_layer(name).output for name in model.taps}
    outputs["pooled"] = target.get_layer("head_pool").output
    expected = keras.Model(target.inputs, outputs).predict(images, verbose=0)
    # Dropout stands between pooling and classifier, and does nothing here.
    assert {n for n in answers if n.startswith("features:")} == {
        f"features:{name}" for name in expected
    }
    for name, value in expected.items():
        found = answers[f"features:{name}"]
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_activation_maps_are_class_activation_maps(answers, given, model, key):
    # For an average pooling and one Dense layer, both are the same.
    images = given[key]["activation_map:images"]
    asked = given[key]["activation_map:class_ids"]
    target = model.target
    maps = keras.Model(target.inputs, target.get_layer("relu2").output)(images).numpy()
    best = model.predict(images, verbose=0).argmax(axis=-1)
    chosen = np.where(asked < 0, best, asked)
    kernel = target.get_layer("head").kernel.numpy()
    expected = np.zeros(maps.shape[:3])
    for n, number in enumerate(chosen):
        for c in range(maps.shape[-1]):
            expected[n] += kernel[c, number] * maps[n, :, :, c]
    expected = np.maximum(expected, 0)
    largest = expected.max(axis=(1, 2), keepdims=True)
    expected = np.divide(expected, largest, where=largest > 0, out=expected)
    np.testing.assert_array_equal(answers["activation_map:class_ids"], chosen)
    np.testing.assert_allclose(answers["activation_map:maps"], expected, atol=1e-5)
    labels = [label.decode() for label in answers["activation_map:labels"]]
    assert labels == [NAMES[i] for i in chosen]


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(exported["plain"])


def test_names_types_and_shapes(loaded):
    signatures = loaded.signatures
    answer = {
        "labels": (tf.string, [None, 2]),
        "scores": (tf.float32, [None, 2]),
        "class_ids": (tf.int64, [None, 2]),
    }
    encoded = {"image_bytes": (tf.string, [None])}
    any_size = [None, None, None, 3]
    prepared = {"images": (tf.float32, [None, SIDE, SIDE, 3])}
    expected = {
        "serving_default": (encoded, answer),
        "classify_bytes": (encoded, answer),
        "classify_tensor": ({"images": (tf.float32, any_size)}, answer),
        "classify_tensor_uint8": ({"images": (tf.uint8, any_size)}, answer),
        "classify_ten_crop": (encoded, answer),
        "prepare": (encoded, prepared),
        "classify_prepared": (prepared, answer),
        "activation_map": (
            {**prepared, "class_ids": (tf.int64, [None])},
            {
                "maps": (tf.float32, [None, 4, 4]),
                "class_ids": (tf.int64, [None]),
                "labels": (tf.string, [None]),
            },
        ),
    }
    assert {*expected, "features"} == set(signatures)
    for name, (inputs, outputs) in expected.items():
        function = signatures[name]
        found = function.structured_input_signature[1]
        assert {k: (s.dtype, s.shape.as_list()) for k, s in found.items()} == inputs
        found = function.structured_outputs
        assert {k: (s.dtype, s.shape.as_list()) for k, s in found.items()} == outputs


def test_only_the_target_is_inside(exported, loaded, model):
    for folder in exported.values():
        assert checkpoint(folder) == shapes(model.target.variables)
    assert len(loaded.variables) == len(model.target.variables)
    assert len(model.variables) > len(model.target.variables)  # it could be more


def test_the_folder(exported):
    folder = exported["plain"]
    assert folder.name == "1"
    assert folder.parent.name == "plain"
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {name for name in names if not name.startswith("variables/")} == {
        "saved_model.pb",
        "fingerprint.pb",
        "MODEL_CARD.md",
        "model_card.json",
        "assets/labels.txt",
        "assets.extra/tf_serving_warmup_requests",
    }
    text = (folder / "assets" / "labels.txt").read_text("utf-8")
    assert text == "".join(f"{name}\n" for name in NAMES)
    assert [p.name for p in folder.parent.iterdir()] == ["1"]


def test_this_process_answers_as_predict_does(loaded, contents, photos, model):
    found = loaded.signatures["serving_default"](image_bytes=tf.constant(contents))
    probabilities = softmax(model.predict(photos.batches(SIDE), verbose=0))
    expected = -np.sort(-probabilities, axis=-1)[:, :2]
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)


def test_one_bad_image_is_an_invalid_argument(loaded, contents):
    function = loaded.signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(image_bytes=tf.constant([contents[0], b"no image"]))


@pytest.fixture
def quick(monkeypatch):
    """Exports write no SavedModel, only the card."""
    monkeypatch.setattr(Endpoints, "write", lambda self, folder: None)
    monkeypatch.setattr(warmup, "write", lambda *_: None)


def card_of(folder):
    return json.loads((folder / "model_card.json").read_text("utf-8"))


@pytest.mark.parametrize("form", ["set", "dataset", "arrays", "one hot"])
def test_validation_data_of_every_form(quick, form, model, photos, tmp_path):
    images, labels = photos.arrays(SIDE)
    data = {
        "set": photos,
        "dataset": photos.batches(SIDE, 4),
        "arrays": (images, labels),
        "one hot": (images, keras.utils.to_categorical(labels, 3)),
    }[form]
    folder = kd.export_for_serving(
        model, tmp_path / "m", NAMES, validation_data=data, model_card={"author": "We"}
    )
    measured = card_of(folder)["evaluation"]
    logits = model.predict(images, verbose=0)
    right = (logits.argmax(axis=-1) == labels).sum()
    assert measured["samples"] == len(labels)
    assert measured["accuracy"] == pytest.approx(right / len(labels))
    expected = -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()
    assert measured["loss"] == pytest.approx(expected, rel=1e-4)
    assert sum(row["samples"] for row in measured["recall"].values()) == len(labels)


def test_the_set_is_prepared_as_the_protocol_says(quick, model, photos, tmp_path):
    folder = kd.export_for_serving(
        model, tmp_path / "m", NAMES, protocol="improved", validation_data=photos
    )
    images, labels = photos.arrays(SIDE, protocol="improved")
    logits = model.predict(images, verbose=0)
    expected = -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()
    assert card_of(folder)["evaluation"]["loss"] == pytest.approx(expected, rel=1e-4)


def test_calibration_divides_every_answer(pixels_only, model, photos, tmp_path):
    images, labels = photos.arrays(SIDE)
    logits = model.predict(images, verbose=0)
    found = calibration.temperature(logits, labels)
    assert abs(found - 1) > 0.05  # else this test shows nothing
    folder = kd.export_for_serving(
        model, tmp_path / "m", NAMES, validation_data=photos, calibrate=True
    )
    assert card_of(folder)["evaluation"]["temperature"] == pytest.approx(
        found, rel=1e-3
    )
    scores = call(folder, "classify_prepared", images=images)["scores"]
    expected = -np.sort(-softmax(logits / found), axis=-1)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_model_that_was_saved_and_loaded(pixels_only, model, tmp_path):
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    folder = kd.export_for_serving(loaded, tmp_path / "m", NAMES)
    images = raw_pixels(4, SIDE, SIDE)
    found = call(folder, "classify_prepared", images=images)
    probabilities = softmax(model.predict(images, verbose=0))
    np.testing.assert_allclose(
        found["scores"], -np.sort(-probabilities, axis=-1), atol=1e-5
    )


# --- bad arguments -----------------------------------------------------------------


def two_outputs():
    body = make_backbone()
    x = POOL()(body.output)
    return keras.Model(body.input, [dense()(x), dense(name="second")(x)])


class Subclassed(keras.Model):
    def call(self, x):
        return x


BAD_MODELS = {
    "two outputs": (two_outputs, ValueError, "Expected one output"),
    "subclassed": (Subclassed, TypeError, "Functional or Sequential"),
    "not built": (
        lambda: keras.Sequential([POOL(), dense()]),
        ValueError,
        "Expected a built model",
    ),
    "maps": (make_backbone, ValueError, r"the output \(B, classes\)"),
    "one unit": (lambda: head(POOL(), dense(1)), ValueError, "Pass `task=`"),
    "unknown end": (
        lambda: head(POOL(), dense(activation="tanh")),
        ValueError,
        "Pass `from_logits=True` or",
    ),
    "vectors": (
        lambda: keras.Sequential([keras.Input((9,)), dense()]),
        ValueError,
        r"images \(B, height, width, 3\)",
    ),
    "any size": (MODELS["any_size"], ValueError, "Pass `image_size`"),
    "no model": (lambda: "model", TypeError, "keras.saving.load_model"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_models(kind, tmp_path):
    make, error, message = BAD_MODELS[kind]
    with pytest.raises(error, match=message):
        kd.export_for_serving(make(), tmp_path / "m", NAMES)
    assert list(tmp_path.iterdir()) == []


BAD_NAMES = {
    "half a character": (["a", "\ud800", "d"], ValueError, "UTF-8"),
    "too few": (NAMES[:2], ValueError, "3 names, one for each output"),
    "twice": (["a", "b", "a"], ValueError, r"different names.*\['a'\]"),
    "empty": (["a", "", "c"], ValueError, "class 1 has one"),
    "newline": (["a", "b\nc", "d"], ValueError, "single-line names"),
    "separator": (["a", "b\u2028c", "d"], ValueError, "single-line names"),
    "numbers": ([1, 2, 3], TypeError, r"strings only.*str\(i\)"),
    "a string": ("abc", TypeError, "a list of strings"),
}


@pytest.mark.parametrize("kind", BAD_NAMES)
def test_bad_class_names(kind, model, tmp_path):
    names, error, message = BAD_NAMES[kind]
    with pytest.raises(error, match=message):
        kd.export_for_serving(model, tmp_path / "m", names)
    assert list(tmp_path.iterdir()) == []


BAD_ARGUMENTS = {
    "a choice": ({"format": "pb"}, ValueError, "Unknown name for `format`"),
    "image size": ({"image_size": 99}, ValueError, r"\(16, 16\), as the model's"),
    "tap": ({"taps": ["conv9"]}, ValueError, "conv9"),
    "card": ({"model_card": {"licence": "MIT"}}, ValueError, "'license'"),
    "calibrate": ({"calibrate": True}, ValueError, "needs `validation_data`"),
    "empty data": (
        {"validation_data": (np.zeros((0, SIDE, SIDE, 3)), np.zeros(0, int))},
        ValueError,
        "empty",
    ),
    "data of another size": (
        {"validation_data": (np.zeros((4, 9, 9, 3)), np.zeros(4, int))},
        ValueError,
        re.escape("(16, 16, 3)"),
    ),
    "data with another class": (
        {"validation_data": (np.zeros((4, SIDE, SIDE, 3)), np.full(4, 3))},
        ValueError,
        "3 classes",
    ),
    "images of other classes": (
        {
            "validation_data": ImageSet.from_arrays(
                np.zeros((3, 9, 9, 3), "uint8"), [0, 1, 2], NAMES[::-1]
            )
        },
        ValueError,
        "order must be that of the model's",
    ),
    "several sets": (
        {
            "validation_data": {
                "test": ImageSet.from_arrays(np.zeros((1, 9, 9, 3), "uint8"), [0])
            }
        },
        ValueError,
        r"one ImageSet.*sets\['test'\]",
    ),
    "probabilities": ({"from_logits": False}, ValueError, "ends in logits"),
    "data without labels": (
        {"validation_data": np.zeros((4, SIDE, SIDE, 3))},
        ValueError,
        "no targets",
    ),
}


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (None, TypeError, "`path`.*a string or pathlib.Path"),
        ("", ValueError, "whose name is the model's"),
    ],
)
def test_bad_paths(path, error, message, model):
    with pytest.raises(error, match=message):
        kd.export_for_serving(model, path, NAMES)


def test_a_file_in_place_of_a_model(tmp_path):
    with pytest.raises(TypeError, match=r"keras.saving.load_model"):
        kd.export_for_serving("model.keras", tmp_path / "m", NAMES)


def test_formats_are_not_mixed(model, tmp_path):
    """A server would take the newest version, whatever it is."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.tflite").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Version 1 .*model.tflite.*m_saved_model"):
        kd.export_for_serving(model, tmp_path / "m", NAMES, version=2)
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["1"]


@pytest.mark.parametrize(
    "options",
    [{"calibrate": True}, {"format": "litert"}, {"format": "onnx", "calibrate": True}],
    ids=["SavedModel", "LiteRT", "ONNX calibrated"],
)
def test_validation_data_are_read_once(quick, options, model, tmp_path, photos):
    images, labels = photos.arrays(SIDE)
    shuffled = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(10)
    seen = []

    def look(x, y):
        seen.append(int(y))
        return np.int32(0)

    def counted(x, y):
        zero = tf.numpy_function(look, [x, y], tf.int32)
        return x, y + tf.cast(tf.ensure_shape(zero, []), y.dtype)

    data = shuffled.take(6).map(counted).batch(3)
    folder = kd.export_for_serving(
        model, tmp_path / "m", NAMES, validation_data=data, **options
    )
    assert card_of(folder)["evaluation"]["samples"] == 6
    assert len(seen) == 6


def test_images_that_were_scaled_before(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Endpoints, "write", lambda self, folder: None)
    data = np.random.default_rng(0).uniform(size=(4, SIDE, SIDE, 3)), np.arange(4) % 3
    with pytest.warns(UserWarning, match="no value above 1.*0 to 255"):
        kd.export_for_serving(model, tmp_path / "m", NAMES, validation_data=data)


@pytest.mark.parametrize("kind", BAD_ARGUMENTS)
def test_bad_arguments(kind, model, tmp_path):
    arguments, error, message = BAD_ARGUMENTS[kind]
    with pytest.raises(error, match=message):
        kd.export_for_serving(model, tmp_path / "m", NAMES, **arguments)
    assert list(tmp_path.iterdir()) == []
