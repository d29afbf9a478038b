"""`DeltaHyperModel`: from hyperparameters to a compiled `DeltaModel`."""

import inspect
import math
import numbers
import weakref

import keras
import keras_tuner
import numpy as np

from keras_delta import regularizers
from keras_delta._errors import invalid, unknown_name
from keras_delta._network import taps as tapping
from keras_delta._network.graph import Graph
from keras_delta._network.heads import output_activation
from keras_delta._network.pairing import Pairing
from keras_delta.model import DeltaModel
from keras_delta.regularizers.maps import VARIANTS, MapRegularizer

ARTICLE_GRID = [1e-4, 1e-3, 1e-2, 0.1, 0.2]
"""The article's values of alpha and of beta (25 cells); alpha as in its equations."""

RELATIVE_ALPHA = (0.1, 100.0)
RAW_ALPHA = (1e-4, 0.2)
BETA = (1e-4, 1.0)
SPACE = "a number, a list of numbers, or a range (low, high) with 0 < low < high"


class DeltaHyperModel(keras_tuner.HyperModel):
    """A search space over alpha, beta and more, for any tuner of Keras Tuner.

    Models come from factories: each trial gets fresh ones. What is searched:

    - a number: fixed;
    - a list: one of these values, `hp.Choice`;
    - a pair `(low, high)`: any value between, `hp.Float(..., sampling="log")`.

    Args:
        source: function without arguments that gives the pretrained model.
        target: function that takes the source and gives the model to train, for
            example `lambda source: kd.attach_head(source, classes=12)`.
        regularizer: name, class, or function `(alpha, beta)` that gives a new
            `Regularizer`; it is also passed `temperature` and `variant` where these
            are searched. Default: `Delta`.
        alpha: see above. Default: 0.1 to 100 for the variant `"relative"`, whose alpha
            means the same everywhere, else 0.0001 to 0.2. `ARTICLE_GRID` is the
            article's list, for its own variant. Where several variants are searched:
            a dict variant -> what is searched; each has a hyperparameter of its own.
        beta: see above; default 0.0001 to 1.
        learning_rate: see above; default: 0.01.
        taps: what `DeltaModel` takes, or, to search, a dict of dicts or lists: name
            -> taps, `{"all": "auto", "last": ["top_conv"]}`.
        temperature: of the attention: None for the regularizer's own, or a list.
        variant: None for the regularizer's own, or a list.
        optimizer: function of the learning rate (or of nothing) that gives a new
            optimizer. Default: SGD with momentum 0.9. A constant learning rate is
            changed without tracing anything anew; for schedules use the callback
            `keras.callbacks.LearningRateScheduler`.
        loss: as in `compile`; default: sparse categorical cross-entropy, from logits
            unless the target ends in a softmax.
        metrics: names, or functions that give new metrics.
        jit_compile: as in `compile`.

    Raises:
        TypeError: for models in place of factories.
        ValueError: for negative, repeated or infinite values, and empty ranges.

    Example:
        ```python
        space = kd.tuning.DeltaHyperModel(
            source=lambda: kd.backbones.efficientnet_lite0(input_shape=(112, 112, 3)),
            target=lambda source: kd.attach_head(source, classes=12),
            alpha=[0.3, 1, 3, 10, 30],
            beta=[1e-3, 1e-2, 0.1],
        )
        tuner = kd.tuning.CrossValidatedGridSearch(space, directory="search")
        tuner.search(train_set, epochs=15)
        ```
    """

    def __init__(
        self,
        source,
        target,
        regularizer="delta",
        *,
        alpha=None,
        beta=BETA,
        learning_rate=0.01,
        taps="auto",
        temperature=None,
        variant=None,
        optimizer=None,
        loss=None,
        metrics=("accuracy",),
        jit_compile="auto",
        name=None,
        tunable=True,
    ):
        super().__init__(name=name, tunable=tunable)
        self._source = _factory("source", source)
        self._target = _factory("target", target)
        self._regularizer = _regularizer(regularizer)
        self._optimizer = _factory("optimizer", optimizer or _sgd)
        self.loss, self.jit_compile = loss, jit_compile
        self.metrics = _metrics(metrics)
        self._made = {}
        self._temperature = _temperatures(temperature)
        self._variants = _variants(variant)
        self._try_regularizer(regularizer)
        self._alpha = self._alphas(alpha)
        self._beta = space("beta", beta)
        self._rate = space("learning_rate", learning_rate)
        if not isinstance(self._rate, float) and not self._optimizer.takes_any:
            expected = "a function of the learning rate, which is to be searched"
            raise TypeError(invalid("optimizer", expected, optimizer))
        self._taps = {"": taps}
        if isinstance(taps, dict) and any(
            not isinstance(v, str) or v == "auto" for v in taps.values()
        ):
            self._taps = dict(taps)
            if not all(isinstance(k, str) and k for k in taps):
                raise ValueError(invalid("taps", "a dict name -> taps", taps))

    def _alphas(self, alpha):
        """Dict variant (None: the regularizer's own) -> space."""
        variants = self._variants or [None]
        if isinstance(alpha, dict):
            if set(alpha) != set(variants):
                raise ValueError(
                    invalid("alpha", f"a dict with the variants {variants}", alpha)
                )
            return {v: space("alpha", alpha[v]) for v in variants}
        if alpha is not None and len(variants) > 1:
            raise ValueError(
                invalid(
                    "alpha",
                    "a dict variant -> what is searched, where variants are searched",
                    alpha,
                    "The same alpha means another strength in each variant.",
                )
            )
        return {v: space("alpha", self._default_alpha(v, alpha)) for v in variants}

    def _default_alpha(self, variant, alpha):
        if alpha is not None:
            return alpha
        probe = self._new_regularizer(self._some_settings(variant))
        relative = isinstance(probe, MapRegularizer) and probe.variant == "relative"
        return RELATIVE_ALPHA if relative else RAW_ALPHA

    def _some_settings(self, variant):
        some = {"alpha": 1.0, "beta": 0.01, "variant": variant}
        some["temperature"] = self._temperature[0] if self._temperature else None
        return {name: value for name, value in some.items() if value is not None}

    def _try_regularizer(self, given):
        """Refuse a function that does not take what it will be given."""
        some = self._some_settings((self._variants or [None])[0])
        try:
            inspect.signature(self._regularizer).bind(**some)
        except TypeError as e:
            expected = f"a name, or a function with the arguments {list(some)}"
            raise TypeError(invalid("regularizer", expected, given, f"{e}.")) from e

    def declare_hyperparameters(self, hp):
        """Name all hyperparameters, without building a model."""
        self.settings(hp)

    def settings(self, hp):
        """What a trial's hyperparameters stand for.

        Args:
            hp: `keras_tuner.HyperParameters`.

        Returns:
            Dict with `alpha`, `beta`, `learning_rate`, and `taps` (a name),
            `temperature`, `variant` where these are searched.
        """
        found = {}
        if self._variants:
            found["variant"] = hp.Choice("variant", self._variants)
        for variant, where in self._alpha.items():
            if len(self._alpha) == 1:
                found["alpha"] = _declare(hp, "alpha", where)
                continue
            with hp.conditional_scope("variant", [variant]):
                value = _declare(hp, f"alpha_{variant}", where)
            if variant == found["variant"]:
                found["alpha"] = value
        found["beta"] = _declare(hp, "beta", self._beta)
        found["learning_rate"] = _declare(hp, "learning_rate", self._rate)
        if len(self._taps) > 1:
            found["taps"] = hp.Choice("taps", list(self._taps))
        if self._temperature:
            found["temperature"] = hp.Choice("temperature", self._temperature)
        return {k: found[k] for k in ("alpha", "beta", *found) if k in found}

    def searches(self, name):
        """Whether a key of `settings` has more than one value."""
        if name == "alpha" and len(self._alpha) > 1:
            return True
        where = {
            "alpha": next(iter(self._alpha.values())),
            "beta": self._beta,
            "learning_rate": self._rate,
            "taps": self._taps,
            "temperature": self._temperature,
            "variant": self._variants,
        }[name]
        return not isinstance(where, float) and len(where or ()) > 1

    def description(self, hp):
        """What makes one search another: a dict for JSON.

        Args:
            hp: `keras_tuner.HyperParameters` in which everything is declared.
        """
        settings = self.settings(hp)
        optimizer = self.optimizer(settings)
        # Keras numbers the names.
        config = {k: v for k, v in optimizer.get_config().items() if k != "name"}
        regularizer = self.regularizer(settings)
        return {
            "space": [h.get_config() for h in hp.space],
            "fixed": {k: v for k, v in settings.items() if not self.searches(k)},
            "taps": self._taps,
            "regularizer": regularizers.settings(regularizer),
            "optimizer": [type(optimizer).__name__, config],
            "loss": keras.tree.map_structure(_name, self.loss),
        }

    def build(self, hp):
        """A new compiled `DeltaModel`; see `keras_tuner.HyperModel.build`.

        Raises:
            keras_tuner.errors.FatalError: where a factory gives the same object twice.
        """
        settings = self.settings(hp)
        source = self._fresh("source", self._source())
        target = self._fresh("target", self._target(source))
        taps = self._taps[settings.get("taps", next(iter(self._taps)))]
        model = DeltaModel(
            target, source=source, taps=taps, regularizer=self.regularizer(settings)
        )
        model.compile(
            optimizer=self.optimizer(settings),
            loss=self.loss or _loss_of(target),
            metrics=[m if isinstance(m, str) else m() for m in self.metrics],
            jit_compile=self.jit_compile,
        )
        return model

    def optimizer(self, settings):
        """The optimizer of some `settings`, new."""
        made = self._optimizer(settings["learning_rate"])
        if not isinstance(made, keras.optimizers.Optimizer):
            raise _fatal(TypeError)(
                invalid("optimizer", "a function that gives an optimizer", made)
            )
        return self._fresh("optimizer", made)

    def regularizer(self, settings):
        """The regularizer of some `settings`, new."""
        return self._fresh("regularizer", self._new_regularizer(settings))

    def _new_regularizer(self, settings):
        names = ("alpha", "beta", "temperature", "variant")
        given = {name: settings[name] for name in names if name in settings}
        made = self._regularizer(**given)
        if not isinstance(made, regularizers.Regularizer):
            raise _fatal(TypeError)(
                invalid("regularizer", "a function that gives a Regularizer", made)
            )
        return made

    def check_taps(self, model):
        """Refuse taps, of all that are searched, that such a model does not have."""
        source, target = Graph(model.source), Graph(model.target)
        pairing = Pairing(target, source)
        for taps in self._taps.values():
            if not isinstance(taps, dict):  # of layer names, which DeltaModel reads
                tapping.choose(taps, target, source, pairing)

    def _fresh(self, argument, made):
        if made is None:
            remedy = "Does the function return what it has made?"
            expected = "a function that makes a new one each time"
            raise _fatal(TypeError)(invalid(argument, expected, made, remedy))
        last = self._made.get(argument)
        if last is not None and last() is made:
            raise _fatal(ValueError)(
                f"`{argument}` gave the same object twice: {made!r}. It has to make a "
                "new one each time it is called, else one training would go on where "
                f"another has ended. Make it inside of the function: "
                f"`{argument}=lambda ...: ...`."
            )
        self._made[argument] = weakref.ref(made)
        return made

    def fit(self, hp, model, *args, **kwargs):
        """Train one trial; see `keras_tuner.HyperModel.fit`."""
        validation = kwargs.get("validation_data")
        if validation is None:
            validation = kwargs.get("validation_split") or None
        for callback in kwargs.get("callbacks") or ():
            objective = getattr(callback, "objective", None)
            if objective is not None:
                check_objective(objective, model, validation)
        return model.fit(*args, **kwargs)


