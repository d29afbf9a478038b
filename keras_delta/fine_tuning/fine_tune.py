"""`fine_tune`: from a pretrained network and images to a trained model, in one call."""

import datetime

import keras
import numpy as np

from keras_delta import _arguments, _tasks, averaging, backbones
from keras_delta._errors import invalid
from keras_delta._network.attach import attach_head
from keras_delta._network.freeze import freeze_until
from keras_delta._network.graph import Graph
from keras_delta._probe.fit import Fitting
from keras_delta.fine_tuning import images, statistics
from keras_delta.fine_tuning.recipe import SHARES, Recipe
from keras_delta.model import DeltaModel

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
FORWARD_PASSES = 4  # that a step takes as long as: source, target, two backwards


def fine_tune(
    source,
    train,
    validation=None,
    *,
    method=None,
    recipe=None,
    classes=None,
    task=_tasks.MULTICLASS,
    image_size=None,
    callbacks=None,
    seed=0,
    verbose="auto",
):
    """Fine-tune a pretrained network on few images, by a recipe.

    The network gets a new head, which is fitted on the frozen network (the *linear
    probe*), with the source's BatchNorm statistics and with mixtures of these and the
    target's. What does best on images held out is where training begins. All
    layers but BatchNorm are trained with a warm-up and a cosine decay, their feature
    maps kept near those of the start, and averaged with the start in the end. Each part
    can be changed, see `Recipe`.

    Args:
        source: name in `keras_delta.backbones.ALL`, or a Functional or Sequential
            network that puts out feature maps.
        train: a folder with a folder a class (or with `train` and `val` folders of
            them), an `ImageSet`, `(x, y)` arrays, or batches as `fit` takes them.
            Folders, `ImageSet`, and arrays of `uint8` photographs with class numbers
            are mirrored and cropped at random; all else comes as it is.
        validation: the same, for `val_accuracy` after each epoch, which decides
            nothing; None: what the folder holds.
        method: in place of the recipe's `regularizer`: `"delta"`, `"l2_sp"`, ...
        recipe: a `Recipe`; default: `Recipe()`.
        classes: units of the head; None: as many as the data have, where they tell.
        task: as for `attach_head`; decides the loss.
        image_size: side in pixels or (height, width), for folders and `ImageSet`;
            default: the network's.
        callbacks: as for `fit`.
        seed: of head, order and augmentation.
        verbose: as for `fit`; 0 for silence.

    Returns:
        A trained `DeltaModel`. `model.history` is that of the training, `model.recipe`
        the `Recipe` with what was chosen, `model.probe` how well the head alone did.
        `model.target` is the plain Keras model.

    Raises:
        TypeError, ValueError: before anything is trained, for what cannot work.

    Example:
        ```python
        model = kd.fine_tune("efficientnet_lite0", "photos/train", image_size=160)
        print(model.probe, model.recipe, sep="\\n")
        model.export("served/1")
        ```
    """
    recipe = Recipe() if recipe is None else recipe
    if not isinstance(recipe, Recipe):
        raise TypeError(invalid("recipe", "a keras_delta.Recipe", recipe))
    if method is not None:
        recipe = recipe.replace(regularizer=method)
    _arguments.choice("task", task, _tasks.TASKS)
    keras.utils.set_random_seed(_arguments.seed("seed", seed))
    train, of_folder = images.read(train)
    validation = of_folder if validation is None else images.read(validation)[0]
    source, size = _source(source, train, image_size)
    data = images.for_training(train, size, recipe, seed)
    target = attach_head(source, _units(classes, data, task), task=task)
    say = print if verbose != 0 else _say_nothing
    compiled = {name: make() for name, make in COMPILED[task].items()}
    recipe, probe, image_seconds = _begin(target, data, recipe, compiled["loss"], seed)
    say(probe, flush=True)
    model = DeltaModel(target)
    model.recipe, model.probe = recipe, probe
    if recipe.freeze:
        freeze_until(model, _last_frozen(model.taps, recipe.freeze))
    steps = recipe.epochs * data.steps
    optimizer = recipe.make_optimizer(steps)
    model.compile(optimizer, regularizer=recipe.regularizer, **compiled)
    seconds = steps * data.batch_size * FORWARD_PASSES * image_seconds
    about = datetime.timedelta(seconds=round(seconds))
    say(f"{recipe}\n{steps} steps, about {about}", flush=True)
    start = target.get_weights()
    model.fit(
        data.x,
        data.y,
        batch_size=None if data.y is None else recipe.batch_size,
        epochs=recipe.epochs,
        validation_data=images.for_validation(validation, size, recipe),
        shuffle=data.y is not None,
        fit_head=False,
        callbacks=callbacks,
        verbose=verbose,
    )
    if recipe.average:
        averaging.interpolate(target, start, 1 - recipe.average)
    return model


def _say_nothing(*_, **__):
    pass


def _source(source, train, image_size):
    """(the network, size of the images)"""
    if not isinstance(source, str):
        Graph(source, argument="source")  # or it is refused
    shape = getattr(source, "input_shape", None)
    size = images.size_of(train, shape) if image_size is None else image_size
    if isinstance(source, str):
        build = backbones.get(source)
        size = backbones.ALL[source].size if size is None else size
        height, width = (size, size) if np.ndim(size) == 0 else size
        source = build(input_shape=(height, width, 3))
    elif size is None:
        expected = f"a number of pixels: '{source.name}' takes images of any size"
        raise ValueError(invalid("image_size", expected, None))
    return source, size


def _units(classes, data, task):
    """Units of the head."""
    if classes is None and task == _tasks.BINARY:
        return 1
    classes = data.units if classes is None else classes
    if classes is None:
        expected = "the number of classes, which these data do not tell"
        raise ValueError(invalid("classes", expected, None))
    return classes


def _begin(target, data, recipe, loss, seed):
    """Fit the head, and settle what is fixed from then on.

    Returns:
        (the recipe with what was chosen, `Probe`, seconds that an image takes).
    """
    x = data.x if data.y is None else (data.x, data.y)
    head, options = target.layers[-1], {"loss": loss, "seed": seed}
    drawn, share = head.get_weights(), recipe.batch_norm
    if share == "training":
        fitting = Fitting(target, x, **options)
        probe, image_seconds = fitting.fit(verbose=0), fitting.image_seconds
    else:
        shares = SHARES if share == "auto" else (share,)
        share, probe, image_seconds = statistics.settle(target, x, shares, **options)
    if not recipe.fit_head:
        head.set_weights(drawn)
    return recipe.settled(share, data.steps), probe, image_seconds


def _last_frozen(taps, share):
    """The tap up to which a network is frozen."""
    return taps[max(1, round(share * len(taps))) - 1]
