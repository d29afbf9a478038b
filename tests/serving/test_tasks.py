"""One of several classes, several labels, yes or no, numbers: each served rightly."""

import csv
import json
import re
import time
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import make_backbone
from PIL import Image

import keras_delta as kd
from keras_delta._answers import calibration, figures, tasks
from keras_delta._answers.network import Network
from keras_delta._network.graph import Graph
from keras_delta.serving import classifier, held_out
from keras_delta.serving.classifier import Classifier
from keras_delta.serving.options import Options
from keras_delta.serving.server import answers
from keras_delta.serving.server.model import Model
from keras_delta.serving.server.settings import Settings

SIDE = 16
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)
NAMES = ["rot, gelb", "grün", "blau"]
RNG = np.random.default_rng(0)
COUNT = 12
TASKS = {  # units, loss, labels, names
    "multiclass": (3, SPARSE, np.arange(COUNT) % 3, NAMES),
    "multilabel": (3, BINARY, RNG.integers(0, 2, (COUNT, 3)), NAMES),
    "binary": (1, BINARY, np.arange(COUNT) % 2, ["nein", "ja"]),
    "regression": (2, "mse", RNG.normal(size=(COUNT, 2)), ["alter", "größe"]),
}


def images(channels=3):
    shape = COUNT, SIDE, SIDE, channels
    return RNG.integers(0, 256, shape).astype("float32")


def compiled(task, channels=3, activation=None, loss=None):
    units, usual, *_ = TASKS[task]
    inputs = keras.Input((SIDE, SIDE, channels))
    x = layers.Conv2D(3, 1, name="to3")(layers.Rescaling(1 / 128, -1)(inputs))
    source = keras.Model(inputs, make_backbone(size=SIDE)(x))
    target = kd.attach_head(source, units, activation=activation)
    model = kd.DeltaModel(target, source=source)
    model.compile("sgd", loss or usual)
    return model


@pytest.fixture(
    scope="module", params=[(t, 1 if t == "binary" else 3) for t in TASKS], ids=str
)
def served(request, tmp_path_factory):
    """(task, channels, model, images, labels, folder)."""
    keras.utils.set_random_seed(1)
    task, channels = request.param
    model, x = compiled(task, channels), images(channels)
    *_, y, names = TASKS[task]
    path = tmp_path_factory.mktemp("tasks") / task
    folder = kd.export_for_serving(model, path, names, validation_data=(x, y))
    return task, channels, model, x, y, folder


def expected_scores(task, output):
    if task == "multiclass":
        e = np.exp(output - output.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    if task == "regression":
        return output
    p = 1 / (1 + np.exp(-output))
    return np.concatenate([1 - p, p], axis=-1) if task == "binary" else p


def test_answers_are_those_of_predict(served):
    task, _, model, x, _, folder = served
    names = TASKS[task][3]
    loaded = tf.saved_model.load(str(folder))
    answer = loaded.signatures["classify_tensor"](images=tf.constant(x))
    answer = {k: v.numpy() for k, v in answer.items()}
    expected = expected_scores(task, model.predict(x, verbose=0))
    if task == "regression":
        np.testing.assert_allclose(answer["values"], expected, rtol=1e-4, atol=1e-4)
        assert [n.decode() for n in answer["labels"][0]] == names
        assert "scores" not in answer and "class_ids" not in answer
        return
    order = np.argsort(-expected, axis=-1, kind="stable")
    scores = np.take_along_axis(expected, order, -1)
    np.testing.assert_allclose(answer["scores"], scores, rtol=1e-4, atol=1e-5)
    for row, ids in zip(answer["labels"], answer["class_ids"], strict=True):
        assert [n.decode() for n in row] == [names[i] for i in ids]
    assert ("on" in answer) == (task == "multilabel")
    if task == "multilabel":
        served_by = json.loads((folder / "model_card.json").read_text())["serving"]
        levels = [served_by["thresholds"][name] for name in names]
        assert served_by["thresholds_from"] == "validation_data"
        assert levels == figures.best_thresholds(
            tf.sigmoid(model.predict(x, verbose=0)).numpy(), TASKS[task][2]
        )
        np.testing.assert_array_equal(
            answer["on"], answer["scores"] >= np.take(levels, answer["class_ids"])
        )


def test_encoded_images_are_prepared_as_in_the_data_pipeline(served, tmp_path):
    """Of colour for a grey network: `.map(rgb_to_grayscale)`, as docs/data.md says."""
    task, channels, model, _, _, folder = served
    path = tmp_path / "photo.png"
    Image.fromarray(images()[0].astype("uint8")).save(path)
    photos = kd.data.ImageSet.from_files([path], None, ()).batches(SIDE)
    if channels == 1:
        photos = photos.map(tf.image.rgb_to_grayscale)
    loaded = tf.saved_model.load(str(folder))
    contents = tf.constant([path.read_bytes()])
    answer = loaded.signatures["classify_bytes"](image_bytes=contents)
    expected = expected_scores(task, model.predict(photos, verbose=0))
    found = answer["values" if task == "regression" else "scores"].numpy()
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-4, atol=1e-5)
    crops = loaded.signatures["classify_ten_crop"](image_bytes=contents)
    assert crops["labels"].shape == answer["labels"].shape


