"""`fit` on several hosts, `tf.distribute.MultiWorkerMirroredStrategy`.

Keras's loop runs there, but its steps reduce only within one process. This module has
the missing parts: splitting the global batch, one step with its collectives, checks
that all workers do the same, and the error when one of them is lost. All workers have
to call any function that uses a collective.
"""

import contextlib
import re

import numpy as np
import tensorflow as tf
from keras import tree

from keras_delta import _compat
from keras_delta._inputs import samples
from keras_delta._training.one_host import OneHost

DIGESTS = 2**20  # the sum over replicas of the squares of so many fits into int64
NAME = "MultiWorkerMirroredStrategy"  # the class has another one
DIFFERENT = "The workers read different batches"
# TensorFlow's texts; the second if the strategy has a `timeout_seconds`.
LOST = (
    "Collective ops is aborted by: (.*?)(?:The error could|$)"
    "|(Collective has timed out)"
)


class SeveralHosts(OneHost):
    """The processes of a `MultiWorkerMirroredStrategy`; see `OneHost`."""

    is_single = False

    @property
    def is_first(self):
        """Whether this process is worker 0."""
        return _compat.is_chief(self.strategy)

    @contextlib.contextmanager
    def running(self):
        """Context for Keras's `fit`, `evaluate` and `predict` on several workers.

        Keras asks the strategy to distribute each data set. In this context, that
        splits global batches as described in `shared`.

        Raises:
            RuntimeError: if a worker is lost.
            ValueError: if the workers read different batches.
        """
        strategy = self.strategy
        if "experimental_distribute_dataset" in vars(strategy):  # within another
            yield
            return
        _refuse_in_scope("`fit`, `evaluate` and `predict`")
        strategy.experimental_distribute_dataset = lambda d, _=None: shared(strategy, d)
        try:
            yield
        except tf.errors.OpError as error:
            _explain(error, _compat.number_of_workers(strategy))
            raise
        finally:
            del strategy.experimental_distribute_dataset

    @contextlib.contextmanager
    def writing(self):
        """Context in which one worker can write a file alone; yields whether to write.

        The first worker writes. Metrics are read without the other workers, which
        need not take part.

        Raises:
            ValueError: if called in the strategy's scope, where Keras creates variables
                to save a model, each of which waits for all workers.
        """
        _refuse_in_scope("`save`")
        with tf.distribute.ReplicaContext(self.strategy, 0):
            yield self.is_first

    def loop_step(self, model, step):
        """The function that `fit` and `evaluate` call for each global batch.

        Args:
            model: the `DeltaModel`.
            step: its `train_step` or `test_step`.

        Returns:
            Function of a data set's iterator that returns the logs: means over the
            replicas, the same on every worker.
        """
        step_on_batch = _compat.convert_optionals(model, step)
        training = step == model.train_step

        def on_replica(data):
            batch, share = _checked(data)
            logs = step_on_batch(batch)
            if training:
                _unite_statistics(model, share)
            return tf.distribute.get_replica_context().all_reduce("mean", logs)

        on_worker = self._on_worker(model, on_replica, lambda i: i.get_next())

        def function(iterator):
            if not isinstance(iterator, tf.distribute.DistributedIterator):
                raise ValueError(
                    f"{NAME} does not take single batches, since it "
                    "has to split them. Use `fit` and `evaluate`."
                )
            return on_worker(iterator)

        return function

    def test_function(self, model):
        """The function that `evaluate` calls for each global batch."""
        return self.loop_step(model, model.test_step)

    def predict_function(self, model):
        """The function for a global batch in `predict`; all workers get all outputs."""
        step = _compat.convert_optionals(model, model.predict_step)

        def on_replica(data):
            batch, _ = _checked(data)
            gather = tf.distribute.get_replica_context().all_gather
            return tree.map_structure(lambda v: gather(v, axis=0), step(batch))

        on_worker = self._on_worker(model, on_replica, lambda data: data)
        return lambda data: on_worker(data[0])

    def _on_worker(self, model, on_replica, read):
        strategy = self.strategy

        @tf.autograph.experimental.do_not_convert
        def on_worker(source):
            results = strategy.run(on_replica, args=(read(source),))
            return tree.map_structure(
                lambda v: strategy.experimental_local_results(v)[0], results
            )

        if model.run_eagerly:
            return on_worker
        return tf.function(on_worker, reduce_retracing=True)

    def first_value(self, value):
        """The first worker's value, on every worker; all of them have to call it.

        Args:
            value: array, of the same shape on all workers.
        """
        value = np.asarray(value)
        exact = value.astype("float64")  # int64 is not, beyond 2^53
        exact = exact if self.is_first else np.zeros_like(exact)
        # Not a constant: these may be cached on another device.
        total = self.strategy.reduce("SUM", tf.identity(exact), axis=None)
        return total.numpy().astype(value.dtype)

    def any(self, flag):
        """Whether `flag` is true on any worker; all of them have to call it."""
        flag = tf.identity(float(flag))
        return self.strategy.reduce("SUM", flag, axis=None).numpy() > 0

    def check_same(self, what, number):
        """Refuse a number that differs between the workers; all of them must call it.

        Else one would leave Keras's loop before the others, who then wait for it.

        Raises:
            ValueError: on all workers.
        """
        mine = -1 if number is None else int(number)
        first = int(self.first_value(mine))
        if self.any(mine != first):
            raise ValueError(
                f"The workers have different numbers of {what}: this one "
                f"{number}, worker 0 {None if first < 0 else first}. Under {NAME}, "
                "each worker must get the same arguments and the whole data: "
                "`fit` gives each its share of every batch."
            )

    def check_same_samples(self, x):
        """Refuse arrays of another length on another worker; all must call it."""
        self.check_same("samples", samples.length(x) if samples.are_arrays(x) else None)

    def copy_first(self, variables):
        """Give the first worker's values to variables on all workers."""
        for v in variables:
            v.assign(self.first_value(v.value.numpy()))

    def check_same_start(self, model):
        """Refuse models that differ between the workers before the first step.

        Raises:
            ValueError: on all workers, with the first variable that differs on this
                one.
        """
        differing = None
        for v in [*model.optimizer.variables, *model.variables]:
            mine = v.value.numpy()
            first = self.first_value(mine)
            close = (
                np.allclose(mine, first, rtol=1e-3, atol=1e-5, equal_nan=True)
                if np.issubdtype(mine.dtype, np.floating)
                else np.array_equal(mine, first)
            )
            if not close and differing is None:
                differing = v.path
        if self.any(differing is not None):
            where = f", e.g. {differing} on this worker and worker 0"
            raise ValueError(
                "The workers do not start from the same model"
                f"{where if differing else ''}. Load the same weights, and the same "
                "backup, on all workers: a backup or checkpoint must be in a folder "
                "that all of them can read."
            )


