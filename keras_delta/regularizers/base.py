"""`Regularizer`: the base class of all regularizers."""

from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_delta import _arguments
from keras_delta._compat import array
from keras_delta._network.graph import Graph
from keras_delta._network.networks import Networks
from keras_delta._network.pairing import Pairing
from keras_delta._types import Gradients, Maps, Strength, Tensor
from keras_delta.regularizers.batch import Batch
from keras_delta.regularizers.distances import half_sum_of_squares

MAPS = frozenset({"source_maps", "target_maps"})
NO_MAPS = (
    "{} defines `feature_distance`, but its `needs` names no maps, so none are "
    "computed. Add `needs = keras_delta.regularizers.MAPS` to the class."
)
NO_HEAD = (
    "Invalid value for argument `beta`. Received: beta={!r}, but the target has no "
    "parameters that the source lacks. Check the order, `DeltaModel(target, source)`. "
    "Use `beta=0`, give the target a new head with `keras_delta.attach_head`, or, if "
    "the source ends in a head of the same shape, pass the source without it."
)
OTHER_KIND = (
    "`{}` cannot change between a number and a schedule once a model uses the "
    "regularizer. Pass a new regularizer to `fit`."
)


def _strength_property(name, doc):
    return property(
        lambda self: self._get_strength(name),
        lambda self, value: self._set_strength(name, value),
        doc=f"{doc}; can be set while training.",
    )


