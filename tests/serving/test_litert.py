"""`export_for_serving(format="litert")`: the file against `predict`, and refusals."""

import json
import shutil
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_delta as kd
from keras_delta.data.tfds_sets import StreamedSource
from keras_delta.serving import conversion, litert
from keras_delta.serving.options import Options

pytestmark = pytest.mark.usefixtures("tensorflow_seed")

NAMES = ["cat", "Hündin", "a, b"]
QUANTIZED = ["int8", "float16", "dynamic"]
OPTIONS = Options(image_size=(16, 16))


def make_model(new_backbone):
    """Pixels from 0 to 255 -> logits of three classes."""
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = new_backbone(batch_norm=True, name="tiny_bn")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


@pytest.fixture(scope="module")
def model(new_backbone):
    keras.utils.set_random_seed(0)
    return make_model(new_backbone)


@pytest.fixture(scope="module")
def photographs():
    """40 images as bright as their class says, and the classes."""
    rng = np.random.default_rng(3)
    y = np.arange(40) % 3
    x = rng.uniform(0, 85, (40, 16, 16, 3)) + 85 * y[:, None, None, None]
    return x.astype("float32"), y


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scores_of(folder, images, **inputs):
    run = Interpreter(str(folder / "model.tflite")).get_signature_runner()
    return run(images=images, **inputs)["scores"]


def card_of(folder):
    return json.loads((folder / "model_card.json").read_text("utf-8"))


def export(model, path, **kwargs):
    return kd.export_for_serving(model, path, NAMES, format="litert", **kwargs)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("plain") / "m")


def test_same_scores_as_predict(model, exported, photographs):
    x, _ = photographs
    assert exported.parts[-2:] == ("m", "1")
    names = {"model.tflite", "labels.txt", "MODEL_CARD.md", "model_card.json"}
    assert {p.name for p in exported.iterdir()} == names
    expected = softmax(model.predict(x, verbose=0))
    for batch in 1, 7, 40:
        found = scores_of(exported, x[:batch])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:batch], rtol=0, atol=1e-5)


def test_input_and_output_have_names_and_a_free_batch(exported):
    interpreter = Interpreter(str(exported / "model.tflite"))
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["images"], "outputs": ["scores"]}
    }
    run = interpreter.get_signature_runner()
    (image,) = run.get_input_details().values()
    assert image["shape_signature"].tolist() == [-1, 16, 16, 3]
    assert image["dtype"] == np.float32


def test_labels_beside_and_inside(exported):
    expected = "cat\nHündin\na, b\n"
    assert (exported / "labels.txt").read_text("utf-8") == expected
    with zipfile.ZipFile(exported / "model.tflite") as archive:
        assert archive.read("labels.txt").decode() == expected


@pytest.mark.parametrize("quantize", QUANTIZED)
def test_quantized_scores_are_near(model, photographs, tmp_path, quantize):
    x, _ = photographs
    representative = x if quantize == "int8" else None
    folder = export(
        model, tmp_path / "m", quantize=quantize, representative_data=representative
    )
    found, expected = scores_of(folder, x), softmax(model.predict(x, verbose=0))
    # The last rounding, to 1/256, and what the few before it add up to.
    limit = {"int8": 6 / 256, "float16": 2e-3, "dynamic": 1e-2}[quantize]
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
    if quantize == "int8":
        np.testing.assert_allclose(found * 256, np.round(found * 256), atol=1e-4)
        assert np.abs(found - expected).max() > 0


def tensor_types(folder):
    interpreter = Interpreter(str(folder / "model.tflite"))
    interpreter.allocate_tensors()
    return {t["dtype"] for t in interpreter.get_tensor_details()}


@pytest.mark.slow
def test_quantizing_makes_files_smaller(new_backbone, photographs, tmp_path):
    wide = new_backbone(widths=(32, 64, 64), name="wide")
    model = kd.attach_head(wide, 3)
    sizes, x = {}, photographs[0]
    for quantize in (None, *QUANTIZED):
        representative = x if quantize == "int8" else None
        folder = export(
            model,
            tmp_path / str(quantize),
            quantize=quantize,
            representative_data=representative,
        )
        sizes[quantize] = (folder / "model.tflite").stat().st_size
        assert card_of(folder)["conversion"]["bytes"] == sizes[quantize]
        assert card_of(folder)["conversion"]["quantize"] == quantize
        assert (np.int8 in tensor_types(folder)) == (quantize in ("int8", "dynamic"))
    assert sizes["float16"] < 0.6 * sizes[None]
    assert sizes["int8"] < 0.4 * sizes[None]
    assert sizes["dynamic"] < 0.4 * sizes[None]


