"""`export_for_serving(format="onnx")`: the file against `predict`, and refusals."""

import json
import sys

import keras
import numpy as np
import onnx
import onnxruntime
import pytest

import keras_delta as kd

NAMES = ["cat", "Hündin", "a, b"]


@pytest.fixture
def model(bn_backbone):
    return kd.attach_head(bn_backbone, 3)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scores_of(folder, images):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return session.run(["scores"], {"images": images})[0]


def card_of(folder):
    return json.loads((folder / "model_card.json").read_text("utf-8"))


def export(model, path, **kwargs):
    return kd.export_for_serving(model, path, NAMES, format="onnx", **kwargs)


def test_same_scores_as_predict(model, images, tmp_path):
    x, _ = images
    folder = export(model, tmp_path / "pets")
    assert folder == tmp_path / "pets" / "1"
    names = {"model.onnx", "labels.txt", "MODEL_CARD.md", "model_card.json"}
    assert {p.name for p in folder.iterdir()} == names
    expected = softmax(model.predict(x, verbose=0))
    for batch in 1, 3, 8:
        found = scores_of(folder, x[:batch])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:batch], rtol=0, atol=1e-5)


def test_names_shapes_and_labels_are_inside(model, tmp_path):
    folder = export(model, tmp_path / "pets")
    proto = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert proto.graph.name == "pets"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type) == ("images", "tensor(float)")
    assert given.shape == ["batch", 16, 16, 3]
    assert (answer.name, answer.type) == ("scores", "tensor(float)")
    assert answer.shape == ["batch", 3]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == NAMES
    assert (folder / "labels.txt").read_text("utf-8") == "cat\nHündin\na, b\n"


def test_temperature_is_inside(model, images, tmp_path):
    x, y = images
    folder = export(model, tmp_path / "m", validation_data=(x, y), calibrate=True)
    temperature = card_of(folder)["evaluation"]["temperature"]
    assert abs(temperature - 1) > 0.05
    expected = softmax(model.predict(x, verbose=0) / temperature)
    np.testing.assert_allclose(scores_of(folder, x), expected, rtol=0, atol=1e-5)


def test_card_says_what_the_conversion_did(model, images, tmp_path):
    x, y = images
    folder = export(model, tmp_path / "m", validation_data=(x, y))
    before = softmax(model.predict(x, verbose=0))
    found = card_of(folder)["conversion"]
    assert found.pop("largest_difference") < 1e-5
    accuracy = np.mean(before.argmax(-1) == y)
    assert found == {
        "quantize": None,
        "bytes": (folder / "model.onnx").stat().st_size,
        "images": "validation_data",
        "samples": 8,
        "agreement": 1.0,
        "accuracy_before": accuracy,
        "accuracy": accuracy,
        "drop": 0.0,
    }
    assert card_of(folder)["evaluation"]["accuracy"] == accuracy


def test_other_scores_are_refused(model, images, tmp_path, monkeypatch):
    real = onnxruntime.InferenceSession

    class Off(real):
        def run(self, *args, **kwargs):
            (scores,) = super().run(*args, **kwargs)
            return [scores + np.float32(0.0015)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Off)
    with pytest.raises(
        ValueError, match=r"ONNX Runtime does not .* up to 0\.0015 on 16"
    ):
        export(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="on 8 images"):
        export(model, tmp_path / "m", validation_data=images)


def test_operations_that_onnx_has_not(backbone, tmp_path):
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    x = keras.ops.erfinv(keras.ops.tanh(x))
    model = keras.Model(backbone.input, keras.layers.Dense(3)(x))
    with pytest.raises(ValueError, match="tf2onnx cannot convert this model"):
        export(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "tf2onnx"])
def test_without_a_package(model, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'{missing},.*"keras_delta\[serving\]"'):
        export(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_nothing_on_the_terminal(model, tmp_path, capfd):
    export(model, tmp_path / "m", verbose=0)
    out, err = capfd.readouterr()
    assert out == ""
    assert "tf2onnx" not in err and "ONNX" not in err


def test_a_model_of_any_size_gets_one(images, tmp_path):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    folder = export(model, tmp_path / "m", image_size=16, taps=[])
    x, _ = images
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(scores_of(folder, x), expected, rtol=0, atol=1e-5)


def test_a_model_on_two_replicas(new_backbone, images, strategy, tmp_path):
    with strategy.scope():
        model = kd.attach_head(new_backbone(), 3)
    x, _ = images
    expected = softmax(np.asarray(model(x)))
    for format in "onnx", "litert":
        folder = kd.export_for_serving(model, tmp_path / format, NAMES, format=format)
        found = json.loads((folder / "model_card.json").read_text("utf-8"))
        assert found["conversion"]["largest_difference"] < 1e-5
    folder = tmp_path / "onnx" / "1"
    np.testing.assert_allclose(scores_of(folder, x), expected, rtol=0, atol=1e-5)
