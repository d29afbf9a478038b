"""What every member of `ALL` promises. A new method adds its rows to CASES.

Those between two networks of their own have a table in test_two_networks.py, the
peers' methods one in test_peers.py.
"""

import inspect
import json

import keras
import numpy as np
import pytest
import reference as ref
import tensorflow as tf
from test_peers import CASES as PEERS
from test_two_networks import CASES as OF_TWO_NETWORKS

from keras_delta import regularizers
from keras_delta.regularizers import Batch

CHANNELS = {"conv0": 4, "conv1": 6, "conv2": 8}
ATTENTION = {
    tap: ref.softmax(np.random.default_rng(c).normal(size=c))
    for tap, c in CHANNELS.items()
}


def twin_l2(world):
    return ref.half_sum_of_squares(ours for ours, _ in world.shared.values())


def twin_nothing(world):
    return 0.0


def twin_l2_sp(world):
    return ref.l2_sp(world.shared.values())


def twin_l2_sp_kernels(world):
    return ref.l2_sp(p for path, p in world.shared.items() if path[1] == "kernel")


def twin_l2_sp_att(world):
    kernels, others = [], []
    for (layer, kind), (ours, theirs) in world.shared.items():
        if kind == "kernel":
            kernels.append((ours, theirs, ATTENTION[layer]))
        else:
            others.append((ours, theirs))
    return ref.l2_sp_att(kernels, others)


def twin_feature_map(variant):
    def twin(world):
        return sum(
            ref.feature_map(*maps, variant, world.scales[tap])
            for tap, maps in world.maps.items()
        )

    return twin


def twin_delta(variant):
    def twin(world):
        return sum(
            ref.delta(*maps, ATTENTION[tap], variant, world.scales[tap])
            for tap, maps in world.maps.items()
        )

    return twin


def twin_delta_uniform(world):
    return sum(
        ref.delta(*maps, np.full(CHANNELS[tap], 1 / CHANNELS[tap]), "code")
        for tap, maps in world.maps.items()
    )


# name in ALL, arguments, NumPy twin, variant of the head penalty
CASES = [
    ("l2", {}, twin_l2, "code"),
    ("l2_fe", {}, twin_nothing, "code"),
    ("l2_sp", {}, twin_l2_sp, "code"),
    ("l2_sp", {"parameters": "kernels"}, twin_l2_sp_kernels, "code"),
    ("l2_sp_att", {"attention": ATTENTION}, twin_l2_sp_att, "code"),
    ("l2_sp_att", {"attention": "uniform"}, twin_l2_sp, "code"),
    ("feature_map", {}, twin_feature_map("relative"), "code"),
    ("feature_map", {"variant": "code"}, twin_feature_map("code"), "code"),
    ("feature_map", {"variant": "article"}, twin_feature_map("article"), "article"),
    ("delta", {"attention": ATTENTION}, twin_delta("relative"), "code"),
    (
        "delta",
        {"attention": ATTENTION, "variant": "code"},
        twin_delta("code"),
        "code",
    ),
    (
        "delta",
        {"attention": ATTENTION, "variant": "article"},
        twin_delta("article"),
        "article",
    ),
    (
        "delta",
        {"attention": "uniform", "variant": "code"},
        twin_delta_uniform,
        "code",
    ),
]
IDS = [
    "-".join([n, *(v if isinstance(v, str) else "attended" for v in k.values())])
    for n, k, *_ in CASES
]
ONE_EACH = {name: (name, kwargs) for name, kwargs, *_ in reversed(CASES)}.values()

every_case = pytest.mark.parametrize(
    ("name", "kwargs", "twin", "head_variant"), CASES, ids=IDS
)
every_member = pytest.mark.parametrize(
    ("name", "kwargs"), ONE_EACH, ids=[name for name, _ in ONE_EACH]
)


