"""Where a data set lies: its folder, or archives that are unpacked to one."""

import os
from pathlib import Path

from keras_delta.data.archives import unpack
from keras_delta.data.missing import shown

UNPACKED = "unpacked"  # the folder below that of the data set


def folder_of(data_set, data_dir):
    """The folder of a data set, unpacked now where only its archives are there.

    Args:
        data_set: a `DataSet`.
        data_dir: folder in which to look.

    Returns:
        `Path`, or None where neither a folder nor an archive is there.

    Raises:
        FileNotFoundError: for a folder or a group of archives that is not complete;
            says what is missing.
        ValueError: for archives that cannot be unpacked.
    """
    candidates = _candidates(data_set, data_dir)
    lacks = {folder: _lacking(data_set, folder) for folder in candidates}
    for folder, missing in lacks.items():
        if not missing:
            return folder
    target = Path(data_dir) / data_set.key / UNPACKED
    archives = _archives(data_set, data_dir)
    remedy = f"The page of the data set: {data_set.page}."
    if archives:
        unpack(archives, target, remedy)
        inside = [target, *(target / root for root in data_set.roots)]
        for folder in inside:
            if not _lacking(data_set, folder):
                return folder
        raise FileNotFoundError(
            f"{data_set.title} was unpacked to {target}, where a part is missing: "
            f"{shown(_lacking(data_set, _fullest(data_set, inside)))}. Remove that "
            f"folder, and replace the archives. {remedy}"
        )
    # A folder that has its name by chance, such as one of TensorFlow Datasets, has
    # none of the files.
    named = (data_set.key, UNPACKED, *data_set.roots)
    partial = [
        folder
        for folder, missing in lacks.items()
        if len(missing) < len(data_set.needs) and folder.name in named
    ]
    if partial:
        folder = _fullest(data_set, partial)
        raise FileNotFoundError(
            f"{data_set.title} in {folder} is not complete. Missing: "
            f"{shown(lacks[folder])}. {remedy}"
        )
    return None


def wanted(data_set, data_dir):
    """Sentences on what was looked for, and where, for the error of a missing set."""
    needs = [" or ".join(_alternatives(need)) for need in data_set.needs]
    groups = [" + ".join(a.file for a in group) for group in data_set.archives]
    roots = [data_set.key, *data_set.roots]
    return (
        f"Looked in {data_dir} and its folders {shown(roots)} for a folder with "
        f"{shown(needs)}, and in {data_dir} and {os.path.join(data_dir, data_set.key)} "
        f"for the archive {' or for '.join(groups)}"
    )


def _candidates(data_set, data_dir):
    base = Path(data_dir)
    bases = [base, base / data_set.key, base / data_set.key / UNPACKED]
    # The user may point at the folder of images itself.
    if any(base.name in _alternatives(need) for need in data_set.needs):
        bases.append(base.parent)
    found = [b / root for b in bases for root in ("", *data_set.roots)]
    return list(dict.fromkeys(found))


def _lacking(data_set, folder):
    return [
        " or ".join(_alternatives(need))
        for need in data_set.needs
        if not any((folder / name).exists() for name in _alternatives(need))
    ]


def _fullest(data_set, folders):
    return min(folders, key=lambda folder: len(_lacking(data_set, folder)))


def _alternatives(need):
    return (need,) if isinstance(need, str) else need


def _archives(data_set, data_dir):
    """Dict from path to `Archive` of the first group whose main file is there."""
    places = (Path(data_dir), Path(data_dir) / data_set.key)
    for group in data_set.archives:
        found = {}
        for archive in group:
            paths = [place / archive.file for place in places]
            path = next((p for p in paths if p.is_file()), None)
            if path is not None:
                found[path] = archive
        if group[0] not in found.values():
            continue
        missing = [a.file for a in group if a not in found.values()]
        if missing:
            raise FileNotFoundError(
                f"{data_set.title} cannot be unpacked: beside "
                f"{shown([str(path) for path in found])}, it needs {shown(missing)}. "
                f"The page of the data set: {data_set.page}."
            )
        return found
    return {}
