"""What methods between two networks of their own promise. A new one adds its row.

The source is wider and deeper than the target, and has a head for the same classes.
"""

import contextlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import make_backbone, make_deeper

import keras_delta as kd
from keras_delta import regularizers

CLASSES, COUNT = 3, 24
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# name in ALL, arguments
CASES = [
    ("kd", {"temperature": 2.0, "task_weight": 0.3}),
    ("afd", {"dimension": 8}),
    ("four_ds", {"temperature": 2.0}),
    ("afd", {"dimension": 8, "kd": 0.0}),
]
IDS = ["kd", "afd", "four_ds", "afd without kd"]
every_case = pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
every_method = pytest.mark.parametrize(("name", "kwargs"), CASES[:3], ids=IDS[:3])


def make_networks(activation=None, name="kd"):
    """A source with four convolutions, or with six of the target's channels."""
    source = make_backbone(True, widths=(8, 12, 16, 20), seed=3, name="wide")
    if name == "four_ds":
        source = make_deeper(seed=3)
    target = make_backbone(True, seed=1)
    keras.utils.set_random_seed(0)
    return [
        kd.attach_head(net, CLASSES, activation=activation) for net in (source, target)
    ]


def make_model(regularizer, optimizer="adam", activation=None, **options):
    adapts = isinstance(regularizer, regularizers.FourDs)
    source, target = make_networks(activation, "four_ds" if adapts else "kd")
    model = kd.DeltaModel(target, source, regularizer=regularizer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    model.compile(optimizer, loss, metrics=["accuracy"], **options)
    return model


def make(name, kwargs, /, **strengths):
    return regularizers.ALL[name](**kwargs, **strengths)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(COUNT, 16, 16, 3)).astype("float32")
    return images, np.arange(COUNT) % CLASSES


def weights_of(model):
    return [v.numpy() for v in model.variables]


def softened(logits, temperature):
    e = np.exp(np.asarray(logits, "float64") / temperature)
    return e / e.sum(-1, keepdims=True)


def twin_kd(source_logits, target_logits, temperature):
    p, q = (softened(v, temperature) for v in (source_logits, target_logits))
    return temperature**2 * (p * np.log(p / q)).sum(-1).mean()


def test_kd_in_a_step(data):
    """(1 - a) task + a T^2 KL, a = 0.7: each part as it is logged."""
    x, y = data
    model = make_model(regularizers.KD(0.7, temperature=2.0, task_weight=0.3))
    source, target = model.source.predict(x, verbose=0), model.target(x, training=True)
    task = keras.losses.sparse_categorical_crossentropy(y, target, from_logits=True)
    logs = model.train_on_batch(x, y, return_dict=True)
    distilled = 0.7 * twin_kd(source, target, 2.0)
    assert logs["feature_penalty"] == pytest.approx(distilled, rel=1e-4)
    assert logs["task_loss"] == pytest.approx(0.3 * np.mean(task), rel=1e-4)
    total = distilled + 0.3 * np.mean(task)
    assert logs["loss"] == pytest.approx(total, rel=1e-4)


def test_kd_of_known_logits():
    """Where Keras's `LogitsDistillation` gives 0.693147: it leaves out softmax, T^2."""
    target, source = [[1, 0.5, 0], [-1, 2, 0.5]], [[2, 1, -1], [0, 3, 1]]
    found = regularizers.KD(temperature=2.0).logit_distance(source, target)
    assert float(found) == pytest.approx(0.132364, abs=1e-6)
    found = regularizers.KD().logit_distance(source, target)
    assert float(found) == pytest.approx(0.166773, abs=1e-6)
    assert regularizers.KD(kd_weight=0.5).alpha == 0.5


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_kd_of_a_softmax(data, activation):
    model = make_model("kd", activation=activation)
    logs = model.train_on_batch(*data, return_dict=True)
    plain = make_model("kd").train_on_batch(*data, return_dict=True)
    assert logs["feature_penalty"] == pytest.approx(plain["feature_penalty"], rel=1e-4)


