"""Type aliases for arguments that Keras and NumPy accept in many forms."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

ArrayLike: TypeAlias = Any
"""Any argument of `numpy.asarray`."""
PathLike: TypeAlias = str | os.PathLike[str]
Shape: TypeAlias = Sequence[Any]
"""Integers, or None if a size is open."""
ImageSize: TypeAlias = int | Sequence[int]
"""Side in pixels, or (height, width)."""

Tensor: TypeAlias = Any
"""A tensor or variable of the backend, or an array; or a structure of them."""
Maps: TypeAlias = Mapping[str, Tensor]
"""Tap -> feature map."""
Gradients: TypeAlias = Sequence[Tensor | None]
FilterDistances: TypeAlias = Any
"""Any argument of `kd.analysis.compare_filter_distances`."""

Data: TypeAlias = Any
"""Data for `fit`: arrays, data sets, `PyDataset`; for images, see the docs too."""
Models: TypeAlias = Any
"""A Keras model or `DeltaModel`, or a dict label -> model."""
Loss: TypeAlias = Any
"""A Keras loss or its name; for several outputs a list or dict of them."""
Activation: TypeAlias = str | Callable[..., Any] | None
LearningRate: TypeAlias = Any
"""A number, or a Keras schedule."""
Logs: TypeAlias = dict[str, Any] | None
Verbose: TypeAlias = int | Literal["auto"]

Strength: TypeAlias = float | Callable[[Any], Any]
"""A number, or a Keras schedule of the step."""
Searched: TypeAlias = float | Sequence[float]
"""A number, a list to choose from, or a pair (low, high)."""
RegularizerLike: TypeAlias = Any
"""A `Regularizer`, its name or config, a list of these, or None."""
SourceMaps: TypeAlias = Any
"""`"compute"`, `"cache"` or a `SourceMapCache`."""
Attention: TypeAlias = Any
"""`"auto"`, `"uniform"`, a `ChannelAttention`, its path, or a dict of weights."""
Taps: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""`"auto"`, names of layers, or a dict from the target's to the source's."""

Task: TypeAlias = Literal["multiclass", "multilabel", "binary", "regression"]
ProtocolName: TypeAlias = Literal["default", "improved", "improved_code", "tllib"]
Channels: TypeAlias = Any
"""Numbers of channels, how many of the lowest, or a rule that chooses some."""
Corruption: TypeAlias = Literal["blur", "noise", "jpeg"]
Variant: TypeAlias = Literal["relative", "code", "article"]
Normalization: TypeAlias = Literal[
    "standardized", "softmax", "softmax_of_sums", "ratio", "uniform"
]
