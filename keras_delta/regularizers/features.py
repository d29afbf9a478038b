"""Shared parts of methods that use the vectors entering a network's last layer."""

import keras
import tensorflow as tf
from keras import ops, tree

from keras_delta._errors import invalid
from keras_delta._network.heads import last_dense, output_activation


def check_features(networks, whose, method, classes=True):
    """Refuse a network without features, or one that does not end in classes.

    Args:
        networks: see `Regularizer.bind`.
        whose: `"target"` or `"source"`.
        method: name of the method, for the message.
        classes: whether it must predict mutually exclusive classes.

    Raises:
        ValueError: if so, with a remedy.
    """
    graph = getattr(networks, whose)
    node, outputs = last_dense(graph), len(tree.flatten(graph.outputs))
    sigmoid = classes and output_activation(graph) == "sigmoid"
    if node is not None and not sigmoid:
        return
    ends = "a sigmoid" if sigmoid else "no `Dense` layer on vectors"
    ends = f"{outputs} outputs" if outputs > 1 else ends
    remedy = {
        "target": "Make the target with `keras_delta.attach_head(network, classes)`, "
        "without `activation`, and use a loss from logits.",
        "source": "The source needs the classifier that it was pretrained with: "
        "`include_top=True` of `keras_delta.backbones` or `keras.applications`.",
    }[whose]
    expected = f"a {whose} that ends in a `Dense` layer of classes, for '{method}'"
    received = f"'{graph.model.name}', which ends in {ends}"
    raise ValueError(invalid(whose, expected, received, remedy))


def gather(rows, replicas):
    """The rows `(B, ...)` of all replicas, in their order; with gradients."""
    if replicas == 1:
        return rows
    return tf.distribute.get_replica_context().all_gather(rows, axis=0)


def read_labels(batch, classes):
    """The labels of a batch as shares of the classes, and each image's weight.

    Args:
        batch: a `Batch`, its labels as numbers, one-hot or soft.
        classes: number of classes.

    Returns:
        `(shares, weights)`: `(B, classes)` and `(B,)` float32. Weights are those of the
        task loss, `sample_weight` and `class_weight`, and 0 for a number that is not
        a class.
    """
    (labels,) = tree.flatten(batch.labels)
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 2 and labels.shape[-1] == classes > 1:
        shares, weights = ops.cast(labels, "float32"), ops.ones_like(labels[:, 0])
    else:
        numbers = ops.cast(ops.reshape(labels, (-1,)), "int32")
        shares = ops.one_hot(numbers, classes, dtype="float32")  # zeros for no class
        weights = ops.sum(shares, axis=-1)
    weights = ops.cast(weights, "float32")
    if batch.label_weights is not None:
        (given,) = tree.flatten(batch.label_weights)
        given = ops.reshape(ops.convert_to_tensor(given), (-1,))
        weights = weights * ops.cast(given, "float32")
    return shares, weights


class SourceHead(keras.layers.Layer):
    """A copy of the source's classifier, for the target's features.

    Args:
        networks: see `Regularizer.bind`; checked by `check_source_head`.
        trainable: whether it is trained with the target.
    """

    def __init__(self, networks, trainable):
        super().__init__(name="source_head", dtype="float32", trainable=trainable)
        theirs = last_dense(networks.source).operation
        self.dense = keras.layers.Dense(
            theirs.units,
            use_bias=theirs.use_bias,
            dtype="float32",
            name="source_head_dense",
            trainable=trainable,
        )
        self.dense.build((None, theirs.kernel.shape[0]))
        self.dense.set_weights(theirs.get_weights())
        self.built = True

    def call(self, features):
        """Logits of the source's classes, `(B, classes of the source)`."""
        return self.dense(ops.cast(features, "float32"))


def check_source_head(networks, method):
    """Refuse networks that do not suit `SourceHead`.

    Raises:
        ValueError: if they do not, with a remedy.
    """
    check_features(networks, "target", method)
    check_features(networks, "source", method)
    ours, theirs = (
        last_dense(getattr(networks, whose)).inputs[0].shape[-1]
        for whose in ("target", "source")
    )
    if ours != theirs:
        expected = f"a target with {theirs} features, which the source's head takes"
        received = f"one with {ours}"
        remedy = "Pool the target as the source is pooled, without further layers."
        raise ValueError(invalid("target", expected, received, remedy))
