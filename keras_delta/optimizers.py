"""Gradient descent with separate learning rates for the head and the rest."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_delta import _arguments, _compat
from keras_delta._errors import unknown_name
from keras_delta._types import LearningRate, Tensor

REST = "default"


@keras.saving.register_keras_serializable(package="keras_delta")
class LayerwiseSGD(_compat.NoCommonDecay, keras.optimizers.SGD):
    """SGD whose learning rate is multiplied by a number per layer.

    A new head starts from nothing and the backbone from good weights, so fine-tuning
    often gives the head a larger rate. With `learning_rate=0.01` and
    `multipliers={"default": 0.1, "head": 1.0}` the layer `head` learns at 0.01 and
    all others at 0.001, as in thuml/Transfer-Learning-Library with `--finetune`
    (`Classifier.get_parameters`).

    For a variable with the multiplier c, SGD's formulas use c · learning_rate,
    now and after each change by `optimizer.learning_rate = ...`,
    `LearningRateScheduler` or a schedule. That includes `weight_decay`, which Keras
    subtracts as c · learning_rate · weight_decay · w beside the momentum (PyTorch adds
    weight_decay · w to the gradient instead).

    Args:
        learning_rate, momentum, nesterov: as for `keras.optimizers.SGD`.
        multipliers: dict from names of layers to non-negative numbers; "default"
            applies to all others and is 1 if missing. A name also applies to layers
            inside that layer: the last match in `variable.path` counts, without the
            name of the variable itself. Name the layers of a `Sequential` that is
            part of a model, not the `Sequential`: Keras omits its name from the
            paths when the model is loaded again, and the optimizer raises an error.
        **kwargs: as for `keras.optimizers.SGD`: `weight_decay`, `clipnorm`, ...

    Raises:
        TypeError: if a multiplier is not a number.
        ValueError: if a multiplier is negative or infinite; when built, if no layer
            with trainable variables has a given name.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        *,
        multipliers: Mapping[str, float] | None = None,
        name: str = "LayerwiseSGD",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, momentum, nesterov, name=name, **kwargs)
        self.multipliers = {
            name: _arguments.number(f"multipliers[{name!r}]", multiplier)
            for name, multiplier in dict(multipliers or {}).items()
        }

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Finds the multiplier of each variable.

        Args:
            variables: the model's trainable variables.

        Raises:
            ValueError: if none of them lies in a layer named in `multipliers`.
        """
        if self.built:
            return
        paths = [variable.path.split("/")[:-1] for variable in variables]
        layers = list(dict.fromkeys(name for path in paths for name in path))
        for name in self.multipliers:
            if name != REST and name not in layers:
                raise ValueError(
                    unknown_name("multipliers", name, layers)
                    + " These are the layers with trainable variables."
                )
        super().build(variables)
        self._by_index = tuple(map(self._multiplier, paths))

    def _multiplier(self, path):
        for name in reversed(path):
            if name in self.multipliers and name != REST:
                return self.multipliers[name]
        return self.multipliers.get(REST, 1.0)

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        """One step of one variable; see the class."""
        rate = keras.ops.cast(learning_rate, variable.dtype)
        rate = rate * self._by_index[_compat.variable_index(self, variable)]
        if self.weight_decay is not None and _compat.is_decayed(self, variable):
            self.assign_sub(variable, variable * self.weight_decay * rate)
        super().update_step(gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {**super().get_config(), "multipliers": dict(self.multipliers)}


def adapt(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> keras.optimizers.Optimizer:
    """A copy of an optimizer that trains other variables and keeps its state.

    Keras builds an optimizer for a fixed list of variables. The state of each variable
    that both train is copied, as are iterations, learning rate and what
    `exclude_from_weight_decay` has excluded.

    Args:
        optimizer: a built optimizer.
        variables: the variables that the copy trains.

    Returns:
        A new, built optimizer with the same settings.
    """
    adapted = type(optimizer).from_config(optimizer.get_config())
    # Not part of the configuration.
    inner, copy = (getattr(o, "inner_optimizer", o) for o in (optimizer, adapted))
    copy.exclude_from_weight_decay(
        [v for v in variables if not _compat.is_decayed(inner, v)]
    )
    adapted.build(variables)
    state = collections.defaultdict(list)
    for v in optimizer.variables:
        state[v.name, tuple(v.shape)].append(v)
    for v in adapted.variables:
        if before := state[v.name, tuple(v.shape)]:
            v.assign(before.pop(0))
    return adapted
