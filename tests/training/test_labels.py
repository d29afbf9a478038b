"""Labels that a loss cannot be computed from end in our words, before any step."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_delta as kd
from keras_delta import _tasks
from keras_delta._inputs import labels, outputs
from keras_delta._network.graph import Graph

KERAS = {
    name
    for name, kind in vars(keras.losses).items()
    if inspect.isclass(kind) and kind is not keras.losses.Loss
}
INTEGERS = np.array([0, 1, 2, 1])
HOT = np.eye(3)[INTEGERS]
MANY = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
SOFT = np.full((4, 3), 1 / 3)


def test_the_table_has_every_loss_of_keras_under_both_names():
    assert set(_tasks.LOSSES) == KERAS
    for name in KERAS:
        assert _tasks.class_name(getattr(keras.losses, name)()) == name
        functions = [
            f
            for f in vars(keras.losses).values()
            if inspect.isfunction(f) and _tasks.class_name(f) == name
        ]
        assert functions, name  # one, at least, under its old or new name
    for text in ("mse", "MAE", "binary_crossentropy", "kl_divergence", "Huber"):
        assert _tasks.of_loss(text) is not None

    class BinaryCrossentropy(keras.losses.Loss):  # a user's own
        def call(self, y_true, y_pred):
            return y_pred

    for loss in (None, "no_loss", lambda y, p: p, BinaryCrossentropy()):
        assert _tasks.of_loss(loss) is None


FORMS = {
    _tasks.INTEGERS: ([INTEGERS, INTEGERS[:, None], INTEGERS.astype("float32")], [HOT]),
    _tasks.SHARES: ([HOT, SOFT], [INTEGERS, MANY, 5 * HOT, -HOT]),
    _tasks.BITS: ([MANY, HOT, SOFT], [INTEGERS, 255 * MANY, 2 * MANY - 1, MANY[:, :1]]),
    _tasks.SIGNS: ([2 * MANY - 1, MANY], [3 * MANY, MANY + 1, INTEGERS]),
    _tasks.NUMBERS: ([7.5 * MANY, -HOT], [INTEGERS, MANY[:, :1], MANY[:, :2]]),
    _tasks.POSITIVE: ([7.5 * MANY], [-HOT, INTEGERS]),
    _tasks.ANY: ([INTEGERS, MANY], []),
}


@pytest.mark.parametrize("name", sorted(KERAS))
def test_each_loss_takes_its_labels_and_refuses_others(name):
    loss = getattr(keras.losses, name)()
    right, wrong = FORMS[_tasks.of_loss(loss).labels]
    for y in right:
        labels.check(y, (None, 3), loss, complete=True)
    for y in wrong:
        with pytest.raises(ValueError, match=name):
            labels.check(y, (None, 3), loss)
    for y in (right[0] * np.nan, np.array(["a", "b", "c"])):
        with pytest.raises(ValueError, match=r"abels.*(numbers|missing|integers)"):
            labels.check(y, (None, 3), loss)
    if _tasks.of_loss(loss).labels in (_tasks.BITS, _tasks.SIGNS, _tasks.NUMBERS):
        labels.check(np.array([0, 1, 1, 0]), (None, 1), loss)  # (B,) for (B, 1)
        labels.check(MANY[:, :1], (None, 1), loss)


@pytest.mark.parametrize(
    ("y", "shape", "loss", "remedy"),
    [
        (255 * MANY[:, :1], 1, "binary_crossentropy", "divide by 255"),
        (INTEGERS[:2] + 1, 1, "binary_crossentropy", "subtract 1"),
        (INTEGERS, 1, "binary_crossentropy", r"classes=3\)"),
        (2 * MANY - 1, 3, "binary_crossentropy", r"\(y \+ 1\) / 2"),
        (INTEGERS, 3, "binary_crossentropy", "SparseCategorical"),
        (MANY, 3, "categorical_crossentropy", "use BinaryCrossentropy"),
        (INTEGERS + 1, 3, "sparse_categorical_crossentropy", "subtract 1"),
        (INTEGERS, 1, "sparse_categorical_crossentropy", "one unit"),
        (MANY[:, :2], 4, "sparse_categorical_crossentropy", "0 and 1 for each label"),
    ],
)
def test_remedies(y, shape, loss, remedy):
    with pytest.raises(ValueError, match=remedy):
        labels.check(y, (None, shape), loss)


def test_labels_of_maps():
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ignoring = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255)
    masks = np.random.default_rng(0).integers(0, 3, (2, 8, 8))
    labels.check(masks, (None, 8, 8, 3), sparse, complete=True)
    labels.check(0 * masks, (None, 8, 8, 3), sparse, complete=True)  # no class here
    labels.check(masks[..., None], (None, None, None, 3), sparse)
    for ignored in (255, -1):
        edge = masks.copy()
        edge[:, 0] = ignored
        with pytest.raises(ValueError, match=f"ignore_class={ignored}"):
            labels.check(edge, (None, 8, 8, 3), sparse)
        if ignored == 255:
            labels.check(edge, (None, 8, 8, 3), ignoring)
    for wrong in (masks[:, :4], masks[:, 0, 0]):
        with pytest.raises(ValueError, match=r"Resize"):
            labels.check(wrong, (None, 8, 8, 3), sparse)
    with pytest.raises(ValueError, match=r"Resize the masks"):
        labels.check(masks[:, :4, :, None] > 0, (None, 8, 8, 1), "binary_crossentropy")


@pytest.mark.parametrize(
    ("loss", "width", "activation", "task"),
    [
        ("sparse_categorical_crossentropy", 3, None, "multiclass"),
        ("categorical_hinge", 3, None, "multiclass"),
        ("binary_crossentropy", 3, "sigmoid", "multilabel"),
        ("binary_crossentropy", 1, None, "binary"),
        ("binary_crossentropy", 3, "softmax", "multiclass"),
        ("mse", 2, None, "regression"),
        ("mse", 3, "softmax", "multiclass"),
        ("mse", 1, "sigmoid", None),
        ("hinge", 1, None, None),
        (None, 3, "softmax", "multiclass"),
        (None, 3, "sigmoid", "multilabel"),
        (None, 1, "sigmoid", "binary"),
        (None, 3, "linear", None),
        (lambda y, p: p, 3, "softmax", None),
    ],
)
def test_task_of_an_output(loss, width, activation, task):
    assert _tasks.of_output(loss, (None, width), activation) == task


def test_task_of_maps():
    shape = None, 8, 8, 3
    assert _tasks.of_output("binary_crossentropy", shape, "sigmoid") == "dense"


# Through `fit` -------------------------------------------------------------------


def two_heads(backbone):
    x = layers.GlobalAveragePooling2D()(backbone.output)
    heads = {n: layers.Dense(w, name=n)(x) for n, w in {"a": 3, "b": 2}.items()}
    return keras.Model(backbone.input, heads)


def compiled(target, loss, backbone, **kwargs):
    model = kd.DeltaModel(target, source=backbone)
    model.compile("sgd", loss, run_eagerly=True, **kwargs)
    return model


SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


def test_each_output_is_looked_at(backbone, images):
    x, y = images
    model = compiled(two_heads(backbone), {"a": SPARSE, "b": SPARSE}, backbone)
    model.fit(x, {"a": y, "b": y % 2}, verbose=0)
    with pytest.raises(ValueError, match=r"'b' run from 0 to 2, but the head has 2"):
        model.fit(x, {"a": y, "b": y}, verbose=0)
    with pytest.raises(ValueError, match=r"'b'"):
        model.fit(x, {"a": y}, verbose=0)
    with pytest.raises(ValueError, match=r"2 outputs, but the data has 1"):
        model.fit(x, y, verbose=0)
    # The loss of an output is held against the head of that output.
    with pytest.raises(ValueError, match=r"'b' has one unit|'b' expects probabilities"):
        compiled(two_heads(backbone), {"b": "binary_crossentropy"}, backbone)


@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_data_without_labels(backbone, images, form):
    x, _ = images
    data = x if form == "arrays" else tf.data.Dataset.from_tensor_slices(x).batch(4)
    model = compiled(kd.attach_head(backbone, 3), SPARSE, backbone)
    with pytest.raises(ValueError, match=r"no labels.*pairs"):
        model.fit(data, verbose=0)


def test_wrong_labels_for_validation_show_before_the_first_epoch(backbone, images):
    x, y = images
    model = compiled(kd.attach_head(backbone, 3), SPARSE, backbone)
    for validation in (
        (x, y + 1),
        tf.data.Dataset.from_tensor_slices((x, y + 1)).batch(4),
    ):
        with pytest.raises(ValueError, match=r"run from 1 to 3"):
            model.fit(x, y, validation_data=validation, verbose=0)
    assert model.optimizer.iterations == 0
    model.fit(x, y, validation_data=(x[:1], y[:1]), verbose=0)  # one class will do


def test_a_wrong_label_in_a_later_batch_is_explained(backbone, images):
    x, y = images
    y = np.where(np.arange(8) == 7, 9, y)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    model = compiled(kd.attach_head(backbone, 3), SPARSE, backbone)
    with pytest.raises(ValueError, match=r"the label 9, but the head has 3 classes"):
        model.fit(data, verbose=0)


@pytest.mark.parametrize(
    ("task", "units", "loss", "y"),
    [
        ("binary", 1, BINARY, np.arange(8) % 2),
        (None, 1, BINARY, np.arange(8)[:, None] % 2),
        ("multilabel", 3, BINARY, np.arange(24).reshape(8, 3) % 2),
        ("regression", 1, "mse", np.arange(8) / 3),
        ("regression", 2, "huber", np.ones((8, 2))),
        ("multiclass", 3, SPARSE, np.arange(8) % 3),
    ],
)
@pytest.mark.parametrize("regularizer", ["delta", "l2_fe"])
def test_every_task_trains(backbone, images, task, units, loss, y, regularizer):
    target = kd.attach_head(backbone, units, task=task)
    model = compiled(target, loss, backbone)
    history = model.fit(images[0], y, regularizer=regularizer, verbose=0).history
    assert 0 <= history["loss"][0] < np.inf


def test_heads_that_a_task_cannot_have(backbone):
    for task, units in (("multiclass", 1), ("binary", 2), ("ordinal", 3), (None, 0)):
        with pytest.raises(ValueError, match=r"task|classes"):
            kd.attach_head(backbone, units, task=task)
    for loss in (SPARSE, "categorical_crossentropy"):
        with pytest.raises(ValueError, match=r"one unit.*BinaryCrossentropy"):
            outputs.check_heads(loss, Graph(kd.attach_head(backbone, 1)))


def test_a_head_on_an_old_classifier_is_refused(backbone):
    old = kd.attach_head(backbone, 10, activation="softmax")
    with pytest.raises(ValueError, match=r"include_top=False.*layers\[-2\]"):
        kd.attach_head(old, 3)
    rest = keras.Model(old.inputs, old.layers[-2].output)
    assert kd.attach_head(rest, 3).output.shape == (None, 3)


@pytest.mark.parametrize(
    ("units", "activation", "threshold"),
    [(3, None, "0"), (3, "sigmoid", "0.5"), (1, None, "0")],
)
def test_keras_would_count_another_accuracy(backbone, units, activation, threshold):
    target = kd.attach_head(backbone, units, activation=activation)
    loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
    with pytest.warns(UserWarning, match=rf"BinaryAccuracy\(threshold={threshold}\)"):
        compiled(target, loss, backbone, metrics=["accuracy"])


TASKS = {
    "multiclass": (3, SPARSE, np.arange(8) % 3),
    "multilabel": (3, BINARY, np.arange(24).reshape(8, 3) % 2),
    "binary": (1, BINARY, np.arange(8) % 2),
    "regression": (2, "mse", np.arange(16).reshape(8, 2) / 16),
}


@pytest.mark.parametrize("task", [*TASKS, "dense"])
@pytest.mark.parametrize("how", ["ema", "mixed_float16", "jit_compile"])
def test_every_task_trains_with_what_keras_offers(new_backbone, images, task, how):
    if how == "mixed_float16":
        keras.config.set_dtype_policy(how)
    backbone = new_backbone(size=8, widths=(3, 4))
    x, average = images[0][:, ::2, ::2], how == "ema"
    if task == "dense":
        loss, y = SPARSE, np.arange(8 * 16).reshape(8, 4, 4) % 3
        head = layers.Conv2D(3, 1, dtype="float32", name="head")(backbone.output)
        target = keras.Model(backbone.input, head)
    else:
        units, loss, y = TASKS[task]
        target = kd.attach_head(backbone, units)
    model = kd.DeltaModel(target, source=backbone)
    optimizer = keras.optimizers.SGD(0.05, use_ema=average, ema_momentum=0.5)
    jit = how == "jit_compile"
    model.compile(optimizer, loss, run_eagerly=not jit, jit_compile=jit)
    uniform = kd.regularizers.Delta(1.0, 0.01, attention="uniform")
    history = model.fit(x, y, 4, epochs=3, regularizer=uniform, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["feature_penalty"][-1] > 0
    assert history["task_loss"][-1] < history["task_loss"][0]
    assert np.isfinite(model.evaluate(x, y, verbose=0)).all()
