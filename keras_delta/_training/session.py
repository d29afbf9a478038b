"""One `fit`: everything before and after Keras's training loop."""

import contextlib
import inspect
import signal
import sys
import threading

import keras
import tensorflow as tf
from keras import tree

from keras_delta import _compat
from keras_delta._inputs import replay, samples
from keras_delta._inputs.look import Samples
from keras_delta._inputs.training_data import TrainingData
from keras_delta._training import beginning, checks, start
from keras_delta._training.hooks import SessionHooks
from keras_delta._training.saving import check_path, stored_recipe

READ_OF_GENERATOR = 512  # samples, which are kept in memory


class Session:
    """One `fit` of a model, used as a context around Keras's own `fit`.

    On the way in, the data are looked at once, everything that cannot work is
    refused, callbacks may put a backup back, the regularizer looks at the data, and
    the cache of source maps is opened. On the way out, also after errors and Ctrl-C,
    the same is undone in reverse order.

    Args:
        model: the `DeltaModel`.
        arguments: dict of the arguments of `keras.Model.fit`.
        cache: the `SourceMapCache` to use, or None.
        keep_cache: whether its maps stay for the next training.
        recipe: the `Recipe` to begin by, or None.

    Attributes:
        arguments: for Keras's `fit`, while the session lasts.
        cache: the cache, while it is open.
        interrupted: whether Ctrl-C has ended the training.
        looks: list of numbers of samples that were looked at in the data.
        data_begin: `replay.upcoming` of the data as the training began at first.
        failed: whether an error has ended it.
    """

    def __init__(self, model, arguments, cache=None, keep_cache=False, recipe=None):
        self.model, self.arguments, self._recipe = model, dict(arguments), recipe
        self._beginning = None
        self.cache, self._asked_cache, self._keep_cache = None, cache, keep_cache
        self.data = self.data_begin = self._epoch_iterator = None
        self.looks, self.interrupted, self.failed = [], False, False

    def __enter__(self):
        try:
            return self._open()
        except BaseException:
            self._undo()
            self._let_go()
            raise

    def _open(self):
        with contextlib.ExitStack() as stack:
            self._look_at_data()
            stack.enter_context(self.model.hosts.running())
            self.model.hosts.check_same("epochs", self.arguments.get("epochs", 1))
            stack.enter_context(self._callbacks())
            self._prepare()
            stack.enter_context(self._open_cache())
            stack.enter_context(self._stop_at_interrupt())
            if self.data.is_generator:
                self.arguments["x"] = self.data.from_start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, trace):
        self.failed = kind is not None
        try:
            if self.failed:
                self._undo()
            self._stack.__exit__(kind, error, trace)
            if kind is None and self._beginning is not None:
                self._beginning.end()
        finally:
            self._let_go()
        if isinstance(error, tf.errors.InvalidArgumentError):
            checks.explain_label(self.model, error)

    def _undo(self):
        if self._beginning is not None:
            self._beginning.undo()

    def _let_go(self):
        """Drop the data, which may be large."""
        self.data = self.arguments = self._stack = self._epoch_iterator = None

    @property
    def is_open(self):
        """Whether the training is under way."""
        return self.arguments is not None

    def _look_at_data(self):
        model, given = self.model, self.arguments
        checks.strategy_supports(model)
        checks.built_in_scope(model, "target", model.target.variables)
        checks.has_loss(model)
        checks.predictions_fit(model)
        checks.trains_in_floats(model)
        for callback in tree.flatten(given.get("callbacks")):
            if not getattr(callback, "save_weights_only", True):
                check_path(callback.filepath)  # ModelCheckpoint, after an epoch
        split = given.get("validation_split", 0.0)
        if given.get("validation_data") is not None:
            split = 0.0  # as Keras
        arrays = tree.flatten(given.get("x")) and samples.are_arrays(given["x"])
        if self._recipe is not None and arrays and given.get("batch_size") is None:
            given["batch_size"] = self._recipe.batch_size
        x, y, batch_size, weights = (
            given.get(key) for key in ("x", "y", "batch_size", "sample_weight")
        )
        self.data = TrainingData(x, y, batch_size, split, sample_weight=weights)
        self.data_begin = replay.upcoming(x)
        checks.data_fits(model, self.data)
        if given.get("class_weight") is not None:
            given["class_weight"] = checks.class_weight(
                model, given["class_weight"], self.data
            )
        start.check(model, self.data.first_inputs)
        self.data.drop_first_batch()
        self._look_at_validation_data(given.get("validation_data"))
        if self._recipe is not None:
            completed = beginning.complete(self._recipe, given, self.data)
            self._beginning = beginning.Beginning(model, *completed)
        steps = self._count_steps(given.get("initial_epoch", 0))
        checks.batch_norm_keeps_up(model, steps)
        if self._cache is not None:
            checks.cache_can_be_read(model)
            with replay.unmoved(self.data.x):
                self._cache.check_data(self.data.x, self.data.y, self.data.first_size)

    def _count_steps(self, first_epoch):
        """Steps from an epoch on; None if unknown."""
        epochs = self.arguments.get("epochs", 1) - first_epoch
        return self.data.count_steps(epochs, self.arguments.get("steps_per_epoch"))

    def _look_at_validation_data(self, given):
        """Find wrong labels now rather than after an epoch."""
        if given is None or inspect.isgenerator(given):  # a look would use it up
            return
        x, y, weights = given, None, None
        if isinstance(given, (tuple, list)):
            x, y, weights = keras.utils.unpack_x_y_sample_weight(tuple(given))
        data = TrainingData(x, y, what="validation", sample_weight=weights)
        if data.first_size is not None:
            data.check_lengths()
            checks.labels_fit(self.model, data.labels)
            checks.weights_fit(self.model, data.weights)

    @property
    def _cache(self):
        """The requested cache, if the source runs in a step; else None."""
        uses_source = self.model.regularizer is not None and self.model.networks.fetched
        return self._asked_cache if uses_source else None

    # --- callbacks ---

    @contextlib.contextmanager
    def _callbacks(self):
        callbacks = self.arguments.get("callbacks")
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = tree.flatten(callbacks) if callbacks else []
        self.arguments["callbacks"] = callbacks
        callbacks = getattr(callbacks, "callbacks", callbacks)
        begin = _Begin(self)
        begin.set_model(self.model)
        _compat.set_initial_epoch(self.model, None)
        try:
            for hooks in _with_hooks(callbacks):
                hooks.arrange(callbacks)
            for hooks in _with_hooks(callbacks):
                hooks.before_fit(self)
            callbacks.append(begin)
            yield
        finally:
            if begin in callbacks:
                callbacks.remove(begin)
            for hooks in _with_hooks(callbacks):
                hooks.after_fit(self)

    def repeat_looks(self, numbers, data_begin=None):
        """Repeat an earlier `fit`'s reads before training, to continue its shuffles."""
        self.looks.extend(numbers)
        self.data_begin = self.data_begin if data_begin is None else data_begin
        for number in numbers:
            self.data.pass_over(number)

    def go_on(self, epoch):
        """Train from an epoch on, counted from 0, in place of `initial_epoch`."""
        _compat.set_initial_epoch(self.model, epoch)

    # --- data ---

    def look(self, count):
        """`TrainingData.look`; remembered in `looks`."""
        self.looks.append(count)
        return self.data.look(count)

    def take_iterator(self, iterator):
        """Keras's iterator over the training data, before the first epoch."""
        self._epoch_iterator = iterator

    def begin_training(self):
        """Resume from a backup if one was read; runs after all other callbacks."""
        model = self.model
        if self.interrupted:  # Keras has reset it since
            model.stop_training = True
        first_epoch = _compat.initial_epoch(model)  # Keras's own backup sets it too
        begins = first_epoch or self.arguments.get("initial_epoch", 0)
        steps, verbose = self._count_steps(begins), self.arguments.get("verbose")
        beginning.renew_schedule(model, steps)
        if model.regularizer is not None:
            model.regularizer.begin_training(steps, verbose != 0)
        model.renew_step()  # a backup may have changed what it takes for alike
        if first_epoch and not model.stop_training:
            done = first_epoch - self.arguments.get("initial_epoch", 0)
            x, begins = self.arguments.get("x"), self.data_begin
            replay.fast_forward(self._epoch_iterator, x, done, begins)

    def _prepare(self):
        verbose = self.arguments.get("verbose", "auto")
        self._settle(verbose)
        prepare(self.model, self.look, verbose)

    def follow(self, config):
        """Train by the config of a recipe settled before; None for none."""
        if config is not None and self._beginning is not None:
            self._beginning.follow(stored_recipe(config, self.model))

    def _settle(self, verbose):
        """Fit a new head and make the choices that the recipe leaves open."""
        if self._beginning is None or self._beginning.is_settled:
            return
        data, given = self.data, self.arguments
        if data.is_generator:
            x = self.look(READ_OF_GENERATOR)
            self._beginning.settle(x, verbose=verbose)
            return
        most, steps = samples.MOST, given.get("steps_per_epoch")
        if steps is not None and data.first_size is not None:  # an epoch
            most = min(most, steps * data.first_size)
        options = {}
        if not hasattr(data.x, "as_tested"):  # else a copy of its own is read
            options["on_read"] = self.looks.append
        self._beginning.settle(
            *(data.x, data.y, verbose),
            **options,
            max_samples=most,
            sample_weight=data.sample_weight,
            class_weight=given.get("class_weight"),
        )

    @contextlib.contextmanager
    def _open_cache(self):
        if self._cache is None:
            yield
            return
        networks = self.model.networks
        opened = self._cache.opened(
            networks.maps_fingerprint,
            networks.fetched_shapes,
            self.data.count,
            keep=self._keep_cache,
        )
        with opened as self.cache:
            try:
                yield
            finally:
                self.cache = None

    # --- Ctrl-C ---

    @contextlib.contextmanager
    def _stop_at_interrupt(self):
        """Ctrl-C ends the epoch after the current step, a second one at once.

        An existing custom handler is kept.
        """
        ours = threading.current_thread() is threading.main_thread()
        default = signal.default_int_handler
        if not ours or signal.getsignal(signal.SIGINT) is not default:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, default)

    def _interrupt(self, signum, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.interrupted = self.model.stop_training = True
        print(
            "\nStopping after this step, with its weights. Press "
            "Ctrl-C again to stop at once.",
            file=sys.stderr,
            flush=True,
        )


class _Begin(keras.callbacks.Callback):
    """The last callback: notifies the session once all others have begun."""

    def __init__(self, session):
        super().__init__()
        self._session, self._has_begun, self._has_warned = session, False, False

    def on_train_begin(self, logs=None):
        self._session.begin_training()

    def on_epoch_end(self, epoch, logs=None):
        if not self._has_warned:
            self._has_warned = checks.loss_is_possible(self.model, logs or {})

    def on_epoch_begin(self, epoch, logs=None):
        if not self._has_begun:  # by now callbacks have finished loading
            self.model.hosts.check_same_start(self.model)
        self._has_begun = True
        self._session.model.renew_step()  # a callback may have thawed layers


def _with_hooks(callbacks):
    return [c for c in callbacks if isinstance(c, SessionHooks)]


def prepare(model, look, verbose="auto"):
    """Let a model's regularizer look at the training data, unless it has.

    Args:
        model: the `DeltaModel`.
        look: function of a number, gives batches `(x, y, weights)` of as many samples.
        verbose: 0 for silence.
    """
    regularizer = model.regularizer
    if regularizer is not None and not regularizer.ready:
        regularizer.make_ready(model, Samples(look), verbose=verbose != 0)
        # Bit-identical even if the hosts differ.
        model.hosts.copy_first(regularizer.variables)
