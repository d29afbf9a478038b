"""One step of `DeltaModel`: what is minimised, what moves, runs and is logged."""

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from model_reference import CASES, Counter

import keras_delta as kd
from keras_delta._training import step
from keras_delta.regularizers import L2, L2FE, L2SP, Delta, FeatureMap, Sum

# --- the step itself -----------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_steps_equal_hand_written_ones(name, new_backbone):
    """Three steps of SGD, the last with a smaller batch, and what they log."""
    case = CASES[name]
    x, y = reference.data(11)
    weight = np.linspace(0.2, 2.0, 11).astype("float32")
    model = reference.compiled(*reference.pair(new_backbone), case.make())
    logs = model.fit(x, y, 4, shuffle=False, sample_weight=weight, verbose=0).history

    target, source = reference.pair(new_backbone)
    scales = reference.scales(source, x)
    found = [
        (reference.step(target, source, case, *part[:2], scales, part[2]), len(part[0]))
        for part in ((x[i : i + 4], y[i : i + 4], weight[i : i + 4]) for i in (0, 4, 8))
    ]
    reference.assert_same_weights(model.target, target)
    for key in ("loss", "task_loss", "feature_penalty", "head_penalty"):
        expected = sum(log[key] * n for log, n in found) / 11
        np.testing.assert_allclose(logs[key][0], expected, rtol=1e-5, err_msg=key)
    assert logs["loss"][0] == pytest.approx(
        logs["task_loss"][0] + logs["feature_penalty"][0] + logs["head_penalty"][0]
    )
    assert logs["head_penalty"][0] > 0
    assert (logs["feature_penalty"][0] > 0) == (case.alpha > 0)


def test_class_weight_counts_as_sample_weight(new_backbone):
    x, y = reference.data(8)
    class_weight = {0: 1.0, 1: 3.0, 2: 0.2}
    a = reference.compiled(*reference.pair(new_backbone), FeatureMap(0.3))
    b = reference.compiled(*reference.pair(new_backbone), FeatureMap(0.3))
    a.fit(x, y, 8, class_weight=class_weight, verbose=0)
    weight = np.array([class_weight[int(v)] for v in y])
    b.fit(x, y, 8, sample_weight=weight, verbose=0)
    reference.assert_same_weights(a, b, atol=1e-7)
    c = reference.compiled(*reference.pair(new_backbone), FeatureMap(0.3))
    c.fit(x, y, 8, verbose=0)
    assert np.abs(c.target.get_weights()[-1] - a.target.get_weights()[-1]).max() > 1e-3


@pytest.mark.parametrize("regularizer", [None, L2FE(), FeatureMap(0.3, 0.2)])
def test_layer_losses_are_part_of_the_task_loss(regularizer, new_backbone):
    """Kernel and activity regularizers count once, with and without taps."""
    x, y = reference.data(8)
    target, source = reference.pair(new_backbone)
    target.get_layer("conv1").kernel.regularizer = keras.regularizers.L2(0.1)
    target.get_layer("relu1").activity_regularizer = keras.regularizers.L2(0.001)
    model = reference.compiled(target, source, regularizer)
    log = model.fit(x, y, 8, verbose=0).history

    plain, _ = reference.pair(new_backbone)
    maps = keras.Model(plain.inputs, [plain.output, plain.get_layer("relu1").output])
    logits, activity = maps(x, training=True)
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    expected = np.mean(each) + 0.1 * np.sum(plain.get_layer("conv1").kernel ** 2)
    expected += 0.001 * np.sum(np.square(activity)) / 8  # Keras: mean over samples
    assert log["task_loss"][0] == pytest.approx(expected, rel=1e-5)

    val = model.evaluate(x, y, 8, verbose=0)
    logits, activity = keras.Model(
        model.target.inputs,
        [model.target.output, model.target.get_layer("relu1").output],
    )(x)
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    kernel = model.target.get_layer("conv1").kernel
    expected = np.mean(each) + 0.1 * np.sum(kernel**2)
    assert val == pytest.approx(
        expected + 0.001 * np.sum(np.square(activity)) / 8, rel=1e-5
    )


