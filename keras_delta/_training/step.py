"""One training step, from a batch to the logs.

    x ──┬─> target, training mode, once ──┬─> predictions ──> task loss ────> + <─┐
        │                                 └─> target maps ─┐                  │   │
        └─> source, to its last tap ──────> source maps ───┴─> penalties ─────┼───┘
                                                                              │
                         logs <── metrics, optimizer <── gradients (tape) <───┘

Read `Step.run` from top to bottom. On k replicas each one computes its *share* of the
global batch's objective: means over samples times B / sum of B, terms without samples
divided by k. The sum over replicas, which the optimizer takes, is the objective of one
device.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops, tree

from keras_delta import _compat
from keras_delta._errors import warn
from keras_delta._network import lora
from keras_delta._network.networks import OUTPUTS
from keras_delta._network.replicas import run_on_samples
from keras_delta._training import checks, watching
from keras_delta.optimizers import adapt
from keras_delta.regularizers import Batch


class Replica(NamedTuple):
    """A replica's part of a global batch.

    Attributes:
        total: number of samples of the global batch, a float32 scalar.
        share: this replica's share of them.
        count: number of replicas.
    """

    total: Any
    share: Any
    count: int  # type: ignore[assignment]


class Pass(keras.layers.Layer):
    """One pass through the target that returns more than its outputs.

    A layer rather than a function, so that Keras passes `training` to the layers
    inside, and only the outermost call clears their losses, once.

    Args:
        model: the `DeltaModel`.
        run: function of inputs and `training`.
    """

    def __init__(self, model, run):
        super().__init__(dtype=model.target.dtype_policy, autocast=False)
        self.target, self._run = model.target, run
        self._strategy = model.distribute_strategy
        self.built = True

    def call(self, inputs, training=None):
        """The result of `run` for the inputs."""
        return run_on_samples(self._strategy, lambda x: self._run(x, training), inputs)


class Step:
    """The training step of a model, with everything that tracing fixes.

    Args:
        model: the `DeltaModel`.
        cache: an open `SourceMapCache` that provides the source's maps; or None.

    Attributes:
        shared: the calls computed once for source and target.
    """

    def __init__(self, model, cache=None):
        self._model, self.cache = model, cache
        regularizer = model.regularizer
        self._needs = frozenset() if regularizer is None else regularizer.needs
        lora.draw_again(model.target)
        self.shared = model.networks.find_shared()
        self._variables, self._fixed = model.variables_to_train, _fixed(model)
        self._clip = None if model.recipe is None else model.recipe.clip
        self._pass = Pass(model, self._run_target)

    def still_holds(self):
        """Whether the step still trains the right variables and shares equal layers."""
        now = self._model.variables_to_train
        if self._fixed != _fixed(self._model):
            return False
        return list(map(id, now)) == list(map(id, self._variables)) and (
            self.shared.still_holds()
        )

    def _run_target(self, x, training):
        networks, needs = self._model.networks, self._needs
        maps = networks.target_taps if "target_maps" in needs else {}
        features = networks.target_features if "target_features" in needs else ()
        fetches = (maps, features, self.shared.entering)
        if self._model.trains_features:
            return networks.run_target(x, training, fetches, held=self.shared.held)
        return networks.run_with_frozen_features(x, fetches)

    def run(self, data, watch=False):
        """One step on one replica.

        Args:
            data: `(x, y, sample_weight)` from Keras.
            watch: whether to look at the gradients of each part as well.

        Returns:
            `(logs, watched)`: Keras's logs, and a dict of scalars, empty without
            `watch`.
        """
        model, regularizer = self._model, self._model.regularizer
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        replica = _replica(model.distribute_strategy, x)
        adapting = regularizer and regularizer.find_adapting()
        splits = bool(regularizer) and regularizer.splits_gradients
        with tf.GradientTape(persistent=watch or splits or bool(adapting)) as tape:
            y_pred, seen = self._forward(x, tape)

            def task_loss(outputs):
                return _task_loss(model, x, y, outputs, sample_weight, replica)

            task = task_loss(y_pred)
            feature, head = [ops.zeros((), "float32")] * 2
            if regularizer is not None:
                seen |= {"images": x, "labels": y, "label_weights": sample_weight}
                batch = self._make_batch(replica, target_outputs=y_pred, **seen)
                feature, head = regularizer.penalties(batch.without_gradient("source"))
                task = task * ops.cast(regularizer.task_factor(batch.step), task.dtype)
            penalty = ops.cast(feature + head, task.dtype)
            loss = task + penalty
            apart = (task, penalty) if splits else (loss,)
            scaled = [model.optimizer.scale_loss(part) for part in apart]
            if adapting:
                of_source = _source_loss(adapting, batch, task_loss, replica)

        variables = model.variables_to_train
        gradients = self._gradients(tape, scaled, replica)
        if adapting:
            own = adapting.source_variables
            pairs = zip(tape.gradient(of_source, own), own, strict=True)
            adapting.source_optimizer.apply_gradients(pairs)
        watched = {}
        if watch:
            parts = {"task": task, "feature": feature, "head": head}
            watched = watching.look(model, tape, parts, variables)
            if regularizer is not None:
                watched |= watching.penalties(regularizer, batch)
        if variables:
            model.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        else:
            warn("Nothing is trained: every layer of the target is frozen.")
        if regularizer is not None:
            regularizer.after_step(batch)
        trackers = _compat.loss_tracker(model), *model.part_means
        for tracker, part in zip(trackers, (loss, task, feature, head), strict=True):
            whole = ops.cast(part, "float32") * replica.count
            tracker.update_state(whole, sample_weight=replica.total / replica.count)
        logs = model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return logs, watched

    def _gradients(self, tape, scaled, replica):
        """Gradients of the loss, or of task loss and penalties combined."""
        variables = self._model.variables_to_train
        gradients, *rest = [tape.gradient(part, variables) for part in scaled]
        if rest:
            parts = [_sum_over_replicas(part, replica) for part in (gradients, *rest)]
            combined = self._model.regularizer.combine(*parts)
            gradients = _divided(combined, replica.count)
        if self._clip is None:
            return gradients
        limit = self._model.optimizer.scale_loss(tf.constant(self._clip, "float32"))
        return _clipped(gradients, limit, replica)

    def _make_batch(self, replica, **seen):
        step = self._model.optimizer.iterations
        return Batch(step=step, share=replica.share, replicas=replica.count, **seen)

    def _forward(self, x, tape):
        """The outputs, and a dict of both networks' entries for a `Batch`.

        The tape records only the target.
        """
        if not self._needs:
            return self._model(x, training=True), {}
        networks, strategy = self._model.networks, self._model.distribute_strategy
        y_pred, (maps, features, entering) = self._pass(x, training=True)
        seen = {"target_maps": maps or None}
        if "target_features" in self._needs:
            seen["target_features"] = features
        if not networks.fetched:
            return y_pred, seen
        feeds = self.shared.feeds
        if self._model.regularizer.find_adapting():
            found = run_on_samples(
                strategy, lambda v: networks.run_adapted_source(feeds, v), entering
            )
        else:
            with tape.stop_recording():
                if self.cache is not None and self.cache.is_open:
                    found = self.cache.maps(
                        x, lambda v: run_on_samples(strategy, networks.run_source, v)
                    )
                else:
                    found = run_on_samples(
                        strategy, lambda v: networks.go_on_in_source(feeds, v), entering
                    )
        found = dict(found)
        seen["source_outputs"] = found.pop(OUTPUTS, None)
        return y_pred, {**seen, "source_maps": found or None}


def build_optimizer(model):
    """Build a model's optimizer for all variables, though L2-FE trains only the head.

    Raises:
        ValueError: if it was built before some of the target's variables were trained.
    """
    if model.optimizer is None:
        return
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    known = {id(v) for v in _compat.known_variables(model.optimizer)}
    own = [] if model.regularizer is None else model.regularizer.trainable_variables
    new = {id(v) for v in own} - known
    # Of a regularizer of before; a file would be read into an optimizer without them.
    gone = known - {id(v) for v in model.variables}
    to_train = [v for v in model.variables_to_train if id(v) not in new]
    unknown = [v.path for v in to_train if id(v) not in known]
    # Keras assigns averages of the weights in order, to those that train.
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    averages = getattr(inner, "use_ema", False)
    frozen = averages and len(known) > len(model.trainable_variables)
    if (new or gone or frozen) and not unknown:
        with model.distribute_strategy.scope():
            model.optimizer = adapt(model.optimizer, model.trainable_variables)
    if unknown:
        raise ValueError(
            f"The optimizer was built before {len(unknown)} variables became "
            f"trainable, the first '{unknown[0]}'. Call `model.compile` again after "
            "unfreezing layers or enabling LoRA."
        )


def call_target(model, inputs, training):
    """The target's outputs, as `call` of the model returns them."""

    def run(x):
        if training and not model.trains_features:
            return model.networks.run_with_frozen_features(x)[0]
        return model.target(x, training=training)

    return run_on_samples(model.distribute_strategy, run, inputs)


