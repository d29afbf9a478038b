"""Any small network: pairs are the layers with equal weights, and equal maps begin.

`KERAS_DELTA_EXAMPLES=1000` draws more networks than the test suite has time for.
"""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import layers, ops
from random_graphs import build_source, build_target
from random_plans import drawn, images, plans

import keras_delta as kd
from keras_delta._network.copies import copy_model
from keras_delta._network.graph import Graph
from keras_delta._network.networks import Networks


@drawn(6, plans())
def test_pairs_and_maps(plan):
    source = build_source(plan)
    target = build_target(plan, source)
    x = images(plan)
    ours = target.calls(Graph(target.model), x)
    assert all(ours.values())  # the graph computes what Keras does
    # Maps are equal where no inserted layer lies before.
    taps = [n for n, p in ours.items() if not p & target.changed and not is_head(p)]
    if plan.own_source:
        theirs = source.calls(Graph(source.model), x)
        taps = {t: next(n for n, p in theirs.items() if p & ours[t]) for t in taps}
    else:
        # A snapshot: all is equal, inserted layers too.
        taps = [n for n, p in ours.items() if not is_head(p)]
    given = source.model if plan.own_source else None
    networks = Networks(target.model, given, taps)
    if plan.own_source:
        check_pairs(networks, ours, source.calls(networks.source, x))
        assert new_places(networks, ours) == {
            p for p in target.places if "new" in p or is_head([p])
        }
    else:
        assert new_places(networks, ours) == {p for p in target.places if is_head([p])}
    check_maps(networks, target, ours, x)


def check_pairs(networks, ours, theirs):
    """Calls are pairs that are at one place of the plan, and no others."""
    pairs = {t: s for t, s in networks.pairing.names.items() if t in ours}
    assert set(pairs) == {
        t for t, places in ours.items() if not is_head(places) and not is_new(places)
    }
    for name, other in pairs.items():
        assert ours[name] & theirs[other], (name, other)


def new_places(networks, ours):
    return {p for name in networks.pairing.new_layers for p in ours[name]}


def is_head(places):
    return any("head" in p for p in places)


def is_new(places):
    return any("new" in p for p in places)


def check_maps(networks, target, calls, x):
    """Source and target have equal maps: in training, noise in front is one draw."""
    expected = target.maps(x)
    found = networks.run_source(x)
    for tap, value in found.items():
        assert any(np.array_equal(value, expected[p]) for p in calls[tap]), tap
    # No BatchNormalization of the plan trains.
    fetches = networks.target_taps, networks.entry.tensors
    _, (maps, entering) = networks.run_target(x, True, fetches)
    source_maps = networks.go_on_in_source(networks.entry.feeds, entering)
    for tap, value in maps.items():
        np.testing.assert_array_equal(value, source_maps[tap], err_msg=tap)
        assert ops.any(value != 0)


@drawn(6, plans())
def test_copies(plan):
    """Of any network, whole: the same values from layers and weights of its own."""
    target = build_target(plan, build_source(plan)).model
    x = images(plan)
    copied = copy_model(target)
    for mine, theirs in zip(
        keras.tree.flatten(copied(x, training=False)),
        keras.tree.flatten(target(x, training=False)),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert not {id(v) for v in copied.weights} & {id(v) for v in target.weights}


@drawn(6, plans(own_source=True))
def test_auto_taps(plan):
    """Layers that both networks have at one place, with maps of one shape."""
    source = build_source(plan)
    target = build_target(plan, source)
    x = images(plan)
    with warnings.catch_warnings():
        # Much may lie behind the last: a documented warning.
        warnings.filterwarnings("ignore", "`taps='auto'` compares")
        networks = Networks(target.model, source.model)
    ours, theirs = (
        target.calls(Graph(target.model), x),
        source.calls(networks.source, x),
    )
    assert networks.taps
    for mine, other in networks.taps.items():
        assert mine in networks.pairing.names
        assert networks.target_taps[mine].shape == networks.source_taps[mine].shape
        assert len(networks.target_taps[mine].shape) >= 3
        if mine in ours:
            assert ours[mine] & theirs[other]


FIRST = {"data_format": "channels_first"}
OF_MAPS = {
    "convolution": lambda: layers.Conv2D(2, 3, padding="same", **FIRST),
    "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same", **FIRST),
    "separable": lambda: layers.SeparableConv2D(2, 3, padding="same", **FIRST),
    "transposed": lambda: layers.Conv2DTranspose(2, 3, padding="same", **FIRST),
    "pooling": lambda: layers.AveragePooling2D(1, **FIRST),
    "upsampling": lambda: layers.UpSampling2D(2, **FIRST),
    "padding": lambda: layers.ZeroPadding2D(1, **FIRST),
    "dropout": lambda: layers.SpatialDropout2D(0.5, **FIRST),
    "nested": lambda: keras.Sequential([layers.Conv2D(2, 1, **FIRST)]),
}


@drawn(6, plans(tokens=None, heads=(1, 1)), st.sampled_from([*OF_MAPS]))
def test_channels_first_are_refused(plan, kind):
    """Wherever such a layer is, and by what compares, pools or serves maps."""
    source = build_source(plan._replace(old_head=False)).model
    target = build_target(plan, build_source(plan))
    x = layers.Permute((3, 1, 2))(target.ends[0])
    layer = OF_MAPS[kind]()
    x = layers.Permute((2, 3, 1))(layer(x))
    mixed = keras.Model(target.model.inputs, x, name="mixed")
    name = layer.layers[0].name if kind == "nested" else layer.name
    refused = f"mixed, whose layer '{name}' has .*channels_first.*channels_last"
    for use in (
        lambda: kd.DeltaModel(mixed),
        lambda: kd.DeltaModel(mixed, source=source),
        lambda: kd.DeltaModel(target.model, source=mixed),
        lambda: kd.attach_head(mixed, 3),
        lambda: kd.export_for_serving(mixed, "nowhere", ["a", "b"]),
    ):
        with pytest.raises(ValueError, match=refused):
            use()
