"""What the peers' methods promise in a training. A new one adds its row to CASES.

Their formulas, on known numbers, are in test_peers_formulas.py.
"""

import copy
import inspect
import itertools
import json

import keras
import numpy as np
import pytest
import reference as ref
import tensorflow as tf
from networks import make_backbone, make_deeper

import keras_delta as kd
from keras_delta import regularizers
from keras_delta.regularizers import class_relations

CLASSES, OF_SOURCE, COUNT = 3, 5, 12
WIDER = {"widths": (8, 12, 16, 20)}


def headed(network, classes, activation=None, seed=0):
    keras.utils.set_random_seed(seed)
    return kd.attach_head(network, classes, activation=activation)


def from_source(batch_norm, head=OF_SOURCE):
    """(target, source): the source with its own classes; the target moved away."""
    backbone = make_backbone(batch_norm)
    source = headed(backbone, head, "softmax", seed=1) if head else backbone
    target = headed(backbone, CLASSES)
    rng = np.random.default_rng(5)
    for v in target.trainable_variables:
        v.assign(v + 0.1 * rng.normal(size=v.shape))
    return target, source


def without_head(batch_norm):
    return from_source(batch_norm, head=None)


def to_wider(batch_norm):
    source = headed(make_backbone(True, seed=3, **WIDER), CLASSES, seed=1)
    return headed(make_backbone(batch_norm, seed=1), CLASSES), source


def to_deeper(batch_norm):
    source = headed(make_deeper(seed=3), CLASSES, seed=1)
    return headed(make_backbone(batch_norm, seed=1), CLASSES), source


# name in ALL -> arguments, function of `batch_norm` that gives (target, source)
CASES = {
    "l2_sp_fisher": ({"samples": 8}, without_head),
    "bss": ({"k": 2}, without_head),
    "bi_tuning": ({"keys": 4, "projection": 6, "view": "same"}, from_source),
    "lwf": ({}, from_source),
    "lwf-tllib": ({"variant": "tllib"}, from_source),
    "co_tuning": ({}, from_source),
    "co_tuning-bayes": ({"variant": "bayes"}, from_source),
    "dtnh": ({"regularizer": "l2_sp"}, from_source),
    "fitnets": ({"kd": 0.5}, to_wider),
    "fitnets-article": ({"variant": "article"}, to_deeper),
    "at": ({"alpha": 10.0}, to_deeper),
    "fsp": ({}, to_deeper),
}
every_case = pytest.mark.parametrize("name", CASES)


def some(*names):
    """Those in which something is at stake; each of these tests takes seconds."""
    return pytest.mark.parametrize("name", names)


def make(name, **more):
    arguments = {**CASES[name][0], **more}
    return regularizers.ALL[name.split("-")[0]](**arguments)


def make_model(name, optimizer=None, batch_norm=True, **options):
    target, source = CASES[name][1](batch_norm)
    options = {"run_eagerly": True, "jit_compile": False, **options}
    model = kd.DeltaModel(target, source, regularizer=options.pop("of", make(name)))
    keras.utils.set_random_seed(7)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.05, 0.9), loss, **options)
    return model


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(COUNT, 16, 16, 3)).astype("float32")
    return images, np.arange(COUNT) % CLASSES


def fit(model, data, **options):
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    return model.fit(*data, **options)


def values(model):
    return [np.array(v) for v in model.variables]


def softmax(logits, temperature=1.0):
    e = np.exp(np.asarray(logits, "float64") / temperature)
    return e / e.sum(-1, keepdims=True)


def seen(model, x):
    """Features and logits of the target, and the source's outputs, in float64."""
    inputs, pooled = model.target.input, model.target.get_layer("head_pool").output
    features = keras.Model(inputs, pooled)(x, training=True)
    return np.asarray(features, "float64"), np.asarray(model.source(x), "float64")


def twin_l2_sp_fisher(model, x, y):
    total = 0.0
    for v, start in model.pairing.variables:
        fisher = model.regularizer.fisher[v.path]
        total += 0.5 * (fisher * (np.array(v) - np.array(start)) ** 2).sum()
    return 0.01 * total


def twin_bss(model, x, y):
    return 1e-3 * (np.linalg.svd(seen(model, x)[0])[1][-2:] ** 2).sum()


