"""Killed runs and damaged files: nothing half-written is ever read."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import filler
import numpy as np
import pytest
from toy import ROW, ask, changed, check, database, images, opened

from keras_delta.caching import SourceMapCache, map_file

HERE = Path(__file__).parent


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


@pytest.mark.filterwarnings("ignore:Source maps can no longer")
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


@pytest.mark.filterwarnings("ignore:Source maps can no longer")
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
    assert [str(w.message) for w in recwarn if "Training continues" in str(w.message)]
    assert len(recwarn) == 1
