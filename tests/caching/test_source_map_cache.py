"""Maps from the cache are those of the source, whatever is there and where."""

import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import toy
from toy import ROW, SPEC, Source, ask, check, images, opened

from keras_delta._network.networks import OUTPUTS
from keras_delta.caching import SourceMapCache
from keras_delta.caching.keys import keys_of

# --- maps ----------------------------------------------------------------------


def test_computed_once_then_read():
    cache, x = opened(), images(6)
    maps, computed = ask(cache, x[:4])
    check(maps, x[:4])
    assert computed == 4
    # Two known ones around two new ones, in another order.
    mixed = x[[3, 4, 5, 0]]
    maps, computed = ask(cache, mixed)
    check(maps, mixed)
    assert computed == 2
    maps, computed = ask(cache, x[::-1])
    check(maps, x[::-1])
    assert computed == 0
    assert (len(cache), cache.hits, cache.misses) == (6, 8, 6)
    assert cache.bytes == cache.memory_bytes == 6 * ROW
    assert repr(cache) == (
        "<SourceMapCache in memory: 6 samples, 1.6 KiB, 8 hits, 6 misses>"
    )


def test_read_back_is_bitwise_what_was_computed():
    cache, x = opened(dtype="float16"), images(5)
    first, _ = ask(cache, x)
    again, _ = ask(cache, x)
    for tap in SPEC:
        np.testing.assert_array_equal(first[tap], again[tap])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_graph_equals_eager_equals_no_cache(dtype, tmp_path):
    for directory in (None, tmp_path / "maps"):
        graph, eager = opened(directory, dtype=dtype), opened(dtype=dtype)
        step = tf.function(lambda x, cache=graph: cache.maps(x, Source()))
        for seed, count in ((0, 4), (1, 3), (0, 4), (1, 2)):
            x = images(count, seed)
            got = step(tf.constant(x))
            expected, _ = ask(eager, x)
            plain = Source()(tf.constant(x))
            for tap in SPEC:
                np.testing.assert_array_equal(got[tap], expected[tap])
                rounded = plain[tap].numpy().astype(dtype)
                np.testing.assert_array_equal(got[tap], rounded)
        assert graph.hits == eager.hits > 0


def test_static_shapes_in_a_graph():
    cache, seen = opened(spec={"low": (None, None, 3), "high": (2, 2, 5)}), []

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 3))])
    def step(x):
        seen.append({t: m.shape for t, m in cache.maps(x, Source()).items()})

    @tf.function(input_signature=[tf.TensorSpec((7, 4, 4, 3))])
    def fixed(x):
        seen.append({t: m.shape for t, m in cache.maps(x, Source()).items()})

    step.get_concrete_function()
    fixed.get_concrete_function()
    assert seen[0]["low"].as_list() == [None, None, None, 3]
    assert seen[0]["high"].as_list() == [None, 2, 2, 5]
    assert seen[1]["high"].as_list() == [7, 2, 2, 5]


def test_float16_error_bound():
    """Relative 2**-11 in the normal range, 2**-25 in absolute terms below."""
    x = images(40) * 10.0 ** np.arange(-7, 3).repeat(4)[:, None, None, None]
    x = x.astype("f4")
    half, whole = opened(dtype="float16"), opened(dtype="float32")
    exact, _ = ask(whole, x)
    rounded, _ = ask(half, x)
    for tap in SPEC:
        error = np.abs(rounded[tap].astype("f8") - exact[tap])
        assert (error <= np.maximum(2.0**-11 * np.abs(exact[tap]), 2.0**-25)).all()
        assert error.max() > 0
    assert 2 * half.bytes == whole.bytes


@pytest.mark.parametrize("on_disk", [False, True])
def test_predictions_are_never_rounded(on_disk, tmp_path):
    """float16 would make small probabilities 0."""
    spec = {"low": (4, 4, 3), OUTPUTS: (5,), "high": (1, 3)}
    x, calls = images(3), []

    def compute(x):
        calls.append(len(x))
        sums = tf.reduce_sum(x, (1, 2))
        small = tf.exp(-20 * tf.range(5.0)) * tf.abs(sums[:, :1])
        return {"low": 2 * x, OUTPUTS: small, "high": sums[:, None]}

    exact = compute(x)
    for run in range(2):
        directory = tmp_path / "maps" if on_disk else None
        if not run or on_disk:
            cache = opened(directory, spec=spec, dtype="float16")
        maps = cache.maps(x, compute)
        np.testing.assert_array_equal(maps[OUTPUTS], exact[OUTPUTS])
        for tap in ("low", "high"):
            half = np.asarray(exact[tap]).astype("f2")
            np.testing.assert_array_equal(maps[tap], half)
        assert cache.bytes == 3 * (2 * (48 + 3) + 4 * 5)
        if on_disk:
            cache.close()
    assert calls == [3, 3]


