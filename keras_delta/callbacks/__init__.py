"""Keras callbacks for training a `DeltaModel`."""

from keras_delta.callbacks.activation_maps import ActivationMaps as ActivationMaps
from keras_delta.callbacks.backup_and_restore import (
    BackupAndRestore as BackupAndRestore,
)
from keras_delta.callbacks.base import Callback as Callback
from keras_delta.callbacks.channel_attention_callback import (
    ChannelAttentionCallback as ChannelAttentionCallback,
)
from keras_delta.callbacks.penalty_logger import PenaltyLogger as PenaltyLogger
from keras_delta.callbacks.report import Report as Report
from keras_delta.callbacks.rifle import Rifle as Rifle
from keras_delta.callbacks.starting_point_distance import (
    StartingPointDistance as StartingPointDistance,
)
from keras_delta.callbacks.strength_scheduler import (
    StrengthScheduler as StrengthScheduler,
)
from keras_delta.callbacks.terminate_on_nan import LossNotFinite as LossNotFinite
from keras_delta.callbacks.terminate_on_nan import TerminateOnNaN as TerminateOnNaN
from keras_delta.callbacks.weight_average import WeightAverage as WeightAverage
