"""The model card: figures by hand, text and JSON read back."""

import json
import re
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from served_models import MODELS

import keras_delta as kd
from keras_delta._answers import figures
from keras_delta.serving import card
from keras_delta.serving.export import Measured
from keras_delta.serving.options import Options

NAMES = ["ant", "a|b <i>x</i>", "*日本* [1] `c` \\ &amp;"]


def test_evaluation_by_hand():
    logits = np.array([[2.0, 0, 0], [0, 2.0, 0], [2.0, 0, 0], [0, 2.0, 0], [2.0, 0, 0]])
    labels = np.array([0, 0, 0, 1, 1])  # right, wrong, right, right, wrong
    found = figures.of_classes(logits, labels, NAMES, temperature=2.0)
    assert found["samples"] == 5
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["interval"] == pytest.approx([0.2307, 0.8824], abs=5e-5)
    assert found["recall"] == {
        NAMES[0]: {"recall": pytest.approx(2 / 3), "samples": 3},
        NAMES[1]: {"recall": pytest.approx(1 / 2), "samples": 2},
        NAMES[2]: {"recall": None, "samples": 0},
    }
    # At the temperature 2: e / (e + 2) = 0.576117, 1 / (e + 2) = 0.211942.
    expected = -(3 * np.log(0.576117) + 2 * np.log(0.211942)) / 5
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert found["calibration_error"] == pytest.approx(0.6 - 0.576117, abs=1e-5)
    assert found["temperature"] == 2.0


def facts(model=None, measured=None, **given):
    target = getattr(model, "target", None) or MODELS["sequential"]()
    options = Options(top_k=3, image_size=(16, 20))
    task = SimpleNamespace(name="multiclass")
    endpoints = SimpleNamespace(
        target=target, class_names=NAMES, options=options, task=task, thresholds=None
    )
    figures = Measured(measured, None)
    return card.facts(model, given, Path("animals", "3"), endpoints, figures)


def written(found, folder):
    card.write(folder, found)
    text = (folder / "MODEL_CARD.md").read_text("utf-8")
    return text, json.loads((folder / "model_card.json").read_text("utf-8"))


@pytest.fixture
def measured():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    return figures.of_classes(logits, labels, NAMES)


def test_everything_is_in_both_files(tmp_path, measured):
    given = {
        "description": "Tells animals apart.",
        "author": "A | B",
        "license": "CC-BY-4.0",
        "data": "Photos of 2024.\n\n- own ones",
        "intended_use": "Counting.",
        "limits": ["Only by day.", "Not for fur."],
    }
    text, read = written(facts(measured=measured, **given), tmp_path)
    for key, value in given.items():
        assert read[key] == value + (card.LIMITS if key == "limits" else value[:0])
        for part in [value] if isinstance(value, str) else value:
            assert part.replace("|", "\\|") in text
    assert (read["name"], read["version"], read["classes"]) == ("animals", 3, NAMES)
    assert text.startswith("# animals\n")
    assert "| Version | 3, " in text
    assert datetime.fromisoformat(read["date"]).utcoffset().total_seconds() == 0
    assert read["versions"]["tensorflow"] == tf.__version__
    assert read["versions"]["keras"] == keras.__version__
    assert read["network"]["parameters"] == MODELS["sequential"]().count_params()
    assert read["evaluation"] == measured
    low, high = measured["interval"]
    assert f"**{measured['accuracy']:.1%}** are classified correctly" in text
    assert f"95 % interval {low:.1%} to {high:.1%}" in text
    assert "16 x 20 pixels" in text
    for limit in card.LIMITS:  # those that hold for each model
        assert f"- {limit}" in text


def test_names_are_shown_as_they_are(tmp_path, measured):
    text, read = written(facts(measured=measured), tmp_path)
    assert list(read["evaluation"]["recall"]) == NAMES
    rows = text.split("| class | recall | images |\n|---|---|---|\n")[1].split("\n\n")[
        0
    ]
    shown = []
    for row in rows.splitlines():
        # Bars that are escaped part no cells; what is escaped is shown as it is.
        cells = re.split(r"(?<!\\)\|", row)
        assert len(cells) == 5, row
        shown.append(re.sub(r"\\([^\w\s])", r"\1", cells[1].strip()))
    assert shown == NAMES
    assert not re.search(r"(?<!\\)[<>`*\[\]]", rows)
    assert rows.splitlines()[2].endswith("| - | 0 |")