def _fixed(model):
    """The settings of recipe and optimizer that are part of the traced step."""
    clip = None if model.recipe is None else model.recipe.clip
    rate = None if model.optimizer is None else _compat.learning_rate(model.optimizer)
    return clip, id(rate)


def _clipped(gradients, limit, replica):
    """Gradients whose sum over the replicas has a norm of at most `limit`."""
    gradients = _divided(_sum_over_replicas(gradients, replica), replica.count)
    there = [g for g in gradients if g is not None]
    whole = [tf.cast(g, "float32") for g in there]  # variables may be of half precision
    clipped, _ = tf.clip_by_global_norm(whole, limit / replica.count)
    found = (tf.cast(v, g.dtype) for v, g in zip(clipped, there, strict=True))
    return [g if g is None else next(found) for g in gradients]


def _sum_over_replicas(gradients, replica):
    """Gradients of the global batch's objective; None stays None."""
    there = [g for g in gradients if g is not None]
    if replica.count > 1 and there:
        there = tf.distribute.get_replica_context().all_reduce("sum", there)
    found = iter(there)
    return [g if g is None else next(found) for g in gradients]


def _divided(gradients, count):
    """Gradients for an optimizer, which adds up those of the replicas."""
    return [g if g is None or count == 1 else g / count for g in gradients]


