"""`load`: a data set of the literature, or of a folder, by its name."""

import os

import numpy as np

from keras_delta._errors import invalid, unknown_name
from keras_delta.data import places
from keras_delta.data.catalogue import DATA_SETS
from keras_delta.data.drawing import divided, without_class
from keras_delta.data.embedded import embedded_photographs
from keras_delta.data.folders import from_directory
from keras_delta.data.image_set import ImageSet
from keras_delta.data.missing import check_sizes, present, shown
from keras_delta.data.sampling import check_seed
from keras_delta.data.tfds_sets import from_tfds
from keras_delta.data.verify import find_bad_files, report_bad_files

SOURCES = ("auto", "folder", "tfds")
FOLDER = "folder:"
PHOTOGRAPHS = "photographs"


def load(
    name,
    data_dir=None,
    *,
    source="auto",
    seed=0,
    verify=False,
    on_error="raise",
    check_sizes=True,
    download=True,
    test_per_class="default",
    clutter=True,
    test_fraction=0.5,
):
    """Reads the training and the test images of a data set by its name.

    Looked for in this order: a folder as its authors' archive makes it; the archive,
    which is checked and unpacked once into `data_dir/<name>/unpacked`; TensorFlow
    Datasets. Folders lie in `data_dir`, in `data_dir/<name>` or in a folder of the
    usual name (`CUB_200_2011`, ...) below one of them; docs/data.md lists them all.

    Args:
        name: one of `DATA_SETS`; "photographs" for `embedded_photographs`; or
            "folder:NAME" for the folder NAME below `data_dir`, with class folders in
            `train` and `test`, or class folders alone, which are divided.
        data_dir: folder of the data sets, and of TensorFlow Datasets'. None: no
            folder is looked into, and TensorFlow Datasets uses its own.
        source: "auto", or only "folder" (with archives) or "tfds".
        seed: integer that decides the draw where a data set has no division of its own
            (Caltech, "folder:NAME" without splits) and the patches of "photographs".
            With one seed "caltech256_30" is a part of "caltech256_60", with the same
            test images. None, for Caltech: the first images in the order of their
            names, as in the code of L2-SP (1 to 30 or 60 of each class, and 61 to 80
            for testing).
        verify: whether to decode each file once, now; else a bad file shows in the
            epoch that meets it, as an error that names it. For files alone.
        on_error: "raise" lists the files that cannot be read; "skip", with
            `verify=True`, leaves them out and warns once.
        check_sizes: whether the numbers of classes and images must be those of
            `DATA_SETS`. False reads a part of a data set: images that its lists name
            but that are not there are left out with a warning, labels stay.
        download: whether TensorFlow Datasets may download.
        test_per_class: for Caltech: test images of each class, or None for all that
            are not trained on. "default": 20 for Caltech-256, as for L2-SP, all for
            Caltech-101.
        clutter: for Caltech: whether the class that is no object ("257.clutter",
            "BACKGROUND_Google") counts, as for L2-SP and in TensorFlow Datasets.
        test_fraction: for "folder:NAME" without splits: test share of each class.

    Returns:
        Dict of "train" and "test" to `ImageSet` (and "val" where a folder has it).

    Raises:
        FileNotFoundError: where the data set is not to be had; says what was looked
            for, where, and the address of its page.
        ValueError: for an unknown name or option, damaged archives, other sizes than
            those of `DATA_SETS`, and files that are missing or cannot be read.
        ImportError: for lists in MATLAB files without scipy.

    Source: Li et al., TKDD 2021, doi:10.1145/3473912, section 4.
    """
    _check_options(name, source, seed, verify, on_error)
    options = {"test_per_class": test_per_class, "clutter": clutter}
    if name == PHOTOGRAPHS:
        return embedded_photographs(seed=seed)
    if name.startswith(FOLDER):
        place = os.path.join(data_dir or "", name.removeprefix(FOLDER))
        sets = _folder_set(place, test_fraction, seed)
    else:
        sets = _known_set(
            name, data_dir, source, seed, check_sizes, download, **options
        )
    return _verified(sets, on_error) if verify else sets


def _check_options(name, source, seed, verify, on_error):
    known = [*DATA_SETS, PHOTOGRAPHS, f"{FOLDER}NAME"]
    if not isinstance(name, str):
        raise TypeError(invalid("name", "a string such as 'cub'", name))
    folder = name.startswith(FOLDER) and name != FOLDER
    if not folder and name not in known[:-1]:
        raise ValueError(unknown_name("name", name, known))
    if source not in SOURCES:
        raise ValueError(unknown_name("source", source, SOURCES))
    if on_error not in ("raise", "skip"):
        raise ValueError(unknown_name("on_error", on_error, ("raise", "skip")))
    if on_error == "skip" and not verify:
        remedy = "Bad files are found, and so left out, by decoding all of them."
        raise ValueError(
            invalid("verify", "True with `on_error='skip'`", verify, remedy)
        )
    if seed is not None or name not in DATA_SETS:
        check_seed(seed)


