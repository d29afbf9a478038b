"""What stock `fit` can do means the same with a regularizer."""

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta.regularizers import L2FE, L2SP, Delta, FeatureMap, L2SPAtt

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fitted(new_backbone, count=16, batch=4, epochs=2, **kwargs):
    """A model after `fit` with the regularizer that uses everything."""
    x, y = reference.data(16)
    regularizer = [Delta(0.3, 0.1, attention=reference.WEIGHTS), L2SP(0.3, 0.1)]
    model = reference.compiled(*reference.pair(new_backbone), regularizer, **kwargs)
    model.prepare(x, y)
    model.history = model.fit(
        x[:count], y[:count], batch, epochs=epochs, shuffle=False, verbose=0
    ).history
    return model


@pytest.fixture(scope="module")
def plain(new_backbone):
    """Trained step by step, without a graph."""
    return fitted(new_backbone)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"run_eagerly": False},  # as users train, who change nothing
        {"jit_compile": True},
        {"run_eagerly": False, "steps_per_execution": 3},
        {"steps_per_execution": 2},
        {"auto_scale_loss": False},
    ],
    ids=str,
)
def test_ways_to_run_give_the_same_numbers(kwargs, plain, new_backbone):
    model = fitted(new_backbone, **kwargs)
    reference.assert_same_weights(model, plain)
    for name, values in plain.history.items():
        np.testing.assert_allclose(model.history[name], values, rtol=1e-4)


def test_gradient_accumulation_equals_the_larger_batch(new_backbone):
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model = fitted(new_backbone, batch=4, optimizer=optimizer)
    expected = fitted(new_backbone, batch=8)
    reference.assert_same_weights(model.target, expected.target)
    assert optimizer.iterations.numpy() == 4


def test_gradient_accumulation_with_a_frozen_body(new_backbone):
    """`l2_fe` steps on a part of the variables alone."""
    x, y = reference.data(16)
    found = []
    for batch, steps in ((4, 2), (8, None)):
        optimizer = keras.optimizers.SGD(
            0.1, momentum=0.9, gradient_accumulation_steps=steps
        )
        model = reference.compiled(
            *reference.pair(new_backbone), L2FE(beta=0.2), optimizer=optimizer
        )
        model.fit(x, y, batch, epochs=2, shuffle=False, verbose=0)
        found.append(model.target)
    reference.assert_same_weights(*found)


def test_l2_fe_with_weight_decay_leaves_the_body(new_backbone):
    x, y = reference.data(8)
    target, source = reference.pair(new_backbone)
    before = target.get_layer("conv0").get_weights()
    model = reference.compiled(
        target, source, L2FE(), optimizer=keras.optimizers.AdamW(0.1, weight_decay=0.5)
    )
    model.fit(x, y, verbose=0)
    after = target.get_layer("conv0").get_weights()
    reference.assert_same_weights(after, before, atol=0, rtol=0)


def test_ema_averages_the_weights_after_each_step(new_backbone):
    momentum = 0.6
    model = fitted(
        new_backbone,
        count=8,
        epochs=1,
        optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=momentum),
    )
    one = fitted(new_backbone, count=4, epochs=1).target.get_weights()
    two = fitted(new_backbone, count=8, epochs=1).target.get_weights()
    # Keras begins the average at the weights after the first step.
    expected = [
        momentum * b + (1 - momentum) * c for b, c in zip(one, two, strict=True)
    ]
    reference.assert_same_weights(model.target, expected, atol=1e-6)
    assert np.abs(expected[0] - two[0]).max() > 1e-3


def test_train_on_batch_equals_fit(new_backbone, plain):
    x, y = reference.data(16)
    regularizer = [Delta(0.3, 0.1, attention=reference.WEIGHTS), L2SP(0.3, 0.1)]
    model = reference.compiled(*reference.pair(new_backbone), regularizer)
    model.prepare(x, y)
    for i in (*range(0, 16, 4), *range(0, 16, 4)):
        logs = model.train_on_batch(x[i : i + 4], y[i : i + 4], return_dict=True)
    reference.assert_same_weights(model, plain)
    assert set(logs) == {"loss", "task_loss", "feature_penalty", "head_penalty"}
    parts = logs["task_loss"] + logs["feature_penalty"] + logs["head_penalty"]
    assert logs["loss"] == pytest.approx(parts, rel=1e-6)


