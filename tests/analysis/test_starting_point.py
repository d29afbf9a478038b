"""Distances of filters: values, stages, tables, comparisons, pictures."""

import math
from types import SimpleNamespace

import keras
import model_reference as reference
import numpy as np
import pytest
from reference import KERNEL, STARTING_KERNEL

import keras_delta as kd
from keras_delta import analysis
from keras_delta._network.graph import Graph
from keras_delta.analysis.distances import kernel_distances, stages

TAPS = reference.TAPS
SMALL = {"a": {"x": [1.0, 3.0], "y": [2.0]}, "b": {"z": [5.0]}}
SMALL = {s: {n: np.array(v) for n, v in d.items()} for s, d in SMALL.items()}


def slow(kernel, start):
    """One filter at a time, one weight at a time."""
    found = []
    for j in range(kernel.shape[-1]):
        pairs = zip(kernel[..., j].ravel(), start[..., j].ravel(), strict=True)
        found.append(math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in pairs)))
    return found


def assert_same(found, expected, rtol=1e-6):
    assert {s: list(d) for s, d in found.items()} == {
        s: list(d) for s, d in expected.items()
    }
    for stage, layers in expected.items():
        for name, values in layers.items():
            np.testing.assert_allclose(found[stage][name], values, rtol, err_msg=name)


@pytest.fixture
def moved(new_backbone):
    """A model whose target is a random step away from its source."""
    target, source = reference.pair(new_backbone)
    return kd.DeltaModel(target, source=source, taps=list(TAPS))


def test_lora(moved):
    """Its product is part of the kernel."""
    name = next(iter(stages(moved)[TAPS[0]]))
    layer = moved.target.get_layer(name)
    layer.enable_lora(1)
    rng = np.random.default_rng(0)
    for v in (layer.lora_kernel_a, layer.lora_kernel_b):
        v.assign(rng.normal(size=v.shape))
    found = analysis.filter_distances(moved)[TAPS[0]][name]
    (start,) = (v for v in moved.source.get_layer(name).weights if len(v.shape) == 4)
    expected = slow(np.array(layer.kernel), np.array(start))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_by_hand():
    found = kernel_distances(KERNEL, STARTING_KERNEL)
    expected = [1.431782, 0.989949, 0.824621, 0.774597, 0.761577]
    np.testing.assert_allclose(np.sort(found)[::-1], expected, atol=1e-6)
    np.testing.assert_allclose(found, slow(KERNEL, STARTING_KERNEL), rtol=1e-12)


def test_axes_that_number_the_filters():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 3, 4, 2))
    depthwise = kernel_distances(a, b, (-2, -1))
    expected = [
        [np.linalg.norm((a - b)[:, :, c, m]) for m in range(2)] for c in range(4)
    ]
    np.testing.assert_allclose(depthwise, np.ravel(expected), rtol=1e-12)
    transposed = kernel_distances(a, b, (-2,))
    expected = [np.linalg.norm((a - b)[:, :, c]) for c in range(4)]
    np.testing.assert_allclose(transposed, expected, rtol=1e-12)


def test_a_model(moved):
    found = analysis.filter_distances(moved)
    parts = moved.target, moved.source
    kernels = {t: [p.get_layer(t).get_weights()[0] for p in parts] for t in TAPS}
    assert_same(found, {t: {t: slow(*pair)} for t, pair in kernels.items()}, 1e-5)
    assert min(v.min() for d in found.values() for v in d.values()) > 0.01


def test_frozen_layers_count_with_zero(moved):
    layer = moved.target.get_layer("conv0")
    layer.set_weights(moved.source.get_layer("conv0").get_weights())
    layer.trainable = False
    found = analysis.filter_distances(moved)
    np.testing.assert_array_equal(found["conv0"]["conv0"], np.zeros(3))


