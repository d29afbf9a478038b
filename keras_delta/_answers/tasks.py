"""Tasks of a served model: one of several classes, labels, yes or no, numbers.

A task turns logits into scores, checks the labels of held-out images, and computes
figures of quality on them. Yes or no is served as two classes: one unit z stands for
the logits `(-z / 2, z / 2)`, whose softmax is its sigmoid.
"""

import numpy as np
import tensorflow as tf
from keras import tree

from keras_delta import _tasks
from keras_delta._answers import figures
from keras_delta._errors import invalid
from keras_delta._inputs import labels as labelling
from keras_delta._network.heads import output_activation

TINY = 1.1754944e-38  # smallest normal float32; its logarithm is finite
CROSSENTROPY = {
    "multiclass": "sparse_categorical_crossentropy",
    "multilabel": "binary_crossentropy",
}


def choose(model, graph, given=None):
    """The task of a model, one of `_tasks.TASKS`.

    Args:
        model: a `DeltaModel` or Keras model, compiled or not.
        graph: the target's `Graph`, of one output.
        given: the user's choice, or None.

    Raises:
        ValueError: if the model makes dense predictions, the loss contradicts the
            user, or the task cannot be inferred.
    """
    (output,) = tree.flatten(graph.outputs)
    losses = [x for x in tree.flatten(getattr(model, "loss", None)) if x is not None]
    loss = losses[0] if losses else None
    activation = output_activation(graph)
    found = _tasks.of_output(loss, output.shape, activation)
    if found == _tasks.DENSE:
        expected = "a model with the output (B, classes)"
        remedy = "Class maps and boxes are not served as labels: use "
        remedy += "`model.export(path)`, which writes a SavedModel of the network."
        raise ValueError(invalid("model", expected, output.shape, remedy))
    if given is not None and given not in _tasks.TASKS:
        raise ValueError(invalid("task", f"one of {_tasks.TASKS} or None", given))
    if given is not None and found not in (None, given):
        expected = f"'{found}' or None, according to loss and last layer"
        raise ValueError(invalid("task", expected, given))
    if found is None and loss is None and output.shape[-1] > 1:
        found = _tasks.MULTICLASS  # logits of a model that is not compiled
    if (given or found) is None:
        fitting = [k for k, kind in KINDS.items() if kind.takes(output.shape[-1])]
        raise ValueError(
            "The model's task cannot be inferred from its loss and last layer. "
            f"Pass `task=`, one of {', '.join(map(repr, fitting))}."
        )
    return given or found


def get(name, from_logits):
    """The task with a name, for an output that is logits or not."""
    return KINDS[name](from_logits)


class Multiclass:
    """One of several classes."""

    name = _tasks.MULTICLASS
    units = "2 or more"  # of the network's last layer

    def __init__(self, from_logits):
        self._from_logits = from_logits

    @classmethod
    def takes(cls, units):
        """Whether the task suits a number of units, or None."""
        return (units or 0) > 1

    def number_of_names(self, units):
        """Number of names that the model needs for a number of output units."""
        return units

    def logits(self, output):
        """Logits `(B, names)` of the network's output, float32."""
        output = tf.cast(output, tf.float32)
        if self._from_logits:
            return output
        return tf.math.log(tf.maximum(output, TINY))

    def scores(self, logits):
        """The score of each name."""
        return tf.nn.softmax(logits)

    def logits_of(self, scores):
        """Logits that give these scores, arrays; scores of 0 count as almost 0."""
        return np.log(np.maximum(scores, 1e-7))

    def top(self, names, top_k):
        """Number of names in an answer."""
        return min(int(top_k), names)

    def labels(self, y, names, argument="validation_data"):
        """Labels of held-out images in the form for the figures, checked."""
        if y.ndim == 2 and y.shape[-1] == names > 1:
            if np.isin(y, (0, 1)).all() and (y.sum(-1) != 1).any():
                raise ValueError(
                    f"Images of `{argument}` have no label or several, but the "
                    "model is assumed to predict one of several classes. Pass the "
                    'compiled model, or `task="multilabel"`.'
                )
            if (y.sum(-1) == 1).all():
                y = y.argmax(axis=-1)
        labelling.check(y, (None, names), CROSSENTROPY["multiclass"])
        return y.ravel().astype("int64")

    def evaluate(self, logits, labels, names, temperature, thresholds):
        """Figures of held-out images, a dict for the card."""
        return figures.of_classes(logits, labels, names, temperature)

    def decide(self, scores, thresholds):
        """The decision for each image, an array, or None for numbers."""
        return scores.argmax(-1)

    def share(self, decisions, others):
        """Share of the images with equal decisions."""
        same = decisions == others
        return float(same.reshape(len(same), -1).all(-1).mean())