def test_evaluate_has_the_task_loss_alone(new_backbone):
    x, y = reference.data(8)
    model = reference.compiled(
        *reference.pair(new_backbone), Delta(3.0, attention="uniform"), metrics=["acc"]
    )
    history = model.fit(x, y, 8, validation_data=(x, y), epochs=2, verbose=0).history
    assert set(history) == {
        *("loss", "task_loss", "feature_penalty", "head_penalty", "acc"),
        *("val_loss", "val_acc"),
    }
    target = model.target
    target.compile(loss=model.loss, metrics=["acc"], run_eagerly=True)
    expected = target.evaluate(x, y, 8, verbose=0, return_dict=True)
    found = model.evaluate(x, y, 8, verbose=0, return_dict=True)
    assert found.keys() == expected.keys() == {"loss", "acc"}
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["acc"] == expected["acc"]
    assert history["val_loss"][-1] == pytest.approx(expected["loss"], rel=1e-6)
    assert model.test_on_batch(x, y, return_dict=True).keys() == {"loss", "acc"}
    assert len(model.test_on_batch(x, y)) == 2
    assert len(model.evaluate(x, y, verbose=0)) == 2
    np.testing.assert_array_equal(model.predict(x, verbose=0), target(x))


# --- what runs, and how often --------------------------------------------------


def counting_pair(size=8):
    """Networks conv0, counter `before`, conv1, counter `behind`, with BatchNorm."""
    x = inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv0")(x)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = Counter(name="before")(x)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="conv1")(x)
    x = Counter(name="behind")(x)
    source = keras.Model(inputs, x)
    return kd.attach_head(source, 3), source


def counts(network):
    return [network.get_layer(n).counts for n in ("before", "behind")]


@pytest.mark.parametrize("name", ["feature_map", "l2_sp", "none"])
def test_one_forward_of_the_target_and_half_of_the_source_a_step(name):
    x, y = reference.data(12)
    target, source = counting_pair()
    model = kd.DeltaModel(target, source=source, taps=["conv1"])
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(True), jit_compile=False
    )
    model.fit(x, y, 4, regularizer=name, verbose=0)
    assert counts(target) == [(3, 0), (3, 0)]
    # 12 samples are one batch of 32 when the scale of the maps is measured.
    source_runs = 3 + 1 if name == "feature_map" else 0
    assert counts(model.source) == [(0, source_runs), (0, 0)]
    assert counts(source) == [(0, 0), (0, 0)]  # the user's own is not touched


def test_the_source_does_not_run_outside_of_training(tmp_path):
    x, y = reference.data(8)
    target, source = counting_pair()
    model = kd.DeltaModel(target, source=source, taps=["conv1"])
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(True),
        regularizer=FeatureMap(),
        jit_compile=False,
    )
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    model(x)
    model.export(tmp_path / "served", verbose=False)
    assert counts(model.source) == [(0, 0), (0, 0)]
    assert counts(target) == [(0, 3), (0, 3)]


def test_batch_norm_moves_once_a_step_in_the_target_and_never_in_the_source():
    x, y = reference.data(8)
    target, source = counting_pair()
    model = kd.DeltaModel(target, source=source, taps=["conv1"])
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(True),
        regularizer=FeatureMap(),
        jit_compile=False,
    )
    expected = kd.attach_head(source, 3)
    conv, norm = expected.get_layer("conv0"), expected.get_layer("bn")
    norm(conv(x), training=True)
    before = model.source.get_weights()
    model.fit(x, y, 8, verbose=0)
    moved = target.get_layer("bn")
    np.testing.assert_allclose(moved.moving_mean, norm.moving_mean, atol=1e-7)
    np.testing.assert_allclose(moved.moving_variance, norm.moving_variance, atol=1e-7)
    assert np.abs(moved.moving_mean).max() > 1e-4
    reference.assert_same_weights(
        [w for w in model.source.get_weights() if w.ndim],
        [w for w in before if w.ndim],
        atol=0,
        rtol=0,
    )


def test_the_source_is_never_trainable(new_backbone):
    target, source = reference.pair(new_backbone)
    model = reference.compiled(target, source, FeatureMap())
    own = {id(v) for v in model.source.variables}
    for value in (False, True):
        model.trainable = value
        assert model.source.trainable_variables == []
        assert not own & {id(v) for v in model.trainable_variables}
        assert len(model.trainable_variables) == (6 if value else 0)
    before = model.source.get_weights()
    x, y = reference.data(8)
    model.fit(x, y, 8, verbose=0)
    reference.assert_same_weights(model.source.get_weights(), before, atol=0, rtol=0)
    assert source.trainable  # the user's own stays as it was


