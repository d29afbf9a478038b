"""`from_directory`: a folder of class folders as an `ImageSet`."""

import os
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

from keras_delta._errors import invalid, unknown_name, warn
from keras_delta._types import PathLike
from keras_delta.data.decode import looks_like_image
from keras_delta.data.image_set import ImageSet
from keras_delta.data.split_folders import (
    check_classes_hold_no_parts,
    find_parts,
    folders_in,
    images_below,
    part_of,
    quote,
    visible,
)
from keras_delta.data.verify import check_options, leave_out_bad_files


def from_directory(
    directory: PathLike,
    split: Literal["train", "val", "test"] | None = None,
    *,
    labels: Literal["inferred"] | None = "inferred",
    on_error: Literal["raise", "skip"] = "raise",
    verify: bool = True,
    class_names: Sequence[str] | None = None,
) -> ImageSet | dict[str, ImageSet]:
    """Reads images stored in one folder per class.

    Two layouts are supported: class folders in `directory` itself, or in subfolders
    for training, validation and test, under any of their usual names (`Training`,
    `seg_train`, `dev`, `val2017`, `holdout`; docs/data.md lists them). The training
    part determines the classes and their numbers; a warning names any class that
    another part lacks. Names match across parts regardless of Unicode form and case.

    All images below a class folder count, at any depth (links are followed for class
    folders only): files whose extension or content says so, except hidden ones.

    Args:
        directory: path of the folder.
        split: "train", "val" or "test", for only that part. None returns all parts,
            or the single set of a folder without splits.
        labels: "inferred", from the class folders; None for images without labels, from
            the folder or the part `split`, whether or not it has class folders.
        on_error: "raise" lists unreadable files in an error; "skip" skips them with a
            warning and lists them in `ImageSet.skipped`.
        verify: whether to decode each file once, now; a warning then lists images that
            are practically empty and files that are in two parts. With False, a bad
            file raises an error naming it in the epoch that first reads it.
        class_names: names of the class folders to use, in label order; default: all,
            sorted.

    Returns:
        `ImageSet`; for a folder with splits, a dict from "train", "val", "test" to it.

    Raises:
        ValueError: if the folder is missing, empty or has fewer than two class folders,
            if splits cannot be distinguished from classes, if a class has no training
            images, or if files cannot be read.
    """
    check_options(on_error, verify)
    if labels not in ("inferred", None):
        raise ValueError(invalid("labels", '"inferred" or None', labels))
    directory = os.path.abspath(os.path.expanduser(directory))
    _check_folder(directory)
    parts = find_parts(directory, split, class_names)
    chosen = parts if split is None else _choose(parts, split, directory)
    sets: dict[Any, ImageSet]
    if labels is None:
        sets = {split: _unlabelled(_the_one(chosen, directory))}
    elif chosen:
        sets = _read_parts(parts, chosen, class_names, directory)
    else:
        folders = _by_key(directory)
        check_classes_hold_no_parts(directory, folders)
        names = _check_names(directory, folders, class_names)
        sets = {None: _image_set(directory, folders, names, names)}
    if verify:
        sets = leave_out_bad_files(sets, on_error)
    return sets if parts and split is None and labels else sets.popitem()[1]


def _choose(parts, split, directory):
    if not parts:
        expected = (
            f"None, as {directory} has no folders such as `train`, `val` or `test` "
            "with class folders in them"
        )
        remedy = "Omit it, and divide the set with `.split(fraction)`."
        raise ValueError(invalid("split", expected, split, remedy))
    chosen = part_of(str(split))
    if chosen not in parts:
        raise ValueError(unknown_name("split", split, parts))
    return {chosen: parts[chosen]}


def _the_one(chosen, directory):
    if len(chosen) > 1:
        expected = f"one of {sorted(chosen)} with `labels=None`"
        raise ValueError(invalid("split", expected, None))
    return next(iter(chosen.values()), directory)


def _unlabelled(folder):
    paths = images_below(folder)
    if not paths:
        raise ValueError(f"No images in {folder}.")
    return ImageSet.from_files(paths, None, ())


def _check_folder(directory):
    if not os.path.exists(directory):
        problem = "the path of an existing folder"
        remedy = _nearest_existing(directory)
    elif not os.path.isdir(directory):
        problem = "a folder, but this is a file"
        remedy = f"Pass the folder of the class folders, not {directory}."
    elif not visible(directory):
        problem = "a folder with class folders, but it is empty"
        remedy = "Put the images of each class into a separate folder."
    else:
        return
    raise ValueError(invalid("directory", problem, directory, remedy))


