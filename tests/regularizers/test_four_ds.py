"""4Ds in a step, against NumPy and against a source with the adapters built in."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fourier_reference import (
    adapt_in_numpy,
    blend_in_numpy,
    decompose,
    gate_in_numpy,
    loss_in_numpy,
    pool_in_numpy,
)
from networks import make_backbone, make_deeper

import keras_delta as kd
from keras_delta.regularizers import FourDs

CLASSES, COUNT, T = 3, 6, 4.0
TAPS = "relu0", "relu1", "relu2"
WIDTHS = (16, 16, 17)  # three units in the gate


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(COUNT, 16, 16, 3)).astype("float32")
    return images, np.arange(COUNT) % CLASSES


def make_model(trained_by="sgd", target=None, source=None, **arguments):
    keras.utils.set_random_seed(0)
    source = source or kd.attach_head(make_deeper(widths=WIDTHS, seed=3), CLASSES)
    target = target or kd.attach_head(
        make_backbone(True, widths=WIDTHS, seed=1), CLASSES
    )
    for layer in target.layers:  # so that training mode is inference mode
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    model = kd.DeltaModel(target, source, regularizer=FourDs(**arguments))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(trained_by, loss)
    for i, v in enumerate(model.regularizer.trainable_variables):
        rng = np.random.default_rng(i)
        v.assign(v + 0.1 * rng.normal(size=v.shape))
    return model


def softened(logits, temperature=T):
    e = np.exp(np.asarray(logits, "float64") / temperature)
    return e / e.sum(-1, keepdims=True)


def divergence(p, q):
    return T**2 * (p * np.log(p / q)).sum(-1).mean()


def cross_entropy(logits, y):
    return -np.log(softened(logits, 1.0)[np.arange(len(y)), y]).mean()


def official(adapter):
    """An adapter's weights under the authors' names."""
    state = {"weight": adapter.mixture.numpy()}
    for i, convolution in (("0", adapter.reduce), ("3", adapter.expand)):
        kernel = convolution.kernel.numpy()
        state[f"fc.{i}.weight"] = kernel.transpose(3, 2, 0, 1).astype("float64")
    for i, norm in (("1", adapter.reduce_bn), ("4", adapter.expand_bn)):
        values = [v.numpy() for v in norm.weights]
        names = ("weight", "bias", "running_mean", "running_var")
        state |= {f"fc.{i}.{n}": v for n, v in zip(names, values, strict=True)}
    return state


def twin(model, x, y):
    """(source's phases, source's logits, target's phases, target's logits)."""
    regularizer, source, target = model.regularizer, model.source, model.target
    maps, phases, start = np.asarray(x), [], source.input
    for tap in TAPS:
        end = source.get_layer(tap).output
        maps = keras.Model(start, end)(maps, training=False).numpy()
        state = official(regularizer.adapters[tap])
        adapted = adapt_in_numpy(maps.astype("float64"), state, training=True)
        maps, phase = blend_in_numpy(maps, adapted, state["weight"])
        phases.append(phase)
        start, maps = end, maps.astype("float32")
    logits = keras.Model(start, source.output)(maps).numpy()
    ends = [target.get_layer(tap).output for tap in TAPS]
    *ours, our_logits = keras.Model(target.input, [*ends, target.output])(x)
    return phases, logits, [decompose(m)[1] for m in ours], our_logits.numpy()


def joined(phases):
    size = phases[-1].shape[1:3]
    return np.concatenate([pool_in_numpy(p, size) for p in phases], axis=-1)


def test_a_step_in_numpy(data):
    model = make_model()
    theirs, source, ours, target = twin(model, *data)
    fusion = model.regularizer.fusion
    state = {
        "fc.0.weight": fusion.reduce.kernel.numpy().T.astype("float64"),
        "fc.2.weight": fusion.expand.kernel.numpy().T.astype("float64"),
    }
    gate = gate_in_numpy(joined(theirs), state)
    omega = loss_in_numpy(joined(theirs), joined(ours), gate)
    p, q = softened(source), softened(target)
    logs = model.train_on_batch(*data, return_dict=True)
    y = data[1]
    assert logs["task_loss"] == pytest.approx(cross_entropy(target, y), rel=1e-4)
    expected = 0.1 * omega + divergence(p, q)
    assert logs["feature_penalty"] == pytest.approx(expected, rel=1e-3)
    expected = cross_entropy(source, y) + divergence(q, p)
    assert logs["source_loss"] == pytest.approx(expected, rel=1e-3)


def test_the_distance_of_maps(data):
    """`feature_distance` of raw maps, bound and not, is that of their phases."""
    rng = np.random.default_rng(1)
    sizes = ((7, 5, 8), (3, 4, 12))
    source, target = (
        {f"tap{i}": rng.normal(size=(2, *s)).astype("float32") for i, s in pairs}
        for pairs in (enumerate(sizes), enumerate(sizes))
    )
    regularizer = FourDs()
    found = float(regularizer.feature_distance(source, target))
    kernels = [v.numpy().T for v in regularizer.fusion.weights]
    state = dict(zip(("fc.0.weight", "fc.2.weight"), kernels, strict=True))
    both = [
        joined([decompose(m)[1] for m in maps.values()]) for maps in (source, target)
    ]
    gate = gate_in_numpy(both[0], state)
    assert found == pytest.approx(loss_in_numpy(*both, gate), rel=1e-4)


def groups_that_move(model, data):
    """Names of the groups of variables that a step moves."""
    regularizer = model.regularizer
    moving = {id(v) for v in regularizer.source_variables}
    statistics = [
        v for a in regularizer.source_layers for v in a.non_trainable_variables
    ]
    groups = {
        "target": model.target.trainable_variables,
        "gate": regularizer.fusion.trainable_variables,
        "adapters": [v for v in regularizer.variables if id(v) in moving],
        "statistics of the adapters": statistics,
        "source": model.source.variables,
        "statistics of the target": model.target.non_trainable_variables,
    }
    before = {k: [v.numpy() for v in vs] for k, vs in groups.items()}
    model.train_on_batch(*data)
    return {
        k
        for k, vs in groups.items()
        if any((v.numpy() != w).any() for v, w in zip(vs, before[k], strict=True))
    }


@pytest.mark.parametrize(
    ("arguments", "moved"),
    [
        ({}, {"target", "gate", "adapters"}),
        ({"alpha": 0.0}, {"target", "adapters"}),
        ({"kd": 0.0, "alpha": 0.0}, {"target", "adapters"}),
        ({"optimizer": keras.optimizers.SGD(0.0)}, {"target", "gate"}),
        ({"variant": "code"}, {"target", "gate", "adapters"}),
    ],
)
def test_what_a_step_moves(data, arguments, moved):
    model = make_model(**arguments)
    expected = moved | {"statistics of the adapters"}
    assert groups_that_move(model, data) == expected


def test_the_models_optimizer_leaves_adapters_alone(data):
    model = make_model(keras.optimizers.SGD(0.0))
    moved = groups_that_move(model, data)
    assert moved == {"adapters", "statistics of the adapters"}
    trained = {id(v) for v in model.trainable_variables}
    assert not trained & {
        id(v) for v in model.regularizer.find_adapting().source_variables
    }
    assert trained >= {id(v) for v in model.regularizer.fusion.trainable_variables}


def test_without_its_terms_the_target_trains_as_plain(data):
    model = make_model(alpha=0.0, kd=0.0)
    model.train_on_batch(*data)
    plain = make_model()
    plain.set_regularizer("none")
    plain.train_on_batch(*data)
    pairs = zip(model.target.weights, plain.target.weights, strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-7)


def build_in(model):
    """The source with the adapters as layers of one functional model."""
    source, adapters, x = model.source, model.regularizer.adapters, None
    phases = []
    for layer in source.layers:
        x = layer.output if x is None else layer(x)
        if layer.name in adapters:
            x, phase = adapters[layer.name](x, training=True)
            phases.append(phase)
    return keras.Model(source.input, [x, *phases])


def test_gradients_of_both_objectives(data):
    """A step of SGD at rate 1 is minus the gradient, each with the other held."""
    x, y = data
    once = keras.optimizers.SGD(1.0)
    model = make_model(once, optimizer=keras.optimizers.SGD(1.0))
    regularizer = model.regularizer
    built_in, target = build_in(model), model.target
    ends = [target.get_layer(tap).output for tap in TAPS]
    tapped = keras.Model(target.input, [target.output, *ends])
    ce = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def kl(p, q):
        p, q = (tf.nn.log_softmax(v / T) for v in (p, q))
        return T**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), -1))

    own = regularizer.source_variables
    joint = [*target.trainable_variables, *regularizer.fusion.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        source, *phases = built_in(x)
        output, *maps = tapped(x)
        for_adapters = ce(y, source) + kl(tf.stop_gradient(output), source)
        theirs = kd.layers.concatenate_phases(map(tf.stop_gradient, phases))
        ours = kd.layers.concatenate_phases(
            kd.layers.fourier.compute_phase(m) for m in maps
        )
        omega = regularizer.fusion(theirs, ours)
        for_target = ce(y, output) + kl(tf.stop_gradient(source), output) + 0.1 * omega
    gradients = tape.gradient(for_adapters, own) + tape.gradient(for_target, joint)
    before = [v.numpy() for v in (*own, *joint)]
    model.train_on_batch(x, y)
    for v, old, gradient in zip((*own, *joint), before, gradients, strict=True):
        np.testing.assert_allclose(
            old - v.numpy(), gradient, atol=2e-4, rtol=1e-3, err_msg=v.path
        )


def test_the_codes_statistics_drift_in_copies(data):
    article, code = make_model(), make_model(variant="code")
    source = [v.numpy() for v in code.source.variables]
    copies = list(code.regularizer._norms.values())
    assert copies and not any(copy.trainable_variables for copy in copies)
    means = [copy.moving_mean.numpy() for copy in copies]
    logs = [m.train_on_batch(*data, return_dict=True) for m in (article, code)]
    assert abs(logs[0]["source_loss"] - logs[1]["source_loss"]) > 1e-3
    for v, old in zip(code.source.variables, source, strict=True):
        np.testing.assert_array_equal(v, old)
    for copy, old in zip(copies, means, strict=True):
        assert (copy.moving_mean.numpy() != old).any()


@pytest.mark.slow
def test_the_rate_falls_to_zero_in_a_fit(data, tmp_path, capsys):
    model = make_model()
    model.train_on_batch(*data)
    optimizer = model.regularizer.source_optimizer
    assert float(optimizer.learning_rate) == pytest.approx(1e-3)
    model.fit(*data, 2, epochs=2, verbose=0)
    assert "adapters" not in capsys.readouterr().out
    assert float(optimizer.learning_rate) == pytest.approx(0.0, abs=1e-9)
    model.fit(*data, 2, epochs=4, initial_epoch=2, verbose=2)
    rates = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda *_, **__: rates.append(
            float(optimizer.learning_rate)
        )
    )
    model.fit(*data, 2, epochs=2, verbose=0, callbacks=[watch])
    expected = 1e-3 * (1 + np.cos(np.pi * np.arange(6) / 6)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
    # A file from the middle of a schedule goes on with it.
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_, **__: setattr(model, "stop_training", True)
    )
    model.fit(*data, 2, epochs=3, verbose=0, callbacks=[stop])
    rate = float(optimizer.learning_rate)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.fit(*data, 2, initial_epoch=1, epochs=3, verbose=0, steps_per_epoch=1)
    loaded = again.regularizer.source_optimizer
    assert 0 < float(loaded.learning_rate) < rate


def test_it_says_how_large_the_adapters_are(data, capsys):
    model = make_model()
    model.fit(*data, 2, verbose=2)
    adapters = sum(a.count_params() for a in model.regularizer.source_layers)
    share = adapters / model.source.count_params()
    expected = f"4Ds trains 3 adapters inside the source, with {share:.1%} of its"
    assert capsys.readouterr().out.count(expected) == 1


def test_another_optimizer_is_kept(data, tmp_path):
    model = make_model(optimizer=keras.optimizers.SGD(0.5, momentum=0.9))
    model.fit(*data, 2, verbose=0)
    optimizer = model.regularizer.source_optimizer
    assert float(optimizer.learning_rate) == 0.5
    model.save_weights(tmp_path / "one.weights.h5")
    model.save(tmp_path / "model.keras")
    again = make_model(optimizer=keras.optimizers.SGD(0.5, momentum=0.9))
    again.load_weights(tmp_path / "one.weights.h5")
    for other in (again, keras.models.load_model(tmp_path / "model.keras")):
        found = other.regularizer.source_optimizer
        assert found.momentum == 0.9 and int(found.iterations) == 3
        for v, w in zip(optimizer.variables, found.variables, strict=True):
            np.testing.assert_array_equal(v, w)


def test_gradients_that_are_accumulated(data):
    """Of two steps each, as Keras does it with a model's own optimizer."""
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    model = make_model(optimizer=optimizer)
    adapter = model.regularizer.source_layers[0]
    before, moved = adapter.reduce.kernel.numpy(), []
    for _ in range(2):
        model.fit(*data, verbose=0)
        moved.append((adapter.reduce.kernel.numpy() != before).any())
    assert moved == [False, True]


