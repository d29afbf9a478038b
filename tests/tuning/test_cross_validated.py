"""Searches in which each trial is a cross-validation: what they train, keep and say."""

import functools
import itertools
import json
import signal

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from networks import make_backbone

import keras_delta as kd
from keras_delta.tuning import cross_validated, search
from keras_delta.tuning.cross_validated import CrossValidated
from keras_delta.tuning.folds import cut
from keras_delta.tuning.trials import Trials

pytestmark = pytest.mark.usefixtures("eagerly", "cheap_attention")

tuning = kd.tuning
SIZE = 8
ALPHAS, BETAS = [0.1, 10.0], [0.001, 0.1]
FIT = {"epochs": 2, "batch_size": 16, "verbose": 0, "source_maps": "compute"}


backbone_of = functools.partial(make_backbone, size=SIZE, widths=(3, 4))


def samples(count=24):
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    x = rng.normal(size=(count, SIZE, SIZE, 3)) + y[:, None, None, None] * 0.5
    return x.astype("float32"), y


def space(**given):
    given = {"alpha": ALPHAS, "beta": BETAS, "learning_rate": 0.02, **given}
    return tuning.DeltaHyperModel(
        given.pop("source", backbone_of),
        given.pop("target", lambda source: kd.attach_head(source, 3)),
        **given,
    )


def grid(folder, hypermodel=None, **given):
    given = {"folds": 3, "directory": folder, **given}
    return tuning.CrossValidatedGridSearch(hypermodel or space(), **given)


def scores(tuner):
    return {
        (cell.values["alpha"], cell.values["beta"], fold): score
        for cell in tuner.cells()
        for fold, score in cell.scores.items()
    }


@pytest.fixture(scope="module")
def searched(tmp_path_factory, eagerly, cheap_attention):
    """A search that ran through, with every training counted."""
    folder = tmp_path_factory.mktemp("search")
    keras.utils.set_random_seed(5)
    tuner = grid(folder)
    trained, computed = [], []
    trials = tuner._trials
    train, compute = trials._train, kd.ChannelAttention.compute
    trials._train = lambda *a: trained.append(a[1]) or train(*a)
    kd.ChannelAttention.compute = lambda *a, **k: computed.append(1) or compute(*a, **k)
    try:
        tuner.search(*samples(), **FIT)
    finally:
        kd.ChannelAttention.compute = compute
    return tuner, trained, len(computed)


def test_every_cell_on_every_fold_once(searched):
    tuner, trained, computed = searched
    cells = {(c.values["alpha"], c.values["beta"]) for c in tuner.cells()}
    assert cells == set(itertools.product(ALPHAS, BETAS))
    assert len(tuner.cells()) == 4
    assert sorted(trained) == sorted([0, 1, 2] * 4)
    assert computed == 3  # once a fold
    for cell in tuner.cells():
        assert cell.status == "COMPLETED"
        assert list(cell.scores) == [0, 1, 2]
        assert cell.score == pytest.approx(np.mean(list(cell.scores.values())))
        assert cell.metrics["val_loss"] > 0


def test_a_fold_is_what_a_plain_model_gives(searched):
    """The slow way: a model of its own, the fold's data by hand."""
    tuner = searched[0]
    x, y = samples()
    data = tuner._search.data
    cell = tuner.cells()[0]
    for fold in (0, 2):
        held_out = data.parts.held_out[fold]
        hp = keras_tuner.HyperParameters()
        tuner.hypermodel.declare_hyperparameters(hp)
        hp.values.update(cell.values)
        keras.utils.set_random_seed(tuner.seed + 1 + fold)
        model = tuner.hypermodel.build(hp)
        model.prepare(data.train(fold), verbose=0)
        model.fit(data.train(fold), epochs=2, verbose=0, shuffle=False)
        loss = model.evaluate(x[held_out], y[held_out], verbose=0)[0]
        found = json.loads(
            next(
                p
                for p in (tuner.folder / "cells").glob(f"*/fold_{fold}.json")
                if json.loads((p.parent / "values.json").read_text()) == cell.values
            ).read_text()
        )
        assert found["metrics"]["val_loss"] == pytest.approx(loss, rel=1e-5)


