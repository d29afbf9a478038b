"""Any small network: pairs are the layers with equal weights, and equal maps begin.

`KERAS_DELTA_EXAMPLES=1000` draws more networks than the test suite has time for.
"""

import os

import keras
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers, ops

from keras_delta._network.copies import copy_model
from keras_delta._network.graph import Graph
from keras_delta._network.networks import Networks

SIDE, WIDTH = 8, 4
KINDS = {
    "conv": lambda name: layers.Conv2D(WIDTH, 3, padding="same", name=name),
    "point": lambda name: layers.Conv2D(WIDTH, 1, activation="relu", name=name),
    "depthwise": lambda name: layers.DepthwiseConv2D(3, padding="same", name=name),
    "norm": lambda name: layers.LayerNormalization(name=name),
    "group": lambda name: layers.GroupNormalization(2, name=name),
    "batch": lambda name: layers.BatchNormalization(trainable=False, name=name),
    "relu": lambda name: layers.ReLU(name=name),
    "dense": lambda name: layers.Dense(WIDTH, name=name),
}
FRONTS = {
    "none": (),
    "scale": (lambda: layers.Rescaling(1 / 128, -1),),
    "flip": (layers.RandomFlip, lambda: layers.RandomTranslation(0.3, 0.3)),
    "noise": (lambda: layers.GaussianNoise(0.3), lambda: layers.Dropout(0.2)),
    "ops": (lambda: lambda x: x / 2.0 - 1.0,),
}
STEP = st.tuples(st.sampled_from([*KINDS, "add", "join", "gate"]), st.integers(0, 3))


@st.composite
def drawn(draw):
    """(steps, places of inserted layers, fronts of target and source, options)."""
    steps = draw(st.lists(STEP, min_size=2, max_size=8))
    inserted = draw(st.sets(st.integers(1, len(steps)), max_size=2))
    fronts = draw(st.tuples(*[st.sampled_from([*FRONTS])] * 2))
    options = draw(st.fixed_dictionaries(dict.fromkeys(OPTIONS, st.booleans())))
    return steps, inserted, fronts, options


OPTIONS = ("renamed", "nested", "own source")


def body(x, steps, inserted, name):
    """The network behind its front; names of layers that are in both of them."""
    kept, before = {}, [x]
    for i, (kind, back) in enumerate(steps):
        if i in inserted:
            x = layers.Conv2D(WIDTH, 3, padding="same", name=f"{name}new{i}")(x)
        own, other = f"{name}{i}", before[-1 - back % len(before)]
        made = []
        if i == 0:  # colours to maps
            made = [layers.Conv2D(WIDTH, 3, padding="same", name=own)]
            x = made[0](x)
        elif kind == "add" and other.shape == x.shape:
            x = layers.Add(name=own)([x, other])
        elif kind == "join":
            both = layers.Concatenate(name=f"{own}join")([x, other])
            made = [layers.Conv2D(WIDTH, 1, name=own)]
            x = made[0](both)
        elif kind == "gate":
            pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
            made = [layers.Conv2D(WIDTH, 1, activation="sigmoid", name=own)]
            x = layers.Multiply()([x, made[0](pooled)])
        elif kind in KINDS:
            made = [KINDS[kind](own)]
            x = made[0](x)
        kept.update((i, layer) for layer in made if layer.weights)
        before.append(x)
    return x, kept


def network(steps, inserted, front, name="n", nested=False, head=0):
    x = inputs = keras.Input((SIDE, SIDE, 3))
    for make in FRONTS[front]:
        x = make()(x)
    if nested:
        inner = keras.Input(x.shape[1:])
        end, kept = body(inner, steps, inserted, name)
        x = keras.Model(inner, end, name=f"{name}inner")(x)
    else:
        x, kept = body(x, steps, inserted, name)
    if head:
        x = layers.Dense(head, name="head")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x), kept


def settle(kept):
    rng = np.random.default_rng(0)
    for layer in kept.values():
        for v in layer.weights:
            v.assign(np.abs(rng.normal(size=v.shape)) * 0.3 + 0.05)


@settings(
    max_examples=int(os.environ.get("KERAS_DELTA_EXAMPLES", 12)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(drawn())
def test_any_network(network_drawn):
    steps, inserted, (front, source_front), options = network_drawn
    inserted = {i for i in inserted if i < len(steps)}
    source, theirs = network(steps, (), source_front, nested=False)
    settle(theirs)
    name = "m" if options["renamed"] else "n"
    target, ours = network(steps, inserted, front, name, options["nested"], head=3)
    for i, layer in ours.items():
        layer.set_weights(theirs[i].get_weights())
    x = np.random.default_rng(1).uniform(0, 255, (2, SIDE, SIDE, 3)).astype("float32")
    copied = copy_model(target)
    np.testing.assert_array_equal(copied(x, training=False), target(x, training=False))
    assert not {id(v) for v in copied.weights} & {id(v) for v in target.weights}

    given_source = source if options["own source"] else None
    if given_source is None:
        return check_snapshot(target, x)
    graph = Graph(target)
    by_layer = {id(node.operation): n for n, node in graph.nodes.items()}
    # Taps where no inserted layer lies before: there the maps have to be equal.
    first = min(inserted, default=len(steps))
    taps = {
        by_layer[id(layer)]: theirs[i].name for i, layer in ours.items() if i < first
    }
    networks = Networks(target, given_source, taps)
    expected = {by_layer[id(layer)]: theirs[i].name for i, layer in ours.items()}
    found = {
        n: s
        for n, s in networks.pairing.names.items()
        if graph.nodes[n].is_layer and graph.nodes[n].operation.weights
    }
    assert found == expected
    new = {n.split("/")[-1] for n in networks.pairing.new_layers}
    assert new == {f"{name}new{i}" for i in inserted} | {"head"}
    check_maps(networks, x)


def check_snapshot(target, x):
    """With `source=None` all is equal, whatever is random in front."""
    graph = Graph(target)
    taps = [
        n
        for n, node in graph.nodes.items()
        if node.is_layer
        and node.operation.weights
        and len(node.outputs[0].shape) == 4
        # Not a gate, whose map has one position.
        and node.outputs[0].shape[1] == SIDE
    ]
    check_maps(Networks(target, None, taps), x)


def check_maps(networks, x):
    """In training mode: no BatchNormalization trains, and noise lies in front."""
    fetches = networks.target_taps, networks.entry.tensors
    _, (maps, entering) = networks.run_target(x, True, fetches)
    source_maps = networks.go_on_in_source(networks.entry.feeds, entering)
    for tap, value in maps.items():
        np.testing.assert_array_equal(value, source_maps[tap])
        assert ops.any(value != 0)
