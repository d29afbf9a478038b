"""On disk: one run at a time, nothing half-written is ever read."""

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import filler
import numpy as np
import pytest
import tensorflow as tf
from toy import ROW, SPEC, Source, ask, check, images, opened

from keras_delta.caching import SourceMapCache, map_file

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path):
    """A folder with the maps of `images(6)`."""
    cache = opened(tmp_path / "maps")
    ask(cache, images(4))
    ask(cache, images(6))
    cache.close()
    return tmp_path / "maps"


def database(folder):
    return folder / "source" / "maps.sqlite"


def changed(folder, *statements):
    """Change the database as somebody else would."""
    connection = sqlite3.connect(database(folder))
    for statement in statements:
        connection.execute(*statement)
    connection.commit()
    connection.close()


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
    with pytest.warns(UserWarning, match=r"earlier version.*computed again.*Delete"):
        cache = opened(tmp_path / "maps")
    maps, computed = ask(cache, images(3))
    check(maps, images(3))
    assert computed == 3
    for name in ("meta.json", "maps.data", "maps.index"):
        assert (folder / name).read_bytes() == before[name]


# --- killed ----------------------------------------------------------------------


def test_killed_at_any_moment_of_a_write(tmp_path, monkeypatch):
    """What a kill leaves, copied before each row: all of earlier steps, no others."""
    spec = {"wide": (300, 300, 3)}  # SQLite writes before the end of a step
    x = images(12, size=300)
    cache, copies = opened(tmp_path / "maps", spec=spec), []
    cache.maps(x[:4], lambda v: {"wide": v})
    checksum = map_file._checksum

    def copying(key, row):
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(tmp_path / "maps", copies[-1])
        return checksum(key, row)

    with monkeypatch.context() as patch:
        patch.setattr(map_file, "_checksum", copying)
        cache.maps(x[4:], lambda v: {"wide": v})
    assert len(copies) == 8
    sizes = [database(copy).stat().st_size for copy in copies]
    assert sizes[-1] > sizes[0]  # half-written ones were among them
    for copy in copies:
        left = opened(copy, spec=spec)
        assert len(left) == 4
        maps = left.maps(x, lambda v: {"wide": v})
        np.testing.assert_array_equal(maps["wide"], x)
        assert (left.hits, left.misses) == (4, 8)
        left.close()
        left = opened(copy, spec=spec)
        assert len(left) == 12
        left.close()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder that 15 processes filled until killed, and a line about each."""
    folder = tmp_path_factory.mktemp("killed") / "maps"
    done = subprocess.run(
        [sys.executable, HERE / "filler.py", folder, "15"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_killed_at_random_moments(killed):
    """SIGKILL while it writes, 15 times; whatever is read is the oracle's map."""
    folder, lines = killed
    assert len(lines) == 15 and all(signal == 9 for _, signal, _, _ in lines)
    sizes = [size for _, _, size, _ in lines]
    assert len(set(sizes)) > 10, sizes
    cache = SourceMapCache(folder, dtype="float32")
    cache.open("source", filler.SPEC)
    count = len(cache)
    assert count > 100
    x = np.stack([filler.sample(i) for i in range(count + 8)])
    maps = {tap: m.numpy() for tap, m in cache.maps(x, filler.compute).items()}
    # None is lost but those that the last one was about to write.
    assert cache.hits == count
    for i in range(len(x)):
        for tap, expected in filler.oracle(i).items():
            np.testing.assert_array_equal(maps[tap][i], expected)
    cache.close()


@pytest.mark.slow
def test_a_second_process_is_refused(killed):
    """While one had it, another was told so; the lock died with its process."""
    folder, lines = killed
    for child, _, _, told in lines:
        assert re.search(
            rf"'{folder}/source' is in use by process {child} on .*"
            "pass another `directory`, or wait",
            told,
        )


def test_two_caches_in_one_process(folder):
    cache = opened(folder)
    with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()} on"):
        opened(folder)
    cache.close()
    opened(folder).close()


# --- damage ----------------------------------------------------------------------


def test_a_changed_byte_of_a_row(folder):
    """Found at the first read: a miss, and written again."""
    whole, x = database(folder).read_bytes(), images(6)
    connection = sqlite3.connect(database(folder))
    row = connection.execute("SELECT row FROM maps WHERE rowid = 3").fetchone()[0]
    connection.close()
    assert len(row) == ROW and whole.count(row) == 1
    for at in range(0, ROW, 37):
        damaged = bytearray(whole)
        damaged[whole.index(row) + at] ^= 0x10
        database(folder).write_bytes(damaged)
        for expected in (1, 0):
            cache = opened(folder, memory=1)
            for computed in (expected, 0):
                maps, count = ask(cache, x)
                check(maps, x)
                assert count == computed
            assert len(cache) == 6
            cache.close()


def test_a_row_that_never_reached_the_disk(folder):
    """As after a power failure; also a row under the key of another."""
    changed(
        folder,
        ("UPDATE maps SET row = zeroblob(?) WHERE rowid = 2", [ROW]),
        ("UPDATE maps SET row = (SELECT row FROM maps LIMIT 1) WHERE rowid = 4",),
        ("DELETE FROM maps WHERE rowid = 6",),
    )
    cache, x = opened(folder), images(6)
    maps, computed = ask(cache, x)
    check(maps, x)
    assert computed == 3


def right_or_refused(folder):
    """Whether a damaged folder is refused, and says what to do; else right maps."""
    try:
        cache = opened(folder)
    except ValueError as e:
        assert "Pass another `directory`, or delete" in str(e), e
        return True
    maps, _ = ask(cache, images(6))
    check(maps, images(6))
    cache.close()
    return False


@pytest.mark.filterwarnings("ignore:Source maps cannot be kept")
def test_any_changed_byte(folder):
    """A clear refusal, a warning or a miss; never a wrong map."""
    whole = database(folder).read_bytes()
    used = np.flatnonzero(np.frombuffer(whole, "uint8"))
    refused = 0
    for at in [*used[:60], *used[60::41]]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x41
        database(folder).write_bytes(damaged)
        refused += right_or_refused(folder)
    assert refused > 10


@pytest.mark.filterwarnings("ignore:Source maps cannot be kept")
def test_a_file_that_was_cut_off(folder):
    whole = database(folder).read_bytes()
    refused = 0
    for left in range(100, len(whole), len(whole) // 9):
        database(folder).write_bytes(whole[:left])
        refused += right_or_refused(folder)
    assert refused > 5


def test_a_file_that_cannot_be_read_any_more(folder, recwarn):
    """One warning, and its maps are computed; training does not end."""
    warnings.simplefilter("always")
    cache, x = opened(folder), images(6)
    with open(database(folder), "rb+") as file:
        file.seek(map_file.PAGE)
        file.write(b"x" * 3 * map_file.PAGE)
    cache._store._file._database.execute("PRAGMA shrink_memory")  # it has read it all
    for _ in range(2):
        maps, _ = ask(cache, x)
        check(maps, x)
    assert [str(w.message) for w in recwarn if "Training goes on" in str(w.message)]
    assert len(recwarn) == 1


# --- what cannot be used ------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "x/2"}, "format.*x/2.* there"),
        ({"fingerprint": "f"}, "'fingerprint': 'f'.* there, .*'source'.* now"),
        ({"dtype": "float16"}, "'float16'.* there, .*'float32'.* now"),
        ({"taps": [["low", [4, 4, 3]]]}, "taps.* there, .* now"),
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
    assert len(texts) == 1 and "Training goes on" in texts[0], texts
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
