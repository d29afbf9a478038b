"""What a new version of Keras, Keras Tuner or TensorFlow may change: one test each.

Where one fails, `keras_delta/_compat.py` is what to mend.
"""

import contextlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from networks import make_backbone

from keras_delta import _compat

KERAS_TUNER = sorted(_compat._KERAS_TUNER)


def test_everything_has_a_test():
    here = {name for name in globals() if name.startswith("test_")}
    public = {name for name in vars(_compat) if not name.startswith("_")}
    modules = {"importlib", "keras", "tree", "tf", "seed_generator"}
    expected = {f"test_{name.lower()}" for name in public - modules}
    expected |= {f"test_{name.lower()}" for name in KERAS_TUNER}
    assert expected - here == set()


def compiled(outputs=2, **kwargs):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(outputs)])
    model.compile(**{"optimizer": "sgd", "loss": "mse", "run_eagerly": True, **kwargs})
    return model


DATA = np.ones((4, 3), "float32"), np.zeros((4, 2), "float32")


# --- the graph of a Functional model ---


def test_operations():
    """Bare operations are calls of the classes that the module holds by name."""
    x = keras.Input((3,))
    for result, name in (
        (x + 1.0, "Add"),
        (keras.ops.relu(x), "Relu"),
        (keras.ops.reshape(x, (-1, 3, 1)), "Reshape"),
    ):
        operation = result._keras_history.operation
        places = vars(_compat.operations).values()
        classes = [vars(m).get(name) for m in places if inspect.ismodule(m)]
        assert type(operation) in classes


def test_functional():
    assert isinstance(make_backbone(), _compat.Functional)
    x = keras.Input((3,))
    assert not isinstance(keras.layers.Dense(2), _compat.Functional)
    assert isinstance(keras.Model(x, keras.layers.Dense(2)(x)), _compat.Functional)


def test_run_through_graph():
    model, seen = make_backbone(), []

    def call(operation, *args, **kwargs):
        seen.append(operation.name)
        return operation(*args, **kwargs)

    x = np.ones((1, *model.input_shape[1:]), "float32")
    found = _compat.run_through_graph(model, [x], call)
    np.testing.assert_allclose(keras.tree.flatten(found)[0], model(x), rtol=1e-6)
    assert seen == [layer.name for layer in model.layers[1:]]


def test_parameters():
    model = keras.Sequential([make_backbone(True), keras.layers.Dense(2, name="last")])
    model.build((None, 16, 16, 3))
    trained = list(map(id, model.trainable_variables))
    assert len(trained) == 14 and len(model.variables) == 20
    for frozen in (False, True):
        model.trainable = not frozen
        assert sorted(map(id, _compat.parameters(model))) == sorted(trained)


def test_flatten_layers():
    model = keras.Sequential([make_backbone(), keras.layers.Dense(2, name="last")])
    names = [layer.name for layer in _compat.flatten_layers(model)]
    assert {"tiny", "conv0", "relu2", "last"} < set(names)


@pytest.mark.parametrize(
    "layer, expected",
    [
        (keras.layers.BatchNormalization(), True),
        (keras.layers.Dropout(0.5), True),
        (keras.layers.Flatten(), False),
    ],
)
def test_takes_training(layer, expected):
    assert _compat.takes_training(layer) is expected
    operation = (keras.Input((3,)) + 1.0)._keras_history.operation
    assert _compat.takes_training(operation) is False


@pytest.mark.parametrize(
    "layer, expected",
    [
        (keras.layers.Dropout(0.5), 1),
        (keras.layers.RandomFlip(), 1),
        (keras.layers.Dropout(0.0), 0),
        (keras.layers.ReLU(), 0),
    ],
)
def test_seed_states(layer, expected):
    layer.build((1, 4, 4, 3))
    states = _compat.seed_states(layer)
    assert len(states) == expected
    assert all(state.shape == (2,) for state in states)


def test_logits_of():
    x = tf.constant([[1.0, 2.0]])
    for name in ("softmax", "sigmoid"):
        outputs = keras.layers.Dense(2, name)(x)
        assert _compat.logits_of(outputs) is not None
    assert _compat.logits_of(x) is None


def test_remember_logits():
    """Keras computes from logits where the probability itself is rounded to 0."""
    logits = tf.constant([[0.0, 200.0]])
    outputs = tf.constant([[0.0, 1.0]])
    _compat.remember_logits(outputs, logits)
    found = keras.losses.sparse_categorical_crossentropy(tf.constant([0]), outputs)
    np.testing.assert_allclose(found, [200.0], rtol=1e-6)


