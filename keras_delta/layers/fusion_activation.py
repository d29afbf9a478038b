"""`FusionActivation`: a gated distance between the phases of two networks."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._types import Shape, Tensor
from keras_delta.layers.fourier_adapter import reduce_channels, uniform_by_inputs
from keras_delta.layers.official import check_names, count_channels, read_arrays
from keras_delta.layers.pooling import adaptive_average_pool

NAMES = ("fc.0.weight", "fc.2.weight")
"""Names in the state dict of the authors' `SELayer_Single`."""


def concatenate_phases(phases: Iterable[Tensor]) -> Tensor:
    """Pools the phases of several stages to the last one's grid and concatenates them.

    Args:
        phases: list of `(B, H, W, C)`, one per stage; sizes and channels may differ.
            Each is averaged over bins as by PyTorch's `AdaptiveAvgPool2d`, even if
            sizes do not divide evenly.

    Returns:
        `(B, h, w, sum of C)` float32, with the last stage's `h` and `w`.

    Raises:
        ValueError: if the list is empty, or phases have another rank.
    """
    phases = list(phases)
    if not phases:
        raise ValueError(invalid("phases", "at least one tensor", phases))
    for i, phase in enumerate(phases):
        if len(phase.shape) != 4:
            shape = tuple(phase.shape)
            raise ValueError(invalid(f"phases[{i}].shape", "(B, H, W, C)", shape))
    size = ops.shape(phases[-1])[1:3]
    return ops.concatenate([adaptive_average_pool(p, size) for p in phases], axis=-1)


@keras.saving.register_keras_serializable("keras_delta")
class FusionActivation(keras.layers.Layer):
    """Computes how far the phases of two networks differ, with a learned gate.

    With S and T the concatenated phases of the source and the target network (see
    `concatenate_phases`), and dense layers without biases from C to `C // reduction`
    units and back:

    ```
    gate = sigmoid(Dense(ReLU(Dense(mean_hw(S)))))
    loss = mean((gate * (T - S))^2)
    ```

    The mean is over all elements. The two networks need stages with the same numbers of
    channels. Differences do not wrap around: phases of 3.1 and -3.1 are 6.2 apart. The
    authors train the gate on this loss alone, and nothing in the formula keeps it from
    shrinking towards 0. Gradients pass to both inputs, while the authors detach S.

    Everything is float32 under every dtype policy. Kernels start as in PyTorch,
    uniformly within `1 / sqrt(inputs)`. XLA can compile the layer.

    Args:
        reduction: the first dense layer has `C // reduction` outputs. Defaults to 16.
        **kwargs: `name` and the like, as for every Keras layer.

    Call arguments:
        source_phases: `(B, h, w, C)`.
        target_phases: the same shape.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: if `reduction` is not a positive integer; when called, if there
            are fewer channels than `reduction`, or shapes differ.

    Reference:
        Tang et al., "Direct Distillation between Different Domains", ECCV 2024
        (arXiv:2401.06826); `SELayer_Single` and `HintLoss` in
        github.com/tangjialiang97/4Ds.
    """

    def __init__(self, reduction: int = 16, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.reduction = _arguments.integer("reduction", reduction)

    def build(
        self, source_phases_shape: Shape, target_phases_shape: Shape | None = None
    ) -> None:
        """Makes the two dense layers of the gate."""
        channels = source_phases_shape[-1]
        inner = reduce_channels(channels, self.reduction)
        self.channels = channels
        self.reduce = self._dense(inner, "relu", "reduce")
        self.expand = self._dense(channels, "sigmoid", "expand")
        self.reduce.build((None, channels))
        self.expand.build((None, inner))

    def _dense(self, units, activation, name):
        return keras.layers.Dense(
            units,
            activation,
            use_bias=False,
            kernel_initializer=uniform_by_inputs(),
            dtype="float32",
            name=name,
        )

    def call(self, source_phases: Tensor, target_phases: Tensor) -> Tensor:
        """Returns the loss."""
        expected = (*source_phases.shape[:3], self.channels)
        for name, phases in (
            ("source_phases", source_phases),
            ("target_phases", target_phases),
        ):
            if not _fits(phases.shape, expected):
                shape = tuple(phases.shape)
                raise ValueError(invalid(f"{name}.shape", expected, shape))
        source_phases = ops.cast(source_phases, "float32")
        difference = ops.cast(target_phases, "float32") - source_phases
        gate = self.gate(source_phases)[:, None, None, :]
        squares = ops.square(gate * difference)
        count = ops.cast(ops.size(squares), "float32")
        return ops.sum(squares) / ops.maximum(count, 1.0)  # a replica may have none

    def gate(self, source_phases: Tensor) -> Tensor:
        """Computes the weight of each channel from the phases of the source.

        Builds the layer if it is not built.

        Args:
            source_phases: `(B, h, w, C)`.

        Returns:
            `(B, C)` float32, from 0 to 1.
        """
        if not self.built:
            self.build(source_phases.shape)
        pooled = ops.mean(ops.cast(source_phases, "float32"), axis=(1, 2))
        return self.expand(self.reduce(pooled))

    def load_official(self, state: Mapping[str, np.ndarray]) -> None:
        """Loads the weights of the authors' `SELayer_Single`.

        Builds the layer if it is not built.

        Args:
            state: dict from PyTorch's names (`"fc.0.weight"`, `"fc.2.weight"`) to
                NumPy arrays.

        Raises:
            TypeError: if `state` is not a dict.
            ValueError: if names are missing or unknown, or shapes are wrong; weights
                are then unchanged.
        """
        check_names(state, NAMES)
        if self.built:
            channels = self.channels
        else:
            channels = count_channels(state, "fc.0.weight", self.reduction, rank=2)
        inner = reduce_channels(channels, self.reduction)
        shapes = {"fc.0.weight": (inner, channels), "fc.2.weight": (channels, inner)}
        arrays = read_arrays(state, shapes)
        if not self.built:
            self.build((None, None, None, channels))
        self.reduce.kernel.assign(arrays["fc.0.weight"].T)
        self.expand.kernel.assign(arrays["fc.2.weight"].T)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for serialization."""
        return {**super().get_config(), "reduction": self.reduction}


def _fits(shape, expected):
    """Whether two shapes can be the same; None stands for any size."""
    return len(shape) == len(expected) and all(
        a == b or a is None or b is None for a, b in zip(shape, expected, strict=True)
    )
