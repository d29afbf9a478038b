"""The head drawn again: when, which values, and what else stays."""

import keras
import model_reference as reference
import numpy as np
import pytest

from keras_delta import DeltaModel, attach_head
from keras_delta.callbacks import Rifle
from keras_delta.callbacks.rifle import forget, redraws
from keras_delta.optimizers import LayerwiseSGD
from keras_delta.regularizers import L2

X, Y = reference.learnable_data(8)


def make(new_backbone, optimizer=None, **kwargs):
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    pair = reference.pair(new_backbone)
    kwargs = {"run_eagerly": True, "optimizer": optimizer, **kwargs}
    return reference.compiled(*pair, L2(0.01, 0.01), **kwargs)


def fit(model, *callbacks, epochs=6, **kwargs):
    """Two steps an epoch, in the order of the data."""
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs)


def head_of(model):
    return [w.copy() for w in model.target.get_layer("head").get_weights()]


class Heads(keras.callbacks.Callback):
    """The head as each epoch begins, behind Rifle, and as it ends."""

    def on_train_begin(self, logs=None):
        self.begin, self.end = {}, {}

    def on_epoch_begin(self, epoch, logs=None):
        self.begin[epoch] = head_of(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.end[epoch] = head_of(self.model)


def alone(model, seed, epoch):
    """What is drawn, from the description: kernel N(0, 2 / n), bias N(0, 2 / C)."""
    rng = np.random.default_rng([seed, epoch, 0])
    kernel, bias = (w.shape for w in head_of(model))
    return [
        rng.normal(0, (2 / kernel[0]) ** 0.5, kernel).astype("float32"),
        rng.normal(0, (2 / bias[0]) ** 0.5, bias).astype("float32"),
    ]


def draw(model, rifle, epoch=4):
    """As one of eight epochs begins."""
    rifle.set_model(model)
    rifle.set_params({"epochs": 8})
    rifle.on_epoch_begin(epoch)


def assert_same(a, b):
    for v, w in zip(a, b, strict=True):
        np.testing.assert_array_equal(v, w)


@pytest.mark.parametrize(
    "epochs, cycles, expected",
    [
        (40, 2, [20]),
        (40, 3, [13, 26]),
        (40, 4, [10, 20, 30]),
        (12, 3, [4, 8]),  # 8 = 12 - 4 is not later
        (11, 3, [3, 6]),  # 9 is
        (8, 2, [4]),
        (7, 2, [3]),
        (6, 2, []),
        (4, 2, []),
        (2, 3, []),
    ],
)
def test_epochs(epochs, cycles, expected):
    assert redraws(epochs, cycles) == expected


def test_it_draws_as_those_epochs_begin(new_backbone):
    model, heads, rifle = make(new_backbone), Heads(), Rifle(4, seed=3)
    fit(model, rifle, heads, epochs=9)  # 9 // 4 = 2: after 2 and 4, 6 > 9 - 4
    assert rifle.drawn == [2, 4]
    for epoch in range(1, 9):
        if epoch in rifle.drawn:
            assert_same(heads.begin[epoch], alone(model, 3, epoch))
        else:
            assert_same(heads.begin[epoch], heads.end[epoch - 1])
        assert not np.array_equal(heads.end[epoch][0], heads.begin[epoch][0])


def test_moments(new_backbone):
    """Kernel 4 x 2000 with std sqrt(2 / 4), bias of 2000 with std sqrt(2 / 2000)."""
    source = new_backbone(size=8, widths=(3, 4))
    model = DeltaModel(attach_head(source, 2000), source=source)
    draw(model, Rifle(2))
    kernel, bias = head_of(model)
    for values, std in ((kernel, (2 / 4) ** 0.5), (bias, (2 / 2000) ** 0.5)):
        assert abs(values.mean()) < 4 * std / values.size**0.5
        assert values.std() == pytest.approx(std, rel=4 / (2 * values.size) ** 0.5)
    normal = np.abs(kernel) < (2 / 4) ** 0.5  # 68.27 % within one std
    assert normal.mean() == pytest.approx(0.6827, abs=0.03)
    assert abs(np.corrcoef(kernel[0], kernel[1])[0, 1]) < 0.1


def test_draws_follow_from_seed_and_epoch(new_backbone):
    drawn = {}
    for seed, epoch in ((0, 4), (0, 4), (1, 4), (0, 2)):
        model = make(new_backbone)
        draw(model, Rifle(4, epochs=9, seed=seed), epoch)
        drawn.setdefault((seed, epoch), []).append(head_of(model)[0])
    np.testing.assert_array_equal(*drawn.pop((0, 4)))
    draw(model, Rifle(4, epochs=9), 4)
    heads = [head_of(model)[0], *(v[0] for v in drawn.values())]
    for i, a in enumerate(heads):
        assert all(np.abs(a - b).max() > 0.1 for b in heads[:i])


def test_a_resumed_training_ends_the_same(new_backbone, tmp_path):
    whole, model = make(new_backbone), make(new_backbone)
    fit(whole, Rifle(2), epochs=8)
    fit(model, Rifle(2, epochs=8), epochs=4)
    model.save(tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras")
    rifle = Rifle(2)
    fit(model, rifle, epochs=8, initial_epoch=4)
    assert rifle.drawn == [4]
    reference.assert_same_weights(model, whole, atol=1e-6)


def test_an_optimizer_that_names_layers(new_backbone):
    """Those that are not drawn again are known to it as well."""
    names = {"conv0": 0.1, "head": 2.0}
    optimizer = LayerwiseSGD(0.05, 0.9, multipliers=names)
    model = make(new_backbone, optimizer)
    fit(model, epochs=1)
    slots = {v.path: v.numpy() for v in optimizer.momentums}
    forget(optimizer, model.target.get_layer("head").trainable_variables)
    for v in optimizer.momentums:
        kept = 0 if "head" in v.path else 1
        np.testing.assert_array_equal(v, kept * slots[v.path])


def test_two_replicas_draw_the_same(strategy, new_backbone):
    one = make(new_backbone)
    with strategy.scope():
        two = make(new_backbone)
        two.optimizer.build(two.trainable_variables)
    draw(one, Rifle(2))
    draw(two, Rifle(2, reset_optimizer=True))
    assert_same(head_of(one), head_of(two))
    for v in two.target.get_layer("head").weights:
        a, b = (w.numpy() for w in strategy.experimental_local_results(v.value))
        np.testing.assert_array_equal(a, b)


def slots(optimizer, of_head):
    """The optimizer's state of the head, or of the rest."""
    return [
        v.numpy()
        for v in optimizer.variables
        if ("head" in v.path.split("/")[-1]) == of_head and v.shape != ()
    ]


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        lambda: keras.optimizers.Adam(0.01, amsgrad=True),
        lambda: keras.optimizers.Adagrad(0.01, initial_accumulator_value=0.3),
        lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.05, momentum=0.9)
        ),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_momentum(reset, make_optimizer, new_backbone):
    model = make(new_backbone, make_optimizer())
    fit(model, epochs=4)
    begin = make(new_backbone, make_optimizer())
    begin.optimizer.build(begin.trainable_variables)
    head, rest = slots(model.optimizer, True), slots(model.optimizer, False)
    assert head and rest and all(np.abs(v).max() > 0 for v in head)
    fresh = slots(begin.optimizer, True)
    assert not all(map(np.array_equal, head, fresh))
    draw(model, Rifle(2, reset_optimizer=reset))
    assert_same(slots(model.optimizer, True), fresh if reset else head)
    assert_same(slots(model.optimizer, False), rest)
    assert model.optimizer.iterations.numpy() == 8


