"""Images that a model was not trained on, with their labels."""

from keras_delta._errors import invalid, warn
from keras_delta._inputs import labels as labelling
from keras_delta._inputs import samples
from keras_delta.data.image_set import ImageSet

ARGUMENT = "validation_data"


def batches(data, class_names, options):
    """Batches of held-out images, float32, and their integer labels.

    Args:
        data: `ImageSet`, or as `evaluate` takes it.
        class_names: list of strings.
        options: `Options`, fitted.

    Raises:
        ValueError: for other names of classes, shapes and labels, and for no images.
    """
    size, classes = options.image_size, len(class_names)
    count = 0
    for x, y in samples.batches(_as_fit_takes_it(data, class_names, options)):
        shape = x.shape[1:] if hasattr(x, "shape") else x
        if shape != (*size, 3):
            expected = f"images of the shape {(*size, 3)}, as the model takes them"
            raise ValueError(invalid(ARGUMENT, expected, shape))
        if y.ndim == 2 and y.shape[-1] == classes > 1:
            y = y.argmax(axis=-1)
        labelling.check(y, (None, classes), "sparse_categorical_crossentropy")
        if count == 0 and x.max() <= 1:
            warn(
                f"The images of `{ARGUMENT}` have no value above 1. Served images "
                "are 0 to 255: scale inside of the model, not before."
            )
        count += len(x)
        yield x, y.ravel().astype("int64")
    if count == 0:
        raise ValueError(f"`{ARGUMENT}` is empty: not one image came out of it.")


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
