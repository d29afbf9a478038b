"""Frozen first layers are computed once for source and target, and only those."""

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta._network import sharing
from keras_delta.regularizers import Delta, FeatureMap

SIZE = 8


def network(middle=None, activation=None, ops=False, batch_norm=True):
    """conv0, bn0, relu0, `middle`, conv1, bn1, relu1, conv2, relu2."""
    x = inputs = keras.Input((SIZE, SIZE, 3), name="image")
    if ops:
        x = x / 2.0 - 1.0
    for i in range(3):
        x = keras.layers.Conv2D(
            4 + i, 3, padding="same", name=f"conv{i}", activation=activation
        )(x)
        if batch_norm and i < 2:
            x = keras.layers.BatchNormalization(name=f"bn{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
        if middle is not None and i == 0:
            x = middle(x)
    return keras.Model(inputs, x, name="net")


def compiled(source, taps=("conv1", "conv2"), freeze="relu1", target=None, **kwargs):
    """A DeltaModel whose head and last layers are off the source's."""
    keras.utils.set_random_seed(3)
    target = kd.attach_head(source, 3) if target is None else target
    model = kd.DeltaModel(target, source=source, taps=list(taps))
    rng = np.random.default_rng(5)
    for v in target.get_layer("conv2").trainable_variables:
        v.assign(v + 0.1 * rng.normal(size=v.shape))
    if freeze:
        kd.freeze_until(model, freeze)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(True),
        regularizer=kwargs.pop("regularizer", None) or FeatureMap(0.5, 0.1),
        **{"jit_compile": False, "run_eagerly": True, **kwargs},
    )
    return model


def convolutions(model):
    """Forward convolutions in the graph of one training step."""
    x, y = reference.data(6)
    model.prepare(x, y, verbose=0)
    model.make_train_function()
    step = tf.function(model.train_step).get_concrete_function((x, y))
    definition = step.graph.as_graph_def()
    nodes = [n.op for n in definition.node]
    nodes += [n.op for f in definition.library.function for n in f.node_def]
    return nodes.count("Conv2D")


def trained(model, epochs=2, **kwargs):
    x, y = reference.data(12)
    history = model.fit(x, y, 4, epochs=epochs, shuffle=False, verbose=0, **kwargs)
    return history.history, model.target.get_weights()


def assert_same(found, expected):
    (logs, weights), (logs_there, weights_there) = found, expected
    assert logs.keys() == logs_there.keys()
    for name in logs:
        np.testing.assert_allclose(logs[name], logs_there[name], rtol=1e-5, atol=1e-7)
    for v, w in zip(weights, weights_there, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-5, atol=1e-6)


@pytest.fixture
def nothing_shared(monkeypatch):
    """A function that makes `make()`'s model compute everything twice."""

    def run(make):
        with monkeypatch.context() as patched:
            patched.setattr(sharing, "_alike", lambda *args: False)
            model = make()
            found = trained(model)
            assert not model._step.shared.held
        return found

    return run


@pytest.mark.parametrize(
    ("freeze", "taps", "expected"),
    [
        (None, ("conv1", "conv2"), 6),
        ("conv0", ("conv1", "conv2"), 5),
        ("relu0", ("conv1", "conv2"), 5),
        ("relu1", ("conv1", "conv2"), 4),
        ("relu2", ("conv1", "conv2"), 3),
        (None, ("conv1",), 5),
        ("relu0", ("conv1",), 4),
        ("relu1", ("conv1",), 3),
    ],
)
def test_the_convolutions_of_a_step(freeze, taps, expected):
    source = network()
    target = kd.attach_head(source, 3)
    if freeze == "relu2":  # conv2 must be the source's own to be shared
        model = kd.DeltaModel(target, source=source, taps=list(taps))
        kd.freeze_until(model, freeze)
        model.compile(
            "sgd",
            keras.losses.SparseCategoricalCrossentropy(True),
            regularizer=FeatureMap(),
            jit_compile=False,
        )
    else:
        model = compiled(source, taps, freeze, target)
    assert convolutions(model) == expected