def test_images_without_labels(data):
    """They count in the distance of predictions, and a weight of 0 in nothing else."""
    x, y = data
    weights = (np.arange(COUNT) < 8).astype("float32")
    logs = []
    for labels in (y, np.where(weights > 0, y, 0)):
        model = make_model("kd")
        found = model.train_on_batch(x, labels, weights, return_dict=True)
        found.pop("accuracy")  # `metrics` are not weighted, `weighted_metrics` are
        logs.append(found)
    assert logs[0] == logs[1]
    plain = make_model("kd").train_on_batch(x, y, return_dict=True)
    assert logs[0]["feature_penalty"] == plain["feature_penalty"]
    assert logs[0]["task_loss"] != pytest.approx(plain["task_loss"])


@every_case
def test_what_a_step_moves(data, name, kwargs):
    """Target and own layers; the source and its statistics stay."""
    model = make_model(make(name, kwargs))
    before = {v.path: v.numpy() for v in model.source.variables}
    own = [v.numpy() for v in model.regularizer.trainable_variables]
    target = [v.numpy() for v in model.target.trainable_variables]
    assert bool(own) == (name != "kd")
    model.fit(*data, verbose=0)
    pairs = zip(target, model.target.trainable_variables, strict=True)
    assert sum(np.abs(a - b).max() > 0 for a, b in pairs) >= 0.6 * len(target)
    for v in model.source.variables:
        np.testing.assert_array_equal(v, before[v.path])
    after = [v.numpy() for v in model.regularizer.trainable_variables]
    moved = [not np.array_equal(a, b) for a, b in zip(own, after, strict=True)]
    # Adam moves all that has a gradient; biases in front of BatchNorm have none.
    assert sum(moved) >= 0.6 * len(moved)


@every_case
def test_only_what_is_needed_is_computed(name, kwargs):
    model = make_model(make(name, kwargs))
    fetched = set(model.networks.fetched)
    assert ("/outputs" in fetched) == (kwargs.get("kd") != 0.0)
    assert (len(fetched) > 1) == (name != "kd")
    model.set_regularizer("l2")
    assert model.networks.fetched == {} and model.taps == ["conv0", "conv1", "conv2"]


