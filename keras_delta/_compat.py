"""All uses of private names of Keras, Keras Tuner and TensorFlow.

Nothing else in this package uses a private name of another one. Each has a test in
`tests/test_compat.py`, which shows what a new version has changed; the tested
versions are in CONTRIBUTING.md.
"""

import importlib

import keras
import tensorflow as tf
from keras import tree
from keras.src import ops as operations  # the classes of bare operations
from keras.src.models.functional import Functional
from keras.src.random import seed_generator
from keras.src.trainers.data_adapters import get_data_adapter
from keras.src.utils.io_utils import print_msg

__all__ = ["Functional", "get_data_adapter", "operations", "print_msg"]

# Loaded on demand: most users never import Keras Tuner.
_KERAS_TUNER = {
    "infer_metric_direction": "engine.metrics_tracking",
    "oracle_chief": "distribute",
    "protos": "",
    "tuner_processes": "distribute.utils",
    "tuner_utils": "utils",
    "TrialStatus": "engine.trial",
}


def __getattr__(name):
    if name not in _KERAS_TUNER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    path = ".".join(filter(None, ["keras_tuner.src", _KERAS_TUNER[name]]))
    module = importlib.import_module(path)
    if name in ("tuner_processes", "tuner_utils"):
        return module
    if hasattr(module, name):
        return getattr(module, name)
    return importlib.import_module(f"{path}.{name}")


# --- the graph of a Functional model ---


def run_through_graph(model, inputs, call):
    """Go through a Functional model's calls in order.

    Args:
        model: Functional model.
        inputs: stand-ins for its inputs.
        call: function of an operation and its arguments, returns its outputs.
    """
    return model._run_through_graph(
        inputs, operation_fn=lambda operation: operation, call_fn=call
    )


def flatten_layers(layer):
    """All layers inside a layer, itself included."""
    return layer._flatten_layers()


def parameters(layer):
    """What a layer and those inside it can train, whether they are frozen or not."""
    return [v for part in flatten_layers(layer) for v in part._trainable_variables]


def takes_training(operation):
    """Whether an operation's `call` has an argument `training`."""
    return bool(getattr(operation, "_call_has_training_arg", False))


def seed_states(layer):
    """The seed variables of a layer's random numbers."""
    return [g.state for g in getattr(layer, "_seed_generators", None) or ()]


def logits_of(outputs):
    """The logits that Keras stores for a softmax or sigmoid; None without them."""
    return getattr(outputs, "_keras_logits", None)


def remember_logits(outputs, logits):
    """Let Keras's losses compute from logits, as after its own activations."""
    outputs._keras_logits = logits


def array(variable):
    """A variable's value; NumPy itself would warn about Keras's `__array__`."""
    return variable.value.numpy()


# --- training ---


class FitHooks:
    """Mix-in of a `keras.Model`: a hook that `fit` and `evaluate` call before epochs.

    A subclass defines `before_epochs(iterator, batch)`, which returns the arguments
    that Keras builds the model from.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        super()._maybe_symbolic_build(*self.before_epochs(iterator, data_batch))


def build_metrics(model, epoch_iterator, outputs):
    """Let metrics make their variables early, or TensorFlow traces a step twice."""
    metrics = model._compile_metrics
    if epoch_iterator is None or metrics is None or metrics.built:
        return
    spec = epoch_iterator._distributed_dataset.element_spec
    y = keras.utils.unpack_x_y_sample_weight(spec)[1]
    if all(isinstance(v, tf.TensorSpec) for v in tree.flatten(y)):
        metrics.build(y, outputs)


def check_compiled(model, method):
    """Raise Keras's error if a model is not compiled."""
    model._assert_compile_called(method)


def set_initial_epoch(model, epoch):
    """Let `fit` resume at an epoch despite its argument; None: use the argument."""
    model._initial_epoch = epoch


def initial_epoch(model):
    """The value set by `set_initial_epoch`, or None."""
    return model._initial_epoch


def loop_step(model, step):
    """The function of an iterator that `fit` calls, from a function of one batch."""
    return model._make_function(step)


def convert_optionals(model, step):
    """A function of one batch that accepts missing parts of it as None."""
    return model._autoconvert_optionals(step)


def compute_loss(model, x, y, y_pred, sample_weight):
    """The compiled loss and the layers' losses, scaled for the replicas."""
    return model._compute_loss(x, y, y_pred, sample_weight, training=True)


def scale_layer_loss(model, loss):
    """A layer's loss, scaled for the replicas."""
    return model._aggregate_additional_loss(loss)


def loss_tracker(model):
    """The metric `loss` of a compiled model."""
    return model._loss_tracker


def compiled_metrics(model):
    """The argument of `compile(metrics=...)`, a list or dict; None for none."""
    return getattr(getattr(model, "_compile_metrics", None), "_user_metrics", None)


def loss_weights(model):
    """The argument of `compile(loss_weights=...)`; None for none."""
    compiled = getattr(model, "_compile_config", None)
    return (getattr(compiled, "config", None) or {}).get("loss_weights")


def learning_rate(optimizer):
    """The variable or schedule of an optimizer's learning rate."""
    return getattr(optimizer, "inner_optimizer", optimizer)._learning_rate


