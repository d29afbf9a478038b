"""The part of a regularizer that compares the predictions of two heads."""

import keras
from keras import ops

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._network.heads import check_heads, output_activation


class Predictions:
    """Distances of softened predictions, of heads that end in a softmax or in logits.

    Args:
        temperature: T, the divisor of the logits.
    """

    def __init__(self, temperature):
        self.temperature = _arguments.number("temperature", temperature, above=0)
        self._activations = {}

    def check(self, networks):
        """Refuse networks whose heads cannot be compared; see `Regularizer.check`."""
        check_heads(networks.target, networks.source)

    def bind(self, networks):
        """Look up the activations of the two heads; see `Regularizer.bind`."""
        for name in ("source", "target"):
            self._activations[name] = output_activation(getattr(networks, name))

    def distance(self, batch, towards="source"):
        """`distillation_loss` of a `Batch`, its mean.

        Args:
            batch: the `Batch`.
            towards: `"source"` if the target follows the source; or `"target"`.
        """
        source = self.source_logits(batch)
        target = self.as_logits("target", batch.target_outputs)
        pair = (source, target) if towards == "source" else (target, source)
        return mean(distillation_loss(*pair, self.temperature))

    def source_logits(self, batch):
        """Logits of the source's predictions, up to a constant per sample."""
        return self.as_logits("source", batch.source_outputs)

    def as_logits(self, whose, outputs):
        """Logits of one network's outputs, up to a constant per sample."""
        return _as_logits(outputs, self._activations.get(whose))

    def as_target(self, batch):
        """The source's predictions in the form of the target's, as its loss takes."""
        (outputs,) = keras.tree.flatten(batch.source_outputs)
        source, target = (self._activations.get(n) for n in ("source", "target"))
        if target == "softmax" != source:
            outputs = ops.softmax(outputs)
        elif target != "softmax":
            outputs = _as_logits(outputs, source)
        return keras.tree.pack_sequence_as(batch.target_outputs, [outputs])


def check_maps(networks):
    """Refuse a network without maps if a method compares more than predictions."""
    found = {"source": networks.source_map_shapes, "target": networks.target_map_shapes}
    for whose, shapes in found.items():
        if not shapes:
            expected = f"a {whose} with feature maps of images"
            remedy = '"kd" compares predictions alone and works with any network.'
            raise ValueError(invalid(whose, expected, "one without", remedy))


def check_image_maps(networks):
    """Like `check_maps`, and refuse maps that are not maps of images."""
    check_maps(networks)
    found = {"source": networks.source_map_shapes, "target": networks.target_map_shapes}
    for whose, shapes in found.items():
        for tap, shape in shapes.items():
            if len(shape) != 3:
                expected = "layers with maps (height, width, channels)"
                received = f"'{tap}' of the {whose}, with {shape}"
                raise ValueError(invalid("taps", expected, received))


def distillation_loss(source_logits, target_logits, temperature):
    """Distance of softened predictions: `T^2 KL(softmax(s / T) || softmax(t / T))`.

    Args:
        source_logits: `(B, classes)`.
        target_logits: the same shape.
        temperature: T, positive.

    Returns:
        `(B,)` float32, summed over the classes.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
    arXiv 1503.02531.
    """
    source, target = (
        ops.log_softmax(ops.cast(logits, "float32") / temperature, axis=-1)
        for logits in (source_logits, target_logits)
    )
    divergence = ops.sum(ops.exp(source) * (source - target), axis=-1)
    return temperature**2 * divergence


def mean(per_sample):
    """Mean over the batch; 0 for an empty one, as a replica may get at the end."""
    count = ops.cast(ops.shape(per_sample)[0], "float32")
    return ops.sum(per_sample) / ops.maximum(count, 1.0)


def _as_logits(outputs, activation):
    (outputs,) = keras.tree.flatten(outputs)  # they may be in a dict
    if activation != "softmax":
        return outputs
    # The logarithm is enough: it differs from the logits by a constant.
    kind = keras.backend.standardize_dtype(outputs.dtype)
    smallest = 6e-8 if kind == "float16" else 1e-37  # above 0 in these types
    return ops.log(ops.maximum(ops.cast(outputs, "float32"), smallest))