def _explain(error, workers):
    """Raise our errors for different batches and lost workers."""
    if isinstance(error, tf.errors.InvalidArgumentError) and DIFFERENT in str(error):
        raise ValueError(
            f"{DIFFERENT}. Under {NAME}, each worker must get "
            "the whole training data, in the same order, with the same batch size: "
            "`fit` gives each its share of every batch. Call "
            "`keras.utils.set_random_seed` with the same seed on all workers before "
            "the model and the data are made, give `tf.data.Dataset.shuffle` a seed, "
            "and do not shard the data."
        ) from None
    lost = re.search(LOST, str(error), re.DOTALL)
    if lost is None or isinstance(error, tf.errors.InvalidArgumentError):
        return
    reason = " ".join((lost[1] or lost[2]).split())[:300]
    raise RuntimeError(
        f"Training under {NAME} has lost one of its {workers} workers, or the "
        f"connection to it ({reason}). Start all workers again with the same command: "
        "with a backup callback (`keras_delta.callbacks.BackupAndRestore`), training "
        "resumes from the last backup."
    ) from error


def _refuse_in_scope(what):
    if tf.distribute.in_cross_replica_context():
        raise ValueError(
            f"With several workers, call {what} after `with strategy.scope():`, not "
            "in it. Only building and `compile` belong there."
        )