def test_frozen_layers_of_the_target_stay_and_are_not_penalised(new_backbone):
    x, y = reference.data(8)
    target, source = reference.pair(new_backbone)
    frozen = target.get_layer("conv0")
    frozen.trainable = False
    before = frozen.get_weights()
    model = reference.compiled(target, source, L2SP(0.3, 0.2))
    log = model.fit(x, y, 8, verbose=0).history
    reference.assert_same_weights(frozen.get_weights(), before, atol=0, rtol=0)
    start, _ = reference.pair(new_backbone)
    expected = 0.3 * sum(
        0.5 * np.sum((a - b) ** 2)
        for a, b in zip(
            start.get_layer("conv1").get_weights(),
            source.get_layer("conv1").get_weights(),
            strict=True,
        )
    )
    assert log["feature_penalty"][0] == pytest.approx(expected, rel=1e-5)


# --- choosing the regularizer --------------------------------------------------


def test_the_latest_regularizer_wins(new_backbone):
    target, source = reference.pair(new_backbone)
    model = kd.DeltaModel(target, source=source, regularizer="l2")
    assert isinstance(model.regularizer, L2)
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    model.compile("sgd", loss, run_eagerly=True)
    assert isinstance(model.regularizer, L2)
    model.compile("sgd", loss, regularizer=L2SP(), run_eagerly=True)
    assert isinstance(model.regularizer, L2SP)
    x, y = reference.data(8)
    model.fit(x, y, regularizer=["l2_sp", "feature_map"], verbose=0)
    assert isinstance(model.regularizer, Sum)
    chosen = model.regularizer
    model.fit(x, y, regularizer=None, verbose=0)
    assert model.regularizer is chosen
    model.fit(x, y, regularizer={"class_name": "l2", "config": {}}, verbose=0)
    assert isinstance(model.regularizer, L2)
    log = model.fit(x, y, regularizer="none", verbose=0).history
    assert model.regularizer is None
    assert log["feature_penalty"] == log["head_penalty"] == [0.0]
    assert log["loss"] == log["task_loss"]


def test_the_same_name_again_keeps_what_was_computed(new_backbone):
    """Else a loop around `fit` would measure scales and attention each time."""
    model = reference.compiled(*reference.pair(new_backbone), rate=0.0)
    model.set_regularizer("feature_map")
    first = model.regularizer
    model.set_regularizer("feature_map")
    assert model.regularizer is first
    model.set_regularizer(["l2", "feature_map"])
    assert model.regularizer is not first
    model.set_regularizer("feature_map")
    first.alpha = model.regularizer.alpha = 3.0
    model.set_regularizer("feature_map")
    assert model.regularizer is not first and model.regularizer.alpha == 5.0
    model.set_regularizer(first)
    assert model.regularizer is first and first.alpha == 3.0


def test_the_same_name_with_another_strength_keeps_what_was_computed(new_backbone):
    """As after a schedule for alpha, when training goes on by the name."""
    x, y = reference.data(12)
    model = reference.compiled(*reference.pair(new_backbone), "delta")
    model.prepare(x, y, verbose=0)
    first = model.regularizer
    first.alpha = 0.5
    model.set_regularizer("delta")
    assert model.regularizer is first
    assert first.alpha == 5.0
    model.set_regularizer({"class_name": "delta", "config": {"alpha": 2, "beta": 0.5}})
    assert model.regularizer is first
    assert (first.alpha, first.beta) == (2.0, 0.5)
    model.set_regularizer({"class_name": "delta", "config": {"variant": "code"}})
    assert model.regularizer is not first
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 10)
    model.set_regularizer(first)
    model.set_regularizer(kd.regularizers.serialize(Delta(schedule)))
    assert model.regularizer is not first


def test_the_strengths_of_a_sum_are_taken_as_well(new_backbone):
    model = reference.compiled(*reference.pair(new_backbone), ["l2_sp", "l2"])
    first = model.regularizer
    first.members[0].alpha = 0.25
    model.set_regularizer(["l2_sp", "l2"])
    assert model.regularizer is first
    assert [m.alpha for m in first.members] == [0.01, 1e-4]


def test_an_unknown_regularizer_is_refused_before_anything_changes(new_backbone):
    x, y = reference.data(8)
    model = reference.compiled(*reference.pair(new_backbone), L2SP())
    with pytest.raises(ValueError, match=r"Received: 'l2sp'.*'l2_sp'"):
        model.fit(x, y, regularizer="l2sp", verbose=0)
    assert isinstance(model.regularizer, L2SP)
    with pytest.raises(TypeError, match="`regularizer`"):
        model.fit(x, y, regularizer=3, verbose=0)