def test_temperature_is_inside(model, photographs, tmp_path):
    x, y = photographs
    folder = export(model, tmp_path / "m", validation_data=(x, y), calibrate=True)
    temperature = card_of(folder)["evaluation"]["temperature"]
    assert abs(temperature - 1) > 0.05
    expected = softmax(model.predict(x, verbose=0) / temperature)
    np.testing.assert_allclose(scores_of(folder, x), expected, rtol=0, atol=1e-5)


def test_probabilities_stay_what_they_are(model, photographs, tmp_path):
    x, _ = photographs
    model = keras.Model(model.input, keras.layers.Softmax()(model.output))
    folder = export(model, tmp_path / "m")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(scores_of(folder, x), expected, rtol=0, atol=1e-5)


def test_delta_model_exports_the_target(backbone, images, tmp_path):
    x, y = images
    model = kd.DeltaModel(kd.attach_head(backbone, 3), source=backbone)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        regularizer="l2_sp",
    )
    model.fit(x, y, verbose=0)
    folder = export(model, tmp_path / "m")
    expected = softmax(model.predict(x, verbose=0))
    np.testing.assert_allclose(scores_of(folder, x), expected, rtol=0, atol=1e-5)
    assert card_of(folder)["regularizer"]["name"] == "L2SP"


def test_card_says_what_the_conversion_did(model, photographs, tmp_path):
    x, y = photographs
    folder = export(
        model,
        tmp_path / "m",
        quantize="int8",
        representative_data=x,
        validation_data=(x, y),
    )
    before, after = softmax(model.predict(x, verbose=0)), scores_of(folder, x)
    card = card_of(folder)
    found = card["conversion"]
    assert found["images"] == "validation_data"
    assert found["samples"] == 40
    difference = np.abs(before - after).max()
    assert found["largest_difference"] == pytest.approx(difference, rel=1e-3)
    assert found["agreement"] == np.mean(before.argmax(-1) == after.argmax(-1))
    assert found["accuracy_before"] == np.mean(before.argmax(-1) == y)
    assert found["accuracy"] == np.mean(after.argmax(-1) == y)
    assert found["drop"] == found["accuracy_before"] - found["accuracy"]
    text = (folder / "MODEL_CARD.md").read_text()
    assert "`model.tflite`" in text and "On 40 images (validation_data)" in text
    assert f"Accuracy: {found['accuracy_before']:.1%} before" in text
    assert "decoded and resized outside" in text
    # The card is about the file beside it.
    assert card["evaluation"]["accuracy"] == found["accuracy"]
    loss = -np.log(np.maximum(after, 1e-7)[np.arange(40), y])
    assert card["evaluation"]["loss"] == pytest.approx(loss.mean(), rel=1e-3)
    assert card["serving"] == {
        "format": "litert",
        "file": "model.tflite",
        "input": "images",
        "image_size": [16, 16],
        "protocol": "default",
    }


def test_without_held_out_images_it_is_run_on_others(
    model, exported, photographs, tmp_path
):
    x, _ = photographs
    folder = export(model, tmp_path / "a", quantize="int8", representative_data=x)
    found = card_of(folder)["conversion"]
    assert (found["images"], found["samples"]) == ("representative_data", 40)
    assert found["accuracy"] is None and found["drop"] is None
    found = card_of(exported)["conversion"]
    assert found["images"] == "noise"
    assert found["largest_difference"] < 1e-5
    assert found["agreement"] == 1


def test_a_shuffled_data_set_is_compared_image_by_image(model, photographs, tmp_path):
    data = tf.data.Dataset.from_tensor_slices(photographs).shuffle(40).batch(8)
    folder = export(model, tmp_path / "m", validation_data=data)
    assert card_of(folder)["conversion"]["largest_difference"] < 1e-5


@pytest.mark.parametrize("kind", ["pair", "images", "dataset", "no labels", "set"])
def test_kinds_of_representative_data(photographs, kind):
    x, y = photographs
    tensors = tf.data.Dataset.from_tensor_slices
    data = {
        "pair": (x, y),
        "images": x,
        "dataset": tensors((x, y)).batch(9),
        "no labels": tensors(x).batch(9),
        "set": streamed(x),
    }[kind]
    found = litert.representative_images(data, OPTIONS)
    np.testing.assert_allclose(found, x, rtol=0, atol=1 if kind == "set" else 0)


def streamed(x):
    """A set without labels that can only be read in order."""
    stream = tf.data.Dataset.from_tensor_slices(x.astype("uint8"))
    source = StreamedSource(stream, np.arange(len(x)), "photographs")
    return kd.data.ImageSet(source, None, ())


def test_representative_images_of_a_set_are_of_all_classes():
    y = np.repeat([0, 1, 2], 200)  # one class after the other, as folders are
    x = np.zeros((600, 8, 8, 3), "uint8") + 100 * y[:, None, None, None].astype("uint8")
    images = kd.data.ImageSet.from_arrays(x, y)
    found = litert.representative_images(images, OPTIONS)
    assert found.shape == (300, 16, 16, 3)
    assert found.dtype == np.float32
    values, counts = np.unique(found[:, 0, 0, 0], return_counts=True)
    assert values.tolist() == [0, 100, 200]
    assert counts.min() > 80
    again = litert.representative_images(images, OPTIONS)
    np.testing.assert_array_equal(found, again)


