"""`DeltaModel`: a Keras model whose training step adds a regularizer's penalty."""

import contextlib
import inspect

import keras
import tensorflow as tf
from keras import ops, tree

from keras_delta import caching, regularizers
from keras_delta._errors import warn
from keras_delta._inputs import replay, samples
from keras_delta._network import taps as tapping
from keras_delta._network.graph import Graph, copy_model
from keras_delta._network.heads import body_output
from keras_delta._network.pairing import Pairing
from keras_delta._network.sharing import Shared
from keras_delta._training import checks, hosts, loop, watching
from keras_delta._training.saving import WholeFiles
from keras_delta.regularizers import Batch


@keras.saving.register_keras_serializable("keras_delta")
class DeltaModel(WholeFiles, keras.Model):
    """Fine-tunes `target`, kept close to a frozen `source` by a regularizer.

    `fit`, `evaluate`, `predict`, `save` and callbacks are Keras's own. In each
    training step the target runs once, for predictions and feature maps together;
    where the regularizer compares maps, the source runs up to its last tap, in
    inference mode, outside of the gradient tape. What is minimised is

        task loss + alpha * feature penalty + beta * head penalty,

    logged as `loss`, `task_loss`, `feature_penalty` and `head_penalty` (the
    penalties already times alpha and beta). `evaluate`, `predict` and `export`
    never touch the source.

    Args:
        target: Functional or Sequential model to train, as `attach_head` makes it.
        source: the pretrained model, copied and frozen here; default: a snapshot
            of the target without its head, as it is now.
        taps: the layers whose maps are compared: `"auto"`, a list of layer names,
            or a dict from target to source names.
        regularizer: instance, name, config dict or list (their sum); can also be
            given to `compile` and `fit`, the latest wins. Default: none.
        name: optional name.
        source_maps: `"compute"`: the source runs in each step; `"cache"` or a
            `SourceMapCache`: it runs once for each image that comes back. Can also be
            given to `fit`.

    Attributes:
        target: the plain Keras model; use it to go on without this package.
        source: the frozen copy.
        taps: list of the target's tapped layers.
        pairing: which layers correspond, and which only the target has.
        regularizer: the regularizer in use, or None.

    Raises:
        TypeError: for a subclassed target or source.
        ValueError: for unknown taps, a source that does not fit the target, or
            parts built outside of the distribution strategy's scope.

    Example:
        ```python
        source = kd.backbones.efficientnet_lite0(input_shape=(128, 128, 3))
        model = kd.DeltaModel(kd.attach_head(source, classes=12), source=source)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        model.fit(train, epochs=15, regularizer="delta")
        ```
    """

    def __init__(
        self,
        target,
        source=None,
        taps="auto",
        regularizer=None,
        name=None,
        source_maps="compute",
    ):
        target_graph = Graph(target, argument="target")
        # No autocast: casting raw images to half precision would cost their last
        # bits, and the inner layers cast by themselves.
        super().__init__(name=name, dtype=target.dtype_policy, autocast=False)
        self.target = target
        checks.built_in_scope(self, "target", target.variables)
        if source is None:
            graph, end = target_graph, body_output(target_graph)
        else:
            graph, end = Graph(source, argument="source"), None
        self.source = copy_model(graph, end, name="source", trainable=False)
        if isinstance(taps, dict):  # the copy of a nested model is flat
            taps = {
                ours: str(theirs).replace("/", "_") for ours, theirs in taps.items()
            }
        self._target_graph, self._source_graph = target_graph, Graph(self.source)
        self.pairing = Pairing(target_graph, self._source_graph)
        chosen = tapping.choose(taps, target_graph, self._source_graph, self.pairing)
        self._source_of_tap = chosen
        self._target_taps = {t: target_graph.output_of(t) for t in chosen}
        self._source_taps = {
            t: self._source_graph.output_of(s) for t, s in chosen.items()
        }
        self.pairing.check(list(self._source_taps.values()))
        self._evaluating = False
        self._start_checked = False  # that all workers have the same weights
        self._shared = self._cache = None
        self._given_cache = caching.get(source_maps)
        self._keeps_cache = source_maps is self._given_cache
        self._jit_compile_asked = False
        self.watch_every = self.watched = None
        self.interrupted = False
        self.reads, self.epoch_iterator = [], None
        self._task_loss = keras.metrics.Mean(name="task_loss")
        self._feature_penalty = keras.metrics.Mean(name="feature_penalty")
        self._head_penalty = keras.metrics.Mean(name="head_penalty")
        self.regularizer = None
        self.built = True
        if regularizer is not None:
            self.set_regularizer(regularizer)

    @property
    def hosts(self):
        """The processes that take part in the training."""
        return hosts.of(self.distribute_strategy)

    @property
    def trainable(self):
        """Whether the target trains; the source never does."""
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        keras.Model.trainable.fset(self, value)
        self.source.trainable = False

    @property
    def taps(self):
        """List of the target's tapped layers, in the order of computation."""
        return list(self._source_of_tap)

    def set_regularizer(self, regularizer):
        """Use a regularizer from now on; `"none"` or None for none.

        A regularizer that another model uses already is copied, without what was
        computed for that model. A name or config that describes the current
        regularizer, but for its strengths, keeps it with what it has computed, and
        sets the strengths.
        """
        new = regularizers.get(regularizer)
        if new is not regularizer and regularizers.alike(new, self.regularizer):
            if new is not None:
                self.regularizer.take_strengths(new)
            return
        if new is not None:
            new = new.for_model(self.pairing)
            if not new.bound:
                shapes = {t: tuple(v.shape[1:]) for t, v in self._target_taps.items()}
                with self.distribute_strategy.scope():
                    new.bind(self.pairing, shapes)
        if new is self.regularizer:
            return
        del self.regularizer  # else Keras would track the old one on
        self.regularizer = new
        self.train_function = None

    def compile(self, *args, regularizer=None, **kwargs):
        """As `keras.Model.compile`, and `regularizer`.

        Raises:
            ValueError: if the loss takes logits where the head gives probabilities,
                or the other way round.
        """
        super().compile(*args, **kwargs)
        given = inspect.signature(super().compile).bind(*args, **kwargs).arguments
        self._jit_compile_asked = given.get("jit_compile") is True
        checks.loss_matches_head(self.loss, self._target_graph)
        if regularizer is not None:
            self.set_regularizer(regularizer)

    def compile_from_config(self, config):
        """See `keras.Model.compile_from_config`; the regularizer is in the model."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        *args,
        regularizer=None,
        source_maps=None,
        **kwargs,
    ):
        """As `keras.Model.fit`, and `regularizer` and `source_maps`.

        A regularizer that has to look at the training data first (`"delta"` with
        `attention="auto"`, scales of the variant `"relative"`) does so here, once.

        Args:
            x, y, batch_size, *args, **kwargs: see `keras.Model.fit`.
            regularizer: instance, name, config dict or list; None keeps the
                current one, `"none"` switches it off.
            source_maps: `"compute"`, `"cache"` or a `SourceMapCache`; None keeps what
                is set, at first `"compute"`. The cache is for data that comes back:
                without augmentation, with flips, or with fixed views. It costs
                memory or disk, and saves the source's run in all epochs but the
                first. What `"cache"` keeps is let go at the end of `fit`; an instance
                keeps it for the next.

        Ctrl-C ends the epoch after the step under way, and `fit` returns as usual,
        with `interrupted` set; a second Ctrl-C interrupts at once.

        Returns:
            `keras.callbacks.History`.

        Raises:
            ValueError: for empty data, labels outside the head's classes, one class
                only, a batch smaller than the number of replicas, what Keras
                cannot run under the distribution strategy, or data whose source maps
                cannot be kept.
            RuntimeError: where one of several workers is lost, or another process
                uses the folder of a cache or backup.
        """
        self._assert_compile_called("fit")
        if regularizer is not None:
            self.set_regularizer(regularizer)
        if source_maps is not None:
            self._given_cache = caching.get(source_maps)
            self._keeps_cache = source_maps is self._given_cache
        checks.strategy_supports(self)
        checks.built_in_scope(self, "target", self.target.variables)
        checks.has_loss(self)
        with replay.unmoved(x):
            first_batch = checks.first_batch(self, x, y, batch_size)
        given = inspect.signature(super().fit).bind(x, y, batch_size, *args, **kwargs)
        given = given.arguments
        rest = samples.without_validation(x, y, given.get("validation_split", 0.0))
        epochs, per_epoch = given.get("epochs", 1), given.get("steps_per_epoch")
        steps = checks.steps_of(rest[0], batch_size, epochs, per_epoch)
        checks.batch_norm_keeps_up(self, steps)
        cache = self._cache_in_use()
        if cache is not None:
            with replay.unmoved(x):
                cache.check_data(*rest, first_batch)
        with self.hosts.running():
            self.hosts.check_same("epochs", epochs)
            callbacks = given.get("callbacks")
            if not isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks = tree.flatten(callbacks) if callbacks else []
            given["callbacks"] = callbacks
            try:
                self._before_fit(rest, given)
                with (
                    self._caching(rest[0], first_batch),
                    loop.stopped_by_interrupt(self),
                ):
                    return super().fit(**given)
            finally:
                listed = getattr(callbacks, "callbacks", callbacks)
                listed[:] = [c for c in listed if not isinstance(c, loop.Begin)]
                for callback in listed:
                    if hasattr(callback, "after_fit"):
                        callback.after_fit(self)

    def _before_fit(self, data, given):
        """Let callbacks read a backup, and the regularizer look at the data.

        Callbacks may have, besides Keras's hooks, `arrange(callbacks)`, which changes
        their order, `before_fit(model)`, and `after_fit(model)`, also after errors.
        """
        listed = given["callbacks"]
        listed = getattr(listed, "callbacks", listed)
        self.reads, self._initial_epoch, self._start_checked = [], None, False
        for callback in list(listed):
            if hasattr(callback, "arrange"):
                callback.arrange(listed)
        for callback in listed:
            if hasattr(callback, "before_fit"):
                callback.before_fit(self)
        for count in self.reads:  # as the interrupted training did
            replay.look(*data, count)
        self.prepare(*data, verbose=given.get("verbose", "auto"))
        begin = loop.Begin(given.get("x"), given.get("initial_epoch", 0))
        begin.set_model(self)
        listed.append(begin)

    def _cache_in_use(self):
        """The cache that was asked for, if maps are compared; else None."""
        if self.regularizer is None or not self.regularizer.needs_maps:
            return None
        if self._given_cache is not None and self._jit_compile_asked:
            raise ValueError(
                "A cache of source maps reads memory and files in each step, which XLA "
                "cannot compile. Compile with `jit_compile=False`, or train with "
                '`source_maps="compute"`.'
            )
        return self._given_cache

    @contextlib.contextmanager
    def _caching(self, x, batch_size):
        """The source's maps come from the cache that was asked for, if any."""
        cache = self._cache_in_use()
        if self._cache is not cache:  # the step was traced for another
            self._cache = self.train_function = None
        if cache is None:
            yield
            return
        spec = {t: tuple(v.shape[1:]) for t, v in self._source_taps.items()}
        count = samples.count(x, batch_size)
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            with cache.opened(
                self.source_fingerprint, spec, count, keep=self._keeps_cache
            ):
                if self._cache is None:
                    self._cache, self.train_function = cache, None
                yield
        finally:
            if not self._keeps_cache:
                self._cache = self.train_function = None
            self.jit_compile = jit_compile

    def prepare(self, x, y=None, verbose="auto"):
        """Let the regularizer look at the training data; `fit` does it by itself.

        Call it before `train_on_batch`. Does nothing the second time.

        Args:
            x, y: the training data, as `fit` takes it.
            verbose: 0 for silence.
        """

        def read(count):
            self.reads.append(count)
            return replay.look(x, y, count)

        if self.regularizer is not None and not self.regularizer.ready:
            self.regularizer.prepare(self, read, verbose=verbose != 0)
            # The same to the last bit, also where the hosts differ.
            self.hosts.copy_first(self.regularizer.variables)

    def make_train_function(self, force=False):
        """See `keras.Model.make_train_function`."""
        if self._cache is not None and not self._cache.is_open:
            self._cache = self.train_function = None  # a step outside of `fit`
        if self.train_function is not None and not force:
            return
        if self.regularizer is not None and not self.regularizer.ready:
            raise ValueError(
                f"The regularizer {type(self.regularizer).__name__} has to look at "
                "training data before the first step. Use `fit`, or call "
                "`model.prepare(x, y)` first."
            )
        checks.strategy_supports(self)
        checks.built_in_scope(self, "target", self.target.variables)
        if self.optimizer is not None and not self.optimizer.built:
            # With all variables: L2-FE's steps touch the head's alone.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        self._shared = Shared(
            self._target_graph, self._source_graph, self.pairing, self._source_taps
        )
        self.train_function = loop.train_function(self)

    def make_test_function(self, force=False):
        """See `keras.Model.make_test_function`."""
        if self.test_function is None or force:
            self.test_function = self.hosts.loop_step(self, self.test_step)

    def make_predict_function(self, force=False):
        """See `keras.Model.make_predict_function`."""
        if self.predict_function is None or force:
            self.predict_function = self.hosts.predict_function(self)
        if self.predict_function is None:
            super().make_predict_function(force)

    def call(self, inputs, training=None, with_maps=False, with_entering=False):
        """The target's outputs.

        Args:
            inputs, training: as for the target.
            with_maps: whether to return `(outputs, maps)`, with a dict tap -> map.
            with_entering: whether to return `(outputs, maps, entering)`, with what
                the source begins with where it shares layers with the target.
        """
        maps = self._target_taps if with_maps else {}
        fetches = (maps, self._shared.entering) if with_entering else (maps,)
        plain = not (with_maps or with_entering)
        if plain and (not training or self.trains_features):
            return self._on_samples(lambda x: self.target(x, training=training), inputs)
        outputs, fetched = self._on_samples(
            lambda x: self._forward(x, training, fetches), inputs
        )
        return outputs if plain else (outputs, *fetched)

    def _forward(self, inputs, training, fetches):
        graph = self._target_graph
        feeds, values = graph.inputs, graph.feed(inputs)
        if training and not self.trains_features:
            feeds, values, fetched = self._frozen_features(values, fetches)
            return graph.run(graph.outputs, feeds, values, training=True), fetched
        held = self._shared.names if len(fetches) > 1 else ()
        return graph.run(
            (graph.outputs, fetches), feeds, values, training=training, held=held
        )

    @property
    def sharing(self):
        """Names of the target's calls that a step computes for the source as well.

        Known once the step has been made, at the start of `fit`.
        """
        return [] if self._shared is None else list(self._shared.names)

    def shares_what_it_shared(self):
        """Whether the step may go on computing for the source what it does now."""
        return self._shared is None or self._shared.still_holds()

    @property
    def trains_features(self):
        """Whether more than the target's own new layers is trained."""
        return self.regularizer is None or self.regularizer.trains_features

    def _frozen_features(self, values, fetches):
        """What enters the part of the target that trains, in inference mode."""
        graph = self._target_graph
        paired = [
            graph.output_of(name)
            for name in self.pairing.names
            if graph.nodes[name].is_layer and graph.nodes[name].operation.weights
        ]
        frozen = graph.ancestors(paired)
        entering = graph.entering(set(graph.nodes) - frozen)
        features, fetched = graph.run(
            (entering, fetches), graph.inputs, values, training=False
        )
        return entering, features, fetched

    def source_maps(self, x):
        """Dict tap -> the frozen source's feature map, in inference mode."""
        return self._on_samples(
            lambda x: self._run_source(
                self._source_graph.inputs, self._source_graph.feed(x)
            ),
            x,
        )

    def _run_source(self, feeds, values):
        maps = self._source_graph.run(self._source_taps, feeds, values, training=False)
        return tree.map_structure(tf.stop_gradient, maps)

    def _maps(self, x, tape):
        """(target's outputs, its maps, the source's maps) in a training step."""
        y_pred, maps, entering = self(
            x, training=True, with_maps=True, with_entering=True
        )
        with tape.stop_recording():
            if self._cache is not None and self._cache.is_open:
                source_maps = self._cache.maps(x, self.source_maps)
            elif self._shared.names:
                source_maps = self._on_samples(
                    lambda values: self._run_source(self._shared.feeds, values),
                    entering,
                )
            else:
                source_maps = self.source_maps(x)
        return y_pred, maps, source_maps

    def _on_samples(self, run, x):
        """`run(x)`; a replica that has no sample of the last batch runs on zeros.

        TensorFlow's convolutions give an empty batch a wrong shape on the CPU, and
        BatchNormalization's statistics of it are NaN.
        """
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return run(x)
        size = tf.shape(tree.flatten(x)[0])[0]
        missing = tf.cast(tf.equal(size, 0), tf.int32)
        filled = tree.map_structure(
            lambda v: tf.pad(v, [[0, missing], *[[0, 0]] * (len(v.shape) - 1)]), x
        )
        return tree.map_structure(lambda v: v[:size], run(filled))

    def train_step(self, data):
        """One step: task loss, plus the regularizer's penalties."""
        return self._step(data)[0]

    def _step(self, data, watch=False):
        """One step, and what is watched of it: (logs, dict of scalars)."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        regularizer = self.regularizer
        needs_maps = regularizer is not None and regularizer.needs_maps
        source_maps = target_maps = None
        total, share, replicas = self._share(x)
        with tf.GradientTape(persistent=watch) as tape:
            if needs_maps:
                y_pred, target_maps, source_maps = self._maps(x, tape)
            else:
                y_pred = self(x, training=True)
            task = self._shared_task_loss(x, y, y_pred, sample_weight, share, replicas)
            feature = head = ops.zeros((), "float32")
            if regularizer is not None:
                step = self.optimizer.iterations
                batch = Batch(source_maps, target_maps, step, share, replicas)
                feature, head = regularizer.penalties(batch)
            loss = task + ops.cast(feature + head, task.dtype)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        if not self.trains_features:
            variables = self.pairing.new_variables
        gradients = tape.gradient(scaled, variables)
        watched = {}
        if watch:
            parts = {"task": task, "feature": feature, "head": head}
            watched = {
                **watching.values(parts),
                **watching.gradients(self, tape, parts, variables),
            }
            if regularizer is not None:
                watched.update(watching.penalties(regularizer, batch))
        if variables:
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        else:
            warn("Nothing is trained: every layer of the target is frozen.")

        for tracker, value in (
            (self._loss_tracker, loss),
            (self._task_loss, task),
            (self._feature_penalty, feature),
            (self._head_penalty, head),
        ):
            # Each replica has a part of the value of the global batch.
            whole = ops.cast(value, "float32") * replicas
            tracker.update_state(whole, sample_weight=total / replicas)
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return logs, watched

    def watch(self, every):
        """Look closer at every so many steps; `PenaltyLogger` does it by itself.

        The attribute `watched` then holds the last closer look: a dict of scalars of
        that step and the global batch, with `step` (the optimizer's iteration before
        it), `task_loss`, `feature_penalty`, `head_penalty`, their
        `gradient_norm/task`, `/feature` and `/head`, `gradient_angle` (degrees,
        between task and feature penalty) and `penalty/<tap>`. Weights and logs of the
        training stay the same; a watched step goes backwards four times.

        Args:
            every: number of steps from one look to the next, counted from the
                optimizer's first; None to stop.
        """
        samples.check_count("every", every)
        if every is not None and not self.hosts.runs_single_steps:
            raise ValueError(
                f"Steps cannot be watched under {self.hosts.name}. Watch a training "
                "on one host, or leave out `PenaltyLogger`."
            )
        self.watched = None
        if every != self.watch_every:
            self.watch_every, self.train_function = every, None

    def _share(self, x):
        """(samples of the global batch, this replica's share of them, replicas)."""
        size = ops.cast(tf.shape(tree.flatten(x)[0])[0], "float32")
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas == 1:
            return size, ops.ones((), "float32"), 1
        total = tf.distribute.get_replica_context().all_reduce("sum", size)
        return total, size / total, replicas

    def _shared_task_loss(self, x, y, y_pred, sample_weight, share, replicas):
        """This replica's part of the task loss; over replicas, the global batch's.

        Keras counts each replica's mean as 1/replicas, which on an uneven last
        batch is not the mean of the global batch.
        """
        loss = self._compute_loss(x, y, y_pred, sample_weight, training=True)
        if replicas == 1:
            return loss
        loss = ops.sum(loss)  # Keras gives a vector where there are no samples
        if checks.loss_is_sum(self.loss):
            return loss
        # Penalties of variables do not depend on the samples: each replica has its
        # equal part. Activity regularizers do.
        fixed = sum(
            (
                self._aggregate_additional_loss(v.regularizer(v))
                for v in self.target.trainable_variables
                if v.regularizer is not None
            ),
            ops.zeros((), loss.dtype),
        )
        return (loss - fixed) * ops.cast(share * replicas, loss.dtype) + fixed

    @property
    def losses(self):
        """The target's own layer losses; the source's and regularizer's are not."""
        return self.target.losses

    @property
    def metrics(self):
        """The metrics; while evaluating, without the penalties' means."""
        training_only = (self._task_loss, self._feature_penalty, self._head_penalty)
        return [
            m
            for m in super().metrics
            if not self._evaluating or all(m is not t for t in training_only)
        ]

    @contextlib.contextmanager
    def _evaluation(self):
        before, self._evaluating = self._evaluating, True
        try:
            yield
        finally:
            self._evaluating = before

    def test_step(self, data):
        """As Keras's: the task loss and the target's layer losses, no penalties."""
        with self._evaluation():
            return super().test_step(data)

    def evaluate(self, *args, **kwargs):
        """See `keras.Model.evaluate`; the source does not run."""
        with self._evaluation(), self.hosts.running():
            return super().evaluate(*args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """See `keras.Model.predict`; on several workers, all get all outputs."""
        with self.hosts.running():
            count = samples.length(x) if checks.are_arrays(x) else None
            self.hosts.check_same("samples", count)
            return super().predict(x, *args, **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if not self._evaluating:
            self.epoch_iterator = iterator
        # Keras averages the replicas' first batches to learn their shapes: that fails
        # where they are uneven, and takes an epoch out of a shuffled data set.
        strategy = self.distribute_strategy
        if iterator is not None and strategy.num_replicas_in_sync > 1:
            self.hosts.check_same("batches", iterator.num_batches)
            dataset = iterator.data_adapter.get_tf_dataset()
            iterator, data_batch = None, samples.batch_spec(dataset)
        super()._maybe_symbolic_build(iterator, data_batch)

    def export(self, filepath, *args, **kwargs):
        """Export the target alone; see `keras.Model.export`."""
        if not self.hosts.is_first:
            return None
        return self.target.export(filepath, *args, **kwargs)

    def get_config(self):
        """Target, source, taps and regularizer; their weights are saved beside."""
        return {
            "name": self.name,
            "target": keras.saving.serialize_keras_object(self.target),
            "source": keras.saving.serialize_keras_object(self.source),
            "taps": dict(self._source_of_tap),
            "regularizer": regularizers.serialize(self.regularizer),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """See `keras.Model.from_config`."""
        config = dict(config)
        for part in ("target", "source", "regularizer"):
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        return cls(**config)