def test_switching_changes_what_is_minimised(new_backbone):
    """The compiled step of the first regularizer is not used for the second."""
    x, y = reference.data(8)
    model = reference.compiled(
        *reference.pair(new_backbone), rate=0.0, run_eagerly=False
    )
    found = [
        model.fit(x, y, 8, regularizer=r, verbose=0).history["feature_penalty"][0]
        for r in (L2SP(0.3), L2SP(0.6), FeatureMap(0.3), "none", L2SP(0.3))
    ]
    assert found[1] == pytest.approx(2 * found[0], rel=1e-6)
    assert found[2] > 0 and found[2] != pytest.approx(found[0])
    assert found[3] == 0
    assert found[4] == pytest.approx(found[0], rel=1e-6)


def test_switching_from_l2_fe_to_delta_keeps_the_optimizer(new_backbone):
    x, y = reference.data(8)
    optimizer = keras.optimizers.Adam(0.01)
    target, source = reference.pair(new_backbone)
    model = reference.compiled(target, source, optimizer=optimizer)
    body = [target.get_layer("conv0"), target.get_layer("conv1")]
    before = [w for layer in body for w in layer.get_weights()]
    model.fit(x, y, 4, regularizer="l2_fe", verbose=0)
    after = [w for layer in body for w in layer.get_weights()]
    reference.assert_same_weights(after, before, atol=0, rtol=0)
    model.fit(x, y, 4, regularizer=Delta(attention="uniform"), verbose=0)
    moved = [w for layer in body for w in layer.get_weights()]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(moved, before, strict=True))
    assert model.optimizer is optimizer
    assert optimizer.iterations.numpy() == 4


def test_alpha_set_between_and_during_training_counts_at_once(new_backbone):
    x, y = reference.data(8)
    model = reference.compiled(
        *reference.pair(new_backbone), L2SP(0.3), rate=0.0, run_eagerly=False
    )
    first = model.fit(x, y, 8, verbose=0).history["feature_penalty"][0]
    function = model.train_function
    model.regularizer.alpha = 0.6
    model.regularizer.beta = 0.0
    log = model.fit(x, y, 8, verbose=0).history
    assert log["feature_penalty"][0] == pytest.approx(2 * first, rel=1e-6)
    assert log["head_penalty"] == [0.0]
    assert model.train_function is function  # no new trace for a new strength


def test_the_strength_of_a_sum_is_its_members(new_backbone):
    x, y = reference.data(8)
    model = reference.compiled(
        *reference.pair(new_backbone), [L2SP(0.3), L2(0.0, 0.0)], rate=0.0
    )
    with pytest.raises(ValueError, match=r"has no `alpha`.*members\[0\]\.alpha"):
        model.regularizer.alpha = 0.6
    first = model.fit(x, y, 8, verbose=0).history["feature_penalty"][0]
    model.regularizer.members[0].alpha = 0.6
    log = model.fit(x, y, 8, verbose=0).history
    assert log["feature_penalty"][0] == pytest.approx(2 * first, rel=1e-6)


def test_a_schedule_of_alpha_follows_the_steps(new_backbone):
    x, y = reference.data(8)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], [0.3, 0.6, 0.0]
    )
    model = reference.compiled(
        *reference.pair(new_backbone), L2SP(schedule), rate=0.0, run_eagerly=False
    )
    found = [
        model.fit(x, y, 8, verbose=0).history["feature_penalty"][0] for _ in range(3)
    ]
    assert found[1] == pytest.approx(2 * found[0], rel=1e-6)
    assert found[0] > 0 and found[2] == 0


def test_a_regularizer_of_another_model_is_copied(new_backbone):
    x, y = reference.data(8)
    shared = FeatureMap(0.3)
    a = reference.compiled(*reference.pair(new_backbone), shared)
    b = reference.compiled(*reference.pair(new_backbone), shared)
    a.fit(x, y, verbose=0)
    assert a.regularizer is shared and b.regularizer is not shared
    assert shared.scales and not b.regularizer.scales
    assert b.regularizer.alpha == pytest.approx(0.3)


# --- l2_fe ---------------------------------------------------------------------


def test_l2_fe_equals_training_the_head_on_inference_features(new_backbone):
    """Same weights as a separate head fitted to features, BatchNorm untouched."""
    x, y = reference.data(8)
    target, source = reference.pair(new_backbone, batch_norm=True)
    model = reference.compiled(target, source, L2FE(beta=0.2))
    before = {x.name: x.get_weights() for x in target.layers}
    model.fit(x, y, 4, epochs=3, shuffle=False, verbose=0)
    for layer in target.layers:
        if layer.name != "head":
            reference.assert_same_weights(
                layer.get_weights(), before[layer.name], atol=0, rtol=0
            )

    features = keras.Model(target.inputs, target.get_layer("head_pool").output)(x)
    head = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    head.set_weights(before["head"])
    for v in head.trainable_variables:
        v.regularizer = keras.regularizers.L2(0.1)  # beta / 2
    head.compile(keras.optimizers.SGD(0.1), model.loss, run_eagerly=True)
    head.fit(features.numpy(), y, 4, epochs=3, shuffle=False, verbose=0)
    reference.assert_same_weights(target.get_layer("head").get_weights(), head)