def _folder_set(place, test_fraction, seed):
    sets = from_directory(place, verify=False)
    if not isinstance(sets, dict):
        train, test = sets.split(test_fraction, seed=seed)
        return {"train": train, "test": test}
    if not {"train", "test"} <= set(sets):
        raise ValueError(
            f"The folder {place} has the splits {shown(sets)}. Expected 'train' and "
            "'test', or class folders alone, which are divided."
        )
    return sets


def _known_set(name, data_dir, source, seed, check, download, test_per_class, clutter):
    data_set = DATA_SETS[name]
    if data_set.per_class is None:
        for argument, value, usual in (
            ("test_per_class", test_per_class, "default"),
            ("clutter", clutter, True),
        ):
            if value != usual:
                expected = f"{usual!r} for {name!r}; it is for Caltech"
                raise ValueError(invalid(argument, expected, value))
    if test_per_class == "default":
        test_per_class = data_set.test_per_class
    sets, place = _read(data_set, data_dir, source, download, check)
    classes, images = data_set.classes, data_set.images
    if not clutter:
        sets = {p: without_class(s, data_set.clutter[0]) for p, s in sets.items()}
        classes, images = classes - 1, images - data_set.clutter[1]
    expected = {"train": data_set.train, "test": data_set.test}
    if data_set.per_class is not None:
        expected = {"pool": images}
    if check:
        check_sizes(sets, classes, expected, data_set.title, place)
    if data_set.per_class is not None:
        lead = data_set.test_per_class or 0
        sizes = (data_set.per_class, test_per_class, lead)
        return divided(sets["pool"], *sizes, seed, data_set.title)
    return sets


def _read(data_set, data_dir, source, download, complete):
    """The parts of a data set as `ImageSet`, and where they come from."""
    if data_dir is not None:
        data_dir = os.path.abspath(os.path.expanduser(data_dir))
    elif source == "folder":
        expected = "the folder of the data sets with `source='folder'`"
        raise ValueError(invalid("data_dir", expected, data_dir))
    if source != "tfds" and data_dir is not None:
        root = places.folder_of(data_set, data_dir)
        if root is not None:
            names, parts = data_set.read(str(root))
            parts = present(str(root), parts, data_set.title, complete)
            sets = {
                part: ImageSet.from_files(
                    [path for path, _ in files], [label for _, label in files], names
                )
                for part, files in parts.items()
            }
            return sets, str(root)
    looked = "No `data_dir` was given"
    if data_dir is not None:
        looked = places.wanted(data_set, data_dir)
    if source == "folder" or data_set.tfds is None:
        nowhere = "" if data_set.tfds else " It is not in TensorFlow Datasets."
        if source == "tfds":
            expected = f"'auto' or 'folder' for {data_set.title}"
            raise ValueError(invalid("source", expected, source, nowhere.strip()))
        raise FileNotFoundError(
            f"{data_set.title} was not found. {looked}.{nowhere} Download it from "
            f"{data_set.page} and pass the folder in which it lies as `data_dir`."
        )
    return _from_tfds(data_set, data_dir, download, looked), "TensorFlow Datasets"


def _from_tfds(data_set, data_dir, download, looked):
    splits = data_set.tfds_splits
    if data_set.per_class is not None:
        splits = {"pool": "train+test"}
    try:
        return {
            part: from_tfds(data_set.tfds, split, data_dir=data_dir, download=download)
            for part, split in splits.items()
        }
    except ImportError:
        raise
    # Downloads that moved or changed raise errors of many kinds.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()[:300].rstrip('.')}"
        raise FileNotFoundError(
            f"{data_set.title} was not found. {looked}. TensorFlow Datasets could not "
            f"give {data_set.tfds!r} ({reason}). Download it from {data_set.page} and "
            "pass the folder in which it lies as `data_dir`."
        ) from error


def _verified(sets, on_error):
    """Decodes all files of the sets, and leaves the bad ones out or raises."""
    paths = [path for images in sets.values() for path in images.paths or ()]
    bad = find_bad_files(paths)
    report_bad_files(bad, len(paths), on_error)
    reasons = dict(bad)
    return {part: _without_files(images, reasons) for part, images in sets.items()}


def _without_files(images, reasons):
    skipped = [(path, reasons[path]) for path in images.paths or () if path in reasons]
    if not skipped:
        return images
    good = [i for i, path in enumerate(images.paths) if path not in reasons]
    rest = images.subset(np.array(good, np.int64))
    empty = [n for n, count in rest.counts.items() if not count and images.counts[n]]
    if empty:
        raise ValueError(
            f"No image file of the class {empty[0]!r} can be read; the first, "
            f"{skipped[0][0]}: {skipped[0][1]}. Repair the files."
        )
    return ImageSet(rest._source, rest.labels, rest.class_names, skipped)
