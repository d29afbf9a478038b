"""The mean of the weights of a training, by hand; resumed, stopped, refused."""

import keras
import model_reference as reference
import numpy as np
import pytest

import keras_delta as kd
from keras_delta import batch_norm
from keras_delta.callbacks import BackupAndRestore, WeightAverage
from keras_delta.regularizers import L2

X, Y = reference.learnable_data(8)
pytestmark = [pytest.mark.filterwarnings("ignore:The head is no better than chance")]


def make(new_backbone, optimizer=None, **kwargs):
    keras.utils.set_random_seed(0)
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    pair = reference.pair(new_backbone, batch_norm=True, dropout=0.3)
    return reference.compiled(*pair, L2(0.01, 0.01), optimizer=optimizer, **kwargs)


def fit(model, *callbacks, epochs=8, **kwargs):
    """Two steps an epoch, in the order of the data."""
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs)


class Recorded(keras.callbacks.Callback):
    """The target's weights after each step and epoch."""

    def __init__(self):
        super().__init__()
        self.steps, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.model.target.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.model.target.get_weights())


class Stop(keras.callbacks.Callback):
    """Stops or breaks a training at the end of an epoch."""

    def __init__(self, epoch, error=None):
        super().__init__()
        self.at, self.error = epoch, error

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.at:
            if self.error:
                raise self.error
            self.model.stop_training = True


def by_hand(lists, shares=None):
    shares = np.ones(len(lists)) if shares is None else np.asarray(shares)
    shares = shares / shares.sum()
    columns = zip(*lists, strict=True)
    return [
        sum(s * v.astype("float64") for s, v in zip(shares, column, strict=True))
        for column in columns
    ]


