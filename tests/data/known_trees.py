"""Small folders in the layouts of the data sets of the literature, with real JPEGs."""

import functools
import io
import json
import os

import numpy as np
import scipy.io
from PIL import Image

from keras_delta.data import DATA_SETS, embedded_photographs
from keras_delta.data.decode import read_image

BREEDS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
DISHES = ("apple_pie", "baby_back_ribs", "baklava")
SCENES = ("airport_inside", "artstudio", "auditorium")
TEXTURES = ("banded", "blotchy", "braided")
PETS = ("Abyssinian", "american_bulldog", "Bengal")
CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012")
THINGS = ("001.ak47", "056.dog", "257.clutter")
OLD_THINGS = ("BACKGROUND_Google", "Faces", "accordion")
TRAIN, TEST = 2, 3  # images of each class
WHOLE = dict(DATA_SETS)  # with the sizes of the literature


@functools.cache
def jpegs():
    """One photograph's patch for each label, as the bytes of a JPEG."""
    patches = embedded_photographs(40, 1, 1, colour=True)["test"]
    pixels, labels = patches.arrays(40, dtype="uint8")
    found = {}
    for patch, label in zip(pixels, labels.tolist(), strict=True):
        stream = io.BytesIO()
        Image.fromarray(patch).save(stream, "JPEG", quality=95)
        found[label] = stream.getvalue()
    return found


def shows(path, label):
    """Whether a file is the picture of its label."""
    expected = read_image(jpegs()[label % 12])
    return np.array_equal(read_image(path), expected)


def put(root, path, label):
    """One picture of the label."""
    whole = os.path.join(root, path)
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    with open(whole, "wb") as file:
        file.write(jpegs()[label % 12])


def write(root, path, lines):
    whole = os.path.join(root, path)
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    with open(whole, "w") as file:
        file.write("".join(f"{line}\n" for line in lines))


def mat(root, path, **values):
    whole = os.path.join(root, path)
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    scipy.io.savemat(whole, values)


def cells(values):
    array = np.empty((len(values), 1), object)
    array[:, 0] = values
    return array


def numbered(names, pattern):
    """Dict from part to (path, label): `pattern` takes the name and a number."""
    return {
        part: [
            (pattern.format(name=name, number=n), label)
            for label, name in enumerate(names)
            for n in numbers
        ]
        for part, numbers in {
            "train": range(1, TRAIN + 1),
            "test": range(TRAIN + 1, TRAIN + TEST + 1),
        }.items()
    }


def pictures(root, parts, folder=""):
    for files in parts.values():
        for path, label in files:
            put(root, os.path.join(folder, path), label)


def stanford_dogs(root, lists="lists/"):
    parts = numbered(BREEDS, "{name}/{name}_{number}.jpg")
    pictures(root, parts, "Images")
    for part, files in parts.items():
        mat(
            root,
            f"{lists}{part}_list.mat",
            file_list=cells([path for path, _ in files]),
            labels=np.array([[label + 1] for _, label in files]),
        )
    return BREEDS, parts


def cub(root):
    parts = numbered(BIRDS, "{name}/{number:04d}.jpg")
    pictures(root, parts, "images")
    rows = [
        (path, label, int(part == "train"))
        for part, files in parts.items()
        for path, label in files
    ]
    keyed = list(enumerate(sorted(rows), 1))
    write(root, "classes.txt", [f"{i} {name}" for i, name in enumerate(BIRDS, 1)])
    write(root, "images.txt", [f"{i} {row[0]}" for i, row in keyed])
    write(root, "image_class_labels.txt", [f"{i} {row[1] + 1}" for i, row in keyed])
    write(root, "train_test_split.txt", [f"{i} {row[2]}" for i, row in keyed])
    return BIRDS, parts


def food101(root):
    parts = numbered(DISHES, "{name}/{number}.jpg")
    pictures(root, parts, "images")
    for part, files in parts.items():
        lines = [path.removesuffix(".jpg") for path, _ in files]
        write(root, f"meta/{part}.txt", lines)
        write(root, f"meta/{part}.json", [json.dumps(lines)])
    return DISHES, parts


def indoor67(root):
    parts = numbered(SCENES, "{name}/a {name} {number}.jpg")
    pictures(root, parts, "Images")
    write(root, "TrainImages.txt", [path for path, _ in parts["train"]])
    write(root, "TestImages.txt", [path for path, _ in parts["test"]])
    return SCENES, parts


def dtd(root):
    parts = numbered(TEXTURES, "{name}/{name}_{number:04d}.jpg")
    pictures(root, parts, "images")
    training = [path for path, _ in parts["train"]]
    write(root, "labels/train1.txt", training[::2])
    write(root, "labels/val1.txt", training[1::2])
    write(root, "labels/test1.txt", [path for path, _ in parts["test"]])
    return TEXTURES, parts


def pets(root):
    parts = numbered(PETS, "{name}_{number}.jpg")
    pictures(root, parts, "images")
    for part, file in {"train": "trainval", "test": "test"}.items():
        lines = [f"{path[:-4]} {label + 1} 1 1" for path, label in parts[part]]
        write(root, f"annotations/{file}.txt", lines)
    return PETS, parts


def flowers102(root):
    count = 3 * (TRAIN + TEST)
    labels = np.arange(count) % 3
    files = [(f"image_{i + 1:05d}.jpg", int(labels[i])) for i in range(count)]
    parts = {"train": files[: 3 * TRAIN], "test": files[3 * TRAIN :]}
    pictures(root, parts, "jpg")
    numbers = np.arange(1, count + 1)
    mat(root, "imagelabels.mat", labels=labels[None] + 1)
    mat(
        root,
        "setid.mat",
        trnid=numbers[None, :3],
        valid=numbers[None, 3 : 3 * TRAIN],
        tstid=numbers[None, 3 * TRAIN :],
    )
    return None, parts


def cars(root):
    parts = numbered(CARS, "{name}{number}.jpg")
    parts = {
        part: [(f"{i:05d}.jpg", label) for i, (_, label) in enumerate(files, 1)]
        for part, files in parts.items()
    }
    places = {"train": "devkit/cars_train_annos", "test": "cars_test_annos_withlabels"}
    kind = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    for part, files in parts.items():
        pictures(root, {part: files}, f"cars_{part}")
        rows = [(1, label + 1, path) for path, label in files]
        mat(root, f"{places[part]}.mat", annotations=np.array(rows, kind)[None])
    mat(root, "devkit/cars_meta.mat", class_names=cells(CARS).T)
    return CARS, parts


def caltech256(root, per_class=84):
    folder = os.path.join(root, "256_ObjectCategories")
    for label, name in enumerate(THINGS):
        for number in range(1, per_class + 1):
            put(folder, f"{name}/{name[:3]}_{number:04d}.jpg", label)
    # What the authors left in the archive.
    os.makedirs(os.path.join(folder, "056.dog", "greg", "vision309"))
    write(folder, "001.ak47/RENAME2", ["#!/bin/csh"])
    return THINGS


def caltech101(root, per_class=35):
    folder = os.path.join(root, "101_ObjectCategories")
    for label, name in enumerate(OLD_THINGS):
        for number in range(1, per_class + 1):
            put(folder, f"{name}/image_{number:04d}.jpg", label)
    return sorted(OLD_THINGS, key=str.lower)


LISTED = {
    "stanford_dogs": stanford_dogs,
    "cub": cub,
    "food101": food101,
    "indoor67": indoor67,
    "dtd": dtd,
    "pets": pets,
    "flowers102": flowers102,
    "cars": cars,
}
