"""`fine_tune`: from a pretrained network and images to a trained model, in one call."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_delta import _arguments, _tasks, backbones, regularizers
from keras_delta._errors import invalid
from keras_delta._network.attach import attach_head
from keras_delta._network.copies import copy_model
from keras_delta._network.graph import Graph
from keras_delta._network.heads import features
from keras_delta._training import pixels
from keras_delta._types import Data, ImageSize, RegularizerLike, Task, Verbose
from keras_delta.data import ImageSet
from keras_delta.fine_tuning import images
from keras_delta.model import DeltaModel
from keras_delta.recipe import Recipe

_BITS = {
    "loss": lambda: keras.losses.BinaryCrossentropy(from_logits=True),
    "metrics": lambda: [keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
}
COMPILED = {
    _tasks.MULTICLASS: {
        "loss": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": lambda: ["accuracy"],
    },
    _tasks.MULTILABEL: _BITS,
    _tasks.BINARY: _BITS,
    _tasks.REGRESSION: {"loss": keras.losses.MeanSquaredError, "metrics": lambda: []},
}


def fine_tune(
    source: str | keras.Model,
    train: Data,
    validation: Data = None,
    *,
    method: RegularizerLike = None,
    recipe: Recipe | None = None,
    teacher: keras.Model | None = None,
    classes: int | None = None,
    task: Task = _tasks.MULTICLASS,
    image_size: ImageSize | None = None,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> DeltaModel:
    """Fine-tune a pretrained network on few images, following a recipe.

    The network gets a new head, which is fitted on the frozen network (the *linear
    probe*), with the source's BatchNorm statistics and with mixtures of these and the
    target's. Training starts from the combination that does best on held-out images.
    All layers but BatchNorm are trained with a warm-up and a cosine decay, their
    feature maps kept near the source's. All of this can be changed, see `Recipe`. The
    function is short for `attach_head`, `compile` without an optimizer, and `fit` with
    the recipe.

    Args:
        source: name in `keras_delta.backbones.ALL`, or a Functional or Sequential
            network that outputs feature maps; for `"lwf"` and `"co_tuning"` one with
            the classifier that it was pretrained with.
        train: a folder with one folder per class (or with such folders `train` and
            `val`), an `ImageSet`, `(x, y)` arrays, or batches as `fit` takes them.
            Folders, `ImageSet`, and arrays of `uint8` photographs with class numbers
            are mirrored and cropped at random; other data are used unchanged.
        validation: data of the same kinds and classes, for `val_accuracy` after each
            epoch, which does not influence training; None: the folder's `val`, if any.
        method: overrides the recipe's `regularizer`: `"delta"`, `"l2_sp"`, ...; with
            a teacher and without a recipe, `"kd"`.
        recipe: a `Recipe`; default: `Recipe()`.
        teacher: another network for the method to compare with, trained for the same
            classes, as `"kd"`, `"afd"` and `"four_ds"` need it: a Keras model, such as
            `model.target` of another training. Default: the unchanged `source`, which
            `"delta"` and the like compare with.
        classes: units of the head; None: the number of classes in the data, if known.
        task: as for `attach_head`; decides the loss.
        image_size: side in pixels or (height, width), for folders and `ImageSet`;
            default: the network's.
        callbacks: as for `fit`.
        seed: of order and augmentation.
        verbose: as for `fit`; 0 for silence.

    Returns:
        A trained `DeltaModel`. `model.history` is the training history, `model.recipe`
        the `Recipe` with its automatic choices filled in, `model.probe` how well the
        head alone did. `model.target` is the plain Keras model.

    Raises:
        TypeError, ValueError: if a combination cannot work (before any training).

    Example:
        ```python
        model = kd.fine_tune("efficientnet_lite0", "photos/train", image_size=160)
        print(model.probe, model.recipe, sep="\\n")
        model.export("served/1")
        ```
    """
    if teacher is not None:
        Graph(teacher, argument="teacher")  # raises if it has no graph
        method = "kd" if method is None and recipe is None else method
    recipe = Recipe() if recipe is None else recipe
    if not isinstance(recipe, Recipe):
        raise TypeError(invalid("recipe", "a keras_delta.Recipe", recipe))
    if recipe.optimizer is None:
        expected = "an optimizer, since `fine_tune` compiles the model without one"
        raise ValueError(invalid("recipe.optimizer", expected, None))
    if method is not None:
        recipe = recipe.replace(regularizer=method)
    compared = regularizers.get(recipe.regularizer)
    looks = compared is not None and compared.needs & {"source_maps", "source_outputs"}
    if teacher is not None and (not looks or compared.starts_at_source):
        expected = 'one that compares with the teacher: "kd", "afd", "four_ds", '
        expected += '"fitnets", "at" or "fsp"'
        remedy = "Other methods start from the source and do not use a teacher."
        if compared is not None and compared.needs_source_head:
            remedy += " Pass the network with its classifier as `source`."
        argument = "recipe.regularizer" if method is None else "method"
        raise ValueError(invalid(argument, expected, recipe.regularizer, remedy))
    _arguments.choice("task", task, _tasks.TASKS)
    keras.utils.set_random_seed(_arguments.seed("seed", seed))
    train, of_folder = images.read(train)
    validation = of_folder if validation is None else images.read(validation)[0]
    images.same_classes(train, validation)
    of_head = compared is not None and compared.needs_source_head
    source, size = _source(source, train, image_size, include_top=of_head)
    if isinstance(train, ImageSet):
        pixels.check_scaling(Graph(source))
    data = images.for_training(train, size, recipe, seed, task)
    body = _without_head(source) if of_head else source
    target = attach_head(body, _units(classes, data), task=task)
    model = DeltaModel(target, source=source if of_head else teacher)
    model.compile(**{name: make() for name, make in COMPILED[task].items()})
    model.fit(
        data.batches,
        epochs=recipe.epochs_for(data.steps),
        validation_data=images.for_validation(validation, size, recipe),
        shuffle=False,
        recipe=recipe,
        callbacks=callbacks,
        verbose=verbose,
    )
    return model


def _source(source, train, image_size, include_top=False):
    """(the network, size of the images)"""
    if not isinstance(source, str):
        Graph(source, argument="source")  # raises if it has no graph
    shape = getattr(source, "input_shape", None)
    size = images.size_of(train, shape) if image_size is None else image_size
    if isinstance(source, str):
        build = backbones.get(source)
        size = backbones.ALL[source].size if size is None else size
        height, width = (size, size) if np.ndim(size) == 0 else size
        source = build(input_shape=(height, width, 3), include_top=include_top)
    elif size is None:
        expected = f"a number of pixels: '{source.name}' takes images of any size"
        raise ValueError(invalid("image_size", expected, None))
    return source, size


def _without_head(source):
    """A network without its classifier, up to the vectors that enter it."""
    graph = Graph(source, argument="source")
    vectors = features(graph)
    if vectors is None:
        expected = "a network with the classifier that it was pretrained with"
        remedy = "Methods that keep or train this classifier need it: "
        remedy += "`include_top=True`."
        raise ValueError(invalid("source", expected, f"'{source.name}'", remedy))
    return copy_model(graph, vectors)


def _units(classes, data):
    """Units of the head."""
    classes = data.units if classes is None else classes
    if classes is None:
        expected = "the number of classes, which these data do not specify"
        raise ValueError(invalid("classes", expected, None))
    return classes
