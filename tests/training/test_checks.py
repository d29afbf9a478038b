"""Bad input: refused early, in whole sentences that say what to do."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta._inputs import outputs
from keras_delta._inputs.training_data import TrainingData
from keras_delta._network.graph import Graph
from keras_delta._training import checks

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def make(new_backbone):
    """`make(scope=None, compile...)`: a compiled model of three classes."""

    def build(scope=None, activation=None, optimizer=None, loss=SPARSE, **options):
        with scope or contextlib.nullcontext():
            source = new_backbone()
            target = kd.attach_head(source, 3, activation=activation)
            model = kd.DeltaModel(target, source)
            options = {"run_eagerly": not options.get("jit_compile"), **options}
            model.compile(optimizer or keras.optimizers.SGD(0.1), loss, **options)
        return model

    return build


def refusal(call, *args, kind=ValueError, **kwargs):
    with pytest.raises(kind) as e:
        call(*args, **kwargs)
    return str(e.value)


# Labels --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "low", "high"), [(3, 0, 3), (-1, -1, 2)], ids=["above", "below"]
)
@pytest.mark.parametrize("form", ["arrays", "column", "dataset"])
def test_labels_outside_of_the_classes(make, images, wrong, low, high, form):
    x, y = images
    y = np.where(y == 1, wrong, y)
    data = {
        "arrays": (x, y),
        "column": (x, y[:, None]),
        "dataset": (tf.data.Dataset.from_tensor_slices((x, y)).batch(8),),
    }[form]
    remedy = (
        "Classes count from 0. If -1 stands for no class, use `keras.losses."
        "SparseCategoricalCrossentropy(from_logits=..., ignore_class=-1)`."
        if low < 0
        else "Check the label encoding, or give the target a head with "
        f"`attach_head(source, classes={high + 1})`."
    )
    assert refusal(make().fit, *data) == (
        f"The labels run from {low} to {high}, but the head has 3 classes, 0 to 2. "
        f"{remedy}"
    )


def test_labels_of_another_form_than_the_loss_takes(make, images):
    x, y = images
    hot = np.eye(3)[y]
    dense = make(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    assert refusal(make().fit, x, hot) == (
        "The loss SparseCategoricalCrossentropy needs integer labels, but these look "
        "one-hot: their shape is (8, 3). Use CategoricalCrossentropy, or "
        "`y.argmax(axis=-1)`."
    )
    assert refusal(dense.fit, x, y) == (
        "The loss CategoricalCrossentropy needs one-hot labels (batch, 3), but the "
        "labels have the shape (8,). Use SparseCategoricalCrossentropy for integer "
        "labels, or `keras.utils.to_categorical(y, 3)`."
    )
    assert "(batch, 3)" in refusal(dense.fit, x, np.eye(5)[y])
    for wrong, shown in (
        (y + 0.5, "float64 such as [0.5, 1.5, 2.5]"),
        (np.where(y == 1, np.nan, y), "float64 such as [0.0, nan, 2.0]"),
        (y.astype(str), "<U21 such as ['0', '1', '2']"),
    ):
        assert refusal(make().fit, x, wrong) == (
            f"Labels must be integers from 0 to 2. Received: an array of {shown}. "
            "Number the classes, e.g. with `np.unique(y, return_inverse=True)`."
        )
    make().fit(x, y.astype("float32"), verbose=0)  # whole numbers will do, as in Keras


# Images --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_images_of_another_size(make, images, form):
    """The flat graph would take any size; the Keras model does not."""
    x, y = images
    data = {
        "arrays": (x[:, :8], y),
        "dataset": (tf.data.Dataset.from_tensor_slices((x[:, :8], y)).batch(8),),
    }[form]
    side = x.shape[1]
    assert refusal(make(regularizer="feature_map").fit, *data) == (
        f"Invalid shape for the input 'image'. Expected (None, {side}, {side}, 3). "
        f"Received: (8, 8, {side}, 3). Resize the images to the model's `input_shape`, "
        "and pass them in batches."
    )


def test_images_without_a_batch_axis(make, images):
    x, y = images
    unbatched = tf.data.Dataset.from_tensor_slices((x, y))
    assert "pass them in batches" in refusal(make().fit, unbatched)
    assert "pass them in batches" in refusal(make().fit, x[0], y[:1])


def test_images_that_are_no_numbers(make, images):
    x, y = images
    x = x.copy()
    x[3, 0, 0, 0] = np.nan
    assert refusal(make(regularizer="l2_sp").fit, x, y) == (
        "The input 'image' holds values that are not finite (NaN or infinite). Check "
        "how the images were decoded and scaled."
    )


def test_small_pixels_where_raw_ones_are_scaled_inside(backbone, images):
    x, y = images
    raw = keras.Sequential(
        [keras.Input(x.shape[1:]), keras.layers.Rescaling(1 / 255), backbone]
    )
    model = kd.DeltaModel(kd.attach_head(raw, 3), raw)
    model.compile("sgd", SPARSE, run_eagerly=True)
    x = (x - x.min()) / (x.max() - x.min())
    with pytest.warns(UserWarning) as caught:
        model.fit(x, y, verbose=0)
    assert str(caught[0].message) == (
        "The images lie between 0 and 1, but the model itself scales raw images of 0 "
        "to 255. Pass them as they come from the file, without dividing by 255."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(255 * x, y, verbose=0)


def test_a_missing_loss_is_found_before_attention(make, images):
    model = make(loss=None)
    assert refusal(model.fit, *images, regularizer="delta") == (
        "No loss to compute. Provide a `loss` argument in `compile()`."
    )
    assert model.regularizer.computed_attention is None


def test_labels_are_looked_at_before_anything_is_computed(make, images):
    model = make(regularizer="delta")
    refusal(model.fit, images[0], images[1] + 9)
    assert model.regularizer.computed_attention is None


def test_an_ignored_class_is_no_label(make, images):
    x, y = images
    loss = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255)
    model = make(loss=loss)
    checks.data_fits(model, TrainingData(x, np.where(y == 0, 255, y)))
    wrong = TrainingData(x, np.where(y == 1, 254, y))
    assert "run from 0 to 254" in refusal(checks.data_fits, model, wrong)


def test_one_class_only(make, images):
    x, y = images
    assert refusal(make().fit, x, 0 * y + 2) == (
        "All 8 training samples have the label 2: with a single class, a classifier "
        "has nothing to distinguish. Pass data of two or more classes."
    )


def test_one_class_in_the_first_batch_is_no_accident_to_refuse(make, images):
    x, y = images
    data = tf.data.Dataset.from_tensor_slices((x, 0 * y)).batch(2)
    checks.data_fits(make(), TrainingData(data, None, None))


# Data ----------------------------------------------------------------------------


def test_no_samples(make, images):
    x, y = images
    text = "The training data is empty: `x` has no samples."
    assert refusal(make().fit, x[:0], y[:0]) == text
    assert refusal(make().fit, [], []) == text


def test_a_dataset_without_batches(make, images):
    data = tf.data.Dataset.from_tensor_slices(images).filter(lambda x, y: False)
    assert refusal(make().fit, data.batch(4)) == (
        "The training data is empty: the tf.data.Dataset has no batch. Check the "
        "folder or the filters it was made from."
    )


def test_an_attention_file_that_is_damaged(make, tmp_path):
    path = tmp_path / "attention.json"
    path.write_text('{"format": ')
    model = make()
    text = refusal(
        model.set_regularizer,
        {"class_name": "delta", "config": {"attention": str(path)}},
    )
    assert text.startswith(
        f"The attention file '{path}' cannot be used: expected JSON (Expecting value"
    )
    assert model.regularizer is None


# Loss and head -------------------------------------------------------------------


def graph_of(activation):
    return Graph(
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation)])
    )


@pytest.mark.parametrize(
    ("loss", "name", "remedy", "activation"),
    [
        (
            "sparse_categorical_crossentropy",
            "sparse_categorical_crossentropy",
            "SparseCategoricalCrossentropy",
            "softmax",
        ),
        (
            "categorical_crossentropy",
            "categorical_crossentropy",
            "CategoricalCrossentropy",
            "softmax",
        ),
        (
            "binary_crossentropy",
            "binary_crossentropy",
            "BinaryCrossentropy",
            "sigmoid",
        ),
        (
            keras.losses.sparse_categorical_crossentropy,
            "sparse_categorical_crossentropy",
            "SparseCategoricalCrossentropy",
            "softmax",
        ),
        *(
            (getattr(keras.losses, name)(), name, name, activation)
            for name, activation in (
                ("SparseCategoricalCrossentropy", "softmax"),
                ("CategoricalCrossentropy", "softmax"),
                ("CategoricalFocalCrossentropy", "softmax"),
                ("BinaryCrossentropy", "sigmoid"),
                ("BinaryFocalCrossentropy", "sigmoid"),
            )
        ),
    ],
)
def test_probabilities_expected_and_logits_given(loss, name, remedy, activation):
    assert refusal(outputs.check_heads, loss, graph_of(None)) == (
        f"The loss {name} expects probabilities (from_logits=False), but the head "
        f"outputs logits. Use `keras.losses.{remedy}(from_logits=True)`, or give the "
        f"head the activation '{activation}'."
    )
    assert getattr(keras.losses, remedy)(from_logits=True).from_logits
    outputs.check_heads(loss, graph_of(activation))


@pytest.mark.parametrize(
    "name",
    [
        "SparseCategoricalCrossentropy",
        "CategoricalCrossentropy",
        "CategoricalFocalCrossentropy",
        "BinaryCrossentropy",
        "BinaryFocalCrossentropy",
    ],
)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_logits_expected_and_probabilities_given(name, activation):
    loss = getattr(keras.losses, name)(from_logits=True)
    assert refusal(outputs.check_heads, loss, graph_of(activation)) == (
        f"The loss {name} has from_logits=True, but the head already ends in a "
        f"{activation}. Use from_logits=False, or a head without activation."
    )
    outputs.check_heads(loss, graph_of(None))


def test_compile_looks_at_the_loss(make):
    refusal(make, loss="sparse_categorical_crossentropy")
    refusal(make, loss=SPARSE, activation="softmax")
    make(loss="sparse_categorical_crossentropy", activation="softmax")


@pytest.mark.parametrize("loss", ["mse", None, lambda y, p: 0.0, {"a": "mse"}])
def test_other_losses_fit_every_head(loss):
    outputs.check_heads(loss, graph_of(None))
    outputs.check_heads(loss, graph_of("softmax"))


# Strategies ----------------------------------------------------------------------


def averaging(frequency):
    return keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=frequency)


@pytest.mark.parametrize(
    ("options", "name", "remedy"),
    [
        (lambda: {"jit_compile": True}, "jit_compile=True", "jit_compile=False"),
        (
            lambda: {
                "optimizer": keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
            },
            "gradient_accumulation_steps=2",
            "a larger batch",
        ),
        (
            lambda: {"optimizer": averaging(2)},
            "ema_overwrite_frequency=2",
            "ema_overwrite_frequency=None",
        ),
    ],
)
def test_what_does_not_run_on_replicas(strategy, make, images, options, name, remedy):
    with strategy.scope():
        options_there = options()
    model = make(strategy.scope(), **options_there)
    assert refusal(model.fit, *images, batch_size=4) == (
        f"Keras cannot run `{name}` on 2 replicas under MirroredStrategy. Use "
        f"{remedy}, or train on one device."
    )
    assert name in refusal(model.train_on_batch, *images)
    single = make(**options())
    checks.strategy_supports(single)  # all of it runs on one device


def test_averages_without_overwriting_run_on_replicas(strategy, make):
    with strategy.scope():
        optimizer = averaging(None)
    checks.strategy_supports(make(strategy.scope(), optimizer=optimizer))


def test_losses_that_cannot_be_put_together_on_replicas(strategy, make, images):
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=None)
    model = make(strategy.scope(), loss=loss)
    assert refusal(model.fit, *images, batch_size=4) == (
        "On several replicas, losses with reduction=['None'] cannot be combined into "
        "the loss of the whole batch. Use reduction='sum_over_batch_size', or 'sum' "
        "for all losses."
    )
    checks.strategy_supports(make(loss=loss))


def test_a_batch_smaller_than_the_replicas(strategy, make, images):
    x, y = images
    text = (
        "The batch has 1 sample(s) for 2 replicas. Use a batch size of at least 2: it "
        "is split among them."
    )
    model = make(strategy.scope())
    assert refusal(model.fit, x, y, batch_size=1) == text
    data = tf.data.Dataset.from_tensor_slices((x, y))
    assert refusal(model.fit, data.batch(1)) == text
    checks.data_fits(model, TrainingData(x, y, 2))
    checks.data_fits(make(), TrainingData(x, y, 1))


def test_a_target_built_outside_of_the_scope(strategy, new_backbone):
    source = new_backbone()
    target = kd.attach_head(source, 3)
    text = (
        "The target was built outside of the scope of MirroredStrategy. Build and "
        "compile source, target and DeltaModel inside `with strategy.scope():`."
    )
    with strategy.scope():
        assert refusal(kd.DeltaModel, target, source) == text


def test_a_model_built_outside_of_the_scope(strategy, make, images):
    model = make()
    with strategy.scope():
        assert refusal(model.fit, *images) == (
            "The target was built outside of the scope of MirroredStrategy. Build "
            "and compile source, target and DeltaModel inside "
            "`with strategy.scope():`."
        )


def test_a_model_of_another_scope(strategy, make, images):
    model = make(strategy.scope())
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        assert refusal(model.fit, *images) == (
            "The DeltaModel was built outside of the scope of OneDeviceStrategy. Build "
            "and compile source, target and DeltaModel inside "
            "`with strategy.scope():`."
        )


def test_a_source_built_outside_of_the_scope_is_copied_into_it(strategy, new_backbone):
    source = new_backbone()
    with strategy.scope():
        model = kd.DeltaModel(kd.attach_head(source, 3), source)
    created = strategy.extended.variable_created_in_scope
    assert all(created(v.value) for v in model.source.variables)


def test_a_target_of_the_scope_used_outside_of_it(strategy, new_backbone):
    """The scope has to be entered again for the model."""
    with strategy.scope():
        source = new_backbone()
        target = kd.attach_head(source, 3)
    text = refusal(kd.DeltaModel, target, source)
    assert text.startswith("The target was built ") and "strategy.scope()" in text


def test_keras_distribution_is_refused(monkeypatch, new_backbone):
    monkeypatch.setattr(keras.distribution, "distribution", object)
    source = new_backbone()
    assert refusal(kd.DeltaModel, source, source) == (
        "keras.distribution is set, but Keras's TensorFlow backend does not support "
        "it: every variable stays on one device. Use "
        "`tf.distribute.MirroredStrategy` and unset it with "
        "`keras.distribution.set_distribution(None)`."
    )


# BatchNorm -----------------------------------------------------------------------


def test_statistics_that_cannot_follow(bn_backbone, images):
    """Momentum 0.99 leaves .99^12 = 89 % of the old statistics after 12 steps."""
    target = kd.attach_head(bn_backbone, 3, batch_norm_momentum=None)
    model = kd.DeltaModel(target, bn_backbone)
    steps = TrainingData(images[0], None, 2).count_steps(3, None)
    assert steps == 12
    with pytest.warns(UserWarning) as caught:
        checks.batch_norm_keeps_up(model, steps)
    assert str(caught[0].message) == (
        "BatchNormalization has momentum 0.99: after the 12 steps of this training, "
        "89% of its moving statistics are still the initial ones, and `evaluate` and "
        "`predict` use them with changed weights. On few images this costs much "
        "accuracy. Give the layers the momentum 0.9, as `attach_head` does, or "
        "train for more steps."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.batch_norm_keeps_up(model, 161)  # .99^161 = .198
        checks.batch_norm_keeps_up(model, None)
        usual = kd.DeltaModel(kd.attach_head(bn_backbone, 3), bn_backbone)
        checks.batch_norm_keeps_up(usual, 1)
        model.set_regularizer("l2_fe")
        checks.batch_norm_keeps_up(model, 12)


def test_number_of_steps(images):
    x = images[0]
    data = tf.data.Dataset.from_tensor_slices(x).batch(3)
    assert TrainingData(x, None, None).count_steps(2, None) == 2
    assert TrainingData({"a": x, "b": x}, None, 3).count_steps(2, None) == 6
    assert TrainingData(data, None, None).count_steps(2, None) == 6
    assert TrainingData(data.repeat(), None, None).count_steps(2, None) is None
    assert TrainingData(data.repeat(), None, None).count_steps(2, 5) == 10
    assert TrainingData((v for v in x), None, None).count_steps(2, None) is None
