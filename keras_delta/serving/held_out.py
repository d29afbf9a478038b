"""Held-out images, which a model was not trained on, with their labels."""

import numpy as np
import tensorflow as tf

from keras_delta._errors import invalid, warn
from keras_delta._inputs import samples
from keras_delta.data.image_set import ImageSet

ARGUMENT = "validation_data"


def batches(data, class_names, options, network):
    """Batches of held-out images, float32, and their labels in the task's form.

    Args:
        data: `ImageSet`, or data as `evaluate` takes them.
        class_names: list of strings.
        options: `Options`, fitted.
        network: `Network`.

    Raises:
        ValueError: if class names, shapes or labels do not match, or there are no
            images.
    """
    size, count = (*options.image_size, network.channels), 0
    for x, y in samples.batches(_as_fit_takes_it(data, class_names, options)):
        if isinstance(data, ImageSet) and network.channels == 1:
            x = tf.image.rgb_to_grayscale(x).numpy()
        shape = x.shape[1:] if hasattr(x, "shape") else x
        if shape != size:
            expected = f"images of shape {size}, the model's input"
            raise ValueError(invalid(ARGUMENT, expected, shape))
        y = network.task.labels(y, len(class_names))
        if count == 0 and x.max() <= 1:
            warn(
                f"The images in `{ARGUMENT}` have no value above 1. Served images "
                "are 0 to 255: scale inside the model, not before."
            )
        count += len(x)
        yield x, y
    if count == 0:
        raise ValueError(f"`{ARGUMENT}` is empty: it yields no images.")


def check_outputs(outputs, of=ARGUMENT):
    """Reject networks that return NaN, which is neither right nor wrong."""
    bad = np.flatnonzero(np.isnan(outputs).any(axis=-1))
    if len(bad):
        raise ValueError(
            f"The model gives NaN for {len(bad)} of {len(outputs)} images ({of}), the "
            f"first is number {bad[0]}. If these images are valid, training diverged: "
            "`keras_delta.callbacks.TerminateOnNaN` stops when that happens."
        )


def _as_fit_takes_it(data, class_names, options):
    if isinstance(data, dict) and all(isinstance(v, ImageSet) for v in data.values()):
        remedy = "Pass one of them, e.g. `sets['test']`."
        raise ValueError(invalid(ARGUMENT, "one ImageSet", data, remedy))
    if not isinstance(data, ImageSet):
        return data
    if list(data.class_names) != class_names:
        raise ValueError(
            f"`class_names` and the class names in `{ARGUMENT}` differ: "
            f"{class_names} and {list(data.class_names)}. The order must be that of "
            "the model's outputs, that is, of the training data's `class_names`."
        )
    return data.batches(options.image_size, protocol=options.protocol)
