"""Distances of filters: values, stages, files, pictures."""

import copy
import math
import pickle

import keras
import model_reference as reference
import numpy as np
import pytest
from reference import KERNEL, STARTING_KERNEL

import keras_delta as kd
from keras_delta.callbacks import StartingPointDistance
from keras_delta.callbacks.starting_point_distance import (
    compare,
    filter_distances,
    load,
    measure,
    plot,
    stages,
    table,
)
from keras_delta.regularizers import L2SP

X, Y = reference.learnable_data(8)
TAPS = reference.TAPS
SMALL = {"a": {"x": [1.0, 3.0], "y": [2.0]}, "b": {"z": [5.0]}}
SMALL = {s: {n: np.array(v) for n, v in d.items()} for s, d in SMALL.items()}


def make(new_backbone):
    return reference.compiled(*reference.pair(new_backbone), L2SP(0.1, 0.1))


def fit(model, *callbacks, epochs=3, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs).history


def slow(kernel, start):
    """One filter at a time, one weight at a time."""
    found = []
    for j in range(kernel.shape[-1]):
        pairs = zip(kernel[..., j].ravel(), start[..., j].ravel(), strict=True)
        found.append(math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in pairs)))
    return found


def kernels(model):
    """(target's kernel, source's kernel) of each tapped convolution."""
    parts = model.target, model.source
    return {
        t: tuple(np.asarray(p.get_layer(t).get_weights()[0]) for p in parts)
        for t in TAPS
    }


def assert_same(found, expected, rtol=1e-6):
    assert {s: list(d) for s, d in found.items()} == {
        s: list(d) for s, d in expected.items()
    }
    for stage, layers in expected.items():
        for name, values in layers.items():
            np.testing.assert_allclose(found[stage][name], values, rtol, err_msg=name)


def test_by_hand():
    found = filter_distances(KERNEL, STARTING_KERNEL)
    expected = [1.431782, 0.989949, 0.824621, 0.774597, 0.761577]
    np.testing.assert_allclose(np.sort(found)[::-1], expected, atol=1e-6)
    np.testing.assert_allclose(found, slow(KERNEL, STARTING_KERNEL), rtol=1e-12)


def test_axes_that_number_the_filters():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 3, 4, 2))
    depthwise = filter_distances(a, b, (-2, -1))
    expected = [
        [np.linalg.norm((a - b)[:, :, c, m]) for m in range(2)] for c in range(4)
    ]
    np.testing.assert_allclose(depthwise, np.ravel(expected), rtol=1e-12)
    transposed = filter_distances(a, b, (-2,))
    expected = [np.linalg.norm((a - b)[:, :, c]) for c in range(4)]
    np.testing.assert_allclose(transposed, expected, rtol=1e-12)


def test_a_model(new_backbone):
    model = make(new_backbone)
    fit(model, epochs=1)
    expected = {t: {t: slow(*pair)} for t, pair in kernels(model).items()}
    assert_same(measure(model), expected)
    assert min(v.min() for d in measure(model).values() for v in d.values()) > 0.01


def test_at_the_starting_point_all_are_zero(new_backbone):
    source = new_backbone(size=8, widths=(3, 4))
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    for layers in measure(model).values():
        assert all((v == 0).all() for v in layers.values())


def test_resnet101_has_the_filters_of_the_article():
    source = kd.backbones.resnet101(weights=None, input_shape=(32, 32, 3))
    model = kd.DeltaModel(kd.attach_head(source, 2), source=source)
    found = stages(model)
    layers = model.pairing.target.nodes
    counts = {s: sum(layers[n].operation.filters for n in v) for s, v in found.items()}
    expected = {"conv2_x": 1152, "conv3_x": 3072, "conv4_x": 35328, "conv5_x": 9216}
    assert counts == expected
    assert [len(v) for v in found.values()] == [9, 12, 69, 9]  # three a bottleneck