def check_objective(objective, model, validation=None):
    """Refuse, before the training, an objective that will not be in the logs.

    Args:
        objective: of Keras Tuner.
        model: compiled model.
        validation: data, or the share of the data, for validation; None: there is none.

    Raises:
        keras_tuner.errors.FatalValueError: names what will be there.
    """
    names = getattr(objective, "name_to_direction", None) or [objective.name]
    training = ["loss", "task_loss", "feature_penalty", "head_penalty"]
    known = metric_names(model)
    logged = {*training, *known}
    if validation is not None:
        logged |= {f"val_{name}" for name in known}
    for name in names:
        if name in logged or name == "default_objective":
            continue
        hint = ""
        if validation is None and name.startswith("val_"):
            hint = " There is no validation data: pass `validation_data`."
        raise _fatal(ValueError)(unknown_name("objective", name, sorted(logged)) + hint)


def metric_names(model):
    """Names that `evaluate` gives, in a compiled model that has seen no data yet."""
    # Keras knows the names after the first batch only, and calls "accuracy" so
    # whatever metric it stands for.
    compiled = getattr(model, "_compile_metrics", None)
    given = getattr(compiled, "_user_metrics", None) or []
    names = [
        m if isinstance(m, str) else getattr(m, "name", None) or m.__name__
        for m in keras.tree.flatten(given)
    ]
    return ["loss", *names]


