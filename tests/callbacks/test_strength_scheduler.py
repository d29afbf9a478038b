"""Alpha and beta over epochs and steps."""

import math

import keras
import model_reference as reference
import numpy as np
import pytest

from keras_delta._training.step import Step
from keras_delta.callbacks import StrengthScheduler
from keras_delta.callbacks.strength_scheduler import name_members
from keras_delta.regularizers import L2SP, Delta, FeatureMap, Sum

X, Y = reference.learnable_data(16)
schedules = keras.optimizers.schedules


def make(new_backbone, regularizer="map", rate=0.05, **kwargs):
    if regularizer == "map":
        regularizer = FeatureMap(0.5, 0.1)
    pair = reference.pair(new_backbone)
    kwargs = {"run_eagerly": True, **kwargs}
    return reference.compiled(*pair, regularizer, rate=rate, **kwargs)


def fit(model, *callbacks, epochs=3, **kwargs):
    """Four steps an epoch, in the order of the data."""
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs).history


def falling(index):
    return 1 / (index + 1)


class Seen(keras.callbacks.Callback):
    """The strengths at each step, as the step sees them."""

    def on_train_begin(self, logs=None):
        self.alpha = []

    def on_train_batch_begin(self, batch, logs=None):
        self.alpha.append(float(self.model.regularizer.alpha))


def test_by_epoch(new_backbone):
    """Weights stand still, so the penalties are in proportion to the strengths."""
    scheduler = StrengthScheduler(alpha=falling, beta=lambda epoch: 0.2 * epoch)
    model = make(new_backbone, rate=0.0)
    logs = fit(model, scheduler)
    assert logs["alpha"] == [1.0, 0.5, 1 / 3]
    assert logs["beta"] == [0.0, 0.2, 0.4]
    ratio = np.divide(logs["feature_penalty"], logs["feature_penalty"][0])
    np.testing.assert_allclose(ratio, [1, 0.5, 1 / 3], rtol=1e-5)
    ratio = np.divide(logs["head_penalty"], logs["head_penalty"][1])
    np.testing.assert_allclose(ratio, [0, 1, 2], rtol=1e-5)
    assert model.regularizer.alpha == 1 / 3  # stays as last set


def test_by_step(new_backbone):
    seen = Seen()
    model = make(new_backbone)
    logs = fit(model, StrengthScheduler(falling, by="step"), seen, epochs=2)
    np.testing.assert_allclose(seen.alpha, [1 / (i + 1) for i in range(8)])
    assert logs["alpha"] == [1 / 4, 1 / 8] and logs["beta"] == [0.1, 0.1]


def test_the_step_sees_the_strength_set_for_it(new_backbone):
    model = make(new_backbone, rate=0.0)
    scheduler = StrengthScheduler([0.0, 1.0, 0.0, 3.0].__getitem__, by="step")
    model.watch(1)
    found = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found.append(float(self.model.watched["feature_penalty"]))

    fit(model, scheduler, Watch(), epochs=1)
    assert found[0] == found[2] == 0 and found[1] > 0 and found[3] > 0


@pytest.mark.parametrize(
    "schedule, expected",
    [
        (schedules.PolynomialDecay(5.0, 4, 1.0), [5, 4, 3, 2, 1, 1]),  # linear
        (schedules.PolynomialDecay(0.0, 4, 2.0), [0, 0.5, 1, 1.5, 2, 2]),  # warm-up
        (
            schedules.CosineDecay(5.0, 4, alpha=0.2),  # from 5 to 0.2 * 5
            [1 + 4 * (1 + math.cos(math.pi * min(i, 4) / 4)) / 2 for i in range(6)],
        ),
        (
            schedules.CosineDecay(0.0, 4, warmup_target=2.0, warmup_steps=2),
            [0, 1, 2, 1 + math.cos(math.pi / 4), 1, 1 - math.cos(math.pi / 4)],
        ),
        (schedules.PiecewiseConstantDecay([1, 3], [4.0, 2.0, 1.0]), [4, 4, 2, 2, 1, 1]),
    ],
)
def test_the_schedules_of_the_documentation(schedule, expected, new_backbone):
    scheduler, single = StrengthScheduler(alpha=schedule), {"batch_size": 16}
    logs = fit(make(new_backbone), scheduler, epochs=6, **single)
    np.testing.assert_allclose(logs["alpha"], expected, rtol=1e-6, atol=1e-7)


