"""`Trainer` and `Bench` on toys: the same as by hand, whatever ran before."""

import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import toys
from experiments import bench
from experiments.store import ResultStore
from experiments.train import Trainer, measured
from toys import DELTA, L2_SP, PROTOCOL, lasting

import keras_delta as kd
from keras_delta import data
from keras_delta._network import memory

# The package has a function of this name.
running = importlib.import_module("experiments.run")

HERE = Path(__file__).parent
FIELDS = {
    *("accuracy", "loss", "correct", "training_accuracy", "feature_penalty"),
    *("epochs", "images", "seconds", "prepare_seconds", "wall_seconds"),
    *("curve", "corrupted", "threads", "calibration_error"),
}


@pytest.fixture(scope="module", autouse=True)
def put_in():
    # No tracing, which takes longer than all trainings.
    tf.config.run_functions_eagerly(True)
    with pytest.MonkeyPatch.context() as patch:
        toys.put_in(patch.setattr, patch.setitem)
        yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """One for all tests: so they also show that cells do not depend on others."""
    return Trainer(tmp_path_factory.mktemp("once"))


@pytest.fixture(scope="module")
def first(trainer):
    """Records of the first trainings: L2-SP, then DELTA."""
    return trainer.run(L2_SP), trainer.run(DELTA)


def model_of(trainer):
    """The model that was trained last."""
    return next(reversed(trainer._bench._models._models.values()))[0]


def weights_of(trainer, cell):
    """The attention that a cell is to be trained with: dict tap -> weights."""
    images, _ = trainer._sets(cell, 16)

    def train():
        return images.batches(16, 8, training=True, seed=cell.seed)

    model, _ = trainer._bench.begin(cell, 3, 24, train, {})
    return model.regularizer.attention_weights()


def test_record(first):
    for record in first:
        assert record.keys() == FIELDS
        assert (record["epochs"], record["images"]) == (2, 24)
        assert re.fullmatch("[01]{30}", record["correct"])
        assert record["accuracy"] == record["correct"].count("1") / 30
        assert 0 < record["loss"] < 3 and 0 <= record["training_accuracy"] <= 1
        assert record["feature_penalty"] > 0 and record["seconds"] > 0
        assert record["curve"] is record["corrupted"] is None
    l2_sp, delta = first
    assert l2_sp["prepare_seconds"] == 0 < delta["prepare_seconds"]
    assert l2_sp["loss"] != delta["loss"]


def test_heads_that_are_fitted_first(trainer, first):
    images, _ = trainer._sets(L2_SP, 16)
    fitted = trainer.run(L2_SP.replace(head="fitted"))
    assert fitted.keys() == FIELDS and fitted["prepare_seconds"] > 0
    assert fitted["loss"] != first[0]["loss"]
    only = trainer.run(L2_SP.replace(head="only"))
    assert (only["epochs"], only["seconds"], only["training_accuracy"]) == (0, 0, None)
    model = model_of(trainer)
    found = model.target.get_layer("head").get_weights()
    train = images.batches(16, 8, training=True, seed=L2_SP.seed)
    kd.fit_head(model, train, verbose=0)
    for v, w in zip(found, model.target.get_layer("head").get_weights(), strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-3, atol=1e-4)


def test_does_not_depend_on_what_ran_before(trainer, first):
    trainer.run(DELTA.replace(seed=2, alpha=20.0, attention="uniform"))
    assert lasting(trainer.run(L2_SP)) == lasting(first[0])
    assert lasting(trainer.run(DELTA)) == lasting(first[1])
    # Of two models, there are two: cells share them.
    assert len(trainer._bench._models) == 2
    assert trainer.run(L2_SP.replace(seed=2))["loss"] != first[0]["loss"]
    assert trainer.run(L2_SP.replace(alpha=0.3))["loss"] != first[0]["loss"]