def test_l2_fe_keeps_the_dropout_of_the_head_and_switches_off_the_bodys(new_backbone):
    x, _ = reference.data(8)
    source = new_backbone(batch_norm=True, size=8, widths=reference.WIDTHS)
    body = keras.Model(
        source.inputs,
        keras.layers.Conv2D(4, 1, name="last")(
            keras.layers.Dropout(0.5, name="body_dropout")(source.output)
        ),
    )
    target = kd.attach_head(body, 3, dropout=0.5)
    model = reference.compiled(target, body, L2FE())
    pooled = keras.Model(target.inputs, target.get_layer("head_pool").output)(x)
    seen = {tuple(np.round(model(x, training=True).numpy().ravel(), 5))}
    for _ in range(3):
        seen.add(tuple(np.round(model(x, training=True).numpy().ravel(), 5)))
    assert len(seen) == 4  # the head's dropout is at work
    head = target.get_layer("head")
    for values in seen:  # ... on features without dropout: each is 0 or doubled
        logits = np.reshape(values, (8, 3)) - head.bias.numpy()
        for row, p in zip(logits, pooled.numpy(), strict=True):
            choices = np.array(np.meshgrid(*[[0, 2 * v] for v in p])).reshape(4, -1).T
            errors = np.abs(choices @ head.kernel.numpy() - row).max(axis=1)
            assert errors.min() < 1e-4


def test_l2_fe_needs_a_head(new_backbone):
    source = new_backbone(size=8)
    model = kd.DeltaModel(source, source=source)
    with pytest.raises(ValueError, match=r"'l2_fe'.*attach_head"):
        model.set_regularizer("l2_fe")


# --- before training -----------------------------------------------------------


def test_attention_looks_at_the_training_part_alone(new_backbone, monkeypatch):
    """With `validation_split`, no validation sample is read."""
    x, y = reference.learnable_data(20)
    x[15:] = np.nan
    model = reference.compiled(*reference.pair(new_backbone), Delta(), rate=0.0)
    model.fit(x, y, 5, validation_split=0.25, verbose=0)
    assert model.regularizer.computed_attention.samples == 15
    expected = reference.scales(model.source, x[:15])
    for tap, scale in model.regularizer.scales.items():
        assert scale == pytest.approx(expected[tap], rel=1e-5)
    positional = reference.compiled(*reference.pair(new_backbone), Delta(), rate=0.0)
    positional.fit(x, y, 5, 1, 0, None, 0.25)
    assert positional.regularizer.computed_attention.samples == 15


def test_the_data_is_looked_at_once(new_backbone):
    x, y = reference.learnable_data(12)
    model = reference.compiled(*reference.pair(new_backbone), Delta())
    model.fit(x, y, verbose=0)
    first = model.regularizer.attention_weights()
    model.fit(x * 2, y, verbose=0)
    for tap, weights in model.regularizer.attention_weights().items():
        np.testing.assert_array_equal(weights, first[tap])


def test_training_without_prepare_is_refused(new_backbone):
    x, y = reference.data(8)
    model = reference.compiled(*reference.pair(new_backbone), FeatureMap())
    with pytest.raises(ValueError, match=r"FeatureMap.*model\.prepare\(x, y\)"):
        model.train_on_batch(x, y)
    model.prepare(x, y)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["feature_penalty"] > 0


def test_fit_before_compile_says_so(new_backbone):
    target, source = reference.pair(new_backbone)
    with pytest.raises(ValueError, match=r"call `compile\(\)`"):
        kd.DeltaModel(target, source=source).fit(*reference.data(8))


def test_a_step_is_traced_once(new_backbone, monkeypatch):
    """Keras traces it twice, as its metrics make their variables in the first step."""
    count, run = [], step.Step.run
    monkeypatch.setattr(
        step.Step, "run", lambda self, data: count.append(1) or run(self, data)
    )
    source = new_backbone()
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"], jit_compile=False)
    x, y = np.zeros((5, 16, 16, 3), "float32"), np.arange(5) % 3
    history = model.fit(x, y, batch_size=2, epochs=2, regularizer="l2", verbose=0)
    assert len(count) == 1 and len(history.history["accuracy"]) == 2