class World:
    """Weights and maps of a model as NumPy arrays, found by layer name alone."""

    def __init__(self, model, x):
        self.shared = {}
        for layer in model.target.layers:
            for v in layer.trainable_variables:
                if layer.name != "head":
                    start = {
                        w.name: w for w in model.source.get_layer(layer.name).weights
                    }[v.name]
                    self.shared[layer.name, v.name] = (v.numpy(), start.numpy())
        self.head = [v.numpy() for v in model.target.get_layer("head").weights]
        self.maps, self.scales = {}, {}
        for tap in CHANNELS:
            source, target = (
                keras.Model(m.input, m.get_layer(tap).output)(x).numpy()
                for m in (model.source, model.target)
            )
            self.maps[tap] = (source, target)
            self.scales[tap] = ref.mean_square(source)


def make(name, kwargs, /, **strengths):
    return regularizers.ALL[name](**kwargs, **strengths)


def batch_of(model, x, training=False, step=0):
    source_maps = target_maps = None
    if model.regularizer.needs:
        source_maps = model.source_maps(x)
        _, target_maps = model.outputs_and_maps(x, training=training)
    return Batch(source_maps, target_maps, tf.constant(step))


def test_the_table_covers_all():
    names = {name for name, *_ in (*CASES, *OF_TWO_NETWORKS)}
    peers = {name.split("-")[0] for name in PEERS}
    assert names | peers | {"attention_transfer"} == set(regularizers.ALL)
    assert regularizers.ALL["attention_transfer"] is regularizers.ALL["at"]


@every_case
def test_equals_the_numpy_twin(bound, images, name, kwargs, twin, head_variant):
    """In a training step of the model, and called by itself."""
    model = bound(make(name, kwargs, alpha=0.3, beta=0.2))
    model.prepare(*images, verbose=0)
    world = World(model, images[0])
    feature = 0.3 * twin(world)
    head = 0.2 * ref.head_penalty(world.head, head_variant)
    assert head > 0 and (feature > 0 or name == "l2_fe")

    logs = model.train_on_batch(*images, return_dict=True)
    assert logs["feature_penalty"] == pytest.approx(feature, rel=1e-4)
    assert logs["head_penalty"] == pytest.approx(head, rel=1e-5)

    eager = model.regularizer.penalties(batch_of(model, images[0]))
    assert [v.dtype for v in eager] == ["float32", "float32"]
    assert [float(v) for v in eager] == pytest.approx([feature, head], rel=1e-4)


@every_member
@pytest.mark.parametrize("batch_norm", [False, True])
def test_zero_where_the_target_is_the_source(bound, images, name, kwargs, batch_norm):
    model = bound(make(name, kwargs), moved=False, batch_norm=batch_norm)
    model.prepare(*images, verbose=0)
    feature, _ = model.regularizer.penalties(batch_of(model, images[0]))
    if name == "l2":
        world = ref.half_sum_of_squares(
            v for v in model.trainable_variables if "head" not in v.path
        )
        assert float(feature) == pytest.approx(1e-4 * world, rel=1e-4)
    else:
        assert float(feature) == pytest.approx(0, abs=1e-9)


@every_member
def test_gradients_reach_the_target(bound, images, name, kwargs):
    model = bound(make(name, kwargs, alpha=0.5))
    model.prepare(*images, verbose=0)
    with tf.GradientTape() as tape:
        feature, head = model.regularizer.penalties(batch_of(model, images[0], True))
        total = feature + head
    ours = [v for v in model.target.trainable_variables if "head" not in v.path]
    gradients = tape.gradient(
        total, [v.value for v in (*ours, *model.target.get_layer("head").weights)]
    )
    body, of_head = gradients[: len(ours)], gradients[len(ours) :]
    assert all(np.abs(v).max() > 0 for v in of_head[:1])
    moved = [v is not None and float(tf.reduce_max(tf.abs(v))) > 0 for v in body]
    assert all(moved) if name != "l2_fe" else not any(moved)


@every_member
def test_no_gradient_to_the_source_maps(bound, images, name, kwargs):
    model = bound(make(name, kwargs, alpha=0.5))
    model.prepare(*images, verbose=0)
    with tf.GradientTape() as tape:
        for v in model.source.variables:
            tape.watch(v.value)
        maps = model.source_maps(images[0])
        total = tf.add_n([tf.reduce_sum(m) for m in maps.values()])
    gradients = tape.gradient(total, [v.value for v in model.source.variables])
    assert gradients == [None] * len(model.source.variables)
    assert not {id(v) for v in model.source.variables} & {
        id(v) for v in model.trainable_variables
    }


