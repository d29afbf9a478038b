"""`fit` begins by a recipe, where the head is new."""

import contextlib
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta._runs.models import Models

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).uniform(0, 60, (24, 16, 16, 3)).astype("float32")
Y = np.arange(24) % 3
X[np.arange(24), :, :, Y] += 150


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    monkeypatch.setattr(kd.DeltaModel, "default_recipe", "auto")


@pytest.fixture
def model(new_backbone):
    keras.utils.set_random_seed(0)
    source = new_backbone()
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    model.compile(keras.optimizers.SGD(0.0), SPARSE, metrics=["accuracy"])
    return model


def head(model):
    return model.target.get_layer("head").get_weights()


def probe_of(model, **given):
    """The head that `fit_head` finds, on a copy."""
    copy = keras.models.clone_model(model.target)
    copy.set_weights(model.target.get_weights())
    kd.fit_head(copy, X, Y, loss=SPARSE, verbose=0, **given)
    return copy.get_layer("head").get_weights()


def check_same(first, second):
    for v, w in zip(first, second, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("regularizer", ["delta", "l2", "l2_fe", "l2_sp"])
def test_a_new_head_is_fitted_before_the_first_step(model, regularizer):
    expected = probe_of(model)
    history = model.fit(X, Y, regularizer=regularizer, verbose=0).history
    check_same(head(model), expected)
    assert history["accuracy"][0] == 1


def test_the_default():
    command = "import keras_delta as kd; print(kd.DeltaModel.default_recipe)"
    shown = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip() == "auto"


def test_what_a_user_sees(model, capsys):
    model.fit(X, Y, regularizer="l2", verbose=2)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "Fitting the head ..."
    assert second.startswith("Head fitted on 24 images in ")
    model.fit(X, Y, regularizer="l2", verbose=2)
    assert "Head fitted" not in capsys.readouterr().out


@pytest.mark.parametrize("form", ["dataset", "generator", "pydataset"])
def test_any_data(model, form):
    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]

    data = {
        "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
        "generator": lambda: ((X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)),
        "pydataset": Data,
    }[form]()
    expected = probe_of(model)
    history = model.fit(data, regularizer="l2", verbose=0).history
    check_same(head(model), expected)
    assert len(history["loss"]) == 1


def test_weights_and_the_part_for_validation_do_not_count(model):
    weights = np.ones(24)
    weights[:6] = 0
    wrong = Y.copy()
    wrong[:6] = (Y[:6] + 1) % 3
    wrong[18:] = 0
    model.fit(
        *(X, wrong),
        sample_weight=weights,
        validation_split=0.25,
        regularizer="l2",
        verbose=0,
    )
    assert (model.predict(X, verbose=0).argmax(-1) == Y).all()


@pytest.mark.parametrize("case", ["trained", "stepped", "off", "no regularizer"])
def test_other_heads_stay(model, case):
    before, given = head(model), {"regularizer": "l2"}
    if case == "trained":
        before = [before[0], before[1] + 0.5]
        model.target.get_layer("head").set_weights(before)
    elif case == "stepped":
        model.fit(X, Y, regularizer="l2", recipe="none", verbose=0)
    elif case == "off":
        given["recipe"] = "none"
    else:
        given = {}
    model.fit(X, Y, verbose=0, **given)
    check_same(head(model), before)
    if case == "trained":  # with the statistics as they were
        parts = model.recipe.fit_head, model.recipe.batch_norm
        assert parts == (False, 0.0) and model.probe is None
    else:
        assert model.recipe is None
    model.compile(keras.optimizers.SGD(0.0), SPARSE)
    model.fit(X, Y, verbose=0, recipe=kd.Recipe(epochs=1))
    assert np.abs(head(model)[0] - before[0]).max() > 1e-3
    assert model.regularizer is not None


def test_attention_is_measured_with_the_fitted_head(model):
    expected = probe_of(model)
    model.prepare(X, Y, verbose=0, regularizer="delta")
    check_same(head(model), expected)
    model.target.get_layer("head").set_weights(expected)
    attention = kd.ChannelAttention.compute(model, (X, Y), progress=False)
    found = model.regularizer.attention_weights()
    for tap, weights in attention.weights.items():
        np.testing.assert_allclose(found[tap], weights, rtol=1e-3)


