"""The folder of a cache: who uses it, and what it was made for."""

import contextlib
import json
import os
import re
import socket
from pathlib import Path

from keras_delta._errors import invalid
from keras_delta.caching.records import RecordFile

try:
    import fcntl
except ImportError:  # Windows: there, two runs in one folder go unnoticed
    fcntl = None

FORMAT = "keras_delta.caching/1"


class Folder:
    """`directory/<fingerprint>/`, locked for this process while it is open.

    Its files: `meta.json`, `maps.data`, `maps.index` (see `RecordFile`) and `lock`.
    The lock belongs to the open file, so it ends with the process, however that
    ends.

    Args:
        directory: where the folders of all sources are; made if its parent exists.
        fingerprint: name of the source.

    Raises:
        ValueError: for a folder that cannot be made or written.
        RuntimeError: where another process uses the folder.
    """

    def __init__(self, directory, fingerprint):
        if not re.fullmatch(r"\w[\w.-]{0,127}", fingerprint, re.ASCII):
            expected = "at most 128 letters, digits, `_`, `-` and `.`"
            raise ValueError(invalid("fingerprint", expected, fingerprint))
        self.path = Path(directory) / fingerprint
        self._lock = None
        try:
            Path(directory).mkdir(exist_ok=True)
            self.path.mkdir(exist_ok=True)
            # Not "w": what is in it says who has the lock.
            self._lock = open(self.path / "lock", "a+", encoding="utf-8")  # noqa: SIM115
            self._take_lock()
            self._try_writing()
        except OSError as e:
            self.close()
            raise ValueError(
                invalid(
                    "directory",
                    "a folder that can be written, or a new one in a folder that "
                    "exists",
                    str(directory),
                    f"Pass another, or None to keep the maps in memory. Reason: {e}",
                )
            ) from e
        except BaseException:
            self.close()
            raise

    def _take_lock(self):
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.seek(0)
                user = self._lock.read().strip() or "another process"
                raise RuntimeError(
                    f"The folder '{self.path}' is in use by {user}. Two runs cannot "
                    "write to one cache at once: pass another `directory`, or wait "
                    "until that process has ended."
                ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def _try_writing(self):
        file = self.path / "write_test"
        try:
            with open(file, "wb") as opened:
                opened.write(bytes(2**16))
                opened.flush()
                os.fsync(opened.fileno())
        finally:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def shapes(self, fingerprint, dtype, spec):
        """The shapes of the maps that are in the folder; None for an empty one.

        Args:
            fingerprint, dtype: what the maps must have been made for.
            spec: dict tap -> shape of a sample's map, None where it is open.

        Raises:
            ValueError: for maps of something else, or a damaged `meta.json`.
        """
        file = self.path / "meta.json"
        remedy = (
            "Pass another `directory`, or delete the folder if it is of no more use."
        )
        if not file.exists():
            if (self.path / "maps.data").exists():
                raise ValueError(
                    f"'{self.path}' has maps, but no meta.json that says what they are "
                    f"of. {remedy}"
                )
            return None
        expected = {"format": FORMAT, "fingerprint": fingerprint, "dtype": dtype}
        try:
            found = dict(json.loads(file.read_text("utf-8")))
            differing = {k: v for k, v in expected.items() if found.get(k) != v}
            if not differing:
                shapes = {str(k): tuple(map(int, v)) for k, v in found["taps"]}
        except Exception as e:
            raise ValueError(
                f"'{file}' cannot be read: it is damaged or another kind of file. "
                f"{remedy}"
            ) from e
        if not differing and not fits(shapes, spec):
            differing, found = {"taps": spec}, {"taps": shapes}
        if differing:
            what = "; ".join(
                f"{key}: {found.get(key)} there, {value} now"
                for key, value in differing.items()
            )
            raise ValueError(
                f"The cache '{self.path}' was made for something else ({what}). "
                f"{remedy}"
            )
        return shapes

    def write_meta(self, fingerprint, dtype, shapes):
        """Say what the folder is made for; before the first map."""
        meta = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "dtype": dtype,
            "taps": [[tap, list(shape)] for tap, shape in shapes.items()],
        }
        temporary = self.path / "meta.json.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / "meta.json")

    def records(self, size):
        """The folder's `RecordFile`, of records of `size` bytes."""
        with contextlib.ExitStack() as stack:
            files = []
            for name in ("maps.data", "maps.index"):
                handle = os.open(
                    self.path / name,
                    os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0),
                    0o666,
                )
                files.append(stack.enter_context(open(handle, "r+b", buffering=0)))
            found = RecordFile(*files, size)
            stack.pop_all()
        return found

    def close(self):
        """Let the next one in."""
        if self._lock is not None:
            self._lock.close()


def fits(shapes, spec):
    """Whether shapes agree with a spec, in which None stands for any size."""
    return list(shapes) == list(spec) and all(
        len(shapes[tap]) == len(spec[tap])
        and all(
            b is None or a == b for a, b in zip(shapes[tap], spec[tap], strict=True)
        )
        for tap in spec
    )
