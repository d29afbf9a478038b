"""Finds a data set: its folder, or archives that are unpacked to one."""

import os
from pathlib import Path

from keras_delta.data.archives import unpack
from keras_delta.data.catalogue import CHECKSUMS
from keras_delta.data.missing import quote

UNPACKED = "unpacked"  # the folder below that of the data set


def find_folder(data_set, data_dir):
    """The folder of a data set, unpacked now if only its archives exist.

    Args:
        data_set: a `DataSet`.
        data_dir: folder in which to look.

    Returns:
        `Path`, or None if neither a folder nor an archive exists.

    Raises:
        FileNotFoundError: if a folder or a group of archives is incomplete; the
            message says what is missing.
        ValueError: if an archive cannot be unpacked.
    """
    folders = _candidates(data_set, data_dir)
    for folder in folders:
        if not _lacks(data_set, folder):
            return folder
    remedy = f"The page of the data set: {data_set.page}."
    if archives := _find_archives(data_set, data_dir, remedy):
        target = Path(data_dir) / data_set.key / UNPACKED
        unpack(archives, target, data_set.inner, remedy)
        inside = [target, *(target / root for root in data_set.roots)]
        folder = _fullest(data_set, inside)
        if missing := _lacks(data_set, folder):
            raise FileNotFoundError(
                f"{data_set.title} was unpacked to {target}, but a part is missing: "
                f"{quote(missing)}. Remove that folder and replace the archives. "
                f"{remedy}"
            )
        return folder
    # A folder that happens to have the name, such as one of TensorFlow Datasets, has
    # none of the files.
    named = (data_set.key, UNPACKED, *data_set.roots)
    folder = _fullest(data_set, [f for f in folders if f.name in named])
    missing = _lacks(data_set, folder)
    if len(missing) < len(data_set.needs):
        raise FileNotFoundError(
            f"{data_set.title} in {folder} is incomplete. Missing: "
            f"{quote(missing)}. {remedy}"
        )
    return None


def describe(data_set, data_dir):
    """Describes the search for a data set, for the error if it is missing."""
    needs = [" or ".join(_alternatives(need)) for need in data_set.needs]
    archives = " or for ".join(" + ".join(group) for group in data_set.archives)
    roots = [data_set.key, *data_set.roots]
    return (
        f"Looked in {data_dir} and its folders {quote(roots)} for a folder with "
        f"{quote(needs)}, and in {data_dir} and {os.path.join(data_dir, data_set.key)} "
        f"for the archive {archives}"
    )


def _candidates(data_set, data_dir):
    base = Path(data_dir)
    bases = [base, base / data_set.key, base / data_set.key / UNPACKED]
    # The user may point at the folder of images itself.
    if any(base.name in _alternatives(need) for need in data_set.needs):
        bases.append(base.parent)
    folders = [b / root for b in bases for root in ("", *data_set.roots)]
    return list(dict.fromkeys(folders))


def _lacks(data_set, folder):
    return [
        " or ".join(_alternatives(need))
        for need in data_set.needs
        if not any((folder / name).exists() for name in _alternatives(need))
    ]


def _fullest(data_set, folders):
    return min(folders, key=lambda folder: len(_lacks(data_set, folder)))


def _alternatives(need):
    return (need,) if isinstance(need, str) else need


def _find_archives(data_set, data_dir, remedy):
    """Dict from path to checksum for the first group whose main file exists."""
    places = (Path(data_dir), Path(data_dir) / data_set.key)
    for group in data_set.archives:
        paths = {
            file: next((p / file for p in places if (p / file).is_file()), None)
            for file in group
        }
        if next(iter(paths.values())) is None:
            continue
        missing = [file for file, path in paths.items() if path is None]
        if missing:
            there = [str(path) for path in paths.values() if path is not None]
            raise FileNotFoundError(
                f"{data_set.title} cannot be unpacked: besides {quote(there)}, it also "
                f"needs {quote(missing)}. {remedy}"
            )
        return {path: CHECKSUMS.get(file, "") for file, path in paths.items()}
    return {}
