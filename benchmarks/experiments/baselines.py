"""Other ways to fine-tune: Keras's guide, fastai's `fine_tune`, and the recipe.

Each is a function of a source, the number of classes, and `train`, a function that
gives the batches of `ImageSet.batches`; each gives a `Trained`.
"""

import gc
import math
import time
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_delta import _compat, attach_head, callbacks, fine_tune
from keras_delta._runs.models import set_seeds
from experiments.clock import Clock

layers, ops = keras.layers, keras.ops
HEAD = "head_"  # begins the names of a head's layers
UNDECAYED = ("bias", "gamma", "beta")


class Trained(NamedTuple):
    """A trained model and what the training was.

    Attributes:
        model: Keras model that puts out logits.
        seconds, prepare_seconds: of the processor, as in the record of a cell.
        epochs: how many in all.
        training_accuracy: of the last epoch; None where it is not known.
    """

    model: Any
    seconds: float
    prepare_seconds: float
    epochs: int
    training_accuracy: float | None


def run(cell, source, classes, train, images, verbose=0, teacher=None):
    """Train a cell whose method is one of `methods.TRAINERS`, to a `Trained`."""
    gc.collect()  # the model before it
    if cell.method == "teacher":
        return Trained(teacher, 0.0, 0.0, 0, None)
    set_seeds(cell.seed)
    if cell.method == "keras_guide":
        return keras_guide(source, classes, train, verbose=verbose)
    if cell.method == "fastai":
        epochs = cell.protocol.epochs(images)
        return fastai(source, classes, train, epochs=epochs, verbose=verbose)
    options = {"parts": cell.its_recipe(), "teacher": teacher}
    return recipe(source, classes, train, seed=cell.seed, verbose=verbose, **options)


def keras_guide(source, classes, train, *, head_epochs=20, epochs=10, verbose=0):
    """The two phases of Keras's guide "Transfer learning & fine-tuning".

    A new head on the frozen network, with Adam; then all of it, with Adam at 1e-5.
    The network is called in inference mode throughout, so that the statistics of
    BatchNorm stay. The guide's own script has 2 and 1 epochs on 9,300 images, earlier
    versions of it 20 and 10; on few images 2 and 1 would be a handful of steps.

    Args:
        source, classes, train: see the module.
        head_epochs, epochs: of the two phases.
        verbose: as for `fit`.
    """
    base = _body(source, classes)
    inputs = keras.Input(base.input_shape[1:], dtype=base.input.dtype)
    x = _Inference(base)(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    model = keras.Model(inputs, layers.Dense(classes)(x))
    batches = train()
    base.trainable = False
    first = _fit(model, keras.optimizers.Adam(), batches, head_epochs, verbose)
    base.trainable = True
    second = _fit(model, keras.optimizers.Adam(1e-5), batches, epochs, verbose)
    seconds = first[0] + second[0]
    return Trained(model, seconds, 0.0, head_epochs + epochs, second[1])


class _Inference(layers.Layer):
    """A model that is called with `training=False`, whatever is trained.

    In a Functional model the guide's `base(inputs, training=False)` is not enough:
    `fit` calls the model with `training=True`, which Keras 3 hands on to its parts.
    """

    def __init__(self, base):
        super().__init__()
        self.base = base

    def call(self, inputs):
        return self.base(inputs, training=False)


def fastai(source, classes, train, *, epochs=15, verbose=0):
    """fastai 2: `vision_learner(...).fine_tune(epochs)`, rebuilt.

    One epoch of head and BatchNorm layers, then all of it, the network at a hundredth
    of the head's rate, each with Adam in one cycle. As there, a last batch that is not
    full is left out.

    Args:
        source, classes, train: see the module.
        epochs: of the second phase.
        verbose: as for `fit`.
    """
    model = with_fastai_head(_body(source, classes), classes)
    batches = train(drop_remainder=True)
    if batches.cardinality() == 0:
        batches = train()
    steps = int(batches.cardinality())
    body = [layer for layer in model.layers if not layer.name.startswith(HEAD)]
    for layer in body:  # BatchNorm is trained, and in training mode
        layer.trainable = isinstance(layer, layers.BatchNormalization)
    optimizer = one_cycle(steps, 2e-3, share=0.99, div=25, body_rate=0.1)
    first = _fit(model, optimizer, batches, 1, verbose)
    for layer in body:
        layer.trainable = True
    optimizer = one_cycle(steps * epochs, 1e-3, share=0.3, div=5, body_rate=0.01)
    second = _fit(model, optimizer, batches, epochs, verbose)
    return Trained(model, first[0] + second[0], 0.0, 1 + epochs, second[1])


def recipe(source, classes, train, parts=None, *, teacher=None, seed=0, verbose=0):
    """`keras_delta.fine_tune`.

    Args:
        source, classes, train: see the module.
        parts: a `Recipe`; default: that of `keras_delta.fine_tune`.
        teacher, seed, verbose: as for `keras_delta.fine_tune`.
    """
    clock, began = Clock(), time.process_time()
    stop = callbacks.TerminateOnNaN(raise_error=True)
    options = {"recipe": parts, "teacher": teacher, "callbacks": [clock, stop]}
    options |= {"classes": classes, "seed": seed, "verbose": verbose}
    model = fine_tune(source, train(), **options)
    if model.interrupted:
        raise KeyboardInterrupt
    whole = time.process_time() - began
    return Trained(
        model.target,
        clock.training(),
        whole - sum(clock.epochs),
        len(clock.epochs),
        model.history.history["accuracy"][-1],
    )


def with_fastai_head(body, classes):
    """A network that puts out maps, with fastai's head."""
    features = body.output
    pooled = [
        layers.GlobalMaxPooling2D(name=f"{HEAD}max")(features),
        layers.GlobalAveragePooling2D(name=f"{HEAD}average")(features),
    ]
    x = layers.Concatenate(name=f"{HEAD}both")(pooled)
    for i, (units, rate) in enumerate(((512, 0.25), (classes, 0.5))):
        x = layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            beta_initializer=keras.initializers.Constant(1e-3),
            name=f"{HEAD}bn{i}",
        )(x)
        x = layers.Dropout(rate, name=f"{HEAD}dropout{i}")(x)
        # Kaiming's: normal, not truncated.
        draw = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")
        dense = layers.Dense(
            units, use_bias=False, kernel_initializer=draw, name=f"{HEAD}dense{i}"
        )
        x = dense(x)
        if i == 0:
            x = layers.ReLU(name=f"{HEAD}relu")(x)
    return keras.Model(body.input, x)


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """From `start` to `middle` to `end` on two half cosines, a value for each step.

    Args:
        start, middle, end: values at the beginning, after `share` of the steps, and
            after all of them.
        share: of the steps for the first half.
        steps: how many in all.
    """

    def __init__(self, start, middle, end, share, steps):
        super().__init__()
        self.values, self.share, self.steps = (start, middle, end), share, steps

    def __call__(self, step):
        """The value of a step, counted from 0."""
        start, middle, end = self.values
        done = ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        first = _half_cosine(start, middle, done / self.share)
        second = _half_cosine(middle, end, (done - self.share) / (1 - self.share))
        return ops.where(done < self.share, first, second)


