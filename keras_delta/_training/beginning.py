"""Start of training: fits a new head and makes the choices that a recipe leaves open.

choose ──> Beginning: layers frozen, optimizer made ──> backups restored
                                                             │
    new training ──> `settle`: statistics and head chosen ───┤
    resumed one ──> `follow`: as settled before ─────────────┴──> steps
"""

import datetime

import keras
import numpy as np
from keras import tree

from keras_delta import _compat, averaging, batch_norm
from keras_delta._compat import array
from keras_delta._errors import invalid
from keras_delta._inputs import outputs
from keras_delta._training import fixed, start
from keras_delta.recipe import SHARES, Recipe, WarmUpCosine

# Defaults of `fit`, which remain in force.
DEFAULT = {"epochs": 1, "batch_size": 32}
# Callbacks that set the learning rate, which a schedule does not allow.
SETS_RATE = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
FORMS = '"auto", "none" or a keras_delta.Recipe'
NO_OPTIMIZER = (
    "The target has been trained before, so no recipe begins, and `compile` got no "
    "optimizer: Keras's default, RMSprop at 0.001, would go on with it. Pass an "
    "optimizer to `compile`, or `recipe=keras_delta.Recipe()` to `fit`."
)
MOST = 1000  # images that statistics are estimated on
ERRORS = 2  # standard errors by which another share must be better
FORWARD_PASSES = 4  # that a step takes as long as: source, target, two backwards


def choose(model, asked):
    """The `Recipe` for a training, or None.

    A head that was already trained on this network is kept, and so are the statistics.
    Heads that cannot be fitted are left to the user.

    Args:
        model: the `DeltaModel`.
        asked: a `Recipe` is followed; `"auto"`: the default one if nothing of the
            pretrained network was trained; `"none"`; None: `model.default_recipe`.
    """
    given = model.default_recipe if asked is None else asked
    if isinstance(given, str) and given == "none":
        if asked is not None and not _steps_done(model):
            fixed.thaw(model)
            model.recipe = None
        return None
    if not isinstance(given, Recipe) and given != "auto":
        raise ValueError(invalid("recipe", FORMS, given))
    recipe = given if isinstance(given, Recipe) else Recipe(**DEFAULT)
    done = _steps_done(model)
    if recipe is asked and done:
        raise ValueError(
            "`recipe` sets how training starts, but this model has already trained: "
            f"its optimizer has made {done} steps. Omit `recipe` to continue, or "
            "`compile` again to start from the current weights."
        )
    if recipe is asked and model.regularizer is None:
        model.set_regularizer(recipe.regularizer)
    if recipe is asked:
        return recipe
    if done or model.regularizer is None:
        return None
    if not start.is_untrained(model):
        # With a teacher, the target is from scratch.
        if not model.optimizer_given and not start.has_teacher(model):
            raise ValueError(NO_OPTIMIZER)
        return None
    head = _last_layers(model)
    if not head:
        return None
    new = {id(v) for v in model.pairing.new_variables}
    if start.has_teacher(model):  # it may have a head as well
        new = {id(layer.bias) for layer in head}
    if all(id(v.bias) in new and not array(v.bias).any() for v in head):
        return recipe
    return recipe.replace(fit_head=False, batch_norm=0.0)


def renew_schedule(model, steps):
    """Restart the recipe's schedule if it ends before the training does.

    That happens in a second `fit`: at a rate of 0 nothing would move.

    Args:
        model: the `DeltaModel`.
        steps: remaining steps of the training; None if unknown: the rate is constant.
    """
    schedule, done = _compat.learning_rate(model.optimizer), _steps_done(model)
    if isinstance(schedule, WarmUpCosine) and done + (steps or 1) > schedule.end:
        model.optimizer.learning_rate = schedule.for_steps(steps, done)


def _steps_done(model):
    optimizer = model.optimizer
    return 0 if optimizer is None else int(array(_compat.steps_taken(optimizer)))


