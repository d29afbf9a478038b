"""Reads the inputs of a network's last layers for all samples of some data."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import ops, tree

from keras_delta import _compat, _tasks
from keras_delta._errors import warn
from keras_delta._inputs import labels, outputs, samples
from keras_delta._inputs import weights as sample_weights
from keras_delta._probe.linear import Rows
from keras_delta.attention.calls import trace

BATCH = 32


def random_front(graph):
    """Names of the calls in front of the first weights; empty if none is random.

    These are augmentation inside the model.
    """
    weighted = [n for n, node in graph.nodes.items() if _weights(node.operation)]
    tensors = [t for name in weighted for t in graph.nodes[name].outputs]
    front = set(graph.nodes) - graph.descendants(tensors) - set(weighted)
    return front if any(_seeds(graph.nodes[n].operation) for n in front) else set()


def _weights(operation):
    return getattr(operation, "weights", [])


def read(run, last, losses, passes, images, most, tell=None):
    """The rows for fitting linear models in place of the last layers.

    The network runs in inference mode, except for random layers in front of its first
    weights, which draw as in training from the second pass on.

    Args:
        run: the network's `Run`, for the inputs of the last layers.
        last: list of `LastLayer`.
        losses: list of losses, one per output.
        passes: list of iterables of batches `(x, y, weights)` of arrays, one for
            each view of the images, in the same order.
        images: `Images`; with those of an earlier reading, rows come in its order.
        most: number of rows beyond which no more views are read.
        tell: function called with the number of rows read, or None.

    Returns:
        List of `Rows`, one for each of `last`.
    """
    names = outputs.names(run.graph)
    parts = [[] for _ in last]
    number, done, numbers = 0, 0, []
    for view, batches in enumerate(passes):
        if (view + 1) * number > most:
            break
        number = 0
        for x, y, weights in samples.regrouped(batches, BATCH):
            size = samples.length(x)
            if view == 0:
                numbers += images.number(x, size)
            groups = numbers[number : number + size]
            number += size
            targets = outputs.targets(y, losses, names)
            weights = sample_weights.each(weights, losses, names)
            for one, seen, found in zip(last, run(x, view > 0), parts, strict=True):
                own, shape = targets[one.index], (None, one.layer.units)
                labels.check(own, shape, one.loss, output=one.name)
                matrix, tested = as_matrix(own, one), np.full(size, view == 0)
                # No label: `ignore_class` of the loss, and no share of any class.
                of_samples = weights[one.index].ravel() * ~np.isnan(matrix).any(1)
                found.append(Rows(seen, matrix, of_samples, np.array(groups), tested))
            done += size
            if tell:
                tell(done)
    order = images.order_as_before(numbers)
    return [_joined(found, one, order) for found, one in zip(parts, last, strict=True)]


class Images:
    """Numbers samples; the same image has the same number.

    Otherwise a cross-validation would test on images that it has trained on, and
    losses of two readings of a data set that shuffles would be of different images.
    """

    def __init__(self):
        self._first, self._seen, self._before = {}, 0, None

    def number(self, x, count):
        """For each of a batch's samples the number of the first one like it."""
        arrays = [np.asarray(v) for v in tree.flatten(x)]
        numbers = []
        for i in range(count):
            content = hash(tuple(v[i].tobytes() for v in arrays))
            numbers.append(self._first.setdefault(content, self._seen))
            self._seen += 1
        return numbers

    def order_as_before(self, numbers):
        """Indices that bring a reading into the order of the first one."""
        numbers = np.array(numbers)
        if self._before is None:
            self._before = numbers
        before, now = (np.argsort(n, kind="stable") for n in (self._before, numbers))
        order = np.arange(len(numbers))
        if np.array_equal(self._before[before], numbers[now]):  # else other images
            order[before] = now
        return order


def as_matrix(y, last):
    """Labels of an output in the form of `Rows`; NaN if the loss ignores one."""
    y = np.asarray(y)
    width = last.layer.units
    if _tasks.of_loss(last.loss).labels == _tasks.INTEGERS:
        y = y.reshape(-1).astype(int)
        ignored = y == getattr(last.loss, "ignore_class", None)
        rows = np.eye(width)[np.where(ignored, 0, y)]
        rows[ignored] = np.nan
        return rows
    return y.reshape(len(y), width).astype("float64")


def _joined(parts, last, order):
    rows = Rows(*(np.concatenate(v) for v in zip(*parts, strict=True)))
    # The first view; others of a data set come in a fixed order.
    rows = rows.take(np.r_[order, len(order) : len(rows.groups)])
    counted = rows.weights > 0
    if not counted.any():
        raise ValueError(
            f"No image has a label that counts for the layer '{last.layer.name}': all "
            "weights are 0, or `ignore_class` excludes all labels. A head cannot be "
            'fitted: pass `recipe="none"`, or `recipe=Recipe(fit_head=False)`, to '
            "start from the current head."
        )
    rows = rows.take(counted)
    if not np.isfinite(rows.features).all():
        count = int((~np.isfinite(rows.features)).any(axis=1).sum())
        raise ValueError(
            f"The input of the layer '{last.layer.name}' is not finite (NaN or "
            f"infinite) for {count} of {len(rows.features)} images, so no head can be "
            "fitted. Check the images, and the weights of the source."
        )
    if len(rows.features) > 1 and not np.ptp(rows.features, axis=0).any():
        warn(
            f"The input of the layer '{last.layer.name}' is the same for all images: a "
            "head on it can only guess. Check that the source has its pretrained "
            "weights and that the images have the range it expects."
        )
    return rows


class Run:
    """Computes tensors of a network, traced once for each size of image."""

    def __init__(self, graph, fetches):
        self.graph, self._fetches = graph, fetches
        front = random_front(graph)
        self._held = set(graph.nodes) - front
        self._seeds = [v for n in front for v in _seeds(graph.nodes[n].operation)]
        self._programs, self._calls = {}, 0

    def __call__(self, x, random):
        feeds = self.graph.feed(x)
        # Random layers do not use up the random numbers of the training.
        seeds = [ops.cast([i, self._calls], v.dtype) for i, v in enumerate(self._seeds)]
        self._calls += 1
        random = random and bool(self._seeds)
        specs = [tf.TensorSpec((None, *v.shape[1:]), v.dtype) for v in feeds]
        key = random, str([s.shape for s in specs])
        if key not in self._programs:
            compute = functools.partial(self._compute, random)
            self._programs[key] = trace(compute, specs, seeds)
        return [v.numpy().astype("float32") for v in self._programs[key](feeds, seeds)]

    def _compute(self, random, feeds, seeds):
        with keras.StatelessScope(list(zip(self._seeds, seeds, strict=True))):
            return self.graph.run(
                self._fetches,
                self.graph.inputs,
                feeds,
                training=random,
                held=self._held,
            )


def _seeds(layer):
    """The seed variables of a layer and those inside it; none for an operation."""
    inside = _compat.flatten_layers(layer) if hasattr(layer, "weights") else ()
    return [v for each in inside for v in _compat.seed_states(each)]
