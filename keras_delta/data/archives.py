"""Archives of data sets: checked, and unpacked as a whole or not at all."""

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from keras.utils import Progbar

from keras_delta import _disk

ENDINGS = (".tar", ".tgz", ".gz", ".zip")
CHUNK = 2**20
MEGABYTE = 10**6
PROGRESS_FROM = 50  # megabytes; less is done before a progress bar is read
# Only Pythons that unpack safely have it.
OUTSIDE = getattr(tarfile, "FilterError", tarfile.TarError)
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)


@dataclasses.dataclass(frozen=True)
class Archive:
    """One file of a data set's download.

    Attributes:
        file: its name. A file that is no archive (.mat, .txt) is copied.
        sha256: its checksum, "" where none is known.
        md5: the same, for those known by MD5 only.
        inner: archives inside of it that are unpacked too, as paths in it.
    """

    file: str
    sha256: str = ""
    md5: str = ""
    inner: tuple = ()


def unpack(archives, target, remedy=""):
    """Unpacks archives into one new folder.

    The folder appears when all of them are unpacked, by one renaming: a process that
    is killed leaves none, and what it left is removed by the next. Several processes
    wait for the first. Nothing is written outside of the folder, whatever the names
    in the archives.

    Args:
        archives: dict from the path of a file to its `Archive`.
        target: `Path` of the folder. Where it is there already, nothing is done.
        remedy: a sentence that says where the files are to be had.

    Raises:
        ValueError: for a file with another checksum, a damaged one, and one that
            would write outside of the folder; names it.
        PermissionError: where nothing can be written.
    """
    try:
        with _disk.lock(target.with_name(f".{target.name}.lock")):
            _sweep(target)
            if not target.exists():
                _unpack_all(archives, target, remedy)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        names = ", ".join(repr(os.path.basename(path)) for path in archives)
        raise PermissionError(
            f"Cannot unpack {names} into '{target}': it cannot be written to. Unpack "
            "them by hand elsewhere, and pass that folder as `data_dir`."
        ) from error


def check(path, archive, remedy=""):
    """Refuses a file with another checksum than the known one.

    Args:
        path: of the file.
        archive: its `Archive`; without a checksum, any file is right.
        remedy: a sentence that says where the file is to be had.

    Raises:
        ValueError: names the file and both checksums.
    """
    kind = "sha256" if archive.sha256 else "md5"
    expected = getattr(archive, kind)
    if not expected:
        return
    digest = hashlib.new(kind, usedforsecurity=False)
    with _progress(path, "Checking") as show, open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            show(file.tell())
    if digest.hexdigest() != expected:
        raise ValueError(
            f"The file {path} is damaged, incomplete or another release: its "
            f"{kind.upper()} is {digest.hexdigest()}, expected {expected}. Download it "
            f"again. {remedy} If you trust it, unpack it by hand."
        )


def _unpack_all(archives, target, remedy):
    for path, archive in archives.items():
        check(path, archive, remedy)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for path, archive in archives.items():
            if not path.name.endswith(ENDINGS):
                shutil.copyfile(path, temporary / archive.file)
                continue
            _unpack(path, temporary, remedy)
            for name in archive.inner:
                inner = temporary / name
                if inner.is_file():
                    _unpack(inner, inner.parent, remedy)
                    inner.unlink()
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack(path, folder, remedy):
    try:
        with _progress(path, "Unpacking") as show:
            (_unzip if zipfile.is_zipfile(path) else _untar)(path, folder, show)
    except OUTSIDE as error:
        raise ValueError(
            f"The archive {path} is not unpacked: {error}. It is not the data set's "
            f"own. {remedy}"
        ) from error
    except DAMAGED as error:
        raise _damaged(path, error, remedy) from error
    except OSError as error:
        # gzip's own error has no number, those of the disk have one.
        if error.errno is not None:
            raise
        raise _damaged(path, error, remedy) from error


def _damaged(path, error, remedy):
    reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
    return ValueError(
        f"The archive {path} cannot be unpacked ({reason}): it is damaged or "
        f"incomplete. Download it again. {remedy}"
    )


def _untar(path, folder, show):
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError(
            f"This Python cannot unpack {path} safely. Use 3.10.12, 3.11.4 or a later "
            "one, or unpack it by hand."
        )
    with open(path, "rb") as raw, tarfile.open(fileobj=raw) as tar:
        for member in tar:
            tar.extract(member, folder, filter="data")
            show(raw.tell())


def _unzip(path, folder, show):
    with zipfile.ZipFile(path) as archive:
        done = 0
        for member in archive.infolist():
            parts = member.filename.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or ":" in parts[0]:
                raise OUTSIDE(
                    f"{member.filename!r} would be written outside of the folder"
                )
            archive.extract(member, folder)
            done += member.compress_size
            show(done)


@contextlib.contextmanager
def _progress(path, what):
    """A function of the bytes done, which shows them for large _disk."""
    total = max(1, os.path.getsize(path) // MEGABYTE)
    if total < PROGRESS_FROM:
        yield lambda done: None
        return
    print(f"{what} {path} ({total} MB)")
    bar, last = Progbar(total, unit_name="MB"), 0

    def show(done):
        nonlocal last
        done = min(done // MEGABYTE, total - 1)
        if done > last:
            bar.update(done)
            last = done

    yield show
    bar.update(total)


def _sweep(target):
    """Remove what killed processes left beside the folder."""
    left = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.tmp")
    for folder in Path(target).parent.iterdir():
        match = left.fullmatch(folder.name)
        if match and not _disk.is_running(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)
