"""All tables: from a frame of results, `ResultStore.frame`, to a `Table`."""

from keras_delta.experiments.ablation import ablation_table as ablation_table
from keras_delta.experiments.article_table import article_table as article_table
from keras_delta.experiments.few_shot import differences as differences
from keras_delta.experiments.few_shot import few_shot_table as few_shot_table
from keras_delta.experiments.few_shot import strengths_table as strengths_table
from keras_delta.experiments.robustness import (
    robustness_differences as robustness_differences,
)
from keras_delta.experiments.robustness import robustness_table as robustness_table
from keras_delta.experiments.rows import finished as finished
from keras_delta.experiments.table import Table as Table
from keras_delta.experiments.times import times as times
