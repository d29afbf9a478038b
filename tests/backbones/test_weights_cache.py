import threading
from pathlib import Path

import numpy as np
import pytest

from keras_delta.backbones.cache import cache_folder, cached_arrays

ARRAYS = {"conv/kernel": np.arange(300.0, dtype="float32"), "bn/gamma": np.ones(3)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DELTA_CACHE", str(tmp_path / "new" / "cache"))
    return tmp_path / "new" / "cache"


def never():
    raise AssertionError("made again in place of read from the cache")


def same(found):
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_folder(monkeypatch):
    monkeypatch.delenv("KERAS_DELTA_CACHE")
    monkeypatch.delenv("KERAS_HOME", raising=False)
    assert cache_folder() == Path.home() / ".keras" / "keras_delta"
    monkeypatch.setenv("KERAS_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/keras_delta")
    monkeypatch.setenv("KERAS_DELTA_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"


def test_made_once(folder):
    same(cached_arrays("key", lambda: ARRAYS))
    assert [p.name for p in folder.iterdir()] == ["key.npz"]
    same(cached_arrays("key", never))
    with pytest.raises(AssertionError, match="made again"):
        cached_arrays("other", never)


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    elif how == "halved":
        data = data[: len(data) // 2]
    elif how == "emptied":
        data = b""
    elif how == "garbage":
        data = np.random.default_rng(0).bytes(1000)
    elif how == "pickle":
        return np.save(path.open("wb"), np.array([object()]), allow_pickle=True)
    return path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "halved", "emptied", "garbage", "pickle"])
def test_a_damaged_file_is_made_again(folder, how):
    cached_arrays("key", lambda: ARRAYS)
    damage(folder / "key.npz", how)
    with pytest.raises(AssertionError, match="made again"):
        cached_arrays("key", never)
    same(cached_arrays("key", lambda: ARRAYS))
    same(cached_arrays("key", never))


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KERAS_DELTA_CACHE", str(tmp_path / "file" / "cache"))
    same(cached_arrays("key", lambda: ARRAYS))


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_broken_off_write_leaves_nothing(folder, monkeypatch, error):
    def half(path, **arrays):
        path.write_bytes(b"PK\x03\x04 half of it")
        raise error("no space left")

    monkeypatch.setattr(np, "savez", half)
    if error is OSError:
        same(cached_arrays("key", lambda: ARRAYS))
    else:
        with pytest.raises(KeyboardInterrupt):
            cached_arrays("key", lambda: ARRAYS)
    assert list(folder.iterdir()) == []


def test_writers_at_once(folder):
    start, found = threading.Barrier(8), []

    def work():
        start.wait()
        found.append(cached_arrays("key", lambda: ARRAYS))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for arrays in found:
        same(arrays)
    assert [p.name for p in folder.iterdir()] == ["key.npz"]
    same(cached_arrays("key", never))
