"""Labels that were made wrong on purpose, and how they are found."""

import keras
import numpy as np
import pytest
from networks import make_backbone

import keras_delta as kd
from keras_delta._probe import linear
from keras_delta._probe.linear import Rows
from keras_delta.analysis import suspect_labels
from keras_delta.analysis.images import Images
from keras_delta.analysis.suspect_labels import judge

COUNT, WRONG = 60, (4, 17, 33, 50)


def photographs(classes=3, seed=0):
    """Images of three colours with noise; labels, four of them wrong."""
    rng = np.random.default_rng(seed)
    labels = np.arange(COUNT) % classes
    x = rng.integers(0, 60, (COUNT, 16, 16, 3))
    x[np.arange(COUNT), ..., labels % 3] += 150
    wrong = labels.copy()
    wrong[list(WRONG)] = (wrong[list(WRONG)] + 1) % classes
    return x.astype("uint8"), labels, wrong


def scaled_backbone():
    backbone = make_backbone()
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, backbone(keras.layers.Rescaling(1 / 255)(inputs)))


@pytest.mark.parametrize("form", ["arrays", "set", "batches", "model"])
def test_finds_them(form):
    x, labels, wrong = photographs()
    source = scaled_backbone()
    images = kd.data.ImageSet.from_arrays(x, wrong, ["red", "green", "blue"])
    given = {"arrays": (x, wrong), "set": images, "model": images}
    given["batches"] = images.batches(16, 7)
    if form == "model":
        source = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    found = suspect_labels(source, given[form])
    assert [s.index for s in found][:4] and {s.index for s in found} == set(WRONG)
    names = ["red", "green", "blue"] if form in ("set", "model") else ["0", "1", "2"]
    for s in found:
        assert (s.label, s.suggestion) == (
            names[wrong[s.index]],
            names[labels[s.index]],
        )
        assert s.label_probability < s.suggestion_probability <= 1
        assert s.name == f"image {s.index}"
    assert found == sorted(found, key=lambda s: s.label_probability)


def test_networks_that_are_fine_tuned_without_the_images():
    x, _, wrong = photographs()
    recipe = kd.Recipe(epochs=2, batch_norm="training", augmentation=None)
    found = suspect_labels(
        scaled_backbone(), (x, wrong), method="l2", folds=2, recipe=recipe
    )
    assert set(WRONG) <= {s.index for s in found}
    assert len(found) < 12


