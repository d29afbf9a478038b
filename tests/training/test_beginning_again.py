"""What a recipe did to a model does not outlive a training that made no step."""

import keras
import numpy as np
import pytest
from test_beginning import SPARSE, X, Y, as_users_have_it, normalized  # noqa: F401

import keras_delta as kd
from keras_delta.fine_tuning import images as fine_tuning_images


@pytest.fixture
def model(normalized):  # noqa: F811
    return normalized


class Fail(keras.callbacks.Callback):
    """Ends a training before its first step."""

    def on_train_begin(self, logs=None):
        raise KeyboardInterrupt


def fit(model, *callbacks, epochs=2, **options):
    given = {"batch_size": 8, "verbose": 0, "regularizer": "l2", **options}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **given)


def outcome(model):
    recipe = model.recipe
    rate = model.optimizer.get_config()["learning_rate"]
    return recipe.batch_norm, recipe.learning_rate, recipe.clip, recipe.epochs, rate


def weights(model):
    return model.target.get_weights()


def check_same(first, second):
    for v, w in zip(first, second, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-4, atol=1e-5)


def copy_of(model):
    """A model as `model` is before any training."""
    source = keras.models.clone_model(model.source)
    source.set_weights(model.source.get_weights())
    target = keras.models.clone_model(model.target)
    target.set_weights(model.target.get_weights())
    return kd.DeltaModel(target, source=source)


@pytest.mark.parametrize("start", ["aborted", "prepared"])
def test_the_next_fit_is_as_the_first(model, start):
    """Its schedule and rate, its statistics, and no clip of a stranger's optimizer."""
    straight = copy_of(model)
    for m in (model, straight):
        m.compile(loss=SPARSE)
    if start == "aborted":
        with pytest.raises(KeyboardInterrupt):
            fit(model, Fail(), epochs=30)
    else:
        model.prepare(X, Y, verbose=0, regularizer="l2")
    fit(model)
    fit(straight)
    assert outcome(straight)[0] > 0  # a mixture, which the next fit keeps
    assert outcome(model) == outcome(straight)
    check_same(weights(model), weights(straight))


def test_an_interrupted_choice_leaves_no_trace(model, monkeypatch):
    from keras_delta._probe.fit import Fitting

    before, fitted = weights(model), Fitting.fit

    def interrupted(self, **options):
        fitted(self, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Fitting, "fit", interrupted)
    model.compile(loss=SPARSE)
    with pytest.raises(KeyboardInterrupt):
        fit(model)
    check_same(weights(model), before)
    assert all(layer.trainable for layer in kd.batch_norm.layers(model))
    assert not isinstance(model.optimizer, keras.optimizers.AdamW)


def test_plain_keras_after_a_recipe(model):
    """`recipe="none"` has neither fixed layers nor a clip."""
    model.compile(keras.optimizers.SGD(0.0), SPARSE)
    fit(model)
    assert model.recipe.clip == 1.0
    model.compile(keras.optimizers.SGD(0.0), SPARSE)
    fit(model, recipe="none")
    assert model.recipe is None
    assert all(layer.trainable for layer in kd.batch_norm.layers(model))


def test_another_recipe_after_a_recipe(model):
    model.compile(keras.optimizers.SGD(0.0), SPARSE)
    fit(model, recipe=kd.Recipe(batch_norm=0.0, optimizer=None))
    model.compile(keras.optimizers.SGD(0.0), SPARSE)
    layers = kd.batch_norm.layers(model)
    before = [layer.moving_mean.numpy() for layer in layers]
    fit(model, recipe=kd.Recipe(batch_norm="training", optimizer=None))
    assert all(layer.trainable for layer in layers)
    for layer, value in zip(layers, before, strict=True):
        assert not np.array_equal(layer.moving_mean, value)


def test_a_recipe_without_a_regularizer(model):
    model.compile(keras.optimizers.SGD(0.0), SPARSE)
    fit(model, regularizer="none", recipe=kd.Recipe(optimizer=None))
    assert model.regularizer is None and model.recipe.regularizer is None
    tuned = kd.fine_tune(model.source, (X, Y), method="none", verbose=0)
    assert tuned.regularizer is None and tuned.probe.score == 1


def test_weights_of_a_generator_count(model):
    """Those of the head's fit too: here an image of the weight 0 has a wrong label."""
    weight = np.where(np.arange(24) % 4 == 0, 0.0, 1.0)
    wrong = np.where(weight == 0, (Y + 1) % 3, Y)
    heads = []
    for data in ((X, wrong, weight), (X[weight > 0], Y[weight > 0])):
        other = copy_of(model)
        other.compile(keras.optimizers.SGD(0.0), SPARSE)
        recipe = kd.Recipe(batch_norm=0.0, optimizer=None)
        fit_on = {"steps_per_epoch": 1, "verbose": 0, "regularizer": "l2"}
        other.fit((part for part in [data]), recipe=recipe, **fit_on)
        heads.append(other.target.get_layer("head").get_weights())
    check_same(*heads)


