"""What is watched of a step, against tapes written by hand on copies of the models."""

from types import SimpleNamespace

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

from keras_delta._training.step import Step
from keras_delta.regularizers import L2FE, L2SP, Delta, FeatureMap

TAPS, WEIGHTS = reference.TAPS, reference.WEIGHTS
RATE = 0.1
# 7: an uneven first batch; 8: an even one; 3: uneven; 1: one replica gets nothing.
SIZES = (7, 8, 3, 1)
PARTS = ("task", "feature", "head")


# --- the oracle ------------------------------------------------------------------


def delta_tap(alpha, weights, source, target, scale):
    """`alpha / B * sum_b sum_j W_j mean_hw (T - S)^2 / scale`, a sum at a time."""
    total = 0.0
    for b in range(source.shape[0]):
        for j in range(source.shape[-1]):
            gap = tf.cast(target[b, :, :, j], "float32")
            gap -= tf.cast(source[b, :, :, j], "float32")
            total += weights[j] * tf.reduce_mean(gap**2) / scale
    return alpha * total / source.shape[0]


def uniform(tap):
    return np.full(len(WEIGHTS[tap]), 1 / len(WEIGHTS[tap]))


def maps_term(alpha, weights):
    def taps(r):
        return {
            t: delta_tap(alpha, weights(t), r.source[t], r.target[t], r.scales[t])
            for t in TAPS
        }

    return taps


def l2_sp_term(alpha):
    def term(r):
        return alpha * sum(0.5 * tf.reduce_sum((v - s) ** 2) for v, s in r.pairs)

    return term


def no_taps(r):
    return {}


def added(*terms):
    def taps(r):
        found = [term(r) for term in terms]
        return {t: sum(f[t] for f in found) for t in TAPS}

    return taps


# name -> (regularizer, its taps, what it adds besides, beta)
CASES = {
    "none": (lambda: None, no_taps, lambda r: 0.0, 0.0),
    "l2_sp": (lambda: L2SP(0.3, 0.2), no_taps, l2_sp_term(0.3), 0.2),
    "l2_fe": (lambda: L2FE(beta=0.2), no_taps, lambda r: 0.0, 0.2),
    "feature_map": (
        lambda: FeatureMap(0.4, 0.1),
        maps_term(0.4, uniform),
        lambda r: 0.0,
        0.1,
    ),
    "delta": (
        lambda: Delta(0.5, 0.2, attention=WEIGHTS),
        maps_term(0.5, WEIGHTS.get),
        lambda r: 0.0,
        0.2,
    ),
    "sum": (
        lambda: [Delta(0.5, 0.1, WEIGHTS), L2SP(0.3, 0.2), FeatureMap(0.4, 0.0)],
        added(maps_term(0.5, WEIGHTS.get), maps_term(0.4, uniform)),
        l2_sp_term(0.3),
        0.3,
    ),
}


def pull(loss_of, variables, scale):
    """Gradient of one part alone, by a tape of its own; zeros where there is none."""
    with tf.GradientTape() as tape:
        loss = tf.cast(loss_of(), "float32")
        scaled = loss * scale
    found = tape.gradient(scaled, variables)
    return float(loss), [
        np.zeros(v.shape) if g is None else np.asarray(g, "float64") / scale
        for v, g in zip(variables, found, strict=True)
    ]


def look(target, source, case, x, y, scales, scale=1.0):
    """One step of SGD on `target`, in place; the dict that is to be watched of it."""
    _, taps_of, rest, beta = CASES[case]
    source_maps = keras.Model(
        source.inputs, {t: source.get_layer(t).output for t in TAPS}
    )(x, training=False)
    both = keras.Model(
        target.inputs,
        [target.output, {t: target.get_layer(t).output for t in TAPS}],
    )
    head = target.get_layer("head")
    variables = target.trainable_variables
    if case == "l2_fe":
        variables = head.trainable_variables
    pairs = [
        (v, s)
        for name in TAPS
        for v, s in zip(
            target.get_layer(name).weights, source.get_layer(name).weights, strict=True
        )
    ]

    def run():
        logits, maps = both(x, training=True)
        r = SimpleNamespace(
            source=source_maps, target=maps, pairs=pairs, scales=scales, logits=logits
        )
        return r

    def task():
        logits = tf.cast(run().logits, "float32")
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        return tf.reduce_mean(each)

    def feature():
        r = run()
        return sum(taps_of(r).values(), 0.0) + rest(r)

    def head_part():
        squares = [tf.reduce_sum(v**2) for v in head.trainable_variables]
        return beta * 0.5 * sum(squares)

    found, pulls = {}, {}
    names = ("task_loss", "feature_penalty", "head_penalty")
    losses = (task, feature, head_part)
    for name, part, loss_of in zip(names, PARTS, losses, strict=True):
        found[name], pulls[part] = pull(loss_of, variables, scale)
        flat = np.concatenate([g.ravel() for g in pulls[part]])
        found[f"gradient_norm/{part}"] = np.sqrt((flat**2).sum())
    a, b = (np.concatenate([g.ravel() for g in pulls[p]]) for p in PARTS[:2])
    length = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = np.dot(a, b) / length if length else np.nan
    found["gradient_angle"] = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    for tap, value in taps_of(run()).items():
        found[f"penalty/{tap}"] = float(value)
    for i, v in enumerate(variables):
        v.assign(v - RATE * sum(pulls[p][i] for p in PARTS))
    return found