def twin_lwf(model, x, y):
    features, outputs = seen(model, x)
    kernel, bias = model.source.layers[-1].get_weights()
    r = model.regularizer
    p = softmax(np.log(outputs), r.temperature)
    q = softmax(features @ kernel + bias, r.temperature)
    per_image = -(p * np.log(q)).sum(-1)
    if r.variant == "tllib":
        per_image += (p * np.log(p)).sum(-1)
    return r.alpha * per_image.mean()


def twin_co_tuning(model, x, y):
    features, shares = seen(model, x)
    relations = np.stack([shares[y == c].mean(0) for c in range(CLASSES)])
    if model.regularizer.variant == "bayes":  # test_peers_formulas.py has its numbers
        logits = np.log(shares)
        relations = class_relations.relate(logits, y, CLASSES, "bayes", 0.8840456605)
    kernel, bias = model.source.layers[-1].get_weights()
    log_shares = np.log(softmax(features @ kernel + bias))
    return -2.3 * (relations[y] * log_shares).sum(1).mean()


def twin_dtnh(model, x, y):
    pairs = [(np.array(v), np.array(s)) for v, s in model.pairing.variables]
    return 0.01 * ref.l2_sp(pairs)


def maps(model, x):
    """Lists of the source's and the target's maps, in their order."""
    found = []
    for network, names, training in (
        (model.source, model.regularizer.source_taps, False),
        (model.target, model.regularizer.target_taps, True),
    ):
        outputs = [network.get_layer(name).output for name in names]
        computed = keras.Model(network.input, outputs)(x, training=training)
        computed = computed if isinstance(computed, list) else [computed]
        found.append([np.asarray(m, "float64") for m in computed])
    return found


def twin_at(model, x, y):
    total = 0.0
    for source, target in zip(*maps(model, x), strict=True):
        for s, t in zip((source**2).sum(-1), (target**2).sum(-1), strict=True):
            difference = s / np.linalg.norm(s) - t / np.linalg.norm(t)
            total += (difference**2).mean() / len(x)
    return 10.0 * total


def flows(all_maps):
    found = []
    for a, b in itertools.pairwise(all_maps):
        factor = a.shape[1] // b.shape[1]
        bins = (b.shape[1], factor, b.shape[2], factor)
        pooled = a.reshape(len(a), *bins, a.shape[-1]).mean((2, 4))
        found.append(np.einsum("bhwi,bhwj->bij", pooled, b) / np.prod(b.shape[1:3]))
    return found


def twin_fsp(model, x, y):
    both = map(flows, maps(model, x))
    return 50 * sum(((s - t) ** 2).mean() for s, t in zip(*both, strict=True))


def twin_fitnets(model, x, y):
    r = model.regularizer
    (source,), (target,) = maps(model, x)
    x_of_target = tf.constant(target, "float32")
    (regressor,) = r.regressors
    assert regressor.rectified  # the source's tap is the end of a stage, a ReLU
    regressed = regressor.convolution(x_of_target).numpy().astype("float64")
    if r.variant == "code":
        mean, variance = regressed.mean((0, 1, 2)), regressed.var((0, 1, 2))
        regressed = (regressed - mean) / np.sqrt(variance + 1e-5)
    squares = (source - np.maximum(regressed, 0)) ** 2
    if r.variant == "article":
        return 0.5 * squares.sum() / len(squares)
    p, q = softmax(model.source(x), 4), softmax(model.target(x, training=True), 4)
    return 100 * squares.mean() + 0.5 * 16 * (p * np.log(p / q)).sum(-1).mean()


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embedded(model, x):
    """z and [h; 1], of unit length."""
    h = seen(model, x)[0]
    z = np.array(model.regularizer.project(h), "float64")
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    return z, unit(np.concatenate([h, np.ones((len(h), 1))], 1))


