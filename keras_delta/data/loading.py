"""`load`: reads a data set of the literature, or from a folder, by name."""

import os
from typing import Literal, cast

from keras_delta import _arguments
from keras_delta._errors import invalid, unknown_name
from keras_delta._types import PathLike
from keras_delta.data import missing, places
from keras_delta.data import verify as verification
from keras_delta.data.catalogue import DATA_SETS
from keras_delta.data.drawing import divide, leave_out_class
from keras_delta.data.embedded import embedded_photographs
from keras_delta.data.folders import from_directory
from keras_delta.data.image_set import ImageSet
from keras_delta.data.tfds_sets import from_tfds

SOURCES = ("auto", "folder", "tfds")
FOLDER = "folder:"
PHOTOGRAPHS = "photographs"


def load(
    name: str,
    data_dir: PathLike | None = None,
    *,
    source: Literal["auto", "folder", "tfds"] = "auto",
    seed: int | None = 0,
    verify: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    check_sizes: bool = True,
    download: bool = True,
    test_per_class: int | Literal["default"] | None = "default",
    clutter: bool = True,
    test_fraction: float = 0.5,
) -> dict[str, ImageSet]:
    """Reads the training and test images of a data set by name.

    It searches, in this order, for a folder as unpacked from the authors' archive, the
    archive, which is checked and unpacked once, and TensorFlow Datasets. docs/data.md
    lists them.

    Args:
        name: one of `DATA_SETS`; "photographs" for `embedded_photographs`; or
            "folder:NAME" for `from_directory` on `data_dir/NAME`.
        data_dir: folder of the data sets, also used by TensorFlow Datasets. None: no
            folder is searched, and TensorFlow Datasets uses its default.
        source: "auto", or only "folder" (with archives) or "tfds".
        seed: integer for the draw if there is no predefined split. None, for Caltech:
            the images that L2-SP's code uses.
        verify, on_error: as for `from_directory`; by default a bad file raises an error
            in the epoch that first reads it.
        check_sizes: whether the numbers of classes and images must be those in
            `DATA_SETS`. False skips missing images, with a warning.
        download: whether TensorFlow Datasets may download.
        test_per_class: for Caltech: test images of each class, or None for all that
            are not used for training. "default": 20 for Caltech-256, all for
            Caltech-101.
        clutter: for Caltech: whether to include the clutter class.
        test_fraction: for "folder:NAME" without splits: test fraction of each class.

    Returns:
        Dict from "train" and "test" (and "val" if a folder has it) to `ImageSet`.

    Raises:
        FileNotFoundError: if the data set is not available; the message names the
            searched places and the data set's page.
        ValueError: if a name or option is unknown, an archive is damaged, sizes differ,
            or files are missing or unreadable.
        ImportError: if lists are in MATLAB files and scipy is missing.
    """
    _check_options(name, source, seed, test_per_class, clutter)
    verification.check_options(on_error, verify)
    if name == PHOTOGRAPHS:
        return embedded_photographs(seed=cast(int, seed))
    if name.startswith(FOLDER):
        place = os.path.join(data_dir or "", name.removeprefix(FOLDER))
        sets = _read_folder(place, test_fraction, seed)
    else:
        where = (data_dir, source, download, check_sizes)
        sets = _read_known(DATA_SETS[name], where, seed, test_per_class, clutter)
    return verification.leave_out_bad_files(sets, on_error) if verify else sets


def _check_options(name, source, seed, test_per_class, clutter):
    if not isinstance(name, str):
        raise TypeError(invalid("name", "a string such as 'cub'", name))
    named = (*DATA_SETS, PHOTOGRAPHS)
    if name not in named and (not name.startswith(FOLDER) or name == FOLDER):
        raise ValueError(unknown_name("name", name, [*named, f"{FOLDER}NAME"]))
    _arguments.choice("source", source, SOURCES)
    if seed is not None or name not in DATA_SETS:
        _arguments.seed("seed", seed)
    if test_per_class != "default":
        _arguments.integer("test_per_class", test_per_class, optional=True)
    if name in DATA_SETS and DATA_SETS[name].per_class is None:
        for argument, value, usual in (
            ("test_per_class", test_per_class, "default"),
            ("clutter", clutter, True),
        ):
            if value != usual:
                expected = f"{usual!r} for {name!r}; only Caltech has this option"
                raise ValueError(invalid(argument, expected, value))