def shared(strategy, dataset):
    """This worker's part of each global batch, with a digest of the whole batch.

    Every worker reads all of the data. Replica i of k takes the samples from
    `i n // k` to `(i + 1) n // k` of a batch of n.

    Args:
        strategy: the strategy.
        dataset: `tf.data.Dataset` of global batches.

    Returns:
        `tf.distribute.DistributedDataset` of (batch, digest): the digest has the
        shape `(1,)`, and is the same on all workers if they read the same batch.
    """
    replicas = strategy.num_replicas_in_sync

    def parts(context):
        local = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * local

        def part(replica, batch):
            size = tf.shape(_tensors(batch)[0])[0]
            start, stop = (i * size // replicas for i in (replica, replica + 1))
            return tree.map_structure(
                lambda v: v[start:stop] if tf.is_tensor(v) else v, batch
            )

        def split(*batch):
            batch = batch[0] if len(batch) == 1 else batch
            own, digest = None, _digest(batch)
            for replica in range(first, first + local):
                one = tf.data.Dataset.from_tensors((part(replica, batch), digest))
                own = one if own is None else own.concatenate(one)
            return own

        own, batches = dataset.flat_map(split), int(dataset.cardinality())
        if batches > 0:
            known = tf.data.experimental.assert_cardinality(batches * local)
            own = own.apply(known)
        return own.prefetch(tf.data.AUTOTUNE)

    return strategy.distribute_datasets_from_function(parts)


def _tensors(batch):
    return [v for v in tree.flatten(batch) if tf.is_tensor(v)]


def _digest(batch):
    digests = [
        tf.strings.to_hash_bucket_fast(tf.io.serialize_tensor(v), DIGESTS)
        for v in _tensors(batch)
    ]
    # Times odd numbers: exchanging two parts of the batch is a change as well.
    total = sum((2 * i + 1) * d for i, d in enumerate(digests))
    return tf.reshape(total % DIGESTS, [1])


def _checked(data):
    """(the batch, this replica's share of it), if all read the same global batch."""
    batch, digest = data
    digest = tf.reduce_sum(digest)  # 0 for a worker whose data have come to an end
    size = tf.shape(_tensors(batch)[0], tf.int64)[0]
    context = tf.distribute.get_replica_context()
    total, squares, samples = tf.unstack(
        context.all_reduce("sum", tf.stack([digest, digest**2, size]))
    )
    replicas = tf.cast(context.num_replicas_in_sync, tf.int64)
    # No variance. All replicas see the same numbers, so that all of them stop.
    same = tf.debugging.assert_equal(replicas * squares, total**2, message=DIFFERENT)
    with tf.control_dependencies([] if same is None else [same]):
        batch = tree.map_structure(
            lambda v: tf.identity(v) if tf.is_tensor(v) else v, batch
        )
    return batch, tf.cast(size, "float32") / tf.cast(samples, "float32")


def _unite_statistics(model, share):
    """Make BatchNormalization's moving statistics the replicas' mean, by samples.

    Keras leaves each replica its own, so that workers would go apart.
    """
    if not model.trains_features:
        return
    variables = [
        v
        for layer in model.networks.trained_batch_norms()
        for v in (layer.moving_mean, layer.moving_variance)
    ]
    if not variables:
        return
    values = [tf.cast(v.value, "float32") * share for v in variables]
    united = tf.distribute.get_replica_context().all_reduce("sum", values)
    for variable, value in zip(variables, united, strict=True):
        variable.assign(value)
