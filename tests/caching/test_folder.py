"""On disk: one run at a time, nothing half-written is ever read."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import filler
import numpy as np
import pytest
import tensorflow as tf
from toy import ROW, SPEC, Source, ask, check, images, opened

from keras_delta.caching import SourceMapCache
from keras_delta.caching.records import ENTRY, RecordFile

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path):
    """A folder with the maps of `images(6)`."""
    cache = opened(tmp_path / "maps")
    ask(cache, images(4))
    ask(cache, images(6))
    cache.close()
    return tmp_path / "maps"


def records(folder):
    files = (folder / "source" / name for name in ("maps.data", "maps.index"))
    return RecordFile(*(open(file, "r+b", 0) for file in files), ROW)


def damaged(file, change):
    content = bytearray(file.read_bytes())
    content = change(content) or content
    file.write_bytes(content)


# --- reopening -----------------------------------------------------------------


def test_reopening_only_hits(folder):
    cache, x = opened(folder), images(6)
    assert len(cache) == 6 and cache.bytes == 6 * ROW
    for _ in range(2):
        maps, computed = ask(cache, x)
        check(maps, x)
        assert computed == 0
    assert (cache.hits, cache.misses) == (12, 0)
    assert (folder / "source" / "maps.data").stat().st_size == 6 * ROW
    assert (folder / "source" / "maps.index").stat().st_size == 6 * ENTRY.size
    assert {p.name for p in (folder / "source").iterdir()} == {
        *("meta.json", "maps.data", "maps.index", "lock")
    }


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


# --- damage ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["maps.index", "maps.data"])
def test_torn_at_every_byte(folder, name, monkeypatch):
    """Cut within the last two entries: what is left is right, the rest misses."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # 1,000 times is slow
    size = {"maps.index": ENTRY.size, "maps.data": ROW}[name]
    data, index = (folder / "source" / n for n in ("maps.data", "maps.index"))
    whole = {"maps.data": data.read_bytes(), "maps.index": index.read_bytes()}
    expected = np.frombuffer(whole["maps.data"], "f4").reshape(6, -1)
    keys = [e[0] for e in ENTRY.iter_unpack(whole["maps.index"])]
    for left in range(4 * size, 6 * size):
        data.write_bytes(whole["maps.data"])
        index.write_bytes(whole["maps.index"])
        os.truncate(folder / "source" / name, left)
        file = records(folder)
        assert list(file.keys()) == keys[: left // size]
        assert data.stat().st_size == left // size * ROW
        assert index.stat().st_size == left // size * ENTRY.size
        row = np.empty_like(expected[0])
        for i, key in enumerate(keys):
            assert file.read_into(key, row) == (i < left // size)
            if i < left // size:
                np.testing.assert_array_equal(row, expected[i])
        # It goes on behind the last whole record.
        file.append([b"new".ljust(16)], expected[:1] + 1)
        file.close()
        file = records(folder)
        assert len(file) == left // size + 1 and file.read_into(b"new".ljust(16), row)
        np.testing.assert_array_equal(row, expected[0] + 1)
        file.close()


def test_every_flipped_byte_of_the_index(folder):
    """A miss of one sample, or, in the key, of one that nobody asks for."""
    index, x = folder / "source" / "maps.index", images(6)
    data = folder / "source" / "maps.data"
    whole, rows = index.read_bytes(), data.read_bytes()
    for at in range(3 * ENTRY.size, 6 * ENTRY.size):
        index.write_bytes(whole)
        data.write_bytes(rows)
        damaged(index, lambda b, at=at: b.__setitem__(at, b[at] ^ 0x41))
        cache = opened(folder)
        assert len(cache) == 5
        if at % 7 == 0:
            maps, computed = ask(cache, x)
            check(maps, x)
            assert computed == 1
        cache.close()


def test_every_flipped_byte_of_a_record(folder):
    """Found at the first read: a miss, and written anew."""
    data, x = folder / "source" / "maps.data", images(6)
    index = folder / "source" / "maps.index"
    whole, entries = data.read_bytes(), index.read_bytes()
    for at in range(2 * ROW, 3 * ROW, 5):
        data.write_bytes(whole)
        index.write_bytes(entries)
        damaged(data, lambda b, at=at: b.__setitem__(at, b[at] ^ 0x10))
        cache = opened(folder)
        assert len(cache) == 6
        for expected in (1, 0):
            maps, computed = ask(cache, x)
            check(maps, x)
            assert computed == expected
        cache.close()
        cache = opened(folder)
        maps, computed = ask(cache, x)
        check(maps, x)
        assert computed == 0 and len(cache) == 6
        cache.close()


def test_an_entry_whose_data_never_reached_the_disk(folder):
    """As after a power failure: the file is long enough, but holds zeros."""
    damaged(folder / "source" / "maps.data", lambda b: b[:-ROW] + bytes(ROW))
    cache, x = opened(folder), images(6)
    maps, computed = ask(cache, x)
    check(maps, x)
    assert computed == 1


def test_records_in_each_others_place(folder):
    damaged(
        folder / "source" / "maps.data",
        lambda b: b[ROW : 2 * ROW] + b[:ROW] + b[2 * ROW :],
    )
    damaged(
        folder / "source" / "maps.index",
        lambda b: b[: 3 * ENTRY.size] + b[4 * ENTRY.size :] + b[3 * ENTRY.size :][:24],
    )
    cache, x = opened(folder), images(6)
    maps, computed = ask(cache, x)
    check(maps, x)
    assert computed == 5  # two records and three entries are not where they belong


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


# --- one run at a time -------------------------------------------------------------


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


# --- what cannot be used ------------------------------------------------------------


def meta(change):
    def write(file):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return write


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (meta(lambda m: m.update(format="x/2")), "format: x/2 there"),
        (meta(lambda m: m.update(fingerprint="f")), "fingerprint: f there, source now"),
        (meta(lambda m: m.update(dtype="float16")), "float16 there, float32 now"),
        (meta(lambda m: m["taps"].pop()), "taps: .* there, .* now"),
        (meta(lambda m: m.pop("taps")), "damaged or another kind"),
        (lambda file: file.write_text("{"), "damaged or another kind"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "damaged or another kind"),
        (lambda file: file.unlink(), "no meta.json"),
    ],
)
def test_a_folder_of_something_else(folder, change, text):
    before = (folder / "source" / "maps.data").read_bytes()
    change(folder / "source" / "meta.json")
    for _ in range(2):  # the lock was let go of
        with pytest.raises(ValueError, match=rf"(?s){text}.*Pass another `directory`"):
            opened(folder)
    assert (folder / "source" / "maps.data").read_bytes() == before