def test_every_kind_of_convolution():
    """Depthwise, separable, transposed and shared layers; what no tap depends on."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(inputs)
    x = keras.layers.SeparableConv2D(5, 3, name="separable")(x)
    shared = keras.layers.Conv2D(5, 1, name="shared")
    x = keras.layers.Conv2D(5, 1, name="tap")(shared(shared(x)))
    x = keras.layers.Conv2DTranspose(7, 2, name="up")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    source = keras.Model(inputs, x)
    target = kd.attach_head(source, 3)
    model = kd.DeltaModel(target, source=source, taps=["tap"])
    for v in target.trainable_variables:
        v.assign(v + 1.0)
    # Every weight moved by 1, so a filter of n weights moved by sqrt(n).
    root = np.sqrt
    assert_same(
        measure(model),
        {
            "tap": {
                "depth": np.full(6, root(9)),
                "separable/depthwise": np.full(6, root(9)),
                "separable/pointwise": np.full(5, root(6)),
                "shared": np.full(5, root(5)),
                "tap": np.full(5, root(5)),
            },
            "rest": {"up": np.full(7, root(4 * 5))},
        },
    )


def test_stages_do_not_follow_the_order_in_which_taps_are_named(new_backbone):
    target, source = reference.pair(new_backbone)
    model = kd.DeltaModel(target, source=source, taps=["conv1", "conv0"])
    assert stages(model) == {"conv0": ["conv0"], "conv1": ["conv1"]}


def test_frozen_layers_count_with_zero(new_backbone):
    model = make(new_backbone)
    model.target.get_layer("conv0").set_weights(
        model.source.get_layer("conv0").get_weights()
    )
    model.target.get_layer("conv0").trainable = False
    found = measure(model)
    assert (found["conv0"]["conv0"] == 0).all() and len(found["conv0"]["conv0"]) == 3


# --- the callback -----------------------------------------------------------------


@pytest.mark.parametrize("every, expected", [(1, [0, 1, 2]), (2, [1]), (4, [])])
def test_epochs_logs_and_files(every, expected, new_backbone, tmp_path):
    model = make(new_backbone)
    moved = StartingPointDistance(tmp_path / "new", every)
    logs = fit(model, moved)
    assert [entry["epoch"] for entry in moved.history] == expected
    files = [f"distances-{epoch + 1:04d}.npz" for epoch in expected]
    assert sorted(p.name for p in tmp_path.glob("new/*")) == files
    for tap in TAPS:
        mean, largest = (logs[f"filter_distance{x}/{tap}"] for x in ("", "_max"))
        known = [i for i in range(3) if not math.isnan(mean[i])]
        assert known == [i for i in range(3) if not math.isnan(largest[i])] == expected
        for entry in moved.history:
            values = entry["distances"][tap][tap]
            assert mean[entry["epoch"]] == pytest.approx(values.mean(), rel=1e-6)
            assert largest[entry["epoch"]] == values.max()
    for entry, file in zip(moved.history, files, strict=True):
        assert_same(load(tmp_path / "new" / file), entry["distances"], 0)
    if every == 1:
        assert_same(moved.distances, measure(model), 0)


def test_training_is_the_same(new_backbone):
    a, b = make(new_backbone), make(new_backbone)
    fit(a, StartingPointDistance())
    fit(b)
    for v, w in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(v, w)


def test_resumed_twice_and_copied(new_backbone, tmp_path):
    model, moved = make(new_backbone), StartingPointDistance(tmp_path, every=2)
    fit(model, moved, epochs=3)
    fit(model, moved, initial_epoch=3, epochs=6)
    assert [entry["epoch"] for entry in moved.history] == [3, 5]
    names = [f"distances-000{i}.npz" for i in (2, 4, 6)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for again in (copy.deepcopy(moved), pickle.loads(pickle.dumps(moved))):
        assert again.model is None
        assert_same(again.distances, moved.distances, 0)
        fit(model, again, epochs=2)
        assert len(again.history) == 1 and len(moved.history) == 2


def test_two_replicas(strategy, new_backbone):
    found = []
    one = make(new_backbone)
    with strategy.scope():
        two = make(new_backbone)
    for model in (one, two):
        moved = StartingPointDistance()
        fit(model, moved, epochs=1)
        found.append(moved.distances)
    assert_same(*found, rtol=1e-4)


# --- tables, comparisons, pictures ------------------------------------------------


def test_table():
    found = {k: v.tolist() for k, v in table(SMALL).items()}
    assert found == {
        "stage": ["a", "a", "a", "b"],
        "rank": [1, 2, 3, 1],
        "layer": ["x", "y", "x", "z"],
        "filter": [1, 0, 0, 0],
        "distance": [3.0, 2.0, 1.0, 5.0],
    }


def test_compare_by_hand():
    """Filters 1 > 2, 3 = 3, 2 > 1, 5 < 6; ranks 3 = 3, 2 = 2, 1 = 1, 5 < 6."""
    other = {"a": {"x": np.array([2.0, 3.0]), "y": np.array([1.0])}}
    other["b"] = {"z": np.array([6.0])}
    assert compare(SMALL, other) == {
        "a": {"rank_wise": 0.0, "filter_wise": 1 / 3},
        "b": {"rank_wise": 0.0, "filter_wise": 0.0},
        "all": {"rank_wise": 0.0, "filter_wise": 1 / 4},
    }
    assert compare(other, SMALL) == {
        "a": {"rank_wise": 0.0, "filter_wise": 1 / 3},
        "b": {"rank_wise": 1.0, "filter_wise": 1.0},
        "all": {"rank_wise": 1 / 4, "filter_wise": 1 / 2},
    }


def test_compare_takes_models_callbacks_and_files(new_backbone, tmp_path):
    near, far = make(new_backbone), make(new_backbone)
    moved = StartingPointDistance(tmp_path)
    fit(near, moved, epochs=1)
    for name in TAPS:
        kernel = far.target.get_layer(name).kernel
        start = far.source.get_layer(name).kernel
        kernel.assign(start + 9.0)
    for given in (near, moved, tmp_path / "distances-0001.npz", moved.distances):
        found = StartingPointDistance.compare(far, given)
        assert list(found) == [*TAPS, "all"]
        assert all(v == {"rank_wise": 1, "filter_wise": 1} for v in found.values())
    file = tmp_path / "distances-0001.npz"
    assert_same(StartingPointDistance.load(file), moved.distances, 0)


def test_compare_refuses():
    with pytest.raises(ValueError, match="The stage 'b' is in one of the two alone"):
        compare(SMALL, {"a": SMALL["a"]})
    other = {**SMALL, "b": {"z": np.zeros(2)}}
    with pytest.raises(ValueError, match="'z' has 1 filters in one and 2 in the other"):
        compare(SMALL, other)
    with pytest.raises(TypeError, match=r"`b`. Expected a DeltaModel, a StartingPoint"):
        compare(SMALL, 3)


def test_plot(tmp_path):
    other = {**SMALL, "b": {"z": np.array([7.0])}}
    figure = plot({"delta": SMALL, "l2_sp": other}, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    first, second = (axis for axis in figure.axes if axis.get_visible())
    assert first.get_title(loc="left") == "a (3 filters)"
    assert second.get_title(loc="left") == "b (1 filters)"
    np.testing.assert_array_equal(first.lines[0].get_ydata(), [3, 2, 1])
    np.testing.assert_array_equal(first.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(second.lines[1].get_ydata(), [7])
    names = [text.get_text() for text in first.get_legend().get_texts()]
    assert names == ["delta", "l2_sp"]


def test_plot_and_table_of_the_callback(new_backbone, tmp_path):
    moved = StartingPointDistance()
    with pytest.raises(ValueError, match="Nothing is measured yet"):
        moved.plot()
    fit(make(new_backbone), moved, epochs=1)
    figure = moved.plot(tmp_path / "p.svg", other=moved)
    assert len(figure.axes[0].lines) == 2 and (tmp_path / "p.svg").exists()
    assert len(moved.table()["distance"]) == 7


# --- errors -----------------------------------------------------------------------


def test_models_that_are_refused(new_backbone):
    plain, _ = reference.pair(new_backbone)
    plain.compile("sgd", reference.LOSS)
    with pytest.raises(TypeError, match="StartingPointDistance works on a DeltaModel"):
        fit(plain, StartingPointDistance())


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"every": 0}, ValueError, "`every`. Expected a positive integer"),
        ({"log_dir": 3}, TypeError, "`log_dir`. Expected the path of a folder"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        StartingPointDistance(**kwargs)
