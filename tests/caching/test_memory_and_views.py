"""How much a cache keeps where, for how long, and for which data."""

import copy
import gc
import inspect
import pickle
import shutil

import keras
import pytest
import tensorflow as tf
from toy import ROW, SPEC, Source, ask, check, images, opened

from keras_delta import caching
from keras_delta.caching import SourceMapCache

# --- memory ----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 5, 11, 12])
def test_memory_is_kept_to(rows, monkeypatch, tmp_path):
    """What has no room goes to a temporary file, which has no name."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    cache, x = opened(memory=rows * ROW + ROW // 2), images(12)
    for start in (0, 5, 10):
        ask(cache, x[start : start + 5])
    maps, computed = ask(cache, x[::-1])
    check(maps, x[::-1])
    assert computed == 0
    assert cache.memory_bytes == rows * ROW
    rows_ = cache._store._rows.values()  # none holds on to more than itself
    assert all(
        len(getattr(row, "base", None) or row.data) in (ROW, ROW // 4) for row in rows_
    )
    assert len(cache) == 12 and cache.bytes == 12 * ROW
    assert len(cache._store._file.checked) == 12 - rows
    assert list(tmp_path.iterdir()) == []
    cache.close()
    assert len(cache) == cache.bytes == cache.memory_bytes == 0


def test_folder_is_read_into_memory_while_there_is_room(tmp_path):
    x = images(9)
    cache = opened(tmp_path / "maps", memory=4 * ROW)
    ask(cache, x)
    assert (cache.memory_bytes, len(cache), cache.bytes) == (4 * ROW, 9, 9 * ROW)
    cache.close()
    cache = opened(tmp_path / "maps", memory=6 * ROW)
    assert (cache.memory_bytes, len(cache)) == (0, 9)
    for _ in range(2):
        maps, computed = ask(cache, x)
        check(maps, x)
        assert computed == 0 and cache.memory_bytes == 6 * ROW


def test_automatic_memory_and_text():
    cache = opened(memory="auto")
    assert cache._store.budget > 2**24
    assert opened(memory="3KiB")._store.budget == 3072


def test_memory_is_given_back():
    cache = opened()
    step = tf.function(lambda v: cache.maps(v, Source()))
    step(images(4))
    row = next(iter(cache._store._rows.values()))
    cache.close()
    del row
    gc.collect()
    assert cache._store is None
    text = "closed, or opened for other maps"
    with pytest.raises(tf.errors.OpError, match=text):  # the graph lives on
        step(images(4))


# --- views -------------------------------------------------------------------------


def test_more_views_than_there_can_be():
    x = images(7)
    cache = opened(samples=3, views=2)
    ask(cache, x[:3])
    ask(cache, x[3:6])
    ask(cache, x[:6])
    text = r"7 different images.* 3 samples .* 2 view.*without fixed views.*views=4"
    with pytest.raises(ValueError, match=text):
        ask(cache, x)


def test_views_count_since_open(tmp_path):
    """Maps of earlier runs, perhaps on other data, do not count."""
    cache = opened(tmp_path / "maps", samples=3, views=1)
    ask(cache, images(3))
    cache.close()
    cache = opened(tmp_path / "maps", samples=3, views=1)
    ask(cache, images(3))
    ask(cache, images(3, seed=1))
    assert len(cache) == 6
    with pytest.raises(ValueError, match="different images"):
        ask(cache, images(1, seed=2))


# --- open, close, copies ------------------------------------------------------------


def test_keep_between_two_fits(tmp_path):
    x = images(6)
    for directory in (None, tmp_path / "maps"):
        cache = SourceMapCache(directory, memory=3 * ROW, dtype="float32")
        with cache.opened("source", SPEC, keep=True):
            ask(cache, x)
        with cache.opened("source", SPEC, keep=True):
            assert cache.memory_bytes == 3 * ROW
            maps, computed = ask(cache, x)
            check(maps, x)
            assert computed == 0 and (cache.hits, cache.misses) == (6, 0)
        with cache.opened("other", SPEC):
            assert len(cache) == 0
            assert ask(cache, x)[1] == 6


def test_memory_that_was_kept_where_the_folder_went(tmp_path):
    """The folder is deleted between two fits: all is written again."""
    x = images(6)
    cache = SourceMapCache(tmp_path / "maps", dtype="float32")
    with cache.opened("source", SPEC, keep=True):
        ask(cache, x)
    shutil.rmtree(tmp_path / "maps")
    with cache.opened("source", SPEC, keep=True):
        maps, _ = ask(cache, x)
        check(maps, x)


def test_other_errors_come_out_as_they_are():
    cache = SourceMapCache()
    with pytest.raises(tf.errors.InvalidArgumentError), cache.opened("s", SPEC):
        tf.reshape(tf.zeros(3), (2, 2))
    with pytest.raises(KeyError), cache.opened("s", SPEC):
        raise KeyError


def test_misuse():
    cache = SourceMapCache()
    with pytest.raises(RuntimeError, match="not open"):
        cache.maps(images(1), Source())
    cache.close()
    cache.open("a", SPEC)
    with pytest.raises(RuntimeError, match="in use"):
        cache.open("a", SPEC)
    cache.close()
    cache.close()


def test_copies_have_the_settings_alone(tmp_path):
    settings = {
        "directory": str(tmp_path / "maps"),
        "memory": "1MB",
        "dtype": "float32",
        "views": 3,
    }
    assert set(settings) == set(inspect.signature(SourceMapCache).parameters)
    cache = SourceMapCache(**settings).open("source", SPEC)
    ask(cache, images(2))
    packed = keras.saving.serialize_keras_object(cache)
    copies = [
        copy.copy(cache),
        copy.deepcopy(cache),
        pickle.loads(pickle.dumps(cache)),
        SourceMapCache.from_config(cache.get_config()),
        keras.saving.deserialize_keras_object(packed),
    ]
    for new in copies:
        assert new.get_config() == settings
        assert len(new) == new.hits == 0 and bool(new)
        with pytest.raises(RuntimeError, match="not open"):
            new.maps(images(1), Source())
    assert len(cache) == 2
    cache.close()
    copies[0].open("source", SPEC)
    assert len(copies[0]) == 2


def test_get():
    assert caching.get(None) is None and caching.get("compute") is None
    new = caching.get("cache")
    assert new.get_config() == SourceMapCache().get_config()
    assert caching.get("cache") is not new
    assert caching.get(new) is new
    for bad in ("cash", True, SourceMapCache, 3):
        with pytest.raises(ValueError, match=r'source_maps.*"compute", "cache" or'):
            caching.get(bad)


@pytest.mark.parametrize(
    ("argument", "bad"),
    [("directory", ""), ("memory", "much"), ("dtype", "bfloat16"), ("views", 0)],
)
def test_bad_arguments(argument, bad):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        SourceMapCache(**{argument: bad})