def test_two_replicas(new_backbone, strategy):
    with strategy.scope():
        source = new_backbone()
        model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
        model.compile(keras.optimizers.SGD(0.0), SPARSE)
    expected = probe_of(model)
    model.fit(X, Y, batch_size=8, regularizer="l2", verbose=0)
    check_same(head(model), expected)


@pytest.mark.parametrize("optimizer", ["SGD", "the recipe's"])
def test_an_interrupted_training_goes_on_bit_for_bit(new_backbone, tmp_path, optimizer):
    """Though all is chosen once, and reading for it moves the shuffle on."""

    class Stop(Exception):
        pass

    def stop(epoch, logs):
        raise Stop

    def train(*callbacks):
        keras.utils.set_random_seed(1)
        source = new_backbone(batch_norm=True)
        model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
        own = {"optimizer": keras.optimizers.SGD(1e-5)} if optimizer == "SGD" else {}
        model.compile(loss=SPARSE, **own)
        data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(24).batch(8)
        given = {"epochs": 3, "shuffle": False, "verbose": 0, "callbacks": callbacks}
        model.fit(data, regularizer="l2_sp", **given)
        return model

    whole = train()
    assert whole.recipe.batch_norm == 0.5  # a share that a new process has to learn of
    backup = kd.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(Stop):
        train(backup, keras.callbacks.LambdaCallback(on_epoch_end=stop))
    backup = kd.callbacks.BackupAndRestore(tmp_path / "backup")
    again = train(backup)
    for v, w in zip(
        whole.target.get_weights(), again.target.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(v, w)
    parts = [kd.Recipe.from_config(m.recipe.get_config()) for m in (whole, again)]
    assert parts[0].replace(regularizer="l2") == parts[1].replace(regularizer="l2")


def test_data_without_end(model):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).repeat()
    expected = probe_of(model)
    model.fit(data, steps_per_epoch=3, regularizer="l2", verbose=0)
    check_same(head(model), expected)
    with pytest.raises(ValueError, match=r"no end.*`fit_head`"):
        kd.fit_head(model, data, verbose=0)


def test_heads_that_cannot_be_fitted_are_the_users(new_backbone):
    source = new_backbone(batch_norm=True)
    x = keras.layers.Conv2D(3, 1)(source.output)
    model = kd.DeltaModel(keras.Model(source.input, x), source=source)
    model.compile("sgd", SPARSE)
    model.fit(X, np.zeros((24, 4, 4), "int32"), regularizer="l2", verbose=0)
    assert model.recipe is None
    assert all(layer.trainable for layer in kd.batch_norm.layers(model))


def test_wrong_recipes(model):
    with pytest.raises(ValueError, match=r"`recipe`.*Recipe.*'yes'"):
        model.fit(X, Y, regularizer="l2", recipe="yes", verbose=0)
    model.fit(X, Y, regularizer="l2", recipe="none", verbose=0)
    with pytest.raises(ValueError, match=r"already trained.*1 steps.*`compile` again"):
        model.fit(X, Y, recipe=kd.Recipe(), verbose=0)


@pytest.fixture
def normalized(new_backbone):
    """A model with BatchNorm whose statistics are far from those of these images."""
    keras.utils.set_random_seed(0)
    source = new_backbone(batch_norm=True)
    return kd.DeltaModel(kd.attach_head(source, 3), source=source)


def statistics(model):
    layers = kd.batch_norm.layers(model)
    return [w for layer in layers for w in layer.get_weights()[2:]]


def twin_of_choice(target):
    """(share, its statistics): the least held-out loss, if by two standard errors."""
    start, tried = target.get_weights(), []
    for share in (0.0, 0.25, 0.5):
        copy = keras.models.clone_model(target)
        copy.set_weights(start)
        kd.batch_norm.estimate_statistics(copy, X, share=share)
        losses = kd.fit_head(copy, X, Y, loss=SPARSE, verbose=0).losses
        tried.append((share, losses, statistics(copy)))
    best, least = 0, -2.0
    for i, (_, losses, _) in enumerate(tried):
        more = losses - tried[0][1]
        error = np.std(more, ddof=1) / len(more) ** 0.5
        if error and more.mean() / error < least:
            best, least = i, more.mean() / error
    return tried[best][0], tried[best][2]


