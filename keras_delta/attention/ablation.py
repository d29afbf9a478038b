"""Exact scores: how much the loss rises when a channel is set to zero.

What lies before a tap does not change when one of its channels is switched off,
so it is computed once a batch; only the part behind the tap's cut is run again,
for many channels in one call.
"""

import sys
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops, tree

from keras_delta import labels as label_checks
from keras_delta import samples
from keras_delta.graph import Graph

BATCH = 32
MEMORY = 512 * 2**20  # bytes that the maps of one call may take


class Result(NamedTuple):
    """What `scores` found.

    Attributes:
        scores: dict tap -> `(C,)` float64.
        count: number of samples.
        loss: mean loss of the intact network.
        labels: the targets of all samples.
    """

    scores: dict
    count: int
    loss: float
    labels: Any


class Ablation:
    """Runs a network with channels of one tap switched off.

    One trace a tap: the batch and the number of channels in a call are fixed,
    and what is missing at the end is padded.

    Args:
        graph: the network.
        tap: name of the tapped layer.
        call: see `Graph.run`; replaces single layers (a trained head, say).
    """

    def __init__(self, graph: Graph, tap, call=None):
        tensor = graph.output_of(tap)
        self.graph, self.call = graph, call
        self.cut = graph.cut([tensor])
        self.channels = tensor.shape[-1]
        self._run = tf.function(self._masked, reduce_retracing=False)

    def _masked(self, values, masks):
        k, n = masks.shape[0], values[0].shape[0]
        keep = ops.reshape(masks, (k, *[1] * (len(values[0].shape) - 1), -1))
        tap = ops.where(keep, values[0][None], ops.zeros((), values[0].dtype))
        rest = [ops.tile(v, (k, *[1] * (len(v.shape) - 1))) for v in values[1:]]
        tap = ops.reshape(tap, (k * n, *values[0].shape[1:]))
        out = self.graph.run(
            self.graph.outputs, self.cut, [tap, *rest], training=False, call=self.call
        )
        out = tree.flatten(out)[0]
        return ops.reshape(out, (k, n, *out.shape[1:]))

    def chunk(self, values):
        """Number of channels to switch off in one call, one at a time."""
        behind = self.graph.descendants(self.cut[:1])
        sizes = [
            np.prod([d or 1 for d in t.shape[1:]])
            for name in behind
            for t in self.graph.nodes[name].outputs
        ]
        # The largest map, its successor and the masked copy live at once.
        widest = 3 * 4 * max([*sizes, *[np.prod(v.shape[1:]) for v in values]])
        return int(np.clip(MEMORY // (widest * BATCH), 1, self.channels + 1))

    def outputs(self, values):
        """Yield (channel, outputs) for each channel, and (-1, intact outputs) first.

        Args:
            values: the tensors of the cut for one batch, `(BATCH, ...)`.
        """
        masks = np.ones((self.channels + 1, self.channels), bool)
        masks[np.arange(self.channels) + 1, np.arange(self.channels)] = False
        chunk = self.chunk(values)
        for start in range(0, len(masks), chunk):
            part = masks[start : start + chunk]
            padded = np.ones((chunk, self.channels), bool)
            padded[: len(part)] = part
            out = ops.convert_to_numpy(self._run(values, ops.convert_to_tensor(padded)))
            for i in range(len(part)):
                yield start + i - 1, out[i]


def scores(graph, taps, data, loss, call=None, max_samples=None, progress=True):
    """Mean loss increase per channel of each tap.

    Args:
        graph: the network.
        taps: names of the tapped layers.
        data: what `samples.batches` reads.
        loss: function `(y, outputs) -> (B,)` float64, the loss per sample.
        call: see `Ablation`.
        max_samples: look at no more than so many.
        progress: show a progress bar with the time left.

    Returns:
        A `Result`. Differences are taken per sample and summed in float64.
    """
    ablations = {tap: Ablation(graph, tap, call) for tap in taps}
    cuts = [a.cut for a in ablations.values()]

    @tf.function
    def prefix(feeds):
        return graph.run(cuts, graph.inputs, feeds, training=False)

    totals = {tap: np.zeros(a.channels) for tap, a in ablations.items()}
    count, total_intact, labels = 0, 0.0, []
    bar = None
    for x, y in samples.batches(data, batch_size=BATCH, max_samples=max_samples):
        for start in range(0, samples.length(x), BATCH):
            bx, by = samples.take((x, y), start, start + BATCH)
            size = samples.length(bx)
            feeds = [_pad(v, BATCH) for v in graph.feed(bx)]
            by = tree.map_structure(lambda v: _pad(v, BATCH), by)
            if progress and bar is None:
                channels = sum(a.channels for a in ablations.values())
                bar = _Bar(channels, _expected(data, max_samples))
            for (tap, ablation), values in zip(
                ablations.items(), prefix(feeds), strict=True
            ):
                for channel, out in ablation.outputs(values):
                    each = loss(by, out)[:size]
                    if channel < 0:
                        intact = each
                        _check(intact, tap)
                    else:
                        totals[tap][channel] += (each - intact).sum()
                if bar:
                    bar.add(ablation.channels)
            count += size
            total_intact += intact.sum()
            labels.append(samples.take(by, 0, size))
    if bar:
        bar.close()
    if count == 0:
        raise ValueError("No samples: channel attention needs at least one.")
    labels = tree.map_structure(lambda *v: np.concatenate(v), *labels)
    means = {tap: total / count for tap, total in totals.items()}
    return Result(means, count, total_intact / count, labels)


def _check(losses, tap):
    if not np.isfinite(losses).all():
        raise ValueError(
            f"The loss is not finite on some samples, before any channel of '{tap}' "
            "was switched off. Check the images, the labels and the weights."
        )


def _pad(v, size):
    missing = size - len(v)
    if missing == 0:
        return v
    return np.concatenate([np.asarray(v), np.repeat(np.asarray(v[-1:]), missing, 0)])


def _expected(data, max_samples):
    first = tree.flatten(data[0])[0] if isinstance(data, tuple) else None
    total = len(first) if first is not None else None
    known = [n for n in (total, max_samples) if n is not None]
    return -(-min(known) // BATCH) if known else None


class _Bar:
    """Keras's progress bar over channels, with the time left."""

    def __init__(self, channels, batches):
        target = channels * batches if batches else None
        self._bar = keras.utils.Progbar(target, unit_name="channel")
        self._done = 0
        print("Channel attention:", flush=True)

    def add(self, channels):
        self._done += channels
        if sys.stdout.isatty():  # a log file gets the last line alone
            self._bar.update(self._done, finalize=False)

    def close(self):
        self._bar.update(self._done, finalize=True)


def per_sample_loss(loss):
    """A Keras loss as a function `(y, outputs) -> (B,)` in float64.

    The function raises a ValueError for labels that the outputs have no class for.
    """
    loss = keras.losses.get(loss)
    # `call` is the loss before any reduction, and takes float64.
    elements = loss.call if isinstance(loss, keras.losses.Loss) else loss

    def function(y, outputs):
        label_checks.check(y, outputs.shape[-1], loss)
        if np.ndim(y) == outputs.ndim - 1 and outputs.shape[-1] == 1:
            y = np.expand_dims(y, -1)  # as Keras does
        each = elements(*(ops.convert_to_tensor(v, "float64") for v in (y, outputs)))
        each = ops.convert_to_numpy(each).astype("float64")
        if each.shape[:1] != (len(outputs),):
            raise ValueError(
                "Channel attention needs a loss with one value per sample, but "
                f"{label_checks.loss_name(loss)} gave the shape {each.shape} for "
                f"{len(outputs)} samples. Leave the mean over the batch to Keras, or "
                "use `attention='uniform'`."
            )
        return each.reshape(len(outputs), -1).mean(axis=1)

    return function
