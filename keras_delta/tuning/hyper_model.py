"""`DeltaHyperModel`: builds a compiled `DeltaModel` from hyperparameters."""

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import keras_tuner
from keras_tuner.errors import FatalTypeError, FatalValueError

from keras_delta import regularizers
from keras_delta._errors import invalid
from keras_delta._network import taps as tapping
from keras_delta._network.graph import Graph
from keras_delta._network.heads import output_activation
from keras_delta._network.pairing import Pairing
from keras_delta._types import Loss, Searched, Taps
from keras_delta.model import DeltaModel
from keras_delta.regularizers.maps import MapRegularizer
from keras_delta.tuning.objectives import check_objective
from keras_delta.tuning.spaces import (
    declare,
    factory,
    metric_factories,
    named_taps,
    regularizer_factory,
    space,
    temperatures,
    variants,
)

ARTICLE_GRID = [1e-4, 1e-3, 1e-2, 0.1, 0.2]
"""The article's values for alpha and beta (25 cells); alpha as in its equations."""

RELATIVE_ALPHA = (0.1, 100.0)
RAW_ALPHA = (1e-4, 0.2)
FACTORS = (0.01, 20.0)  # times a method's default: the article's range for DELTA
BETA = (1e-4, 1.0)


class DeltaHyperModel(keras_tuner.HyperModel):
    """A search space over alpha, beta and more, for any tuner of Keras Tuner.

    Models are created by factories: each trial gets new ones. A search space is

    - a number: fixed;
    - a list: one of these values, `hp.Choice`;
    - a pair `(low, high)`: any value in between, `hp.Float(..., sampling="log")`.

    Args:
        source: function without arguments that returns the pretrained model.
        target: function that takes the source and returns the model to train, for
            example `lambda source: kd.attach_head(source, classes=12)`.
        regularizer: name, class, or function `(alpha, beta)` that returns a new
            `Regularizer`; it also receives `temperature` and `variant` if these are
            searched. Default: `Delta`.
        alpha: see above. Default: 0.1 to 100 for the variant `"relative"`, whose alpha
            means the same everywhere, otherwise 0.01 to 20 times the method's default
            (0.0001 to 0.2 for L2-SP). `ARTICLE_GRID` is the article's list, for its
            variant. If several variants are searched: a dict variant -> search space;
            each has a separate hyperparameter.
        beta: see above; default 0.0001 to 1.
        learning_rate: see above; default: 0.01.
        taps: as for `DeltaModel` or, to search, a dict of dicts or lists: name
            -> taps, `{"all": "auto", "last": ["top_conv"]}`.
        temperature: temperature of the attention: None for the regularizer's default,
            or a list.
        variant: None for the regularizer's default, or a list.
        optimizer: function of the learning rate (or of nothing) that returns a new
            optimizer. Default: SGD with momentum 0.9. A constant learning rate is
            changed without retracing; for schedules, use the callback
            `keras.callbacks.LearningRateScheduler`.
        loss: as in `compile`; default: sparse categorical cross-entropy, from logits
            unless the target ends in a softmax.
        metrics: names, or functions that return new metrics; for several outputs, a
            dict of these.
        jit_compile: as in `compile`.

    Raises:
        TypeError: if models are passed instead of factories.
        ValueError: if values are negative, repeated or infinite, or a range is empty.

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
        source: Callable[[], keras.Model],
        target: Callable[[keras.Model], keras.Model],
        regularizer: str | Callable[..., regularizers.Regularizer] = "delta",
        *,
        alpha: Searched | Mapping[str, Searched] | None = None,
        beta: Searched = BETA,
        learning_rate: Searched = 0.01,
        taps: Taps | Mapping[str, Taps] = "auto",
        temperature: Sequence[float] | None = None,
        variant: Sequence[str] | None = None,
        optimizer: Callable[..., keras.optimizers.Optimizer] | None = None,
        loss: Loss = None,
        metrics: Any = ("accuracy",),
        jit_compile: bool | Literal["auto"] = "auto",
        name: str | None = None,
        tunable: bool = True,
    ) -> None:
        super().__init__(name=name, tunable=tunable)
        self._source = factory("source", source)
        self._target = factory("target", target)
        self._regularizer = regularizer_factory(regularizer)
        self._optimizer = factory("optimizer", optimizer or _sgd)
        self.loss, self.jit_compile = loss, jit_compile
        self.metrics = metric_factories(metrics)
        self._made = {}
        self._temperature = temperatures(temperature)
        self._variants = variants(variant)
        self._try_regularizer(regularizer)
        self._alpha = self._alphas(alpha)
        self._beta = space("beta", beta)
        self._rate = space("learning_rate", learning_rate)
        if not isinstance(self._rate, float) and not self._optimizer.takes_any:
            expected = "a function of the learning rate, which is to be searched"
            raise TypeError(invalid("optimizer", expected, optimizer))
        self._taps = named_taps(taps)

    def _alphas(self, alpha):
        """Dict variant (None: the regularizer's default) -> space."""
        variants = self._variants or [None]
        if not isinstance(alpha, dict):
            if alpha is not None and len(variants) > 1:
                raise ValueError(
                    invalid(
                        "alpha",
                        "a dict variant -> search space, because variants are searched",
                        alpha,
                        "The same alpha means a different strength in each variant.",
                    )
                )
            alpha = dict.fromkeys(variants, alpha)
        if set(alpha) != set(variants):
            expected = f"a dict with the variants {variants}"
            raise ValueError(invalid("alpha", expected, alpha))
        return {
            v: space("alpha", self._default_alpha(v) if one is None else one)
            for v, one in alpha.items()
        }

    def _default_alpha(self, variant):
        probe = self._new_regularizer(self._some_settings(variant))
        relative = isinstance(probe, MapRegularizer) and probe.variant == "relative"
        if relative:
            return RELATIVE_ALPHA
        own = 0.0
        if self._regularizer in regularizers.ALL.values():
            own = self._regularizer(**({"variant": variant} if variant else {})).alpha
        return tuple(factor * own for factor in FACTORS) if own else RAW_ALPHA

    def _some_settings(self, variant):
        some = {"alpha": 1.0, "beta": 0.01, "variant": variant}
        some["temperature"] = self._temperature[0] if self._temperature else None
        return {name: value for name, value in some.items() if value is not None}

    def _try_regularizer(self, given):
        """Reject a function that does not accept the arguments it will get."""
        some = self._some_settings((self._variants or [None])[0])
        try:
            inspect.signature(self._regularizer).bind(**some)
        except TypeError as e:
            expected = f"a name, or a function with the arguments {list(some)}"
            raise TypeError(invalid("regularizer", expected, given, f"{e}.")) from e

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Declare all hyperparameters without building a model."""
        self.settings(hp)

    def settings(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """Return the settings for a trial's hyperparameters.

        Args:
            hp: `keras_tuner.HyperParameters`.

        Returns:
            Dict with `alpha`, `beta`, `learning_rate`, and `taps` (a name),
            `temperature`, `variant` if these are searched.
        """
        rest = {}
        if self._variants:
            rest["variant"] = hp.Choice("variant", self._variants)
        alpha = self._declare_alpha(hp, rest.get("variant"))
        beta = declare(hp, "beta", self._beta)
        rest["learning_rate"] = declare(hp, "learning_rate", self._rate)
        if len(self._taps) > 1:
            rest["taps"] = hp.Choice("taps", list(self._taps))
        if self._temperature:
            rest["temperature"] = hp.Choice("temperature", self._temperature)
        return {"alpha": alpha, "beta": beta, **rest}

    def _declare_alpha(self, hp, variant):
        if len(self._alpha) == 1:
            return declare(hp, "alpha", *self._alpha.values())
        values = {}
        for name, where in self._alpha.items():
            with hp.conditional_scope("variant", [name]):
                values[name] = declare(hp, f"alpha_{name}", where)
        return values[variant]

    def searches(self, name: str) -> bool:
        """Whether a name from `settings` has more than one value."""
        where = {
            "alpha": next(iter(self._alpha.values())),
            "beta": self._beta,
            "learning_rate": self._rate,
            "taps": self._taps,
            "temperature": self._temperature,
            "variant": self._variants,
        }[name]
        if name == "alpha" and len(self._alpha) > 1:
            return True
        return not isinstance(where, float) and len(where or ()) > 1

    def description(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """Return a dict for JSON that distinguishes this search from others.

        Args:
            hp: `keras_tuner.HyperParameters` with everything declared.
        """
        settings = self.settings(hp)
        new = keras.tree.map_structure(_new_metric, self.metrics)
        return {
            "space": [h.get_config() for h in hp.space],
            "fixed": {k: v for k, v in settings.items() if not self.searches(k)},
            "taps": self._taps,
            "regularizer": regularizers.settings(self.regularizer(settings)),
            "optimizer": _described(self.optimizer(settings)),
            "loss": keras.tree.map_structure(_described, self.loss),
            "metrics": keras.tree.map_structure(_described, new),
        }

    def build(self, hp: keras_tuner.HyperParameters) -> DeltaModel:
        """Build a new compiled `DeltaModel`; see `keras_tuner.HyperModel.build`.

        Raises:
            keras_tuner.errors.FatalError: if a factory returns the same object twice.
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
            metrics=self._new_metrics(target),
            jit_compile=self.jit_compile,
        )
        return model

    def _new_metrics(self, target):
        names = target.output_names
        if len(names) > 1 and self.metrics and not isinstance(self.metrics, dict):
            expected = f"a dict for the outputs {names}, or ()"
            given = [m if isinstance(m, str) else m().name for m in self.metrics]
            raise FatalValueError(invalid("metrics", expected, given))
        return keras.tree.map_structure(_new_metric, self.metrics)

    def optimizer(self, settings: Mapping[str, Any]) -> keras.optimizers.Optimizer:
        """Create a new optimizer for the given `settings`."""
        optimizer = self._optimizer(settings["learning_rate"])
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            expected = "a function that returns an optimizer"
            raise FatalTypeError(invalid("optimizer", expected, optimizer))
        return self._fresh("optimizer", optimizer)

    def regularizer(self, settings: Mapping[str, Any]) -> regularizers.Regularizer:
        """Create a new regularizer for the given `settings`."""
        return self._fresh("regularizer", self._new_regularizer(settings))

    def _new_regularizer(self, settings):
        names = ("alpha", "beta", "temperature", "variant")
        given = {name: settings[name] for name in names if name in settings}
        regularizer = self._regularizer(**given)
        if not isinstance(regularizer, regularizers.Regularizer):
            expected = "a function that returns a Regularizer"
            raise FatalTypeError(invalid("regularizer", expected, regularizer))
        return regularizer

    def check_taps(self, model: DeltaModel) -> None:
        """Reject any searched taps that such a model does not have."""
        source, target = Graph(model.source), Graph(model.target)
        pairing = Pairing(target, source)
        for taps in self._taps.values():
            if not isinstance(taps, dict):  # of layer names, which DeltaModel reads
                tapping.choose(taps, None, target, source, pairing)

    def _fresh(self, argument, value):
        if value is None:
            remedy = "Does the function return the object it creates?"
            expected = "a function that creates a new object each time"
            raise FatalTypeError(invalid(argument, expected, value, remedy))
        last = self._made.get(argument)
        if last is not None and last() is value:
            raise FatalValueError(
                f"`{argument}` returned the same object twice: {value!r}. It must "
                "create a new one each time it is called, or one training would "
                f"continue where another ended. Create it inside the function: "
                f"`{argument}=lambda ...: ...`."
            )
        self._made[argument] = weakref.ref(value)
        return value

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: DeltaModel,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train one trial; see `keras_tuner.HyperModel.fit`."""
        validation = kwargs.get("validation_data")
        if validation is None:
            validation = kwargs.get("validation_split") or None
        for callback in kwargs.get("callbacks") or ():
            objective = getattr(callback, "objective", None)
            if objective is not None:
                check_objective(objective, model, validation)
        return model.fit(*args, **kwargs)


def _new_metric(metric):
    return metric if isinstance(metric, str) else metric()


def _described(given):
    """A name, or a kind and its settings for JSON, the same in each process."""
    kinds = (keras.losses.Loss, keras.metrics.Metric, keras.optimizers.Optimizer)
    if not isinstance(given, kinds):
        return getattr(given, "name", None) or getattr(given, "__name__", given)
    # Keras numbers the names.
    config = {k: v for k, v in given.get_config().items() if k != "name"}
    return [type(given).__name__, config]


def _sgd(learning_rate):
    return keras.optimizers.SGD(learning_rate, momentum=0.9)


def _loss_of(target):
    logits = output_activation(Graph(target)) != "softmax"
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
