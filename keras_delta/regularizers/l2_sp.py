"""L2-SP: distance of the parameters from the starting point."""

from typing import Any, Literal

import keras
from keras import ops

from keras_delta import _arguments
from keras_delta._types import Strength, Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.distances import half_sum_of_squares

PARAMETERS = ("all", "kernels")


@keras.saving.register_keras_serializable("keras_delta")
class L2SP(Regularizer):
    """Pulls every parameter towards its pretrained value.

    `Omega = 1/2 ||w - w*||^2` over the trainable parameters that source and target
    share; it does not depend on the batch. BatchNorm's moving statistics are
    never penalised.

    Args:
        alpha: strength, default 0.01 (github.com/lixingjian/DELTA; the L2-SP
            authors use 0.1).
        beta: strength of the head penalty, default 0.01.
        parameters: `"all"`: the trainable ones, including biases and those of
            BatchNorm (lixingjian/DELTA); or `"kernels"`: those of convolutions and
            dense layers only (holyseven/TransferLearningClassification, the L2-SP
            authors).
        name: optional name.

    Source: Li, Grandvalet & Davoine, ICML 2018 (L2-SP); Li et al., "DELTA", TKDD
    2021, doi 10.1145/3473912, section 4.2.
    """

    def __init__(
        self,
        alpha: Strength = 0.01,
        beta: Strength = 0.01,
        parameters: Literal["all", "kernels"] = "all",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)
        self.parameters = _arguments.choice("parameters", parameters, PARAMETERS)

    def weight_distance(self) -> Tensor:
        """`1/2 ||w - w*||^2` over the chosen parameters."""
        return half_sum_of_squares(
            ops.cast(v, "float32") - ops.cast(start, "float32")
            for v, start in self.pairing.variables
            if self.parameters == "all" or is_kernel(v)
        )

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        return {**super().get_config(), "parameters": self.parameters}


def is_kernel(variable):
    """Whether a variable is a kernel: neither bias nor scale, shift or embedding.

    A tensor stands for a kernel to which LoRA adds.
    """
    return not isinstance(variable, keras.Variable) or "kernel" in variable.name