@every_method
def test_a_file_goes_on_identically(data, tmp_path, name, kwargs):
    model = make_model(make(name, kwargs))
    model.fit(*data, 8, epochs=2, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    logs = [m.fit(*data, 8, verbose=0, shuffle=False).history for m in (model, again)]
    assert logs[0] == logs[1]
    for a, b in zip(weights_of(model), weights_of(again), strict=True):
        np.testing.assert_array_equal(a, b)


@every_method
def test_weights_alone_go_on(data, tmp_path, name, kwargs):
    model = make_model(make(name, kwargs))
    model.fit(*data, 8, verbose=0, shuffle=False)
    model.save_weights(tmp_path / "one.weights.h5")
    again = make_model(make(name, kwargs))
    again.load_weights(tmp_path / "one.weights.h5")
    for a, b in zip(weights_of(model), weights_of(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_regularizers_follow_each_other(data):
    """Layers come and go; momenta of the target stay."""
    model = make_model("l2")
    model.fit(*data, 8, verbose=0)
    slots = {v.name: v.numpy() for v in model.optimizer.variables}
    iterations = int(model.optimizer.iterations)
    plain, trained = len(model.variables), len(model.trainable_variables)
    model.set_regularizer(make(*CASES[1]))
    model.make_train_function()
    assert int(model.optimizer.iterations) == iterations
    for v in model.optimizer.variables[: len(slots)]:
        np.testing.assert_array_equal(v, slots[v.name])
    model.fit(*data, 8, verbose=0)
    model.fit(*data, 8, regularizer="kd", verbose=0)
    model.fit(*data, 8, regularizer=make(*CASES[3]), verbose=0)
    model.fit(*data, 8, regularizer="l2", verbose=0)
    assert (plain, trained) == (len(model.variables), len(model.trainable_variables))


@pytest.mark.parametrize("second", ["kd", "l2", None])
def test_a_file_after_a_change_goes_on_identically(data, tmp_path, second):
    """The optimizer forgets the layers that are gone, and nothing else."""
    model = make_model(make(*CASES[1]))
    model.fit(*data, 8, verbose=0, shuffle=False)
    size, iterations = len(model.optimizer.variables), int(model.optimizer.iterations)
    slots = {v.name: v.numpy() for v in model.optimizer.variables}
    model.set_regularizer(second)
    model.make_train_function()
    assert len(model.optimizer.variables) < size
    assert int(model.optimizer.iterations) == iterations
    for v in model.optimizer.variables:
        np.testing.assert_array_equal(v, slots[v.name])
    model.fit(*data, 8, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    logs = [m.fit(*data, 8, verbose=0, shuffle=False).history for m in (model, again)]
    assert logs[0] == logs[1]


@pytest.mark.slow
@every_method
def test_two_replicas_equal_one(strategy, data, name, kwargs):
    x, y = (v[:19] for v in data)  # the last batch is uneven
    logs, weights = [], []
    for used in (tf.distribute.get_strategy(), strategy):
        with used.scope():
            made = make(name, kwargs)
            model = make_model(made, keras.optimizers.SGD(0.01), jit_compile=False)
            freeze_statistics(model)
            for i, v in enumerate(model.regularizer.trainable_variables):
                v.assign(0.1 * np.random.default_rng(i).normal(size=v.shape))
        found = model.fit(x, y, 8, epochs=2, shuffle=False, verbose=0)
        logs.append(found.history)
        weights.append([v.numpy() for v in model.trainable_variables])
    for key in logs[0]:
        np.testing.assert_allclose(logs[0][key], logs[1][key], rtol=1e-3, err_msg=key)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def freeze_statistics(model):
    """Those of the target are of each replica's images, as always."""
    for layer in model.target.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


@every_method
@pytest.mark.parametrize(
    "option",
    [
        *("mixed_float16", "three steps", "cache"),
        pytest.param("jit", marks=pytest.mark.slow),
    ],
)
def test_ways_to_run(data, name, kwargs, option):
    if option == "mixed_float16":
        keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make_model(
            make(name, kwargs),
            jit_compile=option == "jit",
            steps_per_execution=3 if option == "three steps" else 1,
        )
        given = {"source_maps": "cache"} if option == "cache" else {}
        if given and name == "four_ds":
            with pytest.raises(ValueError, match="maps change with each step"):
                model.fit(*data, 8, verbose=0, **given)
            return
        logs = model.fit(*data, 8, epochs=2, shuffle=False, verbose=0, **given).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(logs["loss"]).all()
    if option == "mixed_float16":
        # The first steps, in which the loss scale was too large, are left out.
        assert int(model.optimizer.inner_optimizer.iterations) >= 2
        return
    plain = make_model(make(name, kwargs))
    for a, b in zip(
        plain.regularizer.variables, model.regularizer.variables, strict=True
    ):
        assert a.shape == b.shape
    if name == "kd":  # others have own layers, which begin at random
        expected = plain.fit(*data, 8, epochs=2, shuffle=False, verbose=0).history
        np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-3)


@every_method
def test_an_export_holds_the_target_alone(data, tmp_path, name, kwargs):
    model = make_model(make(name, kwargs))
    model.fit(*data, 8, verbose=0)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    expected = model.target.predict(data[0], verbose=0)
    np.testing.assert_allclose(served.serve(data[0]), expected, atol=1e-5)
    count = len({id(v) for v in served.variables})
    assert count == len(model.target.variables)


@every_case
def test_configs(name, kwargs):
    made = make(name, kwargs, alpha=0.7, beta=0.4, name="mine")
    config = json.loads(json.dumps(regularizers.serialize(made)))
    again = regularizers.deserialize(config)
    assert again.get_config() == made.get_config()
    assert again.needs == made.needs
    assert (again.alpha, again.beta, again.name) == (0.7, 0.4, "mine")


# --- what cannot work ---


def test_a_source_without_a_head():
    source, target = make_networks()
    body = keras.Model(source.input, source.get_layer("relu3").output)
    with pytest.raises(
        ValueError, match=r"of the source have the shapes \[\(2, 2, 20\)\]"
    ):
        kd.DeltaModel(target, body, regularizer="kd")
    with pytest.raises(
        ValueError, match=r"of the source have the shapes .*Fine-tune the so"
    ):
        kd.DeltaModel(target, regularizer="kd")  # its snapshot ends before the head


@pytest.mark.parametrize("name", ["afd", "four_ds"])
def test_a_source_without_maps(name):
    inputs = keras.Input((16, 16, 3))
    hidden = keras.layers.Dense(8, "relu")(keras.layers.Flatten()(inputs))
    dense = keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))
    with pytest.raises(ValueError, match=r"source with feature maps.*one without.*kd"):
        kd.DeltaModel(make_networks()[1], dense, regularizer=name)


def test_averages_of_the_weights_leave_out_adapters(data):
    """Keras assigns them at the end, in the order of what the optimizer trains."""
    averaging = keras.optimizers.SGD(0.01, use_ema=True)
    model = make_model(regularizers.FourDs(), averaging)
    model.fit(*data, verbose=0)
    adapters = {id(v) for v in model.regularizer.source_variables}
    assert adapters and not adapters & {id(v) for v in model.trainable_weights}


def test_narrow_taps_of_four_ds():
    for widths, found in (((3, 6, 8), r"\[3, 6, 8\]"), ((4, 4, 4), r"\[4, 4, 4\]")):
        source = kd.attach_head(make_deeper(widths=widths, seed=3), CLASSES)
        target = kd.attach_head(make_backbone(True, widths=widths, seed=1), CLASSES)
        with pytest.raises(ValueError, match=rf"taps.*4 channels.*16 in all.*{found}"):
            kd.DeltaModel(target, source, regularizer="four_ds")


def test_what_is_no_state_dict():
    with pytest.raises(TypeError, match="`state`"):
        regularizers.AFD().load_official(None)


def test_two_names_of_one_weight():
    with pytest.raises(ValueError, match="`alpha` and `kd_weight`"):
        regularizers.KD(0.5, kd_weight=0.7)
    assert regularizers.KD(0.7, kd_weight=0.7).alpha == 0.7


def test_a_source_with_other_classes():
    source, _ = make_networks()
    other = kd.attach_head(make_backbone(True, seed=1), 4)
    for name in ("kd", "afd"):
        with pytest.raises(ValueError, match=r"has 3 classes, the target's 4\. Both"):
            kd.DeltaModel(other, source, regularizer=name)
    one = [kd.attach_head(make_backbone(True, seed=s), 1) for s in (1, 2)]
    with pytest.raises(ValueError, match=r"have the shapes \[\(1,\)\], and one vector"):
        kd.DeltaModel(*one, regularizer="kd")
    with pytest.raises(TypeError, match=r"Pass its target: `source=model\.target`"):
        kd.DeltaModel(other, source=make_model("kd"))
    model = kd.DeltaModel(other, source, regularizer=regularizers.AFD(kd=0.0))
    assert model.regularizer.bound


@pytest.mark.parametrize("loss", ["mse", keras.losses.BinaryCrossentropy(True)])
def test_tasks_without_classes(data, loss):
    model = make_model("kd")
    model.compile("sgd", loss)
    labels = np.eye(CLASSES)[data[1]]
    with pytest.raises(ValueError, match=r"the model's loss is for another task"):
        model.fit(data[0], labels, verbose=0)


def test_a_source_that_was_never_trained(data):
    source = keras.models.clone_model(make_networks()[0])
    model = kd.DeltaModel(make_networks()[1], source, regularizer="kd")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="looks as if it had never been trained"):
        model.fit(*data, verbose=0)


