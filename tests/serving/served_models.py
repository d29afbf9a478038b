"""Small models of several kinds, and what of a SavedModel is looked at."""

import keras
import numpy as np
import tensorflow as tf
from networks import make_backbone

import keras_delta as kd

SIDE = 16
NAMES = ["日本 🐈", " große Biene\t", "<cat | dog>"]
# Of every format and several sizes; some are turned, one transparent, one grey.
PHOTOS = (
    *("jpeg large", "jpeg 2", "jpeg grey", "exif 6 little", "png 6 8", "png 0 16"),
    *("webp RGBA", "webp exif 6", "gif transparent", "png one pixel"),
)
SETTINGS = {
    "plain": {"top_k": 2},
    "other": {
        "input": "tensor",
        "protocol": "improved",
        "ten_crop_average": "probabilities",
        "top_k": 10,
    },
}


def softmax(x):
    e = np.exp(np.float64(x) - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def call(folder, signature, **inputs):
    function = tf.saved_model.load(folder).signatures[signature]
    inputs = {key: tf.constant(value) for key, value in inputs.items()}
    return {key: value.numpy() for key, value in function(**inputs).items()}


def checkpoint(folder):
    """Shapes of the variables that are in a SavedModel, without its bookkeeping."""
    stored = tf.train.list_variables(str(folder / "variables" / "variables"))
    return sorted(
        tuple(shape)
        for name, shape in stored
        if name.endswith("VARIABLE_VALUE") and "save_counter" not in name
    )


def shapes(variables):
    return sorted(tuple(v.shape) for v in variables)


def raw_pixels(batch, height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (batch, height, width, 3)).astype("float32")


def head(*layers):
    body = make_backbone()
    x = body.output
    for layer in layers:
        x = layer(x)
    return keras.Model(body.input, x)


def dense(units=3, name="head", **options):
    return keras.layers.Dense(units, name=name, **options)


POOL = keras.layers.GlobalAveragePooling2D


def _softmax_dense():
    return head(POOL(), dense(activation="softmax"))


def _softmax_layer():
    return head(POOL(), dense(), keras.layers.Softmax())


def _flatten():
    return head(keras.layers.Flatten(), dense())


def _max_pooling():
    return head(keras.layers.GlobalMaxPooling2D(), dense(8), dense(name="last"))


def _sequential():
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            keras.layers.Conv2D(4, 3, strides=2, name="conv"),
            keras.layers.ReLU(),
            POOL(),
            dense(),
        ]
    )


def _nested():
    return keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), make_backbone(batch_norm=True), POOL(), dense()]
    )


def _mixed():
    keras.config.set_dtype_policy("mixed_float16")
    body = make_backbone(batch_norm=True)
    return kd.attach_head(body, 3)


def _mixed_softmax():
    keras.config.set_dtype_policy("mixed_bfloat16")
    return head(POOL(), dense(activation="softmax"))


def _eight_bit_input():
    inputs = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    model = keras.Model(inputs, head(POOL(), dense())(x))
    model.trainable = False
    return model


def _no_maps():
    inputs = keras.Input((SIDE, SIDE, 3))
    return keras.Model(inputs, dense()(keras.layers.Flatten()(inputs)))


def _any_size():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    return keras.Model(inputs, dense()(POOL()(x)))


MODELS = {
    f.__name__.strip("_"): f
    for f in (
        *(_softmax_dense, _softmax_layer, _flatten, _max_pooling, _sequential),
        *(_nested, _mixed, _mixed_softmax, _eight_bit_input, _no_maps, _any_size),
    )
}
