"""A training that is broken off goes on bit for bit; what is kept, and what refused."""

import contextlib
import copy
import json
import pickle
import resource
import shutil
import subprocess
import sys
import warnings

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta._training import hosts
from keras_delta.callbacks import BackupAndRestore, training_state
from keras_delta.callbacks.plain_values import ArrayStore, decode, encode
from keras_delta.regularizers import L2SP, Delta, FeatureMap

pytestmark = [
    pytest.mark.usefixtures("tensorflow_seed"),
    pytest.mark.filterwarnings("ignore:.*but the backup does not contain"),
    pytest.mark.filterwarnings("ignore:The head is no better than chance"),
]


class Break(keras.callbacks.Callback):
    """Ends a training with an error, as it begins an epoch or after a batch of it."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if self.at == (epoch, None):
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        if self.at == (self.epoch, batch):
            raise KeyboardInterrupt


class Batches(keras.callbacks.Callback):
    """Counts the batches of this process."""

    def on_train_begin(self, logs=None):
        self.count = 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1


def new_model(new_backbone, regularizer=None, optimizer=None, dropout=0.3):
    """The same one each time."""
    keras.utils.set_random_seed(5)
    target, source = reference.pair(new_backbone, batch_norm=True, dropout=dropout)
    return reference.compiled(
        target,
        source,
        regularizer or Delta(0.3, attention="uniform"),
        optimizer=optimizer or keras.optimizers.Adam(0.01),
        run_eagerly=True,
    )


def fit(model, *callbacks, epochs=5, batch_size=4):
    x, y = reference.learnable_data(8)
    given = {"callbacks": list(callbacks), "epochs": epochs, "verbose": 0}
    return model.fit(x, y, batch_size, **given)


@pytest.fixture(scope="module")
def straight(new_backbone):
    """A model that was trained without a break, and its `History`."""
    model = new_model(new_backbone)
    return model, fit(model)


def kept(folder):
    """A backup that stays when training has ended."""
    return BackupAndRestore(folder / "b", delete_checkpoint=False)


def everything(model):
    """All variables of the training, in one list."""
    parts = (model.target, model.regularizer, model.optimizer)
    return [v.value.numpy() for part in parts for v in part.variables]


def assert_same(a, b):
    for v, w in zip(everything(a), everything(b), strict=True):
        np.testing.assert_array_equal(v, w)


def test_another_optimizer(new_backbone, tmp_path):
    """With a schedule, averages of the weights and a scale of the loss."""

    def model():
        rate = keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5)
        adam = keras.optimizers.Adam(rate, use_ema=True)
        optimizer = keras.optimizers.LossScaleOptimizer(adam)
        return new_model(new_backbone, optimizer=optimizer)

    straight, resumed = model(), model()
    fit(straight)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), Break(3, 1), BackupAndRestore(tmp_path / "b"))
    fit(resumed, BackupAndRestore(tmp_path / "b"))
    assert_same(resumed, straight)


@pytest.mark.parametrize("at", [(0, 1), (4, 1), (1, None)])
def test_goes_on_bit_for_bit(at, straight, new_backbone, tmp_path):
    straight, expected = straight
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(new_backbone), Break(*at), BackupAndRestore(tmp_path / "b"))
    resumed, count = new_model(new_backbone), Batches()
    found = fit(resumed, count, BackupAndRestore(tmp_path / "b"))
    assert count.count == 2 * (5 - at[0])
    assert found.history == expected.history and found.epoch == expected.epoch
    assert_same(resumed, straight)
    assert not (tmp_path / "b").exists()


def test_attention_is_not_computed_again(new_backbone, tmp_path, monkeypatch):
    def delta():
        return [Delta(0.3, attention_samples=6), L2SP(0.1)]

    broken = new_model(new_backbone, delta())
    with pytest.raises(KeyboardInterrupt):
        fit(broken, Break(1), BackupAndRestore(tmp_path / "b"))

    def compute(*args, **kwargs):
        raise AssertionError("attention was computed again")

    monkeypatch.setattr(kd.ChannelAttention, "compute", compute)
    resumed = new_model(new_backbone, delta())
    fit(resumed, BackupAndRestore(tmp_path / "b"))
    for v, w in zip(
        broken.regularizer.variables, resumed.regularizer.variables, strict=True
    ):
        np.testing.assert_array_equal(v.numpy(), w.numpy())
    known = [m.regularizer.members[0].computed_attention for m in (broken, resumed)]
    assert known[0].get_config() == known[1].get_config()


def watchers():
    """Callbacks that remember something."""
    return [
        keras.callbacks.EarlyStopping(
            "loss", patience=4, min_delta=1.0, restore_best_weights=True
        ),
        keras.callbacks.ReduceLROnPlateau(
            "loss", patience=2, min_delta=0.5, cooldown=1
        ),
    ]


def state_of(callback):
    return {
        k: v
        for k, v in vars(callback).items()
        if k not in ("_model", "params", "best_weights")
    }


def test_other_callbacks_go_on(new_backbone, tmp_path):
    """Patience, best values and best weights survive."""
    straight, known = new_model(new_backbone), watchers()
    expected = fit(straight, *known, epochs=8)
    assert 4 < len(expected.epoch) < 8
    with pytest.raises(KeyboardInterrupt):
        given = *watchers(), BackupAndRestore(tmp_path / "b"), Break(4)
        fit(new_model(new_backbone), *given, epochs=8)
    resumed, found = new_model(new_backbone), watchers()
    history = fit(resumed, *found, BackupAndRestore(tmp_path / "b"), epochs=8)
    assert history.history == expected.history
    assert [state_of(c) for c in found] == [state_of(c) for c in known]
    reference.assert_same_weights(found[0].best_weights, known[0].best_weights, 0, 0)
    assert_same(resumed, straight)


def test_settings_of_callbacks_are_the_new_ones(new_backbone, tmp_path):
    def stopping(patience):
        return keras.callbacks.EarlyStopping("loss", patience, min_delta=9.0)

    with pytest.raises(KeyboardInterrupt):
        fit(
            new_model(new_backbone),
            stopping := keras.callbacks.EarlyStopping("loss", 9.0, 7),
            BackupAndRestore(tmp_path / "b"),
            Break(2),
        )
    again = keras.callbacks.EarlyStopping("loss", 9.0, 2)
    found = fit(new_model(new_backbone), again, BackupAndRestore(tmp_path / "b"))
    assert stopping.wait == 1 and again.patience == 2
    assert found.epoch == [0, 1, 2]


def test_averaged_weights_that_are_swapped_in(new_backbone, tmp_path):
    def callbacks():
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        return [swap, BackupAndRestore(tmp_path / "b")]

    def model():
        return new_model(
            new_backbone,
            optimizer=keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True),
        )

    straight = model()
    fit(straight, keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    with pytest.raises(KeyboardInterrupt):
        fit(model(), *callbacks(), Break(3))
    resumed = model()
    fit(resumed, *callbacks())
    assert_same(resumed, straight)


@pytest.mark.parametrize("append", [False, True])
def test_rows_of_a_log_are_kept_once(append, new_backbone, tmp_path):
    def log(name):
        return keras.callbacks.CSVLogger(tmp_path / name, ";", append)

    def train(*callbacks, epochs=4):
        fit(new_model(new_backbone), *callbacks, epochs=epochs, batch_size=8)

    class Late(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:  # its row has been written, its backup has not
                raise KeyboardInterrupt

    train(log("a"), epochs=1)
    shutil.copy(tmp_path / "a", tmp_path / "b")
    train(log("a"))
    with pytest.raises(KeyboardInterrupt):
        train(log("b"), Late(), BackupAndRestore(tmp_path / "backup"))
    logger = log("b")
    train(BackupAndRestore(tmp_path / "backup"), logger)
    expected = (tmp_path / "a").read_text()
    assert (tmp_path / "b").read_text() == expected
    train(logger, epochs=1)  # the logger itself is as it was
    head, first = expected.splitlines(keepends=True)[:2]
    assert (tmp_path / "b").read_text() == (expected if append else head) + first


def test_early_stopping_has_the_last_word(new_backbone, tmp_path):
    """Run again, a training that has stopped trains no batch, and is as it was."""

    first, known = new_model(new_backbone), watchers()
    expected = fit(first, *known, kept(tmp_path), epochs=8)
    second, count, found = new_model(new_backbone), Batches(), watchers()
    history = fit(second, *found, kept(tmp_path), count, epochs=8)
    assert count.count == 0
    assert history.history == expected.history
    assert_same(first, second)


def test_more_epochs_go_on_from_the_end(straight, new_backbone, tmp_path):
    (straight, expected), resumed = straight, new_model(new_backbone)
    count = Batches()
    fit(new_model(new_backbone), kept(tmp_path), epochs=3)
    found = fit(resumed, kept(tmp_path), count, epochs=5)
    assert count.count == 4
    assert found.history == expected.history
    assert_same(resumed, straight)


def test_fewer_epochs_than_are_done_keep_the_backup(new_backbone, tmp_path):
    fit(new_model(new_backbone), kept(tmp_path), epochs=3)
    count = Batches()
    with pytest.warns(UserWarning, match=r"`epochs=2`.*already at epoch 3"):
        fit(new_model(new_backbone), BackupAndRestore(tmp_path / "b"), count, epochs=2)
    assert count.count == 0
    assert (tmp_path / "b/state.npz").is_file()


def test_another_learning_rate_is_told(new_backbone, tmp_path):
    def optimizer(rate):
        return keras.optimizers.SGD(rate, momentum=0.9)

    begun = new_model(new_backbone, optimizer=optimizer(0.25))
    fit(begun, kept(tmp_path), epochs=2)
    other = new_model(new_backbone, optimizer=optimizer(0.5))
    with pytest.warns(UserWarning, match=r"learning rate is now 0.5, but was 0.25"):
        fit(other, BackupAndRestore(tmp_path / "b"), epochs=3)
    assert float(other.optimizer.learning_rate) == 0.25


def test_a_training_that_began_late(new_backbone, tmp_path):
    """`initial_epoch` with data that are read on from where they were."""
    x, y = reference.learnable_data(8)

    def run(*callbacks):
        model = new_model(new_backbone)
        data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(8, seed=1).batch(4)
        model.fit(data, epochs=7, initial_epoch=3, callbacks=list(callbacks), verbose=0)
        return model

    straight = run()
    with pytest.raises(KeyboardInterrupt):
        run(Break(5), BackupAndRestore(tmp_path / "b"))
    assert_same(run(BackupAndRestore(tmp_path / "b")), straight)


def test_the_same_model_goes_on_in_a_notebook(new_backbone, tmp_path):
    """After an error, with strengths that a callback has changed meanwhile."""

    def callbacks():
        strengths = kd.callbacks.StrengthScheduler(lambda epoch: 1 / (epoch + 1))
        return strengths, BackupAndRestore(tmp_path / "b")

    straight = new_model(new_backbone)
    expected = fit(straight, callbacks()[0])
    model = new_model(new_backbone)
    with pytest.raises(KeyboardInterrupt):
        fit(model, *callbacks(), Break(2, 1))
    found = fit(model, *callbacks())
    assert found.history == expected.history
    assert_same(model, straight)


def test_images_go_on_in_a_notebook(new_backbone, tmp_path):
    """The set of images has begun more epochs than are done."""
    x, y = reference.learnable_data(8)
    images = kd.data.ImageSet.from_arrays(np.clip(x * 255, 0, 255).astype("uint8"), y)

    def run(model, train, *callbacks):
        model.fit(train, epochs=5, callbacks=list(callbacks), verbose=0, shuffle=False)
        return model

    def batches():
        return images.batches(8, 4, training=True)

    straight = run(new_model(new_backbone), batches())
    model, train = new_model(new_backbone), batches()
    with pytest.raises(KeyboardInterrupt):
        run(model, train, BackupAndRestore(tmp_path / "b"), Break(2, 1))
    assert_same(run(model, train, BackupAndRestore(tmp_path / "b")), straight)


def test_the_backup_stays_until_all_callbacks_have_ended(
    straight, new_backbone, tmp_path
):
    class Report(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fit(new_model(new_backbone), BackupAndRestore(tmp_path / "b"), Report())
    batches = Batches()
    model = new_model(new_backbone)
    fit(model, BackupAndRestore(tmp_path / "b"), batches)
    assert batches.count == 2  # of the last of five epochs
    assert_same(model, straight[0])
    assert not (tmp_path / "b").exists()


def test_several_replicas(new_backbone, tmp_path, strategy):
    def run(*callbacks):
        keras.utils.set_random_seed(5)
        with strategy.scope():
            model = new_model(new_backbone)
        fit(model, *callbacks, epochs=2, batch_size=8)
        return model

    straight = run()
    with pytest.raises(KeyboardInterrupt):
        run(BackupAndRestore(tmp_path / "b"), Break(1))
    assert_same(run(BackupAndRestore(tmp_path / "b")), straight)


def test_other_workers_read_only(backup, new_backbone, monkeypatch):
    monkeypatch.setattr(hosts.OneHost, "is_first", False)
    before = {p.name: p.read_bytes() for p in backup.iterdir()}
    assert fit(new_model(new_backbone), BackupAndRestore(backup)).epoch[-1] == 4
    assert {p.name: p.read_bytes() for p in backup.iterdir()} == before


# --- what is in it -------------------------------------------------------------


def test_the_source_is_not_in_it(new_backbone, tmp_path):
    """Not even as a part of `EarlyStopping.best_weights`."""
    source = new_backbone(size=8, widths=(32, 64))
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    model.compile(
        keras.optimizers.SGD(0.001),
        keras.losses.SparseCategoricalCrossentropy(True),
        regularizer=FeatureMap(0.3),
        run_eagerly=True,
    )
    sizes = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            sizes.append((tmp_path / "b" / "state.npz").stat().st_size)

    best = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    fit(model, best, BackupAndRestore(tmp_path / "b"), Look(), epochs=2)
    target = sum(v.value.numpy().nbytes for v in model.target.variables)
    assert target < sizes[0] < 1.2 * target
    # The best weights are those of now.
    assert sizes[1] < 1.2 * target
    assert len(best.best_weights) > 2 * len(model.source.weights)


def test_simple_values_survive():
    values = {
        "plain": [None, True, 3, 0.1, float("inf"), "é", [], {}, ()],
        "nested": ({1: [2, (3,)], "a": {None: 1.5}},),
        "numbers": [np.float32(0.1), np.int64(-3), np.bool_(True)],
        "array": np.arange(6, dtype="int8").reshape(2, 3),
        "same": np.arange(6, dtype="int8").reshape(2, 3),
        "none": np.float32(3),
        "scalar": np.array(1.5),
        "vector": np.array([1.5]),
    }
    store = ArrayStore({"there": np.arange(6, dtype="int8").reshape(2, 3)})
    code = json.loads(json.dumps(encode(values, store)))
    arrays = {"there": values["array"], **store.added}
    assert len(arrays) == 2  # equal ones are stored once
    found = decode(code, arrays)
    for name in ("array", "same", "scalar", "vector"):
        a, b = found.pop(name), values.pop(name)
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert found == values
    assert [type(v) for v in found["numbers"]] == [np.float32, np.int64, np.bool_]


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"a", np.array(["a"]), np.array([None]), [print]]
)
def test_other_values_are_refused(value):
    with pytest.raises(TypeError, match="a backup cannot hold a value of the type"):
        encode({"a": value}, ArrayStore({}))


class Memory(keras.callbacks.Callback):
    """One of a user's, that remembers something."""

    def on_train_begin(self, logs=None):
        self.losses = []

    def on_epoch_end(self, epoch, logs=None):
        self.losses.append(logs["loss"])


