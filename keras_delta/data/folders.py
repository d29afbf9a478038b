"""`from_directory`: a folder of class folders as an `ImageSet`."""

import os

from keras_delta._errors import invalid, unknown_name
from keras_delta.data.decode import looks_like_image
from keras_delta.data.image_set import ImageSet
from keras_delta.data.verify import check_options, leave_out_bad_files

# Folder names, in lower case, and the split that they hold.
SPLITS = {"train": "train", "val": "val", "test": "test"}
SPLITS |= {"validation": "val", "valid": "val"}


def from_directory(
    directory, split=None, *, on_error="raise", verify=True, class_names=None
):
    """Reads images that lie in one folder per class.

    Two layouts are known: class folders in `directory` itself, or in its sub-folders
    `train`, `val` (or `validation`, `valid`) and `test`. All images below a class
    folder count, at any depth (links to folders are followed for class folders only).
    A file is taken for an image when its extension or its content says so; hidden
    files and all others (`.txt`, `Thumbs.db`, ...) are ignored. The content decides
    the format: a PNG called `.jpg` is fine.

    Args:
        directory: path of the folder.
        split: "train", "val" or "test", for that part of a folder with splits. None
            gives all of them, or the set of a folder without splits.
        on_error: "raise" lists the files that cannot be read; "skip" leaves them out,
            warns once, and lists them in `ImageSet.skipped`.
        verify: whether to decode each file once, now. With False, a bad file shows in
            the epoch that meets it, as an error that names it.
        class_names: the class folders to take, in the order of their labels. By
            default all, sorted by name.

    Returns:
        `ImageSet`; for a folder with splits and `split=None`, a dict from "train",
        "val" and "test", as far as they exist, to `ImageSet`.

    Raises:
        ValueError: when the folder is missing, is a file or is empty, has no class
            folders or a single one, when a class is empty, when the splits differ in
            their classes, and for files that cannot be read.
    """
    check_options(on_error, verify)
    directory = os.path.abspath(os.path.expanduser(directory))
    _check_folder(directory)
    folders = _split_folders(directory)
    _check_same_classes(folders)
    if split is not None:
        folders = _choose(folders, split, directory)
    paths = folders or {None: directory}
    sets = {part: _image_set(path, class_names) for part, path in paths.items()}
    sets = leave_out_bad_files(sets, on_error) if verify else sets
    return sets if folders and split is None else sets.popitem()[1]


def _choose(folders, split, directory):
    if not folders:
        expected = (
            f"None, as {directory} has no folders `train`, `val` or `test` with class "
            "folders in them"
        )
        remedy = "Leave it out, and divide the set with `.split(fraction)`."
        raise ValueError(invalid("split", expected, split, remedy))
    chosen = SPLITS.get(str(split).lower())
    if chosen not in folders:
        raise ValueError(unknown_name("split", split, folders))
    return {chosen: folders[chosen]}


def _check_folder(directory):
    if not os.path.exists(directory):
        problem = "the path of an existing folder"
        remedy = _nearest_existing(directory)
    elif not os.path.isdir(directory):
        problem = "a folder, but this is a file"
        remedy = f"Pass the folder of the class folders, not {directory}."
    elif not _visible(directory):
        problem = "a folder with class folders, but it is empty"
        remedy = "Put the images of each class into a folder of its own."
    else:
        return
    raise ValueError(invalid("directory", problem, directory, remedy))


def _nearest_existing(directory):
    parent = os.path.dirname(directory)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    names = _quote(entry.name for entry in _visible(parent)[:10])
    return f"The part {parent} exists and holds: {names or 'nothing'}."


def _split_folders(directory):
    """The split folders by split, in the order of `SPLITS`; {} where none.

    A class may be called "train", so a split is a folder with folders in it;
    where there are no other names, all are splits, and lack their class folders.
    """
    splits = {}
    entries = _folders(directory)
    splits_only = all(entry.name.lower() in SPLITS for entry in entries)
    for entry in entries:
        split = SPLITS.get(entry.name.lower())
        if split is None or not (splits_only or _folders(entry.path)):
            continue
        if split in splits:
            raise ValueError(
                f"Two folders of {directory} hold the split {split!r}: "
                f"{os.path.basename(splits[split])!r} and {entry.name!r}. "
                "Remove or rename one."
            )
        splits[split] = entry.path
    return {split: splits[split] for split in SPLITS if split in splits}


def _check_same_classes(folders):
    classes = {
        split: {entry.name for entry in _folders(path)}
        for split, path in folders.items()
    }
    everything = set().union(*classes.values())
    lacking = [
        f"{split!r} lacks {_quote(sorted(everything - names))}"
        for split, names in classes.items()
        if names != everything
    ]
    if lacking:
        raise ValueError(
            f"The splits of {os.path.dirname(next(iter(folders.values())))} differ in "
            f"their class folders: {'; '.join(lacking)}. Each split needs a folder "
            "of the same name for each class."
        )


def _image_set(directory, class_names):
    folders = {entry.name: entry.path for entry in _folders(directory)}
    names = _check_names(directory, folders, class_names)
    files = {name: _images_below(folders[name]) for name in names}
    if empty := [name for name, members in files.items() if not members]:
        raise ValueError(
            f"Class folders without images in {directory}: {_quote(empty)}. Add images "
            "or remove the folders."
        )
    paths = [path for members in files.values() for path in members]
    labels = [i for i, members in enumerate(files.values()) for _ in members]
    return ImageSet.from_files(paths, labels, names)


def _check_names(directory, folders, class_names):
    if not folders:
        images = [e.path for e in _visible(directory) if looks_like_image(e.path)]
        inside = f" It holds {len(images)} images directly." if images else ""
        raise ValueError(
            f"The folder {directory} has no class folders.{inside} Put the images of "
            "each class into a folder of its own, named after the class."
        )
    remedy = f"Class folders in {directory}: {_quote(sorted(folders))}."
    if class_names is None:
        if len(folders) < 2:
            expected = "at least two class folders"
            raise ValueError(invalid("directory", expected, directory, remedy))
        return sorted(folders)
    class_names = list(class_names)
    for name in class_names:
        if name not in folders:
            raise ValueError(unknown_name("class_names", name, sorted(folders)))
    if len(set(class_names)) < max(2, len(class_names)):
        expected = "at least two names, none of them twice"
        raise ValueError(invalid("class_names", expected, class_names, remedy))
    return class_names


def _images_below(folder):
    images = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (os.path.join(place, n) for n in sorted(names) if n[0] != ".")
        images += [path for path in paths if looks_like_image(path)]
    return images


def _quote(names):
    return ", ".join(repr(name) for name in names)


def _visible(directory):
    """Entries of a folder but the hidden ones, sorted by name."""
    with os.scandir(directory) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(shown, key=lambda entry: entry.name)


def _folders(directory):
    # What macOS and Windows leave in unpacked archives is no class.
    return [
        entry
        for entry in _visible(directory)
        if entry.is_dir() and entry.name not in ("__MACOSX", "@eaDir")
    ]
