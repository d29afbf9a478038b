"""Versions of a served model: found, refused, and replaced as a whole."""

import errno
import os
import threading
from pathlib import Path

import pytest
from served_models import MODELS

import keras_delta as kd
from keras_delta.serving import card, folders, warmup
from keras_delta.serving.endpoints import Endpoints

GONE = 2**22 + 1  # no process has this number: Linux stops below
NAMES = ["ant", "bee", "cat"]


def versions(folder):
    """What a server sees."""
    return sorted(p.name for p in folder.iterdir() if p.name.isdecimal())


def filled(folder, text="old"):
    folder.mkdir(parents=True)
    for name in "ab":
        (folder / name).write_text(text)
    return folder


def texts(folder):
    return {p.name: p.read_text() for p in folder.iterdir()}


# --- which folder --------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, version, expected",
    [
        ("m", None, "m/1"),
        ("m", 3, "m/3"),
        ("m/7", None, "m/7"),
        ("m/7", 7, "m/7"),
        ("deep/er/m", None, "deep/er/m/1"),
        ("m.v2", None, "m.v2/1"),
        ("mein Modell ü", 12, "mein Modell ü/12"),
    ],
)
def test_the_folder_of_a_version(tmp_path, path, version, expected):
    for given in (tmp_path / path, str(tmp_path / path)):
        found = folders.version_folder(given, version, overwrite=False)
        assert found == tmp_path / expected
    assert list(tmp_path.iterdir()) == []  # only looked


def test_path_and_version_that_disagree(tmp_path):
    with pytest.raises(ValueError, match=r"`version`. Expected 7, as in `path`"):
        folders.version_folder(tmp_path / "m" / "7", 8, overwrite=False)


def test_version_zero_by_its_path(tmp_path):
    with pytest.raises(ValueError, match="a positive integer"):
        folders.version_folder(tmp_path / "m" / "0", None, overwrite=False)


def test_a_version_that_is_there_and_what_to_do(tmp_path):
    for number in (1, 4):
        filled(tmp_path / "m" / str(number))
    filled(tmp_path / "m" / ".9.1.tmp")
    with pytest.raises(ValueError, match=r"m/4' exists. Pass `version=5`.*overwrite="):
        folders.version_folder(tmp_path / "m", 4, overwrite=False)
    found = folders.version_folder(tmp_path / "m", 4, overwrite=True)
    assert found == tmp_path / "m" / "4"
    found = folders.version_folder(tmp_path / "m", 2, overwrite=False)
    assert found == tmp_path / "m" / "2"


@pytest.mark.parametrize("place", ["m", "m/1", "."])
def test_a_file_in_the_place_of_a_folder(tmp_path, place):
    root = tmp_path / "root"
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        folders.version_folder(root / "m", 1, overwrite=True)
    assert (root / place).read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    # Told by the system: whoever runs tests as root may write everywhere.
    asked = []

    def access(path, mode):
        asked.append((Path(path), mode))
        return False

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(PermissionError, match=f"'{tmp_path}' is read-only"):
        folders.version_folder(tmp_path / "new" / "m", None, overwrite=False)
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


# --- replaced as a whole -------------------------------------------------------------


def test_written_at_once(tmp_path):
    folder = tmp_path / "m" / "1"
    with folders.replacing(folder) as temporary:
        assert temporary.is_dir()
        assert temporary.parent == folder.parent
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a").write_text("new")
        assert versions(folder.parent) == []
    assert versions(folder.parent) == ["1"]
    assert (folder / "deep" / "a").read_text() == "new"
    assert os.listdir(folder.parent) == ["1"]


