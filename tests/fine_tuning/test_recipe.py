"""`Recipe`: its schedule, its length, its file, and what it refuses."""

import json

import keras
import numpy as np
import pytest

import keras_delta as kd


def twin_of_schedule(peak, warm_up, steps):
    """A straight line up, half a cosine down: the rate of each step."""
    warm, rates = round(warm_up * steps), []
    for step in range(steps):
        if step < warm:
            rates.append(peak * step / warm)
        else:
            done = (step - warm) / (steps - warm)
            rates.append(peak * (1 + np.cos(np.pi * done)) / 2)
    return rates


@pytest.mark.parametrize("warm_up", [0.0, 0.1, 0.25])
def test_the_rate_rises_and_falls(warm_up):
    optimizer = kd.Recipe(learning_rate=0.02, warm_up=warm_up).make_optimizer(40)
    optimizer.build([keras.Variable(1.0)])
    rates = []
    for _ in range(40):
        rates.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
        optimizer.iterations.assign_add(1)
    np.testing.assert_allclose(
        rates, twin_of_schedule(0.02, warm_up, 40), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize(
    ("batch_norm", "rate"), [(0.0, 3e-4), (0.25, 6e-4), ("training", 6e-4)]
)
def test_what_goes_by_the_statistics(batch_norm, rate):
    found = kd.Recipe().settled(batch_norm)
    assert (found.batch_norm, found.learning_rate) == (batch_norm, rate)
    assert kd.Recipe(learning_rate=0.1).settled(batch_norm).learning_rate == 0.1


@pytest.mark.parametrize(
    ("given", "clip"),
    [({}, None), ({"optimizer": None}, 1.0), ({"optimizer": None, "clip": 3.0}, 3.0)],
)
def test_what_goes_by_the_optimizer(given, clip):
    assert kd.Recipe(**given).settled(0.0).clip == clip


@pytest.mark.parametrize(
    ("steps", "epochs"), [(1, 40), (2, 30), (4, 15), (6, 10), (8, 10), (300, 10)]
)
def test_few_images_get_more_epochs(steps, epochs):
    assert kd.Recipe().epochs_for(steps) == epochs
    assert kd.Recipe(epochs=3).epochs_for(steps) == 3


def test_optimizers_by_name_config_and_instance():
    sgd = {"class_name": "SGD", "config": {"momentum": 0.9}}
    for given in (sgd, keras.optimizers.SGD(0.5, momentum=0.9)):
        made = kd.Recipe(optimizer=given, learning_rate=0.01).make_optimizer(10)
        assert isinstance(made, keras.optimizers.SGD) and made.momentum == 0.9
    assert isinstance(kd.Recipe().make_optimizer(10), keras.optimizers.AdamW)


def test_a_file_gives_the_recipe_back(tmp_path):
    recipe = kd.Recipe(
        regularizer=kd.regularizers.L2SP(alpha=0.2),
        optimizer={"class_name": "SGD", "config": {"momentum": 0.9}},
        batch_norm=0.25,
        epochs=7,
    )
    recipe.save(tmp_path / "recipe.json")
    loaded = kd.Recipe.load(tmp_path / "recipe.json")
    assert loaded.get_config() == recipe.get_config()
    assert kd.regularizers.get(loaded.regularizer).alpha == 0.2
    kd.Recipe().save(tmp_path / "recipe.json")
    assert kd.Recipe.load(tmp_path / "recipe.json") == kd.Recipe()


def test_files_of_other_versions_are_refused(tmp_path):
    path = tmp_path / "recipe.json"
    kd.Recipe().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(ValueError, match=r"version 99.*Create it again"):
        kd.Recipe.load(path)
    for text in ("[]", "{}", "no json"):
        path.write_text(text)
        with pytest.raises(ValueError, match="a file of Recipe"):
            kd.Recipe.load(path)
    with pytest.raises(FileNotFoundError):
        kd.Recipe.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"batch_norm": "frozen"}, TypeError, '"auto" or "training"'),
        ({"batch_norm": 1.5}, ValueError, "batch_norm"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"warm_up": 1.0}, ValueError, "warm_up"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"freeze": 2}, ValueError, "freeze"),
        ({"average": 1.0}, ValueError, "average"),
        ({"augmentation": "none"}, ValueError, "protocol"),
        ({"regularizer": "dleta"}, ValueError, "'delta'"),
        ({"optimizer": "adamv"}, ValueError, "adamv"),
        ({"fit_head": "auto"}, ValueError, "fit_head"),
    ],
)
def test_wrong_parts_are_refused(changes, error, text):
    with pytest.raises(error, match=text):
        kd.Recipe(**changes)


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match=r"learning_rates.*'learning_rate'"):
        kd.Recipe().replace(learning_rates=1.0)


def test_it_prints_each_part_with_its_value():
    shown = str(kd.Recipe(epochs=4, regularizer=kd.regularizers.L2()))
    assert "epochs         4" in shown and "regularizer    L2" in shown