class Sequence(keras.utils.PyDataset):
    """Batches of four."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays[0]) // 4

    def __getitem__(self, i):
        return tuple(a[4 * i : 4 * i + 4] for a in self.arrays)


@pytest.mark.parametrize("kind", ["PyDataset", "tf.data", "weighted tf.data"])
def test_forms_of_data_give_the_same_numbers(kind, plain, new_backbone):
    x, y = reference.data(16)
    if kind == "PyDataset":
        data = Sequence(x, y)
    elif kind == "tf.data":
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    else:
        data = tf.data.Dataset.from_tensor_slices((x, y, np.ones(16))).batch(4)
    regularizer = [Delta(0.3, 0.1, attention=reference.WEIGHTS), L2SP(0.3, 0.1)]
    model = reference.compiled(*reference.pair(new_backbone), regularizer)
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    reference.assert_same_weights(model, plain)


def test_data_without_end(new_backbone):
    """`repeat()` with `steps_per_epoch`: the first 256 samples are looked at."""
    x, y = reference.data(16)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).repeat()
    model = reference.compiled(*reference.pair(new_backbone), FeatureMap())
    history = model.fit(data, epochs=2, steps_per_epoch=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    expected = reference.scales(model.source, x)
    for tap, scale in model.regularizer.scales.items():
        assert scale == pytest.approx(expected[tap], rel=1e-5)


# --- mixed precision -----------------------------------------------------------


def test_mixed_precision_trains_and_steps_are_not_skipped(new_backbone):
    expected = fitted(new_backbone)
    keras.config.set_dtype_policy("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**8
    )
    model = fitted(new_backbone, optimizer=optimizer)
    assert optimizer.inner_optimizer.iterations.numpy() == 8
    assert model.target.get_layer("conv1").compute_dtype == "float16"
    for name, values in expected.history.items():
        np.testing.assert_allclose(model.history[name], values, rtol=0.02)
    reference.assert_same_weights(model, expected, atol=0.02, rtol=0.02)


def test_mixed_precision_scales_the_loss_by_itself(new_backbone):
    keras.config.set_dtype_policy("mixed_float16")
    x, y = reference.data(8)
    model = reference.compiled(*reference.pair(new_backbone), FeatureMap(0.3))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.fit(x, y, 4, epochs=4, verbose=0)
    # The scale falls until the gradients are finite; then steps are taken.
    assert model.optimizer.inner_optimizer.iterations.numpy() >= 4
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize("variant", ["relative", "code", "article"])
def test_large_half_precision_maps_are_compared_in_float32(variant, new_backbone):
    """The sum of squares is beyond 65504, where float16 ends."""
    keras.config.set_dtype_policy("mixed_float16")
    x, y = reference.data(8)
    target, source = reference.pair(new_backbone)
    for net in (target, source):
        conv = net.get_layer("conv1")
        conv.set_weights([300 * w for w in conv.get_weights()])
        assert conv.compute_dtype == "float16"
    model = reference.compiled(
        target, source, FeatureMap(1e-6, 0.0, variant=variant), rate=0.0
    )
    log = model.fit(x, y, 8, verbose=0).history
    maps = []
    for net in (source, target):
        outputs = [net.get_layer(tap).output for tap in reference.TAPS]
        maps.append(keras.Model(net.inputs, outputs)(x, training=False))
    expected = 0.0
    for s, t in zip(*maps, strict=True):
        assert s.dtype == "float16"
        s, t = np.asarray(s, "float64"), np.asarray(t, "float64")
        scale = {
            "relative": 1 / np.mean(s**2) / s[0].size / 8,
            "code": 0.5,
            "article": 1 / 8,
        }[variant]
        expected += scale * np.sum((t - s) ** 2)
    assert np.sum((t - s) ** 2) > 8 * 65504
    assert log["feature_penalty"][0] == pytest.approx(1e-6 * expected, rel=1e-3)


# --- any user's own model ------------------------------------------------------


def trains(model, x, y, regularizer, eager=True, **kwargs):
    """Fit two epochs; every part of the loss is finite, taps and head count."""
    model.compile(
        keras.optimizers.SGD(0.01),
        LOSS,
        regularizer=regularizer,
        jit_compile=False,
        run_eagerly=eager,
    )
    logs = model.fit(x, y, epochs=2, verbose=0, **kwargs).history
    assert np.isfinite(list(logs.values())).all()
    assert logs["feature_penalty"][-1] > 0 and logs["head_penalty"][-1] > 0
    return logs


def test_a_sequential_target_and_a_snapshot_as_source():
    x, y = reference.data(8)
    target = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="a"),
            keras.layers.ReLU(),
            keras.layers.Conv2D(4, 3, name="b"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="classes"),
        ]
    )
    before = {layer.name: layer.get_weights() for layer in target.layers}
    model = kd.DeltaModel(target, taps=["b"])
    assert model.pairing.new_layers == ["classes"]
    assert "classes" not in [layer.name for layer in model.source.layers]
    trains(model, x, y, Delta(1.0, attention="uniform"))
    for name in ("a", "b"):  # the starting point stays, the target moves
        start = model.source.get_layer(name).get_weights()
        reference.assert_same_weights(start, before[name], atol=0, rtol=0)
        assert np.abs(target.get_layer(name).get_weights()[0] - start[0]).max() > 1e-5


def test_a_snapshot_has_no_distance_at_the_first_step(new_backbone):
    target, _ = reference.pair(new_backbone)
    model = reference.compiled(target, None, [FeatureMap(1.0), L2SP(1.0)], rate=0.0)
    log = model.fit(*reference.data(8), verbose=0).history
    assert log["feature_penalty"] == [0.0]


def test_a_source_with_its_own_head(new_backbone):
    x, y = reference.data(8)
    backbone = new_backbone(size=8)
    source = kd.attach_head(backbone, 1000)
    target = kd.attach_head(backbone, 3)
    model = kd.DeltaModel(target, source=source, taps=["conv2"])
    assert model.pairing.new_layers == ["head"]
    assert model.pairing.unmatched == ["head"]
    trains(model, x, y, [L2SP(0.1), FeatureMap(0.1)])


def nested(backbone, classes=3, name=None):
    """`backbone(x)` inside a model, with preprocessing and a head."""
    inputs = keras.Input(backbone.input_shape[1:])
    x = keras.layers.Rescaling(0.5)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(backbone(x))
    return keras.Model(inputs, keras.layers.Dense(classes, name="classes")(x))


def test_a_nested_backbone_gives_the_same_numbers_as_a_flat_one(new_backbone):
    x, y = reference.data(8)
    found = []
    for nest in (True, False):
        backbone = new_backbone(batch_norm=True, size=8)
        if nest:
            target = nested(backbone)
        else:
            inputs = keras.Input((8, 8, 3))
            x_ = keras.layers.Rescaling(0.5)(inputs)
            for layer in backbone.layers[1:]:
                x_ = layer(x_)
            x_ = keras.layers.GlobalAveragePooling2D()(x_)
            target = keras.Model(inputs, keras.layers.Dense(3, name="classes")(x_))
        rng = np.random.default_rng(3)
        head = target.get_layer("classes")
        head.set_weights([rng.normal(size=w.shape) for w in head.get_weights()])
        model = kd.DeltaModel(target, taps=["conv1", "conv2"])
        assert model.pairing.new_layers == ["classes"]
        logs = trains(model, x, y, [Delta(1.0, attention="uniform"), L2SP()])
        found.append((target.get_weights(), logs))
    reference.assert_same_weights(found[0][0], found[1][0], atol=1e-6)
    for name, values in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], values, rtol=1e-5)


def test_same_named_layers_in_two_branches_are_not_mixed_up(new_backbone):
    """`l2_sp_att` weights the filters of the tapped branch alone."""
    inputs = keras.Input((8, 8, 3))
    left, right = (
        new_backbone(size=8, widths=(4,), seed=i, name=n)
        for i, n in enumerate(("left", "right"))
    )
    x = keras.layers.Concatenate()([left(inputs), right(inputs)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    target = keras.Model(inputs, keras.layers.Dense(3, name="classes")(x))
    model = kd.DeltaModel(target, taps=["right/conv0"])
    weights = [0.7, 0.1, 0.2, 0.0]
    model.compile(
        keras.optimizers.SGD(0.0),
        LOSS,
        regularizer=L2SPAtt(1.0, attention={"right/conv0": weights}),
        run_eagerly=True,
    )
    for branch, name, step in (
        (left, "left_conv0", [0.0, 0.0, 0.0, 1.0]),
        (right, "right_conv0", [1.0, 0.0, 0.0, 0.0]),
    ):
        start = model.source.get_layer(name).kernel
        branch.get_layer("conv0").kernel.assign(start + np.array(step))
    log = model.fit(*reference.data(8), verbose=0).history
    # 27 numbers a filter, one filter a branch; 4 channels times the weight.
    expected = 0.5 * 27 + 0.5 * 27 * 4 * 0.7
    assert log["feature_penalty"][0] == pytest.approx(expected, rel=1e-5)


def test_a_nested_backbone_in_mixed_precision(new_backbone):
    keras.config.set_dtype_policy("mixed_float16")
    x, y = reference.data(8)
    target = nested(new_backbone(batch_norm=True, size=8))
    head = keras.layers.Dense(3, name="classes", dtype="float32")
    target = keras.Model(target.input, head(target.layers[-2].output))
    model = kd.DeltaModel(target, taps=["conv1", "conv2"])
    logits, maps = model.outputs_and_maps(x, training=False)
    np.testing.assert_array_equal(logits, target(x))
    assert {m.dtype for m in maps.values()} == {tf.float16}
    trains(model, x, y, Delta(1.0, attention="uniform"))


def two_inputs(side_shape=(2,)):
    """An image and a vector that joins it behind the pooling."""
    image = keras.Input((8, 8, 3), name="image")
    side = keras.Input(side_shape, name="side")
    x = keras.layers.Conv2D(4, 3, name="conv")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Concatenate()([x, side])
    return image, side, keras.layers.Dense(3, name="classes")(x)


@pytest.mark.parametrize("form", ["list", "dict of a list model", "dict", "tf.data"])
def test_models_with_two_inputs(form):
    x, y = reference.data(8)
    side = np.linspace(0, 1, 16).reshape(8, 2).astype("float32")
    image, vector, logits = two_inputs()
    inputs = {"image": image, "side": vector} if form == "dict" else [image, vector]
    target = keras.Model(inputs, logits)
    model = kd.DeltaModel(target, taps=["conv"])
    given = [x, side] if form == "list" else {"side": side, "image": x}
    if form == "tf.data":
        data = tf.data.Dataset.from_tensor_slices((given, y)).batch(4)
        trains(model, data, None, [FeatureMap(0.1), L2SP(0.1)])
    else:
        terms = [FeatureMap(0.1), L2SP(0.1)]
        trains(model, given, y, terms, eager=form != "dict")
    logits, maps = model.outputs_and_maps(given)
    np.testing.assert_allclose(logits, target(given), atol=1e-6)
    expected = keras.Model(image, target.get_layer("conv").output)(x)
    np.testing.assert_allclose(maps["conv"], expected, atol=1e-6)
    model.evaluate(
        data if form == "tf.data" else given,
        None if form == "tf.data" else y,
        verbose=0,
    )


def test_a_scalar_input_without_its_axis():
    """Keras lets `(B,)` in where the model says `(B, 1)`."""
    x, y = reference.data(8)
    image, side, logits = two_inputs((1,))
    model = kd.DeltaModel(keras.Model([image, side], logits), taps=["conv"])
    trains(model, [x, np.linspace(0, 1, 8)], y, FeatureMap(0.1))


def test_two_outputs_with_two_losses():
    x, y = reference.data(8)
    image = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(4, 3, name="conv")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    outputs = {
        "kind": keras.layers.Dense(3, name="kind")(pooled),
        "size": keras.layers.Dense(1, name="size")(pooled),
    }
    model = kd.DeltaModel(keras.Model(image, outputs), taps=["conv"])
    model.compile(
        "sgd",
        loss={"kind": LOSS, "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.5},
        metrics={"kind": "accuracy"},
        run_eagerly=True,
        regularizer=FeatureMap(0.1),
    )
    labels = {"kind": y, "size": np.ones((8, 1))}
    logs = model.fit(x, labels, verbose=0).history
    parts = logs["task_loss"][0] + logs["feature_penalty"][0] + logs["head_penalty"][0]
    assert logs["loss"][0] == pytest.approx(parts)
    assert "kind_accuracy" in logs
    assert model.predict(x, verbose=0)["size"].shape == (8, 1)


def test_images_are_not_cast_to_half_precision(new_backbone):
    """In mixed precision, raw images keep their last bits until a layer casts."""
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((8, 8, 3), dtype="float32")
    x = keras.layers.Rescaling(1.0, offset=-2048.0, dtype="float32")(inputs)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    target = keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))
    model = kd.DeltaModel(target, taps=["conv"])
    images = np.full((1, 8, 8, 3), 2049, "float32")  # 2048 as a float16
    logits, maps = model.outputs_and_maps(images)
    np.testing.assert_array_equal(logits, target(images))
    np.testing.assert_array_equal(logits, model(images))
    assert np.abs(maps["conv"]).max() > 0
    assert np.abs(model.source_maps(images)["conv"]).max() > 0


@pytest.mark.parametrize("regularizer", ["l2_fe", "feature_map"])
def test_images_as_bytes(regularizer):
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), "uint8")
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    maps = keras.layers.Rescaling(1 / 255)(inputs)
    maps = keras.layers.Conv2D(4, 3, name="conv")(maps)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    model = kd.DeltaModel(keras.Model(inputs, keras.layers.Dense(3)(pooled)))
    model.compile("sgd", LOSS, regularizer=regularizer, run_eagerly=True)
    logs = model.fit(x, np.arange(8) % 3, verbose=0).history
    assert np.isfinite(list(logs.values())).all()


def test_mobilenet_v2_nested_in_a_model():
    x, y = reference.data(4, size=32)
    backbone = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None
    )
    model = kd.DeltaModel(nested(backbone), taps=["block_2_project", "Conv_1"])
    assert model.pairing.new_layers == ["classes"]
    # Not in units of the source's maps, which are tiny with random weights.
    trains(model, x, y, Delta(1e-3, attention="uniform", variant="article"))


def test_a_keras_cv_backbone_nested_in_a_model():
    import keras_cv

    x, y = reference.data(4, size=32)
    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[4, 8],
        stackwise_blocks=[2, 2],
        stackwise_strides=[1, 2],
        include_rescaling=False,
        input_shape=(32, 32, 3),
    )
    model = kd.DeltaModel(nested(backbone))
    assert model.pairing.new_layers == ["classes"] and len(model.taps) >= 2
    trains(model, x, y, Delta(1.0, attention="uniform"))


@pytest.mark.parametrize("by_name", [True, False])
def test_outputs_in_a_list(by_name, new_backbone):
    """Losses and labels by name or in order, as for the target itself."""
    source = new_backbone()
    pooled = keras.layers.GlobalAveragePooling2D()(source.output)
    heads = [keras.layers.Dense(n, name=name)(pooled) for name, n in SIZES.items()]
    target = keras.Model(source.input, heads)
    losses = {"kind": LOSS, "size": "mse"}
    labels = {"kind": np.arange(8) % 3, "size": np.linspace(0, 1, 8)[:, None]}
    x = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
    found = []
    for model in (target, kd.DeltaModel(target, source=source)):
        given = (
            (losses, labels)
            if by_name
            else map(list, map(dict.values, (losses, labels)))
        )
        loss, y = given
        model.compile(keras.optimizers.SGD(0.0), loss)
        found.append(model.evaluate(x, y, verbose=0, return_dict=True))
    assert found[0].keys() <= found[1].keys()
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5)
    history = model.fit(x, y, verbose=0, regularizer="l2_sp").history
    assert history["task_loss"][0] == pytest.approx(found[0]["loss"], rel=1e-4)


SIZES = {"kind": 3, "size": 1}