def _read_folder(place, test_fraction, seed):
    sets = from_directory(place, verify=False)
    if not isinstance(sets, dict):
        train, test = sets.split(test_fraction, seed=seed)
        return {"train": train, "test": test}
    if not {"train", "test"} <= set(sets):
        raise ValueError(
            f"The folder {place} has the splits {missing.quote(sets)}. Expected "
            "'train' and 'test', or only class folders, which are then split."
        )
    return sets


def _read_known(data_set, where, seed, test_per_class, clutter):
    sets, place = _find(data_set, *where)
    classes, images = data_set.classes, data_set.images
    if not clutter:
        name, count = data_set.clutter
        sets = {part: leave_out_class(pool, name) for part, pool in sets.items()}
        classes, images = classes - 1, images - count
    if where[-1]:
        sizes = {"train": data_set.train, "test": data_set.test, "pool": images}
        missing.check_sizes(sets, classes, sizes, data_set.title, place)
    if data_set.per_class is None:
        return sets
    if test_per_class == "default":
        test_per_class = data_set.test_per_class
    sizes = (data_set.per_class, test_per_class, data_set.test_per_class or 0)
    return divide(sets["pool"], *sizes, seed, data_set.title)


def _find(data_set, data_dir, source, download, complete):
    """The parts of a data set as `ImageSet`, and their source."""
    looked = "No `data_dir` was given"
    if data_dir is not None:
        data_dir = os.path.abspath(os.path.expanduser(data_dir))
        looked = places.describe(data_set, data_dir)
    elif source == "folder":
        expected = "the folder of the data sets with `source='folder'`"
        raise ValueError(invalid("data_dir", expected, data_dir))
    if source == "tfds" and data_set.tfds is None:
        expected = f"'auto' or 'folder' for {data_set.title}"
        remedy = "It is not in TensorFlow Datasets."
        raise ValueError(invalid("source", expected, source, remedy))
    if source != "tfds" and data_dir is not None:
        root = places.find_folder(data_set, data_dir)
        if root is not None:
            return _read_root(data_set, str(root), complete), str(root)
    if source != "folder" and data_set.tfds is not None:
        sets = _read_tfds(data_set, data_dir, download, looked)
        return sets, "TensorFlow Datasets"
    looked += ". It is not in TensorFlow Datasets" if data_set.tfds is None else ""
    raise _not_found(data_set, looked)


def _read_root(data_set, root, complete):
    names, parts = data_set.read(root)
    parts = missing.keep_present(root, parts, data_set.title, complete)
    return {
        part: ImageSet.from_files([p for p, _ in files], [y for _, y in files], names)
        for part, files in parts.items()
    }


def _read_tfds(data_set, data_dir, download, looked):
    splits = data_set.tfds_splits
    if data_set.per_class is not None:
        splits = {"pool": "train+test"}
    try:
        return {
            part: from_tfds(data_set.tfds, split, data_dir=data_dir, download=download)
            for part, split in splits.items()
        }
    # Downloads that moved or changed raise errors of many kinds.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()[:300].rstrip('.')}"
        looked += f". TensorFlow Datasets could not load {data_set.tfds!r} ({reason})"
        raise _not_found(data_set, looked) from error


def _not_found(data_set, looked):
    return FileNotFoundError(
        f"{data_set.title} was not found. {looked}. Download it from "
        f"{data_set.page} and pass its folder as `data_dir`."
    )
