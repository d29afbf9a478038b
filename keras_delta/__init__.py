"""Regularised transfer learning for Keras 3."""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

# Everything a `.keras` file may contain: loading one needs the classes registered.
from keras_delta import attention as attention
from keras_delta import averaging as averaging
from keras_delta import backbones as backbones
from keras_delta import batch_norm as batch_norm
from keras_delta import caching as caching
from keras_delta import callbacks as callbacks
from keras_delta import data as data
from keras_delta import layers as layers
from keras_delta import optimizers as optimizers
from keras_delta import regularizers as regularizers
from keras_delta._network.attach import attach_head as attach_head
from keras_delta._network.freeze import freeze_until as freeze_until
from keras_delta.attention import ChannelAttention as ChannelAttention
from keras_delta.caching import SourceMapCache as SourceMapCache
from keras_delta.model import DeltaModel as DeltaModel
from keras_delta.recipe import Recipe as Recipe

if TYPE_CHECKING:  # loaded by `__getattr__` on first access
    from keras_delta import analysis as analysis
    from keras_delta import serving as serving
    from keras_delta import statistics as statistics
    from keras_delta import tuning as tuning
    from keras_delta._probe import fit_head as fit_head
    from keras_delta.fine_tuning import fine_tune as fine_tune
    from keras_delta.serving import export_for_serving as export_for_serving

__version__ = _version("keras_delta")

# Loaded on first access, since they import Keras Tuner and the like.
_LAZY = {
    "analysis": "analysis",
    "export_for_serving": "serving",
    "fine_tune": "fine_tuning",
    "fit_head": "_probe",
    "serving": "serving",
    "statistics": "statistics",
    "tuning": "tuning",
}


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LAZY[name]}")
    return module if name == _LAZY[name] else getattr(module, name)


def __dir__():
    hidden = ("importlib", "TYPE_CHECKING")
    public = [n for n in globals() if not n.startswith("_") and n not in hidden]
    # The modules of DeltaModel, Recipe and fine_tune.
    return sorted({*public, *_LAZY, "__version__"} - {"model", "recipe", "fine_tuning"})