def test_a_resumed_training_goes_on(new_backbone, tmp_path):
    whole, seen, by = make(new_backbone), Seen(), "step"
    fit(whole, StrengthScheduler(falling, by=by), seen, epochs=4)
    expected = seen.alpha[8:]

    model = make(new_backbone)
    fit(model, StrengthScheduler(falling, by=by), epochs=2)
    model.save(tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras")
    fit(model, StrengthScheduler(falling, by=by), seen, epochs=4, initial_epoch=2)
    assert seen.alpha == expected
    reference.assert_same_weights(model, whole, atol=1e-6)


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_the_step_is_traced_once(by, new_backbone, monkeypatch):
    traced, plain = [], Step.run

    def run(*args, **kwargs):
        traced.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(Step, "run", run)
    model = make(new_backbone, run_eagerly=False)
    fit(model, StrengthScheduler(falling, falling, by=by))
    assert len(traced) == 1


def test_several_steps_per_execution(new_backbone):
    seen = Seen()
    model = make(new_backbone, steps_per_execution=2, run_eagerly=False)
    logs = fit(model, StrengthScheduler(falling, by="step"), seen, epochs=1)
    assert seen.alpha == [1.0, 1 / 3] and logs["alpha"] == [1 / 3]


def test_two_replicas(strategy, new_backbone):
    one = fit(make(new_backbone), StrengthScheduler(falling, by="step"), epochs=2)
    with strategy.scope():
        model = make(new_backbone)
    two = fit(model, StrengthScheduler(falling, by="step"), epochs=2)
    assert one["alpha"] == two["alpha"] == [1 / 4, 1 / 8]
    np.testing.assert_allclose(
        one["feature_penalty"], two["feature_penalty"], rtol=1e-4
    )


# --- sums -----------------------------------------------------------------------


def test_a_sum_sets_all_members(new_backbone):
    model = make(new_backbone, [FeatureMap(1.0, 0.1), L2SP(2.0, 0.3)])
    logs = fit(model, StrengthScheduler(alpha=falling))
    assert logs["alpha/feature_map"] == logs["alpha/l2_sp"] == [1.0, 0.5, 1 / 3]
    assert logs["beta/feature_map"] == [0.1] * 3 and logs["beta/l2_sp"] == [0.3] * 3
    assert "alpha" not in logs


def test_a_dict_sets_the_members_it_names(new_backbone):
    model = make(new_backbone, [FeatureMap(1.0, 0.1), L2SP(2.0, 0.3)])
    logs = fit(model, StrengthScheduler({"l2_sp": falling}, {"feature_map": 0.2}))
    assert logs["alpha/feature_map"] == [1.0] * 3
    assert logs["alpha/l2_sp"] == [1.0, 0.5, 1 / 3]
    assert logs["beta/feature_map"] == [0.2] * 3 and logs["beta/l2_sp"] == [0.3] * 3


def test_names_of_members():
    class Mine(L2SP):
        pass

    first, second, third, fourth = L2SP(), FeatureMap(), L2SP(), Mine()
    found = name_members(Sum([first, Sum([second, third]), fourth]))
    assert list(found) == ["l2_sp", "feature_map", "l2_sp_1", "Mine"]
    assert list(found.values()) == [first, second, third, fourth]
    assert name_members(first) == {"l2_sp": first}


# --- errors ---------------------------------------------------------------------


def check(new_backbone, regularizer, error, match, *args, **kwargs):
    model = make(new_backbone, regularizer)
    with pytest.raises(error, match=match):
        fit(model, StrengthScheduler(*args, **kwargs), epochs=2)


@pytest.mark.parametrize("value", [-1.0, math.inf])
@pytest.mark.parametrize("by, at", [("epoch", 1), ("step", 3)])
def test_values_that_are_no_strengths(by, at, value, new_backbone):
    def mine(index):
        return value if index == at else 1.0

    match = f"schedule mine of `alpha` must return non-neg.* at {by} {at}: {value}"
    check(new_backbone, "map", ValueError, match, mine, by=by)


def test_values_that_are_no_numbers(new_backbone):
    match = "The schedule <lambda> of `beta` must return non-neg.*at epoch 0: 'x'"
    check(new_backbone, "map", ValueError, match, beta=lambda epoch: "x")


def test_a_keras_schedule_that_goes_wrong_is_named(new_backbone):
    match = "The schedule PolynomialDecay of `alpha` .* at epoch 1: -1.0"
    schedule = schedules.PolynomialDecay(1.0, 1, -1.0)
    check(new_backbone, "map", ValueError, match, schedule)


def test_no_regularizer(new_backbone):
    check(new_backbone, None, ValueError, "but the model has none", 1.0)


def test_a_strength_that_is_a_schedule_already(new_backbone):
    regularizer = FeatureMap(schedules.PolynomialDecay(5.0, 9, 1.0), 0.1)
    match = "cannot set `alpha` of the regularizer 'feature_map', because it already is"
    check(new_backbone, regularizer, ValueError, match, 1.0)
    model = make(new_backbone, regularizer)
    logs = fit(model, StrengthScheduler(beta=falling), epochs=1)
    assert logs["beta"] == [1.0] and logs["alpha"] == [pytest.approx(5 - 4 * 4 / 9)]


def test_unknown_members(new_backbone):
    match = "Unknown name for `alpha`. Received: 'l2sp'. Closest names: 'l2_sp'"
    check(new_backbone, [FeatureMap(), L2SP()], ValueError, match, {"l2sp": 1.0})
    check(new_backbone, L2SP(), ValueError, "Known names: 'l2_sp'", {"xyz": 1.0})


def test_beta_without_a_head(new_backbone):
    target = new_backbone(size=8, widths=(3, 4))
    model = reference.compiled(target, target, L2SP(0.1, 0.0))
    with pytest.raises(ValueError, match=r"`beta`. Expected None.*has no new head"):
        StrengthScheduler(beta=1.0).check(model)
    StrengthScheduler(alpha=1.0).check(model)


def test_it_refuses_before_the_attention_is_computed(new_backbone):
    model = make(new_backbone, Delta(0.5))
    with pytest.raises(ValueError, match="Unknown name"):
        fit(model, StrengthScheduler({"l2": 1.0}))
    assert not model.regularizer.ready


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({}, "`alpha`. Expected a schedule, unless `beta` is one"),
        ({"alpha": {}}, "`alpha`. Expected at least one member"),
        ({"alpha": {"l2": -1}}, r"`alpha\['l2'\]`. Expected a non-negative"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        StrengthScheduler(**kwargs)


def test_verbose(new_backbone, capsys):
    fit(make(new_backbone), StrengthScheduler(falling, verbose=1), epochs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines == ["Epoch 1: alpha 1, beta 0.1", "Epoch 2: alpha 0.5, beta 0.1"]
