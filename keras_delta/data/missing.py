"""What a copy of a data set lacks, and in which words it is said."""

import os

from keras_delta._errors import warn

NAMED = 10  # files and classes that a message names


def present(root, parts, title, complete):
    """Keeps the files that are there.

    Args:
        root: folder of the paths.
        parts: dict from a part to its (path, label).
        title: of the data set, for messages.
        complete: whether a file that is not there is an error. Else it is left out, and
            a warning says how many are.

    Returns:
        The same dict, with the files that are there and their whole paths.

    Raises:
        ValueError: with `complete`, or where nothing of a part is there; counts the
            files that are not there, names the first ten, and the class folders that
            are not there at all.
    """
    listed = [path for files in parts.values() for path, _ in files]
    folders = {}
    for path in listed:
        folder = os.path.dirname(path)
        if folder not in folders:
            whole = os.path.join(root, folder)
            folders[folder] = set(os.listdir(whole)) if os.path.isdir(whole) else None
    missing = {p for p in listed if not _is_in(folders, p)}
    if missing:
        first = [path for path in listed if path in missing][:NAMED]
        rest = len(missing) - len(first)
        more = f"\n  ... and {rest} more" if rest else ""
        gone = sorted(name for name, held in folders.items() if held is None)
        whole = f"\nFolders that are not there: {shown(gone)}." if gone else ""
        names = "\n".join(f"  {path}" for path in first)
        text = (
            f"{len(missing)} of {len(listed)} images of {title} that its lists name "
            f"are not in {root}:\n{names}{more}{whole}"
        )
        if complete or any(
            files and all(path in missing for path, _ in files)
            for files in parts.values()
        ):
            raise ValueError(
                f"{text}\nUnpack the archive again, or pass `check_sizes=False` to "
                "read the images that are there."
            )
        warn(f"{text}\nThey are left out.")
    return {
        part: [(os.path.join(root, p), label) for p, label in files if p not in missing]
        for part, files in parts.items()
    }


def check_sizes(sets, classes, expected, title, place):
    """Refuses a data set of other sizes than it should have.

    Args:
        sets: dict from a part to its `ImageSet`.
        classes: how many classes there should be.
        expected: dict from a part to how many images.
        title: of the data set, for messages.
        place: where it comes from.

    Raises:
        ValueError: says what differs, and names the classes with the fewest images.
    """
    some = next(iter(sets.values()))
    wrong = []
    if len(some.class_names) != classes:
        wrong.append(f"{len(some.class_names)} classes instead of {classes}")
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
            f"{title} from {place} has other sizes than it should: {'; '.join(wrong)}. "
            "Unpack the archive again, or pass `check_sizes=False` for a part of the "
            "data set."
        )


def shown(names):
    """The first ten names, quoted, and how many more there are."""
    names = [repr(name) if isinstance(name, str) else str(name) for name in names]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _is_in(folders, path):
    held = folders[os.path.dirname(path)]
    return held is not None and os.path.basename(path) in held
