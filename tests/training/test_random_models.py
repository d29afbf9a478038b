"""`DeltaModel` on any small network: it begins at the source, and files keep it all.

`KERAS_DELTA_EXAMPLES=1000` draws more networks than the test suite has time for.
"""

import warnings

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from keras import tree
from random_graphs import build_source, build_target, compiled, freeze
from random_plans import drawn, images, labels, plans

import keras_delta as kd
from keras_delta._network.graph import Graph
from keras_delta.regularizers import Delta, FeatureMap

COUNT = 4
RANDOM = ("flip", "noise")  # fronts
REGULARIZERS = {
    "feature_map": lambda: FeatureMap(beta=0.0),
    "delta": lambda: Delta(beta=0.0, attention="uniform"),
}


def built(plan, frozen=0):
    """(target, source), networks of a plan; the first layers of the target frozen."""
    source = build_source(plan)
    target = build_target(plan, source)
    freeze(target, frozen)
    return target, source


def delta_model(plan, target, source, regularizer):
    with warnings.catch_warnings():
        # Much may lie behind the last tap: a documented warning.
        warnings.filterwarnings("ignore", "`taps='auto'` compares")
        model = kd.DeltaModel(target.model, source.model if plan.own_source else None)
    return compiled(plan, model, regularizer=REGULARIZERS[regularizer]())


def fit(plan, model):
    """One step; what is minimised in it. No warning: all begins at the source."""
    x, y = images(plan, COUNT), labels(plan, COUNT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = model.fit(x, y, batch_size=COUNT, shuffle=False, verbose=0)
    return {key: values[0] for key, values in history.history.items()}


@drawn(
    2,
    plans(inserted=False),
    st.integers(0, 4),
    st.sampled_from([*REGULARIZERS]),
    share=4,
)
def test_the_first_step_is_that_of_keras(plan, frozen, regularizer):
    """At the source the penalty is 0 and pulls nowhere."""
    target, source = built(plan, frozen)
    twin, _ = built(plan, frozen)
    twin.model.set_weights(target.model.get_weights())
    compiled(plan, twin.model)
    x = images(plan, COUNT)
    places = target.calls(Graph(target.model), x, sums=True)
    start, before = twin.maps(x), target.model.get_weights()

    model = delta_model(plan, target, source, regularizer)
    assert model.taps and not set(model.taps) - set(model.pairing.names)
    source_weights = model.source.get_weights()
    check_no_gradient(model, x)
    logs = fit(plan, model)
    assert abs(logs["feature_penalty"]) < 1e-6 and logs["head_penalty"] == 0
    for mine, theirs in zip(source_weights, model.source.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)

    fit(plan, twin.model)
    moved = [
        moves(a, b) for a, b in zip(before, target.model.get_weights(), strict=True)
    ]
    assert any(moved)
    expected = twin.model.get_weights()
    assert moved == [moves(a, b) for a, b in zip(before, expected, strict=True)]
    for mine, theirs in zip(target.model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    check_penalty(model, target, start, places, x)


def moves(before, after):
    return not np.array_equal(before, after)


def check_no_gradient(model, x):
    """Of the penalty, to the source's weights."""
    networks = model.networks
    assert not model.source.trainable_variables
    ours = {id(v) for v in model.trainable_variables}
    assert not ours & {id(v) for v in model.source.variables}
    with tf.GradientTape() as tape:
        tape.watch([v.value for v in model.source.weights])
        fetches = networks.target_taps, networks.entry.tensors
        _, (maps, entering) = networks.run_target(x, False, fetches)
        source_maps = networks.go_on_in_source(networks.entry.feeds, entering)
        penalty = model.regularizer.feature_distance(source_maps, maps)
    slopes = tape.gradient(penalty, [v.value for v in model.source.weights])
    assert all(slope is None for slope in slopes)


def check_penalty(model, target, start, places, x):
    """Of the weights as they are now: the formula, on maps that Keras computes."""
    now, expected = target.maps(x), 0.0
    found = model.source_maps(x)
    for tap in model.taps:
        place = min(places[tap])
        np.testing.assert_allclose(found[tap], start[place], rtol=1e-5, atol=1e-6)
        s, t = np.float64(start[place]), np.float64(now[place])
        expected += np.mean((t - s) ** 2) / np.mean(s**2)
    maps = model.outputs_and_maps(x)[1]
    penalty = float(model.regularizer.feature_distance(found, maps))
    np.testing.assert_allclose(penalty, expected, rtol=1e-3, atol=1e-9)


@drawn(1, plans(inserted=False), st.integers(0, 4), share=8)
def test_files(tmp_path_factory, plan, frozen):
    """Loaded, all is as it was, and goes on as it would have; the target alone too."""
    folder = tmp_path_factory.mktemp("files")
    target, source = built(plan, frozen)
    model = delta_model(plan, target, source, "delta")
    fit(plan, model)
    model.save(folder / "model.keras")
    model.target.save(folder / "target.keras")
    x = images(plan, COUNT)
    loaded = keras.saving.load_model(folder / "model.keras")
    assert loaded.pairing.names == model.pairing.names
    assert loaded.pairing.new_layers == model.pairing.new_layers
    assert loaded.networks.taps == model.networks.taps
    alone = keras.saving.load_model(folder / "target.keras")
    equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    equal(alone(x, training=False), model.target(x, training=False))
    equal(loaded.source_maps(x), model.source_maps(x))
    equal(loaded.outputs_and_maps(x), model.outputs_and_maps(x))
    assert fit(plan, loaded).keys() == fit(plan, model).keys()
    if plan.fronts[0] not in RANDOM:  # Keras's files hold no state of random numbers
        equal(loaded.get_weights(), model.get_weights())


def equal(mine, theirs):
    for a, b in zip(tree.flatten(mine), tree.flatten(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