@pytest.mark.parametrize("shift", [False, True])
def test_statistics_are_chosen_and_stay(new_backbone, shift):
    """Of images like the source's there is nothing to gain; of shifted ones much."""
    source = new_backbone(batch_norm=True)
    if not shift:
        kd.batch_norm.estimate_statistics(source, X)
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    of_source = model.source.get_weights()
    share, expected = twin_of_choice(model.target)
    assert bool(share) == shift
    model.compile("sgd", SPARSE)
    model.fit(X, Y, regularizer="feature_map", verbose=0)
    assert model.recipe.batch_norm == share
    for found, twin in zip(statistics(model), expected, strict=True):
        np.testing.assert_allclose(found, twin, rtol=1e-3, atol=1e-3)
    assert not any(layer.trainable for layer in kd.batch_norm.layers(model))
    for was, now in zip(of_source, model.source.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("form", [tuple, list])
def test_statistics_of_several_inputs(form):
    inputs = [keras.Input((8, 8, 3)) for _ in range(2)]
    x = keras.layers.Conv2D(4, 3)(keras.layers.Concatenate()(inputs))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    source = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    model.compile("sgd", SPARSE)
    x = [X[:, :8, :8], X[:, 8:, 8:]]
    recipe = kd.Recipe(batch_norm=1.0, epochs=1)
    model.fit(form(x), Y, regularizer="l2_sp", recipe=recipe, verbose=0)
    copy = kd.attach_head(source, 3)
    kd.batch_norm.estimate_statistics(copy, (x, Y))
    for found, twin in zip(statistics(model), statistics(copy), strict=True):
        np.testing.assert_allclose(found, twin, rtol=1e-4)


def test_layers_that_the_user_froze_keep_the_sources_statistics(normalized):
    frozen = kd.batch_norm.layers(normalized)[0]
    frozen.trainable = False
    before = frozen.get_weights()
    normalized.compile("sgd", SPARSE)
    normalized.fit(
        *(X, Y),
        regularizer="l2",
        recipe=kd.Recipe(batch_norm=0.5, epochs=1),
        verbose=0,
    )
    for was, now in zip(before, frozen.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_statistics_of_new_layers_move(new_backbone):
    """Those of a head with BatchNorm are 0 and 1, and nobody's."""
    source = new_backbone(batch_norm=True)
    x = keras.layers.GlobalAveragePooling2D()(source.output)
    x = keras.layers.BatchNormalization(name="new")(x)
    x = keras.layers.Dense(3, name="head")(x)
    model = kd.DeltaModel(keras.Model(source.input, x), source=source)
    model.compile("sgd", SPARSE)
    model.fit(X, Y, regularizer="l2_sp", verbose=0)
    assert model.recipe is not None
    new = model.target.get_layer("new")
    assert new.trainable and np.abs(new.get_weights()[2]).max() > 0
    others = [layer for layer in kd.batch_norm.layers(model) if layer is not new]
    assert len(others) == 3 and not any(layer.trainable for layer in others)


@pytest.mark.parametrize("name", ["l2_fe", "statistics of each batch"])
def test_statistics_that_are_not_the_recipes(normalized, name):
    recipe = kd.Recipe(batch_norm=0.5 if name == "l2_fe" else "training", epochs=1)
    regularizer = "l2_fe" if name == "l2_fe" else "l2"
    before = statistics(normalized)
    normalized.compile("sgd", SPARSE)
    normalized.fit(X, Y, regularizer=regularizer, recipe=recipe, verbose=0)
    moved = [
        not np.array_equal(v, w)
        for v, w in zip(before, statistics(normalized), strict=True)
    ]
    assert moved == [name != "l2_fe"] * len(moved)


def test_fit_goes_on_from_prepare(normalized):
    """What was chosen stays, and nobody is warned of other statistics."""
    normalized.compile("sgd", SPARSE)
    normalized.prepare(X, Y, verbose=0, regularizer="feature_map")
    chosen = statistics(normalized)
    assert normalized.recipe.batch_norm > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        normalized.fit(X, Y, verbose=0)
    for v, w in zip(chosen, statistics(normalized), strict=True):
        np.testing.assert_array_equal(v, w)


def test_whose_optimizer_it_is(normalized):
    normalized.compile(loss=SPARSE, metrics=["accuracy"])
    normalized.fit(X, Y, batch_size=8, epochs=2, regularizer="l2", verbose=0)
    optimizer, recipe = normalized.optimizer, normalized.recipe
    assert isinstance(optimizer, keras.optimizers.AdamW) and recipe.clip is None
    assert recipe.learning_rate == 6e-4 and recipe.batch_norm
    assert float(optimizer.learning_rate) < 1e-7  # six steps are the whole cosine
    assert (recipe.epochs, recipe.batch_size) == (2, 8)


def test_an_optimizer_of_ones_own_stays(normalized):
    own = keras.optimizers.SGD(0.01)
    normalized.compile(own, SPARSE)
    normalized.fit(X, Y, regularizer="l2", verbose=0)
    assert normalized.optimizer is own and normalized.recipe.clip == 1.0
    assert "as compiled" in str(normalized.recipe)


def moved_by(model, **given):
    before = model.target.get_weights()
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **given)
    return distance(before, model.target.get_weights())


def test_a_second_fit_has_a_schedule_of_its_own(normalized):
    normalized.compile(loss=SPARSE)
    moved_by(normalized, epochs=2, regularizer="l2_sp")
    assert normalized.optimizer.learning_rate < 1e-7
    assert moved_by(normalized, epochs=4, initial_epoch=2) > 1e-3
    assert normalized.optimizer.learning_rate < 1e-7


def test_a_second_fit_with_gradients_that_are_accumulated(normalized):
    """A schedule is asked for at each step, not at each update of the weights."""
    normalized.compile(loss=SPARSE)
    sgd = {"class_name": "SGD", "config": {"gradient_accumulation_steps": 3}}
    recipe = kd.Recipe(optimizer=sgd, learning_rate=0.01, batch_norm=0.0)
    moved_by(normalized, epochs=4, regularizer="l2_sp", recipe=recipe)
    assert moved_by(normalized, epochs=1) > 1e-3


def test_what_is_left_of_a_schedule_is_gone_on_with(normalized, tmp_path):
    """A training in two parts, a file between them, is as one."""
    normalized.compile(loss=SPARSE)
    early = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epoch or normalized.save(tmp_path / "m.keras")
    )
    moved_by(normalized, epochs=3, regularizer="l2_sp", callbacks=[early])
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    moved_by(loaded, initial_epoch=1, epochs=3)
    for v, w in zip(
        normalized.target.get_weights(), loaded.target.get_weights(), strict=True
    ):
        np.testing.assert_allclose(v, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["callback", "unknown length", "prepare"])