@every_member
def test_every_argument_is_in_the_config(name, kwargs):
    regularizer = make(name, kwargs)
    arguments = set(inspect.signature(type(regularizer).__init__).parameters)
    missing = arguments - {"self", "kwargs"} - set(regularizer.get_config())
    assert missing == set()


@every_case
def test_round_trips(name, kwargs, twin, head_variant):
    regularizer = make(name, kwargs, alpha=0.7, beta=0.4, name="mine")
    config = regularizers.serialize(regularizer)
    config = json.loads(json.dumps(config))
    short = {"class_name": name, "config": config["config"]}
    for again in (
        regularizers.deserialize(config),
        regularizers.get(config),
        regularizers.get(short),
        type(regularizer).from_config(regularizer.get_config()),
    ):
        assert type(again) is type(regularizer)
        assert again is not regularizer
        assert json.dumps(again.get_config()) == json.dumps(regularizer.get_config())
        assert (again.alpha, again.beta, again.name) == (0.7, 0.4, "mine")
        for key, value in kwargs.items():
            if isinstance(value, dict):
                found = getattr(again, key).weights
                assert list(found) == list(value)
                for tap in value:
                    np.testing.assert_allclose(found[tap], value[tap], rtol=1e-6)
            else:
                assert getattr(again, key) == value


@every_case
def test_the_same_in_a_graph(bound, images, name, kwargs, twin, head_variant):
    model = bound(make(name, kwargs, alpha=0.3))
    model.prepare(*images, verbose=0)
    batch = batch_of(model, images[0])
    eager = model.regularizer.penalties(batch)
    compiled = tf.function(model.regularizer.penalties)(batch)
    np.testing.assert_allclose(eager, compiled, rtol=1e-6)


@every_case
def test_half_precision_maps(bound, images, name, kwargs, twin, head_variant):
    model = bound(make(name, kwargs, alpha=0.3))
    model.prepare(*images, verbose=0)
    batch = batch_of(model, images[0])
    if batch.source_maps is not None:
        half, large = (
            {t: tf.cast(m * f, "float16") for t, m in batch.source_maps.items()}
            for f in (1, 1000)
        )
        batch = batch._replace(source_maps=large, target_maps=half)
    for value in model.regularizer.penalties(batch):
        assert value.dtype == "float32" and np.isfinite(value)


