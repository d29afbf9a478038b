"""Decodes every file once, so that bad files show before training starts."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

from keras.utils import Progbar

from keras_delta.data.decode import BadImageError, read_image

# Below this many files the check is over before a progress bar is read.
PROGRESS_FROM = 500
NAMED_FILES = 10


def find_bad_files(paths):
    """Decodes all files in a thread pool (Pillow releases the GIL).

    Args:
        paths: sequence of paths. For more than 500 a progress bar is shown.

    Returns:
        List of (path, reason) of the files that cannot be decoded, in the
        order of `paths`.
    """
    progress = Progbar(len(paths)) if len(paths) > PROGRESS_FROM else None
    bad = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for path, reason in zip(paths, pool.map(_fault, paths), strict=True):
            if reason is not None:
                bad.append((path, reason))
            if progress is not None:
                progress.add(1)
    return bad


def report_bad_files(bad, checked, on_error):
    """Raises for bad files, or warns once, as the user asked.

    Args:
        bad: list of (path, reason).
        checked: how many files were checked.
        on_error: "raise" or "skip".

    Raises:
        ValueError: for "raise", with the count and the first ten files.
    """
    if not bad:
        return
    first = "\n".join(f"  {path}: {reason}" for path, reason in bad[:NAMED_FILES])
    more = f"\n  ... and {len(bad) - NAMED_FILES} more"
    listing = first + (more if len(bad) > NAMED_FILES else "")
    count = f"{len(bad)} of {checked} image files cannot be read"
    if on_error == "raise":
        raise ValueError(
            f"{count}:\n{listing}\nRepair or remove them, or pass "
            '`on_error="skip"` to leave them out.'
        )
    warnings.warn(
        f"{count} and are left out; `.skipped` lists them:\n{listing}", stacklevel=4
    )


def _fault(path):
    try:
        read_image(path)
    except BadImageError as error:
        return str(error)
    return None
