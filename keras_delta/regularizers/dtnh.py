"""DTNH: a regularizer that never works against the task."""

from typing import Any, Self

import keras
from keras import ops

from keras_delta._errors import invalid
from keras_delta._types import Gradients, RegularizerLike, Strength, Tensor
from keras_delta.regularizers.distances import half_sum_of_squares
from keras_delta.regularizers.sum import Sum


@keras.saving.register_keras_serializable("keras_delta")
class DTNH(Sum):
    """Drops the part of a regularizer's gradient that opposes the task's gradient.

    With the gradient `g_E` of the task loss and `g_R` of the penalties, over all
    parameters together, a step goes along `g_E + g_R` if `<g_E, g_R> >= 0`, else along

        g_E + g_R - (<g_R, g_E> / ||g_E||^2) g_E

    The penalties come from another regularizer, and so do `alpha` and `beta`. On
    several replicas the gradients are those of the global batch. Each step runs two
    backward passes.

    Args:
        regularizer: the other one: a `Regularizer`, a name, a config, or a list of
            these; default `"feature_map"`.
        alpha, beta: its strengths, if it is given by name; None for its defaults.
        name: optional name.

    Raises:
        TypeError, ValueError: if `regularizer` is not a regularizer, or trains layers
            inside the source.

    Source: Wan, Xiong, Li et al., "Towards making deep transfer learning never hurt",
    ICDM 2019, arXiv 1911.07489.
    """

    splits_gradients = True

    def __init__(
        self,
        regularizer: RegularizerLike = "feature_map",
        alpha: Strength | None = None,
        beta: Strength | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        from keras_delta.regularizers import get  # which knows this class

        strengths: dict[str, Any] = {"alpha": alpha, "beta": beta}
        strengths = {k: v for k, v in strengths.items() if v is not None}
        member = get(regularizer)
        if strengths and not isinstance(regularizer, str):
            argument, value = next(iter(strengths.items()))
            expected = "None, since the regularizer is not given by its name"
            remedy = "Set the strength in `regularizer`."
            raise ValueError(invalid(argument, expected, value, remedy))
        if member is None or member.splits_gradients or member.find_adapting():
            expected = "one with penalties and without layers inside the source"
            raise ValueError(invalid("regularizer", expected, regularizer))
        if strengths:
            member = type(member)(**strengths)
        super().__init__([member], name=name, **kwargs)

    def _get_strength(self, name):
        return self.members[0]._get_strength(name)

    def _set_strength(self, name, value):
        self.members[0]._set_strength(name, value)

    def combine(
        self, task_gradients: Gradients, penalty_gradients: Gradients
    ) -> list[Tensor]:
        """See `Regularizer.combine`."""
        both = [
            (task, penalty)
            for task, penalty in zip(task_gradients, penalty_gradients, strict=True)
            if task is not None and penalty is not None
        ]
        products = [ops.sum(_float32(t) * _float32(p)) for t, p in both]
        inner = sum(products, ops.zeros((), "float32"))
        there = [t for t in task_gradients if t is not None]
        norm = 2 * half_sum_of_squares(there)
        against = inner < 0
        share = ops.where(against, inner / ops.where(against, norm, 1.0), 0.0)
        return [
            _added(task, penalty, 1 - share)
            for task, penalty in zip(task_gradients, penalty_gradients, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        member = keras.saving.serialize_keras_object(self.members[0])
        return {"name": self.name, "regularizer": member, "alpha": None, "beta": None}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """See `Regularizer.from_config`."""
        return cls(**config)


def _float32(tensor):
    return ops.cast(ops.convert_to_tensor(tensor), "float32")


def _added(task, penalty, factor):
    """`factor * task + penalty`, each of which may be None."""
    if task is None:
        return penalty
    scaled = task * ops.cast(factor, task.dtype)
    return scaled if penalty is None else scaled + penalty
