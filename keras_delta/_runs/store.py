"""Results by hash, in files that any number of processes read and write."""

import hashlib
import json
from pathlib import Path

from keras_delta import _disk
from keras_delta._errors import warn


def digest(value):
    """16 hexadecimal digits of a value for JSON, the same in every process."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _plain(value):
    """NumPy's numbers are those of Python."""
    return value.item() if hasattr(value, "item") else str(value)


class Records:
    """Values for JSON by name: one file each, written as a whole and never changed.

    Whoever is killed, when and however, every file is a whole one.

    Args:
        folder: `Path`; made when something is written.
        locks: `Path` of the folder for claims; default: the same.
        is_whole: function of a value: False for what this version cannot have
            written.
    """

    def __init__(self, folder, locks=None, is_whole=lambda value: True):
        self.folder, self._locks = Path(folder), Path(locks or folder)
        self._is_whole = is_whole
        self._known, self._damaged = {}, set()

    def get(self, name):
        """The value of a name; None where there is none.

        A file that is damaged counts as none, with a warning: what it held is computed
        again.
        """
        if name not in self._known:
            path = self._path(name)
            try:
                value = json.loads(path.read_text("utf-8"))
            except FileNotFoundError:
                return None
            except (OSError, ValueError):
                value = None
            if value is None or not self._is_whole(value):
                if name not in self._damaged:
                    self._damaged.add(name)
                    warn(f"{path} is damaged: its cell is treated as not trained.")
                return None
            self._known[name] = value
        return self._known[name]

    def put(self, name, value, indent=None):
        """Keep a value."""
        _disk.write_json(self._path(name), value, indent)
        self._known[name] = value

    def forget(self, name):
        """Remove a value."""
        self._path(name).unlink(missing_ok=True)
        self._known.pop(name, None)

    def names(self):
        """All names for which there is a file, in order."""
        return sorted(p.stem for p in self.folder.glob("[!.]*.json"))

    def claim(self, name, wait=False):
        """Context: whether this process alone works on a name, until it ends."""
        return _disk.lock(self._locks / name, wait)

    def _path(self, name):
        return self.folder / f"{name}.json"


def once(lock, load, compute, save):
    """What `compute` gives, by whichever process comes first; from its file later."""
    if (value := load()) is None:
        with _disk.lock(lock):
            if (value := load()) is None:
                value = compute()
                save(value)
                value = load() or value  # a full disk may have kept it out
    return value
