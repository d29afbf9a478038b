"""Keras's guide, fastai and the recipe: against slow twins, and through `Trainer`."""

import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import toys
from experiments import baselines, methods
from experiments.cell import Cell, from_settings
from experiments.clock import Clock
from experiments.train import Trainer
from toys import PROTOCOL, lasting

import keras_delta as kd

RATE, SQUARE, DECAY, EPSILON = 0.01, 0.99, 0.01, 1e-5


@pytest.fixture(scope="module", autouse=True)
def put_in():
    # No tracing, which takes longer than all trainings.
    tf.config.run_functions_eagerly(True)
    with pytest.MonkeyPatch.context() as patch:
        toys.put_in(patch.setattr, patch.setitem)
        yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def phases(monkeypatch):
    """A list to which each phase adds the model's weights before and after it."""
    found, fit = [], baselines._fit

    def watched(model, optimizer, batches, epochs, verbose):
        before = weights(model)
        result = fit(model, optimizer, batches, epochs, verbose)
        found.append((before, weights(model), optimizer, epochs, model))
        return result

    monkeypatch.setattr(baselines, "_fit", watched)
    return found


def weights(model):
    return {v.path: v.numpy() for v in model.variables if "seed" not in v.path}


def moved(before, after):
    """Names of the variables that a phase has changed, `layer/variable`."""
    changed = {p for p, v in before.items() if not np.array_equal(v, after[p])}
    return {"/".join(p.split("/")[-2:]) for p in changed}


def train(**options):
    images = toys.load("toy")["train"]
    options = {"batch_size": 8, "seed": 1, **options}
    return images.batches(16, training=True, **options)


def cycle(step, start, middle, end, share, steps):
    """fastai's `combined_cos`, a step at a time."""
    done = step / steps
    if done < share:
        return start + (1 - math.cos(math.pi * done / share)) / 2 * (middle - start)
    done = (done - share) / (1 - share)
    return middle + (1 - math.cos(math.pi * done)) / 2 * (end - middle)


@pytest.mark.parametrize("share, steps", [(0.3, 10), (0.99, 4), (0.5, 8)])
def test_one_cycle(share, steps):
    for values in ((4e-5, 1e-3, 1e-8), (0.95, 0.85, 0.95)):
        ours = baselines.OneCycle(*values, share, steps)
        for step in range(steps):
            expected = cycle(step, *values, share, steps)
            assert float(ours(step)) == pytest.approx(expected, rel=1e-4, abs=1e-8)
        assert float(ours(0)) == pytest.approx(values[0], rel=1e-5)
        assert float(ours(steps)) == pytest.approx(values[2], abs=1e-7)
    middle = baselines.OneCycle(1.0, 2.0, 0.0, 0.5, 8)
    assert [float(middle(s)) for s in (2, 4, 6)] == pytest.approx([1.5, 2.0, 1.0])


def test_rates_of_fine_tune():
    frozen = baselines.one_cycle(4, 2e-3, share=0.99, div=25, body_rate=0.1)
    assert float(frozen.learning_rate) == pytest.approx(8e-5, rel=1e-5)
    free = baselines.one_cycle(60, 1e-3, share=0.3, div=5, body_rate=0.01)
    assert float(free.learning_rate) == pytest.approx(2e-4, rel=1e-5)
    free.iterations.assign(18)
    assert float(free.learning_rate) == pytest.approx(1e-3)
    assert float(free.momentum(18)) == pytest.approx(0.85)
    free.iterations.assign(60)
    assert float(free.learning_rate) == pytest.approx(1e-8, rel=1e-2)


def two_layers():
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, name="low")(inputs)
    x = keras.layers.BatchNormalization(name="low_bn")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head_dense")(x))


def stepped(w, gradients, factor, decay):
    """fastai's Adam of one variable, in the order of its callbacks."""
    mean, square, steps = 0.0, 0.0, len(gradients)
    for step, g in enumerate(gradients):
        rate = factor * cycle(step, RATE / 5, RATE, RATE / 1e5, 0.3, steps)
        momentum = cycle(step, 0.95, 0.85, 0.95, 0.3, steps)
        w = w * (1 - rate * decay)
        mean = momentum * mean + (1 - momentum) * g
        square = SQUARE * square + (1 - SQUARE) * g**2
        debiased = np.sqrt(square / (1 - SQUARE ** (step + 1))) + EPSILON
        w = w - rate / (1 - momentum ** (step + 1)) * mean / debiased
    return w