class Binary(Multiclass):
    """Yes or no, of one unit."""

    name = _tasks.BINARY
    units = "1"

    @classmethod
    def takes(cls, units):
        """See `Multiclass`: two units are two classes."""
        return units == 1

    def number_of_names(self, units):
        """See `Multiclass`: the name of "no" comes first."""
        return 2

    def logits(self, output):
        """See `Multiclass`."""
        z = tf.cast(output, tf.float32)
        if not self._from_logits:
            z = tf.math.log(tf.maximum(z, TINY)) - tf.math.log(tf.maximum(1 - z, TINY))
        return tf.concat([-z / 2, z / 2], axis=-1)

    def evaluate(self, logits, labels, names, temperature, thresholds):
        """See `Multiclass`."""
        found = figures.of_classes(logits, labels, names, temperature)
        return {**found, "roc_auc": figures.roc_auc(logits[:, 1], labels == 1)}


class Multilabel(Multiclass):
    """Any of several labels, each independent."""

    name = _tasks.MULTILABEL

    def logits(self, output):
        """See `Multiclass`."""
        p = tf.cast(output, tf.float32)
        if self._from_logits:
            return p
        return tf.math.log(tf.maximum(p, TINY)) - tf.math.log(tf.maximum(1 - p, TINY))

    def scores(self, logits):
        """See `Multiclass`."""
        return tf.nn.sigmoid(logits)

    def logits_of(self, scores):
        """See `Multiclass`."""
        p = np.clip(np.asarray(scores, "float64"), TINY, 1 - 1e-16)
        return np.log(p) - np.log1p(-p)

    def top(self, names, top_k):
        """All: any of them may be on."""
        return names

    def labels(self, y, names, argument="validation_data"):
        """See `Multiclass`."""
        labelling.check(y, (None, names), CROSSENTROPY["multilabel"])
        if not np.isin(y, (0, 1)).all():
            expected = "labels of 0 and 1, which the figures need"
            found = y[~np.isin(y, (0, 1))][:3].tolist()
            remedy = "For shares of annotators, for example, pass `y > 0.5`."
            raise ValueError(invalid(argument, expected, found, remedy))
        return y.reshape(len(y), names).astype("int64")

    def evaluate(self, logits, labels, names, temperature, thresholds):
        """See `Multiclass`."""
        return figures.of_labels(logits, labels, names, temperature, thresholds)

    def decide(self, scores, thresholds):
        """See `Multiclass`: which labels are on."""
        return scores >= np.asarray(thresholds, scores.dtype)


class Regression(Multiclass):
    """Numbers."""

    name = _tasks.REGRESSION
    units = "1 or more"

    @classmethod
    def takes(cls, units):
        """See `Multiclass`."""
        return (units or 0) > 0

    def logits(self, output):
        """The output itself."""
        return tf.cast(output, tf.float32)

    def scores(self, logits):
        """The values themselves."""
        return tf.identity(logits)

    def logits_of(self, scores):
        """See `Multiclass`."""
        return scores

    def top(self, names, top_k):
        """All."""
        return names

    def labels(self, y, names, argument="validation_data"):
        """See `Multiclass`."""
        y = y[:, None] if y.ndim == 1 else y
        labelling.check(y, (None, names), "mse")
        return y.astype("float64")

    def evaluate(self, logits, labels, names, temperature, thresholds):
        """See `Multiclass`."""
        return figures.of_numbers(logits, labels, names)

    def decide(self, scores, thresholds):
        """None: numbers are compared by their difference."""


KINDS = {kind.name: kind for kind in (Multiclass, Binary, Multilabel, Regression)}
