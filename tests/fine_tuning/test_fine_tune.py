"""`fine_tune`: what it takes, what it settles, what it trains."""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import make_backbone, make_deeper

import keras_delta as kd

RNG = np.random.default_rng(0)
Y = np.arange(36) % 3
X = RNG.integers(0, 60, (36, 16, 16, 3))
X[np.arange(36), :, :, Y] += 120
X = X.astype("uint8")
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SHORT = kd.Recipe(epochs=2, batch_size=36)
PLAIN = SHORT.replace(batch_norm=0.0)  # nothing to choose


# The tiny networks take raw pixels, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Nothing in front of the first weights")


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    """Tracing would take longer than these few steps."""
    compile_eagerly = functools.partialmethod(kd.DeltaModel.compile, run_eagerly=True)
    monkeypatch.setattr(kd.DeltaModel, "compile", compile_eagerly)


@pytest.fixture
def source(new_backbone):
    return new_backbone(batch_norm=True)


def normalizers(model):
    return kd.batch_norm.layers(model)


def test_photographs_in_memory(source):
    before = [w.copy() for w in source.get_weights()]
    model = kd.fine_tune(source, (X, Y), recipe=SHORT, verbose=0)
    assert model.target.output_shape == (None, 3)
    assert len(model.history.history["loss"]) == 2
    assert model.evaluate(X.astype("float32"), Y, verbose=0, return_dict=True)[
        "accuracy"
    ] == pytest.approx(1.0)
    assert model.probe.score > 0.9 and len(model.probe.losses) == len(X)
    for was, now in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize(
    ("front", "warns"),
    [
        ([], True),
        ([keras.layers.RandomFlip(), keras.layers.ZeroPadding2D()], True),
        ([keras.layers.Rescaling(1 / 255)], False),
        ([keras.layers.RandomFlip(), lambda x: x[..., ::-1]], False),
        ([keras.layers.Normalization(mean=1.0, variance=2.0)], False),
    ],
)
def test_a_network_that_gets_raw_pixels(front, warns):
    x = images = keras.Input((16, 16, 3))
    for layer in front:
        x = layer(x)
    network = keras.Model(images, keras.layers.Conv2D(4, 3)(x))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kd.fine_tune(network, (X, Y), recipe=PLAIN.replace(epochs=1), verbose=0)
    said = [str(w.message) for w in caught]
    assert any("scales images" in text for text in said) == warns


def test_arrays_come_in_another_order_each_epoch(source):
    """Keras would repeat that of the first, as there is a seed."""
    x, seen = X.astype("float32"), []

    class Seen(keras.layers.Layer):
        def call(self, inputs, training=False):
            if training:
                seen.extend(inputs.numpy()[:, 0, 0, 0].tolist())
            return inputs

    inputs = keras.Input(source.input_shape[1:])
    network = keras.Model(inputs, source(Seen()(inputs)))
    for _ in range(2):
        recipe = PLAIN.replace(batch_size=12, fit_head=False)
        kd.fine_tune(network, (x, Y), recipe=recipe, verbose=0)
    first, second, rest = seen[:36], seen[36:72], seen[72:]
    assert first != second and sorted(first) == sorted(second)
    assert rest == first + second


def test_half_of_the_network_and_all_statistics_stay(source):
    recipe = SHORT.replace(batch_norm=0.5, freeze=0.5)
    model = kd.fine_tune(source, (X, Y), recipe=recipe, verbose=0)
    target = kd.attach_head(source, 3)
    images = kd.data.ImageSet.from_arrays(X, Y)
    data = images.batches(16, training=True, cache=True)
    kd.batch_norm.estimate_statistics(target, data)
    pairs = zip(
        normalizers(source), normalizers(target), normalizers(model), strict=True
    )
    for old, own, mixed in pairs:
        for name in ("moving_mean", "moving_variance"):
            a, b, found = (
                keras.ops.convert_to_numpy(getattr(v, name)) for v in (old, own, mixed)
            )
            np.testing.assert_allclose(found, (a + b) / 2, rtol=1e-3, atol=1e-3)
        assert not mixed.trainable
    frozen = model.taps[: round(0.5 * len(model.taps))]
    for layer in source.layers:
        if not layer.weights or layer in normalizers(source):
            continue
        now = model.target.get_layer(layer.name).get_weights()[0]
        moved = not np.array_equal(now, layer.get_weights()[0])
        assert moved == (layer.name not in frozen), layer.name