class Regularizer(keras.layers.Layer):
    """Base class: `alpha` times a distance, `beta` times a penalty on the head.

    The objective is `task loss + alpha * Omega + beta * Omega''`, where `Omega`
    is the method's own term and `Omega'' = 1/2 ||w||^2` over the parameters that
    only the target has (its head).

    A new method is one file with a subclass and one import line in
    `regularizers/__init__.py`. A subclass defines `Omega` by overriding
    `feature_distance` (with `needs = MAPS`), `weight_distance`, or both; or
    `batch_distance` if it compares anything else. `bind` runs once, when a model
    takes the regularizer: layers and variables are created there, and trainable ones
    are trained with the target. `prepare` runs at the start of `fit`, with the training
    data, and `after_step` after each step.

    Args:
        alpha: strength of `Omega`: a float, or a Keras schedule of the step.
        beta: strength of the head penalty: likewise.
        name: optional name.

    Raises:
        TypeError, ValueError: if alpha or beta is neither a non-negative finite
            number nor a schedule.
    """

    needs: frozenset[str] = frozenset()
    """The attributes of `Batch` that a step has to compute: `"source_maps"`,
    `"target_maps"`, `"source_outputs"`, `"target_features"`.
    The source does not run for a regularizer that needs nothing from it. Images, labels
    and the target's predictions are in every batch."""

    prepare_needs: frozenset[str] = frozenset()
    """`{"source_outputs"}` if `prepare` looks at the source's predictions."""

    needs_source_head = False
    """Whether the source must have the classifier that it was pretrained with."""

    needs_classes = False
    """Whether the target must predict mutually exclusive classes."""

    starts_at_source = True
    """Whether the method assumes that the target starts from the source's weights.

    Source and target must then be the same network, up to the last tap."""

    task_weight = 1.0
    """Factor of the task loss; see also `task_factor`."""

    splits_gradients = False
    """Whether the gradients of task loss and penalties go through `combine`."""

    trains_features = True
    """Whether parameters that the source has as well are trained."""

    head_factor = 1.0
    """1 for the program's `1/2 ||w||^2`, 2 for the article's `||w||^2`."""

    def __init__(
        self, alpha: Strength, beta: Strength, name: str | None = None, **kwargs: Any
    ) -> None:
        # float32 under every policy: penalties are small differences of maps.
        kwargs.pop("dtype", None)
        super().__init__(name=name, dtype="float32", **kwargs)
        strengths = {"alpha": alpha, "beta": beta}
        self._strengths = {name: _strength(name, v) for name, v in strengths.items()}
        self._strength_variables = {}
        self._is_prepared = False
        self.pairing: Any = None

    alpha = _strength_property("alpha", "Strength of the method's own term")
    beta = _strength_property("beta", "Strength of the head penalty")

    def _get_strength(self, name):
        variable = self._strength_variables.get(name)
        given = self._strengths[name]
        if variable is None:
            return given
        value = float(array(variable))
        return given if np.float32(given) == value else value

    def _set_strength(self, name, value):
        new = _strength(name, value)
        variable = self._strength_variables.get(name)
        if self.bound and (callable(new) or variable is None):
            raise ValueError(OTHER_KIND.format(name))
        self._strengths[name] = new
        if variable is not None:
            variable.assign(new)

    @property
    def strength_variables(self) -> list[keras.Variable]:
        """Variables of alpha and beta, if a model uses them as numbers."""
        return list(self._strength_variables.values())

    def take_strengths(self, other: "Regularizer") -> None:
        """Copy numeric alpha and beta from another regularizer of the same kind."""
        for name, value in other._strengths.items():
            if not callable(value):
                self._set_strength(name, value)

    def strength(self, name: str, step: Tensor) -> Tensor:
        """Alpha or beta at a step, as a float32 scalar tensor."""
        value = self._strengths[name]
        if callable(value):
            return ops.cast(value(step), "float32")
        if name in self._strength_variables:
            return ops.convert_to_tensor(self._strength_variables[name])
        return ops.convert_to_tensor(value, "float32")

    def task_factor(self, step: Tensor) -> Tensor:
        """The factor of the task loss at a step, a float32 scalar."""
        return ops.convert_to_tensor(self.task_weight, "float32")

    @property
    def bound(self) -> bool:
        """Whether a model uses this regularizer."""
        return self.pairing is not None

    def for_model(self, pairing: Pairing) -> "Regularizer":
        """This regularizer, or a fresh copy if another model uses it."""
        if not self.bound or self.pairing is pairing:
            return self
        return type(self).from_config(self.get_config())

    def choose_taps(self, graph: Graph) -> list[str] | None:
        """Names of the layers to tap with `taps="auto"`; None: the same as for DELTA.

        Args:
            graph: `Graph` of the source or of the target; called once for each.
        """

    def check(self, networks: Networks) -> None:
        """Refuse networks that do not suit the method or its strengths.

        Args:
            networks: see `bind`.

        Raises:
            ValueError: if they do not, with the reason and a remedy.
        """
        pairing = networks.pairing
        if self.starts_at_source and networks.mismatch:
            raise ValueError(networks.mismatch)
        if not self.starts_at_source:
            return
        if self._strengths["beta"] != 0 and not pairing.new_layers:
            raise ValueError(NO_HEAD.format(self.beta))

    def bind(self, networks: Networks) -> None:
        """Attach the regularizer to a model; called once, in its strategy's scope.

        Args:
            networks: source and target: their `pairing`, `source_map_shapes` and
                `target_map_shapes`, dicts tap -> `(..., C)`.

        Raises:
            ValueError: if `check` fails.
        """
        self.check(networks)
        for name, value in self._strengths.items():
            if not callable(value):
                self._strength_variables[name] = self.add_weight(
                    name=name,
                    shape=(),
                    initializer=keras.initializers.Constant(value),
                    trainable=False,
                )
        self.pairing = networks.pairing
        self.built = True

    def find_adapting(self) -> Any:
        """The `SourceAdapting` part, whose layers run inside the source; or None."""

    @property
    def ready(self) -> bool:
        """Whether `prepare` has run in this process, or does nothing.

        A method that keeps what it computed in variables, and so in saved models,
        overrides this: it is ready when they have their values."""
        return self._is_prepared or type(self).prepare is Regularizer.prepare

    def make_ready(self, model: keras.Model, samples: Any, verbose: bool) -> None:
        """Call `prepare` unless the regularizer is ready."""
        if not self.ready:
            self.prepare(model, samples, verbose=verbose)
            self._is_prepared = True

    def prepare(self, model: keras.Model, samples: Any, verbose: bool = True) -> None:
        """Compute from the training data all values needed before the first step.

        Args:
            model: the `DeltaModel`.
            samples: `samples(n)` returns up to n training samples as `(x, y)`;
                `samples.batches(n)` a list of such pairs, for images of several sizes.
            verbose: whether to show progress.
        """

    def begin_training(self, steps: int | None, verbose: bool = True) -> None:
        """Called when `fit` begins, after a backup has been restored.

        Args:
            steps: number of steps to come; None if unknown.
            verbose: whether to print anything.
        """

    def batch_distance(self, batch: Batch) -> Tensor:
        """Distance over the batch: a scalar before alpha, as this replica's share.

        Raises:
            ValueError: if `feature_distance` is defined, but `needs` names no maps.
        """
        if type(self).feature_distance is Regularizer.feature_distance:
            return ops.zeros((), "float32")
        if batch.source_maps is None and batch.target_maps is None:
            raise ValueError(NO_MAPS.format(type(self).__name__))
        distance = self.feature_distance(batch.source_maps, batch.target_maps)
        return distance * self.feature_share(batch)

    def feature_distance(self, source_maps: Maps, target_maps: Maps) -> Tensor:
        """The method's distance of feature maps, a scalar before alpha."""
        raise NotImplementedError(f"{type(self).__name__} compares no feature maps")

    def feature_share(self, batch: Batch) -> Tensor:
        """Weight of this replica's distance in the sum over replicas."""
        return batch.share

    def weight_distance(self) -> Tensor:
        """The method's distance of parameters, a scalar before alpha; or None."""
        return None

    def head_distance(self) -> Tensor:
        """`1/2 ||w||^2` over the parameters that only the target has."""
        return self.head_factor * half_sum_of_squares(self.pairing.new_variables)

    def penalties(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both penalties, times alpha and beta, as this replica's share.

        The sum over replicas is the penalty of the global batch.

        Returns:
            `(feature_penalty, head_penalty)`, float32 scalars.
        """
        total = self.batch_distance(batch)
        weights = self.weight_distance()
        if weights is not None:
            total = total + weights / batch.replicas
        feature = self.strength("alpha", batch.step) * total
        head = self.strength("beta", batch.step) * self.head_distance()
        return feature, head / batch.replicas

    def tap_penalties(self, batch: Batch) -> dict[str, Tensor]:
        """Each tap's part of the feature penalty: dict tap -> float32 scalar.

        Times alpha and as this replica's share. Empty if the regularizer does not
        compare maps tap by tap.
        """
        if batch.source_maps is None or batch.target_maps is None:
            return {}
        distances = self.tap_distances(batch.source_maps, batch.target_maps)
        factor = self.strength("alpha", batch.step) * self.feature_share(batch)
        return {tap: factor * distance for tap, distance in distances.items()}

    def tap_distances(self, source_maps: Maps, target_maps: Maps) -> dict[str, Tensor]:
        """The parts of `feature_distance`: dict tap -> scalar; empty if it has none."""
        return {}

    def combine(
        self, task_gradients: Gradients, penalty_gradients: Gradients
    ) -> list[Tensor]:
        """The gradients for the optimizer, if `splits_gradients`.

        Args:
            task_gradients, penalty_gradients: lists of tensors of the global batch, in
                the same order; None if nothing depends on a variable.

        Returns:
            A list of tensors or None.
        """
        raise NotImplementedError(f"{type(self).__name__} combines no gradients")

    def after_step(self, batch: Batch) -> None:
        """Called after each step of the optimizer, for queues or moving averages."""

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`, with the current strengths."""
        schedules = keras.optimizers.schedules
        config = {
            name: schedules.serialize(value) if callable(value) else getattr(self, name)
            for name, value in self._strengths.items()
        }
        return {"name": self.name, **config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The regularizer that `get_config` describes, not bound to a model."""
        config = dict(config)
        for name in ("alpha", "beta"):
            if isinstance(config.get(name), dict):
                config[name] = keras.optimizers.schedules.deserialize(config[name])
        return cls(**config)


def _strength(name, value):
    schedule = keras.optimizers.schedules.LearningRateSchedule
    if isinstance(value, schedule):
        return value
    also = "a keras.optimizers.schedules schedule"
    return _arguments.number(name, value, also=also)
