"""`from_directory`: a folder of class folders as an `ImageSet`."""

import os

from keras_delta._errors import invalid, unknown_name
from keras_delta.data.decode import looks_like_image
from keras_delta.data.image_set import ImageSet
from keras_delta.data.sources import FileSource
from keras_delta.data.verify import find_bad_files, report_bad_files

# Folder names, in lower case, and the split that they hold.
SPLITS = {
    "train": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "test": "test",
}


def from_directory(
    directory, split=None, *, on_error="raise", verify=True, class_names=None
):
    """Reads images that lie in one folder per class.

    Two layouts are known: class folders in `directory` itself, or class folders
    in its sub-folders `train`, `val` (or `validation`, `valid`) and `test`. All
    images below a class folder count, at any depth (links to folders are followed
    for class folders only). A file is taken for an
    image when its extension or its content says so; hidden files and all
    others (`.txt`, `Thumbs.db`, ...) are ignored. The content decides the
    format: a PNG called `.jpg` is fine.

    Args:
        directory: path of the folder.
        split: "train", "val" or "test", for that part of a folder with splits.
            None gives all of them, or the set of a folder without splits.
        on_error: what to do with files that cannot be read. "raise" stops and
            lists them, "skip" leaves them out, warns once, and lists them in
            `ImageSet.skipped`.
        verify: whether to decode each file once, now. With False, a bad file
            shows in the epoch that meets it, as an error that names it.
        class_names: the class folders to take, in the order of their labels. By
            default all, sorted by name.

    Returns:
        `ImageSet`; for a folder with splits and `split=None`, a dict from
        "train", "val" and "test", as far as they exist, to `ImageSet`.

    Raises:
        ValueError: when the folder is missing, is a file or is empty, has no
            class folders or a single one, when a class is empty, when the splits
            differ in their classes, and for files that cannot be read.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(unknown_name("on_error", on_error, ("raise", "skip")))
    if on_error == "skip" and not verify:
        raise ValueError(
            invalid(
                "verify",
                "True with `on_error='skip'`",
                verify,
                "Bad files are found, and so left out, by decoding all of them.",
            )
        )
    directory = os.path.abspath(os.path.expanduser(directory))
    _check_folder(directory)
    folders = _split_folders(directory)
    if not folders:
        if split is not None:
            raise ValueError(
                invalid(
                    "split",
                    f"None, as {directory} has no folders "
                    "`train`, `val` or `test` with class folders in them",
                    split,
                    "Leave it out, and divide the set with `.split(fraction)`.",
                )
            )
        return _read_splits({None: directory}, class_names, verify, on_error)[None]
    if split is None:
        return _read_splits(folders, class_names, verify, on_error)
    chosen = SPLITS.get(str(split).lower())
    if chosen not in folders:
        raise ValueError(unknown_name("split", split, folders))
    _same_classes(folders)
    one = {chosen: folders[chosen]}
    return _read_splits(one, class_names, verify, on_error)[chosen]


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
    names = ", ".join(repr(entry.name) for entry in _visible(parent)[:10])
    return f"The part {parent} exists and holds: {names or 'nothing'}."


def _split_folders(directory):
    """The split folders by split, in the order of `SPLITS`; {} where none.

    A class may be called "train", so a split is a folder with folders in it;
    where there are no other names, all are splits, and lack their class folders.
    """
    found = {}
    entries = _folders(directory)
    splits_only = all(entry.name.lower() in SPLITS for entry in entries)
    for entry in entries:
        split = SPLITS.get(entry.name.lower())
        if split is None or not (splits_only or _folders(entry.path)):
            continue
        if split in found:
            raise ValueError(
                f"Two folders of {directory} hold the split {split!r}: "
                f"{os.path.basename(found[split])!r} and {entry.name!r}. "
                "Remove or rename one."
            )
        found[split] = entry.path
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _read_splits(folders, class_names, verify, on_error):
    """Reads several folders that must agree in their classes."""
    _same_classes(folders)
    files = {split: _class_files(path, class_names) for split, path in folders.items()}
    paths = [
        path
        for classes in files.values()
        for members in classes.values()
        for path in members
    ]
    bad = find_bad_files(paths) if verify else []
    report_bad_files(bad, len(paths), on_error)
    return {split: _image_set(classes, dict(bad)) for split, classes in files.items()}


def _same_classes(folders):
    """Refuses splits of which one lacks a class of another."""
    classes = {
        split: {entry.name for entry in _folders(path)}
        for split, path in folders.items()
    }
    everything = set().union(*classes.values())
    lacking = [
        f"{split!r} lacks {', '.join(repr(n) for n in sorted(everything - names))}"
        for split, names in classes.items()
        if names != everything
    ]
    if lacking:
        raise ValueError(
            f"The splits of {os.path.dirname(next(iter(folders.values())))} differ in "
            f"their class folders: {'; '.join(lacking)}. Each split needs a folder "
            "of the same name for each class."
        )


def _class_files(directory, class_names):
    """Dict from class name to its image files, sorted."""
    folders = {entry.name: entry.path for entry in _folders(directory)}
    if not folders:
        images = [e.path for e in _visible(directory) if looks_like_image(e.path)]
        inside = f" It holds {len(images)} images directly." if images else ""
        raise ValueError(
            f"The folder {directory} has no class folders.{inside} Put the images of "
            "each class into a folder of its own, named after the class."
        )
    names = sorted(folders) if class_names is None else list(class_names)
    for name in names:
        if name not in folders:
            raise ValueError(unknown_name("class_names", name, sorted(folders)))
    if len(set(names)) < max(2, len(names)):
        expected = "at least two class folders"
        argument, received = "directory", directory
        if class_names is not None:
            expected = "at least two names, none of them twice"
            argument, received = "class_names", class_names
        raise ValueError(
            invalid(
                argument,
                expected,
                received,
                f"Class folders in {directory}: "
                f"{', '.join(repr(n) for n in sorted(folders))}.",
            )
        )
    files = {name: _images_below(folders[name]) for name in names}
    empty = [name for name, members in files.items() if not members]
    if empty:
        raise ValueError(
            f"Class folders without images in {directory}: "
            f"{', '.join(repr(n) for n in empty)}. Add images or remove the folders."
        )
    return files


def _images_below(folder):
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (os.path.join(place, n) for n in sorted(names) if n[0] != ".")
        found += [path for path in paths if looks_like_image(path)]
    return found


def _image_set(classes, bad):
    paths, labels = [], []
    for label, (name, members) in enumerate(classes.items()):
        good = [path for path in members if path not in bad]
        if not good:
            raise ValueError(
                f"None of the {len(members)} image files of the class {name!r} can be "
                f"read; the first, {members[0]}: {bad[members[0]]}. Repair the files "
                "or leave the class out with `class_names`."
            )
        paths += good
        labels += [label] * len(good)
    members = [path for paths in classes.values() for path in paths]
    skipped = [(path, bad[path]) for path in members if path in bad]
    return ImageSet(FileSource(paths), labels, list(classes), skipped)


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
