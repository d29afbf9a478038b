"""On disk: one run at a time, and folders that cannot be used."""

import json
import os
import resource
import shutil
import sqlite3
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from toy import ROW, SPEC, Source, ask, changed, check, database, images, opened

from keras_delta.caching import SourceMapCache

HERE = Path(__file__).parent


# --- reopening -----------------------------------------------------------------


def test_reopening_only_hits(folder):
    cache, x = opened(folder), images(6)
    assert len(cache) == 6 and cache.bytes == 6 * ROW
    for _ in range(2):
        maps, computed = ask(cache, x)
        check(maps, x)
        assert computed == 0
    assert (cache.hits, cache.misses) == (12, 0)
    cache.close()
    files = {p.name for p in (folder / "source").iterdir()}
    assert files == {"maps.sqlite", "lock"}


def test_other_data_in_the_same_folder(folder):
    cache, x = opened(folder), images(5, seed=7)
    maps, computed = ask(cache, x)
    check(maps, x)
    assert computed == 5 and cache.hits == 0
    mixed = np.concatenate([x[:2], images(6)[2:4]])
    maps, computed = ask(cache, mixed)
    check(maps, mixed)
    assert computed == 0 and len(cache) == 11


def test_another_source_is_apart(folder):
    cache = opened(folder, fingerprint="other")
    assert len(cache) == 0
    maps = cache.maps(images(2), lambda x: {t: -m for t, m in Source()(x).items()})
    np.testing.assert_array_equal(maps["low"], -2 * images(2))
    cache.close()
    maps, computed = ask(opened(folder), images(2))
    check(maps, images(2))
    assert computed == 0


def test_maps_of_an_earlier_version_are_left_alone(tmp_path):
    """A warning says so, and all is computed again."""
    folder = tmp_path / "maps" / "source"
    folder.mkdir(parents=True)
    meta = {"format": "keras_delta.caching/1", "fingerprint": "source"}
    taps = [[tap, list(shape)] for tap, shape in SPEC.items()]
    before = {
        "meta.json": json.dumps({**meta, "dtype": "float32", "taps": taps}).encode(),
        "maps.data": np.ones(2 * ROW // 4, "f4").tobytes(),
        "maps.index": np.random.default_rng(0).bytes(48),
        "lock": b"process 1 on another\n",
    }
    for name, content in before.items():
        (folder / name).write_bytes(content)
    with pytest.warns(UserWarning, match=r"earlier version.*recomputed.*Delete"):
        cache = opened(tmp_path / "maps")
    maps, computed = ask(cache, images(3))
    check(maps, images(3))
    assert computed == 3
    for name in ("meta.json", "maps.data", "maps.index"):
        assert (folder / name).read_bytes() == before[name]


# --- one run at a time ---


def test_two_caches_in_one_process(folder):
    cache = opened(folder)
    with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()} on"):
        opened(folder)
    cache.close()
    opened(folder).close()


# --- what cannot be used ------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "x/2"}, "format.*x/2.* before"),
        ({"fingerprint": "f"}, "'fingerprint': 'f'.* before, .*'source'.* now"),
        ({"dtype": "float16"}, "'float16'.* before, .*'float32'.* now"),
        ({"taps": [["low", [4, 4, 3]]]}, "taps.* before, .* now"),
    ],
)
def test_a_folder_of_something_else(folder, change, text):
    connection = sqlite3.connect(database(folder))
    (there,) = connection.execute("SELECT text FROM description").fetchone()
    connection.close()
    there = json.dumps({**json.loads(there), **change})
    changed(folder, ("UPDATE description SET text = ?", [there]))
    before = database(folder).read_bytes()
    for _ in range(2):  # the lock was let go of
        with pytest.raises(ValueError, match=rf"(?s){text}.*Pass another `directory`"):
            opened(folder)
    assert database(folder).read_bytes() == before


@pytest.mark.parametrize("content", [b"no database", b"x" * 10**5])
def test_another_kind_of_file(folder, content):
    database(folder).write_bytes(content)
    with pytest.raises(ValueError, match=r"maps\.sqlite' cannot be used.*another kind"):
        opened(folder)
    assert database(folder).read_bytes() == content