def steps_taken(optimizer):
    """Calls of an optimizer, where its `iterations` counts updates of the weights."""
    return getattr(optimizer, "inner_optimizer", optimizer)._iterations


def variable_index(optimizer, variable):
    """The index of a variable in an optimizer's slots."""
    return optimizer._get_variable_index(variable)


def known_variables(optimizer):
    """The variables that a built optimizer can update, in the order of its slots."""
    return getattr(optimizer, "inner_optimizer", optimizer)._trainable_variables


class NoCommonDecay:
    """Mix-in of an optimizer whose `update_step` applies the weight decay itself."""

    def _apply_weight_decay(self, variables):
        pass


def is_decayed(optimizer, variable):
    """Whether an optimizer's weight decay applies to a variable."""
    return optimizer._use_weight_decay(variable)


AVERAGES = "_model_variables_moving_average"
"""The slots of an optimizer that hold the averages of the weights."""


def slots(optimizer):
    """Dict name -> list of an optimizer's slots, one for each trained variable."""
    lists = {k: v for k, v in vars(optimizer).items() if isinstance(v, list)}
    lists.pop("_trainable_variables", None)
    lists.pop("_variables", None)
    return lists


_SAVED = ("best", "_batches_seen_since_last_saving", "_last_batch_seen")
CALLBACK_STATE = {
    "EarlyStopping": ("best", "best_epoch", "best_weights", "stopped_epoch", "wait"),
    "History": ("epoch", "history"),
    "ModelCheckpoint": _SAVED,
    "OrbaxCheckpoint": (*_SAVED, "_total_batches_seen"),
    "ReduceLROnPlateau": ("best", "cooldown_counter", "wait"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "TensorBoard": ("_global_train_batch", "_global_test_batch"),
}
"""Attributes in which Keras's callbacks keep the state of a training."""


def global_seed_generator(create=True):
    """The generator for layers without a seed, made if need be; else maybe None."""
    if create:
        return seed_generator.global_seed_generator()
    return seed_generator.global_state.get_global_attribute("global_seed_generator")


# --- data ---


def made_of(dataset):
    """The `tf.data.Dataset`s that a data set was made from."""
    return dataset._inputs()


def adapter_dataset(adapter):
    """The `tf.data.Dataset` inside a data adapter, or None."""
    return getattr(adapter, "_dataset", None)


# --- several hosts ---


def number_of_workers(strategy):
    """The number of processes of a `MultiWorkerMirroredStrategy`."""
    return strategy.extended._num_workers


def strategy_name(strategy):
    """A strategy's public name, which may differ from that of its class."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return "MultiWorkerMirroredStrategy"
    return type(strategy).__name__


def is_chief(strategy):
    """Whether this process is the first of a `MultiWorkerMirroredStrategy`."""
    return strategy.extended._is_chief


def has_several_workers(strategy):
    """Whether a strategy's replicas are spread over several processes."""
    # Not for a cluster of one, or a strategy made without TF_CONFIG.
    workers = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, workers) and number_of_workers(strategy) > 1


# --- Keras Tuner ---


class TunerHooks:
    """Mix-in of a Keras Tuner `BaseTuner`: methods that the tuner calls on itself.

    A subclass defines `state_file()`, the path of the tuner's state;
    `declare_space()`, which names all hyperparameters; and `run_and_update(trial,
    ...)`, which runs a trial and reports to the oracle.
    """

    def _get_tuner_fname(self):
        return self.state_file()

    def _populate_initial_space(self):
        self.declare_space()

    def _try_run_and_update_trial(self, trial, *args, **kwargs):
        self.run_and_update(trial, *args, **kwargs)


def copy_callbacks(tuner, callbacks, trial=None, execution=None):
    """Copies of callbacks; with a trial, TensorBoard's get a folder for it."""
    copies = tuner._deepcopy_callbacks(callbacks)
    if trial is not None:
        tuner._configure_tensorboard_dir(copies, trial, execution)
    return copies


def oracle_of(tuner):
    """The tuner's oracle; in a worker, the local one behind the chief's connection."""
    return getattr(tuner.oracle, "_oracle", tuner.oracle)


def saved_oracle(oracle):
    """The saved state of an oracle, a dict."""
    path = oracle._get_oracle_fname()
    return importlib.import_module("keras_tuner.src.utils").load_json(path)


def retry_queue(oracle):
    """Ids of trials to be run again by workers, a mutable list."""
    return oracle._retry_queue


def has_been_tried(oracle, values):
    """Whether an oracle has already used these values in a trial."""
    return oracle._duplicate(values)


def hash_of_values(oracle, values):
    """Keras Tuner's hash of hyperparameters."""
    return oracle._compute_values_hash(values)


def replace_save_json(replacing):
    """Let Keras Tuner write JSON files to the paths that a context manager yields.

    Subclasses would not be enough: an oracle creates its trials itself, and a search
    can use any oracle.
    """
    utils = importlib.import_module("keras_tuner.src.utils")
    save = utils.save_json
    if hasattr(save, "replacing"):
        return

    def save_json(path, obj):
        if "://" in str(path):  # buckets replace as a whole by themselves
            return save(path, obj)
        with replacing(path) as temporary:
            return save(str(temporary), obj)

    save_json.replacing = replacing
    utils.save_json = save_json