def space(argument, given):
    """What is searched: a float, a list of floats, or a pair (low, high)."""
    if getattr(given, "ndim", None) == 0:  # NumPy's numbers
        given = given.item()
    several = isinstance(given, (list, tuple, range, np.ndarray))
    values = list(given) if several else [given]
    for value in values:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value >= 0):
            raise ValueError(invalid(argument, SPACE + ", none negative", given))
    values = [float(value) for value in values]
    if isinstance(given, tuple):
        if len(values) != 2 or not 0 < values[0] < values[1]:
            raise ValueError(invalid(argument, SPACE, given))
        return tuple(values)
    if not several:
        return values[0]
    if not values or len(set(values)) < len(values):
        expected = "one value or more, all different"
        raise ValueError(invalid(argument, expected, given))
    return values


def _declare(hp, name, where):
    if isinstance(where, float):
        return where
    if isinstance(where, list):
        return hp.Choice(name, where, ordered=True)
    low, high = where
    middle = math.sqrt(low * high)
    return hp.Float(name, low, high, sampling="log", default=middle)


def _temperatures(given):
    """List of positive floats; None for None."""
    if given is None:
        return None
    values = None if isinstance(given, tuple) else space("temperature", given)
    values = [values] if isinstance(values, float) else values
    if values is None or min(values) == 0:
        expected = "None, or a list of positive numbers"
        raise ValueError(invalid("temperature", expected, given))
    return values


