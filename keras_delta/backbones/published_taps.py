"""The layers whose maps were compared in publications, identified by name.

The network need not be one of this package: the same layers are found in those of
`keras.applications` and keras-cv, even inside another model.
"""

import re

import keras


def resnet(graph):
    """The last convolution of conv2_x to conv5_x, raw, of a Keras ResNet.

    Args:
        graph: the network's `Graph`.

    Returns:
        List of names, in the order of computation; None for another network.
    """
    blocks = r"(?:.*/)?conv(?P<stage>\d)_block\d+_3_conv"
    return _last_of_stages(graph, blocks, "2345")


def inception_v3(graph):
    """Conv2d_2b and Conv2d_4a after their activation, mixed2 and mixed7.

    As in the DELTA authors' program. For arguments and result see `resnet`.
    """
    mixed = [n for n in graph.nodes if re.fullmatch(r"(?:.*/)?mixed(2|7)", n)]
    if len(mixed) != 2 or not any(n.endswith("mixed9_1") for n in graph.nodes):
        return None
    activations = [
        name
        for name, node in graph.nodes.items()
        if isinstance(node.operation, keras.layers.Activation)
    ]
    # Keras numbers them, so use positions: the third and fifth of the linear stem.
    return [activations[2], activations[4], *mixed]


def efficientnet_lite(graph):
    """The last projection at strides 4, 8, 16 and 32.

    For arguments and result see `resnet`.
    """
    if "stem_conv" not in graph.nodes or "top_conv" not in graph.nodes:
        return None
    # Stages 3, 4 and 6 begin with stride 2: the ends are 2, 3, 5 and the last, 7.
    blocks = r"(?:.*/)?block(?P<stage>\d)[a-z]_project_conv"
    return _last_of_stages(graph, blocks, "2357")


def _last_of_stages(graph, blocks, stages):
    last = {}
    for name in graph.nodes:
        if match := re.fullmatch(blocks, name):
            last[match["stage"]] = name
    return [last[s] for s in stages] if last.keys() >= set(stages) else None
