"""What methods share that look at the vectors in front of a network's last layer."""

import keras
import tensorflow as tf
from keras import ops, tree

from keras_delta._errors import invalid
from keras_delta._network.heads import last_dense, output_activation


def check_features(networks, whose, method):
    """Refuse a network without features, or with another end than classes.

    Args:
        networks: see `Regularizer.bind`.
        whose: `"target"` or `"source"`.
        method: name of the method, for the message.

    Raises:
        ValueError: saying what to do.
    """
    graph = getattr(networks, whose)
    node = last_dense(graph)
    if node is not None and output_activation(graph) != "sigmoid":
        return
    ends = "a sigmoid" if node is not None else "no `Dense` layer on vectors"
    remedy = {
        "target": "Make the target with `keras_delta.attach_head`.",
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


def class_numbers(batch, classes):
    """Numbers of the classes of a batch, and which of them count.

    Args:
        batch: a `Batch`, its labels as numbers or one-hot.
        classes: how many.

    Returns:
        `(numbers, counted)`: `(B,)` int32 from 0 to `classes - 1`, and `(B,)` float32,
        0 for images without a label: a `sample_weight` of 0, or a number that is no
        class.
    """
    (labels,) = tree.flatten(batch.labels)
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 2 and labels.shape[-1] == classes:
        labels = ops.argmax(labels, axis=-1)
    numbers = ops.cast(ops.reshape(labels, (-1,)), "int32")
    counted = ops.logical_and(numbers >= 0, numbers < classes)
    if batch.label_weights is not None:
        (weights,) = tree.flatten(batch.label_weights)
        weights = ops.reshape(ops.convert_to_tensor(weights), (-1,))
        counted = ops.logical_and(counted, weights > 0)
    return ops.clip(numbers, 0, classes - 1), ops.cast(counted, "float32")


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
    """Refuse networks in which `SourceHead` makes no sense.

    Raises:
        ValueError: saying what to do.
    """
    check_features(networks, "target", method)
    check_features(networks, "source", method)
    ours, theirs = (
        last_dense(getattr(networks, whose)).inputs[0].shape[-1]
        for whose in ("target", "source")
    )
    if ours != theirs:
        expected = f"a target with {theirs} features, as the source's head takes them"
        received = f"one with {ours}"
        remedy = "Pool the target as the source is pooled, and leave other layers out."
        raise ValueError(invalid("target", expected, received, remedy))