def test_lora_and_an_average_are_refused_before_the_training(model):
    model.target.get_layer("conv1").enable_lora(2)
    model.compile(keras.optimizers.SGD(0.0), SPARSE)
    with pytest.raises(ValueError, match="has LoRA"):
        fit(model, recipe=kd.Recipe(average=0.5, optimizer=None))
    assert int(model.optimizer.iterations) == 0


def test_averages_of_weights_that_are_frozen_later(model, tmp_path):
    """Keras assigns an optimizer's averages in the order of what trains."""
    adam = keras.optimizers.Adam(0.0, use_ema=True)
    model.compile(adam, SPARSE)
    kd.fit_head(model, X, Y, verbose=0)
    model.save(tmp_path / "start.keras")
    loaded = keras.saving.load_model(tmp_path / "start.keras")
    before = weights(loaded)
    fit(loaded)
    check_same(weights(loaded), before)


def test_kerass_default_optimizer_does_not_go_on_with_a_trained_network(model):
    """It has thrice the recipe's rate; weights alone have no optimizer."""
    model.compile(loss=SPARSE)
    fit(model)
    model.compile(loss=SPARSE)
    with pytest.raises(ValueError, match=r"trained before.*RMSprop.*`recipe="):
        fit(model)
    fit(model, recipe="none")
    model.compile(keras.optimizers.SGD(1e-3), SPARSE)
    fit(model)


def test_averages_under_loss_scaling(model):
    inner = keras.optimizers.Adam(0.0, use_ema=True)
    model.compile(keras.optimizers.LossScaleOptimizer(inner), SPARSE)
    fit(model, recipe="none")
    kd.freeze_until(model, model.taps[0])
    fit(model, recipe="none")  # Keras assigns the averages at its end


@pytest.mark.parametrize("form", [".keras", ".weights.h5"])
@pytest.mark.parametrize("then", ["none", kd.Recipe(batch_norm="training", epochs=1)])
def test_a_file_knows_what_its_recipe_fixed(model, tmp_path, form, then):
    """It can be set free, apart from what the user froze."""
    other = copy_of(model)
    for each in (model, other):
        each.target.get_layer("conv0").trainable = False
    model.compile(keras.optimizers.SGD(0.0), SPARSE)
    fit(model, recipe=kd.Recipe(batch_norm=0.0, freeze=0.5, optimizer=None))
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    if form == ".keras":
        loaded = keras.saving.load_model(tmp_path / "m.keras")
    else:
        loaded = other
        loaded.set_regularizer("l2")
        loaded.load_weights(tmp_path / "m.weights.h5")
    parts = [m.target.layers for m in (model, loaded)]
    assert [v.trainable for v in parts[0]] == [v.trainable for v in parts[1]]
    assert not all(v.trainable for v in parts[1])
    loaded.compile(keras.optimizers.SGD(0.0), SPARSE)
    fit(loaded, recipe=then)
    names = [v.name for v in loaded.target.layers if v.weights and not v.trainable]
    assert names == ["conv0"]


def test_validation_images_of_other_classes(tmp_path):
    images = {
        names: kd.data.ImageSet.from_arrays(X.astype("uint8"), Y, class_names=names)
        for names in (("a", "b", "c"), ("a", "c", "d"))
    }
    train, validation = images.values()
    network = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match=r"`validation`.*classes of `train`"):
        kd.fine_tune(network, train, validation)


def test_validation_images_without_the_last_class():
    """Numbers of arrays are not names; a class may be missing, or be a quantity."""
    y = np.minimum(Y, 1)
    sets = [fine_tuning_images.read((X.astype("uint8"), each))[0] for each in (Y, y)]
    assert [len(v.class_names) for v in sets] == [3, 2]
    for train, validation in (sets, sets[::-1]):
        fine_tuning_images.same_classes(train, validation)


def another_network(model, classes):
    """A teacher of the same structure, with other weights and its own head."""
    body = keras.models.clone_model(model.source)
    body.set_weights([w + 0.05 for w in model.source.get_weights()])
    return kd.attach_head(body, classes)


@pytest.mark.parametrize("regularizer", ["at", "fsp", "kd"])
def test_a_teacher_of_the_same_structure(model, regularizer):
    """The target cannot be compared with it, so it counts as new; nor be averaged."""
    teacher = another_network(model, 3 if regularizer == "kd" else 5)
    pupil = kd.DeltaModel(model.target, source=teacher)
    pupil.compile(loss=SPARSE)
    fit(pupil, regularizer=regularizer, epochs=1)
    assert pupil.recipe is not None and pupil.probe.score > 0.9
    pupil = kd.DeltaModel(copy_of(model).target, source=teacher)
    pupil.compile(keras.optimizers.SGD(0.0), SPARSE)
    recipe = kd.Recipe(average=0.5, optimizer=None)
    with pytest.raises(ValueError, match="is a teacher"):
        fit(pupil, regularizer=regularizer, recipe=recipe)


def test_a_second_fit_of_unknown_length(model):
    """The first one's schedule has ended at 0."""
    model.compile(loss=SPARSE)
    fit(model)
    assert float(model.optimizer.learning_rate) < 1e-7
    parts = ((X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16))
    model.fit(parts, verbose=0)
    rate = float(model.optimizer.learning_rate)
    assert rate == pytest.approx(model.recipe.learning_rate, rel=1e-6)