def test_the_command_and_the_server(served, tmp_path):
    task, *_, folder = served
    path = tmp_path / "photo.png"
    Image.fromarray(images()[0].astype("uint8")).save(path)
    command = Classifier(folder)
    image = command.read(path)
    (cells,) = command.answers([image])
    broken = dict(command._classify(images=image[None]))
    key = "values" if task == "regression" else "scores"
    assert command._rows({**broken, key: broken[key] * np.nan}) == [None]
    names = TASKS[task][3]
    assert len(cells) == len(command.columns)
    expected = {
        "multilabel": ["labels", *names],
        "regression": names,
        "binary": ["label", "score", "label_2", "score_2"],
    }
    assert command.columns == expected.get(task, command.columns)
    model = Model(folder, Settings(), lambda size: None)
    deadline = time.monotonic() + 60
    answer = model.run("classify_bytes", {"image_bytes": [path.read_bytes()]}, deadline)
    answers.encoded({k: answers.plain(k, v) for k, v in answer.items()})
    where = model.explain(path.read_bytes(), [0], deadline)
    assert where["maps"].shape[0] == 1 and np.isfinite(where["maps"]).all()


def test_the_card_has_figures_that_make_sense(served):
    task, _, _, _, _, folder = served
    text = (folder / "MODEL_CARD.md").read_text("utf-8")
    has = {
        "multiclass": ("correctly", "recall", "none of them"),
        "binary": ("correctly", "recall", "area under the ROC curve"),
        "multilabel": ("all labels right", "F1", "average precision", "threshold"),
        "regression": ("MAE", "RMSE", "R2"),
    }[task]
    assert all(words in text for words in has)
    if task in ("multilabel", "regression"):
        assert "recall" not in text and "none of them" not in text
    if task == "regression":
        assert "right" not in text


# --- the choice of a task ---------------------------------------------------------


def chosen(model, given=None):
    return tasks.choose(model, Graph(getattr(model, "target", model)), given)


def test_the_task_is_that_of_the_loss_else_of_the_last_layer():
    for task in TASKS:
        assert chosen(compiled(task)) == task
        with pytest.raises(ValueError, match=f"'{task}' or None, according to loss"):
            chosen(compiled(task), "binary" if task != "binary" else "regression")
    head = compiled("multiclass").target  # not compiled: logits
    assert chosen(head) == "multiclass" and chosen(head, "multilabel") == "multilabel"
    assert chosen(compiled("multilabel", activation="sigmoid", loss="mse").target) == (
        "multilabel"
    )
    for model in (
        compiled("binary").target,  # one unit, linear
        compiled("multilabel", loss="hinge"),
        compiled("multiclass", loss=lambda y, p: p),
        compiled("binary", activation="sigmoid", loss="mse"),
    ):
        with pytest.raises(ValueError, match="Pass `task=`") as refused:
            chosen(model)
        # Each that is offered can be taken.
        units = getattr(model, "target", model).output_shape[-1]
        for task in tasks.KINDS:
            assert (repr(task) in str(refused.value)) == tasks.KINDS[task].takes(units)
    with pytest.raises(ValueError, match="'ordinal'"):
        chosen(head, "ordinal")


@pytest.mark.parametrize("kind", ["maps", "several"])
def test_what_cannot_be_served_has_a_way_out(tmp_path, kind):
    source = make_backbone(size=SIDE)
    end = layers.Conv2D(2, 1, name="mask")(source.output)
    outputs = end if kind == "maps" else [end, layers.Flatten()(end)]
    model = keras.Model(source.input, outputs)
    with pytest.raises(ValueError, match=r"`model\.export\(path\)`"):
        kd.export_for_serving(model, tmp_path / "m", ["a", "b"])
    model.export(tmp_path / "raw", verbose=False)
    assert tf.saved_model.load(str(tmp_path / "raw")).signatures


