"""Images that a model was not trained on, with their labels."""

import numpy as np
import tensorflow as tf

from keras_delta._errors import invalid, warn
from keras_delta._inputs import samples
from keras_delta.data.image_set import ImageSet

ARGUMENT = "validation_data"


def batches(data, class_names, options, network):
    """Batches of held-out images, float32, and their labels, as the task has them.

    Args:
        data: `ImageSet`, or as `evaluate` takes it.
        class_names: list of strings.
        options: `Options`, fitted.
        network: `Network`.

    Raises:
        ValueError: for other names of classes, shapes and labels, and for no images.
    """
    size, count = (*options.image_size, network.channels), 0
    for x, y in samples.batches(_as_fit_takes_it(data, class_names, options)):
        if isinstance(data, ImageSet) and network.channels == 1:
            x = tf.image.rgb_to_grayscale(x).numpy()
        shape = x.shape[1:] if hasattr(x, "shape") else x
        if shape != size:
            expected = f"images of the shape {size}, as the model takes them"
            raise ValueError(invalid(ARGUMENT, expected, shape))
        y = network.task.labels(y, len(class_names))
        if count == 0 and x.max() <= 1:
            warn(
                f"The images of `{ARGUMENT}` have no value above 1. Served images "
                "are 0 to 255: scale inside of the model, not before."
            )
        count += len(x)
        yield x, y
    if count == 0:
        raise ValueError(f"`{ARGUMENT}` is empty: not one image came out of it.")


def check_outputs(outputs, of=ARGUMENT):
    """Refuse networks that give NaN: that is neither right nor wrong."""
    bad = np.flatnonzero(np.isnan(outputs).any(axis=-1))
    if len(bad):
        raise ValueError(
            f"The model gives NaN for {len(bad)} of {len(outputs)} images ({of}), the "
            f"first is number {bad[0]}. If these images are sound, the training broke: "
            "`keras_delta.callbacks.TerminateOnNaN` stops where that happens."
        )


def _as_fit_takes_it(data, class_names, options):
    if isinstance(data, dict) and all(isinstance(v, ImageSet) for v in data.values()):
        remedy = "Pass one of them, e.g. `sets['test']`."
        raise ValueError(invalid(ARGUMENT, "one ImageSet", data, remedy))
    if not isinstance(data, ImageSet):
        return data
    if list(data.class_names) != class_names:
        raise ValueError(
            f"`class_names` and the names of the classes in `{ARGUMENT}` differ: "
            f"{class_names} and {list(data.class_names)}. The order is that of the "
            "model's outputs, that is of the training data's `class_names`."
        )
    return data.batches(options.image_size, protocol=options.protocol)
