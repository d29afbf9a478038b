"""Archives of data sets: checked, and unpacked completely or not at all."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import tarfile
import zipfile
import zlib

from keras_delta import _disk
from keras_delta._progress import Progress

ENDINGS = (".tar", ".tgz", ".gz", ".zip")
CHECKSUMS = {64: "sha256", 32: "md5"}  # by their lengths
CHUNK = 2**20
MEGABYTE = 10**6
PROGRESS_FROM = 50  # megabytes; less ends before anyone can read a progress bar
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)


def unpack(archives, target, inner=(), remedy=""):
    """Unpacks archives into one new folder, which appears only when complete.

    If several processes call this, all others wait for the first. Nothing is written
    outside the folder, whatever the names in the archives.

    Args:
        archives: dict from `Path` of a file to its checksum, "" if unknown. A file
            that is not an archive (.mat, .txt) is copied.
        target: `Path` of the folder. If it exists, nothing is done.
        inner: nested archives to unpack as well, as paths in the folder.
        remedy: a sentence that says where to get the files.

    Raises:
        ValueError: if a file has another checksum, is damaged, or would write outside
            the folder; the message names it.
        PermissionError: if the folder is not writable.
    """
    try:
        with _disk.lock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                for path, checksum in archives.items():
                    _check(path, checksum, remedy)
                with _disk.make_folder(target) as folder:
                    _unpack_all(archives, folder, inner, remedy)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        names = ", ".join(repr(path.name) for path in archives)
        raise PermissionError(
            f"Cannot unpack {names} into '{target}': it is not writable. Unpack "
            "them by hand elsewhere, and pass that folder as `data_dir`."
        ) from error


def _check(path, checksum, remedy):
    if not checksum:
        return
    kind = CHECKSUMS[len(checksum)]
    digest = hashlib.new(kind, usedforsecurity=False)
    with _open(path, "Checking") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != checksum:
        raise ValueError(
            f"The file {path} is damaged, incomplete or another release: its "
            f"{kind.upper()} is {digest.hexdigest()}; expected {checksum}. Download it "
            f"again. {remedy} If you trust it, unpack it by hand."
        )


def _unpack_all(archives, folder, inner, remedy):
    for path in archives:
        if path.name.endswith(ENDINGS):
            _unpack(path, folder, remedy)
        else:
            shutil.copy(path, folder)
    for path in (folder / name for name in inner):
        if path.is_file():
            _unpack(path, path.parent, remedy)
            path.unlink()


def _unpack(path, folder, remedy):
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError(
            f"This Python cannot unpack {path} safely. Use 3.10.12, 3.11.4 or later, "
            "or unpack it by hand."
        )
    try:
        with _open(path, "Unpacking") as file:
            if zipfile.is_zipfile(path):
                zipfile.ZipFile(file).extractall(folder)  # whatever the names, inside
            else:
                with tarfile.open(fileobj=file) as tar:
                    tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise ValueError(
            f"The archive {path} was not unpacked: {error}. It is not the original "
            f"archive of the data set. {remedy}"
        ) from error
    except DAMAGED as error:
        # Disk errors have a number, those of gzip have none.
        if getattr(error, "errno", None) is not None:
            raise
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise ValueError(
            f"The archive {path} cannot be unpacked ({reason}): it is damaged or "
            f"incomplete. Download it again. {remedy}"
        ) from error


@contextlib.contextmanager
def _open(path, what):
    """The file; reading a large one moves a progress bar."""
    total = os.path.getsize(path) // MEGABYTE
    if total < PROGRESS_FROM:
        with open(path, "rb") as file:
            yield file
        return
    print(f"{what} {path} ({total} MB)")
    with _WithProgress(path, Progress(total, "MB")) as file:
        yield file


class _WithProgress(io.BufferedReader):
    def __init__(self, path, progress):
        super().__init__(io.FileIO(path))
        self._progress, self._bytes = progress, 0

    def read(self, size=-1):
        """Shows progress, also for parts that are read twice."""
        content = super().read(size)
        self._bytes += len(content)
        megabytes = min(self._bytes // MEGABYTE, self._progress.total)
        if megabytes > self._progress.done:
            self._progress.add(megabytes - self._progress.done)
        return content
