"""Gradient descent with another learning rate for the head than for the rest."""

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

    A new head learns from nothing and the backbone from good weights, so fine-tuning
    often gives the head a larger rate. With `learning_rate=0.01` and
    `multipliers={"default": 0.1, "head": 1.0}` the layer `head` learns at 0.01 and
    all others at 0.001, as in thuml/Transfer-Learning-Library with `--finetune`
    (`Classifier.get_parameters`).

    For a variable with the multiplier c, SGD's formulas hold with c · learning_rate,
    now and after each change by `optimizer.learning_rate = ...`,
    `LearningRateScheduler` or a schedule. That includes `weight_decay`, which Keras
    subtracts as c · learning_rate · weight_decay · w beside the momentum (PyTorch adds
    weight_decay · w to the gradient instead).

    Args:
        learning_rate, momentum, nesterov: as for `keras.optimizers.SGD`.
        multipliers: dict from names of layers to numbers of 0 or more; "default" is
            for all others, 1 where it is missing. A name also holds for the layers
            inside it: that one counts which is last in `variable.path`, without the
            name of the variable itself. Name the layers of a `Sequential` that is
            part of a model, not the `Sequential`: Keras leaves its name out of the
            paths when the model is loaded again, and the optimizer refuses it.
        **kwargs: as for `keras.optimizers.SGD`: `weight_decay`, `clipnorm`, ...

    Raises:
        TypeError: for a multiplier that is no number.
        ValueError: for a multiplier below 0 or infinite; when built, for a name that
            no layer with trainable variables has.
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
            ValueError: for a name in `multipliers` that none of them lies in.
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
    """A copy of an optimizer that trains other variables, and goes on.

    Keras builds an optimizer for the variables that there are at first. What it keeps
    for a variable that both train is copied, its iterations and learning rate too.

    Args:
        optimizer: the optimizer, which is built.
        variables: what the copy is to train.

    Returns:
        A new, built optimizer of the same settings.
    """
    adapted = type(optimizer).from_config(optimizer.get_config())
    adapted.build(variables)
    state = collections.defaultdict(list)
    for v in optimizer.variables:
        state[v.name, tuple(v.shape)].append(v)
    for v in adapted.variables:
        if before := state[v.name, tuple(v.shape)]:
            v.assign(before.pop(0))
    return adapted
