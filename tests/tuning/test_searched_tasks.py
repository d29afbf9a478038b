"""Searches for other tasks than one of several classes: folds, metrics, refusals."""

import functools

import keras
import keras_tuner
import numpy as np
import pytest
from networks import make_backbone

import keras_delta as kd

pytestmark = pytest.mark.usefixtures("eagerly")

SIZE = 8
FIT = {"epochs": 1, "batch_size": 16, "verbose": 0, "source_maps": "compute"}
backbone_of = functools.partial(make_backbone, size=SIZE, widths=(3, 4))


def samples(count=24):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, SIZE, SIZE, 3)).astype("float32"), np.arange(24) % 3


def uniform(alpha, beta):
    return kd.regularizers.Delta(alpha, beta, attention="uniform")


def space(**given):
    given = {"regularizer": uniform, "alpha": 1.0, "beta": 0.01, **given}
    target = given.pop("target", lambda source: kd.attach_head(source, 3))
    return kd.tuning.DeltaHyperModel(backbone_of, target, **given)


def grid(folder, hypermodel=None, **given):
    given = {"folds": 3, "directory": folder, **given}
    return kd.tuning.CrossValidatedGridSearch(hypermodel or space(), **given)


def of_task(task, **given):
    """A space and the labels of 24 samples."""
    units = {"multilabel": 3, "binary": 1, "regression": 1}[task]
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    number = np.random.default_rng(1).integers(-5, 50, 24)  # few of them twice
    y = {
        "multilabel": np.arange(24)[:, None] // [1, 2, 4] % 2,
        "binary": (np.arange(24) % 2).astype("float32"),
        "regression": number,
    }[task]
    given = {"loss": "mse" if task == "regression" else loss, **given}
    return space(target=lambda source: kd.attach_head(source, units), **given), y


@pytest.mark.parametrize("task", ["multilabel", "binary", "regression"])
@pytest.mark.filterwarnings("ignore:The metric 'accuracy'")
def test_an_accuracy_of_another_task_is_no_objective(tmp_path, task):
    hyper, y = of_task(task)
    name = "'mae'" if task == "regression" else r"BinaryAccuracy\(threshold=0\)"
    with pytest.raises(ValueError, match=f"does not fit the task.*{name}.*val_loss"):
        grid(tmp_path, hyper).search(samples()[0], y, **FIT)


@pytest.mark.parametrize("task", ["multilabel", "binary", "regression"])
def test_each_task_is_searched_by_its_metric(tmp_path, task):
    binary = [lambda: keras.metrics.BinaryAccuracy(threshold=0)]
    metrics = ["mae"] if task == "regression" else binary
    name = "val_mae" if task == "regression" else "val_binary_accuracy"
    hyper, y = of_task(task, metrics=metrics)
    tuner = grid(tmp_path, hyper, objective=name)
    tuner.search(samples()[0], y, **FIT)
    held_out = tuner._search.data.parts.held_out
    if task == "binary":
        assert [y[part].sum() for part in held_out] == [4, 4, 4]
    scores = [c.score for c in tuner.cells()]
    best = min(scores) if task == "regression" else max(scores)
    unit = "%" if task != "regression" else ""
    assert f"{name} {best * 100 if unit else best:.4g}"[:14] in tuner.summary()
    assert tuner.results_frame()[name].iloc[0] == best
    assert tuner.plot_surface().axes[0].get_title("left").startswith(name)
    later = grid(tmp_path, hyper, objective=name)
    later.fit_best(samples()[0], y, verbose=0)  # numbers are no classes there either


def two_headed(source):
    target = kd.attach_head(source, 3)
    age = keras.layers.Dense(1, name="age", dtype="float32")
    outputs = {"head": target.output, "age": age(target.layers[-2].output)}
    return keras.Model(target.input, outputs)


def test_several_outputs(tmp_path):
    x, y = samples()
    labels = {"head": y, "age": np.linspace(-1, 1, 24)}
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    given = {"target": two_headed, "loss": {"head": sparse, "age": "mse"}}
    objective = keras_tuner.Objective("val_head_accuracy", "max")
    with pytest.raises(ValueError, match=r"metrics.*dict for the outputs"):
        grid(tmp_path / "a", space(**given)).search(x, labels, **FIT)
    given["metrics"] = {"head": "accuracy", "age": ["mae"]}
    with pytest.raises(ValueError, match=r"val_head_accuracy` does not"):
        grid(tmp_path / "b", space(**given), objective="val_head_accuracy")
    tuner = grid(tmp_path / "c", space(**given), objective=objective)
    tuner.search(x, labels, **FIT)
    assert {"val_age_mae", "val_head_loss"} <= set(tuner.cells()[0].metrics)
    assert tuner.cells()[0].score is not None
    given["metrics"]["age"] = "accuracy"
    with (
        pytest.warns(UserWarning, match="counts equal numbers"),
        pytest.raises(ValueError, match="does not fit the task"),
    ):
        objective = keras_tuner.Objective("val_age_accuracy", "max")
        grid(tmp_path / "d", space(**given), objective=objective).search(
            x, labels, **FIT
        )


def test_all_labels_are_looked_at(tmp_path):
    x, y = samples()
    for wrong, text in ((np.where(y, y, 5), "classes=6"), (0 * y, "or more classes")):
        wrong[:16] = y[:16] if wrong.any() else 0  # later than the first batch
        with pytest.raises(ValueError, match=text):
            grid(tmp_path).search(x, wrong, **FIT)
    with pytest.raises(ValueError, match="no sample weights"):
        grid(tmp_path).search((x, y, np.ones(24)), **FIT)