def test_no_folder_to_be_had(tmp_path):
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "no" / "maps", tmp_path / "file", "/proc/maps"):
        with pytest.raises(ValueError, match=r"`directory`.*keep the maps in memory"):
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
    assert not (tmp_path / "maps" / "source" / "write_test").exists()
    opened(tmp_path / "maps").close()


@pytest.mark.parametrize("rows", [0, 3])
def test_a_disk_that_gets_full(tmp_path, small_files, rows, recwarn):
    """One warning; training goes on, with right maps; the file stays sound."""
    warnings.simplefilter("always")  # not once a line
    x = images(30)
    cache = opened(tmp_path / "maps", memory=max(1, rows * ROW))
    ask(cache, x[:8])
    small_files(10 * ROW + 17)  # within a record
    try:
        for _ in range(2):
            for start in range(0, 30, 6):
                maps, _ = ask(cache, x[start : start + 6])
                check(maps, x[start : start + 6])
    finally:
        small_files(-1)
    texts = [str(w.message) for w in recwarn if "Source maps" in str(w.message)]
    assert len(texts) == 1 and "Training goes on" in texts[0], texts
    assert os.strerror(errno.EFBIG) in texts[0]
    assert len(cache) == 8
    cache.close()
    assert (tmp_path / "maps" / "source" / "maps.data").stat().st_size == 8 * ROW
    cache = opened(tmp_path / "maps")
    maps, computed = ask(cache, x)
    check(maps, x)
    assert computed == 22 and len(cache) == 30


def test_no_room_for_temporary_files(small_files, recwarn):
    warnings.simplefilter("always")
    x = images(9)
    cache = opened(memory=4 * ROW)
    small_files(100)
    try:
        for _ in range(2):
            maps, computed = ask(cache, x)
            check(maps, x)
    finally:
        small_files(-1)
    assert computed == 5 and len(cache) == 4
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


def test_a_file_that_cannot_be_read_any_more(folder):
    """Its records miss; nothing else happens."""
    cache, x = opened(folder), images(6)
    os.truncate(folder / "source" / "maps.data", 3 * ROW)
    maps, computed = ask(cache, x)
    check(maps, x)
    assert computed == 3


def test_a_folder_removed_while_it_is_used(folder):
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