def test_options_that_a_task_has_no_use_for(tmp_path):
    x, y = images(), TASKS["regression"][2]
    model, names = compiled("regression"), TASKS["regression"][3]
    with pytest.raises(ValueError, match="this model returns numbers"):
        kd.export_for_serving(
            model, tmp_path / "m", names, validation_data=(x, y), calibrate=True
        )
    with pytest.raises(ValueError, match=r"thresholds.*several labels"):
        kd.export_for_serving(model, tmp_path / "m", names, thresholds=0.5)
    for wrong in (2, [0.5, 0.5], "f1", [0.5, [0.5], 0.5]):
        with pytest.raises((TypeError, ValueError), match="`thresholds`"):
            kd.export_for_serving(
                compiled("multilabel"), tmp_path / "m", NAMES, thresholds=wrong
            )


@pytest.mark.parametrize(
    "units, task, labels, names, sentence",
    [
        (2, "binary", None, ["no", "yes"], r'Two units are.*`task="multiclass"`'),
        (1, "multilabel", None, ["a"], 'One unit is "binary" or "regression"'),
        (3, "multilabel", 0.7, NAMES, r"labels of 0 and 1.*pass `y > 0\.5`"),
        (3, None, 1, NAMES, r'no label or several.*`task="multilabel"`'),
    ],
)
def test_what_would_be_served_wrongly(tmp_path, units, task, labels, names, sentence):
    """And what the message says helps."""
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Flatten()(inputs)
    model, path = keras.Model(inputs, layers.Dense(units)(x)), tmp_path / "m"
    y = TASKS["multilabel"][2] * (labels or 0)
    data = labels and (images(), y)
    with pytest.raises(ValueError, match=sentence):
        kd.export_for_serving(model, path, names, task=task, validation_data=data)
    if labels:
        batches = held_out.batches(
            (images(), y > 0.5), names, options(), Network(model, task="multilabel")
        )
        np.testing.assert_array_equal(next(batches)[1], TASKS["multilabel"][2])
    else:
        task = re.search('"(multiclass|binary)"', sentence)[1]
        names = ["no", "yes"]
        assert Network(model, task=task).classes == len(names)


def options():
    return Options(image_size=(SIDE, SIDE))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.usefixtures("pixels_only")
def test_nan_is_no_answer(tmp_path, task):
    """Of an image or of one label of it: no name, not on, no figure."""
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.GlobalAveragePooling2D()(keras.ops.sqrt(inputs - 10.0))
    model, x = keras.Model(inputs, x), images() + 10
    model.compile("sgd", TASKS[task][1])
    given = {"path": tmp_path / "m", "class_names": ["a", "b", "c"]}
    given["from_logits"] = True
    x[1, 0, 0, 0] = 0  # the square root of -10, in the first channel
    y = np.zeros((COUNT, 3))
    y[:, 0] = 1
    with pytest.raises(ValueError, match=r"NaN for 1 of 12 images.*number 1"):
        kd.export_for_serving(model, **given, validation_data=(x, y))
    folder = kd.export_for_serving(model, **given)
    loaded = tf.saved_model.load(str(folder))
    answer = loaded.signatures["classify_prepared"](images=tf.constant(x[:2]))
    answer = {k: v.numpy() for k, v in answer.items()}
    is_nan = np.isnan(answer["scores"])
    assert is_nan[1].any() and not is_nan[0].any()
    np.testing.assert_array_equal(answer["labels"] == b"", is_nan)
    np.testing.assert_array_equal(answer["class_ids"] == -1, is_nan)
    if task == "multilabel":
        assert answer["labels"][1].tolist()[-1] == b"" and not answer["on"][1, -1]
        assert not is_nan[1, :2].any()


def test_columns_and_lists_are_unmistakable():
    assert classifier._columns(["error", "cat", "error_", "path"]) == [
        *("error__", "cat", "error_", "path_")
    ]
    names = ["a; b", "c", ' "d"', "e"]
    row = {"labels": [n.encode() for n in names], "scores": np.full(4, 0.5)}
    cells = classifier._labels(names, {**row, "on": [True, True, True, False]})
    reader = csv.reader([cells[0]], delimiter=";", skipinitialspace=True)
    assert next(reader) == names[:3]


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_files_of_other_runtimes_know_the_thresholds(tmp_path, format):
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 128, -1)(inputs))
    model, given = keras.Model(inputs, layers.Dense(3)(x)), [0.25, 0.5, 0.75]
    model.compile("sgd", BINARY)
    x, y = images(), TASKS["multilabel"][2]
    data = {"validation_data": (x, y), "thresholds": given, "format": format}
    folder = kd.export_for_serving(model, tmp_path / "m", NAMES, **data)
    if format == "onnx":
        onnx = pytest.importorskip("onnx")
        meta = {p.key: p.value for p in onnx.load(folder / "model.onnx").metadata_props}
        assert json.loads(meta["thresholds"]) == given
    else:
        with zipfile.ZipFile(folder / "model.tflite") as archive:
            lines = archive.read("thresholds.txt").decode().split()
        assert list(map(float, lines)) == given
    card = json.loads((folder / "model_card.json").read_text())
    assert card["serving"]["thresholds"] == dict(zip(NAMES, given, strict=True))
    on = tf.sigmoid(model.predict(x, verbose=0)).numpy() >= given
    exact = (on == y).all(-1).mean()
    assert card["conversion"]["accuracy"] == pytest.approx(exact)
    assert card["evaluation"]["exact_match"] == pytest.approx(exact)
    assert card["conversion"]["agreement"] == 1