def test_outputs_in_a_dict(data):
    source, target = make_networks()
    source, target = (keras.Model(m.input, {"y": m.output}) for m in (source, target))
    model = kd.DeltaModel(target, source, regularizer="kd")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", {"y": loss})
    assert model.fit(data[0], {"y": data[1]}, verbose=0).history["feature_penalty"][0]


def test_methods_that_begin_at_the_source_are_refused():
    """And the model stays as it was."""
    model = make_model("kd")
    fetched = model.networks.fetched
    for name in ("l2_sp", "feature_map", "delta", "l2_fe"):
        with pytest.raises(ValueError, match="Source and target do not match"):
            model.set_regularizer(name)
    assert isinstance(model.regularizer, regularizers.KD)
    assert model.networks.fetched.keys() == fetched.keys()


def test_two_lists_are_no_pairs(new_backbone):
    source = new_backbone()
    target = kd.attach_head(source, 3)
    lists = {"taps": ["conv0", "conv1"], "source_taps": ["conv1", "conv2", "conv0"]}
    model = kd.DeltaModel(target, source, **lists)
    assert list(model.networks.source_taps) == lists["source_taps"]
    with pytest.raises(ValueError, match="are two lists, and this regularizer comp"):
        model.set_regularizer("delta")
    model.set_regularizer(regularizers.AFD(kd=0.0, dimension=4))
    assert len(model.regularizer.network.source_channels) == 3
    with pytest.raises(TypeError, match=r"`source_taps`\. Expected a list of layer"):
        kd.DeltaModel(target, source, taps=["conv0"], source_taps="conv1")


