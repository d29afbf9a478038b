"""`GridOracle`: every cell once, in order, and on from where it was interrupted."""

import keras_tuner
import numpy as np
import pytest

from keras_delta.tuning.oracles import GridOracle, GridSearch

ALPHA, BETA = [0.1, 0.2, 0.4], [1.0, 2.0]


def two(hp):
    return hp.Choice("alpha", ALPHA), hp.Choice("beta", BETA)


def oracle_of(declare, folder=None, **kwargs):
    """A `GridOracle` that knows the hyperparameters of `declare`."""
    oracle = GridOracle("val_loss", **kwargs)
    hp = keras_tuner.HyperParameters()
    declare(hp)
    oracle.update_space(hp)
    oracle.verbose = 0
    if folder is not None:
        oracle._set_project_dir(str(folder), "grid")
    return oracle


def run(oracle, most=None, tuner="tuner0"):
    """Values of the trials that the oracle gives, each with its sum as a score."""
    found = []
    while most is None or len(found) < most:
        trial = oracle.create_trial(tuner)
        if trial.status == "STOPPED":
            break
        found.append(dict(trial.hyperparameters.values))
        finish(oracle, trial)
    return found


def finish(oracle, trial):
    score = sum(trial.hyperparameters.values.values())
    oracle.update_trial(trial.trial_id, {"val_loss": float(score)})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    oracle.save()  # as the tuner does; `end_trial` saves a moment too early


def test_every_cell_once_the_first_declared_fastest(tmp_path):
    oracle = oracle_of(two, tmp_path)
    expected = [{"alpha": a, "beta": b} for b in BETA for a in ALPHA]
    assert oracle.cells() == expected
    assert run(oracle) == expected
    assert run(oracle) == []


def test_max_trials_ends_it_early(tmp_path):
    assert len(run(oracle_of(two, tmp_path, max_trials=4))) == 4


def conditional(hp):
    variant = hp.Choice("variant", ["code", "relative"])
    with hp.conditional_scope("variant", ["code"]):
        hp.Choice("alpha_code", [0.01, 0.02])
    with hp.conditional_scope("variant", ["relative"]):
        hp.Choice("alpha_relative", [1.0, 2.0, 3.0])
    hp.Choice("beta", BETA)
    return variant


def test_conditional_hyperparameters(tmp_path):
    """Inactive ones multiply nothing; what others depend on changes slowest."""
    expected = [
        {"variant": v, f"alpha_{v}": a, "beta": b}
        for v, alphas in (("code", [0.01, 0.02]), ("relative", [1.0, 2.0, 3.0]))
        for b in BETA
        for a in alphas
    ]
    oracle = oracle_of(conditional)
    assert oracle.cells() == expected

    oracle = oracle_of(conditional, tmp_path)
    found = []
    while (trial := oracle.create_trial("tuner0")).status != "STOPPED":
        found.append(dict(trial.hyperparameters.values))
        oracle.update_trial(trial.trial_id, {"val_loss": 1.0})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert found == expected


def test_a_range_becomes_points_evenly_spaced_in_the_logarithm():
    def declare(hp):
        hp.Float("alpha", 0.1, 100.0, sampling="log", default=3.0)

    cells = oracle_of(declare, points=4).cells()
    np.testing.assert_allclose([c["alpha"] for c in cells], [0.1, 1, 10, 100])
    assert (cells[0]["alpha"], cells[-1]["alpha"]) == (0.1, 100.0)
    assert len(oracle_of(declare).cells()) == 5


def test_other_kinds_of_hyperparameters():
    def declare(hp):
        hp.Boolean("flag")
        hp.Int("number", 1, 3)
        hp.Float("stepped", 0.0, 1.0, step=0.5)
        hp.Fixed("fixed", 7)

    cells = oracle_of(declare).cells()
    assert len(cells) == 2 * 3 * 3
    assert {c["fixed"] for c in cells} == {7}
    assert {c["stepped"] for c in cells} == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("points", [1, 0, -3, 2.5, True, None])
def test_bad_points(points):
    with pytest.raises(ValueError, match=r"`points`.*integer"):
        GridOracle("val_loss", points)


def test_two_workers_share_the_cells(tmp_path):
    oracle = oracle_of(two, tmp_path)
    running = [oracle.create_trial(f"worker-{i}") for i in range(2)]
    values = [t.hyperparameters.values for t in running]
    assert values == oracle.cells()[:2]
    finish(oracle, running[1])
    assert oracle.create_trial("worker-1").hyperparameters.values == oracle.cells()[2]


@pytest.mark.parametrize("done", range(7))
def test_a_new_process_goes_on(tmp_path, done):
    first = oracle_of(two, tmp_path)
    before = run(first, most=done)
    first.save()  # where nothing has been done

    again = oracle_of(two, tmp_path)
    again.reload()
    assert before + run(again) == again.cells()
    assert len(again.trials) == 6


def test_what_was_interrupted_comes_first(tmp_path):
    oracle = oracle_of(two, tmp_path)
    run(oracle, most=2)
    interrupted = dict(oracle.create_trial("tuner0").hyperparameters.values)

    again = oracle_of(two, tmp_path)
    again.reload()
    found = run(again)
    assert found[0] == interrupted == again.cells()[2]
    assert [*again.cells()[:2], *found] == again.cells()


def test_ranges_are_the_same_values_after_a_reload(tmp_path):
    def declare(hp):
        hp.Float("alpha", 1e-4, 0.2, sampling="log")
        hp.Float("beta", 1e-4, 1.0, sampling="log")

    oracle = oracle_of(declare, tmp_path, points=3)
    before = run(oracle, most=4)
    again = oracle_of(declare, tmp_path, points=3)
    again.reload()
    assert before + run(again) == again.cells()
    assert len(again.trials) == 9


def tuner(kind, folder, **kwargs):
    class Toy(kind):
        def run_trial(self, trial, *args, **kwargs):
            return {"val_loss": 1.0}

    def build(hp):
        two(hp)

    made = Toy(
        build,
        keras_tuner.Objective("val_loss", "min"),
        directory=str(folder),
        project_name="toy",
        **kwargs,
    )
    made.oracle.verbose = 0
    return made


def tried(search):
    return [
        {k: t.hyperparameters.values[k] for k in ("alpha", "beta")}
        for t in search.oracle.trials.values()
    ]


@pytest.mark.parametrize(
    ("kind", "goes_on"), [(GridSearch, True), (keras_tuner.GridSearch, False)]
)
def test_keras_tuners_own_grid_does_not_go_on(tmp_path, capsys, kind, goes_on):
    """The reason for ours: after a restart theirs is over, or begins anew."""
    search = tuner(kind, tmp_path, max_trials=2)
    search.search()
    assert len(tried(search)) == 2

    again = tuner(kind, tmp_path, max_trials=6)
    try:
        again.search()
    except Exception:
        assert not goes_on
    cells = [{"alpha": a, "beta": b} for b in BETA for a in ALPHA]
    complete = sorted(map(str, tried(again))) == sorted(map(str, cells))
    assert complete == goes_on
