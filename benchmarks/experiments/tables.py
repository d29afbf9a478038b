"""All tables: from a frame of results, `ResultStore.frame`, to a `Table`."""

from experiments.ablation import ablation_table as ablation_table
from experiments.article_table import article_table as article_table
from experiments.few_shot import differences as differences
from experiments.few_shot import few_shot_table as few_shot_table
from experiments.few_shot import strengths_table as strengths_table
from experiments.robustness import robustness_differences as robustness_differences
from experiments.robustness import robustness_table as robustness_table
from experiments.rows import finished as finished
from experiments.table import Table as Table
from experiments.times import times as times
