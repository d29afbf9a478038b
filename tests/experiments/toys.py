"""A network, images and cells that train in a moment, and the hands to put them in."""

import keras
import numpy as np
from experiments import protocols
from experiments.cell import Cell

from keras_delta import backbones, data
from keras_delta.backbones import Backbone

SIZE, CLASSES = 16, 3
# Two epochs of three batches, at 0.01 and at 0.001.
PROTOCOL = protocols.get("few_shot").replace(
    name="toy", iterations=6, batch_size=8, min_epochs=2, attention_samples=12
)
L2_SP = Cell("toy", "l2_sp", protocol=PROTOCOL, network="toy", alpha=0.1, seed=1)
DELTA = Cell("toy", "delta", protocol=PROTOCOL, network="toy", alpha=2.0, seed=1)
SECONDS = ("seconds", "prepare_seconds", "wall_seconds")


def build(weights=None, input_shape=(SIZE, SIZE, 3)):
    """A "pretrained" network for raw images."""
    rng = np.random.default_rng(5)
    x = inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1)(x)
    for i, width in enumerate((4, 6, 8)):
        x = keras.layers.Conv2D(
            width, 3, strides=1 if i == 0 else 2, padding="same", name=f"conv{i}"
        )(x)
        x = keras.layers.BatchNormalization(name=f"bn{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
    # Its random numbers must not depend on what else the process has built.
    x = keras.layers.Dropout(0.2, name="drop")(x)
    model = keras.Model(inputs, x, name="toy")
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.weights
            scale = (2 / np.prod(kernel.shape[:-1])) ** 0.5
            kernel.assign(rng.normal(size=kernel.shape) * scale)
            bias.assign(rng.normal(size=bias.shape) * 0.1)
    return model


def image_set(per_class, seed):
    """Noisy images whose class shows in one of their colours; 20 pixels high."""
    rng = np.random.default_rng(seed)
    labels = np.arange(per_class * CLASSES) % CLASSES
    images = rng.normal(110, 45, (len(labels), 20, 24, 3))
    images[np.arange(len(labels)), ..., labels] += 35
    images = images.clip(0, 255).astype("uint8")
    return data.ImageSet.from_arrays(images, labels, ["a", "b", "c"])


def load(name, data_dir=None):
    return {"train": image_set(8, 1), "test": image_set(10, 2)}


def put_in(setattr, setitem):
    """Let `Trainer` find them, with two functions as pytest's monkeypatch has them."""
    setattr(data, "load", load)
    toy = Backbone(build, SIZE, "x / 127.5 - 1", find_taps=lambda graph: None)
    setitem(backbones.ALL, "toy", toy)


def lasting(record):
    """A record without its times."""
    return {k: v for k, v in record.items() if k not in SECONDS}
