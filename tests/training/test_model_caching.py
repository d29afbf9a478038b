"""`fit(source_maps="cache")` trains as without, and runs the source once an image."""

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta.regularizers import L2SP, Delta, FeatureMap


def trained(new_backbone, source_maps=None, data=None, epochs=3, **kwargs):
    """(model, logs, how many samples the source saw in the steps)."""
    keras.utils.set_random_seed(4)
    regularizer = kwargs.pop("regularizer", None) or FeatureMap(0.5, 0.1)
    model = reference.compiled(
        *reference.pair(new_backbone, batch_norm=True), regularizer, **kwargs
    )
    x, y = reference.data(13) if data is None else data
    model.prepare(x, y, verbose=0)
    seen = []
    run = model.networks.go_on_in_source

    def counted(feeds, values):
        tf.py_function(lambda v: seen.append(len(v)), [values[0]], [])
        return run(feeds, values)

    model.networks.go_on_in_source = counted
    logs = model.fit(
        x, y, 4, epochs=epochs, verbose=0, shuffle=False, source_maps=source_maps
    )
    return model, logs.history, sum(seen)


def assert_same(one, two, rtol=1e-6):
    (model, logs, _), (model_there, logs_there, _) = one, two
    for name, values in logs.items():
        np.testing.assert_allclose(values, logs_there[name], rtol=rtol, err_msg=name)
    reference.assert_same_weights(model.target, model_there.target, rtol=rtol)


def augmented(x, y, change):
    """A data set whose images are new in each epoch (seeded ops of tf.data are not)."""
    rng = np.random.default_rng(0)

    def changed(image):
        return change(image, rng).astype("float32")

    def on(image, label):
        new = tf.numpy_function(changed, [image], tf.float32)
        return tf.ensure_shape(new, image.shape), label

    return tf.data.Dataset.from_tensor_slices((x, y)).map(on)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"run_eagerly": False},
        {},
        {"run_eagerly": False, "steps_per_execution": 2},
    ],
    ids=["graph", "eager", "several"],
)
def test_the_source_runs_once_an_image(kwargs, new_backbone):
    plain = trained(new_backbone, **kwargs)
    cached = trained(new_backbone, kd.SourceMapCache(dtype="float32"), **kwargs)
    assert_same(cached, plain)
    assert (plain[2], cached[2]) == (39, 13)


def test_half_precision_is_close(new_backbone):
    plain, cached = trained(new_backbone), trained(new_backbone, "cache")
    assert cached[2] == 13
    assert_same(cached, plain, rtol=2e-2)
    different = cached[1]["feature_penalty"] != plain[1]["feature_penalty"]
    assert different  # it was float16


def test_the_constructor_and_switching_off(new_backbone):
    source = reference.pair(new_backbone)[1]
    target = kd.attach_head(source, 3)
    model = kd.DeltaModel(target, source=source, source_maps="cache")
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(True),
        regularizer="l2_sp",
        run_eagerly=True,
    )
    x, y = reference.data(8)
    cache = model._source_maps[1]
    model.fit(x, y, verbose=0)
    assert cache.misses == 0  # no maps are compared
    model.fit(x, y, regularizer="feature_map", verbose=0)
    assert cache.misses == 8
    model.fit(x, y, verbose=0, source_maps="compute")
    assert cache.hits == 0
    assert model._source_maps[1] is None


def test_an_instance_keeps_its_maps_for_the_next_fit(new_backbone):
    cache = kd.SourceMapCache()
    model, _, seen = trained(new_backbone, cache)
    assert seen == 13
    x, y = reference.data(13)
    model.fit(x, y, 4, verbose=0)
    assert (cache.hits, cache.misses) == (13, 0)
    model.train_on_batch(x[:4], y[:4])  # computes
    assert (cache.hits, cache.misses) == (13, 0)