def test_no_folder_to_be_had(tmp_path):
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "maps", "/proc/maps"):
        with pytest.raises(ValueError, match="`directory`"):
            opened(bad)


@pytest.fixture
def small_files():
    """A limit on the size of files, as a disk that is full for them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_at_the_start(tmp_path, small_files):
    small_files(100)
    try:
        with pytest.raises(ValueError, match=r"`directory`.*File too large"):
            opened(tmp_path / "maps")
    finally:
        small_files(-1)
    opened(tmp_path / "maps").close()


@pytest.mark.parametrize("rows", [0, 3])
def test_a_disk_that_gets_full(tmp_path, small_files, rows, recwarn):
    """One warning; training goes on, with right maps; the file stays sound."""
    warnings.simplefilter("always")  # not once a line
    x, spec = images(30, size=150), {"low": (150, 150, 3)}
    size = 4 * 150 * 150 * 3

    def right(cache, some):
        before = cache.misses
        np.testing.assert_array_equal(cache.maps(some, double)["low"], 2 * some)
        return cache.misses - before

    def double(v):
        return {"low": 2 * v}

    cache = opened(tmp_path / "maps", spec=spec, memory=max(1, rows * size))
    right(cache, x[:8])
    small_files(database(tmp_path / "maps").stat().st_size + 10 * size + 17)
    try:
        for _ in range(2):
            for start in range(0, 30, 12):
                right(cache, x[start : start + 12])
    finally:
        small_files(-1)
    texts = [str(w.message) for w in recwarn if "Source maps" in str(w.message)]
    assert len(texts) == 1 and "Training continues" in texts[0], texts
    count = len(cache)
    assert 8 <= count < 30
    cache.close()
    cache = opened(tmp_path / "maps", spec=spec)
    assert right(cache, x) == 30 - count and len(cache) == 30


def test_no_room_for_temporary_files(small_files, recwarn):
    warnings.simplefilter("always")
    x, spec = images(40, size=150), {"low": (150, 150, 3)}
    cache = opened(spec=spec, memory=4 * 4 * 150 * 150 * 3)
    small_files(100)
    try:
        for _ in range(2):
            for start in range(0, 40, 20):
                some = x[start : start + 20]
                maps = cache.maps(some, lambda v: {"low": 2 * v})
                np.testing.assert_array_equal(maps["low"], 2 * some)
    finally:
        small_files(-1)
    texts = [str(w.message) for w in recwarn if "temporary file" in str(w.message)]
    assert len(texts) == 1


def test_another_size_came_into_the_folder_in_between(tmp_path):
    """What is still in memory of the first size is forgotten."""
    spec = {t: (None, None, s[2]) for t, s in SPEC.items()}
    cache = SourceMapCache(tmp_path / "maps", dtype="float32")
    with cache.opened("source", spec, keep=True):
        ask(cache, images(3))
    shutil.rmtree(tmp_path / "maps")
    large = images(2, size=6)
    other = opened(tmp_path / "maps", spec=spec)
    ask(other, large)
    other.close()
    with cache.opened("source", spec):
        assert cache.memory_bytes == 0
        maps, computed = ask(cache, large)
        check(maps, large)
        assert computed == 0


def test_a_folder_removed_while_it_is_used(folder, recwarn):
    cache, x = opened(folder), images(8)
    shutil.rmtree(folder)
    for computed in (2, 0):
        maps, count = ask(cache, x)
        check(maps, x)
        assert count == computed


def test_spec_in_the_graph_of_an_earlier_run(folder):
    """A step traced for other maps is refused, not run on the wrong ones."""
    cache = SourceMapCache(folder.parent / "new", dtype="float32").open("a", SPEC)
    step = tf.function(lambda x: cache.maps(x, Source()))
    step(images(2))
    cache.close()
    cache.open("a", SPEC)
    check({t: m.numpy() for t, m in step(images(2)).items()}, images(2))
    assert cache.hits == 2
    cache.close()
    cache.open("b", {"low": (4, 4, 3)})
    with pytest.raises(tf.errors.OpError, match="opened for other maps"):
        step(images(2))