def test_the_moving_average_of_the_weights_goes_on_from_the_new_ones(new_backbone):
    model = make(new_backbone, keras.optimizers.SGD(0.05, use_ema=True))
    fit(model, epochs=1)
    head = model.target.get_layer("head").trainable_variables
    forget(model.optimizer, head)
    at = [model.optimizer._get_variable_index(v) for v in head]
    average = [model.optimizer._model_variables_moving_average[i].numpy() for i in at]
    assert_same(average, head_of(model))


def test_the_layers_own_initialisers(new_backbone):
    limit = (6 / (4 + 3)) ** 0.5  # Glorot's uniform, 4 inputs and 3 outputs
    model, drawn = make(new_backbone), []
    for epoch in (2, 4, 4):
        draw(model, Rifle(4, epochs=9, initializer="layer"), epoch)
        kernel, bias = head_of(model)
        assert np.abs(kernel).max() <= limit and kernel.std() > limit / 4
        np.testing.assert_array_equal(bias, np.zeros(3))
        drawn.append(kernel)
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[1], drawn[2])


def test_the_body_stays_and_normalization_in_the_head_begins_anew(new_backbone):
    source = new_backbone(size=8, widths=(3, 4))
    x = keras.layers.GlobalAveragePooling2D()(source.output)
    x = keras.layers.Dense(5, name="hidden")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    target = keras.Model(source.input, keras.layers.Dense(3, name="head")(x))
    model = DeltaModel(target, source=source)
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    model.compile("sgd", loss, run_eagerly=True)
    fit(model, epochs=3)
    body = [w.copy() for n in reference.TAPS for w in target.get_layer(n).get_weights()]
    hidden = target.get_layer("hidden").get_weights()
    draw(model, Rifle(2))
    assert_same(
        body, [w for n in reference.TAPS for w in target.get_layer(n).get_weights()]
    )
    assert not np.array_equal(hidden[0], target.get_layer("hidden").get_weights()[0])
    norm = target.get_layer("norm").get_weights()
    assert_same(norm, [np.ones(5), np.zeros(5), np.zeros(5), np.ones(5)])