@every_member
def test_schedules(bound, images, name, kwargs):
    """Alpha 1 until step 10, then 3; beta 2 until step 10, then 0."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay
    alpha, beta = schedule([10], [1.0, 3.0]), schedule([10], [2.0, 0.0])
    model = bound(make(name, kwargs, alpha=alpha, beta=beta))
    model.prepare(*images, verbose=0)
    penalties = model.regularizer.penalties
    feature, head = penalties(batch_of(model, images[0], step=10))
    later_feature, later_head = penalties(batch_of(model, images[0], step=11))
    np.testing.assert_allclose(later_feature, 3 * feature, rtol=1e-6)
    assert float(head) > 0 and float(later_head) == 0
    again = regularizers.get(regularizers.serialize(model.regularizer))
    assert again.alpha.get_config()["values"] == [1.0, 3.0]
    assert float(again.beta(11)) == 0.0


@every_member
def test_strengths_are_set_without_a_new_trace(bound, images, name, kwargs):
    model = bound(make(name, kwargs, alpha=1.0, beta=1.0))
    model.prepare(*images, verbose=0)
    regularizer = model.regularizer
    batch = batch_of(model, images[0])
    traces = []

    @tf.function
    def penalties():
        traces.append(1)
        return regularizer.penalties(batch)

    first = np.array(penalties())
    regularizer.alpha, regularizer.beta = 0.25, 3.0
    assert (regularizer.alpha, regularizer.beta) == (0.25, 3.0)
    np.testing.assert_allclose(penalties(), first * [0.25, 3.0], rtol=1e-6)
    assert traces == [1]
    assert regularizer.get_config()["alpha"] == 0.25


@every_member
def test_strengths_keep_the_number_given(bound, name, kwargs):
    model = bound(make(name, kwargs, alpha=0.01, beta=0.1))
    assert (model.regularizer.alpha, model.regularizer.beta) == (0.01, 0.1)


@every_member
def test_strengths_are_checked(name, kwargs):
    expected = (
        "Invalid value for argument `alpha`. Expected a non-negative finite number or "
        "a keras.optimizers.schedules schedule. Received: alpha=-0.1"
    )
    with pytest.raises(ValueError) as e:
        make(name, kwargs, alpha=-0.1)
    assert str(e.value) == expected
    regularizer = make(name, kwargs)
    with pytest.raises(ValueError) as e:
        regularizer.alpha = -0.1
    assert str(e.value) == expected


@every_member
def test_numpy_numbers_are_strengths(name, kwargs):
    assert make(name, kwargs, alpha=np.float32(0.5), beta=np.int64(2)).alpha == 0.5


@every_member
def test_a_second_model_gets_a_copy(bound, images, name, kwargs):
    regularizer = make(name, kwargs, alpha=0.5)
    first = bound(regularizer)
    assert first.regularizer is regularizer
    first.prepare(*images, verbose=0)
    regularizer.alpha = 0.75
    second = bound(regularizer)
    copy = second.regularizer
    assert copy is not regularizer and first.regularizer is regularizer
    assert copy.alpha == 0.75 and copy.pairing is second.pairing
    copy.alpha = 2.0
    assert regularizer.alpha == 0.75
    if regularizer.needs:
        assert not copy.ready  # the scales belong to the first model
        second.prepare(*images, verbose=0)
        assert copy.scales == pytest.approx(regularizer.scales)


@every_member
def test_a_head_is_needed_for_beta(new_backbone, name, kwargs):
    import keras_delta as kd

    if name == "l2":  # it holds on to nothing, and has nothing to leave out
        kd.DeltaModel(new_backbone(), new_backbone(), regularizer=make(name, kwargs))
        return
    with pytest.raises(ValueError) as e:
        kd.DeltaModel(new_backbone(), new_backbone(), regularizer=make(name, kwargs))
    if name == "l2_fe":
        assert str(e.value) == (
            "The regularizer 'l2_fe' trains only layers that the source lacks, but "
            "every layer of the target has a counterpart in the source. Give the "
            "target a new head with `keras_delta.attach_head`."
        )
        return
    beta = make(name, kwargs).beta
    assert str(e.value) == (
        f"Invalid value for argument `beta`. Received: beta={beta!r}, but the target "
        "has no parameters that the source lacks. Check the order, "
        "`DeltaModel(target, source)`. Use `beta=0`, give the target a new head with "
        "`keras_delta.attach_head`, or, if the source ends in a head of the same "
        "shape, pass the source without it."
    )
    model = kd.DeltaModel(
        new_backbone(), new_backbone(), regularizer=make(name, kwargs, beta=0.0)
    )
    assert float(model.regularizer.head_distance()) == 0


@every_case
def test_a_replica_counts_by_its_share(bound, images, name, kwargs, twin, head_variant):
    """The penalties of two uneven replicas add up to those of the whole batch."""
    model = bound(make(name, kwargs, alpha=0.3))
    model.prepare(*images, verbose=0)
    x = images[0]
    whole = np.array(model.regularizer.penalties(batch_of(model, x)))
    parts = [
        model.regularizer.penalties(
            batch_of(model, part)._replace(share=len(part) / len(x), replicas=2)
        )
        for part in (x[:5], x[5:])
    ]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-5)
    empty = {t: m[:0] for t, m in model.source_maps(x).items()}
    nothing = model.regularizer.penalties(Batch(empty, empty, 0, 0.0, 2))
    assert np.isfinite(nothing).all()