def _replica(strategy, x):
    size = ops.cast(tf.shape(tree.flatten(x)[0])[0], "float32")
    count = strategy.num_replicas_in_sync
    if count == 1:
        return Replica(size, ops.ones((), "float32"), 1)
    total = tf.distribute.get_replica_context().all_reduce("sum", size)
    return Replica(total, size / total, count)


def _source_loss(adapting, batch, task_loss, replica):
    """Objective of the layers inside the source, scaled for their optimizer."""
    loss = adapting.source_loss(batch.without_gradient("target"), task_loss)
    adapting.source_loss_tracker.update_state(
        loss * replica.count, sample_weight=replica.total / replica.count
    )
    return adapting.source_optimizer.scale_loss(loss)


def _task_loss(model, x, y, y_pred, sample_weight, replica):
    """This replica's share of the task loss.

    Keras weights each replica's mean by 1/replicas, which does not give the mean of the
    global batch if the last batch is uneven.
    """
    loss = _compat.compute_loss(model, x, y, y_pred, sample_weight)
    if replica.count == 1:
        return loss
    loss = ops.sum(loss)  # Keras returns a vector if there are no samples
    if checks.loss_is_sum(model.loss):
        return loss
    # Penalties of variables do not depend on the samples: each replica has its
    # equal part. Activity regularizers do.
    fixed = sum(
        (
            _compat.scale_layer_loss(model, v.regularizer(v))
            for v in model.target.trainable_variables
            if v.regularizer is not None
        ),
        ops.zeros((), loss.dtype),
    )
    return (loss - fixed) * ops.cast(replica.share * replica.count, loss.dtype) + fixed