@pytest.mark.slow
def test_is_the_same_in_a_process_of_its_own(tmp_path):
    """To the last digit, whatever is trained first."""
    script = str(HERE / "scripts" / "toy_cells.py")
    (delta, l2_sp, again), (l2_sp_first, delta_later) = (
        json.loads(
            subprocess.run(
                [sys.executable, script, str(tmp_path / methods), methods],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
        )
        for methods in ("delta,l2_sp,delta", "l2_sp,delta")
    )
    assert delta == again == delta_later
    assert l2_sp == l2_sp_first


@pytest.mark.parametrize(
    "cell, regularizer",
    [
        (L2_SP, lambda: kd.regularizers.L2SP(alpha=0.1)),
        (
            DELTA.replace(attention="uniform"),
            lambda: kd.regularizers.Delta(alpha=2.0, attention="uniform"),
        ),
    ],
)
def test_equals_fit_by_hand(trainer, cell, regularizer):
    source = toys.build()
    keras.utils.set_random_seed(0)  # for dropout
    target = kd.attach_head(source, 3)
    kernel, bias = target.get_layer("head").weights
    kernel.assign(keras.initializers.GlorotUniform(seed=1000)(kernel.shape))
    assert not np.any(bias.numpy())
    model = kd.DeltaModel(target, source=source, regularizer=regularizer())
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    sets = toys.load("toy")
    train = sets["train"].batches(16, 8, training=True, seed=1)
    history = []
    for rate in (0.01, 0.001):
        model.optimizer.learning_rate = rate
        history.append(model.fit(train, shuffle=False, verbose=0).history)
    logits = model.predict(sets["test"].batches(16), verbose=0).astype("float64")
    found = trainer.run(cell)
    right, losses = "", []
    for row, label in zip(logits, sets["test"].labels, strict=True):
        right += "1" if max(row) == row[label] else "0"
        losses.append(math.log(sum(math.exp(v) for v in row)) - row[label])
    assert found["correct"] == right
    assert found["loss"] == pytest.approx(sum(losses) / 30, rel=1e-6)
    assert found["training_accuracy"] == history[1]["accuracy"][0]
    penalty = history[1]["feature_penalty"][0]
    assert found["feature_penalty"] == pytest.approx(penalty, rel=1e-6)
    ours = [v.numpy() for v in model_of(trainer).target.variables]
    for found, variable in zip(ours, model.target.variables, strict=True):
        np.testing.assert_allclose(found, variable.numpy(), rtol=1e-5, atol=1e-6)


def test_measured_of_large_logits():
    found = measured([[1000.0, 0.0], [0.0, 1000.0], [0.0, 0.0]], np.array([0, 0, 1]))
    # Cross-entropies 0, 1000 and log 2; of equal logits, the first wins.
    assert found == {
        "accuracy": 1 / 3,
        "loss": pytest.approx((1000 + math.log(2)) / 3),
        "calibration_error": 0.5,  # ((1 + 1) - 1) / 3 and 0.5 / 3
        "correct": "100",
    }


@pytest.fixture(scope="module")
def computed(trainer, first):
    return weights_of(trainer, DELTA)


def test_computed_attention_is_that_of_the_source(trainer, computed):
    source = toys.build()
    target = kd.attach_head(source, 3)
    kernel, _ = target.get_layer("head").weights
    kernel.assign(keras.initializers.GlorotUniform(seed=1000)(kernel.shape))
    model = kd.DeltaModel(target, source=source)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    # The first 12 of the training images as the first epoch shows them.
    train = toys.load("toy")["train"].batches(16, 8, training=True, seed=1)
    batches = zip(*train.take(2).as_numpy_iterator(), strict=True)
    x, y = (np.concatenate(parts)[:12] for parts in batches)
    found = kd.ChannelAttention.compute(
        model, (x, y), train_head="auto", progress=False
    ).weights
    assert computed.keys() == found.keys()
    for tap, weights in found.items():
        np.testing.assert_allclose(computed[tap], weights, rtol=1e-4)
        assert weights.std() > 0


def test_uniform_attention(trainer, computed):
    found = weights_of(trainer, DELTA.replace(attention="uniform"))
    assert found.keys() == computed.keys()
    for tap, weights in computed.items():
        np.testing.assert_allclose(found[tap], np.full(len(weights), 1 / len(weights)))


def test_permuted_attention(trainer, computed):
    cell = DELTA.replace(attention="permuted")
    found = weights_of(trainer, cell)
    other = weights_of(trainer, cell.replace(seed=2))
    differ = 0
    for tap, weights in computed.items():
        np.testing.assert_allclose(sorted(found[tap]), sorted(weights), rtol=1e-6)
        differ += not np.allclose(found[tap], weights)
    assert differ, "no tap was permuted"
    assert any(not np.allclose(found[tap], other[tap]) for tap in found)


def test_top_half_of_the_attention(trainer, computed):
    found = weights_of(trainer, DELTA.replace(attention="top_half"))
    for tap, weights in computed.items():
        half = len(weights) // 2
        order = np.argsort(weights)
        assert not found[tap][order[:half]].any()
        top = weights[order[half:]]
        np.testing.assert_allclose(found[tap][order[half:]], top / top.sum(), rtol=1e-5)
        assert found[tap].sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["per_class", "taylor"])