def test_images_of_another_size():
    source, _ = make_networks()
    target = kd.attach_head(make_backbone(True, size=24, seed=1), CLASSES)
    with pytest.raises(ValueError, match=r"takes images of \(16, 16, 3\)"):
        kd.DeltaModel(target, source, regularizer="kd")


def test_both_see_the_same_flip(data):
    """Augmentation in the target is in front of the source, too."""
    source, target = make_networks()
    inputs = keras.Input((16, 16, 3))
    flipped = keras.layers.RandomFlip("horizontal", seed=1)(inputs)
    whole = keras.Model(inputs, target(flipped))
    model = kd.DeltaModel(whole, source, regularizer="kd")
    (entering,) = model.networks.entry.tensors
    assert model.networks.target.name_of(entering).startswith("random_flip")


# --- the recipe ---


def test_a_new_head_is_fitted(data):
    """Where the source is another network, and where it is the same one, trained."""
    same = kd.DeltaModel(kd.attach_head(make_backbone(True, seed=1), CLASSES))
    same.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    same.fit(*data, verbose=0)
    for source in (make_networks()[0], same.target):
        model = kd.DeltaModel(make_networks()[1], source)
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(*data, regularizer="kd", recipe=kd.Recipe(epochs=1), verbose=0)
        assert model.probe is not None and model.recipe.batch_norm == 0.0
        norms = [n for n in model.target.layers if n.name.startswith("bn")]
        assert len(norms) == 3 and not any(n.trainable for n in norms)


@pytest.mark.parametrize("trained", [True, False])
def test_what_begins_by_the_recipe_unasked(monkeypatch, data, trained):
    monkeypatch.setattr(kd.DeltaModel, "default_recipe", "auto")
    source, target = make_networks()
    if not trained:  # a network from scratch: there is nothing to fit a head on
        for layer in target.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                pairs = zip(START, layer.weights, strict=True)
                layer.set_weights([make(v.shape) for make, v in pairs])
            elif layer.weights:
                kernel, bias = layer.get_weights()
                layer.set_weights([kernel, 0 * bias])
    model = kd.DeltaModel(target, source)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data, regularizer="kd", verbose=0)
    assert (model.probe is not None) == trained


START = (np.ones, np.zeros, np.zeros, np.ones)


def test_members_of_a_family_do_not_correspond(data):
    """They have their first layers alike, and what they compute is another thing."""
    source = kd.attach_head(make_backbone(True, widths=(4, 6, 12, 16), seed=3), CLASSES)
    target = kd.attach_head(make_backbone(True, seed=1), CLASSES)
    model = kd.DeltaModel(target, source, regularizer="kd")
    assert model.pairing.names == {} and model.networks.mismatch is not None
    assert model.taps == ["conv0", "conv1", "conv2"]


