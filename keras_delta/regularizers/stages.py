"""Methods that train in two stages: the distance alone, then the task."""

from typing import Any

from keras import ops

from keras_delta import _arguments
from keras_delta._types import Tensor
from keras_delta.regularizers.base import Regularizer


class Staged(Regularizer):
    """Mix-in: the first `stage_steps` steps minimise `alpha * Omega` alone.

    Later steps minimise everything but `Omega`. With 0, the default, there is a single
    stage that minimises everything.

    Args:
        stage_steps: length of the first stage, in steps of the optimizer.
        **kwargs: as for `Regularizer`.
    """

    def __init__(self, *args: Any, stage_steps: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage_steps = _arguments.integer("stage_steps", stage_steps, least=0)

    def in_later_stage(self, step: Tensor) -> Tensor:
        """1 if a step is after the first stage, else 0; float32."""
        return ops.cast(ops.cast(step, "int64") >= self.stage_steps, "float32")

    def strength(self, name: str, step: Tensor) -> Tensor:
        """See `Regularizer.strength`."""
        value = super().strength(name, step)
        if not self.stage_steps:
            return value
        later = self.in_later_stage(step)
        return value * (later if name == "beta" else 1 - later)

    def task_factor(self, step: Tensor) -> Tensor:
        """See `Regularizer.task_factor`."""
        return super().task_factor(step) * self.in_later_stage(step)

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        return {**super().get_config(), "stage_steps": self.stage_steps}
