"""`FourierAdapter`: changes the amplitudes of feature maps and keeps their phases."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._types import Shape, Tensor
from keras_delta.layers.fourier import EPSILON, blend_amplitudes
from keras_delta.layers.official import check_names, count_channels, read_arrays

NAMES = (
    "weight",
    "fc.0.weight",
    *("fc.1.weight", "fc.1.bias", "fc.1.running_mean", "fc.1.running_var"),
    "fc.3.weight",
    *("fc.4.weight", "fc.4.bias", "fc.4.running_mean", "fc.4.running_var"),
)
"""Names in the state dict of the authors' `Adapter_conv`."""


@keras.saving.register_keras_serializable("keras_delta")
class FourierAdapter(keras.layers.Layer):
    """Adapts the amplitudes of feature maps to another domain and keeps their phases.

    4Ds assumes that domains share the phase of a map's Fourier transform and differ in
    the amplitude. A network trained on one domain gets an adapter behind each of its
    stages and is used on another.

    With `F` the discrete Fourier transform over height and width of each channel, and
    1x1 convolutions without biases from C to `C // reduction` channels and back:

    ```
    x_a    = BN(Conv(ReLU(BN(Conv(x)))))
    m      = softmax(mixture / temperature)
    output = F^-1((m_0 |F(x_a)| + m_1 |F(x)|) * exp(i * phase(F(x))))
    ```

    The first output is the input of the next stage; `FusionActivation` compares the
    phases with those of another network.

    Transforms are computed in float32 under every dtype policy, and the phases stay
    float32. XLA can compile the layer if sizes are known.

    As in the authors' program, a power below `epsilon` counts as `epsilon`, and so does
    a real part between `-epsilon` and `epsilon` when the phase is computed. Unlike
    there, no gradient passes through the phase of a frequency with less power than
    `epsilon`, and frequencies that are real by symmetry have a phase of exactly 0 or pi
    (see `keras_delta.layers.fourier.compute_phase`).

    The BatchNorms have PyTorch's settings, epsilon 1e-5 and momentum 0.1 (0.9 in
    Keras). Their moving variances average the batch's variance over n samples, where
    PyTorch's average the one over n - 1. Kernels start as in PyTorch, uniformly within
    `1 / sqrt(inputs)`, and `mixture` at 0.

    Args:
        reduction: the first convolution has `C // reduction` outputs. Defaults to 4.
        temperature: divides `mixture` before the softmax, positive. Defaults to 0.1.
        epsilon: smallest power, and smallest magnitude of a real part, positive.
            Defaults to 1e-5.
        synchronized: whether the BatchNorms use the statistics of all replicas
            together, as Keras's argument of that name. Defaults to False.
        **kwargs: `name`, `dtype` and the like, as for every Keras layer.

    Call arguments:
        inputs: maps `(B, H, W, C)`.
        training: whether the BatchNorms use the statistics of the batch.

    Returns:
        Tuple `(output, phase)`, both `(B, H, W, C)`: the output in the compute dtype,
        the phase of the inputs in float32.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if an argument is out of bounds; when built, if there are fewer
            channels than `reduction`.

    Reference:
        Tang et al., "Direct Distillation between Different Domains", ECCV 2024
        (arXiv:2401.06826); `Adapter_conv` in github.com/tangjialiang97/4Ds.
    """

    def __init__(
        self,
        reduction: int = 4,
        temperature: float = 0.1,
        epsilon: float = EPSILON,
        synchronized: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.synchronized = synchronized
        self.reduction = _arguments.integer("reduction", reduction)
        self.temperature = _arguments.number("temperature", temperature, above=0)
        self.epsilon = _arguments.number("epsilon", epsilon, above=0)
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape: Shape) -> None:
        """Makes the convolutions, the BatchNorms and the mixture."""
        channels = input_shape[-1]
        inner = reduce_channels(channels, self.reduction)
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: channels})
        self.mixture = self.add_weight(name="mixture", shape=(2,), initializer="zeros")
        self.reduce = self._convolution(inner, "reduce")
        self.reduce_bn = self._batch_norm("reduce_bn")
        self.expand = self._convolution(channels, "expand")
        self.expand_bn = self._batch_norm("expand_bn")
        reduced_shape = (*input_shape[:-1], inner)
        self.reduce.build(input_shape)
        self.reduce_bn.build(reduced_shape)
        self.expand.build(reduced_shape)
        self.expand_bn.build(input_shape)

    def _convolution(self, filters, name):
        return keras.layers.Conv2D(
            filters,
            1,
            use_bias=False,
            kernel_initializer=uniform_by_inputs(),
            dtype=self.dtype_policy,
            name=name,
        )

    def _batch_norm(self, name):
        return keras.layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            synchronized=self.synchronized,
            dtype=self.dtype_policy,
            name=name,
        )

    def call(
        self, inputs: Tensor, training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the maps with blended amplitudes, and their phases."""
        x = self.reduce_bn(self.reduce(inputs), training=training)
        x = self.expand_bn(self.expand(ops.relu(x)), training=training)
        mixture = ops.cast(self.mixture, "float32") / self.temperature
        output, phase = blend_amplitudes(inputs, x, ops.softmax(mixture), self.epsilon)
        return ops.cast(output, self.compute_dtype), phase

    def load_official(self, state: Mapping[str, np.ndarray]) -> None:
        """Loads the weights of the authors' `Adapter_conv`.

        Builds the layer if it is not built.

        Args:
            state: dict from PyTorch's names (`"weight"`, `"fc.0.weight"`, `"fc.1.*"`,
                `"fc.3.weight"`, `"fc.4.*"`) to NumPy arrays;
                `num_batches_tracked` is ignored.

        Raises:
            TypeError: if `state` is not a dict.
            ValueError: if names are missing or unknown, or shapes are wrong; weights
                are then unchanged.
        """
        check_names(state, NAMES)
        if self.built:
            channels = self.input_spec.axes[-1]
        else:
            channels = count_channels(state, "fc.0.weight", self.reduction, rank=4)
        inner = reduce_channels(channels, self.reduction)
        shapes: dict[str, tuple[int, ...]]
        shapes = {name: (inner if "fc.1" in name else channels,) for name in NAMES}
        shapes["weight"] = (2,)
        shapes["fc.0.weight"] = (inner, channels, 1, 1)
        shapes["fc.3.weight"] = (channels, inner, 1, 1)
        arrays = read_arrays(state, shapes)
        if not self.built:
            self.build((None, None, None, channels))
        self.mixture.assign(arrays["weight"])
        for i, convolution in (("0", self.reduce), ("3", self.expand)):
            kernel = arrays[f"fc.{i}.weight"].transpose(2, 3, 1, 0)
            convolution.kernel.assign(kernel)
        for i, norm in (("1", self.reduce_bn), ("4", self.expand_bn)):
            norm.gamma.assign(arrays[f"fc.{i}.weight"])
            norm.beta.assign(arrays[f"fc.{i}.bias"])
            norm.moving_mean.assign(arrays[f"fc.{i}.running_mean"])
            norm.moving_variance.assign(arrays[f"fc.{i}.running_var"])

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for serialization."""
        return {
            **super().get_config(),
            "reduction": self.reduction,
            "temperature": self.temperature,
            "epsilon": self.epsilon,
            "synchronized": self.synchronized,
        }


def reduce_channels(channels, reduction):
    """Returns `channels // reduction`.

    Raises:
        ValueError: if that is 0.
    """
    if channels < reduction:
        expected = f"at most {channels}, the number of channels"
        raise ValueError(invalid("reduction", expected, reduction))
    return channels // reduction


def uniform_by_inputs():
    """Returns PyTorch's initializer of kernels: `U(-1 / sqrt(n), 1 / sqrt(n))`."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
