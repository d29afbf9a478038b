"""A step on two replicas moves the weights as one step on one replica does."""

import keras
import model_reference as reference
import numpy as np
import pytest

import keras_delta as kd
from keras_delta.regularizers import L2SP, Delta, FeatureMap

# 7: an uneven first batch; 8: an even one; 3: uneven; 1: one replica gets nothing.
BATCHES = (7, 8, 3, 1)


def both(strategy, new_backbone, build, train):
    """Run the same training without and with a strategy.

    Returns:
        ((model, what `train` returned) on one replica, the same on two).
    """
    found = []
    for scope in (None, strategy):
        keras.utils.set_random_seed(0)
        if scope is None:
            model = build(*reference.pair(new_backbone))
        else:
            with scope.scope():
                model = build(*reference.pair(new_backbone))
        found.append((model, train(model)))
    return found


def assert_same_logs(one, two, rtol=1e-5):
    assert one.history.keys() == two.history.keys()
    for name, values in one.history.items():
        np.testing.assert_allclose(
            values, two.history[name], rtol=rtol, atol=1e-6, err_msg=name
        )


def test_every_registered_regularizer_is_a_case():
    names = {name.split("-")[0] for name in reference.CASES}
    two_networks = {"kd", "afd", "four_ds"}  # tests/regularizers/test_two_networks.py
    peers = {"l2_sp_fisher", "bss", "bi_tuning", "lwf", "co_tuning", "dtnh"}
    peers |= {
        "fitnets",
        "at",
        "attention_transfer",
        "fsp",
    }  # tests/regularizers/test_peers.py
    assert set(kd.regularizers.ALL) <= names | two_networks | peers


# Traced: one for each way in which a term is shared among replicas.
GRAPHS = ("l2_fe", "l2_sp", "feature_map-code", "delta-article")


@pytest.mark.parametrize(
    "name, eager",
    [(name, True) for name in reference.CASES] + [(name, False) for name in GRAPHS],
)
def test_two_replicas_equal_one(name, eager, strategy, new_backbone):
    x, y = reference.data(sum(BATCHES))

    def build(target, source):
        return reference.compiled(
            target,
            source,
            reference.CASES[name].make(),
            metrics=["accuracy"],
            run_eagerly=eager,
        )

    def train(model):
        return model.fit(reference.batches(BATCHES, x, y), verbose=0)

    (one, logs1), (two, logs2) = both(strategy, new_backbone, build, train)
    moved = (
        one.target.layers[-1].kernel - reference.pair(new_backbone)[0].layers[-1].kernel
    )
    assert np.abs(moved).max() > 1e-3
    reference.assert_same_weights(one.target, two.target)
    assert_same_logs(logs1, logs2)
    assert np.isfinite(list(logs1.history.values())).all()


@pytest.mark.parametrize("sizes", [(8,), (7,), (3,)])
def test_one_step_with_sample_weights(sizes, strategy, new_backbone):
    x, y = reference.data(sum(sizes))
    weight = np.linspace(0.1, 3.0, len(y)).astype("float32")

    def build(target, source):
        return reference.compiled(target, source, Delta(0.3, 0.2, attention="uniform"))

    def train(model):
        return model.fit(reference.batches(sizes, x, y, weight), verbose=0)

    (one, logs1), (two, logs2) = both(strategy, new_backbone, build, train)
    reference.assert_same_weights(one.target, two.target)
    assert_same_logs(logs1, logs2)


def test_arrays_with_class_weight_and_an_uneven_rest(strategy, new_backbone):
    x, y = reference.data(11)

    def build(target, source):
        return reference.compiled(target, source, FeatureMap(0.3, 0.2))

    def train(model):
        return model.fit(
            x, y, 8, shuffle=False, verbose=0, class_weight={0: 1.0, 1: 3.0, 2: 0.2}
        )

    (one, logs1), (two, logs2) = both(strategy, new_backbone, build, train)
    reference.assert_same_weights(one.target, two.target)
    assert_same_logs(logs1, logs2)


@pytest.mark.parametrize("eager", [False, True])
def test_a_replica_without_samples(eager, strategy, new_backbone):
    """The last batch has one sample: weights and logs stay finite and right."""
    x, y = reference.data(5)

    def build(target, source):
        return reference.compiled(
            target, source, Delta(0.3, 0.2, attention="uniform"), run_eagerly=eager
        )

    def train(model):
        return model.fit(reference.batches((4, 1), x, y), verbose=0)

    (one, logs1), (two, logs2) = both(strategy, new_backbone, build, train)
    assert all(np.isfinite(w).all() for w in two.get_weights())
    reference.assert_same_weights(one.target, two.target)
    assert_same_logs(logs1, logs2)


def test_layer_losses_count_as_on_one_replica(strategy, new_backbone):
    """Those of variables and those of activities, on uneven batches too."""
    x, y = reference.data(12)

    def build(target, source):
        target.get_layer("conv1").kernel.regularizer = keras.regularizers.L2(0.1)
        target.get_layer("relu1").activity_regularizer = keras.regularizers.L2(0.1)
        return reference.compiled(target, source, L2SP(0.3, 0.2), run_eagerly=False)

    def train(model):
        return model.fit(reference.batches((8, 3, 1), x, y), verbose=0)

    (one, logs1), (two, logs2) = both(strategy, new_backbone, build, train)
    reference.assert_same_weights(one.target, two.target)
    assert_same_logs(logs1, logs2)