def twin_bi_tuning(model, x, y):
    """Queues as they are before the step; the encoder is another network."""
    r = model.regularizer
    z, h = embedded(model, x)
    kernel = r.followed[-2][0].numpy()  # of the projection; then its bias
    assert kernel.shape == (h.shape[1] - 1, 6)
    pooled = seen(model, x)[0]
    np.testing.assert_allclose(z, unit(pooled @ kernel), atol=1e-5)
    rng = np.random.default_rng(3)
    queries = [v.numpy() for v, _ in r.followed]
    for v, key in r.followed:
        key.assign(key + 0.1 * rng.normal(size=key.shape))
        v.assign(key)
    key_z, _ = embedded(model, x)
    for (v, _), was in zip(r.followed, queries, strict=True):
        v.assign(was)
    assert np.abs(key_z - z).max() > 0.05
    kernel, bias = model.target.get_layer("head").get_weights()
    rows = unit(np.concatenate([kernel.T, bias[:, None]], 1))
    queue_z, queue_h = (np.array(q, "float64") for q in r.queues)
    total = 0.0
    for i, c in enumerate(y):
        others = [k for k in range(CLASSES) if k != c]
        for first, similar in (
            (z[i] @ key_z[i], queue_z @ z[i]),
            (h[i] @ rows[c], queue_h @ rows[c]),
        ):
            logits = np.concatenate([[first], similar[c], *similar[others]]) / 0.07
            log_shares = np.log(softmax(logits - logits.max()))
            total += np.mean(np.log(1 / 5) - log_shares[:5]) / len(y)
    return total


@every_case
def test_a_step_has_the_twins_penalty(name, data):
    model = make_model(name)
    model.prepare(*data, verbose=0)
    twin = globals()[f"twin_{name.split('-')[0]}"]
    expected = twin(model, *data)
    logs = model.train_on_batch(*data, return_dict=True)
    assert expected > 1e-6
    head = logs["head_penalty"]
    assert logs["feature_penalty"] == pytest.approx(expected, rel=2e-4)
    task = logs["task_loss"]
    assert logs["loss"] == pytest.approx(task + expected + head, rel=1e-4)
    assert (head > 0) == (name in ("l2_sp_fisher", "dtnh"))


@every_case
def test_what_a_training_moves(name, data):
    """Target and trained layers; the source stays, and everything is finite."""
    model = make_model(name)
    source = [np.array(v) for v in model.source.variables]
    own = {v.path: np.array(v) for v in model.regularizer.trainable_variables}
    before = [np.array(v) for v in model.target.trainable_variables]
    logs = fit(model, data, epochs=2).history
    assert np.isfinite(list(logs.values())).all()
    for v, value in zip(model.source.variables, source, strict=True):
        np.testing.assert_array_equal(v, value)
    after = {v.path: np.array(v) for v in model.regularizer.trainable_variables}
    trained = ("bi_tuning", "lwf", "co_tuning", "co_tuning-bayes", "fitnets")
    assert bool(own) == (name in (*trained, "fitnets-article"))
    ours = {id(v) for v in model.regularizer.variables}
    assert not ours & {id(v) for v in model.target.variables}
    # A bias in front of BatchNormalization has no gradient to speak of.
    moved = [not np.array_equal(own[path], after[path]) for path in own]
    assert sum(moved) >= len(moved) / 2
    now = [np.array(v) for v in model.target.trainable_variables]
    moved = [np.abs(a - b).max() > 0 for a, b in zip(before, now, strict=True)]
    assert sum(moved) >= len(moved) - 3


@every_case
def test_arguments_survive(name):
    regularizer = make(name, beta=0.25) if name != "dtnh" else make(name)
    config = regularizer.get_config()
    arguments = inspect.signature(type(regularizer).__init__).parameters
    assert not set(arguments) - {"self", "kwargs"} - set(config)
    again = regularizers.get(
        json.loads(json.dumps(regularizers.serialize(regularizer)))
    )
    assert type(again) is type(regularizer) and again is not regularizer
    assert again.get_config() == config
    assert regularizers.alike(again, regularizer)
    short = {"class_name": name.split("-")[0], "config": config}
    assert regularizers.get(short).get_config() == config


@some("bss", "bi_tuning", "co_tuning", "dtnh", "fitnets")
def test_in_a_graph(name, data):
    """Traced, a training is what it is eagerly."""
    eager, traced = make_model(name), make_model(name, run_eagerly=False)
    logs = [fit(model, data).history for model in (eager, traced)]
    for key, value in logs[0].items():
        np.testing.assert_allclose(logs[1][key], value, rtol=1e-3, atol=1e-5)


