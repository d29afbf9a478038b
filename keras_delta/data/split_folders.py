"""Decides which folders are parts of a data set, classes, or neither."""

import os
import re

from keras_delta._errors import invalid, warn
from keras_delta.data.decode import looks_like_image

# Names of the parts, in lower case.
WORDS = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "holdout", "eval", "evaluation"),
}
PARTS = {word: part for part, words in WORDS.items() for word in words}

# Words that may be added: "seg_train", "Train Data", "test-images", "val2017".
BESIDE = (
    *("data", "dataset", "set", "split", "images", "image", "imgs", "img", "pictures"),
    *("photos", "folder", "part", "seg", "original", "orig"),
)
JUNK = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # left in archives by systems


def part_of(name):
    """The part that a folder's name stands for: "train", "val", "test" or None."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [w for w in re.split(r"[^a-z]+", spaced.lower()) if w and w not in BESIDE]
    whole = "".join(words)
    for ending in BESIDE:  # "trainset"
        shorter = whole.removesuffix(ending)
        if shorter in PARTS:
            return PARTS[shorter]
    return PARTS.get(whole)


def visible(directory):
    """Entries of a folder except hidden ones, sorted by name."""
    with os.scandir(directory) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(shown, key=lambda entry: entry.name)


def folders_in(directory):
    """The folders in a folder, except those that macOS and Windows leave behind."""
    return [e for e in visible(directory) if e.is_dir() and e.name not in JUNK]


def images_below(folder):
    """Paths of the images at any depth, sorted folder by folder."""
    images = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if n[0] != "." and n not in JUNK)
        paths = (os.path.join(place, n) for n in sorted(names) if n[0] != ".")
        images += [path for path in paths if looks_like_image(path)]
    return images


def quote(names):
    """Names as a list, with invisible characters shown."""
    return ", ".join(
        repr(name) if name.isprintable() else ascii(name) for name in names
    )


def find_parts(directory, split=None, class_names=None):
    """The folders of a directory that are parts.

    A class may be called "train": a folder is a part if its name says so and it
    contains folders, or if all folders have such names.

    Args:
        directory: absolute path.
        split, class_names: as for `from_directory`; they resolve ambiguities.

    Returns:
        Dict from those of "train", "val" and "test" that exist, in this order, to
        paths; {} for a directory of class folders.

    Raises:
        ValueError: if two folders are the same part, or if it is unclear whether
            folders are parts or classes.
    """
    entries = folders_in(directory)
    named = {e.name: part_of(e.name) for e in entries}
    others = [e for e in entries if named[e.name] is None]
    if class_names is not None and set(class_names) <= set(named):
        return {}
    found = {}
    for entry in entries:
        part = named[entry.name]
        if part is None or not (folders_in(entry.path) or not others):
            continue
        if part in found:
            first = os.path.basename(found[part])
            raise ValueError(
                f"Two folders in {directory} contain the split {part!r}: {first!r} and "
                f"{entry.name!r}. Remove or rename one."
            )
        found[part] = entry.path
    if found and others and split is None:
        _look_at_others(directory, found, others)
    return {part: found[part] for part in WORDS if part in found}


def _look_at_others(directory, found, others):
    """Warn about folders that are neither part nor class; reject ambiguous ones."""
    parts = [os.path.basename(path) for path in found.values()]
    classes = {e.name for path in found.values() for e in folders_in(path)}
    for entry in others:
        inside = {e.name for e in folders_in(entry.path)}
        if not images_below(entry.path):
            warn(f"The folder {entry.name!r} in {directory} has no images; skipped.")
        elif inside & classes or len(found) == 1:
            raise ValueError(
                f"Is {quote([entry.name])} in {directory} a split or a class? The "
                f"folders {quote(parts)} are splits. Rename it to `train`, `val` or "
                f"`test` if it is a split; pass `split={next(iter(found))!r}` to read "
                "only that part; or, if all of them are classes, "
                f"`class_names={sorted([*parts, *(e.name for e in others)])}`."
            )
        else:
            warn(
                f"The folder {quote([entry.name])} in {directory} is neither a split "
                f"like {quote(parts)} nor a class, and is skipped. Read it separately "
                "with `from_directory`, or move its images into a split."
            )


def check_classes_hold_no_parts(directory, classes):
    """Reject class folders that contain parts, `cats/train`: images would mix.

    Args:
        directory: where the class folders are.
        classes: dict from their names to their paths.
    """
    for name, path in classes.items():
        parts = [e.name for e in folders_in(path) if part_of(e.name)]
        if len({part_of(p) for p in parts}) > 1:
            expected = "splits outside of the class folders, such as train/cat"
            inside = f"the class folder {name!r} contains {quote(parts)}"
            remedy = f"Swap the folders: use {parts[0]}/{name}, not {name}/{parts[0]}."
            raise ValueError(
                f"{invalid('directory', expected, directory)}, where {inside}. {remedy}"
            )
