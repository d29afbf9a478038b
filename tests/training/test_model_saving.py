"""Saving, loading, resuming and exporting: nothing is lost, nothing is stored twice."""

import warnings
import zipfile

import h5py
import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta.regularizers import L2SP, Delta, FeatureMap, L2SPAtt


def attention():
    """Attention that did not come from plain weights."""
    scores = {tap: np.sin(np.arange(len(w))) for tap, w in reference.WEIGHTS.items()}
    return kd.ChannelAttention.from_scores(scores)


REGULARIZERS = {
    "none": lambda: None,
    "l2_fe": lambda: "l2_fe",
    "l2_sp": lambda: L2SP(0.3, 0.1, parameters="kernels"),
    "l2_sp_att": lambda: L2SPAtt(0.3, attention=attention()),
    "feature_map": lambda: FeatureMap(0.3),
    "delta-auto": lambda: Delta(0.3),
    "delta-given": lambda: Delta(0.3, attention=attention(), variant="code"),
    "sum": lambda: [Delta(0.3, attention="uniform"), L2SP(0.1)],
    "schedule": lambda: FeatureMap(
        keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)
    ),
}


def trained(new_backbone, regularizer, optimizer=None):
    x, y = reference.learnable_data(12)
    model = reference.compiled(
        *reference.pair(new_backbone, batch_norm=True),
        regularizer,
        optimizer=optimizer or keras.optimizers.Adam(0.01),
        metrics=["accuracy"],
    )
    model.fit(x, y, 4, shuffle=False, verbose=0)
    return model


def assert_same_state(a, b):
    """All weights of two models, the optimizers' slots included, bit by bit."""
    for name in ("target", "source"):
        one, two = getattr(a, name).get_weights(), getattr(b, name).get_weights()
        reference.assert_same_weights(one, two, atol=0, rtol=0)
    for one, two in (
        (a.optimizer.variables, b.optimizer.variables),
        (
            a.regularizer.variables if a.regularizer else [],
            b.regularizer.variables if b.regularizer else [],
        ),
    ):
        assert [v.path.split("/")[-1] for v in one] == [
            v.path.split("/")[-1] for v in two
        ]
        one, two = [v.numpy() for v in one], [v.numpy() for v in two]
        reference.assert_same_weights(one, two, atol=0, rtol=0)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_saved_model_goes_on_bit_for_bit(name, new_backbone, tmp_path):
    x, y = reference.learnable_data(12)
    model = trained(new_backbone, REGULARIZERS[name]())
    settable = name not in ("none", "schedule", "sum")
    if settable:
        model.regularizer.alpha = 0.7
        model.regularizer.beta = 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "compile() was not called"
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert type(loaded) is kd.DeltaModel
    assert type(loaded.regularizer) is type(model.regularizer)
    assert loaded.taps == model.taps
    assert_same_state(model, loaded)
    if settable:
        assert model.regularizer.alpha == pytest.approx(0.7)
        assert (loaded.regularizer.alpha, loaded.regularizer.beta) == (
            model.regularizer.alpha,
            model.regularizer.beta,
        )
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )
    assert model.evaluate(x, y, verbose=0) == loaded.evaluate(x, y, verbose=0)

    logs = [
        m.fit(x, y, 4, epochs=2, shuffle=False, verbose=0).history
        for m in (model, loaded)
    ]
    assert logs[0] == logs[1]
    assert_same_state(model, loaded)
    assert (
        model.optimizer.iterations.numpy() == loaded.optimizer.iterations.numpy() == 9
    )


def test_members_of_a_sum_keep_their_strengths(new_backbone, tmp_path):
    model = trained(new_backbone, REGULARIZERS["sum"]())
    model.regularizer.members[0].alpha = 0.7
    model.regularizer.members[1].beta = 0.0
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for a, b in zip(model.regularizer.members, loaded.regularizer.members, strict=True):
        assert (a.alpha, a.beta) == (b.alpha, b.beta)


def test_computed_attention_and_scales_are_not_computed_again(
    new_backbone, tmp_path, monkeypatch
):
    x, y = reference.learnable_data(12)
    model = trained(new_backbone, Delta(0.3))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.regularizer.scales == model.regularizer.scales

    def compute(*args, **kwargs):
        raise AssertionError("attention was computed again")

    monkeypatch.setattr(kd.ChannelAttention, "compute", compute)
    loaded.fit(x, y, 4, verbose=0)
    for tap, weights in model.regularizer.attention_weights().items():
        np.testing.assert_array_equal(
            loaded.regularizer.attention_weights()[tap], weights
        )


