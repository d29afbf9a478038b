"""Finds the image files below a folder."""

import os

from keras_delta.data.decode import IMAGE_EXTENSIONS, looks_like_image


def find(folder):
    """Image files below a folder, as relative paths in byte order.

    Files that look like images count, see `keras_delta.data.decode.looks_like_image`;
    hidden files and folders do not. Links are followed, but each folder is entered
    only once. Broken links and folders that cannot be opened are also listed, so that
    they are reported.

    Returns (folder, list of strings).
    """
    if folder.is_file():
        return folder.parent, [folder.name]
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(
            f"'{folder}' {what}. FOLDER is a folder of images, or one file."
        )
    images, entered, others = [], set(), 0

    def unreadable(error):
        images.append(error.filename)

    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        shown = [name for name in folders if not name.startswith(".")]
        # Links last, so that a folder is found under its real name first.
        folders[:] = sorted(
            shown, key=lambda name: (os.path.islink(os.path.join(place, name)), name)
        )
        paths = [os.path.join(place, n) for n in names if not n.startswith(".")]
        claiming = [path for path in paths if _claims(path)]
        images += claiming
        others += len(paths) - len(claiming)
    if not images:
        files = f"{others} other files" if others else "it is empty"
        raise ValueError(f"No images in '{folder}' ({files}).")
    return folder, sorted((os.path.relpath(p, folder) for p in images), key=os.fsencode)


def _claims(path):
    """Whether to read a path: never a pipe or a device, which may block."""
    if os.path.isfile(path):
        return looks_like_image(path)
    broken = os.path.islink(path) and not os.path.exists(path)
    return broken and os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS
