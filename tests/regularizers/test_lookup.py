"""Regularizers by name, by config, and several at once."""

import keras
import numpy as np
import pytest

from keras_delta import regularizers
from keras_delta.regularizers import ALL, L2, L2SP, Batch, Delta, FeatureMap, Sum


@pytest.mark.parametrize("name", ALL)
def test_names(name):
    assert type(regularizers.get(name)) is ALL[name]


def test_instances_are_kept():
    regularizer = L2()
    assert regularizers.get(regularizer) is regularizer


@pytest.mark.parametrize("nothing", [None, "none", [], ["none", None]], ids=repr)
def test_none(nothing):
    assert regularizers.get(nothing) is None
    assert regularizers.serialize(None) is None
    assert regularizers.deserialize(None) is None


def test_typing_errors_list_the_closest():
    with pytest.raises(ValueError) as e:
        regularizers.get("dleta")
    assert str(e.value) == (
        "Unknown name for `regularizer`. Received: 'dleta'. Closest names: 'delta'."
    )
    with pytest.raises(ValueError) as e:
        regularizers.get("xyz")
    known = ", ".join(repr(n) for n in (*ALL, "none"))
    assert str(e.value) == (
        f"Unknown name for `regularizer`. Received: 'xyz'. Known names: {known}."
    )


@pytest.mark.parametrize("wrong", [3, 0.1, dict], ids=repr)
def test_other_types(wrong):
    with pytest.raises(TypeError) as e:
        regularizers.get(wrong)
    assert str(e.value) == (
        "Invalid value for argument `regularizer`. Expected a Regularizer, a name, a "
        f"config dict, a list of these, or None. Received: regularizer={wrong!r}"
    )


def test_a_short_config():
    found = regularizers.get({"class_name": "l2_sp", "config": {"alpha": 0.3}})
    assert type(found) is L2SP and found.alpha == 0.3
    assert type(regularizers.get({"class_name": "l2"})) is L2


def test_a_config_of_an_unknown_class_is_refused():
    with pytest.raises(ValueError) as e:
        regularizers.get({"class_name": "dleta", "config": {}})
    assert str(e.value) == (
        "Unknown name for `regularizer`. Received: 'dleta'. Closest names: 'delta'."
    )


def test_a_config_of_something_else_is_refused():
    config = keras.saving.serialize_keras_object(keras.layers.Dense(2, name="d"))
    with pytest.raises(TypeError, match="Received: regularizer=<Dense name=d"):
        regularizers.get(config)


def test_a_list_is_a_sum():
    found = regularizers.get(["l2", {"class_name": "l2_sp"}, "none", Delta()])
    assert type(found) is Sum
    assert [type(m) for m in found.members] == [L2, L2SP, Delta]
    assert type(regularizers.get(["l2"])) is L2


def test_the_sum_of_penalties(bound, images):
    parts = [L2(0.1, 0.2), L2SP(0.3, 0.4), FeatureMap(0.5, 0.6)]
    expected = np.zeros(2)
    for part in parts:
        model = bound(part)
        model.prepare(*images, verbose=0)
        logs = model.train_on_batch(*images, return_dict=True)
        expected += logs["feature_penalty"], logs["head_penalty"]
    model = bound([L2(0.1, 0.2), L2SP(0.3, 0.4), FeatureMap(0.5, 0.6)])
    assert (
        model.regularizer.needs == regularizers.MAPS
        and model.regularizer.trains_features
    )
    assert not model.regularizer.ready
    model.prepare(*images, verbose=0)
    logs = model.train_on_batch(*images, return_dict=True)
    found = logs["feature_penalty"], logs["head_penalty"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sum_round_trips():
    found = regularizers.get([L2SP(0.3, parameters="kernels"), Delta(variant="code")])
    again = regularizers.get(regularizers.serialize(found))
    assert [type(m) for m in again.members] == [L2SP, Delta]
    assert again.members[0].parameters == "kernels" and again.members[0].alpha == 0.3
    assert again.members[1].variant == "code"
    assert again.get_config() == found.get_config()


def test_a_sum_trains_features_unless_a_member_freezes_them():
    assert not regularizers.get(["l2_fe", "l2"]).trains_features


def test_members_that_another_model_uses_are_copied(bound):
    taken = L2SP(0.3)
    first = bound(taken)
    second = bound([taken, "l2"])
    assert first.regularizer is taken
    copy = second.regularizer.members[0]
    assert copy is not taken and copy.alpha == 0.3
    assert not {id(v) for v in taken.weights} & {
        id(v) for v in second.regularizer.weights
    }
    third = bound(second.regularizer)
    assert third.regularizer is not second.regularizer
    assert third.regularizer.members[0].pairing is third.pairing


def test_members_keep_their_strengths(bound):
    model = bound([L2SP(0.5, 0.0), L2(0.25, 0.0)])
    total = model.regularizer
    before = float(total.penalties(Batch(None, None, 0))[0])
    part = float(total.members[0].penalties(Batch(None, None, 0))[0])
    total.members[0].alpha = 1.0
    after = float(total.penalties(Batch(None, None, 0))[0])
    assert after == pytest.approx(before + part, rel=1e-5)


def test_numbers_and_schedules_are_not_exchanged(bound):
    schedule = keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.5)
    text = (
        "`alpha` cannot change between a number and a schedule once a model uses the "
        "regularizer. Pass a new regularizer to `fit`."
    )
    for given, new in ((0.5, schedule), (schedule, 0.5)):
        regularizer = L2(alpha=given)
        regularizer.alpha = new  # before a model uses it
        regularizer.alpha = given
        bound(regularizer)
        with pytest.raises(ValueError) as e:
            regularizer.alpha = new
        assert str(e.value) == text


