"""Step (a) of Algorithm 1: train the head on frozen features."""

import math
import operator

import keras
import numpy as np
import tensorflow as tf
from keras import ops, tree

from keras_delta._inputs import samples
from keras_delta._network.copies import copy_model
from keras_delta._network.graph import Graph
from keras_delta.attention.calls import trace
from keras_delta.attention.losses import with_logits

EPOCHS = 10
BATCH = 32
LEAST_STEPS = 300


class HeadFit:
    """A network's head and its input features, both extracted from the network.

    Args:
        graph: the network.
        head: names of the head's layers.
        data: any data that `samples.batches` reads; read once.
        max_samples: number of samples at most.
    """

    def __init__(self, graph: Graph, head, data, max_samples=None):
        self.graph = graph
        made = [t for name in head for t in graph.nodes[name].outputs]
        self._behind = graph.descendants(made) | set(head)
        self._entering = graph.entering(self._behind)
        self._programs = {}
        rows, labels = {}, {}  # by shape: images and their maps may have several
        stream = samples.batches(data, max_samples=max_samples)
        for x, y in samples.regrouped(stream, BATCH):
            seen = [ops.convert_to_numpy(v) for v in self._forward(graph.feed(x))]
            key = str([v.shape[1:] for v in (*seen, *tree.flatten(y))])
            rows.setdefault(key, []).append(seen)
            labels.setdefault(key, []).append(y)
        if not rows:
            raise ValueError("No samples: channel attention needs at least one.")
        self._features = [_joined(parts) for parts in rows.values()]
        self._labels = [_joined(parts) for parts in labels.values()]

    def _forward(self, feeds):
        specs = [tf.TensorSpec((None, *v.shape[1:]), v.dtype) for v in feeds]
        key = tuple(tuple(s.shape) for s in specs)
        if key not in self._programs:
            # By hand: called a few times only, TensorFlow would warn of the tracing.
            self._programs[key] = trace(
                lambda v: self._run(self._entering, self.graph.inputs, v), specs
            )
        return self._programs[key](feeds)

    def _run(self, fetches, feeds, values):
        with keras.StatelessScope():  # counters of layers do not advance here
            return self.graph.run(fetches, feeds, values, training=False)

    def groups(self):
        """Labels and outputs of the current head, for all samples of one shape."""
        for features, labels in zip(self._features, self._labels, strict=True):
            out = self._run(self.graph.outputs, self._entering, features)
            yield labels, with_logits(out)

    def train(self, loss, seed=0):
        """Train a copy of the head on the frozen features.

        The optimizer is the authors': SGD 0.01, momentum 0.9, weight decay 1e-4,
        10 epochs with the learning rate multiplied by `0.1^(1/6)` after each. Small
        data sets get more epochs, for at least 300 steps.

        Args:
            loss: a `SampleLoss`.
            seed: of the order of the samples.

        Returns:
            List of (variable of the network, trained array).
        """
        outputs, y, losses, weights = self._with_loss(loss)
        copy = copy_model(
            self.graph,
            outputs=outputs,
            inputs=self._entering,
            name="head_copy",
            trainable=True,
        )
        counts = [len(features[0]) for features in self._features]
        steps = sum(math.ceil(count / BATCH) for count in counts)
        epochs = max(EPOCHS, math.ceil(LEAST_STEPS / steps))
        rate = keras.optimizers.schedules.ExponentialDecay(
            0.01, decay_steps=steps * epochs / EPOCHS, decay_rate=0.1 ** (1 / 6)
        )
        copy.compile(
            keras.optimizers.SGD(rate, momentum=0.9, weight_decay=1e-4),
            loss=losses,
            loss_weights=weights,
            jit_compile=False,
        )
        groups = [
            ({t.name: f for t, f in zip(copy.inputs, features, strict=True)}, labels)
            for features, labels in zip(self._features, y, strict=True)
        ]
        copy.fit(_shuffled(groups, counts, epochs, seed), shuffle=False, verbose=0)
        own = [x for name, x in self.graph.layers().items() if name in self._behind]
        new = Graph(copy).layers().values()
        return [
            (variable, trained.value.numpy())
            for old, fitted in zip(own, new, strict=True)
            for variable, trained in zip(old.weights, fitted.weights, strict=True)
        ]

    def _with_loss(self, loss):
        """Outputs that have a loss, their targets, losses and weights, for Keras.

        The targets are a list with one entry for each group of samples.
        """
        used = [i for i, one in enumerate(loss.losses) if one is not None]
        outputs = tree.flatten(self.graph.outputs)
        outputs, losses, weights = (
            [values[i] for i in used] for values in (outputs, loss.losses, loss.weights)
        )
        targets = (loss.targets(labels) for labels in self._labels)
        y = [tuple(each[i] for i in used) for each in targets]  # tf.data: no lists
        if len(used) == 1:
            outputs, losses, y = outputs[0], losses[0], [each[0] for each in y]
        return outputs, y, losses, weights


def _shuffled(groups, counts, epochs, seed):
    """A data set of batches, each from one group's samples, with all epochs in one.

    We set the order ourselves, since Keras's follows its global seed.
    """
    rng, parts = np.random.default_rng(seed), []
    for group, count in zip(groups, counts, strict=True):
        order = np.concatenate([rng.permutation(count) for _ in range(epochs)])
        rows = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        parts += [(group, r) for r in rows]
    if len(groups) > 1:
        rng.shuffle(parts)

    def batches():
        for group, rows in parts:
            yield tree.map_structure(operator.itemgetter(rows), group)

    specs = tree.map_structure(_spec, *groups)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=specs)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(parts)))


def _joined(parts):
    return tree.map_structure(lambda *v: np.concatenate(v), *parts)


def _spec(*arrays):
    """Spec with the sizes that the arrays share, apart from the number of samples."""
    shapes = zip(*(v.shape[1:] for v in arrays), strict=True)
    known = [d[0] if len(set(d)) == 1 else None for d in shapes]
    return tf.TensorSpec([None, *known], arrays[0].dtype)