@some(*(name for name in CASES if "-" not in name))
def test_two_replicas_equal_one(name, data, strategy):
    """On batches of 5, 6 and 1: uneven ones, of the last of which one gets nothing."""
    batches = tf.data.Dataset.from_tensor_slices(data)
    batches = batches.take(5).batch(5).concatenate(batches.skip(5).batch(6))
    one = make_model(name, batch_norm=False)  # whose statistics are each replica's
    with strategy.scope():
        two = make_model(name, batch_norm=False)
    logs = [m.fit(batches, verbose=0).history for m in (one, two)]
    for key, value in logs[0].items():
        np.testing.assert_allclose(logs[1][key], value, rtol=2e-3, atol=1e-5)
    ours, theirs = (m.target.trainable_variables for m in (one, two))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    if name == "bi_tuning":
        for a, b in zip(one.regularizer.queues, two.regularizer.queues, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)


@some("l2_sp_fisher", "bi_tuning", "lwf", "co_tuning", "dtnh", "fitnets")
def test_a_file_goes_on(name, data, tmp_path):
    """Layers, queues and measurements are in it, and the optimizer's state."""
    model = make_model(name)
    fit(model, data)
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    again.run_eagerly = True
    for a, b in zip(values(model), values(again), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(model, data)
    fit(again, data)
    for a, b in zip(values(model), values(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@some("l2_sp_fisher", "bi_tuning", "co_tuning", "fitnets")
def test_a_second_model_gets_a_copy(name, data):
    model = make_model(name)
    fit(model, data)
    other = make_model(name, of=model.regularizer)
    assert other.regularizer is not model.regularizer
    fit(other, data)
    own = {id(v) for v in model.regularizer.variables}
    assert not own & {id(v) for v in other.regularizer.variables}


@every_case
def test_copies(name):
    regularizer = make(name)
    assert copy.deepcopy(regularizer).get_config() == regularizer.get_config()


@pytest.mark.parametrize("name", ["l2_sp_fisher", "bi_tuning"])
def test_a_file_of_the_recipe_goes_on(name, data, tmp_path):
    """Though the recipe freezes BatchNorm after the regularizer made its variables."""
    model = make_model(name, jit_compile=False)
    fit(model, data, recipe=kd.Recipe(epochs=1, optimizer=None))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for other in (model, loaded):
        fit(other, data)
    pairs = zip(values(model), values(loaded), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs if a.dtype == "float32") < 1e-5


def test_fisher_is_measured_in_units_of_what_trains(data):
    """And for frozen layers too, which may be thawed later."""
    model = make_model("l2_sp_fisher")
    kd.freeze_until(model, "bn1")
    model.prepare(*data, verbose=0)
    fisher = model.regularizer.fisher
    penalised = [fisher[v.path] for v, _ in model.pairing.variables]
    total = sum(f.sum() for f in penalised), sum(f.size for f in penalised)
    assert total[0] / total[1] == pytest.approx(1, rel=1e-4)
    assert all(fisher[v.path].any() for v, _ in model.pairing.parameters)
    kept = float(model.regularizer.weight_distance())
    for layer in model.target.layers:
        layer.trainable = True
    assert float(model.regularizer.weight_distance()) > 1.01 * kept


def test_fisher_where_only_the_head_trains(data):
    model = make_model("l2_sp_fisher", of=None)
    kd.freeze_until(model, "relu2")
    model.compile("sgd", model.loss, jit_compile=False)
    fit(model, data, regularizer=make("l2_sp_fisher"))
    assert model.regularizer.ready and not float(model.regularizer.weight_distance())


def test_relations_are_those_of_labelled_images(data):
    """An image of the weight 0 has a label that is only there."""
    x, y = data
    weights = (np.arange(COUNT) % 4 != 0).astype("float32")
    given = np.where(weights > 0, y, 0)
    found = []
    for x_, y_, options in (
        (x, given, {"sample_weight": weights}),
        (x[weights > 0], y[weights > 0], {}),
    ):
        model = make_model("co_tuning")
        fit(model, (x_, y_), **options)
        found.append(model.regularizer.relations)
    np.testing.assert_allclose(*found, atol=1e-6)


def test_images_without_labels_do_not_count(data):
    x, y = data
    for name in ("bi_tuning", "co_tuning"):
        logs = []
        weights = (np.arange(COUNT) >= 3).astype("float32")
        for labels in (y, np.where(weights > 0, y, 2)):
            model = make_model(name)
            model.prepare(x, y, verbose=0)
            found = model.train_on_batch(x, labels, weights, return_dict=True)
            logs.append(found["feature_penalty"])
        assert logs[0] == logs[1] > 0


def test_queues_take_turns(data):
    """The newest K of each class are there, where the oldest were."""
    x, _ = data
    y = np.array([0] * 6 + [1] * 2 + [2] * 4)
    model = make_model("bi_tuning")
    model.optimizer.learning_rate = 0.0
    r = model.regularizer
    before = np.array(r.queues[0])
    model.train_on_batch(x, y)
    keys = np.array(r.queues[0])
    features = keras.Model(
        model.target.input, model.target.get_layer("head_pool").output
    )(x, training=True)
    z = np.array(r.project(features))
    # Six of the class 0 in a queue of four: the last four, from where it stood.
    np.testing.assert_allclose(keys[0, [2, 3, 0, 1]], z[2:6], atol=1e-4)
    np.testing.assert_allclose(keys[1, :2], z[6:8], atol=1e-4)
    np.testing.assert_array_equal(keys[1, 2:], before[1, 2:])
    np.testing.assert_allclose(keys[2], z[8:], atol=1e-4)
    model.train_on_batch(x[6:8], y[6:8])
    again = np.array(r.queues[0])
    np.testing.assert_array_equal(again[1, :2], keys[1, :2])
    assert np.abs(again[1, 2:] - keys[1, 2:]).max() > 1e-3


def test_the_classifier_learns_from_the_task_alone(data):
    """Its rows are constants in Bi-Tuning's distance."""
    targets = []
    for alpha in (0.0, 1.0):
        model = make_model("bi_tuning", of=make("bi_tuning", alpha=alpha))
        model.train_on_batch(*data)
        targets.append([v.numpy() for v in model.target.trainable_variables])
    *features, kernel, bias = zip(*targets, strict=True)
    for without, with_it in (kernel, bias):
        np.testing.assert_allclose(without, with_it, atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in features) > 1e-3


def test_keys_are_of_flipped_images(data):
    """Some of them: each image by a draw of its own."""
    x, y = data
    model = make_model("bi_tuning", batch_norm=False, of=make("bi_tuning", view="flip"))
    model.optimizer.learning_rate = 0.0
    as_they_are, flipped = (embedded(model, v)[0] for v in (x, x[:, :, ::-1]))
    model.train_on_batch(x, y)
    keys = np.array(model.regularizer.queues[0])[y, np.arange(COUNT) // CLASSES]
    same, other = (np.abs(keys - z).max(1) < 1e-4 for z in (as_they_are, flipped))
    assert (same ^ other).all() and same.any() and other.any()


def test_the_key_encoder_follows(data):
    model = make_model("bi_tuning", of=make("bi_tuning", momentum=0.75))
    start = [np.array(v) for v in model.target.trainable_variables]
    model.train_on_batch(*data)
    now = [np.array(v) for v in model.target.trainable_variables]
    keys = [np.array(key) for _, key in model.regularizer.followed][: len(now)]
    for key, a, b in zip(keys, start, now, strict=True):
        np.testing.assert_allclose(key, 0.75 * a + 0.25 * b, atol=1e-6)


def test_stages(data):
    """First the hint alone, then the task and the predictions alone."""
    for name in ("fitnets", "fsp"):
        model = make_model(name, of=make(name, stage_steps=2))
        logs = []
        for _ in range(3):
            model.reset_metrics()  # Keras 3.14 adds up calls
            logs.append(model.train_on_batch(*data, return_dict=True))
        assert [log["task_loss"] > 0 for log in logs] == [False, False, True]
        assert logs[1]["feature_penalty"] > 0
        distilled = logs[2]["feature_penalty"]
        assert (distilled > 0) == (name == "fitnets")


def test_dtnh_never_goes_against_the_task(data):
    """The step is along the task's gradient plus what of the other agrees with it."""
    model = make_model("dtnh", keras.optimizers.SGD(1.0), of=make("dtnh"))
    model.regularizer.members[0].alpha = 50.0
    variables = model.trainable_variables
    before = [np.array(v) for v in variables]
    x, y = data
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with tf.GradientTape() as tape:
        task = loss(y, model.target(x, training=True))
    g = [np.array(v, "float64") for v in tape.gradient(task, variables)]
    starts = {v.path: np.array(s) for v, s in model.pairing.variables}
    r = [
        50 * (b - starts[v.path]) if v.path in starts else 0.01 * b
        for v, b in zip(variables, before, strict=True)
    ]
    inner = sum((a * b).sum() for a, b in zip(g, r, strict=True))
    norm = sum((a**2).sum() for a in g)
    share = min(inner, 0) / norm
    model.train_on_batch(x, y)
    for v, b, e, p in zip(variables, before, g, r, strict=True):
        np.testing.assert_allclose(b - np.array(v), (1 - share) * e + p, atol=2e-3)


def test_stoch_norm_in_a_target(data):
    source = make_backbone(True)
    target = kd.attach_head(source, CLASSES, stochastic_norm=0.25)
    norms = [la for la in target.layers if isinstance(la, kd.layers.StochNorm)]
    assert [layer.probability for layer in norms] == [0.25] * 3
    plain = kd.attach_head(source, CLASSES)
    head = target.get_layer("head").get_weights()
    plain.get_layer("head").set_weights(head)
    x = data[0]
    np.testing.assert_allclose(target(x), plain(x), atol=1e-5)
    assert np.abs(target(x, training=True) - plain(x, training=True)).max() > 1e-3
    model = kd.DeltaModel(target, source, regularizer="l2_sp")
    assert len(model.pairing.variables) == len(source.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    fit(model, data)
    with pytest.raises(ValueError, match="has no BatchNormalization"):
        kd.attach_head(make_backbone(), CLASSES, stochastic_norm=0.5)
    for value in (1.5, "x"):
        with pytest.raises(
            (TypeError, ValueError), match=r"`stochastic_norm`\. Expected"
        ):
            kd.attach_head(source, CLASSES, stochastic_norm=value)


REFUSED = {
    "bss": (lambda: regularizers.BSS(k=0), "`k`"),
    "bi_tuning keys": (lambda: regularizers.BiTuning(keys=0), "`keys`"),
    "bi_tuning view": (lambda: regularizers.BiTuning(view="crop"), "`view`"),
    "lwf": (lambda: regularizers.LwF(temperature=0), "`temperature`"),
    "co_tuning": (lambda: regularizers.CoTuning(variant="em"), "`variant`"),
    "at": (lambda: regularizers.AT(variant="paper"), "`variant`"),
    "fsp": (lambda: regularizers.FSP(stage_steps=-1), "`stage_steps`"),
    "fitnets": (lambda: regularizers.FitNets(kd=-1), "`kd`"),
    "fisher": (lambda: regularizers.L2SPFisher(samples=0), "`samples`"),
    "dtnh of none": (lambda: regularizers.DTNH("none"), "`regularizer`"),
    "dtnh of itself": (lambda: regularizers.DTNH("dtnh"), "`regularizer`"),
    "dtnh of 4Ds": (lambda: regularizers.DTNH("four_ds"), "`regularizer`"),
    "dtnh alpha": (
        lambda: regularizers.DTNH(regularizers.L2SP(), alpha=1.0),
        "`alpha`",
    ),
    "dtnh in a sum": (
        lambda: regularizers.get(["dtnh", "l2"]),
        r"DTNH\(\[\.\.\.\]\)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_arguments_are_refused(what):
    build, message = REFUSED[what]
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_wrong_networks_are_refused():
    backbone = make_backbone(True)
    target = headed(backbone, CLASSES)
    for name in ("lwf", "co_tuning"):
        with pytest.raises(ValueError, match=r"source.*include_top=True"):
            kd.DeltaModel(target, backbone, regularizer=name)
    flat = kd.attach_head(backbone, CLASSES, pooling="flatten")
    with pytest.raises(ValueError, match="8 features, which the source's head takes"):
        kd.DeltaModel(flat, headed(backbone, OF_SOURCE), regularizer="lwf")
    sigmoid = headed(backbone, CLASSES, "sigmoid")
    for name in ("bi_tuning", "l2_sp_fisher"):
        with pytest.raises(
            ValueError, match=r"ends in a sigmoid.*without `activation`"
        ):
            kd.DeltaModel(sigmoid, backbone, regularizer=name)
    kd.DeltaModel(sigmoid, backbone, regularizer="bss")  # looks at features alone
    two = keras.Model(
        target.input, [target.output, keras.layers.Dense(2)(target.layers[-2].output)]
    )
    with pytest.raises(ValueError, match="which ends in 2 outputs"):
        kd.DeltaModel(two, backbone, regularizer="bss")
    wider = headed(make_backbone(True, seed=3, widths=(8, 12, 16)), CLASSES)
    with pytest.raises(ValueError, match=r"same channels.*'relu0': 8, 'relu1': 12"):
        kd.DeltaModel(target, wider, regularizer="fsp")
    with pytest.raises(ValueError, match="as many taps"):
        kd.DeltaModel(
            target,
            headed(make_backbone(True, seed=2, widths=(4, 6)), CLASSES),
            taps=["conv0", "conv1", "conv2"],
            source_taps=["conv0", "conv1"],
            regularizer="at",
        )


@pytest.mark.parametrize("name", ["l2_sp_fisher", "bi_tuning", "co_tuning", "fitnets"])
def test_other_tasks_are_refused(name, data):
    """Several labels, yes or no, numbers: they have no classes to draw or to relate."""
    model = make_model(name)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="mutually exclusive classes"):
        model.fit(data[0], np.eye(3)[data[1]], verbose=0)


@pytest.mark.parametrize(
    "members", [["at", "bss"], ["l2_sp", "at"], ["lwf", "bss"], ["bi_tuning", "bss"]]
)
def test_sums(members, data):
    """Of methods that choose taps and methods that begin at the source."""
    model = make_model("lwf", of=members)
    logs = fit(model, data).history
    assert np.isfinite(logs["loss"]).all()
    assert ("relu2" in model.taps) == ("at" in members)


def test_bss_beside_a_teacher(data):
    """It needs no source, and so does not care which one there is."""
    model = make_model("fitnets", of=["kd", "bss"])
    assert np.isfinite(fit(model, data).history["loss"]).all()


def test_members_that_tap_other_layers():
    with pytest.raises(ValueError, match=r"different layers.*FitNets.*`source_taps=`"):
        make_model("fsp", of=["fitnets", "fsp"])


def test_heads_with_convolutions_are_not_tapped(data):
    source = make_backbone(True)
    x = keras.layers.Conv2D(CLASSES, 1, name="of_head")(source.output)
    target = keras.Model(source.input, keras.layers.GlobalAveragePooling2D()(x))
    model = kd.DeltaModel(target, source, regularizer="at")
    assert model.taps == ["relu0", "relu1", "relu2"]


def test_before_a_model_uses_them():
    for call in (
        lambda: kd.regularizers.L2SPFisher().set_fisher({}),
        lambda: kd.regularizers.CoTuning().set_relations(np.eye(3)),
    ):
        with pytest.raises(ValueError, match="No model uses this regularizer yet"):
            call()


def test_fisher_of_what_cannot_be_measured(data):
    model = make_model("l2_sp_fisher")
    model.target.trainable = False
    model = kd.DeltaModel(model.target, make_backbone(True), regularizer="l2_sp_fisher")
    assert float(model.regularizer.weight_distance()) == 0
    model = make_model("l2_sp_fisher")
    head = model.target.get_layer("head")
    head.set_weights([np.full_like(w, np.nan) for w in head.get_weights()])
    with pytest.raises(ValueError, match="not finite on all 8 images"):
        model.prepare(*data, verbose=0)


def test_a_class_stands_for_its_defaults():
    assert isinstance(regularizers.get(regularizers.AT), regularizers.AT)


def test_stoch_norm_says_when_it_does_nothing(data):
    target = kd.attach_head(make_backbone(True), CLASSES, stochastic_norm=0.5)
    model = kd.DeltaModel(target, make_backbone(True), regularizer="l2_sp")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, run_eagerly=True)
    with pytest.warns(UserWarning, match="StochNorm has no effect"):
        fit(model, data, recipe=kd.Recipe(epochs=1, batch_norm=0.0))


def test_a_class_without_images(data):
    model = make_model("co_tuning")
    with pytest.raises(ValueError, match="none of class 2"):
        fit(model, (data[0], data[1] % 2))
