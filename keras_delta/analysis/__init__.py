"""Analysis of fine-tuned models: accuracy, mistakes, and what training changed."""

from keras_delta.analysis.attention_matrix import attention_matrix as attention_matrix
from keras_delta.analysis.attention_matrix import (
    plot_attention_matrix as plot_attention_matrix,
)
from keras_delta.analysis.compared_maps import (
    compare_activation_maps as compare_activation_maps,
)
from keras_delta.analysis.compared_maps import plot_compared_maps as plot_compared_maps
from keras_delta.analysis.dissection import dissect as dissect
from keras_delta.analysis.distances import (
    compare_filter_distances as compare_filter_distances,
)
from keras_delta.analysis.distances import filter_distances as filter_distances
from keras_delta.analysis.distances import (
    load_filter_distances as load_filter_distances,
)
from keras_delta.analysis.distances import (
    plot_filter_distances as plot_filter_distances,
)
from keras_delta.analysis.distances import (
    save_filter_distances as save_filter_distances,
)
from keras_delta.analysis.distances import (
    tabulate_filter_distances as tabulate_filter_distances,
)
from keras_delta.analysis.key_points import cub_points as cub_points
from keras_delta.analysis.key_points import key_point_activation as key_point_activation
from keras_delta.analysis.maps import activation_maps as activation_maps
from keras_delta.analysis.maps import plot_activation_maps as plot_activation_maps
from keras_delta.analysis.reporting.report import report as report
from keras_delta.analysis.suspect_labels import suspect_labels as suspect_labels