@pytest.mark.parametrize(
    "freeze, kwargs",
    [
        *((freeze, {}) for freeze in (None, "conv0", "relu0", "bn1")),
        ("relu0", {"run_eagerly": False}),
        ("bn1", {"run_eagerly": False, "steps_per_execution": 2}),
    ],
)
def test_training_is_the_same(freeze, kwargs, nothing_shared):
    source = network(ops=True)
    make = lambda: compiled(source, freeze=freeze, **kwargs)  # noqa: E731
    model = make()
    found = trained(model)
    assert len(model.sharing) == {None: 2, "conv0": 3, "relu0": 5, "bn1": 8}[freeze]
    assert_same(found, nothing_shared(make))


def test_frozen_layers_alone_are_shared():
    model = compiled(network(), freeze="relu0")
    trained(model)
    assert model.sharing == ["conv0", "bn0", "relu0"]
    model = compiled(network(), freeze="bn1")
    trained(model)
    assert model.sharing == [
        *("conv0", "bn0", "relu0"),
        *("conv1", "bn1", "relu1"),  # a ReLU has nothing to freeze
    ]


def test_freezing_only_a_later_layer_shares_nothing():
    model = compiled(network(), freeze=None)
    model.target.get_layer("conv1").trainable = False
    trained(model)
    assert model.sharing == []


NOISES = {
    "dropout": lambda x: keras.layers.Dropout(0.3, name="middle")(x),
    "noise": lambda x: keras.layers.GaussianNoise(0.3, name="middle")(x),
    "flip": lambda x: keras.layers.RandomFlip(name="middle")(x),
}


@pytest.mark.parametrize("name", NOISES)
def test_what_is_random_is_taken_from_the_target(name):
    """Behind layers that are alike, the source sees what the target has drawn."""
    model = compiled(network(NOISES[name]))
    model.target.get_layer("middle").trainable = True  # frozen are its neighbours
    trained(model)
    assert model.sharing[:5] == ["conv0", "bn0", "relu0", "middle", "conv1"]
    assert model._step.shared.random == ["middle"]
    assert "middle" not in model._step.shared.held


@pytest.mark.parametrize("name", ["dropout", "noise"])
@pytest.mark.parametrize("source_maps", ["compute", "cache"])
def test_frozen_noise_is_off(name, source_maps):
    source, quiet = network(NOISES[name]), network()
    quiet.set_weights(source.get_weights())
    model, other = compiled(source), compiled(quiet)
    other.target.set_weights(model.target.get_weights())
    found, without = trained(model, source_maps=source_maps), trained(other)
    assert "middle" in model.sharing
    rtol = 1e-5 if source_maps == "compute" else 1e-2
    for key, values in without[0].items():
        np.testing.assert_allclose(found[0][key], values, rtol=rtol)


def test_frozen_augmentation_stays():
    model = compiled(network(NOISES["flip"]))
    assert not model.target.get_layer("middle").trainable
    trained(model)
    assert model._step.shared.random == ["middle"]


def test_batch_norm_that_still_trains_is_not_shared():
    model = compiled(network(), freeze=None)
    for layer in model.target.layers:
        layer.trainable = not layer.name.startswith("conv")
    trained(model)
    assert model.sharing == ["conv0"]


def test_other_weights_than_the_sources_are_not_shared(nothing_shared):
    source = network()

    def make():
        model = compiled(source)
        kernel = model.target.get_layer("conv0").kernel
        kernel.assign(kernel + 1e-7)
        return model

    model = make()
    found = trained(model)
    assert model.sharing == []
    assert_same(found, nothing_shared(make))


def test_weights_changed_between_two_fits_are_noticed(nothing_shared):
    source = network()

    def change(model):
        kernel = model.target.get_layer("conv1").kernel
        kernel.assign(kernel + 0.1)

    model = compiled(source)
    trained(model)
    assert "conv1" in model.sharing
    change(model)
    found = trained(model)
    assert model.sharing == ["conv0", "bn0", "relu0"]

    def again():
        model = compiled(source)
        trained(model)
        change(model)
        return model

    assert_same(found, nothing_shared(again))