def looks(new_backbone, case, sizes=SIZES, **kwargs):
    """The oracle's list of dicts, one a step, and the target it ends with."""
    target, source = reference.pair(new_backbone)
    x, y = reference.data(sum(sizes))
    scales = reference.scales(source, x)
    found, start = [], 0
    for step, size in enumerate(sizes):
        part = slice(start, start + size)
        row = look(target, source, case, x[part], y[part], scales, **kwargs)
        found.append({"step": step, **row})
        start += size
    return found, target


# --- what the model says -----------------------------------------------------------


class Collect(keras.callbacks.Callback):
    """Keeps what is watched after each execution."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_end(self, batch, logs=None):
        watched = self.model.watched
        self.found.append(watched and {k: float(v) for k, v in watched.items()})


def train(new_backbone, case, every=1, sizes=SIZES, scope=None, **kwargs):
    """(model, what was watched after each execution)."""
    keras.utils.set_random_seed(0)
    epochs = kwargs.pop("epochs", 1)
    pair = {k: kwargs.pop(k) for k in ("batch_norm", "dropout") if k in kwargs}

    def build():
        optimizer = kwargs.pop("optimizer", lambda: keras.optimizers.SGD(RATE))()
        return reference.compiled(
            *reference.pair(new_backbone, **pair),
            CASES[case][0](),
            optimizer=optimizer,
            **kwargs,
        )

    if scope is None:
        model = build()
    else:
        with scope.scope():
            model = build()
    if every:
        model.watch(every)
    collect = Collect()
    x, y = reference.data(sum(sizes))
    data = reference.batches(sizes, x, y)
    model.fit(data, epochs=epochs, verbose=0, callbacks=[collect])
    return model, collect.found


def assert_same_rows(found, expected, rtol=2e-4, atol=2e-6, degrees=0.02):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            tolerance = (0, degrees) if name == "gradient_angle" else (rtol, atol)
            np.testing.assert_allclose(
                ours[name], value, *tolerance, err_msg=f"{name}, step {theirs['step']}"
            )


ON_REPLICAS = [(1, case) for case in CASES] + [(2, "l2_fe"), (2, "sum")]


@pytest.mark.parametrize("replicas, case", ON_REPLICAS)
def test_every_step(replicas, case, strategy, new_backbone):
    scope = strategy if replicas == 2 else None
    model, found = train(new_backbone, case, scope=scope)
    expected, target = looks(new_backbone, case)
    assert_same_rows(found, expected)
    reference.assert_same_weights(model.target, target)
    names = {name for name in found[0] if name.startswith("penalty/")}
    maps = case not in ("none", "l2_sp", "l2_fe")
    assert names == ({f"penalty/{t}" for t in TAPS} if maps else set())
    assert np.isnan(found[0]["gradient_angle"]) == (case in ("none", "l2_fe"))


def test_the_oracle_is_not_blind(new_backbone):
    """Each of its numbers is another at each step, and none is zero."""
    expected, _ = looks(new_backbone, "sum")
    for name in expected[0]:
        values = [row[name] for row in expected]
        assert len(set(values)) == len(SIZES)
        assert name == "step" or min(values) > 1e-3


@pytest.mark.parametrize("replicas, case", [(1, "delta"), (1, "l2_sp"), (2, "delta")])
def test_mixed_precision_with_loss_scaling(replicas, case, strategy, new_backbone):
    keras.config.set_dtype_policy("mixed_float16")
    scale = 2.0**10

    def optimizer():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(RATE), scale)

    scope = strategy if replicas == 2 else None
    model, found = train(new_backbone, case, scope=scope, optimizer=optimizer)
    assert model.optimizer.iterations.numpy() == len(SIZES)  # none was skipped
    expected, _ = looks(new_backbone, case, scale=scale)
    # Replicas add their halves of a gradient in float32, one device in float16.
    assert_same_rows(found, expected, rtol=0.01, atol=1e-4, degrees=0.5)


def test_loss_scaling_keeps_small_gradients(new_backbone):
    """A penalty's gradient below 6e-8, the least that float16 has, is not lost."""
    keras.config.set_dtype_policy("mixed_float16")
    small = 1e-7

    def norm(scale, policy):
        keras.config.set_dtype_policy(policy)
        pair = reference.pair(new_backbone)
        regularizer = FeatureMap(small, 0.0)
        optimizer = keras.optimizers.SGD(0.0)
        if scale:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, scale)
        model = reference.compiled(
            *pair, regularizer, optimizer=optimizer, auto_scale_loss=False
        )
        model.watch(1)
        model.fit(*reference.data(8), verbose=0)
        return float(model.watched["gradient_norm/feature"])

    exact = norm(None, "float32")
    assert norm(2.0**14, "mixed_float16") == pytest.approx(exact, rel=0.05)
    assert norm(None, "mixed_float16") != pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    "replicas, every, steps",
    [(1, 1, [1, 3, 4]), (1, 2, [0, 2, 4]), (1, 4, [0, 0, 4]), (2, 2, [0, 2, 4])],
)
def test_several_steps_per_execution(replicas, every, steps, strategy, new_backbone):
    """After each execution, the last step that was watched; the last one is short."""
    sizes = (8, 4, 8, 6, 4)
    scope = strategy if replicas == 2 else None
    model, found = train(
        new_backbone, "delta", every, sizes, scope, steps_per_execution=2
    )
    expected, target = looks(new_backbone, "delta", sizes)
    assert [row["step"] for row in found] == steps
    assert_same_rows(found, [expected[i] for i in steps])
    reference.assert_same_weights(model.target, target)


