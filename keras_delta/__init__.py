"""Regularised transfer learning for Keras 3."""

from keras_delta import backbones as backbones
from keras_delta import callbacks as callbacks
from keras_delta import data as data
from keras_delta import experiments as experiments
from keras_delta import optimizers as optimizers
from keras_delta import regularizers as regularizers
from keras_delta import tuning as tuning
from keras_delta.attention import ChannelAttention as ChannelAttention
from keras_delta.caching import SourceMapCache as SourceMapCache
from keras_delta.heads import attach_head as attach_head
from keras_delta.model import DeltaModel as DeltaModel
from keras_delta.serving import export_for_serving as export_for_serving
from keras_delta.sharing import freeze_until as freeze_until

__version__ = "0.1.0"