def test_an_instance_keeps_the_traced_step(new_backbone):
    """From one `fit` to the next; any other use of the model makes its own."""
    cache = kd.SourceMapCache(dtype="float32")
    x, y = reference.data(5)
    model, _, _ = trained(new_backbone, cache, (x, y), 1)
    plain, _, _ = trained(new_backbone, None, (x, y), 1)
    step = model.train_function

    def fit(source_maps):
        kwargs = {"verbose": 0, "shuffle": False}
        model.fit(x, y, 4, source_maps=source_maps, **kwargs)
        plain.fit(x, y, 4, source_maps="compute", **kwargs)

    fit(cache)
    assert model.train_function is step
    model.evaluate(x, y, verbose=0)
    assert model.train_function is step
    for one in (model, plain):
        one.train_on_batch(x[:4], y[:4])
    assert model.train_function is not step
    fit(cache)
    assert (cache.hits, cache.misses) == (5, 0)
    other = kd.SourceMapCache(dtype="float32")
    for asked in (other, "compute", "cache", cache):
        step = model.train_function
        fit(asked)
        assert model.train_function is not step, asked
    assert (other.hits, other.misses) == (0, 5)
    reference.assert_same_weights(model.target, plain.target, atol=1e-4, rtol=1e-4)


def test_a_step_of_ones_own_after_fit(new_backbone):
    """The cache is closed then: the source runs."""
    cache = kd.SourceMapCache(dtype="float32")
    model, *_ = trained(new_backbone, source_maps=cache)
    x, y = reference.data(13)
    before = model.target.get_weights()
    plain = reference.compiled(
        *reference.pair(new_backbone, batch_norm=True), FeatureMap(0.5, 0.1)
    )
    plain.prepare(x, y, verbose=0)
    plain.make_train_function()
    plain.target.set_weights(before)
    for variable, value in zip(
        plain.optimizer.variables, model.optimizer.variables, strict=True
    ):
        variable.assign(value)
    batch = tf.constant(x[:4]), tf.constant(y[:4])
    for one in (model, plain):
        one.train_step(batch)
    reference.assert_same_weights(model.target, plain.target, rtol=1e-5)


def test_a_folder_serves_the_next_run(new_backbone, tmp_path):
    first = trained(new_backbone, kd.SourceMapCache(tmp_path / "maps"))
    again = trained(new_backbone, kd.SourceMapCache(tmp_path / "maps"))
    assert (first[2], again[2]) == (13, 0)
    assert_same(first, again, rtol=0)


def test_changed_images_are_computed_again(new_backbone, tmp_path):
    x, y = reference.data(13)
    trained(new_backbone, kd.SourceMapCache(tmp_path / "maps"))
    x = x.copy()
    x[5, 2, 2, 0] += 1e-3
    cache = kd.SourceMapCache(tmp_path / "maps", dtype="float16")
    found = trained(new_backbone, cache, data=(x, y))
    assert found[2] == 1
    assert_same(found, trained(new_backbone, kd.SourceMapCache(), data=(x, y)), rtol=0)


def test_another_source_has_its_own_maps(new_backbone, tmp_path):
    trained(new_backbone, kd.SourceMapCache(tmp_path / "maps"))

    def other(**kwargs):
        return new_backbone(**{**kwargs, "seed": 9})

    assert trained(other, kd.SourceMapCache(tmp_path / "maps"))[2] == 13


def test_two_replicas(strategy, new_backbone):
    x, y = reference.data(13)
    found = []
    for source_maps in ("compute", kd.SourceMapCache(dtype="float32")):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = reference.compiled(
                *reference.pair(new_backbone), Delta(0.3, 0.2, attention="uniform")
            )
        logs = model.fit(
            x, y, 4, epochs=2, shuffle=False, verbose=0, source_maps=source_maps
        )
        found.append((model, logs.history, 0))
    assert_same(*found)


def test_random_augmentation_is_refused_before_training(new_backbone):
    x, y = reference.data(40)
    data = augmented(x, y, lambda image, rng: image + rng.normal(size=image.shape))
    model = reference.compiled(*reference.pair(new_backbone), FeatureMap())
    before = model.target.get_weights()
    with pytest.raises(ValueError, match=r"views"):
        model.fit(data.batch(4), verbose=0, source_maps="cache")
    assert not model.regularizer.ready  # nothing long was begun
    for v, w in zip(before, model.target.get_weights(), strict=True):
        np.testing.assert_array_equal(v, w)
    model.fit(data.batch(4), verbose=0, source_maps="compute")


