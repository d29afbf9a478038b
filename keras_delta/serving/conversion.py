"""Conversion to other runtimes: the shared computation and its check."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_delta import _tasks
from keras_delta._errors import warn
from keras_delta.serving import held_out

IMAGES, SCORES = "images", "scores"  # names in the file
TOLERANCE = 1e-3  # of scores, if nothing is quantized
DROP = 0.02  # of accuracy; a larger one gives a warning


class Converted(NamedTuple):
    """The bytes of a file, facts for the card, and its logits with the labels."""

    content: bytes
    facts: dict
    logits: np.ndarray | None
    labels: np.ndarray | None


def check_precision(graph):
    """Reject networks that compute in half or double precision."""
    for name, node in graph.nodes.items():
        dtype = getattr(node.operation, "compute_dtype", None) or "float32"
        if node.is_layer and "float" in dtype and dtype != "float32":
            raise ValueError(
                f"The layer '{name}' computes in {dtype}, but conversion requires "
                "float32. Rebuild the network after "
                '`keras.config.set_dtype_policy("float32")`, copy the weights with '
                "`new.set_weights(model.get_weights())` and export that."
            )


def convert(endpoints, name, images, batches):
    """Convert a model for another runtime, and run the result to check it.

    Args:
        endpoints: `Endpoints`, with its temperature and its options.
        name: name of the model.
        images: array for determining the ranges of int8, or None.
        batches: iterable of held-out images and labels, or None.

    Returns:
        `Converted`.

    Raises:
        ValueError: if the model cannot be converted or the scores differ.
    """
    converter, quantize = endpoints.options.converter, endpoints.options.quantize
    before = _scores(endpoints)
    content = converter.convert(before, endpoints, name, images)
    on = "validation_data"
    if batches is None and images is not None:
        on, batches = "representative_data", [(images, None)]
    elif batches is None:
        on, batches = "noise", [(_noise(endpoints.image_shape), None)]
    runner = converter.runner(content)
    changes, after, labels = _compare(before, runner, batches, endpoints, on)
    judge(changes, converter.RUNTIME, quantize)
    facts = {"quantize": quantize, "bytes": len(content), "images": on, **changes}
    if labels is None:
        return Converted(content, facts, None, None)
    logits = endpoints.temperature * endpoints.task.logits_of(after)
    return Converted(content, facts, logits, labels)


def judge(changes, runtime, quantize=None):
    """Reject a failed conversion, and warn about one that costs accuracy."""
    difference = changes["largest_difference"]
    if np.isnan(difference) or (quantize is None and difference > TOLERANCE):
        raise ValueError(
            f"{runtime} does not reproduce the model: scores differ by up to "
            f"{difference:.2g} on {changes['samples']} images (at most {TOLERANCE:g} "
            'allowed). Export with `format="saved_model"`.'
        )
    if quantize is not None and (changes["drop"] or 0) > DROP:
        warn(
            f'`quantize="{quantize}"` costs {100 * changes["drop"]:.1f} points of '
            f"accuracy: {changes['accuracy']:.1%} of {changes['samples']} images are "
            f"correct, {changes['accuracy_before']:.1%} before. `quantize` as None, "
            '"float16" or "dynamic" loses less.'
        )


def _scores(endpoints):
    """The computation of the file, `images` -> `scores`, as a `tf.function`."""

    def compute(images):
        return {SCORES: endpoints.scores(images)}

    signature = [tf.TensorSpec([None, *endpoints.image_shape], name=IMAGES)]
    return tf.function(compute, input_signature=signature, autograph=False)


def _noise(shape, count=16):
    """Images of seeded noise with a random brightness for each."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (count, *shape))
    return (images * rng.uniform(0.2, 1, (count, 1, 1, 1))).astype("float32")


def _compare(before, after, batches, endpoints, on):
    """The changes as a dict, the scores after the conversion, the labels or None."""
    task, old, new, labels = endpoints.task, [], [], []
    for x, y in batches:
        x = np.asarray(x, "float32")
        old.append(before(x)[SCORES].numpy())
        new.append(after(x))
        labels.append(y)
    old, new = np.concatenate(old), np.concatenate(new)
    held_out.check_outputs(old, on)
    difference = float(np.abs(old - new).max())
    if task.name == _tasks.REGRESSION:  # of any unit
        difference /= max(1.0, float(np.abs(old).max()))
    said = [task.decide(scores, endpoints.thresholds) for scores in (old, new)]
    decides = said[0] is not None
    changes = {
        "samples": len(new),
        "largest_difference": difference,
        "agreement": task.share(*said) if decides else None,
    }
    changes |= dict.fromkeys(("accuracy_before", "accuracy", "drop"))
    labels = None if labels[0] is None else np.concatenate(labels)
    if labels is not None and decides:
        was, now = (task.share(answer, labels) for answer in said)
        changes |= {"accuracy_before": was, "accuracy": now, "drop": was - now}
    return changes, new, labels