def test_files_have_names(tmp_path):
    from PIL import Image

    x, _, wrong = photographs()
    paths = []
    for i, image in enumerate(x):
        paths.append(tmp_path / "train" / f"c{wrong[i]}" / f"{i:02}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(paths[-1])
    found = suspect_labels(scaled_backbone(), tmp_path / "train", image_size=16)
    expected = {f"c{wrong[i]}/{i:02}.png" for i in WRONG}
    assert {s.name for s in found} == expected


def test_outputs_of_unseen_images_by_hand():
    """Each row of `fit(...).outputs` is that of a model without this image."""
    rng = np.random.default_rng(0)
    labels = np.eye(3)[np.arange(24) % 3]
    features = rng.normal(size=(24, 5))
    rows = Rows(features, labels, np.ones(24), np.arange(24), np.ones(24, bool))
    found = linear.fit(rows, "multiclass", 3, strengths=[0.1], folds=4, seed=1)
    scale = np.sqrt(np.mean(features**2))
    parts = linear.split(rows, "multiclass", 4, 1)
    assert np.sum(parts, axis=0).tolist() == [1] * 24
    scaled = rows._replace(features=features / scale)
    for part in parts:
        kernel, bias = linear.solve(scaled.take(~part), "multiclass", 3, 0.1)
        expected = features[part] / scale @ kernel + bias
        np.testing.assert_allclose(found.outputs[part], expected, atol=1e-6)


def test_rows_that_are_not_judged():
    from cleanlab import filter as filtering

    outputs = np.full((9, 4), -5.0)
    outputs[np.arange(9), np.arange(9) % 3] = 5  # the last class is never shown
    labels = np.arange(9) % 3
    labels[4] = 2  # it says 1
    outputs[8] = np.nan
    found = judge(outputs, labels, "abcd", [f"n{i}" for i in range(9)], filtering)
    ((index, name, label, suggestion, low, high),) = found
    assert (index, name, label, suggestion) == (4, "n4", "c", "b")
    assert low == pytest.approx(np.exp(-10) / (1 + 2 * np.exp(-10)), rel=1e-4)
    assert high == pytest.approx(1 / (1 + 2 * np.exp(-10)))


def test_bad_input(monkeypatch):
    x, _, wrong = photographs()
    source = scaled_backbone()
    with pytest.raises(ValueError, match=r"train.*two classes"):
        suspect_labels(source, (x, 0 * wrong))
    with pytest.raises(ValueError, match=r"train.*class number"):
        suspect_labels(source, (x, np.eye(3)[wrong] / 2))
    with pytest.raises(ValueError, match=r"train.*class number"):
        suspect_labels(source, (x, wrong - 1))
    with pytest.raises(ValueError, match=r"train.*at least two images of a class"):
        suspect_labels(source, (x[:3], wrong[:3]))
    with pytest.raises(ValueError, match="l2_sp"):
        suspect_labels(source, (x, wrong), method="l2sp")
    with pytest.raises(ValueError, match="folds"):
        suspect_labels(source, (x, wrong), folds=1)
    with pytest.raises(TypeError, match="train"):
        suspect_labels(source, 3)
    with pytest.raises(ValueError, match="16, 16"):
        suspect_labels(source, (x[:, :8], wrong))
    teacher, target = (kd.attach_head(source, 3) for _ in range(2))
    distilled = kd.DeltaModel(target, teacher, regularizer="kd")
    with pytest.raises(ValueError, match=r"source.*has not seen these labels"):
        suspect_labels(distilled, (x, wrong))
    monkeypatch.setitem(__import__("sys").modules, "cleanlab.filter", None)
    with pytest.raises(ImportError, match=r"keras_delta\[report\]"):
        suspect_labels(source, (x, wrong))


def test_at_most_so_many_images():
    x, _, wrong = photographs()
    images = kd.data.ImageSet.from_arrays(x, wrong)
    some = Images(images, "train", (16, 16), max_images=20, seed=0)
    assert (len(some), some.left_out, len(some.labels)) == (20, 40, 20)
    assert np.concatenate(list(some.batches())).shape == (20, 16, 16, 3)
    np.testing.assert_array_equal(some.take([3])[0], x[int(some.names[3].split()[1])])
    order = np.argsort(wrong, kind="stable")  # of arrays, too, and not the first ones
    few = Images((x[order], wrong[order]), "train", (16, 16), max_images=20, seed=0)
    assert (len(few), few.left_out, len(set(few.labels))) == (20, 40, 3)
    np.testing.assert_array_equal(few.take(range(20)), x[order][few.numbers])
    np.testing.assert_array_equal(few.labels, wrong[order][few.numbers])


def test_few_images_a_class_and_one_hot_labels():
    x, _, wrong = photographs()
    recipe = kd.Recipe(epochs=1, batch_norm="training", augmentation=None)
    given = x[:8], np.eye(3)[wrong[:8]]
    options = {"method": "l2", "folds": 5, "recipe": recipe}
    assert isinstance(suspect_labels(scaled_backbone(), given, **options), list)


def test_grey_images():
    x, _, wrong = photographs()
    x[wrong == 1] //= 3  # grey ones can be told apart
    inputs = keras.Input((16, 16, 1))
    outputs = keras.layers.Conv2D(8, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    images = kd.data.ImageSet.from_arrays(x, wrong)
    source = keras.Model(inputs, keras.layers.ReLU()(outputs))
    assert isinstance(suspect_labels(source, images), list)
