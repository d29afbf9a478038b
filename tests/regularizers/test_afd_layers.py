"""How `AFD` makes its layers, takes weights and checks what it is given."""

import json
from types import SimpleNamespace

import afd_reference as ref
import keras
import numpy as np
import pytest
import tensorflow as tf
from afd_reference import (
    SOURCE,
    SOURCE_SHAPES,
    STATE,
    TARGET,
    TARGET_SHAPES,
    D,
    built,
    loaded,
    twin,
)

from keras_delta.regularizers import Regularizer, deserialize, serialize
from keras_delta.regularizers.afd import AFD


def test_defaults_and_config():
    assert AFD(name="afd").get_config() == {
        "name": "afd",
        "alpha": 200.0,
        "beta": 0.0,
        "kd": 0.9,
        "temperature": 4.0,
        "dimension": 128,
    }
    other = AFD(alpha=3.0, kd=0, temperature=2, dimension=7, beta=0.5, name="mine")
    config = json.loads(json.dumps(serialize(other)))
    for again in (deserialize(config), AFD.from_config(other.get_config())):
        assert type(again) is AFD
        assert again.get_config() == other.get_config()


@pytest.mark.parametrize(
    "kwargs", [{"kd": -1}, {"temperature": 0}, {"dimension": 0}, {"alpha": -1}]
)
def test_arguments_are_checked(kwargs):
    [argument] = kwargs
    with pytest.raises(ValueError, match=f"`{argument}`. Expected a"):
        AFD(**kwargs)


def bind(regularizer, monkeypatch, source=SOURCE_SHAPES, target=TARGET_SHAPES):
    monkeypatch.setattr(Regularizer, "bind", lambda self, networks: None)
    regularizer.bind(
        SimpleNamespace(source_map_shapes=source, target_map_shapes=target)
    )


def test_bind_builds(monkeypatch):
    regularizer = AFD(kd=0, dimension=D)
    bind(regularizer, monkeypatch)
    assert regularizer.source_taps == ("a", "b", "c")
    assert len(regularizer.trainable_variables) == 26
    assert np.isfinite(regularizer.feature_distance(SOURCE, TARGET, training=True))


def test_bind_refuses_maps_before_it_begins(monkeypatch):
    regularizer = AFD()
    monkeypatch.setattr(Regularizer, "check", lambda self, networks: None)
    networks = {"source_map_shapes": SOURCE_SHAPES, "target_map_shapes": {"x": (7, 4)}}
    with pytest.raises(ValueError, match=r"AFD compares maps of images only"):
        regularizer.check(SimpleNamespace(**networks))
    assert regularizer.network is None


@pytest.mark.parametrize("build", [False, True])
def test_weights_from_before_are_kept_and_replicated(monkeypatch, strategy, build):
    regularizer = built() if build else AFD()
    regularizer.kd = 0.0
    regularizer.load_official(STATE)
    with strategy.scope():
        bind(regularizer, monkeypatch)
    assert len(regularizer.trainable_variables) == 26
    assert isinstance(
        regularizer.trainable_variables[0].value, tf.distribute.DistributedValues
    )
    value = regularizer.feature_distance(SOURCE, TARGET)
    assert float(value) == pytest.approx(twin(False), abs=1e-6)


def test_the_meta_network_is_saved_with_a_model(tmp_path):
    first, second = keras.Model(), keras.Model()
    for model, regularizer in ((first, loaded()), (second, built())):
        model.regularizer, model.built = regularizer, True
    first.save_weights(tmp_path / "a.weights.h5")
    second.load_weights(tmp_path / "a.weights.h5")
    value = second.regularizer.feature_distance(SOURCE, TARGET)
    assert float(value) == pytest.approx(twin(False), abs=1e-6)


def test_names_of_variables():
    variables = built().variables
    assert [v.name for v in variables[:2]] == ["source_positions", "target_positions"]
    layers = {v.path.split("/")[0] for v in variables[2:]}
    names = ["query_0", "query_1", "query_2", "key_0", "key_1", "bilinear"]
    assert layers == {f"{n}_{part}" for n in names for part in ("dense", "norm")}