def test_mixed_precision_and_a_momentum_survive(new_backbone, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    x, y = reference.learnable_data(12)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01, momentum=0.9), initial_scale=256.0
    )
    model = trained(new_backbone, FeatureMap(0.3), optimizer=optimizer)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.optimizer.inner_optimizer.iterations.numpy() == 3
    for m in (model, loaded):
        m.fit(x, y, 4, shuffle=False, verbose=0)
    assert_same_state(model, loaded)


def test_a_nested_backbone_and_named_pairs_survive(new_backbone, tmp_path):
    """Same-named layers in two branches; source and target names differ."""
    x, y = reference.learnable_data(12)

    def two_branches(names):
        inputs = keras.Input((8, 8, 3))
        branches = [
            new_backbone(size=8, widths=(3,), seed=i, name=n)
            for i, n in enumerate(names)
        ]
        joined = keras.layers.Concatenate()([b(inputs) for b in branches])
        return keras.Model(inputs, joined)

    source = two_branches(["left", "right"])
    target = kd.attach_head(two_branches(["one", "two"]), 3)
    taps = {"two_conv0": "right/conv0"}
    model = kd.DeltaModel(target, source=source, taps=taps)
    expected = keras.Model(
        source.get_layer("right").inputs,
        source.get_layer("right").get_layer("conv0").output,
    )(x)
    np.testing.assert_allclose(model.source_maps(x)["two_conv0"], expected, atol=1e-6)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(True),
        regularizer=FeatureMap(0.3),
        run_eagerly=True,
    )
    model.fit(x, y, 4, shuffle=False, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for m in (model, loaded):
        m.fit(x, y, 4, shuffle=False, verbose=0)
    assert_same_state(model, loaded)


def floats_in(path):
    """Number of floating point values in a `.keras` file's weights."""
    count = 0

    def visit(name, item):
        nonlocal count
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            count += item.size

    with (
        zipfile.ZipFile(path) as archive,
        archive.open("model.weights.h5") as raw,
        h5py.File(raw) as file,
    ):
        file.visititems(visit)
    return count


def test_the_source_is_stored_once(new_backbone, tmp_path):
    source = new_backbone(size=8, widths=(16, 32, 32))
    target = kd.attach_head(source, 3)
    model = kd.DeltaModel(target, source=source)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(True),
        regularizer=Delta(attention="uniform"),
    )
    model.save(tmp_path / "m.keras")
    target.save(tmp_path / "target.keras")
    body = source.count_params()
    alone = floats_in(tmp_path / "target.keras")
    assert body <= floats_in(tmp_path / "m.keras") - alone < 1.1 * body
    size = (tmp_path / "m.keras").stat().st_size
    assert size < 2.3 * (tmp_path / "target.keras").stat().st_size