def _last_layers(model):
    """The layers that can be fitted; their initial biases are zero."""
    from keras_delta._probe import last_layers

    graph = model.networks.target
    last, _ = last_layers.find(graph, outputs.losses(model.loss, graph))
    return [one.layer for one in last]


def complete(recipe, arguments, data):
    """Let a recipe and the arguments of `fit` complete each other.

    Args:
        recipe: the `Recipe`.
        arguments: dict, to which `epochs` is added.
        data: the `TrainingData`.

    Returns:
        (the recipe with the actual values, steps of the training or None).
    """
    per_epoch = arguments.get("steps_per_epoch")
    if arguments.get("epochs") is None:
        arguments["epochs"] = recipe.epochs_for(data.count_steps(1, per_epoch))
    epochs = arguments["epochs"] - arguments.get("initial_epoch", 0)
    size = data.first_size or recipe.batch_size
    recipe = recipe.replace(epochs=max(1, epochs), batch_size=size)
    if not hasattr(data.x, "as_tested"):  # not from an ImageSet
        recipe = recipe.replace(augmentation=None)
    callbacks = tree.flatten(arguments.get("callbacks"))
    if any(isinstance(c, SETS_RATE) for c in callbacks):
        return recipe, None
    return recipe, data.count_steps(epochs, per_epoch)