def test_the_stages_of_a_resnet():
    """As in the article, whose ResNet-101 has 23 blocks in `conv4_x`."""
    source = kd.backbones.resnet50(weights=None, input_shape=(32, 32, 3))

    graph = Graph(source)
    pairing = SimpleNamespace(target=graph, names={name: name for name in graph.nodes})
    # Of a DeltaModel, which takes long to make, this is all that is asked for.
    model = SimpleNamespace(pairing=pairing, target=source, taps=[])
    found = stages(model)
    assert {stage: len(names) for stage, names in found.items()} == {
        "conv2_x": 3 * 3,  # three convolutions per bottleneck
        "conv3_x": 4 * 3,
        "conv4_x": 6 * 3,
        "conv5_x": 3 * 3,
    }
    filters = [graph.nodes[n].operation.filters for n in found["conv3_x"]]
    assert filters == [128, 128, 512] * 4


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
    for layers in analysis.filter_distances(model).values():
        assert all((v == 0).all() for v in layers.values())
    for v in target.trainable_variables:
        v.assign(v + 1.0)
    # Every weight moved by 1, so a filter of n weights moved by sqrt(n).
    root = np.sqrt
    assert_same(
        analysis.filter_distances(model),
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


# --- tables, files, comparisons, pictures -------------------------------------------


def test_table():
    found = analysis.tabulate_filter_distances(SMALL)
    assert {k: v.tolist() for k, v in found.items()} == {
        "stage": ["a", "a", "a", "b"],
        "rank": [1, 2, 3, 1],
        "layer": ["x", "y", "x", "z"],
        "filter": [1, 0, 0, 0],
        "distance": [3.0, 2.0, 1.0, 5.0],
    }


def test_files(tmp_path):
    for name in ("d", "d.npz"):
        analysis.save_filter_distances(SMALL, tmp_path / name)
        assert_same(analysis.load_filter_distances(tmp_path / name), SMALL, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "d.npz"]


def test_compare_by_hand():
    """Filters 1 > 2, 3 = 3, 2 > 1, 5 < 6; ranks 3 = 3, 2 = 2, 1 = 1, 5 < 6."""
    other = {"a": {"x": np.array([2.0, 3.0]), "y": np.array([1.0])}}
    other["b"] = {"z": np.array([6.0])}
    assert analysis.compare_filter_distances(SMALL, other) == {
        "a": {"rank_wise": 0.0, "filter_wise": 1 / 3},
        "b": {"rank_wise": 0.0, "filter_wise": 0.0},
        "all": {"rank_wise": 0.0, "filter_wise": 1 / 4},
    }
    assert analysis.compare_filter_distances(other, SMALL) == {
        "a": {"rank_wise": 0.0, "filter_wise": 1 / 3},
        "b": {"rank_wise": 1.0, "filter_wise": 1.0},
        "all": {"rank_wise": 1 / 4, "filter_wise": 1 / 2},
    }


def test_the_ranks_of_the_whole_are_not_those_of_the_stages():
    """Stages 1 < 2 and 9 > 3; the whole sorted: 1 < 2, 9 > 3."""
    a = {"a": {"x": np.array([9.0])}, "b": {"y": np.array([1.0])}}
    b = {"a": {"x": np.array([2.0])}, "b": {"y": np.array([3.0])}}
    found = analysis.compare_filter_distances(a, b)
    assert [v["rank_wise"] for v in found.values()] == [1.0, 0.0, 0.5]


def test_models_callbacks_and_files_can_be_compared(moved, tmp_path):
    callback = kd.callbacks.StartingPointDistance()
    callback.history.append({"epoch": 0, "distances": analysis.filter_distances(moved)})
    analysis.save_filter_distances(moved, tmp_path / "d.npz")
    far = {s: {n: v + 9 for n, v in d.items()} for s, d in callback.distances.items()}
    for other in (moved, callback, tmp_path / "d.npz", str(tmp_path / "d.npz")):
        found = analysis.compare_filter_distances(far, other)
        assert list(found) == [*TAPS, "all"]
        assert all(v == {"rank_wise": 1, "filter_wise": 1} for v in found.values())


def test_a_file_has_the_layers_in_another_order(tmp_path):
    """Its tables are sorted by distance, so `y` comes first."""
    found = {"a": {"x": np.array([1.0, 2.0]), "y": np.array([5.0, 3.0])}}
    analysis.save_filter_distances(found, tmp_path / "d.npz")
    for pair in ((found, tmp_path / "d.npz"), (tmp_path / "d.npz", found)):
        shares = analysis.compare_filter_distances(*pair)
        assert all(v == {"rank_wise": 0, "filter_wise": 0} for v in shares.values())


def test_compare_refuses():
    compare = analysis.compare_filter_distances
    with pytest.raises(
        ValueError, match="'z' of the stage 'b' has 1 filters in one and 0 in"
    ):
        compare(SMALL, {"a": SMALL["a"]})
    other = {**SMALL, "b": {"z": np.zeros(2)}}
    with pytest.raises(
        ValueError, match="'z' of the stage 'b' has 1 filters in one and 2 in"
    ):
        compare(SMALL, other)
    with pytest.raises(TypeError, match=r"`b`. Expected a DeltaModel, a StartingPoint"):
        compare(SMALL, 3)


def test_other_models_are_refused(new_backbone):
    with pytest.raises(TypeError, match=r"`model`\. Expected a DeltaModel"):
        analysis.filter_distances(new_backbone())
    inputs = keras.Input((4, 4))
    source = keras.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
    x = keras.layers.GlobalAveragePooling1D()(source.output)
    target = keras.Model(inputs, keras.layers.Dense(2, name="new")(x))
    model = kd.DeltaModel(target, source=source, taps=["dense"])
    with pytest.raises(ValueError, match="source and target have none in common"):
        analysis.filter_distances(model)


def test_plot(tmp_path):
    other = {**SMALL, "b": {"z": np.array([7.0])}}
    curves = {"delta": SMALL, "l2_sp": other}
    figure = analysis.plot_filter_distances(curves, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    first, second = (axis for axis in figure.axes if axis.get_visible())
    assert first.get_title(loc="left") == "a (3 filters)"
    assert second.get_title(loc="left") == "b (1 filters)"
    np.testing.assert_array_equal(first.lines[0].get_ydata(), [3, 2, 1])
    np.testing.assert_array_equal(first.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(second.lines[1].get_ydata(), [7])
    names = [text.get_text() for text in first.get_legend().get_texts()]
    assert names == ["delta", "l2_sp"]
