"""Replicas of a `tf.distribute` strategy that get no samples of the last batch."""

import tensorflow as tf
from keras import tree


def run_on_samples(strategy, run, x):
    """`run(x)`; a replica without samples of the last batch runs on zeros.

    For an empty batch, TensorFlow's convolutions return a wrong shape on the CPU, and
    BatchNormalization's statistics are NaN.
    """
    if strategy.num_replicas_in_sync == 1:
        return run(x)
    size = tf.shape(tree.flatten(x)[0])[0]
    missing = tf.cast(tf.equal(size, 0), tf.int32)
    filled = tree.map_structure(
        lambda v: tf.pad(v, [[0, missing], *[[0, 0]] * (len(v.shape) - 1)]), x
    )
    return tree.map_structure(lambda v: v[:size], run(filled))