def assert_is(model, expected):
    reference.assert_same_weights(model.target, expected, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def raw(new_backbone):
    """A training without averages."""
    recorded = Recorded()
    model = make(new_backbone)
    history = fit(model, recorded, validation_data=(X, Y))
    recorded.history = history.history
    return recorded


@pytest.mark.parametrize(
    "given, mean_of",
    [
        ({}, lambda r: r.epochs[-2:]),
        ({"last": 0.3}, lambda r: r.epochs[-3:]),  # 2.4, rounded up
        ({"last": 1}, lambda r: r.epochs),
        ({"every": "step"}, lambda r: r.steps[-4:]),
        ({"last": 0.1, "every": "step"}, lambda r: r.steps[-2:]),
    ],
)
def test_the_mean_of_the_last_epochs(given, mean_of, raw, new_backbone):
    """Training, its logs and its validation are as without."""
    model, average, recorded = make(new_backbone), WeightAverage(**given), Recorded()
    history = fit(model, average, recorded, validation_data=(X, Y))
    assert history.history == raw.history
    for a, b in zip(recorded.steps[-1], raw.steps[-1], strict=True):
        np.testing.assert_array_equal(a, b)
    expected = mean_of(raw)
    assert average.count == len(expected)
    assert_is(model, by_hand(expected))
    moved = max(
        np.abs(a - b).max()
        for a, b in zip(raw.steps[-1], by_hand(expected), strict=True)
    )
    assert moved > 1e-4


def exponential(lists, decay):
    """Keras's recursion from 0, divided by what its weights add up to."""
    mean, total = [np.zeros(v.shape) for v in lists[0]], 0.0
    for weights in lists:
        mean = [decay * m + (1 - decay) * w for m, w in zip(mean, weights, strict=True)]
        total = decay * total + 1 - decay
    return [m / total for m in mean]


@pytest.mark.parametrize(
    "given, mean_of",
    [
        ({"decay": 0.7}, lambda r: r.steps),
        ({"decay": 0.999}, lambda r: r.steps),
        ({"decay": 0.7, "last": 0.5}, lambda r: r.steps[-8:]),
        ({"decay": 0.7, "every": "epoch"}, lambda r: r.epochs),
    ],
)
def test_exponential_averages(given, mean_of, raw, new_backbone):
    model = make(new_backbone)
    fit(model, WeightAverage(**given))
    assert_is(model, exponential(mean_of(raw), given["decay"]))


# --- statistics --------------------------------------------------------------------


def is_statistic(model):
    moving = {
        id(v) for bn in batch_norm.layers(model) for v in bn.non_trainable_weights
    }
    return [id(v) in moving for v in model.target.weights]


def test_statistics_are_kept(raw, new_backbone):
    model = make(new_backbone)
    fit(model, WeightAverage(statistics="keep"))
    mean = by_hand(raw.epochs[-2:])
    is_moving = is_statistic(model)
    assert sum(is_moving) == 4
    columns = zip(is_moving, raw.steps[-1], mean, strict=True)
    assert_is(model, [last if moving else v for moving, last, v in columns])


def test_statistics_are_estimated(raw, new_backbone):
    """As by hand."""
    model, other = make(new_backbone), make(new_backbone)
    data = (X + 1, Y)
    fit(model, WeightAverage(statistics="estimate", data=data))
    other.target.set_weights(by_hand(raw.epochs[-2:]))
    kd.batch_norm.estimate_statistics(other, X + 1)
    assert_is(model, other.target.get_weights())


def test_statistics_of_frozen_layers_stay(new_backbone):
    """They are not estimated, and where all are frozen nothing is."""
    model, data = make(new_backbone), X + 1
    first, second = batch_norm.layers(model)
    first.trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    before = [v.numpy() for v in first.non_trainable_weights]
    fit(model, WeightAverage(1.0, statistics="estimate", data=data), epochs=2)
    for v, w in zip(first.non_trainable_weights, before, strict=True):
        np.testing.assert_array_equal(v, w)
    mean = second.moving_mean.numpy()
    kd.batch_norm.estimate_statistics(model, X + 1, frozen=False)
    np.testing.assert_allclose(second.moving_mean, mean, rtol=1e-5)
    second.trainable = False
    fit(
        model, WeightAverage(1.0, statistics="estimate", data=data), epochs=2
    )  # there is nothing to
    with pytest.raises(ValueError, match=r"has no BatchNormalization that"):
        kd.batch_norm.estimate_statistics(model, X + 1, frozen=False)


# --- trainings in parts ------------------------------------------------------------


@pytest.mark.parametrize(
    "at, given, count",
    [
        (0, {"last": 0.5}, 2),  # before the first of the last epochs
        (2, {"last": 0.5}, 2),
        (2, {"last": 0.5, "every": "step"}, 4),
        (1, {"decay": 0.9}, 8),
        (2, {"last": 0.5, "statistics": "estimate", "data": X}, 2),
    ],
)
def test_a_resumed_training_ends_bit_for_bit(at, given, count, new_backbone, tmp_path):
    straight, killed, resumed = (make(new_backbone) for _ in range(3))
    fit(straight, WeightAverage(**given), epochs=4)
    kill, backup = Stop(at, KeyboardInterrupt()), BackupAndRestore(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        fit(killed, WeightAverage(**given), kill, backup, epochs=4)
    average = WeightAverage(**given)
    fit(resumed, average, BackupAndRestore(tmp_path / "b"), epochs=4)
    assert average.count == count
    reference.assert_same_weights(resumed.target, straight.target.get_weights(), 0, 0)


def test_a_backup_that_stays(new_backbone, tmp_path):
    """Run again it trains no more and has the mean; with more epochs it goes on."""

    def run(model, epochs):
        backup = BackupAndRestore(tmp_path / "b", delete_checkpoint=False)
        fit(model, WeightAverage(last=0.5, every="step"), backup, epochs=epochs)
        return model.target.get_weights()

    first = run(make(new_backbone), 2)
    straight = make(new_backbone)
    fit(straight, WeightAverage(last=0.5, every="step"), epochs=4)
    for epochs, expected in ((2, first), (4, straight.target.get_weights())):
        found = run(make(new_backbone), epochs)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_mean_of_other_epochs_is_left_out(new_backbone, tmp_path):
    """The backup's mean began at epoch 2; now it would at 6, and 5 is the last one."""
    killed = Stop(3, KeyboardInterrupt())
    backup = BackupAndRestore(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        fit(make(new_backbone), WeightAverage(last=0.5), killed, backup, epochs=4)
    model, recorded, average = make(new_backbone), Recorded(), WeightAverage()
    fit(model, average, recorded, Stop(5), BackupAndRestore(tmp_path / "b"))
    assert average.count == 0
    reference.assert_same_weights(model.target, recorded.epochs[-1], 0, 0)


@pytest.mark.parametrize("begin, count", [(4, 2), (7, 1)])
def test_initial_epoch(begin, count, new_backbone):
    """Epochs have their own numbers: of 8 the last two."""
    model, recorded, average = make(new_backbone), Recorded(), WeightAverage()
    fit(model, average, recorded, initial_epoch=begin)
    assert average.count == count and len(recorded.epochs) == 8 - begin
    assert_is(model, by_hand(recorded.epochs[-count:]))


def test_each_fit_begins_anew(new_backbone):
    model, average = make(new_backbone), WeightAverage(last=0.5)
    recorded = Recorded()
    fit(model, average, epochs=4)
    fit(model, average, recorded, epochs=4)
    assert average.count == 2
    assert_is(model, by_hand(recorded.epochs[-2:]))


@pytest.mark.parametrize("at", [3, 6])
def test_a_training_that_is_stopped(at, new_backbone):
    model, average, recorded = make(new_backbone), WeightAverage(0.5), Recorded()
    fit(model, average, recorded, Stop(at))
    assert average.count == (0 if at == 3 else 3)
    assert_is(
        model, by_hand(recorded.epochs[-3:] if average.count else recorded.epochs[-1:])
    )


def test_early_stopping(new_backbone):
    stopping = keras.callbacks.EarlyStopping("loss", patience=1, baseline=0.0)
    model, average, recorded = make(new_backbone), WeightAverage(1.0), Recorded()
    fit(model, average, recorded, stopping)
    assert average.count == len(recorded.epochs) == 2
    assert_is(model, by_hand(recorded.epochs))


# --- odds and ends -----------------------------------------------------------------


def test_half_precision_and_traced_steps(new_backbone):
    """Means in float32; an execution of two steps counts as one."""
    model = make(
        new_backbone, run_eagerly=False, steps_per_execution=2, optimizer="sgd"
    )
    average, recorded = WeightAverage(decay=0.5), Recorded()
    fit(model, average, recorded, epochs=2)
    assert average.count == len(recorded.steps) == 2
    assert_is(model, exponential(recorded.steps, 0.5))


def test_two_replicas(new_backbone, strategy):
    with strategy.scope():
        model = make(new_backbone, optimizer="sgd", run_eagerly=False)
    average, recorded = WeightAverage(every="step", last=1.0), Recorded()
    fit(model, average, recorded, epochs=2)
    assert average.count == 4
    assert_is(model, by_hand(recorded.steps))


def test_weights_that_are_not_finite_stay(new_backbone):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            v = self.model.target.weights[0]
            v.assign(np.full(v.shape, np.nan if epoch == 6 else 1.0))

    model = make(new_backbone)
    with pytest.warns(UserWarning, match=r"The mean of the weights is not finite"):
        fit(model, Spoil(), WeightAverage())
    assert (model.target.get_weights()[0] == 1).all()


def test_of_one_epoch(new_backbone):
    model, recorded = make(new_backbone), Recorded()
    with pytest.warns(UserWarning, match=r"WeightAverage\(last=0.25\) with 4 epochs"):
        fit(model, WeightAverage(), recorded, epochs=4)
    assert_is(model, recorded.epochs[-1])


def test_refusals(new_backbone):
    for given in ({"last": 0}, {"last": 1.1}, {"decay": 1.0}, {"decay": 0}):
        (name,) = given
        with pytest.raises(ValueError, match=rf"`{name}`"):
            WeightAverage(**given)
    with pytest.raises(ValueError, match=r"`every`"):
        WeightAverage(every="batch")
    with pytest.raises(ValueError, match=r"`statistics`"):
        WeightAverage(statistics="none")
    for given in ({"statistics": "estimate"}, {"data": X}):
        with pytest.raises(
            ValueError, match=r'images with statistics="estimate", else'
        ):
            WeightAverage(**given)
    with pytest.raises(ValueError, match=r"no end"):
        WeightAverage(statistics="estimate", data=((v, 0) for v in [X]))
    model = make(new_backbone)
    stopping = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    for callbacks in ([stopping, WeightAverage()], [WeightAverage(), stopping]):
        with pytest.raises(ValueError, match=r"weights of its best epoch.*Omit one"):
            fit(model, *callbacks)
    for scaled in (False, True):
        optimizer = keras.optimizers.SGD(use_ema=True)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        with pytest.raises(ValueError, match=r"also averages the weights"):
            fit(make(new_backbone, optimizer), WeightAverage())