@pytest.mark.parametrize("value", [70000.0, -70000.0, np.inf, np.nan])
@pytest.mark.parametrize("graph", [False, True])
def test_what_float16_cannot_hold(value, graph):
    x = images(3)
    x[1, 0, 0, 0] = value / 2
    cache = SourceMapCache()
    step = tf.function(cache.maps) if graph else cache.maps
    text = r"maps of \['low', 'high'\] .* 65504.*SourceMapCache\(dtype=\"float32\"\)"
    with pytest.raises(ValueError, match=text), cache.opened("source", SPEC):
        step(x, Source())
    assert len(cache) == 0  # closed, nothing kept
    if np.isfinite(value):
        maps, _ = ask(opened(dtype="float32"), x)
        check(maps, x)


def test_largest_float16():
    x = np.full((1, 4, 4, 3), 65504 / 2, "f4")
    cache = opened(spec={"low": (4, 4, 3)}, dtype="float16")
    for _ in range(2):
        maps = cache.maps(x, lambda v: {"low": 2 * v})
        assert (maps["low"].numpy() == 65504).all()


def test_duplicates_in_a_batch():
    cache, x = opened(), images(3)
    twice = x[[0, 1, 0, 2, 0]]
    for expected_hits in (0, 5):
        maps, _ = ask(cache, twice)
        check(maps, twice)
        assert cache.hits == expected_hits
    assert len(cache) == 3 and cache.bytes == 3 * ROW


@pytest.mark.parametrize(
    "spec", [SPEC, {t: (None, None, s[2]) for t, s in SPEC.items()}]
)
def test_empty_batch_computes_nothing(spec):
    cache, source = opened(spec=spec), Source()
    step = tf.function(
        lambda x: cache.maps(x, source),
        input_signature=[tf.TensorSpec((None, 4, 4, 3))],
    )
    for x in (images(0), images(2), images(0), images(2)):
        maps = step(tf.constant(x))
        assert all(len(m) == len(x) for m in maps.values())
        if len(x):
            check({t: m.numpy() for t, m in maps.items()}, x)
    assert maps["low"].shape == (2, 4, 4, 3)
    assert source.seen == [2]
    assert step(images(0))["high"].shape == (0, 2, 2, 5)


def test_structures_of_inputs():
    """Each input is part of the key, with its dtype and shape."""
    cache = opened(spec={"sum": (2,)})
    calls = []

    def compute(x):
        calls.append(1)
        return {"sum": x["a"] + tf.cast(x["b"], "float32")}

    a = np.array([[1.0, 2.0], [3.0, 4.0]], "f4")
    b = np.array([[10, 20], [30, 40]], "i4")
    for _ in range(2):
        got = cache.maps({"a": a, "b": b}, compute)["sum"]
        np.testing.assert_array_equal(got, [[11, 22], [33, 44]])
    got = cache.maps({"a": a, "b": b[::-1]}, compute)["sum"]
    np.testing.assert_array_equal(got, [[31, 42], [13, 24]])
    assert len(calls) == 2 and len(cache) == 4


def test_keys():
    x = images(4)
    keys = keys_of([x])
    assert keys.shape == (4, 16) and keys.dtype == np.uint8
    assert len(np.unique(keys, axis=0)) == 4
    np.testing.assert_array_equal(keys_of([x[::-1]]), keys[::-1])
    np.testing.assert_array_equal(keys_of([np.asfortranarray(x)]), keys)
    zeros = np.zeros((1, 6), "f4")
    others = [
        [zeros],
        [zeros.astype("i4")],
        [zeros.reshape(1, 2, 3)],
        [zeros[:, :4], zeros[:, :2]],
        [zeros[:, :2], zeros[:, :4]],
        [np.full((1, 6), -0.0, "f4")],
        [tf.cast(zeros, "bfloat16").numpy()],
        [zeros[:, :0]],
        [zeros[:, 0]],
    ]
    assert len({keys_of(o).tobytes() for o in others}) == len(others)
    assert keys_of([x[:0]]).shape == (0, 16)
    with pytest.raises(ValueError, match=r"for numeric inputs.*compute"):
        keys_of([np.array(["a"], object)])