def _variants(given):
    """List of names in `VARIANTS`; None for None."""
    if given is None:
        return None
    values = [given] if isinstance(given, str) else list(given)
    for value in values:
        if value not in VARIANTS:
            raise ValueError(unknown_name("variant", value, VARIANTS))
    if not values or len(set(values)) < len(values):
        raise ValueError(invalid("variant", "None, or a list without repeats", given))
    return values


def _metrics(metrics):
    metrics = [metrics] if isinstance(metrics, str) else list(metrics or ())
    for metric in metrics:
        if isinstance(metric, keras.metrics.Metric) or not (
            isinstance(metric, str) or callable(metric)
        ):
            raise TypeError(
                invalid(
                    "metrics",
                    "names, or functions that give new metrics",
                    metric,
                    "Each model needs metrics of its own: pass the class, or a lambda.",
                )
            )
    return metrics


def _factory(argument, given):
    """`given`, called with as many arguments as it takes."""
    if isinstance(given, (keras.Model, keras.optimizers.Optimizer)) or not callable(
        given
    ):
        raise TypeError(
            invalid(
                argument,
                "a function that makes a new one each time",
                given,
                f"For example `{argument}=lambda ...: ...`.",
            )
        )
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(given).parameters.values()
    taken = [p for p in parameters if p.kind in kinds]
    most = 0 if argument == "source" else 1
    if sum(p.default is p.empty for p in taken) > most:
        expected = f"a function of {('no arguments', 'one argument')[most]}"
        raise TypeError(invalid(argument, expected, given))

    def make(*offered):
        return given(*offered[: len(taken)])

    make.takes_any = bool(taken)
    return make


def _regularizer(given):
    if isinstance(given, str):
        if given not in regularizers.ALL:
            raise ValueError(unknown_name("regularizer", given, regularizers.ALL))
        return regularizers.ALL[given]
    if isinstance(given, regularizers.Regularizer) or not callable(given):
        raise TypeError(
            invalid(
                "regularizer",
                "a name, a class, or a function (alpha, beta) -> Regularizer",
                given,
                "For example `regularizer=lambda alpha, beta: "
                'kd.regularizers.Delta(alpha, beta, attention="uniform")`.',
            )
        )
    return given


def _name(loss):
    """The same text in each process."""
    return getattr(loss, "name", None) or getattr(loss, "__name__", loss)


def _sgd(learning_rate):
    return keras.optimizers.SGD(learning_rate, momentum=0.9)


def _loss_of(target):
    logits = output_activation(Graph(target)) != "softmax"
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)


def _fatal(kind):
    """Keras Tuner's error of that kind: it ends the search, others fail a trial."""
    errors = keras_tuner.errors
    return {ValueError: errors.FatalValueError, TypeError: errors.FatalTypeError}[kind]