# --- figures, by hand -------------------------------------------------------------


def test_figures_of_labels_by_hand():
    logits = np.log([[0.9, 0.2], [0.6, 0.7], [0.3, 0.4]])
    logits = logits - np.log(1 - np.exp(logits))
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    found = figures.of_labels(logits, labels, ["a", "b"], 1.0, [0.5, 0.5])
    assert found["exact_match"] == pytest.approx(1 / 3)
    a, b = found["labels"]["a"], found["labels"]["b"]
    assert (a["f1"], b["f1"]) == pytest.approx((1 / 2, 2 / 3))
    # a: positives at ranks 1 and 3: (1/1 + 2/3) / 2; b: at 1 and 2.
    assert (a["average_precision"], b["average_precision"]) == pytest.approx((5 / 6, 1))
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    # At temperature 2 the odds 9, 3/2 and 3/7 of a become 3, 1.22 and 0.65.
    warm = figures.of_labels(logits, labels, ["a", "b"], 2.0, [0.5, 0.58])["labels"]
    assert (warm["a"]["f1"], warm["b"]["f1"]) == pytest.approx((1 / 2, 2 / 3))
    warm = figures.of_labels(logits, labels, ["a", "b"], 2.0, [0.7, 0.62])["labels"]
    assert (warm["a"]["f1"], warm["b"]["f1"]) == pytest.approx((2 / 3, 0))
    rare = figures.of_labels(logits, labels * [1, 0], ["a", "b"], 1.0, [0.5, 0.5])
    assert rare["macro_f1"] == pytest.approx(1 / 2)  # b does not occur
    # Between the scores 0.9, 0.6 and 0.3 of a: F1 2/3 at 0.75, 1/2 at 0.45.
    scores = np.exp(logits) / (1 + np.exp(logits))
    assert figures.best_thresholds(scores, labels) == pytest.approx([0.75, 0.3])


def test_ranks_with_ties_by_hand():
    scores, true = np.array([0.5, 0.5, 0.2, 0.9]), np.array([1, 0, 1, 0], bool)
    # The pairs (0.5, 0.5), (0.5, 0.9), (0.2, 0.5), (0.2, 0.9): one half right.
    assert figures.roc_auc(scores, true) == pytest.approx(0.5 / 4)
    # Down to 0.5: one of three; down to 0.2: two of four.
    assert figures.average_precision(scores, true) == pytest.approx(
        1 / 3 / 2 + 2 / 4 / 2
    )
    for nothing in (np.zeros(4, bool), np.ones(4, bool)):
        assert figures.roc_auc(scores, nothing) is None
    assert figures.average_precision(scores, np.zeros(4, bool)) is None


def test_best_thresholds_against_a_slow_twin():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 20, (60, 4)).astype("float32") / 20  # with ties
    labels = rng.uniform(size=scores.shape) < scores
    labels[:, 3] = False
    found = figures.best_thresholds(scores, labels)
    for column, true, threshold in zip(scores.T, labels.T, found, strict=True):
        if not true.any():
            assert threshold == 0.5
            continue
        every = [figures.f1(column >= t, true) for t in np.linspace(0.025, 0.975, 39)]
        assert figures.f1(column >= threshold, true) == pytest.approx(max(every))


def test_figures_of_numbers_by_hand():
    values, truth = np.array([[1.0], [3.0]]), np.array([[2.0], [3.0]])
    row = figures.of_numbers(values, truth, ["n"])["numbers"]["n"]
    assert row["mae"] == 0.5 and row["rmse"] == pytest.approx(0.5**0.5)
    assert row["r2"] == pytest.approx(1 - 0.5 / 0.25)
    # Errors of 1 and 0: s = sqrt(1/2).
    assert row["half_interval"] == pytest.approx(1.96 * 0.5**0.5 / 2**0.5)


def test_temperature_of_several_labels_fits():
    """Logits that are three times too large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    labels = rng.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))
    assert calibration.temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)
    with pytest.warns(UserWarning, match="All 4000 images"):  # none is wrong
        assert calibration.temperature(logits, logits > 0) == 1