def test_weights_that_a_callback_loads_are_noticed(tmp_path):
    """As a backup does: after the step was traced, before the first one."""
    source = network()
    other = compiled(source)
    kernel = other.target.get_layer("conv0").kernel
    kernel.assign(kernel + 0.1)
    other.target.save_weights(tmp_path / "w.weights.h5")

    class Load(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.target.load_weights(tmp_path / "w.weights.h5")

    model = compiled(source)
    trained(model, callbacks=[Load()])
    assert model.sharing == []


def test_layers_with_other_settings_are_not_shared():
    """Same class and weights, other computation."""
    source, target = network(), network(activation="tanh")
    target.set_weights(source.get_weights())
    model = compiled(source, target=kd.attach_head(target, 3))
    trained(model)
    assert model.sharing == []


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_on_two_replicas(policy, strategy, nothing_shared):
    keras.config.set_dtype_policy(policy)

    def make():
        with strategy.scope():
            return compiled(network(), regularizer=FeatureMap(0.5, 0.1))

    keras.utils.set_random_seed(0)
    model = make()
    x, y = reference.data(13)  # the last batch leaves one replica empty
    logs = model.fit(x, y, 4, shuffle=False, verbose=0).history
    assert "conv1" in model.sharing
    assert np.isfinite(list(logs.values())).all()
    keras.utils.set_random_seed(0)
    single = compiled(network(), regularizer=FeatureMap(0.5, 0.1))
    logs_there = single.fit(x, y, 4, shuffle=False, verbose=0).history
    rtol = 1e-4 if policy == "float32" else 0.05
    for name in logs:
        np.testing.assert_allclose(logs[name], logs_there[name], rtol=rtol)


def test_a_loaded_model_shares_again(tmp_path):
    model = compiled(network(ops=True))
    trained(model)
    expected = model.sharing
    assert len(expected) == 8
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert_same(trained(loaded), trained(model))
    assert len(loaded.sharing) == len(expected)


def test_a_nested_backbone():
    source = network()
    inputs = keras.Input((SIZE, SIZE, 3))
    x = source(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    target = keras.Model(inputs, keras.layers.Dense(3)(x))
    model = kd.DeltaModel(target, taps=["conv1", "conv2"])
    frozen = kd.freeze_until(model, "relu1")
    assert frozen == ["conv0", "bn0", "conv1", "bn1"]
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(True),
        regularizer=Delta(attention="uniform"),
        run_eagerly=True,
    )
    trained(model)
    assert model.sharing[-1] == "relu1"


def test_freeze_until_a_plain_model():
    model = network()
    assert kd.freeze_until(model, "conv1") == ["conv0", "bn0", "conv1"]
    trainable = {v.path for v in model.trainable_variables}
    assert {p.split("/")[0] for p in trainable} == {"bn1", "conv2"}


@pytest.mark.filterwarnings("ignore:Nothing is trained")
def test_a_target_that_is_frozen_as_a_whole():
    model = compiled(network(), freeze=None)
    kd.freeze_until(model, "head")
    before = model.target.get_weights()
    trained(model)
    for v, w in zip(before, model.target.get_weights(), strict=True):
        np.testing.assert_array_equal(v, w)


def test_freeze_until_takes_one_name():
    with pytest.raises(TypeError, match=r"layer.*name of one layer.*\['conv1'\]"):
        kd.freeze_until(network(), ["conv1"])


def test_freeze_until_an_unknown_layer():
    with pytest.raises(ValueError, match=r"(?s)layer.*'conv9'.*conv1"):
        kd.freeze_until(network(), "conv9")


def test_freeze_until_goes_along_branches():
    inputs = keras.Input((4,))
    a = keras.layers.Dense(4, name="a")(inputs)
    b = keras.layers.Dense(4, name="b")(a)
    c = keras.layers.Dense(4, name="c")(a)
    model = keras.Model(inputs, keras.layers.Add(name="sum")([b, c]))
    assert kd.freeze_until(model, "c") == ["a", "c"]
    assert model.get_layer("b").trainable