def test_nothing_of_the_old_version_stays(tmp_path):
    folder = filled(tmp_path / "m" / "1")
    with folders.replacing(folder) as temporary:
        (temporary / "c").write_text("new")
        assert texts(folder) == {"a": "old", "b": "old"}
    assert texts(folder) == {"c": "new"}
    assert os.listdir(folder.parent) == ["1"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()], ids=repr
)
@pytest.mark.parametrize("there", [True, False])
def test_failures_leave_everything_as_it_was(tmp_path, error, there):
    folder = tmp_path / "m" / "1"
    if there:
        filled(folder)

    def write():
        with folders.replacing(folder) as temporary:
            (temporary / "a").write_text("new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert os.listdir(folder.parent) == ["1"] * there
    assert not there or texts(folder) == {"a": "old", "b": "old"}


def test_a_disk_that_is_full_when_it_comes_to_flushing(tmp_path, monkeypatch):
    folder = filled(tmp_path / "m" / "1")

    def fsync(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"), folders.replacing(folder) as new:
        (new / "a").write_text("new")
    assert texts(folder) == {"a": "old", "b": "old"}
    assert os.listdir(folder.parent) == ["1"]


class Library:
    """A C library that cannot exchange."""

    def __init__(self, *_):
        """As `ctypes.CDLL`."""


class Refusing(Library):
    def renameat2(self, *_):
        return -1


@pytest.mark.parametrize("library", [Library, Refusing])
def test_where_the_system_cannot_exchange(tmp_path, monkeypatch, library):
    folder = filled(tmp_path / "m" / "1")
    monkeypatch.setattr(folders.ctypes, "CDLL", library)
    with folders.replacing(folder) as temporary:
        (temporary / "a").write_text("new")
    assert texts(folder) == {"a": "new"}
    assert os.listdir(folder.parent) == ["1"]


def test_whoever_looks_all_the_time_sees_one_whole_version(tmp_path):
    folder = filled(tmp_path / "m" / "1", "0")
    seen, wrong, done = set(), [], threading.Event()

    def look():
        while not done.is_set():
            try:
                before = os.stat(folder).st_ino
            except FileNotFoundError as error:
                wrong.append(repr(error))
                return
            try:
                names = sorted(os.listdir(folder))
                found = {name: (folder / name).read_text() for name in names}
            except FileNotFoundError as error:
                names, found = repr(error), {}
            # Replaced while we read: what we hold is the old one, which goes.
            if os.stat(folder).st_ino != before:
                continue
            if names != ["a", "b"] or len(set(found.values())) != 1:
                wrong.append((names, found))
            seen.update(found.values())
            if versions(folder.parent) != ["1"]:
                wrong.append(os.listdir(folder.parent))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for number in range(1, 1000):
            if (number > 30 and len(seen) > 2) or wrong:
                break
            with folders.replacing(folder) as temporary:
                for name in "ab":
                    (temporary / name).write_text(str(number))
    finally:
        done.set()
        watcher.join()
    assert wrong == []
    assert len(seen) > 2


class Killed(BaseException):
    """Nothing is tidied up after it, as after a kill."""


@pytest.mark.parametrize(
    ("function", "calls", "after"),
    [
        ("fsync", 0, "old"),
        ("_exchange", 0, "old"),
        ("_exchange", 1, "new"),
        ("rename", 0, "old"),
        ("rename", 1, None),
        ("rename", 2, "new"),
    ],
)
def test_killed_on_the_way(tmp_path, monkeypatch, function, calls, after):
    """At a call of a function, after so many."""
    folder = filled(tmp_path / "m" / "1")
    place = folders if function == "_exchange" else os
    original, count = getattr(place, function), []

    def killed(*args):
        if len(count) == calls:
            raise Killed
        count.append(args)
        original(*args)
        if function == "_exchange":
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(place, function, killed)
        patched.setattr(folders.shutil, "rmtree", lambda *_, **__: None)
        patched.setattr(os, "getpid", lambda: GONE)
        if function == "rename":
            patched.setattr(folders.ctypes, "CDLL", Library)
        with pytest.raises(Killed), folders.replacing(folder) as temporary:
            for name in "ab":
                (temporary / name).write_text("new")
    assert versions(folder.parent) == (["1"] if after else [])
    if after:
        assert texts(folder) == dict.fromkeys("ab", after)
    left = [p for p in folder.parent.iterdir() if p != folder]
    assert left and all(p.name.startswith(".") for p in left)
    # The next export sweeps, of whatever version, and what was lost is back.
    with folders.replacing(tmp_path / "m" / "2") as temporary:
        (temporary / "a").write_text("two")
    assert sorted(os.listdir(folder.parent)) == ["1", "2"]
    assert texts(folder) == dict.fromkeys("ab", after or "old")


def test_what_others_are_writing_is_not_swept(tmp_path):
    root = tmp_path / "m"
    mine = [".git", ".1.tmp", "notes.tmp", ".1.12.tmp.txt", "x"]
    for name in (*mine, f".1.{os.getppid()}.tmp"):
        filled(root / name)
    with folders.replacing(root / "2"):
        pass
    assert sorted(os.listdir(root)) == sorted([*mine, f".1.{os.getppid()}.tmp", "2"])


# --- by export_for_serving -----------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return MODELS["sequential"]()


@pytest.fixture
def quick(monkeypatch):
    """A SavedModel of one small file."""
    write = lambda _, folder: (Path(folder) / "saved_model.pb").write_text("x")  # noqa
    monkeypatch.setattr(Endpoints, "write", write)
    monkeypatch.setattr(warmup, "write", lambda *_: None)


def test_export_refuses_and_overwrites(quick, model, tmp_path):
    first = kd.export_for_serving(model, tmp_path / "m", NAMES)
    assert first == tmp_path / "m" / "1"
    (first / "mine").write_text("x")
    with pytest.raises(ValueError, match="Pass `version=2`"):
        kd.export_for_serving(model, tmp_path / "m", NAMES)
    assert (first / "mine").exists()
    second = kd.export_for_serving(model, tmp_path / "m", NAMES, version=2)
    assert second == tmp_path / "m" / "2"
    kd.export_for_serving(model, tmp_path / "m" / "1", NAMES, overwrite=True)
    assert not (first / "mine").exists()
    assert sorted(os.listdir(tmp_path / "m")) == ["1", "2"]


@pytest.mark.parametrize(
    "place",
    [(Endpoints, "write"), (warmup, "write"), (card, "write")],
    ids=["model", "warm-up", "card"],
)
def test_a_full_disk_leaves_nothing_behind(quick, model, tmp_path, monkeypatch, place):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*place, full)
    with pytest.raises(OSError, match="No space"):
        kd.export_for_serving(model, tmp_path / "m", NAMES)
    assert os.listdir(tmp_path / "m") == []