def test_a_changed_pixel_misses():
    cache, x = opened(), images(4)
    ask(cache, x)
    x[2, 3, 3, 2] = np.nextafter(x[2, 3, 3, 2], np.float32(9))
    maps, computed = ask(cache, x)
    check(maps, x)
    assert computed == 1 and len(cache) == 5


def test_wrong_taps_from_compute():
    cache = opened()
    with pytest.raises(ValueError, match=r"Expected maps of \['low', 'high'\]"):
        cache.maps(images(1), lambda x: {"low": x})


def test_no_gradient():
    cache, x = opened(), tf.constant(images(2))
    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(cache.maps(x, Source())["low"]) + tf.reduce_sum(x)
        np.testing.assert_array_equal(tape.gradient(value, x), np.ones_like(x))


# --- sizes ---------------------------------------------------------------------


def test_open_sizes_are_settled_by_the_first_maps(tmp_path):
    spec = {t: (None, None, s[2]) for t, s in SPEC.items()}
    for directory in (None, tmp_path / "maps"):
        cache, x = opened(directory, spec=spec), images(3)
        assert cache.bytes == 0
        for computed in (3, 0):
            maps, count = ask(cache, x)
            check(maps, x)
            assert count == computed
        text = r"one size.*Expected maps of .*\(4, 4, 3\).*Received: .*\(6, 6, 3\)"
        with pytest.raises(ValueError, match=text):
            ask(cache, images(2, size=6))
        step = tf.function(lambda v, cache=cache: cache.maps(v, Source()))
        with pytest.raises(tf.errors.InvalidArgumentError, match=text):
            step(images(2, size=6))
        assert isinstance(cache.error, ValueError)
        cache.close()
    cache = opened(directory, spec=spec)
    maps, count = ask(cache, x)
    check(maps, x)
    assert count == 0
    with pytest.raises(ValueError, match="one size"):
        ask(cache, images(2, size=6))


def test_maps_that_contradict_the_spec():
    with pytest.raises(ValueError, match="one size"):
        opened().maps(images(1), lambda x: {"low": x, "high": x})


# --- replicas and threads --------------------------------------------------------


def test_two_replicas(strategy, new_backbone, images):
    """The same maps as without a cache, on uneven and empty shares too."""
    with strategy.scope():
        net = new_backbone()
        source = keras.Model(net.input, {"a": net.get_layer("relu1").output})
    cache = opened(spec={"a": source.output["a"].shape[1:]})
    computed = []

    def compute(x):
        tf.numpy_function(lambda n: computed.append(int(n)), [tf.shape(x)[0]], [])
        return source(x, training=False)

    @tf.function
    def step(x):
        return strategy.run(lambda v: cache.maps(v, compute)["a"], args=(x,))

    x, _ = images
    expected = source(x)["a"].numpy()
    data = tf.data.Dataset.from_tensor_slices(x).batch(7)  # 4 + 3, then 1 + 0
    for epoch in range(3):
        got = []
        for batch in strategy.experimental_distribute_dataset(data):
            parts = strategy.experimental_local_results(step(batch))
            got += [p.numpy() for p in parts]
        np.testing.assert_allclose(np.concatenate(got), expected, atol=1e-5)
        assert sorted(computed) == [1, 3, 4], epoch
    assert (len(cache), cache.hits, cache.misses) == (8, 16, 8)


@pytest.mark.parametrize("rows", [0, 20])
@pytest.mark.parametrize("on_disk", [False, True])
def test_many_threads(rows, on_disk, tmp_path):
    """Threads ask for overlapping samples; all get the right maps."""
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    x, wrong = images(64), []
    room = max(1, rows * ROW)
    cache = opened(tmp_path / "maps" if on_disk else None, memory=room)
    step = tf.function(lambda v: cache.maps(v, Source()))

    def run(seed):
        rng = np.random.default_rng(seed)
        for _ in range(15):
            some = x[rng.choice(64, 8)]
            try:
                check({t: m.numpy() for t, m in step(some).items()}, some)
            except BaseException as e:
                wrong.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    sys.setswitchinterval(switch)
    assert not wrong
    assert len(cache) == 64 and cache.hits + cache.misses == 4 * 15 * 8
    assert cache.memory_bytes == rows * ROW


def test_toy_is_what_it_says():
    """The oracle by hand: one image of ones, one pixel 2."""
    x = np.ones((1, 2, 2, 3), "f4")
    x[0, 0, 0, 0] = 2
    maps = toy.oracle(x)
    assert maps["low"][0, 0, 0, 0] == 4
    np.testing.assert_array_equal(maps["high"][0, 0, 0], [13, 26, 39, 52, 65])