def test_rates_that_no_schedule_can_have(normalized, case):
    """Without a number of steps, or where a callback sets it, the rate is a number."""
    normalized.compile(loss=SPARSE)
    if case == "callback":
        halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
        normalized.fit(X, Y, regularizer="l2", callbacks=[halve], verbose=0)
    elif case == "unknown length":
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        data = data.filter(lambda x, y: True)
        normalized.fit(data, regularizer="l2", verbose=0)
    else:
        normalized.prepare(X, Y, regularizer="l2", verbose=0)
    assert isinstance(normalized.optimizer, keras.optimizers.AdamW)
    expected = 6e-4 / 2 if case == "callback" else 6e-4
    assert float(normalized.optimizer.learning_rate) == pytest.approx(expected)


@pytest.mark.parametrize("fitted", [False, True])
def test_a_file_of_an_untrained_model_begins_by_the_recipe(
    normalized, tmp_path, fitted
):
    normalized.compile(loss=SPARSE)
    if fitted:
        kd.fit_head(normalized, X, Y, verbose=0)
    normalized.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    loaded.fit(X, Y, regularizer="l2", verbose=0)
    assert isinstance(loaded.optimizer, keras.optimizers.AdamW)
    assert loaded.recipe.fit_head == (not fitted)


@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.Adam(1e-3)])
def test_a_file_holds_the_optimizer(normalized, tmp_path, optimizer):
    normalized.compile(optimizer, SPARSE)
    normalized.fit(X, Y, regularizer="l2", verbose=0)
    normalized.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    pairs = zip(normalized.optimizer.variables, loaded.optimizer.variables, strict=True)
    for v, w in pairs:
        np.testing.assert_array_equal(v.numpy(), w.numpy())
    assert int(loaded.optimizer.iterations) == 1