def test_adam_of_fastai():
    model, rng = two_layers(), np.random.default_rng(0)
    variables = model.trainable_variables
    for v in variables:
        v.assign(rng.normal(size=v.shape))
    # Small ones as well, of which the epsilon is not small.
    gradients = [[rng.normal(size=v.shape) * 1e-4 for v in variables] for _ in "12345"]
    before = [v.numpy().astype("float64") for v in variables]
    optimizer = baselines.one_cycle(5, RATE, share=0.3, div=5, body_rate=0.01)
    optimizer.decay = 2.0  # so that it shows beside the step
    for each in gradients:
        each = [keras.ops.convert_to_tensor(g, "float32") for g in each]
        optimizer.apply(each, variables)
    assert [v.path for v in variables] == [
        *("low/kernel", "low/bias", "low_bn/gamma", "low_bn/beta"),
        *("head_dense/kernel", "head_dense/bias"),
    ]
    decays = (2.0, 0, 0, 0, 2.0, 0)
    factors = (0.01, 0.01, 0.01, 0.01, 1, 1)
    for i, v in enumerate(variables):
        own = [g[i] for g in gradients]
        expected = stepped(before[i], own, factors[i], decays[i])
        moved, wanted = v.numpy() - before[i], expected - before[i]
        np.testing.assert_allclose(moved, wanted, rtol=1e-2, atol=3e-7)


def test_keras_guide(phases):
    found = baselines.keras_guide(toys.build(), 3, train, head_epochs=2, epochs=1)
    (before, middle, adam, first, _), (_, after, slow, second, model) = phases
    head, kinds = ("kernel", "bias"), ("moving_mean", "moving_variance")
    # The head alone; then all of it but the statistics.
    assert moved(before, middle) == {f"{model.layers[-1].name}/{v}" for v in head}
    changed = moved(middle, after)
    assert not [name for name in changed if name.endswith(kinds)]
    assert {f"conv{i}/kernel" for i in range(3)} <= changed
    assert {f"bn{i}/{v}" for i in range(3) for v in ("gamma", "beta")} <= changed
    assert [float(o.learning_rate) for o in (adam, slow)] == pytest.approx([1e-3, 1e-5])
    assert type(adam) is type(slow) is keras.optimizers.Adam
    assert (first, second, found.epochs) == (2, 1, 3)
    assert int(slow.iterations) == 3  # fresh: one epoch of three batches
    assert found.model is model and found.seconds > 0
    assert model.output_shape == (None, 3)
    rates = [x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)]
    assert rates == [0.2]


def test_fastai(phases):
    source = toys.build()
    found = baselines.fastai(source, 3, train, epochs=2)
    (before, middle, _, first, _), (_, after, adam, second, model) = phases
    changed = moved(before, middle)
    norms = {"gamma", "beta", "moving_mean", "moving_variance"}
    head = {f"head_bn{i}/{v}" for i in range(2) for v in norms}
    head |= {f"head_dense{i}/kernel" for i in range(2)}
    assert changed == head | {f"bn{i}/{v}" for i in range(3) for v in norms}
    kernels = {f"conv{i}/{v}" for i in range(3) for v in ("kernel", "bias")}
    # A bias before BatchNorm has no gradient.
    assert moved(middle, after) >= head | {n for n in kernels if "kernel" in n}
    assert (first, second, found.epochs) == (1, 2, 3)
    assert int(adam.iterations) == 6
    assert all(layer.trainable for layer in model.layers)
    assert model.get_layer("bn0").momentum == 0.9
    assert source.get_layer("bn0").momentum == 0.99  # a copy was trained


def test_head_of_fastai():
    inputs = keras.Input((4, 4, 300))
    model = baselines.with_fastai_head(keras.Model(inputs, inputs), 7)
    kinds = [type(x).__name__ for x in model.layers[-7:]]
    each = ["BatchNormalization", "Dropout", "Dense"]
    assert kinds == [*each, "ReLU", *each]
    assert [model.get_layer(f"head_dropout{i}").rate for i in (0, 1)] == [0.25, 0.5]
    first, last = (model.get_layer(f"head_dense{i}") for i in (0, 1))
    assert first.kernel.shape == (600, 512) and last.kernel.shape == (512, 7)
    assert not first.use_bias and not last.use_bias
    drawn = first.kernel.numpy()
    assert drawn.std() == pytest.approx((2 / 600) ** 0.5, rel=0.02)
    assert np.abs(drawn).max() > 3.5 * drawn.std()  # not truncated
    norm = model.get_layer("head_bn0")
    assert norm.epsilon == 1e-5 and norm.beta.numpy() == pytest.approx(1e-3)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 300)).astype("float32")
    pooled = keras.Model(model.input, norm.input)(x)
    expected = np.concatenate([x.max((1, 2)), x.mean((1, 2))], 1)
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)


def test_last_batch_that_is_not_full(phases):
    # 24 images: two of the three batches of ten.
    baselines.fastai(toys.build(), 3, lambda **o: train(batch_size=10, **o), epochs=1)
    assert [int(p[2].iterations) for p in phases] == [2, 2]
    # One that is not full is better than none.
    baselines.fastai(toys.build(), 3, lambda **o: train(batch_size=30, **o), epochs=1)
    assert int(phases[-1][2].iterations) == 1


SHORT = {"epochs": 2, "batch_norm": 0.0}


def test_recipe():
    found = baselines.recipe(toys.build(), 3, train, kd.Recipe(**SHORT), seed=3)
    assert found.epochs == 2 and found.seconds > 0 and found.prepare_seconds > 0
    assert 0 <= found.training_accuracy <= 1
    assert not isinstance(found.model, kd.DeltaModel)


