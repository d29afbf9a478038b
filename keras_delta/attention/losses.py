"""The loss of each sample, in float64, for models with one output or several."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops, tree

from keras_delta import _compat
from keras_delta._inputs import labels, outputs
from keras_delta._network.graph import Graph
from keras_delta._network.heads import output_activation
from keras_delta._tasks import loss_name


def with_logits(predicted):
    """Outputs as a list; those of a softmax or sigmoid as (output, logits).

    Keras's cross-entropies use the logits that Keras attaches to probabilities; that
    information is lost at the end of a traced function.
    """
    logits = [(t, _compat.logits_of(t)) for t in tree.flatten(predicted)]
    return [t if noted is None else (t, noted) for t, noted in logits]


class SampleLoss:
    """Loss per sample of a network: `(targets, outputs) -> (B,)` in float64.

    Args:
        losses: list of Keras losses, one per output; None for an output without.
        weights: list of factors, one per output.
        names: names of the outputs, for targets in a dict.
    """

    def __init__(self, losses, weights=None, names=None):
        self.losses = list(losses)
        self.weights = [1.0] * len(self.losses) if weights is None else list(weights)
        self._names = names

    def targets(self, y):
        """Targets of a batch as a list, one per output."""
        return outputs.targets(y, self.losses, self._names)

    def check(self, targets, predicted):
        """Refuse labels for which the outputs have no class."""
        for loss, y, out in zip(self.losses, targets, predicted, strict=True):
            out = out[0] if isinstance(out, (list, tuple)) else out
            if loss is not None:
                labels.check(y, out.shape, loss)

    def __call__(self, targets, predicted):
        """The weighted sum over the outputs, an array `(B,)`."""
        total = 0.0
        for loss, weight, y, out in zip(
            self.losses, self.weights, targets, predicted, strict=True
        ):
            if loss is not None:
                total += weight * _each(loss, y, out)
        return ops.convert_to_numpy(total)

    def describe(self):
        """A text that distinguishes losses."""
        parts = []
        for loss, weight in zip(self.losses, self.weights, strict=True):
            config = getattr(loss, "get_config", dict)()
            parts.append(f"{weight} {loss_name(loss)} {sorted(config.items())}")
        return "; ".join(parts)

    def chance_level(self, mean_loss, batches):
        """Loss of the best constant prediction if it is no worse, else None.

        Args:
            mean_loss: the measured loss.
            batches: list of results of `targets`.
        """
        if len(self.losses) != 1:
            return None
        level = labels.chance([targets[0] for targets in batches], self.losses[0])
        # A level of 0: all labels are equal, and nothing can be better.
        return level if level and not mean_loss < level else None


def _each(loss, y, out):
    """A Keras loss of each sample, `(B,)` in float64."""
    out, logits = out if isinstance(out, (list, tuple)) else (out, None)
    if len(y.shape) == len(out.shape) - 1 and out.shape[-1] == 1:
        y = ops.expand_dims(y, -1)  # as Keras does
    # `call` is the loss before any reduction, and takes float64.
    elements = loss.call if isinstance(loss, keras.losses.Loss) else loss
    out = tf.cast(out, "float64")
    if logits is not None:
        out = tf.identity(out)  # the logits are attached to this copy only
        _compat.remember_logits(out, tf.cast(logits, "float64"))
    try:
        each = elements(tf.cast(y, "float64"), out)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as e:
        raise ValueError(
            f"The loss {loss_name(loss)} cannot compare targets of shape "
            f"{tuple(y.shape)} with outputs of shape {tuple(out.shape)}. Pass the "
            "`loss` and the labels that the model is trained with. Reason: "
            f"{str(e)[:200]}"
        ) from e
    if each.shape[:1] != out.shape[:1]:
        raise ValueError(
            "Channel attention needs a loss with one value per sample, but "
            f"{loss_name(loss)} returned shape {tuple(each.shape)} for "
            f"{out.shape[0]} samples. Leave the mean over the batch to Keras, or use "
            "`attention='uniform'`."
        )
    each = tf.reshape(tf.cast(each, "float64"), (out.shape[0], -1))
    return tf.reduce_mean(each, axis=1)


def choose(model, graph: Graph, loss, y):
    """The loss for the scores: as passed, as compiled, or as the output suggests.

    Args:
        model: the model.
        graph: its graph.
        loss: the user's; None for the model's own.
        y: targets of one sample.
    """
    weights = None
    if loss is None:
        loss, weights = getattr(model, "loss", None), _compat.loss_weights(model)
    names = outputs.names(graph)
    if loss is None:
        return SampleLoss([_suggested(graph, tree.flatten(graph.outputs), y)])
    losses = outputs.losses(loss, graph)
    if isinstance(weights, dict):
        weights = [weights.get(name, 1.0) for name in names]
    if not isinstance(weights, (list, tuple)):
        weights = [1.0 if weights is None else float(weights)] * len(losses)
    outputs.check_heads(losses, graph, both_ways=False)
    return SampleLoss(losses, weights, names)


def _suggested(graph, outputs, y):
    if len(outputs) != 1:
        raise ValueError(
            f"Cannot infer the loss of a model with {len(outputs)} outputs. Pass "
            "`loss=`, or compile the model first."
        )
    activation = output_activation(graph)
    whole = np.asarray(y).dtype.kind in "iub" or (np.mod(y, 1) == 0).all()
    width = outputs[0].shape[-1]
    dense = np.ndim(y) == len(outputs[0].shape) and np.shape(y)[-1] == width > 1
    classes = dense or (whole and width > 1)
    bits = np.isin(y, (0, 1)).all() and np.size(y) in (1, width)
    if activation == "sigmoid" and bits:
        return keras.losses.BinaryCrossentropy()
    if activation not in ("softmax", "linear") or not classes:
        raise ValueError(
            "Cannot infer the loss of a model whose output has the activation "
            f"{activation or 'unknown'} and width {width}, from targets of dtype "
            f"{np.asarray(y).dtype}. Pass the `loss` that it is trained with (a "
            "regression needs one), or compile the model first."
        )
    kind = (
        keras.losses.CategoricalCrossentropy
        if dense
        else keras.losses.SparseCategoricalCrossentropy
    )
    return kind(from_logits=activation == "linear")