@pytest.mark.slow
@every_method
def test_a_backup_goes_on_bit_for_bit(data, tmp_path, name, kwargs):
    """Own layers and own optimizer as well."""

    def train(*callbacks):
        keras.utils.set_random_seed(4)
        model = make_model(make(name, kwargs), run_eagerly=True)
        given = {"epochs": 3, "verbose": 0, "callbacks": list(callbacks)}
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(*data, 8, **given)
        return model

    def stop(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    straight = train()
    train(
        kd.callbacks.BackupAndRestore(tmp_path),
        keras.callbacks.LambdaCallback(on_epoch_begin=stop),
    )
    again = train(kd.callbacks.BackupAndRestore(tmp_path))
    adapting = again.regularizer.find_adapting()
    if adapting is not None:
        assert int(adapting.source_optimizer.iterations) == 9
    parts = [[*m.variables, *m.optimizer.variables] for m in (straight, again)]
    for v, w in zip(*parts, strict=True):
        np.testing.assert_array_equal(v, w, err_msg=v.path)


# --- each preprocesses for itself ---

SIZE = 24


def flat(front, seed=1, size=SIZE, channels=3):
    """Layers in front of three convolutions and a head, in one functional model."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((size, size, channels))
    for layer in front:
        x = layer(x)
    for i, width in enumerate((8, 16, 16)):
        convolution = keras.layers.Conv2D(width, 3, 2, "same", name=f"net{seed}_{i}")
        x = keras.layers.ReLU()(convolution(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    head = keras.layers.Dense(3, name=f"net{seed}_head", bias_initializer="normal")
    return keras.Model(inputs, head(x))


def raw_images():
    x = np.random.default_rng(0).uniform(0, 255, (12, SIZE, SIZE, 3))
    return x.astype("float32"), np.arange(12) % 3


def normalization():
    return keras.layers.Normalization(mean=[120.0] * 3, variance=[900.0] * 3)


FRONTS = {
    "the same": lambda: [keras.layers.Rescaling(1 / 255)],
    "another scale": lambda: [keras.layers.Rescaling(1 / 127.5, -1)],
    "none": list,
    "its own mean": lambda: [normalization()],
    "another size": lambda: [keras.layers.Resizing(32, 32), normalization()],
}


@pytest.mark.parametrize("name", FRONTS)
def test_a_teacher_preprocesses_for_itself(name):
    """Also where the two networks are of one structure."""
    x, y = raw_images()
    source = flat(FRONTS[name]())
    target = flat([keras.layers.Rescaling(1 / 255)], seed=2)
    model = kd.DeltaModel(target, source, regularizer=regularizers.KD(1.0))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = twin_kd(source(x), target(x), 4.0)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["feature_penalty"] == pytest.approx(expected, rel=1e-3)


def test_a_teacher_for_other_images():
    target = flat([keras.layers.Rescaling(1 / 255)], seed=2)
    for other in ({"size": 32}, {"channels": 1}):
        front = [keras.layers.Rescaling(1 / 255)]
        if "channels" in other:
            front.append(keras.layers.Conv2D(3, 1, name="color"))
        with pytest.raises(ValueError, match=r"takes images of \("):
            kd.DeltaModel(target, flat(front, **other), regularizer="kd")


def test_a_flip_that_the_teacher_would_not_see():
    def flip():
        return keras.layers.RandomFlip(name="flip")

    def scale():
        return keras.layers.Rescaling(1 / 255)

    def entering(target, source):
        networks = kd.DeltaModel(target, source, regularizer="kd").networks
        return networks.target.name_of(networks.entry.tensors[0])

    source, other = flat([scale()]), flat([normalization()])
    behind, first = flat([scale(), flip()], seed=2), flat([flip(), scale()], seed=2)
    assert entering(behind, source) == "flip"
    assert entering(first, other) == "flip"
    with pytest.raises(ValueError, match="at random in 'flip', after other layers"):
        entering(behind, other)


# --- what a teacher is not ---


def test_a_teacher_is_no_start(data):
    source, target = make_networks()
    model = kd.DeltaModel(target, source, regularizer="kd")
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(
        ValueError, match=r"`average` of 0\.5 mixes in weights of the so"
    ):
        model.fit(*data, recipe=kd.Recipe(average=0.5), verbose=0)
    with pytest.raises(ValueError, match="The source is a different network and can"):
        kd.averaging.interpolate(model)


def test_l2_beside_a_teacher_of_the_same_structure():
    """It needs no parameters of the target's own."""
    source, target = (kd.attach_head(make_backbone(True, seed=s), 3) for s in (3, 1))
    assert kd.DeltaModel(target, source, regularizer=["kd", "l2"]).regularizer.bound


@pytest.mark.parametrize("spread", [8, 83])
def test_a_confident_softmax(data, spread):
    found = []
    for activation in (None, "softmax"):
        source, target = make_networks()
        logits = keras.layers.Rescaling(spread)(source.output)
        source = keras.Model(source.input, keras.layers.Activation(activation)(logits))
        model = kd.DeltaModel(target, source, regularizer="kd")
        model.compile("sgd", SPARSE)
        found.append(model.train_on_batch(*data, return_dict=True)["feature_penalty"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
