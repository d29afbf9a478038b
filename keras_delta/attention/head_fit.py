"""Step (a) of Algorithm 1: train the head on frozen features."""

import math

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
    """A network's head and the features it sees, both taken out of the network.

    Args:
        graph: the network.
        head: names of the head's layers.
        data: what `samples.batches` reads; read once.
        max_samples: look at no more than so many.
    """

    def __init__(self, graph: Graph, head, data, max_samples=None):
        self.graph = graph
        made = [t for name in head for t in graph.nodes[name].outputs]
        self._behind = graph.descendants(made) | set(head)
        self._entering = graph.entering(self._behind)
        self._programs = {}
        rows, labels = [], []
        for x, y in samples.batches(data, max_samples=max_samples):
            rows.append([ops.convert_to_numpy(v) for v in self._forward(graph.feed(x))])
            labels.append(y)
        if not rows:
            raise ValueError("No samples: channel attention needs at least one.")
        self.features = [np.concatenate(v) for v in zip(*rows, strict=True)]
        self.labels = tree.map_structure(lambda *v: np.concatenate(v), *labels)

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
        with keras.StatelessScope():  # what a layer counts is not counted here
            return self.graph.run(fetches, feeds, values, training=False)

    def outputs(self):
        """Outputs of the head as it is, for all samples, a list."""
        out = self._run(self.graph.outputs, self._entering, self.features)
        return with_logits(out)

    def train(self, loss, seed=0):
        """Train a copy of the head on the frozen features.

        The optimizer is the authors': SGD 0.01, momentum 0.9, weight decay 1e-4,
        10 epochs with the learning rate times `0.1^(1/6)` after each. Small data
        sets get more epochs, 300 steps at least.

        Args:
            loss: a `SampleLoss`.
            seed: of the order of the samples.

        Returns:
            List of (the network's own variable, trained array).
        """
        outputs, y, losses, weights = self._with_loss(loss)
        copy = copy_model(
            self.graph,
            outputs=outputs,
            inputs=self._entering,
            name="head_copy",
            trainable=True,
        )
        count = len(self.features[0])
        steps = math.ceil(count / BATCH)
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
        # Our own order: Keras's follows its global seed.
        rng = np.random.default_rng(seed)
        order = np.stack([rng.permutation(count) for _ in range(epochs)])
        x = {t.name: f for t, f in zip(copy.inputs, self.features, strict=True)}
        rows = tf.data.Dataset.from_tensor_slices(order.ravel()).batch(BATCH)

        def gather(i):
            return tree.map_structure(lambda v: tf.gather(v, i), (x, y))

        copy.fit(rows.map(gather), shuffle=False, verbose=0)
        own = [x for name, x in self.graph.layers().items() if name in self._behind]
        new = Graph(copy).layers().values()
        return [
            (variable, trained.value.numpy())
            for old, fitted in zip(own, new, strict=True)
            for variable, trained in zip(old.weights, fitted.weights, strict=True)
        ]

    def _with_loss(self, loss):
        """Outputs that have a loss, their targets, losses and weights, for Keras."""
        parts = zip(
            tree.flatten(self.graph.outputs),
            loss.targets(self.labels),
            loss.losses,
            loss.weights,
            strict=True,
        )
        parts = [part for part in parts if part[2] is not None]
        outputs, y, losses, weights = (list(v) for v in zip(*parts, strict=True))
        if len(outputs) == 1:
            outputs, y, losses = outputs[0], y[0], losses[0]
        y = tuple(y) if isinstance(y, list) else y  # tf.data takes lists for arrays
        return outputs, y, losses, weights
