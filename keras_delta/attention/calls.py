"""Traced computations: a function traced once, and pairs in calls that fit memory."""

import math

import numpy as np
import tensorflow as tf
from keras import tree


def trace(function, *arguments):
    """The function, traced once for tensors of these shapes."""
    specs = tree.map_structure(lambda v: tf.TensorSpec(v.shape, v.dtype), arguments)
    try:
        fast = tf.function(function, autograph=False)  # half the time
        return fast.get_concrete_function(*specs)
    except tf.errors.OperatorNotAllowedInGraphError:
        # A layer with Python's `if` or `while` on tensors.
        return tf.function(function).get_concrete_function(*specs)


class Call:
    """Runs pairs of a batch through one tapped network, as many at a time as fit.

    Args:
        suffix: a `Suffix`, or an object with its interface.
        base: structure of tensors with the shapes of `Suffix.base`'s.
        fitting: number of pairs that fit into memory.
        most: largest possible number of pairs.
        strategy: spreads a call over its replicas.

    Attributes:
        pairs: number of pairs in a call.
    """

    def __init__(self, suffix, base, fitting, most, strategy):
        replicas = strategy.num_replicas_in_sync if strategy else 1
        rounds = math.ceil(most / (fitting * replicas))
        each = math.ceil(most / (rounds * replicas))  # calls of equal size
        self.pairs = each * replicas
        self.shape = (replicas, each)

        def run(base, rows, channels):
            if replicas == 1:
                return suffix.outputs(base, rows[0], channels[0])

            def run_replica():
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                return suffix.outputs(base, rows[replica], channels[replica])

            results = strategy.run(run_replica)
            return tf.nest.map_structure(
                lambda v: tf.concat(strategy.experimental_local_results(v), axis=0),
                results,
            )

        pairs = tf.TensorSpec(self.shape, "int32")
        self._run = trace(run, base, pairs, pairs)

    def __call__(self, base, rows, channels):
        """Outputs for up to `pairs` pairs, a list of arrays."""
        count = len(rows)
        padded = np.zeros((2, self.pairs), "int32")
        padded[1] = -1
        padded[:, :count] = rows, channels
        rows, channels = tf.constant(padded.reshape(2, *self.shape))
        outputs = self._run(base, rows, channels)
        return tree.map_structure(lambda v: v.numpy()[:count], outputs)