def test_going_on_trains_nothing_twice(searched, tmp_path, monkeypatch):
    whole = scores(searched[0])
    calls = []
    original = Trials._train

    def dies(self, trial, fold, *rest):
        if len(calls) in (2, 7):
            calls.append(None)
            raise RuntimeError("killed")
        calls.append((trial.hyperparameters.values["alpha"], fold))
        return original(self, trial, fold, *rest)

    monkeypatch.setattr(Trials, "_train", dies)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            grid(tmp_path).search(*samples(), **FIT)
    tuner = grid(tmp_path)
    tuner.search(*samples(), **FIT)
    assert len([c for c in calls if c]) == 12
    assert scores(tuner).keys() == whole.keys()
    for key, score in scores(tuner).items():
        assert score == pytest.approx(whole[key], abs=1e-6)
    assert tuner.cells()[-1].trial_id == "0003"
    assert (
        tuner.get_best_hyperparameters()[0].values
        == searched[0].get_best_hyperparameters()[0].values
    )


def test_a_search_that_is_done_returns_at_once(searched, capsys):
    tuner = grid(searched[0].directory)
    tuner._trials._train = None  # would fail
    tuner.search(*samples(), **{**FIT, "verbose": 1})
    assert "4 of 4 cells are done" in capsys.readouterr().out
    assert scores(tuner) == scores(searched[0])


def test_what_comes_out(searched, tmp_path):
    tuner = searched[0]
    frame = tuner.results_frame()
    means = frame["val_accuracy"].to_numpy()
    assert (np.diff(means) <= 0).all()
    folds = frame[["fold_0", "fold_1", "fold_2"]].to_numpy()
    np.testing.assert_allclose(means, folds.mean(1))
    np.testing.assert_allclose(frame["standard_error"], folds.std(1, ddof=1) / 3**0.5)
    assert (tuner.folder / "results.csv").exists()
    assert "val_accuracy" in tuner.summary()
    best = tuner.best_regularizer()
    values = tuner.get_best_hyperparameters(2)[0].values
    assert (best.alpha, best.beta) == (values["alpha"], values["beta"])
    tuner.plot_surface(tmp_path / "surface.png")
    assert (tmp_path / "surface.png").stat().st_size > 5000
    tuner.write_hparams(tmp_path / "logs")
    assert list((tmp_path / "logs").rglob("*tfevents*"))
    with pytest.raises(ValueError, match="fit_best"):
        tuner.get_best_models()


def test_fit_best(searched):
    tuner = searched[0]
    model = tuner.fit_best(verbose=0)
    values = tuner.get_best_hyperparameters()[0].values
    assert model.regularizer.alpha == values["alpha"]
    assert len(model.history.history["loss"]) == 2
    again = grid(tuner.directory).fit_best(*samples(), verbose=0)
    for a, b in zip(model.target.weights, again.target.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(ValueError, match=r"Call `search` first.*fit_best\(train\)"):
        grid(tuner.directory).fit_best()


def test_fit_best_in_a_chief(searched, monkeypatch):
    later = grid(searched[0].directory)
    of_chief(monkeypatch)
    with pytest.raises(
        ValueError, match=r"did\. A chief has no data\. Pass.*best\(train"
    ):
        later.fit_best()


def of_chief(monkeypatch):
    for name, value in {"IP": "127.0.0.1", "PORT": "8000"}.items():
        monkeypatch.setenv(f"KERASTUNER_ORACLE_{name}", value)
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"epochs": 3}, "epochs: 2 before, 3 now"),
        ({"batch_size": 4}, "batch_size: 16 before, 4 now"),
    ],
)
def test_a_folder_of_another_search(searched, changed, named):
    with pytest.raises(ValueError, match=f"another search.*{named}.*overwrite"):
        grid(searched[0].directory).search(*samples(), **{**FIT, **changed})


