"""Decodes every file once, so that bad files show before training starts."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from keras.utils import Progbar

from keras_delta import _arguments
from keras_delta._errors import invalid, warn
from keras_delta.data.decode import BadImageError, read_image
from keras_delta.data.image_set import ImageSet
from keras_delta.data.missing import list_lines

# Below this many files the check is over before a progress bar is read.
PROGRESS_FROM = 500


def check_options(on_error, verify):
    """Refuses `on_error="skip"` where no file is looked at."""
    _arguments.choice("on_error", on_error, ("raise", "skip"))
    if on_error == "skip" and not verify:
        remedy = "Bad files are found, and so left out, by decoding all of them."
        expected = "True with `on_error='skip'`"
        raise ValueError(invalid("verify", expected, verify, remedy))


def leave_out_bad_files(sets, on_error):
    """Decodes all files of the sets.

    Args:
        sets: dict from a part to its `ImageSet`.
        on_error: "raise" for bad files, or "skip": leave them out and warn once.

    Returns:
        The same dict, without bad files.

    Raises:
        ValueError: for "raise", with the count and the first ten files; for a class
            of which no file can be read.
    """
    paths = [path for images in sets.values() for path in images.paths or ()]
    bad = dict(_find_bad_files(paths))
    if not bad:
        return sets
    listing = list_lines([f"{path}: {reason}" for path, reason in bad.items()])
    count = f"{len(bad)} of {len(paths)} image files cannot be read"
    if on_error == "raise":
        raise ValueError(
            f"{count}:\n{listing}\nRepair or remove them, or pass "
            '`on_error="skip"` to leave them out.'
        )
    warn(f"{count} and are left out; `.skipped` lists them:\n{listing}")
    return {part: _without(images, bad) for part, images in sets.items()}


def _find_bad_files(paths):
    """(path, reason) of files that cannot be decoded; Pillow releases the GIL."""
    progress = Progbar(len(paths)) if len(paths) > PROGRESS_FROM else None
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for path, reason in zip(paths, pool.map(_fault, paths), strict=True):
            if reason is not None:
                yield path, reason
            if progress is not None:
                progress.add(1)


def _fault(path):
    try:
        read_image(path)
    except BadImageError as error:
        return str(error)
    return None


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
                f"the first, {first}: {bad[first]}. Repair the files or leave the "
                "class out."
            )
    return ImageSet(rest._source, rest.labels, rest.class_names, skipped)