def test_another_recipe_is_another_cell(monkeypatch):
    cell = Cell("toy", "recipe")
    keys = {cell.key, cell.replace(recipe=SHORT).key}
    assert cell.replace(recipe={"warm_up": kd.Recipe().warm_up}).key in keys
    loaded = from_settings(cell.replace(recipe=SHORT).settings())
    assert loaded == cell.replace(recipe=SHORT) and loaded != cell
    plain = Cell("toy", "l2")
    assert plain.replace(recipe=SHORT) == plain
    assert "recipe" not in plain.settings()


@pytest.fixture
def short(monkeypatch):
    """One epoch of three batches in each phase: the protocol of such a cell."""
    epochs = {"head_epochs": 1, "epochs": 1, "verbose": 0}
    monkeypatch.setattr(baselines.keras_guide, "__kwdefaults__", epochs)
    return PROTOCOL.replace(iterations=3, min_epochs=1)


@pytest.mark.parametrize("method", methods.TRAINERS)
def test_through_the_trainer(method, tmp_path, short):
    options = {"protocol": short, "network": "toy", "seed": 1}
    cell = Cell("toy", method, recipe=SHORT, **options)
    trainer = Trainer(tmp_path)
    record = trainer.run(cell)
    assert (record["epochs"], record["images"]) == (2, 24)
    assert re.fullmatch("[01]{30}", record["correct"])
    assert record["accuracy"] == record["correct"].count("1") / 30
    assert record["seconds"] > 0 and 0 < record["loss"] < 5
    assert record["curve"] is record["corrupted"] is None
    assert not trainer.warm(cell)


@pytest.mark.slow
def test_a_teacher(tmp_path, short, monkeypatch):
    """It is trained once, by the recipe on its own images, and tested as it is."""
    teacher = {"network": "toy", "per_class": 5}
    options = {"protocol": short, "network": "toy", "teacher": teacher}
    itself = Cell("toy", "teacher", **options)
    student = Cell("toy", "recipe", recipe={**SHORT, "regularizer": "kd"}, **options)
    assert from_settings(student.settings()) == student
    assert student.replace(teacher=None).key != student.key
    monkeypatch.setattr(kd.Recipe, "epochs_for", lambda self, _: self.epochs or 1)
    runs, fine_tune = [], baselines.fine_tune

    def watched(source, data, *, teacher=None, **options):
        runs.append((sum(len(y) for _, y in data), teacher))
        return fine_tune(source, data, teacher=teacher, **options)

    monkeypatch.setattr(baselines, "fine_tune", watched)
    records = [Trainer(tmp_path).run(cell) for cell in (itself, student, itself)]
    assert [images for images, _ in runs] == [15, 24]
    alone = Trainer(tmp_path).run(student.of_teacher())
    assert lasting(records[0]) == lasting(records[2])
    assert records[0]["correct"] == alone["correct"] != records[1]["correct"]
    assert records[0]["epochs"] == 0 and records[1]["epochs"] == 2
    trained = keras.models.load_model(
        tmp_path / f"teacher_{student.of_teacher().key}.keras"
    )
    for a, b in zip(runs[1][1].weights, trained.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds(short):
    """They decide all of it, and what ran before nothing."""
    source, found = toys.build(), []
    for seed in (0, 1, 0):
        cell = Cell("toy", "keras_guide", protocol=short, network="toy", seed=seed)
        batches = train(batch_size=24, seed=seed)
        trained = baselines.run(cell, source, 3, lambda b=batches: b, 24)
        found.append(trained.model.layers[-1].kernel.numpy())
    assert np.abs(found[0] - found[1]).mean() > 0.05
    np.testing.assert_array_equal(found[0], found[2])


def test_divergence(tmp_path, monkeypatch, short):
    monkeypatch.setattr(
        keras.optimizers, "Adam", lambda rate=1.0: keras.optimizers.SGD(1e30)
    )
    cell = Cell("toy", "keras_guide", protocol=short, network="toy")
    assert "the loss is" in Trainer(tmp_path).run(cell)["failed"]


def test_clock(monkeypatch):
    now = iter([0.0, 5.0, 6.0, 8.0, 8.0, 8.0, 12.0, 12.0, 15.0, 15.0, 20.0])
    monkeypatch.setattr("experiments.clock.time.process_time", lambda: next(now))
    clock = Clock()
    clock.on_train_begin()
    assert clock.training() == 0
    clock.on_epoch_begin(0)
    for batch in range(3):
        clock.on_train_batch_end(batch)
    clock.on_epoch_end(0)
    # Steps of 5, 1 and 2: the first as if it had been 1.5.
    assert clock.training() == pytest.approx(4.5)
    for epoch in (1, 2, 3):
        clock.on_epoch_begin(epoch)
        clock.on_epoch_end(epoch)
    # Epochs of 8, 4, 3 and 5: the median of the last three, four times.
    assert clock.epochs == [8, 4, 3, 5] and clock.training() == 16
