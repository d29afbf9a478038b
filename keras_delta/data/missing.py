"""Checks for what a copy of a data set lacks, and the messages about it."""

import os

from keras_delta._errors import warn

NAMED = 10  # files and classes that a message names


def keep_present(root, parts, title, complete):
    """Keeps the files that exist.

    Args:
        root: folder of the paths.
        parts: dict from a part to its (path, label).
        title: title of the data set, for messages.
        complete: whether to raise an error if a file is missing. Otherwise a warning
            lists the missing files, and only a part without any files is an error.

    Returns:
        The same dict, with the files that exist and their full paths.
    """
    listed = [path for files in parts.values() for path, _ in files]
    # Folders are listed, as checking each file is slow on network drives.
    folders = {folder: None for folder in map(os.path.dirname, listed)}
    for folder in folders:
        whole = os.path.join(root, folder)
        folders[folder] = set(os.listdir(whole)) if os.path.isdir(whole) else None

    def is_there(path):
        folder, name = os.path.split(path)
        return name in (folders[folder] or ())

    kept = {
        part: [(os.path.join(root, path), y) for path, y in files if is_there(path)]
        for part, files in parts.items()
    }
    if missing := [path for path in listed if not is_there(path)]:
        gone = sorted(name for name, held in folders.items() if held is None)
        whole = f"\nMissing folders: {quote(gone)}." if gone else ""
        text = (
            f"{len(missing)} of {len(listed)} images listed for {title} "
            f"are not in {root}:\n{list_lines(missing)}{whole}"
        )
        if complete or not all(kept[part] for part, files in parts.items() if files):
            raise ValueError(
                f"{text}\nUnpack the archive again, or pass `check_sizes=False` to "
                "read only the images that exist."
            )
        warn(f"{text}\nThey are skipped.")
    return kept


def check_sizes(sets, classes, expected, title, place):
    """Raises an error if a data set does not have the expected sizes.

    These are `classes` and `expected`, a dict from a part to a number of images;
    `title` and `place` are for the message.
    """
    wrong = []
    names = next(iter(sets.values())).class_names
    if len(names) != classes:
        wrong.append(f"{len(names)} classes instead of {classes}")
    for part, images in sets.items():
        if len(images) != expected[part]:
            fewest = sorted(images.counts.items(), key=lambda item: item[1])
            fewest = ", ".join(f"{c!r} {n}" for c, n in fewest[:NAMED])
            of = "" if part == "pool" else f"{part} "
            wrong.append(
                f"{len(images)} {of}images instead of {expected[part]} (classes with "
                f"the fewest: {fewest})"
            )
    if wrong:
        raise ValueError(
            f"{title} from {place} has unexpected sizes: {'; '.join(wrong)}. "
            "Unpack the archive again, or pass `check_sizes=False` to use part of the "
            "data set."
        )


def quote(names):
    """The first ten names, quoted, and the number of the others."""
    names = [repr(str(name)) for name in names]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def list_lines(lines):
    """The first ten lines, indented, and the number of the others."""
    more = f"\n  ... and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
    return "\n".join(f"  {line}" for line in lines[:NAMED]) + more