def test_gradients_that_are_accumulated(normalized):
    sgd = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    normalized.compile(sgd, SPARSE)
    normalized.fit(X, Y, regularizer="l2", verbose=0)
    assert normalized.recipe is not None


def test_what_fit_is_not_told_is_the_recipes(normalized):
    normalized.compile(loss=SPARSE)
    given = {"regularizer": "l2", "verbose": 0}
    recipe = kd.Recipe(epochs=3, batch_size=6, clip=3)
    history = normalized.fit(X, Y, recipe=recipe, **given)
    assert len(history.history["loss"]) == 3
    assert normalized.optimizer.iterations == 12
    assert normalized.recipe.augmentation is None
    with pytest.raises(ValueError, match=r"`optimizer` is None.*`compile`"):
        model = kd.DeltaModel(kd.attach_head(normalized.source, 3))
        model.compile(loss=SPARSE)
        model.fit(X, Y, recipe=kd.Recipe(optimizer=None), **given)


def distance(before, after):
    return sum(((a - b) ** 2).sum() for a, b in zip(after, before, strict=True)) ** 0.5


@pytest.mark.parametrize("replicas", [1, 2])
def test_gradients_are_clipped(new_backbone, strategy, replicas):
    """The step of SGD is no longer than rate times limit, and as one replica's."""
    steps, weights = [], []
    for scope in (contextlib.nullcontext(), strategy.scope())[:replicas]:
        with scope:
            keras.utils.set_random_seed(0)
            source = new_backbone()
            model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
            model.compile(keras.optimizers.SGD(0.1), SPARSE)
        recipe = kd.Recipe(clip=0.01, fit_head=False, epochs=1)
        before = model.target.get_weights()
        model.fit(
            *(X, Y),
            batch_size=24,
            regularizer="l2_sp",
            recipe=recipe,
            verbose=0,
            shuffle=False,
        )
        after = model.target.get_weights()
        steps.append(distance(before, after))
        weights.append(after)
    np.testing.assert_allclose(steps, 0.1 * 0.01, rtol=1e-4)
    for v, w in zip(weights[0], weights[-1], strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-4, atol=1e-7)