def test_odd_sizes_and_constant_images():
    source = kd.attach_head(make_deeper((23, 17), WIDTHS, seed=3), CLASSES)
    target = kd.attach_head(make_backbone(True, (23, 17), WIDTHS, seed=1), CLASSES)
    model = make_model(target=target, source=source)
    x = np.zeros((1, 23, 17, 3), "float32")
    logs = model.train_on_batch(x, np.zeros(1), return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    assert np.isfinite(np.concatenate([v.numpy().ravel() for v in model.weights])).all()


# --- what cannot work ---


def test_taps_that_do_not_fit():
    source = kd.attach_head(make_deeper(widths=(16, 16, 12)), CLASSES)
    target = kd.attach_head(make_backbone(True, widths=WIDTHS), CLASSES)
    with pytest.raises(ValueError, match=r"have \[16, 16, 12\] .*\[16, 16, 17\]"):
        kd.DeltaModel(target, source, regularizer="four_ds")
    lists = {"taps": ["relu1", "relu2"], "source_taps": ["relu2", "relu1"]}
    with pytest.raises(ValueError, match="corresponding taps"):
        kd.DeltaModel(target, source, regularizer="four_ds", **lists)
    lists = {"taps": ["relu0", "relu1"], "source_taps": ["relu0", "relu1"]}
    model = kd.DeltaModel(target, source, regularizer="four_ds", **lists)
    assert list(model.regularizer.adapters) == ["relu0", "relu1"]


def test_networks_without_maps():
    source, target = (
        keras.Sequential([keras.Input((4,)), *map(keras.layers.Dense, (8, CLASSES))])
        for _ in range(2)
    )
    with pytest.raises(
        ValueError, match=r"source with feature maps of images.*one without"
    ):
        kd.DeltaModel(target, source, regularizer="four_ds")


def test_beside_others(data):
    model = make_model()
    with pytest.raises(ValueError, match="FourDs changes the source during training"):
        model.set_regularizer([FourDs(), kd.regularizers.KD(beta=0)])
    assert isinstance(model.regularizer, FourDs)
    model.set_regularizer([FourDs(), kd.regularizers.L2(0.01, 0)])
    logs = model.train_on_batch(*data, return_dict=True)
    assert logs["source_loss"] > 0
    trained = {id(v) for v in model.trainable_variables}
    assert not trained & {
        id(v) for v in model.regularizer.find_adapting().source_variables
    }


def test_beside_what_looks_at_the_target_alone(data):
    model = make_model()
    model.set_regularizer([[FourDs(), "l2"], kd.regularizers.BSS()])
    assert isinstance(model.regularizer.find_adapting(), FourDs)
    assert model.train_on_batch(*data, return_dict=True)["source_loss"] > 0


def test_the_rate_of_a_training_of_unknown_length(data):
    model = make_model()
    optimizer = model.regularizer.source_optimizer
    model.regularizer.begin_training(10, verbose=False)
    optimizer.iterations.assign(10)
    assert float(optimizer.learning_rate) == pytest.approx(0, abs=1e-9)
    model.regularizer.begin_training(None, verbose=False)
    assert float(optimizer.learning_rate) == pytest.approx(1e-3)


def test_it_comes_and_goes(data):
    model = make_model("adam")
    plain = len(model.target.trainable_variables)
    for regularizer, most in (("l2", 0), ("four_ds", 2), ("none", 0), ("kd", 0)):
        model.fit(*data, 3, regularizer=regularizer, verbose=0)
        assert len(model.trainable_variables) == plain + most
    assert int(model.optimizer.iterations) == 8


def test_what_changes_is_not_cached(data):
    with pytest.raises(ValueError, match="FourDs trains layers inside the"):
        make_model().fit(*data, verbose=0, source_maps="cache")


def test_arguments():
    with pytest.raises(ValueError, match="`variant`"):
        FourDs(variant="paper")
    with pytest.raises(ValueError, match="`temperature`"):
        FourDs(temperature=0)
    with pytest.raises(ValueError, match="Could not interpret optimizer"):
        FourDs(optimizer="no such")