def test_a_name_that_is_in_use_already_keeps_what_was_computed(bound, images):
    model = bound("feature_map")
    model.prepare(*images, verbose=0)
    before = model.regularizer
    model.set_regularizer("feature_map")
    model.set_regularizer(regularizers.serialize(before))
    assert model.regularizer is before and before.ready
    model.set_regularizer({"class_name": "feature_map", "config": {"alpha": 0.5}})
    assert model.regularizer is before and before.alpha == 0.5
    for other in (
        {"class_name": "feature_map", "config": {"variant": "code"}},
        "delta",
        FeatureMap(),  # an instance is taken as it is
    ):
        model.set_regularizer("feature_map")
        kept = model.regularizer
        model.set_regularizer(other)
        assert model.regularizer is not kept


def test_a_dict_that_is_no_config():
    with pytest.raises(ValueError) as e:
        regularizers.get({"delta": 1})
    assert str(e.value) == (
        "Invalid value for argument `regularizer`. Expected a config dict "
        '{"class_name": ..., "config": {...}}. Received: regularizer={\'delta\': 1}. '
        "Use `keras_delta.regularizers.serialize` to see one."
    )


def test_members():
    first, second, third = L2(), Delta(), L2SP()
    assert regularizers.members(None) == []
    assert regularizers.members(first) == [first]
    nested = Sum([Sum([first, second]), third])
    assert regularizers.members(nested) == [first, second, third]


def test_members_with_attention():
    first, second, third = Delta(), regularizers.L2SPAtt(), FeatureMap()
    assert regularizers.with_attention(None) == []
    assert regularizers.with_attention(third) == []
    assert regularizers.with_attention(first) == [first]
    nested = Sum([Sum([L2(), first]), third, second])
    assert regularizers.with_attention(nested) == [first, second]


def test_settings_leave_out_names_and_strengths_that_are_numbers():
    one = regularizers.settings(Delta(0.1, 0.2, name="one"))
    assert one == regularizers.settings(Delta(3, 4, name="two"))
    assert not {"alpha", "beta", "name"} & set(one["config"])
    decay = keras.optimizers.schedules.ExponentialDecay
    others = [
        regularizers.settings(other)
        for other in (
            Delta(temperature=2.0),
            Delta(variant="code"),
            Delta(attention="uniform"),
            Delta(attention_samples=8),
            Delta(alpha=decay(0.1, 2, 0.5)),
            Delta(alpha=decay(0.2, 2, 0.5)),
            FeatureMap(),
            Sum([Delta()]),
        )
    ]
    for i, other in enumerate(others):
        assert other != one and other not in others[:i]
    assert regularizers.settings(None) is None
    sums = [regularizers.settings(Sum([L2(a), L2SP(a)])) for a in (0.1, 3.0)]
    assert sums[0] == sums[1]