def test_other_attention(trainer, computed, kind):
    cell = DELTA.replace(attention=kind)
    record = lasting(trainer.run(cell))
    found = model_of(trainer).regularizer.attention_weights()
    for tap in computed:
        assert found[tap].sum() == pytest.approx(1, abs=1e-6)
        assert (found[tap] > 0).all()
    assert any(not np.allclose(found[tap], computed[tap]) for tap in found)
    # Now from its file: computing it left nothing behind.
    assert lasting(trainer.run(cell)) == record


@pytest.mark.filterwarnings("ignore:The head is no better than chance")
def test_moving_attention(trainer, computed):
    cell = DELTA.replace(attention="moving")
    trainer.run(cell)
    found = model_of(trainer).regularizer.attention_weights()
    assert any(not np.allclose(found[tap], computed[tap]) for tap in found)
    # It does not stay.
    for tap, weights in weights_of(trainer, DELTA).items():
        np.testing.assert_array_equal(weights, computed[tap])


@pytest.mark.filterwarnings("ignore:The head is no better than chance")
def test_temperature_and_samples(trainer, computed):
    even = weights_of(trainer, DELTA.replace(temperature=1e6))
    for weights in even.values():
        np.testing.assert_allclose(
            weights, np.full(len(weights), 1 / len(weights)), 1e-4
        )
    few = weights_of(trainer, DELTA.replace(attention_samples=3))
    assert any(not np.allclose(few[tap], computed[tap]) for tap in few)


def test_attention_is_computed_once(trainer, computed):
    files = sorted(p.name for p in trainer._bench._once.glob("attention_exact_*.json"))
    weights_of(trainer, DELTA.replace(attention="permuted", temperature=2.0))
    assert files == sorted(
        p.name for p in trainer._bench._once.glob("attention_exact_*.json")
    )


def test_divergence(trainer, first):
    record = trainer.run(L2_SP.replace(alpha=1e30))
    assert record.keys() == {"failed", "wall_seconds", "threads"}
    reason, *causes = record["failed"].splitlines()
    assert re.fullmatch(
        r"Batch [1-3]: the loss is (nan|inf) \(task_loss \S+, feature_penalty "
        r"(nan|inf), head_penalty \S+\)\.",
        reason,
    )
    assert causes[:2] == [
        "Training stops. Likely causes:",
        "- alpha of L2SP is 1e+30.",
    ]
    assert lasting(trainer.run(L2_SP)) == lasting(first[0])


@pytest.mark.parametrize(
    "error, reason",
    [(MemoryError("no room\nat all"), "no room"), (MemoryError(), "MemoryError")],
)
def test_memory_that_runs_out(trainer, monkeypatch, error, reason):
    def fail(*arguments):
        raise error

    dropped = []
    monkeypatch.setattr(trainer._bench, "begin", fail)
    monkeypatch.setattr(trainer._bench, "drop", lambda: dropped.append(1))
    assert trainer.run(L2_SP)["failed"] == f"out of memory: {reason}"
    assert dropped == [1]


def test_curve_and_corruptions(trainer, first):
    kinds = ("blur 5", "noise 5")
    found = trainer.run(L2_SP.replace(curve=True, corruptions=kinds))
    given = {"curve", "corrupted"}
    for name in lasting(found).keys() - given:
        assert found[name] == first[0][name]
    assert [epoch for epoch, _ in found["curve"]] == [1, 2]
    assert found["curve"][1][1] == found["accuracy"]
    images, labels = toys.load("toy")["test"].arrays(16)
    for kind in kinds:
        name, severity = kind.split()
        spoilt = data.corrupt(np.rint(images).astype("uint8"), name, int(severity))
        logits = model_of(trainer).predict(spoilt.astype("float32"), verbose=0)
        right = (logits.argmax(1) == labels).astype(int)
        assert found["corrupted"][kind] == "".join(map(str, right))


def test_curve_has_the_accuracy_after_the_first_epoch(trainer):
    found = trainer.run(L2_SP.replace(curve=True))
    # One epoch at the first rate.
    short = PROTOCOL.replace(iterations=3, min_epochs=1)
    alone = trainer.run(L2_SP.replace(protocol=short))
    assert found["curve"][0] == [1, alone["accuracy"]]