class Kept(Memory):
    """The same, with what a backup asks for."""

    def get_state(self):
        return {"losses": self.losses}

    def set_state(self, state):
        self.losses = state["losses"]


@pytest.mark.filterwarnings("default:.*but the backup does not contain")
def test_callbacks_of_a_user(new_backbone, tmp_path):
    """They are kept if they say what; the others are named."""

    class Odd(Kept):
        def get_state(self):
            return {"odd": object()}

    expected = Kept()
    fit(new_model(new_backbone), expected, epochs=3)
    with (
        pytest.warns(UserWarning, match="state of the callback Odd: a backup"),
        pytest.raises(KeyboardInterrupt),
    ):
        backup = BackupAndRestore(tmp_path / "b")
        fit(new_model(new_backbone), Kept(), Odd(), Memory(), Break(2), backup)
    kept, memory, quiet = Kept(), Memory(), keras.callbacks.LambdaCallback()
    with pytest.warns(UserWarning, match="does not contain the state of Memory"):
        given = kept, memory, quiet, BackupAndRestore(tmp_path / "b")
        fit(new_model(new_backbone), *given, epochs=3)
    assert kept.losses == expected.losses
    assert memory.losses == expected.losses[2:]


def test_the_rest_of_keras_own(new_backbone, tmp_path):
    """`ModelCheckpoint` and `TensorBoard` go on counting, a subclass with its base."""

    class Patient(keras.callbacks.EarlyStopping):
        pass

    def given():
        return [
            keras.callbacks.ModelCheckpoint(
                tmp_path / "m.weights.h5",
                "loss",
                save_best_only=True,
                save_weights_only=True,
                save_freq=4,
            ),
            keras.callbacks.TensorBoard(tmp_path / "logs", write_graph=False),
            Patient("loss", patience=9),
        ]

    straight, found = given(), given()
    fit(new_model(new_backbone), *straight, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        backup = BackupAndRestore(tmp_path / "b")
        fit(new_model(new_backbone), *given(), backup, Break(2))
    fit(new_model(new_backbone), *found, BackupAndRestore(tmp_path / "b"), epochs=3)
    for a, b, name in zip(
        straight, found, ("best", "_global_train_batch", "best"), strict=True
    ):
        assert getattr(a, name) == getattr(b, name) is not None
    since = "_batches_seen_since_last_saving"
    assert getattr(straight[0], since) == getattr(found[0], since) == 2


def test_half_precision_weights(tmp_path):
    """NumPy has no bfloat16: it comes back from a file as bytes."""
    keras.config.set_dtype_policy("bfloat16")
    x = np.arange(24, dtype="float32").reshape(6, 4) / 24

    def run(*callbacks):
        keras.utils.set_random_seed(1)
        layers = [keras.Input((2, 2, 1)), keras.layers.Conv2D(3, 2)]
        target = kd.attach_head(keras.Sequential(layers), 2)
        model = kd.DeltaModel(target, regularizer=L2SP(0.1))
        loss = keras.losses.SparseCategoricalCrossentropy(True)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, run_eagerly=True)
        x4, y = x.reshape(6, 2, 2, 1), np.arange(6) % 2
        best = keras.callbacks.EarlyStopping(
            "loss", patience=9, baseline=-1.0, restore_best_weights=True
        )
        given = [best, *callbacks]
        model.fit(x4, y, 2, epochs=3, callbacks=given, verbose=0)
        assert best.best_weights[0].dtype == "bfloat16"
        return model

    straight = run()
    with pytest.raises(KeyboardInterrupt):
        run(BackupAndRestore(tmp_path / "b"), Break(1))
    assert_same(run(BackupAndRestore(tmp_path / "b")), straight)