def test_half_precision_is_clipped_after_it_was_unscaled(new_backbone):
    source = new_backbone()
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    inner = keras.optimizers.SGD(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
    model.compile(scaled, SPARSE)
    before = model.target.get_weights()
    recipe = kd.Recipe(clip=0.01, fit_head=False, epochs=1)
    model.fit(X, Y, batch_size=24, regularizer="l2_sp", recipe=recipe, verbose=0)
    after = model.target.get_weights()
    np.testing.assert_allclose(distance(before, after), 0.1 * 0.01, rtol=1e-3)


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
def test_variables_of_half_precision_are_clipped(policy):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    rescaled = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu", dtype=policy)(rescaled)
    source = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    model.compile(keras.optimizers.SGD(0.1), SPARSE)
    before = [v.astype("float32") for v in model.target.get_weights()]
    recipe = kd.Recipe(clip=0.25, fit_head=False, epochs=1)
    model.fit(X, Y, batch_size=24, regularizer="l2_sp", recipe=recipe, verbose=0)
    after = [v.astype("float32") for v in model.target.get_weights()]
    np.testing.assert_allclose(distance(before, after), 0.1 * 0.25, rtol=0.1)


def test_a_saved_model_goes_on_by_its_recipe(normalized, tmp_path):
    normalized.compile("sgd", SPARSE)
    normalized.fit(
        *(X, Y), regularizer="l2_sp", recipe=kd.Recipe(clip=1e-3, epochs=1), verbose=0
    )
    normalized.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.recipe.clip == 1e-3
    assert not any(layer.trainable for layer in kd.batch_norm.layers(loaded))
    for model in (normalized, loaded):
        model.fit(X, Y, batch_size=24, verbose=0)
    for v, w in zip(
        normalized.target.get_weights(), loaded.target.get_weights(), strict=True
    ):
        np.testing.assert_allclose(v, w, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_weights_alone_go_on_by_their_recipe(name, new_backbone, tmp_path):
    """Into a new model that is made as the one that was trained."""

    def make():
        keras.utils.set_random_seed(0)
        source = new_backbone(batch_norm=True)
        model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
        model.compile(keras.optimizers.SGD(0.01), SPARSE)
        model.set_regularizer("l2_sp")
        return model

    given = {"batch_size": 24, "verbose": 0}
    first = make()
    first.fit(X, Y, **given)
    save = first.save if name == "m.keras" else first.save_weights
    save(tmp_path / name)
    first.fit(X, Y, **given)
    second = make()
    second.load_weights(tmp_path / name)
    second.fit(X, Y, **given)
    assert second.recipe.clip == 1.0
    for v, w in zip(
        first.target.get_weights(), second.target.get_weights(), strict=True
    ):
        np.testing.assert_allclose(v, w, rtol=1e-5, atol=1e-6)


def test_an_own_regularizer_need_not_be_registered(new_backbone, tmp_path):
    """A backup and a file of weights go on with the model's."""

    class Own(kd.regularizers.L2SP):
        pass

    def make():
        source = new_backbone()
        model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
        model.compile(keras.optimizers.SGD(0.01), SPARSE, regularizer=Own(0.1))
        return model

    def fit(model, epochs):
        backup = kd.callbacks.BackupAndRestore(tmp_path / "b", delete_checkpoint=False)
        given = {"callbacks": [backup], "verbose": 0}
        return model.fit(X, Y, epochs=epochs, **given).history["loss"]

    first, resumed, loaded = make(), make(), make()
    fit(first, 1)
    first.save_weights(tmp_path / "m.weights.h5")
    assert len(fit(resumed, 2)) == 2
    loaded.load_weights(tmp_path / "m.weights.h5")
    for model in (resumed, loaded):
        assert model.recipe.clip == first.recipe.clip
        assert model.recipe.regularizer is model.regularizer
    with keras.saving.custom_object_scope({"Own": Own}):
        first.save(tmp_path / "m.keras")
    found = keras.saving.load_model(tmp_path / "m.keras", custom_objects={"Own": Own})
    assert found.recipe.regularizer is found.regularizer


def test_an_average_with_the_source(normalized):
    normalized.compile(keras.optimizers.SGD(0.1), SPARSE)
    end = []
    remember = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: end.append(
            normalized.target.get_layer("conv1").get_weights()[0]
        )
    )
    normalized.fit(
        *(X, Y),
        regularizer="l2",
        recipe=kd.Recipe(average=0.25, batch_norm=0.5, epochs=1),
        callbacks=[remember],
        verbose=0,
    )
    of_source = normalized.source.get_layer("conv1").get_weights()[0]
    found = normalized.target.get_layer("conv1").get_weights()[0]
    np.testing.assert_allclose(found, 0.25 * of_source + 0.75 * end[0], rtol=1e-5)
    # The statistics were chosen, and not trained away from the source's.
    twin = keras.models.clone_model(normalized.source)
    twin.set_weights(normalized.source.get_weights())
    kd.batch_norm.estimate_statistics(twin, X, share=0.5)
    for v, w in zip(statistics(normalized), statistics(twin), strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-4, atol=1e-4)


def test_models_that_are_set_back_begin_alike(normalized):
    normalized.compile("sgd", SPARSE, run_eagerly=True)
    models, found = Models(), []
    for _ in range(2):
        model = models.begin("key", lambda: normalized)
        model.fit(X, Y, regularizer="l2", shuffle=False, verbose=0)
        found.append((model.recipe.batch_norm, model.target.get_weights()))
    assert found[0][0] == found[1][0] > 0
    for v, w in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-5, atol=1e-7)