def test_what_was_chosen_can_be_followed_again(source):
    first = kd.fine_tune(source, (X, Y), recipe=SHORT, verbose=0)
    chosen = first.recipe
    assert chosen.batch_norm in (0.0, 0.25, 0.5) and chosen.epochs == 2
    assert chosen.learning_rate == (6e-4 if chosen.batch_norm else 3e-4)
    again = kd.fine_tune(source, (X, Y), recipe=chosen, verbose=0)
    same = {"regularizer": "l2"}  # each model has its own
    assert again.recipe.replace(**same) == chosen.replace(**same)


def test_networks_without_batch_norm(new_backbone):
    model = kd.fine_tune(new_backbone(), (X, Y), recipe=SHORT, verbose=0)
    assert model.recipe.batch_norm == 0 and model.recipe.learning_rate == 3e-4


def test_statistics_of_each_batch(source):
    recipe = SHORT.replace(batch_norm="training", freeze=0.0)
    model = kd.fine_tune(source, (X, Y), recipe=recipe, verbose=0)
    for old, new in zip(normalizers(source), normalizers(model), strict=True):
        assert new.trainable
        assert not np.array_equal(old.get_weights()[2], new.get_weights()[2])


def test_a_random_head(source):
    recipe = PLAIN.replace(fit_head=False, epochs=1, learning_rate=1e-9)
    model = kd.fine_tune(source, (X, Y), recipe=recipe, verbose=0)
    assert not np.any(np.abs(model.target.get_layer("head").get_weights()[1]) > 1e-6)


def test_a_training_that_was_stopped_goes_on(source, tmp_path):
    class Stop(Exception):
        pass

    def stop(epoch, logs):
        if epoch == 0:
            raise Stop

    def train(*callbacks):
        model = kd.fine_tune(
            source, (X, Y), recipe=PLAIN, callbacks=[*callbacks], verbose=0
        )
        return model.target.get_weights()

    whole = train()
    with pytest.raises(Stop):
        train(
            kd.callbacks.BackupAndRestore(tmp_path),
            keras.callbacks.LambdaCallback(on_epoch_end=stop),
        )
    for v, w in zip(whole, train(kd.callbacks.BackupAndRestore(tmp_path)), strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-4, atol=1e-6)