def test_a_folder_of_other_data_or_another_space(searched):
    folder = searched[0].directory
    x, y = samples()
    with pytest.raises(ValueError, match=r"contains another search.*data"):
        grid(folder).search(x + 1, y, **FIT)
    with pytest.raises(ValueError, match=r"contains another search.*space"):
        grid(folder, space(alpha=[0.1, 3.0])).search(x, y, **FIT)
    other = space(source=lambda: backbone_of(seed=1))
    with pytest.raises(ValueError, match="`source` returned other weights than before"):
        grid(folder, other).search(x, y, **FIT)


def test_what_differs_is_named(searched):
    with pytest.raises(ValueError, match=r"space, alpha, values: \[0.1, 10.0\] before"):
        grid(searched[0].directory, space(alpha=[0.1, 3.0])).search(*samples(), **FIT)
    more = space(metrics=("accuracy", "sparse_top_k_categorical_accuracy"))
    named = r"metrics: \['accuracy'\] before, \['accuracy', 'sparse_top_k"
    with pytest.raises(ValueError, match=named):
        grid(searched[0].directory, more).search(*samples(), **FIT)


def test_mistakes_that_only_a_later_cell_would_meet(tmp_path):
    later = space(taps={"a": "auto", "b": ["conv9"]})
    with pytest.raises(ValueError, match="conv9"):
        grid(tmp_path / "taps", later).search(*samples(), **FIT)
    x, y = samples()
    with pytest.raises(ValueError, match=r"(?i)class"):
        grid(tmp_path / "labels").search(x, y + 1, **FIT)
    with pytest.raises(TypeError, match=r"`source`.*Does the function return"):
        grid(tmp_path / "none", space(source=lambda: None)).search(x, y, **FIT)
    with pytest.raises(ValueError, match="`seed`"):
        grid(tmp_path / "seed", seed=None)


def test_data_sets_that_cannot_be_cut(tmp_path, tensorflow_seed):
    x, y = samples()
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    with pytest.raises(ValueError, match="omit `y`"):
        grid(tmp_path).search(dataset.batch(8), y, **FIT)
    with pytest.raises(ValueError, match="a different order each time"):
        grid(tmp_path).search(dataset.shuffle(24).batch(8), **FIT)


def test_overwrite_deletes(searched, tmp_path):
    (tmp_path / "alpha_beta").mkdir()
    (tmp_path / "alpha_beta" / "search.json").write_text("{}")
    grid(tmp_path, overwrite=True)
    assert not (tmp_path / "alpha_beta" / "search.json").exists()


def test_overwrite_would_delete_what_others_have_found(tmp_path, monkeypatch):
    """Also in processes that were started by hand."""
    (tmp_path / "alpha_beta").mkdir()
    (tmp_path / "alpha_beta" / "search.json").write_text("{}")
    of_chief(monkeypatch)
    with pytest.raises(ValueError, match=r"whenever a process of the search starts\."):
        grid(tmp_path, overwrite=True)
    assert (tmp_path / "alpha_beta" / "search.json").exists()


def test_an_objective_that_is_never_logged(tmp_path):
    with pytest.raises(ValueError, match=r"val_acuracy.*Closest.*'val_accuracy'"):
        grid(tmp_path, objective="val_acuracy")
    tuner = grid(tmp_path, objective=keras_tuner.Objective("val_acuracy", "max"))
    tuner._trials._train = None
    with pytest.raises(ValueError, match=r"val_acuracy.*Closest.*val_accuracy"):
        tuner.search(*samples(), **FIT)


def test_an_objective_whose_direction_keras_tuner_would_guess_wrong(tmp_path):
    """Keras Tuner would search for the smallest F1."""
    hypermodel = space(metrics=[lambda: keras.metrics.F1Score(name="f1_score")])
    with pytest.raises(ValueError, match=r'Objective\("val_f1_score", "max"\)'):
        grid(tmp_path, hypermodel, objective="val_f1_score")
    objective = keras_tuner.Objective("val_f1_score", "max")
    assert grid(tmp_path, hypermodel, objective=objective).oracle.objective == objective
    assert (
        grid(tmp_path / "b", objective="val_loss").oracle.objective.direction == "min"
    )