@pytest.mark.parametrize("sizes", [(8,), (8, 3)])
def test_a_loss_that_sums(sizes, strategy, new_backbone):
    x, y = reference.data(sum(sizes))

    def build(target, source):
        model = reference.compiled(target, source, L2SP(0.3, 0.2))
        model.compile(
            keras.optimizers.SGD(0.01),
            keras.losses.SparseCategoricalCrossentropy(True, reduction="sum"),
            run_eagerly=True,
        )
        return model

    def train(model):
        return model.fit(reference.batches(sizes, x, y), verbose=0)

    (one, logs1), (two, logs2) = both(strategy, new_backbone, build, train)
    reference.assert_same_weights(one.target, two.target)
    assert_same_logs(logs1, logs2)


def test_attention_is_computed_inside_of_a_strategy(strategy, new_backbone):
    x, y = reference.learnable_data(12)

    def build(target, source):
        return reference.compiled(target, source, Delta(0.3, 0.2))

    def train(model):
        return model.fit(x, y, 8, shuffle=False, verbose=0)

    (one, logs1), (two, logs2) = both(strategy, new_backbone, build, train)
    for tap, weights in one.regularizer.attention_weights().items():
        np.testing.assert_allclose(
            two.regularizer.attention_weights()[tap], weights, atol=1e-5
        )
    reference.assert_same_weights(one.target, two.target, atol=1e-4)
    assert_same_logs(logs1, logs2, rtol=1e-4)


def test_an_empty_replica_leaves_batch_norm_finite(strategy, new_backbone):
    x, y = reference.data(5)
    with strategy.scope():
        model = reference.compiled(
            *reference.pair(new_backbone, batch_norm=True),
            FeatureMap(0.3, 0.2),
            run_eagerly=False,
        )
    model.fit(reference.batches((4, 1), x, y), verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert np.isfinite(model.evaluate(x, y, 4, verbose=0))
    assert model.predict(x, 4, verbose=0).shape == (5, reference.CLASSES)


def test_evaluate_and_predict_on_two_replicas(strategy, new_backbone):
    x, y = reference.data(11)

    def build(target, source):
        return reference.compiled(
            target, source, FeatureMap(0.3, 0.2), metrics=["accuracy"]
        )

    def train(model):
        return model.evaluate(x, y, 8, verbose=0, return_dict=True)

    (one, logs1), (two, logs2) = both(strategy, new_backbone, build, train)
    assert logs1.keys() == logs2.keys() == {"loss", "accuracy"}
    np.testing.assert_allclose(logs1["accuracy"], logs2["accuracy"])
    np.testing.assert_allclose(
        one.predict(x, verbose=0), two.predict(x, verbose=0), atol=1e-6
    )


def test_mixed_precision_on_two_replicas(strategy, new_backbone):
    keras.config.set_dtype_policy("mixed_float16")
    x, y = reference.data(11)
    with strategy.scope():
        model = reference.compiled(
            *reference.pair(new_backbone), Delta(0.3, 0.2, attention="uniform")
        )
        model.optimizer.initial_scale = 2.0**6
    logs = model.fit(reference.batches((8, 3), x, y), epochs=2, verbose=0)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.optimizer.inner_optimizer.iterations.numpy() == 4
    assert np.isfinite(list(logs.history.values())).all()


def test_saved_on_two_replicas_loads_on_one(strategy, new_backbone, tmp_path):
    x, y = reference.data(8)
    with strategy.scope():
        model = reference.compiled(*reference.pair(new_backbone), FeatureMap(0.3, 0.2))
    model.fit(x, y, 8, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    reference.assert_same_weights(model, loaded, atol=0, rtol=0)


@pytest.mark.parametrize("steps", [3, 10])
def test_several_steps_per_execution(steps, strategy, new_backbone):
    """Keras's own cannot do it; the last execution may be a shorter one."""
    x, y = reference.data(sum(BATCHES))
    seen = []

    class Batches(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    def build(target, source):
        return reference.compiled(
            target,
            source,
            FeatureMap(0.3, 0.2),
            steps_per_execution=steps,
            run_eagerly=steps != 3,
        )

    def train(model):
        data = reference.batches(BATCHES, x, y)
        return model.fit(data, epochs=2, verbose=0, callbacks=[Batches()])

    (one, logs1), (two, logs2) = both(strategy, new_backbone, build, train)
    assert int(two.optimizer.iterations.numpy()) == 2 * len(BATCHES)
    reference.assert_same_weights(one.target, two.target)
    assert_same_logs(logs1, logs2)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_ema_without_overwriting_works_on_replicas(strategy, new_backbone):
    x, y = reference.data(8)

    def build(target, source):
        optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
        return reference.compiled(
            target, source, FeatureMap(0.3, 0.2), optimizer=optimizer
        )

    def train(model):
        return model.fit(x, y, 8, epochs=2, shuffle=False, verbose=0)

    (one, _), (two, _) = both(strategy, new_backbone, build, train)
    reference.assert_same_weights(one.target, two.target)