def test_sets_of_images_say_how_many_views_they_have(new_backbone):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 10, 10, 3), "uint8")
    images = kd.data.ImageSet.from_arrays(images, np.arange(12) % 3)
    model = reference.compiled(*reference.pair(new_backbone), FeatureMap())

    def fit(cache, **kwargs):
        data = images.batches(reference.SIZE, 4, **kwargs)
        model.fit(data, epochs=6, verbose=0, shuffle=False, source_maps=cache)
        return cache.misses

    with pytest.raises(ValueError, match=r"Random augmentation.*views=4"):
        fit(kd.SourceMapCache(), training=True)
    with pytest.raises(ValueError, match=r"3 views.*SourceMapCache\(views=3\)"):
        fit(kd.SourceMapCache(), training=True, views=3)
    # Mirrored or not, and 2 x 2 crops: some of the three may be the same.
    assert 12 < fit(kd.SourceMapCache(views=3), training=True, views=3) <= 36
    assert fit(kd.SourceMapCache(views=1)) == 12


def test_sets_of_images_come_in_the_same_order(new_backbone):
    """Looking at the data for the cache must not move it on."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 10, 10, 3), "uint8")
    images = kd.data.ImageSet.from_arrays(images, np.arange(12) % 3)
    found = []
    for source_maps in ("compute", kd.SourceMapCache(dtype="float32")):
        keras.utils.set_random_seed(4)
        model = reference.compiled(
            *reference.pair(new_backbone), FeatureMap(0.5), rate=1e-6
        )
        data = images.batches(reference.SIZE, 5, training=True, views=2)
        logs = model.fit(
            data, epochs=3, verbose=0, shuffle=False, source_maps=source_maps
        )
        found.append((model, logs.history, 0))
    assert_same(*found, rtol=1e-5)


def test_too_many_views_end_with_the_reason(new_backbone):
    """Where the look before was too short to tell."""
    x, y = reference.data(6)
    data = augmented(x, y, lambda image, rng: image + rng.normal(size=image.shape))
    model = reference.compiled(*reference.pair(new_backbone), FeatureMap())
    with pytest.raises(ValueError, match=r"more than 8 samples.*2 view"):
        model.fit(data.batch(3), epochs=9, verbose=0, source_maps="cache")


def test_flips_are_two_views(new_backbone):
    x, y = reference.data(12)
    data = augmented(x, y, lambda image, rng: image[:, :: rng.choice([1, -1])])
    model = reference.compiled(*reference.pair(new_backbone), FeatureMap())
    cache = kd.SourceMapCache()
    model.fit(data.batch(4), epochs=6, verbose=0, source_maps=cache)
    assert 12 < cache.misses <= 24
    assert cache.hits + cache.misses == 6 * 12


def test_what_xla_compiles_is_refused(new_backbone):
    model = reference.compiled(
        *reference.pair(new_backbone), FeatureMap(), jit_compile=True
    )
    with pytest.raises(ValueError, match=r"jit_compile=False"):
        model.fit(*reference.data(8), verbose=0, source_maps="cache")


def test_automatic_compilation_is_switched_off_meanwhile(new_backbone, monkeypatch):
    monkeypatch.setattr(keras.Model, "_resolve_auto_jit_compile", lambda self: True)
    model = reference.compiled(
        *reference.pair(new_backbone), FeatureMap(), jit_compile="auto"
    )
    assert model.jit_compile is True
    model.fit(*reference.data(8), verbose=0, source_maps="cache")
    assert model.jit_compile is True


def test_an_unknown_choice_is_refused(new_backbone):
    model = reference.compiled(*reference.pair(new_backbone), L2SP())
    with pytest.raises(ValueError, match=r'source_maps.*"compute", "cache"'):
        model.fit(*reference.data(8), verbose=0, source_maps="disk")