def test_too_few_samples_in_a_class(tmp_path):
    x, y = samples()
    y[:] = 0
    y[:2] = 1
    with pytest.raises(ValueError, match=r"`folds`.*Classes with fewer.*: 1 \(2\)"):
        grid(tmp_path).search(x, y, **FIT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folds": 1}, "folds"),
        ({"rule": "bset"}, "rule"),
        ({"discard": 0.7}, "discard"),
        ({"executions_per_trial": 2}, "executions_per_trial"),
    ],
)
def test_bad_arguments(tmp_path, given, message):
    with pytest.raises(ValueError, match=f"`{message}`"):
        grid(tmp_path, **given)


class Own(kd.regularizers.Regularizer):
    """Keeps what it computed where only the first fold would have computed it."""

    def prepare(self, model, samples, verbose=True):
        self.mean = float(samples(8)[0].mean())


def test_an_own_regularizer_that_prepares_once(tmp_path):
    tuner = grid(tmp_path, space(regularizer=lambda alpha, beta: Own(alpha, beta)))
    with pytest.raises(keras_tuner.errors.FatalValueError, match="but not `ready`"):
        tuner.search(*samples(), **FIT)


def test_maps_that_cannot_be_cached_are_computed(new_backbone):
    """Because the target's own augmentation changes what the source sees."""
    images = keras.Input((SIZE, SIZE, 3))
    source = backbone_of()
    flip = keras.layers.RandomFlip("horizontal")
    target = keras.Model(images, kd.attach_head(source, 3)(flip(images)))
    for each, cached in ((target, False), (kd.attach_head(source, 3), True)):
        model = kd.DeltaModel(each, source, regularizer="feature_map")
        model.compile("sgd", "mse", jit_compile=False)
        found = search.cache_for(model, "auto", samples(), None)
        assert (found != "compute") == cached