def test_copies_for_a_tuner(new_backbone, tmp_path):
    backup = BackupAndRestore(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(new_backbone), backup, Break(1))
    for other in (copy.deepcopy(backup), pickle.loads(pickle.dumps(backup))):
        assert other.backup_dir == backup.backup_dir
    assert fit(new_model(new_backbone), other).epoch == [0, 1, 2, 3, 4]


# --- refused -------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(new_backbone, tmp_path_factory):
    """The folder of a backup after two epochs."""
    folder = tmp_path_factory.mktemp("written") / "b"
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(new_backbone), BackupAndRestore(folder), Break(2))
    return folder


@pytest.fixture
def backup(written, tmp_path):
    """A copy of it."""
    return shutil.copytree(written, tmp_path / "b")


def other_source(new_backbone):
    source = new_backbone(batch_norm=True, size=8, widths=(3, 4), seed=1)
    target = reference.pair(new_backbone, batch_norm=True, dropout=0.3)[0]
    return reference.compiled(
        target,
        source,
        Delta(0.3, attention="uniform"),
        optimizer=keras.optimizers.Adam(0.01),
    )


OTHERS = {
    "source": other_source,
    "target": lambda b: new_model(b, dropout=0.0),
    "optimizer": lambda b: new_model(b, optimizer=keras.optimizers.SGD()),
    r"regularizer: Delta\(alpha=0.3.* in the file, Delta\(alpha=0.4": lambda b: (
        new_model(b, Delta(0.4, attention="uniform"))
    ),
    "regularizer: Delta.* in the file, FeatureMap": lambda b: new_model(
        b, FeatureMap(0.3)
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_backup_of_something_else(what, backup, new_backbone):
    before = (backup / "state.npz").read_bytes()
    with pytest.raises(ValueError, match=f"made for something else.*{what}.*delete"):
        fit(OTHERS[what](new_backbone), BackupAndRestore(backup))
    assert (backup / "state.npz").read_bytes() == before


@pytest.mark.parametrize("damage", ["short", "flipped", "other"])
def test_a_damaged_backup(damage, backup, new_backbone):
    file = backup / "state.npz"
    whole = file.read_bytes()
    middle = whole.find(b"target/0") + 300
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    file.write_bytes(
        {"short": whole[: len(whole) // 2], "flipped": flipped, "other": b"PK"}[damage]
    )
    with pytest.raises(ValueError, match=r"state\.npz' cannot be read.*damaged.*Pass"):
        fit(new_model(new_backbone), BackupAndRestore(backup))


def test_a_backup_of_another_version(backup, new_backbone, monkeypatch):
    monkeypatch.setattr(training_state, "FORMAT", "keras_delta.backup/1")
    with pytest.raises(ValueError, match=r"keras_delta.backup/2 in the file, .*/1 now"):
        fit(new_model(new_backbone), BackupAndRestore(backup))


def test_two_runs_in_one_folder(backup, new_backbone):
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a+'); "
        "fcntl.flock(file, fcntl.LOCK_EX); file.truncate(0); "
        "file.write('process 7 on there'); file.flush(); print(flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, backup / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    other.stdout.readline()
    with pytest.raises(RuntimeError, match=r"in use by process 7 on there.*backup_dir"):
        fit(new_model(new_backbone), BackupAndRestore(backup))
    other.kill()
    other.wait()
    assert fit(new_model(new_backbone), BackupAndRestore(backup)).epoch[-1] == 4
    assert not backup.exists()


@contextlib.contextmanager
def largest_file(size):
    """A disk on which no file can be longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_shows_before_the_training(new_backbone, tmp_path):
    model = new_model(new_backbone)
    with (
        largest_file(2**12),
        pytest.raises(ValueError, match=r"`backup_dir`.*can be written.*too large"),
    ):
        fit(model, BackupAndRestore(tmp_path / "b"))
    assert not list((tmp_path / "b").glob("*test*"))


def test_a_disk_that_fills_up(straight, new_backbone, tmp_path):
    with contextlib.ExitStack() as stack:

        class Fill(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                if epoch == 1:
                    stack.enter_context(largest_file(2**12))

        backup = BackupAndRestore(tmp_path / "b")
        model = new_model(new_backbone)
        with (
            warnings.catch_warnings(record=True) as seen,
            pytest.raises(KeyboardInterrupt),
        ):
            warnings.simplefilter("always")
            fit(model, backup, Fill(), Break(4, 0))
    seen = [str(w.message) for w in seen if "could not be written" in str(w.message)]
    assert len(seen) == 1
    resumed, count = new_model(new_backbone), Batches()
    fit(resumed, count, BackupAndRestore(tmp_path / "b"))
    assert count.count == 4 * 2  # the backup of the first epoch was whole
    assert_same(resumed, straight[0])


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"`backup_dir`.*a local folder"):
        BackupAndRestore("gs://bucket/b")
    with pytest.raises(ValueError, match=r"`save_freq`.*steps_per_epoch"):
        BackupAndRestore(tmp_path, save_freq=100)


def test_a_folder_that_cannot_be_made(new_backbone):
    with pytest.raises(ValueError, match=r"`backup_dir`.*can be written"):
        fit(new_model(new_backbone), BackupAndRestore("/proc/keras_delta/b"))


def test_it_works_inside_of_fit_alone(new_backbone, tmp_path):
    backup = BackupAndRestore(tmp_path / "b")
    backup.set_model(new_model(new_backbone))
    with pytest.raises(ValueError, match=r"only works within `DeltaModel\.fit`"):
        backup.on_train_begin()