def test_a_weights_file_holds_no_source(new_backbone, tmp_path):
    source = new_backbone(size=8, widths=(16, 32, 32))
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    model.target.save_weights(tmp_path / "target.weights.h5")
    model.save_weights(tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5") as file:
        stored = []
        file.visititems(lambda name, v: stored.append((name, getattr(v, "size", 0))))
    found = sum(size for name, size in stored if "metric" not in name)
    assert found == model.target.count_params() + 32  # digits
    assert any(name.startswith("target/") for name, _ in stored)
    assert "source" in dir(model)  # hidden while saving alone


def test_weights_of_another_source_are_refused(new_backbone, tmp_path):
    def model(seed):
        source = new_backbone(size=8, seed=seed)
        return kd.DeltaModel(kd.attach_head(source, 3), source=source)

    one, two = model(0), model(1)
    one.save_weights(tmp_path / "m.weights.h5")
    before = two.target.get_weights()
    with pytest.raises(ValueError, match=r"another source.*same source") as error:
        two.load_weights(tmp_path / "m.weights.h5")
    assert one.source_fingerprint in str(error.value)
    for v, w in zip(before, two.target.get_weights(), strict=True):
        np.testing.assert_array_equal(v, w)
    one.target.save_weights(tmp_path / "target.weights.h5")
    with pytest.raises(ValueError, match=r"model\.target\.load_weights"):
        two.load_weights(tmp_path / "target.weights.h5")
    two.target.load_weights(tmp_path / "target.weights.h5")


def test_weights_of_a_keras_file(new_backbone, tmp_path):
    model = trained(new_backbone, Delta(0.9))
    model.save(tmp_path / "m.keras")
    fresh = reference.compiled(
        *reference.pair(new_backbone, batch_norm=True), Delta(0.9)
    )
    fresh.load_weights(tmp_path / "m.keras")
    reference.assert_same_weights(model.target, fresh.target, atol=0, rtol=0)
    assert fresh.regularizer.ready


@pytest.mark.parametrize("there", [None, L2SP(0.1)])
def test_weights_with_another_regularizer_keep_the_one_in_use(
    there, new_backbone, tmp_path
):
    """As in loops that begin every trial with the same weights."""
    plain = reference.compiled(*reference.pair(new_backbone, batch_norm=True), there)
    plain.save_weights(tmp_path / "m.weights.h5")
    model = trained(new_backbone, Delta(0.9))
    before = model.regularizer.attention_weights()
    with pytest.warns(UserWarning, match=r"another regularizer than the Delta"):
        model.load_weights(tmp_path / "m.weights.h5")
    reference.assert_same_weights(model.target, plain.target, atol=0, rtol=0)
    for tap, weights in model.regularizer.attention_weights().items():
        np.testing.assert_array_equal(before[tap], weights)


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5"])
def test_a_file_is_replaced_as_a_whole(name, new_backbone, tmp_path, monkeypatch):
    """What fails or is killed in the middle leaves the file that was there."""
    model = trained(new_backbone, Delta(0.9))
    save = model.save if name == "m.keras" else model.save_weights
    save(tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def fails(store):
        raise OSError("disk full")

    monkeypatch.setattr(model.regularizer, "save_own_variables", fails)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_target_is_a_plain_keras_model(new_backbone, tmp_path):
    x, _ = reference.learnable_data(12)
    model = trained(new_backbone, FeatureMap(0.3))
    model.target.save(tmp_path / "target.keras")
    loaded = keras.saving.load_model(tmp_path / "target.keras")
    assert not isinstance(loaded, kd.DeltaModel) and not loaded.compiled
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )


def test_a_compiled_target_can_be_wrapped_and_saved(new_backbone, tmp_path):
    x, y = reference.learnable_data(12)
    target, source = reference.pair(new_backbone)
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    target.compile("adam", loss, run_eagerly=True)
    target.fit(x, y, verbose=0)
    model = reference.compiled(target, source, FeatureMap(0.3))
    model.fit(x, y, 4, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
    for m in (model, loaded):
        m.fit(x, y, 4, shuffle=False, verbose=0)
    assert_same_state(model, loaded)


def test_export_holds_the_target_alone(new_backbone, tmp_path):
    x, _ = reference.learnable_data(12)
    model = trained(new_backbone, FeatureMap(0.3))
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(x), model.predict(x, verbose=0), atol=1e-6)
    shapes = sorted(tuple(v.shape) for v in served.variables)
    assert shapes == sorted(tuple(v.shape) for v in model.target.variables)
    model.target.export(tmp_path / "plain", verbose=False)
    stored = [
        tf.train.load_checkpoint(
            str(tmp_path / name / "variables" / "variables")
        ).get_variable_to_shape_map()
        for name in ("served", "plain")
    ]
    assert stored[0] == stored[1]


def test_weights_file_restores_regularizer_and_target(new_backbone, tmp_path):
    model = trained(new_backbone, Delta(0.9))
    model.regularizer.alpha = 0.3
    model.save_weights(tmp_path / "m.weights.h5")
    fresh = reference.compiled(
        *reference.pair(new_backbone, batch_norm=True), Delta(0.9)
    )
    fresh.load_weights(tmp_path / "m.weights.h5")
    reference.assert_same_weights(model.target, fresh.target, atol=0, rtol=0)
    assert fresh.regularizer.alpha == pytest.approx(0.3)
    for tap, weights in model.regularizer.attention_weights().items():
        np.testing.assert_array_equal(
            fresh.regularizer.attention_weights()[tap], weights
        )


# --- callbacks -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_model_checkpoint(suffix, new_backbone, tmp_path):
    x, y = reference.learnable_data(12)
    model = reference.compiled(*reference.pair(new_backbone), FeatureMap(0.3))
    path = tmp_path / f"{{epoch}}{suffix}"
    callback = keras.callbacks.ModelCheckpoint(
        path, save_weights_only=suffix != ".keras"
    )
    model.fit(x, y, 4, epochs=2, shuffle=False, callbacks=[callback], verbose=0)
    fresh = reference.compiled(*reference.pair(new_backbone), FeatureMap(0.3))
    fresh.fit(x, y, 4, epochs=1, shuffle=False, verbose=0)
    if suffix == ".keras":
        first = keras.saving.load_model(tmp_path / "1.keras")
    else:
        first = reference.compiled(*reference.pair(new_backbone), FeatureMap(0.3))
        first.load_weights(tmp_path / "1.weights.h5")
    reference.assert_same_weights(first.target, fresh.target, atol=0, rtol=0)
    first.fit(x, y, 4, shuffle=False, verbose=0)
    reference.assert_same_weights(first.target, model.target, atol=0, rtol=0)


def test_backup_and_restore_goes_on_where_it_was_interrupted(new_backbone, tmp_path):
    x, y = reference.learnable_data(12)

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def model():
        return reference.compiled(
            *reference.pair(new_backbone),
            Delta(0.3),
            optimizer=keras.optimizers.Adam(0.01),
        )

    def fit(model, *callbacks):
        model.fit(
            x, y, 4, epochs=3, shuffle=False, verbose=0, callbacks=list(callbacks)
        )

    straight = model()
    fit(straight)
    backup = tmp_path / "backup"
    with pytest.raises(KeyboardInterrupt):
        fit(model(), keras.callbacks.BackupAndRestore(backup), Interrupt())
    resumed = model()
    fit(resumed, keras.callbacks.BackupAndRestore(backup))
    assert resumed.optimizer.iterations.numpy() == 9
    assert_same_state(straight, resumed)


def test_early_stopping_and_plateau(new_backbone):
    x, y = reference.learnable_data(12)
    model = reference.compiled(*reference.pair(new_backbone), FeatureMap(0.3), rate=5.0)

    class Remember(keras.callbacks.Callback):
        weights = []

        def on_epoch_end(self, epoch, logs=None):
            self.weights.append((logs["val_loss"], self.model.target.get_weights()))

    remember = Remember()
    log = model.fit(
        x,
        y,
        4,
        epochs=6,
        validation_data=(x, y),
        callbacks=[
            remember,
            keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5),
            keras.callbacks.EarlyStopping(
                patience=2, restore_best_weights=True, monitor="val_loss"
            ),
        ],
        verbose=0,
    ).history
    assert len(log["loss"]) < 6 and log["learning_rate"][-1] < 5.0
    best = min(remember.weights, key=lambda found: found[0])[1]
    reference.assert_same_weights(model.target, best, atol=0, rtol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_attention_stays_frozen(frozen, tmp_path):
    """Keras builds the parts of a frozen layer anew, and they would train."""
    x = i = keras.Input((4, 6))
    x = keras.layers.Dense(6, name="dense")(x)
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    source = keras.Model(i, x)
    source.get_layer("dense").bias.assign(np.ones(6))
    target = kd.attach_head(source, 3)
    target.get_layer("attention").trainable = not frozen
    model = kd.DeltaModel(target, source=source, taps=["dense", "attention"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Weight decay moves whatever the optimizer is given.
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    model.compile(optimizer, loss, regularizer="feature_map", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(6, 4, 6)).astype("float32")
    y = np.arange(6) % 3
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    names = [v.path for v in model.trainable_variables]
    assert [v.path for v in loaded.trainable_variables] == names
    assert len(names) == 4 + 8 * (not frozen)
    before = loaded.source.get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for again in model, loaded:
            again.fit(x, y, shuffle=False, verbose=0)
    assert_same_state(model, loaded)
    reference.assert_same_weights(before, loaded.source.get_weights(), 0, 0)


def test_export_switches_augmentation_off(backbone, tmp_path):
    """Of a target that flips and shifts its images itself."""
    x = i = keras.Input((16, 16, 3), name="photo")
    for layer in (
        keras.layers.RandomFlip(),
        keras.layers.RandomTranslation(0.3, 0.3),
        backbone,
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3),
    ):
        x = layer(x)
    model = kd.DeltaModel(keras.Model(i, x))
    model.export(str(tmp_path / "model"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")
    expected = model.predict(images, verbose=0)
    for _ in range(3):
        np.testing.assert_allclose(loaded.serve(images), expected, atol=1e-5)
    found = loaded.signatures["serving_default"](photo=tf.constant(images))
    np.testing.assert_allclose(found["output_0"], expected, atol=1e-5)
