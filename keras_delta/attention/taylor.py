"""First-order scores: a guess at the exact ones from one gradient a tap."""

import numpy as np
import tensorflow as tf
from keras import tree

from keras_delta._inputs import samples
from keras_delta._network.fingerprint import digest
from keras_delta.attention import channelwise
from keras_delta.attention.ablation import not_finite, traced
from keras_delta.attention.losses import with_logits
from keras_delta.attention.networks import Cut
from keras_delta.attention.tally import Result, Tally

BATCH = 32


def scores(network: Cut, loss, data, max_samples=None):
    """`-sum_hw a * dL/da`: what zeroing the channel would cost if L were linear.

    Args:
        network: the network and its taps.
        loss: a `SampleLoss`.
        data: what `samples.batches` reads.
        max_samples: look at no more than so many.

    Returns:
        A `Result`.
    """
    graph = network.graph
    tallies = {tap: Tally(s.channels) for tap, s in network.taps.items()}

    def first_order(feeds, targets):
        losses, effects = None, []
        for tap in tallies:
            axis = channelwise.channel_axis(graph, tap)
            cut = graph.cut([graph.output_of(tap)])
            with network.frozen.scope():
                values = graph.run(cut, graph.inputs, feeds, training=False)
                with tf.GradientTape() as tape:
                    tape.watch(values[0])
                    out = graph.run(graph.outputs, cut, values, training=False)
                    losses = loss.tensor(targets, with_logits(out))
            slope = tape.gradient(losses, values[0], unconnected_gradients="zero")
            product = tf.cast(values[0], "float64") * tf.cast(slope, "float64")
            others = [i for i in range(1, len(product.shape)) if i != axis]
            effects.append(-tf.reduce_sum(product, axis=others))
        return losses, effects

    total, count, seen, digests, programs = 0.0, 0, [], [], {}
    stream = samples.batches(data, batch_size=BATCH, max_samples=max_samples)
    for x, y in samples.regrouped(stream, BATCH):
        size = samples.length(x)
        targets = loss.targets(y)
        loss.check(targets, tree.flatten(graph.outputs))
        feeds = graph.feed(tree.map_structure(_padded, x))
        padded = [
            tf.zeros(BATCH) if v is None else tf.constant(_padded(v)) for v in targets
        ]
        key = tuple(tuple(v.shape) for v in feeds)
        if key not in programs:
            programs[key] = traced(first_order, feeds, padded)
        losses, effects = programs[key](feeds, padded)
        losses = losses.numpy()[:size]
        if not np.isfinite(losses).all():
            raise ValueError(not_finite(network.first_not_finite(feeds)))
        for tally, effect in zip(tallies.values(), effects, strict=True):
            tally.add(effect.numpy()[:size], np.ones(effect.shape[1], bool))
        total += losses.sum()
        count += size
        seen.append(targets)
        digests.append(digest((x, y)))
    if not seen:
        raise ValueError("No samples: channel attention needs at least one.")
    return Result.of(tallies, total, count, seen, digests)


def _padded(v):
    """To a whole batch: samples do not see each other, and one trace will do."""
    missing = BATCH - len(v)
    return np.concatenate([v, np.repeat(v[-1:], missing, 0)]) if missing else v