class Beginning:
    """A training by a recipe, from before its first step to its end.

    Freezes the layers that are fixed from the first step on, and makes the optimizer.

    Args:
        model: the `DeltaModel`.
        recipe: the `Recipe`, with the epochs and the batch size of this training.
        steps: of the training; None if unknown: the rate is then constant.

    Attributes:
        is_settled: whether nothing is left to choose.
    """

    def __init__(self, model, recipe, steps=None):
        self._model, self._steps, self.is_settled = model, steps, False
        self._before = model.recipe  # of `prepare`, or a training without a step
        if model.optimizer_given and not model.optimizer_is_recipes:
            recipe = recipe.replace(optimizer=None)
        elif recipe.optimizer is None:
            raise ValueError(
                "The recipe's `optimizer` is None, which stands for the compiled one, "
                "but `compile` got no optimizer. Pass one to either."
            )
        self._recipe = recipe.replace(regularizer=model.regularizer)
        _check_average(model, recipe)
        fixed.thaw(model)  # what an earlier recipe fixed
        self._normalizers = fixed.fix(model, recipe)
        if self._recipe.optimizer is not None:
            with model.distribute_strategy.scope():
                model.compile_with(optimizer=self._recipe.make_optimizer(steps))
            model.optimizer_is_recipes = True

    def undo(self):
        """Leave the model as it was, after an error before the first step."""
        if _steps_done(self._model):
            return
        fixed.thaw(self._model)
        if self._model.optimizer_is_recipes:
            with self._model.distribute_strategy.scope():
                self._model.compile_with()

    def settle(self, x, y=None, verbose="auto", on_read=lambda count: None, **options):
        """Choose the statistics, and fit the head.

        Args:
            x, y: the training data, as `fit` takes them.
            verbose: 0 for silence.
            on_read: called before the data are read, with the number of samples.
            **options: of `keras_delta.fit_head`.
        """
        recipe, share, seconds = self._recipe, self._recipe.batch_norm, 0.0
        if recipe.fit_head or share not in (0.0, "training"):
            if verbose != 0:
                print("Fitting the head ...", flush=True)
            chosen, seconds = self._choose(x, y, on_read, options)
            share = share if share == "training" else chosen
        elif self._before is not None and self._before.batch_norm != "auto":
            share = self._before.batch_norm
        self.follow(recipe.settled(share))
        if verbose == 0:
            return
        if recipe.fit_head:
            print(self._model.probe, flush=True)
        print(self._model.recipe, flush=True)
        if self._steps and seconds:
            seconds *= self._steps * self._recipe.batch_size * FORWARD_PASSES
            about = datetime.timedelta(seconds=round(seconds))
            print(f"{self._steps} steps, about {about}", flush=True)

    def follow(self, recipe):
        """Train by a settled recipe."""
        self._model.recipe, self.is_settled = recipe, True
        if recipe.optimizer is not None:
            self._model.optimizer.learning_rate = recipe.make_schedule(self._steps)

    def end(self):
        """Average with the source; fixed statistics are unchanged."""
        recipe = self._model.recipe
        if recipe is None or not recipe.average:
            return
        fixed = _values(self._statistics)
        averaging.interpolate(self._model, share=1 - recipe.average)
        _assign(self._statistics, fixed)

    @property
    def _statistics(self):
        layers = self._normalizers
        return [v for n in layers for v in (n.moving_mean, n.moving_variance)]

    def _let_train(self, value):
        for layer in self._normalizers:
            layer.trainable = value

    def _choose(self, x, y, on_read, options):
        """Try some shares of the target's statistics, each with a separate head.

        The first share is kept unless another's head has a smaller loss on held-out
        images by more than two standard errors of the difference: few images give weak
        evidence, and a wrong share costs more than a right one gains.

        Returns:
            (share, seconds per image).
        """
        from keras_delta._probe.fit import Fitting  # scikit-learn takes a while to load

        asked, statistics = self._recipe.batch_norm, self._statistics
        shares = SHARES if asked == "auto" else (asked,)
        if not statistics or asked == "training":
            shares = (0.0,)
        most = options.get("max_samples") or MOST
        of_source = of_target = _values(statistics)
        if any(shares):
            on_read(min(MOST, most))
            data = x if y is None else (x, y)  # a tuple may be several inputs
            of_target = self._measure(data, min(MOST, most))
        fitting, tried = Fitting(self._model, x, y, **options), []
        heads = [v for layer in fitting.layers for v in layer.weights]
        drawn = _values(heads)
        try:
            for share in shares:
                pairs = zip(of_source, of_target, strict=True)
                _assign(statistics, [(1 - share) * v + share * w for v, w in pairs])
                on_read(options.get("max_samples"))
                probe = fitting.fit(verbose=0)
                tried.append((share, probe, _values([*heads, *statistics])))
        except BaseException:  # Ctrl-C as well
            _assign([*heads, *statistics], [*drawn, *of_source])
            raise
        share, probe, chosen = min(tried, key=lambda t: _excess(t[1], tried[0][1]))
        _assign([*heads, *statistics], chosen)
        if not self._recipe.fit_head:
            _assign(heads, drawn)
        self._model.probe = probe
        hosts = self._model.hosts
        hosts.check_same("thousandths of `batch_norm`", round(1000 * share))
        hosts.copy_first([*heads, *statistics])
        return share, fitting.image_seconds

    def _measure(self, data, most):
        """The statistics of the target images."""
        self._let_train(True)  # other frozen layers run in inference mode
        batch_norm.estimate_statistics(
            self._model, data, max_samples=most, frozen=False
        )
        self._let_train(False)
        return _values(self._statistics)


def _check_average(model, recipe):
    """Refuse an average that could not be made when the training has ended."""
    if not recipe.average:
        return
    averaging.Network(model, "model")  # refuses LoRA
    if start.has_teacher(model) and not start.begins_at_source(model):
        raise ValueError(
            f"The recipe's `average` of {recipe.average:g} mixes in weights of the "
            f"source, but the source of '{model.regularizer.name}' is a teacher and "
            "not the network that the target started from. Use `average=0`, and "
            "`keras_delta.averaging.interpolate(model, start)` with that network."
        )


def _values(variables):
    return [array(v) for v in variables]


def _assign(variables, values):
    for v, value in zip(variables, values, strict=True):
        v.assign(value)


def _excess(probe, usual):
    """Difference of two probes' losses in standard errors, if far below 0; else 0."""
    more = probe.losses - usual.losses
    if len(more) < 2 or not more.any():
        return 0.0
    found = more.mean() / (more.std(ddof=1) / np.sqrt(len(more)))
    return found if found < -ERRORS else 0.0
