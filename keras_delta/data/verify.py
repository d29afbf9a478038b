"""Decodes every file once, so that bad files are reported before training starts."""

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from keras_delta import _arguments
from keras_delta._errors import invalid, warn
from keras_delta._progress import Progress
from keras_delta.data.decode import BadImageError, read_image
from keras_delta.data.image_set import ImageSet
from keras_delta.data.missing import list_lines

SHOWN = 3  # files of each kind that a warning names
BLACK = 16  # of 255, the maximum of 12 bits in 16: no brighter image shows anything

# With fewer files, the check ends before anyone can read a progress bar.
PROGRESS_FROM = 500


def check_options(on_error, verify):
    """Rejects `on_error="skip"` if no file is checked."""
    _arguments.choice("on_error", on_error, ("raise", "skip"))
    if on_error == "skip" and not verify:
        remedy = "Bad files can only be detected and skipped by decoding all files."
        expected = "True with `on_error='skip'`"
        raise ValueError(invalid("verify", expected, verify, remedy))


def leave_out_bad_files(sets, on_error):
    """Decodes all files of the sets.

    Warns about valid images that are practically empty, and about duplicate files: in
    two sets, or with two labels in one set.

    Args:
        sets: dict from a part to its `ImageSet`.
        on_error: "raise" an error for bad files, or "skip" them with one warning.

    Returns:
        The same dict, without bad files.

    Raises:
        ValueError: for "raise", with the count and the first ten files; also if no
            file of a class can be read.
    """
    paths = [path for images in sets.values() for path in images.paths or ()]
    bad, odd = _look_at_files(paths)
    for remark, found in odd.items():
        warn(f"{len(found)} of {len(paths)} images {remark}: {_shown(found)}.")
    _warn_of_duplicates(sets, bad)
    if not bad:
        return sets
    listing = list_lines([f"{path}: {reason}" for path, reason in bad.items()])
    count = f"{len(bad)} of {len(paths)} image files cannot be read"
    if on_error == "raise":
        raise ValueError(
            f"{count}:\n{listing}\nRepair or remove them, or pass "
            '`on_error="skip"` to skip them.'
        )
    warn(f"{count} and are skipped; `.skipped` lists them:\n{listing}")
    return {part: _without(images, bad) for part, images in sets.items()}


def _shown(paths):
    return ", ".join(paths[:SHOWN]) + ", ..." * (len(paths) > SHOWN)


def _look_at_files(paths):
    """Dicts: path -> why it cannot be decoded; remark -> paths to which it applies."""
    progress = Progress(len(paths), "file", quiet=len(paths) <= PROGRESS_FROM)
    bad, odd = {}, defaultdict(list)
    # Pillow releases the GIL.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for path, (fault, remark) in zip(paths, pool.map(_look, paths), strict=True):
            if fault is not None:
                bad[path] = fault
            if remark is not None:
                odd[remark].append(path)
            progress.add(1)
    progress.end()
    return bad, odd


def _look(path):
    """(why a file cannot be decoded, or None; a remark on its content, or None)."""
    try:
        image = read_image(path)
    except BadImageError as error:
        return str(error), None
    darkest, brightest = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    if (darkest == brightest).all():
        return None, "have a single colour"
    if brightest.max() <= BLACK:
        return None, (
            f"are almost black, with no value above {brightest.max()} of 255 (perhaps "
            "12 bits in 16-bit files: multiply them by 16)"
        )
    return None, None


def _warn_of_duplicates(sets, bad):
    """Warn about identical files in two sets, or with two labels in one set.

    Files that cannot be read, such as links to nowhere, are left out.
    """
    places = defaultdict(list)
    for part, images in sets.items():
        for i, path in enumerate(images.paths or ()):
            if path in bad:
                continue
            label = None if images.labels is None else int(images.labels[i])
            places[os.path.getsize(path)].append((path, part, label))
    between, labels = [], []
    for alike in places.values():
        equal = defaultdict(list)
        for path, part, label in alike if len(alike) > 1 else ():
            equal[_digest(path)].append((path, part, label))
        for group in equal.values():
            first = group[0]
            other = next((g for g in group if g[1] != first[1]), None)
            if other is not None:
                between.append(f"{first[0]} = {other[0]}")
            other = next(
                (g for g in group if g[1:] != first[1:] and g[2] != first[2]), None
            )
            if other is not None:
                labels.append(f"{first[0]} = {other[0]}")
    if between:
        warn(
            f"{len(between)} images are in two splits, which makes the test too easy: "
            f"{_shown(between)}."
        )
    if labels:
        warn(f"{len(labels)} images occur twice, with two labels: {_shown(labels)}.")


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _without(images, bad):
    skipped = [(path, bad[path]) for path in images.paths or () if path in bad]
    if not skipped:
        return images
    good = [i for i, path in enumerate(images.paths) if path not in bad]
    rest = images.subset(np.array(good, np.int64))
    for label, (name, count) in enumerate(images.counts.items()):
        if count and not rest.counts[name]:
            first = images.paths[np.flatnonzero(images.labels == label)[0]]
            raise ValueError(
                f"None of the {count} image files of the class {name!r} can be read; "
                f"the first, {first}: {bad[first]}. Repair the files or remove the "
                "class."
            )
    return ImageSet(rest.source, rest.labels, rest.class_names, skipped)