def _nearest_existing(directory):
    parent = os.path.dirname(directory)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    names = quote(entry.name for entry in visible(parent)[:10])
    return f"The part {parent} exists and contains: {names or 'nothing'}."


def _read_parts(parts, chosen, class_names, directory):
    """Dict from the chosen parts to `ImageSet`s with the same class numbers."""
    leading = "train" if "train" in parts else next(iter(chosen))
    folders = {
        part: _by_key(path)
        for part, path in {**chosen, leading: parts[leading]}.items()
    }
    if leading not in chosen and class_names is None and not folders[leading]:
        leading = next(iter(chosen))  # no classes to use
    known = folders[leading]
    if class_names is not None:  # may name a class that only another part has
        known = {name: path for some in folders.values() for name, path in some.items()}
    names = _check_names(parts[leading], known, class_names)
    sets = {}
    for part, path in chosen.items():
        if not folders[part]:
            if len(chosen) == 1 or not (count := len(images_below(path))):
                _check_names(path, {}, None)
            warn(
                f"The {count} images in {path} are not in class folders and are "
                f"skipped. Read them with `from_directory({directory!r}, "
                f"split={part!r}, labels=None)`."
            )
            continue
        if part != leading:
            _check_part(path, folders[part], folders[leading], names, class_names)
        sets[part] = _image_set(
            path, folders[part], names, names if part == leading else ()
        )
    return sets


def _check_part(path, folders, leading, names, class_names):
    """Reject classes that the training part lacks; warn about missing ones."""
    known = {_key(name) for name in leading}
    strange = [name for name in folders if _key(name) not in known]
    if strange and class_names is None:
        raise ValueError(
            f"The class folders {quote(strange)} in {path} are not in the training "
            f"part, which has {quote(sorted(leading))}. Rename them, add training "
            f"images, or exclude them with `class_names={list(names)}`."
        )
    has = {_key(name): images_below(where) for name, where in folders.items()}
    lacking = [name for name in names if not has.get(_key(name))]
    if lacking and len(lacking) < len(names):
        warn(f"No images of the classes {quote(lacking)} in {path}.")


def _image_set(directory, folders, names, needed):
    """The images of some class folders, numbered as in `names`.

    Args:
        directory: where they lie.
        folders: dict from their names to their paths.
        names: of the classes.
        needed: those that must have images.
    """
    by_key = {_key(name): path for name, path in folders.items()}
    files = [images_below(by_key[_key(n)]) if _key(n) in by_key else [] for n in names]
    empty = [n for n, members in zip(names, files, strict=True) if not members]
    if empty := [name for name in empty if name in needed]:
        raise ValueError(
            f"Class folders without images in {directory}: {quote(empty)}. Add images "
            "or remove the folders."
        )
    if not any(files):
        raise ValueError(f"No images of {quote(names)} in {directory}.")
    paths = [path for members in files for path in members]
    labels = [i for i, members in enumerate(files) for _ in members]
    return ImageSet.from_files(paths, labels, names)


def _key(name):
    """A class name for comparisons: "café" from macOS equals that from Linux."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def _by_key(directory):
    """Dict from names to paths of class folders; rejects names that look alike."""
    folders = {}
    for entry in folders_in(directory):
        key = _key(entry.name)
        alike = next((name for name in folders if _key(name) == key), None)
        if alike is not None:
            raise ValueError(
                f"Two class folders in {directory} have names that look alike: "
                f"{alike!a} and {entry.name!a}. Rename one, or merge them."
            )
        folders[entry.name] = entry.path
    return folders


def _check_names(directory, folders, class_names):
    if not folders:
        images = [e.path for e in visible(directory) if looks_like_image(e.path)]
        inside = f" It contains {len(images)} images directly." if images else ""
        raise ValueError(
            f"The folder {directory} has no class folders.{inside} Put the images of "
            "each class into a separate folder named after the class, or read them "
            "without labels, `labels=None`."
        )
    remedy = f"Class folders in {directory}: {quote(sorted(folders))}."
    if class_names is None:
        if len(folders) < 2:
            (only,) = folders.values()
            if len(folders_in(only)) > 1:
                remedy += f" Did you mean {only}?"
            expected = "at least two class folders"
            raise ValueError(invalid("directory", expected, directory, remedy))
        return sorted(folders)
    class_names = list(class_names)
    known = {_key(name) for name in folders}
    for name in class_names:
        if _key(str(name)) not in known:
            raise ValueError(unknown_name("class_names", name, sorted(folders)))
    if len(set(class_names)) < max(2, len(class_names)):
        expected = "at least two names without duplicates"
        raise ValueError(invalid("class_names", expected, class_names, remedy))
    return class_names