def test_build_for_twice():
    regularizer = loaded()
    shapes = {tap + "2": s for tap, s in SOURCE_SHAPES.items()}
    regularizer.build_for(shapes, TARGET_SHAPES)
    renamed = {tap + "2": m for tap, m in SOURCE.items()}
    value = regularizer.feature_distance(renamed, TARGET)
    assert float(value) == pytest.approx(twin(False), abs=1e-6)
    with pytest.raises(ValueError, match=r"Expected maps with \[4, 6, 8\] ch"):
        regularizer.build_for(TARGET_SHAPES, TARGET_SHAPES)


@pytest.mark.parametrize("shapes", [{}, None, [(7, 7, 4)]])
def test_no_taps_are_refused(shapes):
    with pytest.raises(ValueError, match=r"`target_shapes`.*with at least one tap"):
        AFD().build_for(SOURCE_SHAPES, shapes)


@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 7, 7, 4), (7, 7, None)])
def test_shapes_of_other_maps_are_refused(shape):
    with pytest.raises(ValueError) as e:
        AFD().build_for(SOURCE_SHAPES, {"x": shape})
    assert str(e.value) == (
        "Invalid value for argument `target_shapes['x']`. Expected (height, width, "
        "channels), the shape of a map of images. Received: target_shapes['x']="
        f"{shape}. AFD compares maps of images only: tap other layers."
    )


def test_maps_are_checked():
    with pytest.raises(ValueError, match=r"AFD has no layers yet. Call `build_for`"):
        AFD().feature_distance(SOURCE, TARGET)
    regularizer = built()
    for method in (regularizer.feature_distance, regularizer.attention_matrix):
        with pytest.raises(ValueError) as e:
            method(SOURCE, {**TARGET, "y": np.zeros((5, 5), "float32")})
        assert str(e.value) == (
            "Invalid value for argument `target_maps['y']`. Expected a map of shape "
            "(B, H, W, 5). Received: target_maps['y']=(5, 5)"
        )
        with pytest.raises(ValueError, match=r"source_maps\['a'\].*W, 4\).*2, 2, 3\)"):
            method({**SOURCE, "a": np.zeros((5, 2, 2, 3))}, TARGET)
        for wrong in ({"x": TARGET["x"]}, {**TARGET, "z": TARGET["x"]}, {}):
            with pytest.raises(ValueError, match=r"`target_maps`.*\['x', 'y'\]"):
                method(SOURCE, wrong)


NAME = f"{ref.BILINEAR}.bn.weight"


@pytest.mark.parametrize("build", [False, True])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {name: v for name, v in STATE.items() if name != NAME},
            f"Missing: ['{NAME}']; unknown: none.",
        ),
        ({**STATE, "attention.p": 0}, "Missing: none; unknown: ['attention.p']."),
        (
            {**STATE, NAME: np.zeros(5)},
            f"Invalid value for argument `state['{NAME}']`. Expected an array of shape "
            f"(18,). Received: state['{NAME}']=(5,)",
        ),
        (
            {**STATE, f"{ref.KEY}.0.linear.weight": np.zeros(5)},
            f"`state['{ref.KEY}.0.linear.weight']`. Expected an array of shape (",
        ),
        ({}, "`state`. Expected the authors' names"),
    ],
)
def test_load_official_refuses_other_states(build, state, message):
    regularizer = built() if build else AFD()
    before = regularizer.get_weights()
    with pytest.raises(ValueError) as e:
        regularizer.load_official(state)
    assert message in str(e.value)
    assert len(before) == 26 + 12 if build else before == []
    for old, new in zip(before, regularizer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_state_of_other_dimension_is_refused_once_built():
    regularizer = AFD(dimension=D + 1)
    regularizer.build_for(SOURCE_SHAPES, TARGET_SHAPES)
    with pytest.raises(ValueError, match=r"'attention.p_t'.*\(3, 7\).*\(3, 6\)"):
        regularizer.load_official(STATE)
