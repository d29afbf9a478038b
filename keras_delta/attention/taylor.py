"""First-order scores: a guess at the exact ones from one gradient a tap."""

import numpy as np
import tensorflow as tf
from keras import tree

from keras_delta import samples
from keras_delta.attention import channelwise
from keras_delta.attention.tally import Result, Tally, digest
from keras_delta.graph import Graph

BATCH = 32


def scores(graph: Graph, taps, frozen, loss, data, max_samples=None):
    """`-sum_hw a * dL/da`: what zeroing the channel would cost if L were linear.

    Args:
        graph: the network.
        taps: names of the tapped calls.
        frozen: the network's variables, `Frozen`.
        loss: a `SampleLoss`.
        data: what `samples.batches` reads.
        max_samples: look at no more than so many.

    Returns:
        A `Result`.
    """
    tensors = [graph.output_of(tap) for tap in taps]
    axes = [channelwise.channel_axis(graph, tap) for tap in taps]
    tallies = {
        tap: Tally(t.shape[axis])
        for tap, t, axis in zip(taps, tensors, axes, strict=True)
    }

    @tf.function(reduce_retracing=True)
    def first_order(feeds, targets):
        losses, effects = None, []
        for tensor, axis in zip(tensors, axes, strict=True):
            cut = graph.cut([tensor])
            with frozen.scope():
                values = graph.run(cut, graph.inputs, feeds, training=False)
                with tf.GradientTape() as tape:
                    tape.watch(values[0])
                    out = graph.run(graph.outputs, cut, values, training=False)
                    losses = loss.tensor(targets, tree.flatten(out))
            slope = tape.gradient(losses, values[0], unconnected_gradients="zero")
            product = tf.cast(values[0], "float64") * tf.cast(slope, "float64")
            others = [i for i in range(1, len(product.shape)) if i != axis]
            effects.append(-tf.reduce_sum(product, axis=others))
        return losses, effects

    total, seen, digests = 0.0, [], []
    stream = samples.batches(data, batch_size=BATCH, max_samples=max_samples)
    for x, y in samples.regrouped(stream, BATCH):
        targets = loss.targets(y)
        loss.check(targets, tree.flatten(graph.outputs))
        losses, effects = first_order(graph.feed(x), targets)
        for tally, effect in zip(tallies.values(), effects, strict=True):
            tally.add(effect.numpy(), np.ones(effect.shape[1], bool))
        total += losses.numpy().sum()
        seen.append(targets)
        digests.append(digest((x, y)))
    if not seen:
        raise ValueError("No samples: channel attention needs at least one.")
    count = sum(samples.length(t) for t in seen)
    return Result.of(tallies, total, count, seen, digests)