def test_ten_crops(trainer):
    protocol = PROTOCOL.replace(augmentation="improved", ten_crop="probabilities")
    found = trainer.run(L2_SP.replace(protocol=protocol))
    crops, labels = toys.load("toy")["test"].arrays(
        16, protocol="improved", ten_crop=True
    )
    logits = model_of(trainer).predict(crops.reshape(-1, 16, 16, 3), verbose=0)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    means = shares.reshape(30, 10, 3).mean(1)
    right = "".join(
        "01"[int(m.argmax() == y)] for m, y in zip(means, labels, strict=True)
    )
    assert found["correct"] == right


def contents(images):
    """What is on the images: a list of (pixels as for a test, label)."""
    pixels, labels = images.arrays(16)
    return sorted((p.tobytes(), int(y)) for p, y in zip(pixels, labels, strict=True))


def test_images_of_each_class(trainer):
    sets = toys.load("toy")
    train, test = trainer._sets(L2_SP.replace(per_class=2, seed=3), 16)
    assert train.counts == {"a": 2, "b": 2, "c": 2}
    ours = sets["train"].few_shot(2, seed=3)
    np.testing.assert_array_equal(train.labels, ours.labels)
    for a, b in zip(
        train.batches(16, training=True), ours.batches(16, training=True), strict=True
    ):
        np.testing.assert_array_equal(a[0], b[0])
    assert contents(test) == contents(sets["test"])
    record = trainer.run(L2_SP.replace(per_class=4, fold=(0, 2)))
    # 6 * 8 / 6 images.
    assert (record["images"], record["epochs"]) == (6, 8)
    assert len(record["correct"]) == 6


def test_folds_are_of_the_training_images(trainer):
    sets = toys.load("toy")
    parts, whole = [], contents(sets["train"].few_shot(6, seed=1))
    for k in range(3):
        cell = L2_SP.replace(per_class=6, fold=(k, 3))
        train, test = trainer._sets(cell, 16)
        assert set(train.counts.values()) == {4} and set(test.counts.values()) == {2}
        ours, theirs = sets["train"].few_shot(6, seed=1).folds(3)[k]
        assert contents(test) == contents(theirs)
        np.testing.assert_array_equal(train.labels, ours.labels)
        if k:
            parts += contents(test)
            continue
        batches = (s.batches(16, training=True, seed=4) for s in (train, ours))
        for (a, _), (b, _) in zip(*batches, strict=True):
            np.testing.assert_array_equal(a, b)
        parts += contents(test)
    assert sorted(parts) == whole


def test_wrong_labels_are_of_training_images_alone(trainer):
    sets = toys.load("toy")
    for changes in ({}, {"per_class": 4}, {"fold": (0, 2)}):
        clean, noisy = (
            L2_SP.replace(**changes),
            L2_SP.replace(label_noise=0.5, **changes),
        )
        (right, test), (wrong, again) = (trainer._sets(c, 16) for c in (clean, noisy))
        expected = right.with_wrong_labels(0.5, seed=1).labels
        np.testing.assert_array_equal(wrong.labels, expected)
        # Half of each class.
        assert (wrong.labels != right.labels).sum() == len(right) / 2
        np.testing.assert_array_equal(test.labels, again.labels)
    assert len(sets["test"]) == 30


def test_images_that_do_not_fit_into_memory(trainer, first, monkeypatch):
    monkeypatch.setattr(trainer, "_pools", {})
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert lasting(trainer.run(L2_SP)) == lasting(first[0])
    pool, as_test, _ = trainer._pools["toy", 16, "default"]
    assert pool is as_test  # images as they are


def test_memory_that_cannot_be_told(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "_pools", {})
    monkeypatch.setattr(memory, "available", lambda: None)
    pool, as_test, _ = trainer._pool(L2_SP, 16)
    assert pool is not as_test  # resized