def test_array():
    variable = keras.Variable([1.0, 2.0])
    found = _compat.array(variable)
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, [1.0, 2.0])


# --- training ---


def test_fithooks():
    """Before the first epoch, with Keras's iterator; a batch of it may be given."""
    seen = []

    class Model(_compat.FitHooks, keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

        def before_epochs(self, iterator, batch):
            seen.append((self.dense.built, iterator, batch))
            return iterator, batch

    model = Model()
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(*DATA, epochs=2, verbose=0)
    model.evaluate(*DATA, verbose=0)
    model.train_on_batch(*DATA)
    assert [built for built, _, _ in seen[:2]] == [False, True]
    for _, iterator, batch in seen[:2]:
        assert batch is None
        assert iterator.num_batches == 1
        assert isinstance(iterator.data_adapter.get_tf_dataset(), tf.data.Dataset)
    assert all(iterator is None for _, iterator, _ in seen[2:])


@pytest.mark.parametrize("structure", ["one", "dict"])
def test_build_metrics(structure):
    """They are built as the first step would; then it makes no variables."""
    x = keras.Input((3,), name="x")
    a, b = keras.layers.Dense(2, name="a")(x), keras.layers.Dense(1, name="b")(x)
    outputs = a if structure == "one" else {"a": a, "b": b}
    metrics = ["accuracy"] if structure == "one" else {"a": ["accuracy"], "b": ["mse"]}
    y = DATA[1] if structure == "one" else {"a": DATA[1], "b": DATA[1][:, :1]}
    found = []
    for early in (True, False):
        model = keras.Model(x, outputs)
        model.compile(loss="mse", metrics=metrics, run_eagerly=True)
        data = tf.data.Dataset.from_tensor_slices((DATA[0], y)).batch(2)
        if early:
            iterator = SimpleNamespace(_distributed_dataset=data)
            _compat.build_metrics(model, iterator, outputs)
            assert model._compile_metrics.built
        found.append(model.evaluate(data, verbose=0, return_dict=True).keys())
    assert found[0] == found[1]
    _compat.build_metrics(model, None, outputs)


def test_check_compiled():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"call `compile\(\)`"):
        _compat.check_compiled(model, "fit")
    _compat.check_compiled(compiled(), "fit")


def test_set_initial_epoch():
    """Set when training begins, as a backup does; with None the argument counts."""
    model = compiled()

    class Go(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            _compat.set_initial_epoch(self.model, 3)

    def epochs(*callbacks):
        history = model.fit(
            *DATA, epochs=5, initial_epoch=1, verbose=0, callbacks=list(callbacks)
        )
        return history.epoch

    assert epochs(Go()) == [3, 4]
    _compat.set_initial_epoch(model, None)
    assert epochs() == [1, 2, 3, 4]


def test_initial_epoch():
    model = compiled()
    assert _compat.initial_epoch(model) is None
    _compat.set_initial_epoch(model, 2)
    assert _compat.initial_epoch(model) == 2


@pytest.mark.parametrize("steps, expected", [(1, [0]), (3, [0, 1, 2])])
def test_loop_step(steps, expected):
    """Takes an iterator, and as many batches of it as an execution has."""
    model, seen = compiled(steps_per_execution=steps), []

    def step(data):
        seen.extend(data.numpy().tolist())
        return {"sum": tf.reduce_sum(data)}

    data = tf.data.Dataset.range(3).batch(1)
    logs = _compat.loop_step(model, step)(iter(data))
    assert seen == expected
    assert int(logs["sum"]) == expected[-1]


def test_convert_optionals():
    """As where a batch has no sample weights."""
    x, missing = tf.constant(1.0), tf.experimental.Optional.empty(tf.TensorSpec([]))
    function = _compat.convert_optionals(compiled(), lambda batch: batch)
    assert function((x, missing)) == (x, None)


def test_compute_loss():
    model = compiled(loss_weights=2.0)
    model.layers[-1].kernel.regularizer = keras.regularizers.L2(0.1)
    x, y = DATA
    weight = np.array([1.0, 0.0, 0.0, 0.0], "float32")
    predictions = model(x)
    found = _compat.compute_loss(model, x, y, predictions, weight)
    expected = 2 * np.mean(predictions[0] ** 2) / 4
    expected += 0.1 * np.sum(np.square(model.layers[-1].kernel.numpy()))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_scale_layer_loss(strategy):
    assert float(_compat.scale_layer_loss(compiled(), tf.constant(3.0))) == 3.0
    with strategy.scope():
        model = compiled(run_eagerly=False)

    def run():
        return _compat.scale_layer_loss(model, tf.constant(3.0))

    found = strategy.experimental_local_results(strategy.run(run))
    assert [float(v) for v in found] == [1.5, 1.5]  # Keras adds up the replicas'


def test_loss_tracker():
    model = compiled()
    model.fit(*DATA, verbose=0)
    tracker = _compat.loss_tracker(model)
    assert tracker in model.metrics and tracker.name == "loss"


def test_compiled_metrics():
    assert _compat.compiled_metrics(compiled(metrics=["mae"])) == ["mae"]
    assert _compat.compiled_metrics(compiled()) is None
    assert _compat.compiled_metrics(make_backbone()) is None


def test_loss_weights():
    assert _compat.loss_weights(compiled(loss_weights=2.0)) == 2.0
    assert _compat.loss_weights(compiled()) is None
    assert _compat.loss_weights(make_backbone()) is None


def test_learning_rate():
    assert float(_compat.learning_rate(keras.optimizers.SGD(0.5)).value) == 0.5
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 2)
    assert _compat.learning_rate(keras.optimizers.SGD(schedule)) is schedule