def test_bad_objects(tmp_path):
    with pytest.raises(TypeError, match="`hypermodel`"):
        grid(tmp_path, lambda hp: None)
    with pytest.raises(TypeError, match="`objective`"):
        grid(tmp_path, objective=["val_loss", "val_accuracy"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`directory`.*a folder that can be written"):
        grid(tmp_path / "file")
    with pytest.raises(ValueError, match="`epochs`"):
        grid(tmp_path).search(*samples(), epochs=0)


def test_a_cell_that_diverges_is_skipped(tmp_path, capsys):
    tuner = grid(tmp_path, space(alpha=[1e30, 1.0], beta=0.01))
    tuner.search(*samples(), **{**FIT, "verbose": 1, "epochs": 3})
    failed, good = tuner.cells()
    assert (failed.status, good.status) == ("FAILED", "COMPLETED")
    assert "alpha is 1e+30" in failed.message
    assert "Cell 1/2  alpha 1e+30  beta 0.01  failed: Fold 0" in capsys.readouterr().out
    assert "1 failed" in tuner.summary()
    assert tuner.best_regularizer().alpha == 1.0
    # Not tried again.
    tuner = grid(tmp_path, space(alpha=[1e30, 1.0], beta=0.01))
    tuner._trials._train = None
    tuner.search(*samples(), **{**FIT, "epochs": 3})


def test_where_all_fail(tmp_path):
    tuner = grid(tmp_path, space(alpha=[1e30, 1e31], beta=0.01))
    with pytest.raises(ValueError, match=r"of 2, 2 failed.*the loss is nan"):
        tuner.search(*samples(), **{**FIT, "epochs": 3})


def test_out_of_memory_fails_a_cell_and_other_errors_end_the_search(tmp_path):
    tuner = grid(tmp_path)

    def train(trial, fold, *rest):
        if trial.hyperparameters.values["alpha"] == 0.1:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        raise ZeroDivisionError("a bug")

    tuner._trials._train = train
    with pytest.raises(ZeroDivisionError):
        tuner.search(*samples(), **FIT)
    failed, running = tuner.cells()
    assert (failed.status, running.status) == ("FAILED", "RUNNING")
    assert "out of memory" in failed.message


def test_ctrl_c_keeps_no_half_training(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            signal.raise_signal(signal.SIGINT)

    tuner = grid(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tuner.search(*samples(), **FIT, callbacks=[Stop()])
    assert scores(tuner) == {}


def _cut(tuner, model, data, options):
    return cut(*data, folds=tuner.folds, seed=tuner.seed, **options)


class Scripted:
    """Trainings that take no time: a score for each cell and fold."""

    def __init__(self, monkeypatch, score):
        self.trained = []
        monkeypatch.setattr(Trials, "_train", self._train)
        monkeypatch.setattr(Trials, "evaluate", self._evaluate)
        monkeypatch.setattr(cross_validated.WarmModels, "need", lambda *a: None)
        monkeypatch.setattr(search, "image_size", lambda model: None)
        for module, name in (
            (cross_validated.checks, "data_fits"),
            (cross_validated.objectives, "check_task"),
        ):
            monkeypatch.setattr(module, name, lambda *a, **k: None)
        monkeypatch.setattr(cross_validated.CrossValidated, "_cut", _cut)
        monkeypatch.setattr(tuning.DeltaHyperModel, "check_taps", lambda *a: None)
        self._score = score

    def _train(self, trial, fold, epochs, job):
        values = trial.hyperparameters.values
        self.trained.append((values["alpha"], fold, epochs))
        return values["alpha"], fold

    def _evaluate(self, trained, held_out, most=None):
        accuracy = self._score(*trained) if trained else 0.0
        return {"val_accuracy": accuracy, "val_loss": 1.0}


@pytest.fixture
def scripted(monkeypatch):
    return lambda score: Scripted(monkeypatch, score)


HARD = [0.0, -0.2, 0.1, 0.02, -0.1]  # how much easier or harder each fold is


def test_hopeless_cells_are_discarded(tmp_path, scripted):
    noise = np.random.default_rng(0).normal(size=(3, 5)) * 0.01
    alphas = [1.0, 2.0, 3.0]
    good = {1.0: 0.8, 2.0: 0.3, 3.0: 0.805}
    script = scripted(
        lambda alpha, k: good[alpha] + HARD[k] + noise[alphas.index(alpha), k]
    )
    tuner = grid(tmp_path, space(alpha=alphas, beta=0.01), folds=5, discard=0.05)
    tuner.search(*samples(), **FIT)
    first, hopeless, close = tuner.cells()
    assert len(first.scores) == len(close.scores) == 5
    assert hopeless.discarded and len(hopeless.scores) == 3
    # What it lacks is measured on the same folds.
    assert hopeless.score == pytest.approx(0.3 + np.mean(HARD), abs=0.02)
    assert not first.discarded and not close.discarded
    assert "1 discarded" in tuner.summary()
    count = len(script.trained)
    again = grid(tmp_path, space(alpha=alphas, beta=0.01), folds=5, discard=0.05)
    again.search(*samples(), **FIT)
    assert len(script.trained) == count


def test_rules(tmp_path, scripted):
    good = {0.5: 0.801, 1.0: 0.801, 2.0: 0.79, 3.0: 0.5}
    scripted(lambda alpha, k: good[alpha] + HARD[k])
    for rule, best in (("best", 0.5), ("one_standard_error", 2.0)):
        tuner = grid(tmp_path / rule, space(alpha=list(good), beta=0.01), rule=rule)
        tuner.search(*samples(), **FIT)
        assert tuner.get_best_hyperparameters()[0].values["alpha"] == best


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (tuning.CrossValidatedRandomSearch, {"max_trials": 6}),
        (
            tuning.CrossValidatedBayesianOptimization,
            {"max_trials": 4, "num_initial_points": 2},
        ),
        (tuning.CrossValidatedHyperband, {"max_epochs": 9}),
    ],
)
def test_other_searches(tmp_path, scripted, kind, given):
    script = scripted(lambda alpha, k: 0.9 - 0.1 * abs(np.log10(alpha / 3)) + HARD[k])
    common = {"folds": 3, "directory": tmp_path, "seed": 3, **given}
    tuner = kind(space(alpha=(0.01, 100.0), beta=(0.001, 0.1)), **common)
    tuner.search(*samples(), **{**FIT, "epochs": 9})
    found = tuner.get_best_hyperparameters()[0].values
    assert 0.2 < found["alpha"] < 50
    epochs = {e for _, _, e in script.trained}
    assert (len(epochs) > 1) == (kind is tuning.CrossValidatedHyperband)
    # Every fold of every cell once, and the same again where it goes on.
    assert len(script.trained) == 3 * len(tuner.cells())
    count = len(script.trained)
    again = kind(space(alpha=(0.01, 100.0), beta=(0.001, 0.1)), **common)
    again.search(*samples(), **{**FIT, "epochs": 9})
    assert len(script.trained) == count
    assert again.get_best_hyperparameters()[0].values == found


def test_a_mix_in_for_any_tuner(tmp_path, scripted):
    class Mine(CrossValidated, keras_tuner.RandomSearch):
        pass

    scripted(lambda alpha, k: 0.5)
    tuner = Mine(space(), directory=tmp_path, max_trials=2, folds=2)
    tuner.search(*samples(), **FIT)
    assert len(tuner.cells()) == 2


@pytest.mark.slow
def test_two_replicas_give_the_same_scores(tmp_path, strategy):
    """No BatchNormalization: its statistics are each replica's own."""
    found = []
    for name, given in (("one", {}), ("two", {"distribution_strategy": strategy})):
        tuner = grid(
            tmp_path / name,
            space(alpha=[0.5, 5.0], beta=0.01),
            objective="val_loss",
            folds=2,
            **given,
        )
        tuner.search(*samples(24), **FIT)
        found.append(scores(tuner))
    assert found[0].keys() == found[1].keys()
    for key, score in found[0].items():
        assert found[1][key] == pytest.approx(score, rel=1e-5)


def test_images_and_callbacks(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(18) % 3
    images = rng.integers(0, 256, (18, 20, 24, 3)).astype("uint8")
    images[..., 0] = labels[:, None, None] * 100
    data = kd.data.ImageSet.from_arrays(images, labels, list("abc"))
    hypermodel = space(alpha=1.0, beta=[0.01, 0.1])
    tuner = grid(tmp_path / "search", hypermodel, folds=2)
    tuner.search(
        data,
        **{**FIT, "epochs": 1, "source_maps": "auto"},
        views=2,
        validate=True,
        callbacks=[keras.callbacks.TensorBoard(str(tmp_path / "logs"))],
    )
    assert len(tuner.cells()) == 2
    cache = tuner._search.source_maps
    # At most 2 views of 9 images in each fold, all there for the second cell.
    assert 18 <= len(cache) <= 36
    assert (cache.hits, cache.misses) == (9, 0)
    runs = {p.parent.name for p in (tmp_path / "logs" / "0000").glob("*/train")}
    runs |= {p.name for p in (tmp_path / "logs" / "0000").iterdir()}
    assert {"execution0", "execution1"} <= runs
    model = tuner.fit_best(data, verbose=0)
    assert len(model.history.history["loss"]) == 1


def test_augmentation_of_ones_own(tmp_path):
    asked = []

    def batches(part, training):
        asked.append((len(part[1]), training))
        return tf.data.Dataset.from_tensor_slices(part).batch(4)

    tuner = grid(tmp_path, space(alpha=1.0, beta=[0.01, 0.1]))
    tuner.search(*samples(), epochs=1, batches=batches, verbose=0)
    assert set(asked) == {(16, True), (8, False)}
    assert len(tuner.cells()) == 2
    later = grid(tmp_path, space(alpha=1.0, beta=[0.01, 0.1]))
    with pytest.raises(
        ValueError, match=r"`batches`\. Expected the function that `sea"
    ):
        later.fit_best(*samples())
    later.fit_best(*samples(), batches=batches, verbose=0)
    assert asked[-1] == (24, True)
