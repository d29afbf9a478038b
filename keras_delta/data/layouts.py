"""Readers for the folder layouts of data sets from the literature.

A reader takes the folder and returns the class names and the files of each part:
`(names, {"train": [(path, label), ...], "test": [...]})`, with paths relative to the
folder. A data set without a predefined split has one part, "pool". Readers read lists,
never images.
"""

import os

import numpy as np

from keras_delta._errors import import_optional
from keras_delta.data.missing import quote

# One of them.
CARS_LABELS = tuple(f"{at}cars_test_annos_withlabels.mat" for at in ("", "devkit/"))


def lists(images, ending="", **files):
    """A reader of lists that name files in class folders, which give the labels.

    Args:
        images: the folder of the class folders.
        ending: suffix that the lists omit from the names.
        **files: the lists of each part.
    """

    def read(root):
        names = {
            part: [name + ending for file in group for (name,) in _table(root, file, 1)]
            for part, group in files.items()
        }
        return _label_by_folder(names, images)

    return read


def class_folders(images):
    """A reader of class folders without lists and without a split."""

    def read(root):
        folder = os.path.join(root, images)
        # Lower case, so that labels are those of TensorFlow Datasets. Files with other
        # extensions and folders in class folders are leftovers of the authors.
        names = sorted(
            (e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != "."),
            key=str.lower,
        )
        pool, empty = [], []
        for label, name in enumerate(names):
            files = sorted(os.listdir(os.path.join(folder, name)))
            files = [f for f in files if f.lower().endswith(".jpg") and f[0] != "."]
            pool += [(f"{images}/{name}/{file}", label) for file in files]
            empty += [] if files else [name]
        if empty or not names:
            what = f"Class folders without images in {folder}: {quote(empty)}."
            raise ValueError(
                f"{what if names else f'No class folders in {folder}.'} "
                "Unpack the archive again, or remove the empty folders."
            )
        return names, {"pool": pool}

    return read


def stanford_dogs(root):
    """`Images/<breed>/*.jpg`; `train_list.mat`, `test_list.mat`, also in `lists/`."""
    names = {}
    for part in ("train", "test"):
        path = _first(root, f"lists/{part}_list.mat", f"{part}_list.mat")
        names[part] = [str(name) for name in _mat(path, "file_list")]
    return _label_by_folder(names, "Images")


def cub(root):
    """`images/` and four lists; `train_test_split.txt` says 1 for training."""
    names = [name for _, name in _table(root, "classes.txt", 2)]
    files = dict(_table(root, "images.txt", 2))
    labels = dict(_table(root, "image_class_labels.txt", 2, whole=(1,)))
    training = dict(_table(root, "train_test_split.txt", 2, whole=(1,)))
    parts = {"train": [], "test": []}
    for key, name in files.items():
        if key not in labels or key not in training:
            raise ValueError(
                f"The lists in {root} do not match: image {key!r} of images.txt "
                "is not in image_class_labels.txt or not in train_test_split.txt. "
                "Unpack the archive again."
            )
        part = "train" if training[key] == 1 else "test"
        parts[part].append((f"images/{name}", labels[key] - 1))
    return names, parts


def pets(root):
    """`images/*.jpg`; `annotations/trainval.txt`, `annotations/test.txt`."""
    parts, names = {}, {}
    for part, file in {"train": "trainval", "test": "test"}.items():
        rows = _table(root, f"annotations/{file}.txt", 2, whole=(1,))
        parts[part] = [(f"images/{name}.jpg", label - 1) for name, label in rows]
        names.update({label - 1: name.rpartition("_")[0] for name, label in rows})
    return [names.get(i, str(i + 1)) for i in range(max(names, default=-1) + 1)], parts


def flowers102(root):
    """`jpg/image_00001.jpg`, ...; `imagelabels.mat`, `setid.mat`.

    The training and validation images are "train". The files do not contain the class
    names, which are taken from TensorFlow Datasets.
    """
    labels = _mat(os.path.join(root, "imagelabels.mat"), "labels")
    sets = {"train": ("trnid", "valid"), "test": ("tstid",)}
    parts = {
        part: [
            (f"jpg/image_{number:05d}.jpg", int(labels[number - 1]) - 1)
            for key in keys
            for number in _mat(os.path.join(root, "setid.mat"), key)
        ]
        for part, keys in sets.items()
    }
    what = "The data set 'flowers102'"
    tfds = import_optional("tensorflow_datasets", what, "tfds")
    builder = tfds.builder("oxford_flowers102")
    return builder.info.features["label"].names, parts


def cars(root):
    """`cars_train/`, `cars_test/`, `devkit/*.mat`, `cars_test_annos_withlabels.mat`."""
    names = _mat(os.path.join(root, "devkit/cars_meta.mat"), "class_names")
    lists = {
        "train": os.path.join(root, "devkit/cars_train_annos.mat"),
        "test": _first(root, *CARS_LABELS),
    }
    parts = {}
    for part, path in lists.items():
        rows = _mat(path, "annotations", fields=("fname", "class"))
        parts[part] = [
            (f"cars_{part}/{row['fname']}", int(row["class"]) - 1) for row in rows
        ]
    return [str(name) for name in names], parts


def _first(root, *files):
    """The path of the first file that exists, or of the last one."""
    paths = [os.path.join(root, file) for file in files]
    return next(filter(os.path.exists, paths), paths[-1])


def _label_by_folder(lists, images):
    """Labels from the class folders that the lists name, sorted."""
    names = sorted({name.split("/")[0] for part in lists.values() for name in part})
    labels = {name: label for label, name in enumerate(names)}
    return names, {
        part: [(f"{images}/{file}", labels[file.split("/")[0]]) for file in files]
        for part, files in lists.items()
    }


def _table(root, file, columns, whole=()):
    """The first fields of each line; those in `whole` as integers."""
    path = os.path.join(root, file)
    rows = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            # Only a list of one column may have blanks in its names.
            row = line.split()[:columns] if columns > 1 else [line.strip()]
            good = len(row) == columns and "<" not in line
            if not good or not all(row[i].isdecimal() for i in whole):
                raise ValueError(
                    f"Cannot read the list {path}: line {number} is {line.strip()!r}. "
                    f"Expected {columns} {'fields' if columns > 1 else 'file name'}. "
                    "It may be a web page instead of the list; download it again."
                )
            rows.append([int(row[i]) if i in whole else row[i] for i in range(columns)])
    return rows


def _mat(path, key, fields=()):
    """One array of a MATLAB file, flat."""
    what = f"Reading {os.path.basename(path)}"
    scipy_io = import_optional("scipy.io", what, "benchmarks")
    try:
        content = scipy_io.loadmat(path, squeeze_me=True)
    # scipy raises errors of many kinds; all of them mean the same here.
    except Exception as error:
        raise ValueError(
            f"Cannot read {path} as a MATLAB file ({error}). Download it again."
        ) from error
    values = np.atleast_1d(content.get(key, []))
    if values.size == 0 or any(f not in (values.dtype.names or ()) for f in fields):
        known = [name for name in content if not name.startswith("__")]
        wanted = f"{key!r} with the fields {fields}" if fields else repr(key)
        raise ValueError(
            f"The file {path} lacks {wanted}. It contains: {quote(known)}. "
            "Download it again."
        )
    return values