def test_without_figures_and_words(tmp_path):
    text, read = written(facts(), tmp_path)
    assert read["evaluation"] is None
    assert read["limits"] == card.LIMITS
    assert read["license"] is None
    assert "Not measured at export. Classes: ant, " in text
    assert text.count("Not stated.") == 2
    assert "Distinguishes 3 classes." in text
    assert "| License | not stated |" in text
    assert "None" not in text


def test_a_calibration_says_on_what_it_was_made(tmp_path):
    logits, labels = np.array([[4.0, 0.0, 0.0]] * 4), np.array([0, 0, 0, 1])
    found = figures.of_classes(logits, labels, NAMES, temperature=2.0)
    # e^4 / (e^4 + 2) = 0.964664 and e^2 / (e^2 + 2) = 0.786986, of which 3/4 are right.
    assert found["uncalibrated_error"] == pytest.approx(0.964664 - 0.75, abs=1e-5)
    assert found["calibration_error"] == pytest.approx(0.786986 - 0.75, abs=1e-5)
    text, _ = written(facts(measured=found), tmp_path)
    assert "divided by 2; without that, the error is 21.5%." in text


def test_limits_as_one_string(tmp_path):
    text, read = written(facts(limits="Only by day."), tmp_path)
    assert read["limits"] == ["Only by day.", *card.LIMITS]
    assert "- Only by day.\n" in text


@pytest.fixture
def tuned(backbone, images):
    """A function that fine-tunes with a regularizer."""

    def fit(regularizer):
        model = kd.DeltaModel(kd.attach_head(backbone, 3), source=backbone)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
        model.fit(*images, regularizer=regularizer, verbose=0)
        return model

    return fit


def test_how_it_was_fine_tuned(tmp_path, tuned):
    model = tuned(kd.regularizers.L2SP(alpha=0.25, beta=0.5))
    text, read = written(facts(model), tmp_path)
    assert read["regularizer"] == {
        "name": "L2SP",
        "settings": {"alpha": 0.25, "beta": 0.5, "parameters": "all"},
    }
    assert read["network"]["taps"] == list(model.taps)
    assert read["network"]["parameters"] == model.target.count_params()
    assert "| Regularizer | `L2SP(alpha=0.25, beta=0.5, parameters='all')` |" in text


def test_strengths_of_a_sum_and_of_schedules(tmp_path, tuned):
    decay = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    model = tuned([kd.regularizers.FeatureMap(alpha=decay), "l2"])
    text, read = written(facts(model), tmp_path)
    first, second = read["regularizer"]["settings"]["members"]
    assert (first["name"], second["name"]) == ("FeatureMap", "L2")
    strength = first["settings"]["alpha"]
    assert strength["name"] == "ExponentialDecay"
    assert strength["settings"]["initial_learning_rate"] == 0.5
    assert "`FeatureMap(alpha=ExponentialDecay(initial_learning_rate=0.5, " in text
    assert " + L2(alpha=0.0001, beta=0.0001)` |" in text


def test_a_model_that_was_not_fine_tuned_with_any(tmp_path):
    text, read = written(facts(), tmp_path)
    assert read["regularizer"] is None
    assert "Regularizer" not in text


def test_unknown_fields():
    with pytest.raises(ValueError, match=r"`model_card`.*'licence'.*'license'"):
        card.check({"licence": "MIT"})
    for fine in (None, {}, {"license": None}, {"limits": "one"}, {"limits": ["two"]}):
        card.check(fine)


@pytest.mark.parametrize(
    "given", [{"license": 4}, {"limits": [1]}, ["license"]], ids=str
)
def test_fields_that_are_no_text(given):
    with pytest.raises(TypeError, match="`model_card"):
        card.check(given)