def write_folder(path, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = path / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(folder / f"{i}.png", image, scale=False)


def test_folders(source, tmp_path):
    write_folder(tmp_path / "train", X, Y)
    write_folder(tmp_path / "val", X[::2], Y[::2])
    model = kd.fine_tune(source, tmp_path, recipe=PLAIN, verbose=0)
    assert len(model.history.history["val_accuracy"]) == 2
    assert model.evaluate(X.astype("float32"), Y, verbose=0)[1] == pytest.approx(1.0)


def test_batches_of_ones_own(source):
    batches = tf.data.Dataset.from_tensor_slices((X.astype("float32"), Y)).batch(12)
    model = kd.fine_tune(source, batches, classes=3, recipe=PLAIN, verbose=0)
    assert model.optimizer.iterations == 6
    with pytest.raises(ValueError, match="`classes`"):
        kd.fine_tune(source, batches, recipe=PLAIN, verbose=0)
    endless = batches.repeat()
    with pytest.raises(ValueError, match="assert_cardinality"):
        kd.fine_tune(source, endless, classes=3, recipe=PLAIN, verbose=0)


@pytest.mark.parametrize("task", ["multilabel", "binary", "regression"])
def test_other_tasks(source, task):
    labels = {
        "multilabel": np.eye(3)[Y],
        "binary": (Y > 0).astype("float32"),
        "regression": Y[:, None].astype("float32"),
    }[task]
    classes = {"multilabel": 3}.get(task, 1)
    model = kd.fine_tune(
        source,
        (X.astype("float32"), labels),
        classes=classes,
        task=task,
        recipe=PLAIN,
        verbose=0,
    )
    assert model.target.output_shape == (None, classes)
    assert model.probe.score > 0.8


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_photographs_with_one_number_each(source, task):
    """Class numbers of photographs do not stand for classes there."""
    labels = (Y > 0).astype(int) if task == "binary" else Y
    model = kd.fine_tune(source, (X, labels), task=task, recipe=PLAIN, verbose=0)
    assert model.target.output_shape == (None, 1)
    assert model.probe.score > 0.8


def test_one_image_of_a_class_and_many_of_another(source):
    chosen = np.r_[np.flatnonzero(Y == 0), np.flatnonzero(Y == 1)[:1]]
    model = kd.fine_tune(source, (X[chosen], Y[chosen]), recipe=PLAIN, verbose=0)
    assert np.isfinite(model.history.history["loss"]).all()


def test_one_image_a_class(source):
    model = kd.fine_tune(source, (X[:3], Y[:3]), recipe=SHORT, verbose=0)
    assert model.probe.score is None and model.recipe.batch_norm == 0


def test_what_it_says_before_it_starts(source, capsys):
    kd.fine_tune(source, (X, Y), recipe=PLAIN, verbose=2)
    said = capsys.readouterr().out
    assert "cross-validated" in said and "batch_norm" in said
    assert "2 steps, about 0:00" in said
    assert said.index("about") < said.index("Epoch 1/2")


@pytest.mark.parametrize("method", ["kd", "four_ds"])
def test_a_teacher(source, method):
    """Another network teaches; the target begins at the source."""
    wide = make_deeper(widths=(16, 16, 16), seed=3)
    options = {"recipe": PLAIN, "verbose": 0}
    teacher = kd.fine_tune(wide, (X, Y), **options).target
    began = make_backbone(True, widths=(16, 16, 16), seed=1)
    options |= {"method": method, "teacher": teacher}
    model = kd.fine_tune(began, (X, Y), **options)
    assert model.probe is not None and len(model.source.weights) == len(teacher.weights)
    for a, b in zip(model.source.weights, teacher.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    statistics = [n.moving_mean for n in normalizers(model)]
    for a, b in zip(statistics, normalizers(began), strict=True):
        np.testing.assert_array_equal(a, b.moving_mean)


def test_a_teacher_by_default_is_followed(source):
    teacher = kd.attach_head(make_deeper(seed=3), 3)
    short = {"teacher": teacher, "verbose": 0}
    with pytest.raises(ValueError, match=r"`recipe\.regularizer`\. Expected one"):
        kd.fine_tune(source, (X, Y), recipe=PLAIN, **short)
    with pytest.raises(ValueError, match=r"`method`\. .* Received: method='l2_sp'"):
        kd.fine_tune(source, (X, Y), method="l2_sp", recipe=PLAIN, **short)
    for wrong in ("efficientnet_lite2", kd.DeltaModel(teacher)):
        with pytest.raises(TypeError, match="`teacher"):
            kd.fine_tune(source, (X, Y), teacher=wrong, recipe=PLAIN)


def test_no_teacher(source):
    with pytest.raises(ValueError, match="`teacher`"):
        kd.fine_tune(source, (X, Y), method="kd", recipe=PLAIN, verbose=0)


def test_wrong_arguments(source):
    with pytest.raises(TypeError, match="Recipe"):
        kd.fine_tune(source, (X, Y), recipe="fast")
    with pytest.raises(TypeError, match="a folder"):
        kd.fine_tune(source, {"x": X})
    with pytest.raises(ValueError, match=r"recipe\.optimizer"):
        kd.fine_tune(source, (X, Y), recipe=kd.Recipe(optimizer=None))
    with pytest.raises(ValueError, match="regularizer"):
        kd.fine_tune(source, (X, Y), method="dleta")
    with pytest.raises(ValueError, match="backbone"):
        kd.fine_tune("efficientnet", (X, Y))
    trained = kd.DeltaModel(kd.attach_head(source, 3))
    with pytest.raises((TypeError, ValueError), match="source"):
        kd.fine_tune(trained, (X, Y))
    with pytest.raises(ValueError, match="image_size"):
        kd.fine_tune(source, kd.data.ImageSet.from_arrays(X, Y), image_size=-1)


PEERS = ("l2_sp_fisher", "bss", "bi_tuning", "dtnh", "lwf", "co_tuning")


@pytest.mark.parametrize("method", PEERS)
def test_methods_that_begin_at_the_source(source, method):
    """Some of them with the classifier that the source was pretrained with."""
    if method in ("lwf", "co_tuning"):
        with pytest.raises(ValueError, match="the classifier that it was pretrained"):
            kd.fine_tune(source, (X, Y), method=method, recipe=PLAIN, verbose=0)
        source = kd.attach_head(source, 5, activation="softmax")
    model = kd.fine_tune(source, (X, Y), method=method, recipe=PLAIN, verbose=0)
    assert model.target.output_shape == (None, 3)
    assert model.probe.score > 0.9
    assert model.history.history["accuracy"][-1] == pytest.approx(1.0)
    assert isinstance(model.regularizer, kd.regularizers.ALL[method])
    assert model.history.history["feature_penalty"][-1] > 0
