"""All callbacks: refusals, copies, state, and trainings that stay as they are."""

import copy
import json
import pickle

import keras
import model_reference as reference
import numpy as np
import pytest

import keras_delta as kd
from keras_delta.callbacks import callback_states
from keras_delta.callbacks.plain_values import ArrayStore, decode, encode
from keras_delta.regularizers import Delta

X, Y = reference.learnable_data(8)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The head is no better than chance"),
    pytest.mark.filterwarnings("ignore:Rifle.* never redraws"),
]
callbacks = kd.callbacks


class Memo(callbacks.Callback):
    """One of a user's, with state."""

    remembers = ("largest",)

    def __init__(self):
        super().__init__()
        self.largest = None

    def on_epoch_end(self, epoch, logs=None):
        """Remember."""
        self.largest = np.array([epoch, logs["feature_penalty"]])


MAKE = {
    "ActivationMaps": lambda d: callbacks.ActivationMaps(X[:1], d, channels=1),
    "BackupAndRestore": lambda d: callbacks.BackupAndRestore(d / "backup"),
    "ChannelAttentionCallback": lambda d: callbacks.ChannelAttentionCallback(
        (X, Y), update=False
    ),
    "Memo": lambda d: Memo(),
    "PenaltyLogger": lambda d: callbacks.PenaltyLogger(d, every=1),
    "Report": lambda d: callbacks.Report(d / "report.html", test=(X, Y), every=2),
    "Rifle": lambda d: callbacks.Rifle(2),
    "StartingPointDistance": lambda d: callbacks.StartingPointDistance(),
    "StrengthScheduler": lambda d: callbacks.StrengthScheduler(
        keras.optimizers.schedules.PolynomialDecay(1.0, 2)
    ),
    "WeightAverage": lambda d: callbacks.WeightAverage(1.0, every="step"),
}
each = pytest.mark.parametrize("name", MAKE)


def make(new_backbone):
    keras.utils.set_random_seed(0)
    pair = reference.pair(new_backbone, batch_norm=True, dropout=0.3)
    delta = Delta(0.3, 0.1, attention=reference.WEIGHTS)
    return reference.compiled(*pair, delta, run_eagerly=True)


def fit(model, *given, **kwargs):
    kwargs = {"batch_size": 4, "verbose": 0, "epochs": 2, **kwargs}
    return model.fit(X, Y, callbacks=list(given), **kwargs)


def test_all_are_here():
    public = {
        name
        for name, value in vars(callbacks).items()
        if isinstance(value, type) and issubclass(value, keras.callbacks.Callback)
    }
    # TerminateOnNaN is Keras's, and works on any model.
    assert public == {*MAKE, "Callback", "TerminateOnNaN"} - {"Memo"}


@each
def test_a_plain_model_is_refused(name, new_backbone, tmp_path):
    model, _ = reference.pair(new_backbone)
    model.compile("sgd", reference.LOSS, run_eagerly=True)
    with pytest.raises(TypeError, match=f"{name} requires a DeltaModel. .*Functional"):
        fit(model, MAKE[name](tmp_path))


def test_they_change_nothing(new_backbone, tmp_path):
    """All but those that are there to; dropout and shuffling would show a trace."""
    changing = ("Rifle", "StrengthScheduler", "WeightAverage")
    given = [MAKE[n](tmp_path) for n in MAKE if n not in changing]
    a, b = make(new_backbone), make(new_backbone)
    for model, more in ((a, []), (b, given)):
        keras.utils.set_random_seed(1)
        fit(model, *more)
    reference.assert_same_weights(a, b, atol=0, rtol=0)
    assert b.watch_every is None
    fit(a, callbacks.StrengthScheduler(0.3, 0.1))  # the strengths that it has
    fit(b)
    reference.assert_same_weights(a, b, atol=0, rtol=0)


@pytest.fixture(scope="module")
def used(new_backbone, tmp_path_factory):
    """The model and all callbacks after a training of two epochs."""
    folder = tmp_path_factory.mktemp("used")
    given = {name: MAKE[name](folder) for name in MAKE}
    model = make(new_backbone)
    fit(model, *given.values())
    return model, given


@each
def test_copies_leave_the_model_behind_and_can_be_used(name, used):
    model, given = used
    for duplicate in (copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))):
        again = duplicate(given[name])
        assert again.model is None and given[name].model is model
        fit(model, again, epochs=1)
        assert again.model is model


@each
def test_the_same_instance_twice(name, used):
    model, given = used
    fit(model, given[name], epochs=1)


@each
def test_state_survives(name, used, tmp_path):
    """Through JSON and arrays, into a new one."""
    _, given = used
    if name == "Rifle":  # in two epochs it never redraws
        given[name].drawn = [4]
    state, store = callback_states.state_of(given[name]), ArrayStore({})
    stateless = ("BackupAndRestore", "Report", "StrengthScheduler")
    assert bool(state) == (name not in stateless)
    code = json.loads(json.dumps(encode(state, store)))
    fresh = MAKE[name](tmp_path)
    assert not state or repr(callback_states.state_of(fresh)) != repr(state)
    callback_states.put_back(fresh, decode(code, store.added))
    assert repr(callback_states.state_of(fresh)) == repr(state)
