"""Network Dissection against one pixel after the other, on real photographs."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from skimage import data as photographs

from keras_delta.analysis import dissect, dissection

SIDE = 24  # of the labels
SIZE = 32  # of what the network sees
FILES = ("astronaut", "coffee", "chelsea", "rocket")
CONCEPTS = {1: "red", 2: "dark", 3: "bright", 4: "kitchen", 300: "cat"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four photographs; colours by pixel, a scene and an object by image."""
    root = tmp_path_factory.mktemp("broden")
    (root / "images").mkdir()
    rows = []
    for i, name in enumerate(FILES):
        image = Image.fromarray(getattr(photographs, name)()).convert("RGB")
        image.resize((60, 50)).save(root / "images" / f"{name}.png")
        small = np.asarray(image.resize((SIDE, SIDE)), "int64")
        red = small[..., 0] > small[..., 1:].max(-1) + 30
        light = small.mean(-1)
        # The first labels lie over each other: red, and dark or bright.
        tone = np.where(light < 60, 2, np.where(light > 180, 3, 0))
        write(root / "images" / f"{name}_red.png", 1 * red)
        write(root / "images" / f"{name}_tone.png", tone)
        row = {"image": f"{name}.png", "split": "train" if i < 3 else "val"}
        row |= {"sh": SIDE, "sw": SIDE, "color": f"{name}_red.png;{name}_tone.png"}
        row |= {"scene": "4" if name == "coffee" else "", "object": ""}
        if name == "chelsea":
            write(root / "images" / "cat.png", np.where(light > 90, 300, 0))
            row["object"] = "cat.png"
        rows.append(row)
    table(root / "index.csv", rows)
    table(
        root / "label.csv",
        [{"number": n, "name": name} for n, name in CONCEPTS.items()],
    )
    table(
        root / "category.csv",
        [{"name": n} for n in ("object", "scene", "part", "color")],
    )
    return root


def write(path, numbers):
    rgb = np.stack([numbers % 256, numbers // 256, 0 * numbers], -1)
    Image.fromarray(rgb.astype("uint8")).save(path)


def table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def model():
    """Units: red, light, darkness, and two at random."""
    inputs = keras.Input((SIZE, SIZE, 3))
    pooled = keras.layers.AveragePooling2D(4)(inputs)
    convolution = keras.layers.Conv2D(5, 1, name="units")
    network = keras.Model(inputs, convolution(pooled))
    kernel = np.random.default_rng(0).normal(size=(1, 1, 3, 5))
    kernel[0, 0, :, :3] = [[1, 0.3, -0.3], [-0.5, 0.3, -0.3], [-0.5, 0.3, -0.3]]
    convolution.set_weights([kernel, np.zeros(5)])
    return network


def slowly(model, folder, top):
    """One unit, concept and pixel set after the other: dict (unit, concept) -> IoU."""
    with open(folder / "index.csv") as file:
        rows = list(csv.DictReader(file))
    maps = []
    for row in rows:
        image = np.asarray(Image.open(folder / "images" / row["image"]), "float32")
        image = tf.image.resize(image, (SIZE, SIZE), antialias=True).numpy()
        maps.append(model.predict(image[None], verbose=0)[0])
    values = np.stack(maps).reshape(-1, maps[0].shape[-1])
    thresholds = np.sort(values, 0)[::-1][int(top * len(values))]
    scores = {}
    for unit in range(values.shape[1]):
        for number in CONCEPTS:
            both = either = 0
            for row, found in zip(rows, maps, strict=True):
                category = {4: "scene", 300: "object"}.get(number, "color")
                if not row[category]:
                    continue
                shown = np.zeros((SIDE, SIDE), bool)
                for part in row[category].split(";"):
                    if part.isdigit():
                        shown |= int(part) == number
                    else:
                        rgb = np.asarray(Image.open(folder / "images" / part), int)
                        shown |= rgb[..., 0] + 256 * rgb[..., 1] == number
                big = tf.image.resize(found[..., unit : unit + 1], (SIDE, SIDE)).numpy()
                on = big[..., 0] > thresholds[unit]
                both += (on & shown).sum()
                either += (on | shown).sum()
            scores[unit, CONCEPTS[number]] = both / max(either, 1)
    return scores, thresholds


@pytest.mark.parametrize("top", [0.05, 0.3])
def test_equal_to_the_slow_way(model, folder, top):
    found = dissect(model, folder, tap="units", top=top, verbose=0)
    scores, thresholds = slowly(model, folder, top)
    detected = set()
    for unit in found.units:
        mine = {c: s for (u, c), s in scores.items() if u == unit.unit}
        best = max(mine, key=mine.get)
        assert unit.iou == pytest.approx(mine[best], abs=1e-9)
        assert mine[unit.concept] == mine[best]
        assert unit.threshold == pytest.approx(thresholds[unit.unit], rel=1e-5)
        if mine[best] > 0.04:
            detected.add((unit.category, unit.concept))
    assert found.total == len(detected) >= 2
    for category, count in found.detectors.items():
        assert count == sum(c == category for c, _ in detected)
    assert found.detectors["part"] == 0


def test_thresholds_of_a_part_of_the_positions(model, folder, monkeypatch):
    whole = dissect(model, folder, tap="units", top=0.3, verbose=0)
    monkeypatch.setattr(dissection, "MOST_VALUES", 200)
    some = dissect(model, folder, tap="units", top=0.3, verbose=0)
    a, b = ([u.threshold for u in d.units] for d in (whole, some))
    assert a != b
    np.testing.assert_allclose(a, b, rtol=0.35, atol=20)


def test_parts_of_the_data(model, folder):
    found = dissect(model, folder, tap="units", split="val", verbose=0)
    assert {u.category for u in found.units} <= {"color", None}
    few = dissect(model, folder, tap="units", max_images=2, verbose=0)
    assert len(few.units) == 5


def test_bad_input(model, folder, tmp_path):
    with pytest.raises(ValueError, match=r"index\.csv"):
        dissect(model, tmp_path, tap="units", verbose=0)
    for name in ("index.csv", "label.csv", "category.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    table(tmp_path / "label.csv", [{"code": 1, "name": "red"}])
    with pytest.raises(ValueError, match=r"label\.csv with the columns number, name"):
        dissect(model, tmp_path, tap="units", verbose=0)
    with pytest.raises(ValueError, match=r"train.*val"):
        dissect(model, folder, tap="units", split="test", verbose=0)
    with pytest.raises(ValueError, match="top"):
        dissect(model, folder, tap="units", top=1.0)
    with pytest.raises(ValueError, match="tap"):
        dissect(model, folder)