def built(optimizer):
    variables = [keras.Variable(np.zeros(n), name=f"v{n}") for n in (2, 3)]
    optimizer.build(variables)
    return variables


def test_variable_index():
    optimizer = keras.optimizers.Adam()
    variables = built(optimizer)
    assert [_compat.variable_index(optimizer, v) for v in variables] == [0, 1]


def test_steps_taken():
    inner = keras.optimizers.SGD(gradient_accumulation_steps=4)
    optimizer = keras.optimizers.LossScaleOptimizer(inner)
    variables = built(inner)
    for _ in range(6):
        inner.apply([keras.ops.zeros_like(v) for v in variables], variables)
    assert int(inner.iterations) == 1
    for each in (inner, optimizer):
        assert int(_compat.steps_taken(each).value) == 6


def test_nocommondecay():
    class SGD(_compat.NoCommonDecay, keras.optimizers.SGD):
        pass

    for kind, expected in ((SGD, 1.0), (keras.optimizers.SGD, 0.95)):
        optimizer = kind(0.1, weight_decay=0.5)
        variable = keras.Variable(1.0)
        optimizer.build([variable])
        optimizer.apply_gradients([(tf.constant(0.0), variable)])
        assert float(variable.value) == pytest.approx(expected)


def test_is_decayed():
    optimizer = keras.optimizers.SGD(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    found = [
        _compat.is_decayed(optimizer, keras.Variable(0.0, name=name))
        for name in ("kernel", "bias")
    ]
    assert found == [True, False]


def test_slots():
    """Each a list in the order of the variables."""
    optimizer = keras.optimizers.Adam(use_ema=True)
    variables = built(optimizer)
    found = _compat.slots(optimizer)
    names = {"_momentums", "_velocities", _compat.AVERAGES}
    assert names <= set(found)
    for name in names:
        assert [v.shape for v in found[name]] == [v.shape for v in variables]
    others = [v for name in set(found) - names for v in found[name]]
    assert not any(isinstance(v, keras.Variable) for v in others)


def test_averages():
    optimizer = keras.optimizers.SGD(use_ema=True)
    variables = built(optimizer)
    averages = getattr(optimizer, _compat.AVERAGES)
    assert [v.shape for v in averages] == [v.shape for v in variables]


@pytest.mark.parametrize("name", sorted(_compat.CALLBACK_STATE))
def test_callback_state(name, tmp_path):
    """Each is an attribute once a training has begun."""
    kind = getattr(keras.callbacks, name)
    source = inspect.getsource(kind)
    parents = "".join(inspect.getsource(k) for k in kind.__mro__[1:-1])
    for attribute in _compat.CALLBACK_STATE[name]:
        assert f"self.{attribute} = " in source + parents, attribute


def test_global_seed_generator():
    """All that was given no seed draws from it."""
    state = _compat.seed_generator.global_state
    state.set_global_attribute("global_seed_generator", None)
    assert _compat.global_seed_generator(create=False) is None
    made = _compat.global_seed_generator()
    assert _compat.global_seed_generator(create=False) is made
    before = made.state.numpy()
    keras.random.normal((2,))
    assert not np.array_equal(made.state.numpy(), before)


def test_print_msg(capsys, monkeypatch):
    _compat.print_msg("a line of the progress bar's kind")
    assert "progress bar" in capsys.readouterr().out


# --- data ---


def test_get_data_adapter():
    x, y = DATA
    adapter = _compat.get_data_adapter(x=x, y=y, batch_size=3)
    assert adapter.num_batches == 2
    sizes = [len(batch[0]) for batch in adapter.get_numpy_iterator()]
    assert sizes == [3, 1]


def test_adapter_dataset():
    data = tf.data.Dataset.from_tensor_slices(DATA).batch(2)
    assert _compat.adapter_dataset(_compat.get_data_adapter(x=data)) is data
    arrays = _compat.get_data_adapter(x=DATA[0], y=DATA[1])
    assert _compat.adapter_dataset(arrays) is None


def test_made_of():
    first = tf.data.Dataset.range(3)
    second = first.map(lambda x: x + 1).batch(2)
    assert _compat.made_of(_compat.made_of(second)[0]) == [first]
    assert list(_compat.made_of(tf.data.Dataset.zip((first, first)))) == [first] * 2
    assert list(_compat.made_of(first)) == []


# --- several hosts ---


class Workers(tf.distribute.MultiWorkerMirroredStrategy):
    """Not started: that takes processes. `test_several_hosts.py` has real ones."""

    def __init__(self, **extended):
        self._extended = SimpleNamespace(**extended)


def test_number_of_workers(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    alone = tf.distribute.MultiWorkerMirroredStrategy()
    assert _compat.number_of_workers(alone) == 1


def test_strategy_name(strategy, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    alone = tf.distribute.MultiWorkerMirroredStrategy()
    assert _compat.strategy_name(alone) == "MultiWorkerMirroredStrategy"
    assert _compat.strategy_name(strategy) == "MirroredStrategy"


def test_is_chief(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    alone = tf.distribute.MultiWorkerMirroredStrategy()
    assert hasattr(type(alone.extended), "_is_chief") or _compat.is_chief(alone)


def test_has_several_workers(strategy, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert not _compat.has_several_workers(strategy)
    alone = tf.distribute.MultiWorkerMirroredStrategy()
    assert not _compat.has_several_workers(alone)
    assert _compat.has_several_workers(Workers(_num_workers=2))


# --- Keras Tuner ---


class Build(keras_tuner.HyperModel):
    """A number `a` from 1 to 3, and a model that is not trained."""

    def build(self, hp):
        hp.Int("a", 1, 3)
        return compiled()


@pytest.fixture
def tuner(tmp_path):
    return keras_tuner.RandomSearch(
        Build(), "loss", max_trials=2, directory=tmp_path, project_name="search"
    )


def test_infer_metric_direction():
    assert _compat.infer_metric_direction("val_accuracy") == "max"
    assert _compat.infer_metric_direction("val_loss") == "min"


def test_oracle_chief(tuner):
    """The chief's answers, without a network."""
    servicer = _compat.oracle_chief.OracleServicer(tuner.oracle)
    request = _compat.protos.get_service().GetSpaceRequest()
    space = servicer.GetSpace(request, None).hyperparameters.space
    assert [v.name for v in space.int_space] == ["a"]


def test_protos():
    status = _compat.protos.get_proto().TrialStatus
    assert status.IDLE != status.STOPPED
    assert _compat.protos.get_service().EndTrialResponse() is not None
    grpc = _compat.protos.get_service_grpc()
    assert callable(grpc.OracleStub) and callable(grpc.add_OracleServicer_to_server)


def test_tuner_processes(monkeypatch):
    for name in ("KERASTUNER_ORACLE_IP", "KERASTUNER_TUNER_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not _compat.tuner_processes.has_chief_oracle()
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    assert _compat.tuner_processes.has_chief_oracle()
    assert _compat.tuner_processes.is_chief_oracle()


def test_tuner_utils(tmp_path):
    _compat.tuner_utils.save_json(str(tmp_path / "a.json"), {"a": 1})
    assert _compat.tuner_utils.load_json(str(tmp_path / "a.json")) == {"a": 1}


def test_trialstatus():
    names = ("RUNNING", "IDLE", "INVALID", "STOPPED", "COMPLETED", "FAILED")
    assert len({getattr(_compat.TrialStatus, name) for name in names}) == 6


def test_tunerhooks(tmp_path):
    called = []

    class Tuner(_compat.TunerHooks, keras_tuner.RandomSearch):
        def state_file(self):
            return str(tmp_path / "own.json")

        def declare_space(self):
            called.append("declare_space")
            self.hypermodel.build(self.oracle.get_space())

        def run_and_update(self, trial, *args, **kwargs):
            called.append((trial.trial_id, args))
            self.oracle.update_trial(trial.trial_id, {"loss": 1.0})

    tuner = Tuner(Build(), "loss", max_trials=1, directory=tmp_path)
    assert called == ["declare_space"]
    tuner.search("data", verbose=0)
    assert called[1:] == [("0", ("data",))]
    tuner.save()
    assert (tmp_path / "own.json").is_file()


def test_copy_callbacks(tuner, tmp_path):
    given = [keras.callbacks.TensorBoard(tmp_path / "logs"), keras.callbacks.History()]
    copies = _compat.copy_callbacks(tuner, given)
    assert [type(c) for c in copies] == [type(c) for c in given]
    assert copies[1] is not given[1]
    trial = tuner.oracle.create_trial("tuner0")
    board, *_ = _compat.copy_callbacks(tuner, given, trial, 0)
    assert str(trial.trial_id) in str(board.log_dir)


def test_oracle_of(tuner):
    assert _compat.oracle_of(tuner) is tuner.oracle
    client = SimpleNamespace(_oracle=tuner.oracle)  # as `OracleClient` keeps it
    assert _compat.oracle_of(SimpleNamespace(oracle=client)) is tuner.oracle
    (client_class,) = (
        kind for name, kind in vars(_oracle_client()).items() if name == "OracleClient"
    )
    assert "self._oracle = oracle" in inspect.getsource(client_class)


def _oracle_client():
    from keras_tuner.src.distribute import oracle_client

    return oracle_client


def test_saved_oracle(tuner):
    trial = tuner.oracle.create_trial("tuner0")
    tuner.oracle.save()
    saved = _compat.saved_oracle(tuner.oracle)
    assert saved["ongoing_trials"] == {"tuner0": trial.trial_id}
    assert saved["retry_queue"] == []


def test_retry_queue(tuner):
    """What is in it is given out next."""
    first = tuner.oracle.create_trial("tuner0")
    _compat.retry_queue(tuner.oracle).append(first.trial_id)
    assert tuner.oracle.create_trial("tuner1").trial_id == first.trial_id


def test_has_been_tried(tuner):
    trial = tuner.oracle.create_trial("tuner0")
    value = trial.hyperparameters.values["a"]
    for a in (1, 2, 3):
        assert _compat.has_been_tried(tuner.oracle, {"a": a}) is (a == value)


def test_hash_of_values(tuner):
    one, same, other = (
        _compat.hash_of_values(tuner.oracle, {"a": a}) for a in (1, 1, 2)
    )
    assert one == same != other


def test_replace_save_json(tuner, tmp_path, monkeypatch):
    """All of Keras Tuner's files go through it: oracle, trials, tuner."""
    utils = _compat.tuner_utils
    plain, written = utils.save_json, []
    plain = getattr(plain, "saves", plain)
    monkeypatch.setattr(utils, "save_json", lambda *args: plain(*args))

    @contextlib.contextmanager
    def replacing(path):
        written.append(Path(path).name)
        yield path

    _compat.replace_save_json(replacing)
    _compat.replace_save_json(replacing)  # once is enough
    trial = tuner.oracle.create_trial("tuner0")
    tuner.oracle.update_trial(trial.trial_id, {"loss": 1.0})
    tuner.save()
    assert {"trial.json", "oracle.json", "tuner0.json"} <= set(written)


def test_known_variables():
    optimizer = keras.optimizers.SGD()
    known, other = keras.Variable(1.0), keras.Variable(1.0)
    optimizer.build([known])
    assert list(map(id, _compat.known_variables(optimizer))) == [id(known)]
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    scaled.build([known, other])
    found = _compat.known_variables(scaled)
    assert list(map(id, found)) == [id(known), id(other)]
