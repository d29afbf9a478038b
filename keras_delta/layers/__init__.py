"""Layers of methods that train further networks beside the target."""

from keras_delta.layers.fourier_adapter import FourierAdapter as FourierAdapter
from keras_delta.layers.fusion_activation import FusionActivation as FusionActivation
from keras_delta.layers.fusion_activation import (
    concatenate_phases as concatenate_phases,
)
from keras_delta.layers.stoch_norm import StochNorm as StochNorm