def test_every_third_step_counts_from_the_optimizers_first(new_backbone):
    _, found = train(new_backbone, "l2_sp", every=3, epochs=2)
    assert [row["step"] for row in found] == [0, 0, 0, 3, 3, 3, 6, 6]


def test_logs_stay_means_over_the_epoch(new_backbone):
    expected, _ = looks(new_backbone, "delta")
    x, y = reference.data(sum(SIZES))
    model = reference.compiled(*reference.pair(new_backbone), CASES["delta"][0]())
    model.watch(2)
    logs = model.fit(reference.batches(SIZES, x, y), verbose=0).history
    for name in ("task_loss", "feature_penalty", "head_penalty"):
        mean = np.average([row[name] for row in expected], weights=SIZES)
        np.testing.assert_allclose(logs[name], [mean], rtol=1e-4)


@pytest.mark.parametrize(
    "replicas, case, eager",
    [
        *((1, "none", True), (1, "l2_fe", True), (1, "sum", True)),
        pytest.param(1, "sum", False, marks=pytest.mark.slow),
        pytest.param(2, "sum", False, marks=pytest.mark.slow),
    ],
)
def test_weights_are_the_same_bit_for_bit(
    replicas, case, eager, strategy, new_backbone
):
    """With BatchNorm, dropout, momentum and two shapes of batches."""
    ends = []
    for every in (None, 2):
        model, _ = train(
            new_backbone,
            case,
            every,
            sizes=(8, 8, 8, 6),
            scope=strategy if replicas == 2 else None,
            epochs=2,
            batch_norm=True,
            dropout=0.3,
            optimizer=lambda: keras.optimizers.SGD(RATE, momentum=0.9),
            run_eagerly=eager,
        )
        ends.append(
            model.get_weights() + [v.numpy() for v in model.optimizer.variables]
        )
    for watched, plain in zip(*ends, strict=True):
        np.testing.assert_array_equal(watched, plain)


def test_steps_that_are_not_watched_are_not_traced_with_it(new_backbone, monkeypatch):
    """Two graphs: the plain step's and the closer look's, each traced once."""
    traced = []
    model = reference.compiled(
        *reference.pair(new_backbone), CASES["delta"][0](), run_eagerly=False
    )
    plain = Step.run

    def run(self, data, watch=False):
        traced.append(watch)
        return plain(self, data, watch)

    monkeypatch.setattr(Step, "run", run)
    model.watch(2)
    x, y = reference.data(16)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert sorted(traced) == [False, True]


def test_watching_stops(new_backbone):
    model, found = train(new_backbone, "delta")
    assert found[-1]["step"] == 3
    model.watch(None)
    model.fit(*reference.data(8), verbose=0)
    assert model.watched is None


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_bad_counts_are_refused(every, new_backbone):
    model = reference.compiled(*reference.pair(new_backbone))
    with pytest.raises(ValueError, match="Expected a positive integer or None"):
        model.watch(every)