def test_nothing_but_the_draw_changes_training(new_backbone):
    a, b = make(new_backbone), make(new_backbone)
    with pytest.warns(UserWarning, match="never redraws the head in 5 epochs"):
        fit(a, Rifle(2), epochs=5)
    fit(b, epochs=5)
    assert_same(a.get_weights(), b.get_weights())


def test_verbose(new_backbone, capsys):
    draw(make(new_backbone), Rifle(2, verbose=1))
    assert capsys.readouterr().out == "\nEpoch 5: Rifle has redrawn the head\n"


def test_models_that_are_refused(new_backbone):
    frozen = make(new_backbone)
    frozen.target.get_layer("head").trainable = False
    with pytest.raises(ValueError, match="trains no parameters that only the target"):
        fit(frozen, Rifle(2))


def test_a_teacher_is_refused(new_backbone):
    """All layers are then only the target's: it would redraw the whole network."""
    teacher = attach_head(new_backbone(widths=(6, 8, 10)), 3)
    target = attach_head(new_backbone(), 3)
    model = DeltaModel(target, source=teacher, regularizer="kd")
    with pytest.raises(ValueError, match="the source is another network, a teacher"):
        Rifle().check(model)


def test_a_layer_without_initialisers_is_refused(new_backbone):
    class Odd(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(3,))

        def call(self, x):
            return x * self.scale

    source = new_backbone(size=8, widths=(3, 4))
    head = attach_head(source, 3)
    target = keras.Model(head.input, Odd()(head.output))
    model = DeltaModel(target, source=source)
    with pytest.raises(ValueError, match=r"determine the initialiser of .*scale"):
        Rifle(initializer="layer").check(model)
    Rifle().check(model)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`cycles`\. Expected 2 or more.*without"):
        Rifle(cycles=1)