def test_lost_accuracy_is_a_warning(model, photographs, tmp_path):
    x, _ = photographs
    # Ranges from black images alone: whatever is brighter is cut off.
    predicted = model.predict(x, verbose=0).argmax(-1)
    assert len(set(predicted)) > 1
    with pytest.warns(UserWarning, match="points of accuracy") as caught:
        folder = export(
            model,
            tmp_path / "m",
            quantize="int8",
            representative_data=np.zeros_like(x),
            validation_data=(x, predicted),
        )
    assert caught[0].filename == __file__
    assert "drop" in card_of(folder)["conversion"]
    assert card_of(folder)["conversion"]["drop"] > 0.02


def test_no_warning_up_to_two_points():
    found = {"largest_difference": 0.1, "drop": 0.02, "samples": 100}
    found |= {"accuracy": 0.9, "accuracy_before": 0.92}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conversion.judge(found, "LiteRT", "int8")
        with pytest.raises(UserWarning, match=r"costs 2\.1 points.*90\.0% of 100"):
            conversion.judge(found | {"drop": 0.021}, "LiteRT", "int8")


@pytest.mark.parametrize("difference, quantize", [(0.0011, None), (np.nan, "int8")])
def test_wrong_scores_are_refused(difference, quantize):
    found = {"largest_difference": difference, "samples": 16, "drop": None}
    with pytest.raises(ValueError, match="LiteRT does not reproduce the model"):
        conversion.judge(found, "LiteRT", quantize)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"quantize": "int4"}, "Unknown name for `quantize`"),
        ({"quantize": "int8"}, '`quantize="int8"` needs `representative_data`'),
        ({"representative_data": np.zeros((40, 16, 16, 3))}, "only `quantize="),
        (
            {"quantize": "int8", "representative_data": np.zeros((31, 16, 16, 3))},
            "31 images of",
        ),
        (
            {"quantize": "int8", "representative_data": np.zeros((40, 8, 16, 3))},
            r"images of \(16, 16, 3\)",
        ),
        ({"format": "saved_model", "quantize": "int8"}, "`quantize`. Expected None"),
        (
            {"format": "onnx", "representative_data": np.zeros((40, 16, 16, 3))},
            "`representative_data`. Expected None",
        ),
    ],
    ids=["unknown", "missing", "unused", "few", "shape", "saved_model", "onnx"],
)
def test_bad_arguments(model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        kd.export_for_serving(
            model, tmp_path / "m", NAMES, **{"format": "litert", **arguments}
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_other_precisions_are_refused(new_backbone, tmp_path, format, policy):
    keras.config.set_dtype_policy(policy)
    model = kd.attach_head(new_backbone(), 3)
    with pytest.raises(ValueError, match=r"computes in b?float\d+.*set_weights"):
        kd.export_for_serving(model, tmp_path / "m", NAMES, format=format)


def test_operations_that_litert_has_not(backbone, tmp_path):
    x = keras.ops.fft2((backbone.output, backbone.output))[0]
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(backbone.input, keras.layers.Dense(3)(x))
    with pytest.raises(ValueError, match="LiteRT cannot convert this model"):
        export(model, tmp_path / "m")


def test_without_the_package(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setattr(model, "predict", None)
    with pytest.raises(ImportError, match=r'ai_edge_litert.*"keras_delta\[serving\]"'):
        export(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_a_failed_export_leaves_what_was_there(model, exported, tmp_path, monkeypatch):
    folder = tmp_path / "m" / "1"
    shutil.copytree(exported, folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match="overwrite=True"):
        export(model, tmp_path / "m")

    def broken(folder, facts):
        (folder / "MODEL_CARD.md").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("keras_delta.serving.card.write", broken)
    with pytest.raises(OSError, match="disk full"):
        export(model, tmp_path / "m", overwrite=True)
    assert [p.name for p in folder.parent.iterdir()] == ["1"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_overwriting(new_backbone, photographs, tmp_path):
    x, _ = photographs
    model = make_model(new_backbone)
    kd.export_for_serving(model, tmp_path / "m", NAMES, format="onnx")
    model.layers[-1].bias.assign([0.0, 5.0, 0.0])
    folder = export(model, tmp_path / "m", overwrite=True)
    assert not (folder / "model.onnx").exists()
    expected = softmax(model.predict(x, verbose=0))
    np.testing.assert_allclose(scores_of(folder, x), expected, rtol=0, atol=1e-5)


def test_only_the_folder_is_printed(model, tmp_path, capfd):
    folder = export(model, tmp_path / "m")
    assert capfd.readouterr().out == f"Exported to {folder}\n"