def _half_cosine(start, end, done):
    return end + (start - end) * (1 + ops.cos(math.pi * done)) / 2


class FastaiAdam(keras.optimizers.Optimizer):
    """fastai's Adam: momentum on a schedule, a smaller rate for the body.

    Decay is decoupled, and not of biases and BatchNorm.

    Args:
        learning_rate: of the head, the layers whose names begin with `HEAD`.
        momentum: schedule, a function of the step.
        body_rate: factor of the learning rate of all other layers.
        decay: of kernels; times the learning rate, it is taken off.
        square_momentum, epsilon: Adam's beta 2, and what keeps its root from zero.
    """

    def __init__(
        self,
        learning_rate,
        momentum,
        body_rate=1.0,
        decay=0.01,
        square_momentum=0.99,
        epsilon=1e-5,
    ):
        super().__init__(learning_rate, name="fastai_adam")
        self.momentum, self.body_rate, self.decay = momentum, body_rate, decay
        self.square_momentum, self.epsilon = square_momentum, epsilon

    def build(self, variables):
        """Makes the averages, and finds the factors of each variable."""
        if self.built:
            return
        super().build(variables)
        self._means, self._squares = self.add_optimizer_variables(
            variables, ["mean", "square"]
        )
        paths = [v.path.split("/") for v in variables]
        self._factors = [
            1.0 if any(n.startswith(HEAD) for n in path[:-1]) else self.body_rate
            for path in paths
        ]
        self._decays = [0.0 if p[-1] in UNDECAYED else self.decay for p in paths]

    def update_step(self, gradient, variable, learning_rate):
        """One step of one variable; see the class."""
        i = _compat.variable_index(self, variable)
        mean, square = self._means[i], self._squares[i]
        kind = variable.dtype
        rate = ops.cast(learning_rate, kind) * self._factors[i]
        momentum = ops.cast(self.momentum(self.iterations), kind)
        of_square, step = self.square_momentum, ops.cast(self.iterations + 1, kind)
        self.assign_sub(variable, variable * rate * self._decays[i])
        self.assign(mean, momentum * mean + (1 - momentum) * gradient)
        self.assign(square, of_square * square + (1 - of_square) * ops.square(gradient))
        root = ops.sqrt(square / (1 - ops.power(of_square, step))) + self.epsilon
        rate = rate / (1 - ops.power(momentum, step))
        self.assign_sub(variable, rate * mean / root)


def one_cycle(steps, rate, share, div, body_rate):
    """The optimizer of fastai's `fit_one_cycle`.

    Args:
        steps: of the training.
        rate: the head's largest learning rate.
        share: of the steps until it is reached.
        div: what it is divided by in the beginning.
        body_rate: see `FastaiAdam`.
    """
    rates = OneCycle(rate / div, rate, rate / 1e5, share, steps)
    return FastaiAdam(rates, OneCycle(0.95, 0.85, 0.95, share, steps), body_rate)


def _body(source, classes):
    """A copy of the source; the momentum of its BatchNorm is PyTorch's, 0.9."""
    target = attach_head(source, classes)
    return keras.Model(target.input, target.get_layer("head_pool").input)


def _fit(model, optimizer, batches, epochs, verbose):
    """Compile anew and train: (seconds, training accuracy)."""
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=bool(tf.config.list_physical_devices("GPU")),
    )
    clock = Clock()
    stop = callbacks.TerminateOnNaN(raise_error=True)
    history = model.fit(
        batches, epochs=epochs, shuffle=False, verbose=verbose, callbacks=[clock, stop]
    ).history
    return clock.training(), history["accuracy"][-1]