def test_data_without_test_images(trainer, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_: {"train": toys.image_set(2, 0)})
    sentence = (
        "Invalid value for argument `dataset`. Expected one with train and test "
        "images. Received: dataset='other'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        trainer.run(L2_SP.replace(dataset="other"))


def test_strength_over_time(trainer):
    cell = DELTA.replace(alpha=4.0)
    assert trainer._bench._regularizer(cell, 24).alpha == 4.0
    assert trainer._bench._regularizer(cell.replace(alpha=None), 24).alpha == 5.0
    # Two epochs of three steps.
    falling = trainer._bench._regularizer(cell.replace(strength="decaying"), 24)
    found = [float(falling.strength("alpha", step)) for step in range(7)]
    assert found == pytest.approx([4, 10 / 3, 8 / 3, 2, 4 / 3, 2 / 3, 0], abs=1e-6)
    # 6 * 8 / 25 = 1.92: two epochs of four steps, of which the last has one image.
    falling = trainer._bench._regularizer(cell.replace(strength="decaying"), 25)
    assert [float(falling.strength("alpha", step)) for step in (4, 8)] == [2, 0]
    own = cell.replace(strength="every_second", alpha=None)
    second = trainer._bench._regularizer(own, 24)
    found = [float(second.strength("alpha", step)) for step in range(4)]
    assert found == [5, 0, 5, 0]
    assert second.beta == 0.01


def test_every_second_is_saved_and_loaded():
    schedules = keras.optimizers.schedules
    again = schedules.deserialize(schedules.serialize(bench.EverySecond(3.0)))
    assert [float(again(step)) for step in (0, 1, 2)] == [3, 0, 3]


def test_protocol_and_batch_norm_of_a_model(trainer):
    protocol = PROTOCOL.replace(
        backbone_rate=0.1, nesterov=True, batch_norm_momentum=0.5
    )
    cell = L2_SP.replace(protocol=protocol, batch_norm="frozen")
    model, seconds = trainer._bench.begin(cell, 3, 24, None, {})
    assert seconds == 0 and isinstance(model.optimizer, kd.optimizers.LayerwiseSGD)
    assert model.optimizer.multipliers == {"head": 1.0, "default": 0.1}
    assert model.optimizer.nesterov and model.optimizer.momentum == 0.9
    assert model.target.get_layer("bn1").momentum == 0.5
    assert model.source.get_layer("bn1").momentum == 0.99
    kinds = {v.path.split("/")[-2] for v in model.trainable_variables}
    assert kinds == {"conv0", "conv1", "conv2", "head"}


def test_head_is_drawn_with_the_seed(trainer):
    kernels = []
    for seed in (0, 1, 0):
        model, _ = trainer._bench.begin(L2_SP.replace(seed=seed), 3, 24, None, {})
        kernel, bias = model.target.get_layer("head").weights
        kernels.append(kernel.numpy())
        assert not bias.numpy().any()
    np.testing.assert_array_equal(kernels[0], kernels[2])
    assert not np.allclose(kernels[0], kernels[1])
    # Glorot's: uniform, at most the root of 6 / (8 + 3).
    assert np.abs(kernels[0]).max() <= math.sqrt(6 / 11)


def test_warm(trainer, first, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "KEPT", 2)
    ours = Trainer(tmp_path)
    model, _ = trainer._bench.begin(L2_SP, 3, 24, None, {})
    # Which models are kept does not depend on what they are.
    monkeypatch.setattr(ours._bench, "_build", lambda *arguments: model)
    assert not ours.warm(L2_SP)
    ours._bench.begin(L2_SP, 3, 24, None, {})
    assert ours.warm(L2_SP.replace(seed=5, alpha=1.0, per_class=3))
    assert not ours.warm(L2_SP.replace(taps=("conv1",)))
    frozen, l2 = L2_SP.replace(batch_norm="frozen"), L2_SP.replace(method="l2")
    for cell in (frozen, L2_SP, l2):
        assert ours.warm(cell) == (cell is L2_SP)
        ours._bench.begin(cell, 3, 24, None, {})
    # Two models are kept, those used last.
    assert [ours.warm(c) for c in (frozen, L2_SP, l2)] == [False, True, True]
    ours._bench.drop()
    assert [ours.warm(c) for c in (frozen, L2_SP, l2)] == [False] * 3


def test_rerun_gives_the_same_and_keeps_the_store(
    trainer, first, tmp_path, monkeypatch
):
    monkeypatch.setattr(running, "Trainer", lambda once, data_dir: trainer)
    store = ResultStore(tmp_path)
    store.put(L2_SP, {**first[0], "accuracy": 0.123})
    old, new = running.rerun(L2_SP, store)
    assert old["accuracy"] == 0.123
    assert lasting(new) == lasting(first[0])
    assert store.get(L2_SP)["accuracy"] == 0.123
