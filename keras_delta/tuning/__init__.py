"""Searches for alpha and beta by cross-validation, with Keras Tuner."""

from keras_delta.tuning import installed as _installed  # noqa: F401  before the rest
from keras_delta.tuning.cross_validated import CrossValidated as CrossValidated
from keras_delta.tuning.cross_validated import (
    CrossValidatedBayesianOptimization as CrossValidatedBayesianOptimization,
)
from keras_delta.tuning.cross_validated import (
    CrossValidatedGridSearch as CrossValidatedGridSearch,
)
from keras_delta.tuning.cross_validated import (
    CrossValidatedHyperband as CrossValidatedHyperband,
)
from keras_delta.tuning.cross_validated import (
    CrossValidatedRandomSearch as CrossValidatedRandomSearch,
)
from keras_delta.tuning.hyper_model import ARTICLE_GRID as ARTICLE_GRID
from keras_delta.tuning.hyper_model import DeltaHyperModel as DeltaHyperModel
