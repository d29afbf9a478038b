"""Warm-up requests that TensorFlow Serving sends to itself when it loads a model.

The first request after loading takes many times as long as the others; with these
records, it is run before the version counts as available.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

FILE = Path("assets.extra", "tf_serving_warmup_requests")
BATCHES = (1, 4)


def write(folder, name, functions, image_shape):
    """Write the records next to a model's SavedModel, for `Endpoints.functions`."""
    path = Path(folder) / FILE
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, (_, *specs) in functions.items():
            for batch in BATCHES:
                pixels = rng.integers(0, 256, (batch, *image_shape), np.uint8)
                inputs = {spec.name: _value(spec, pixels) for spec in specs}
                writer.write(_prediction_log(name, signature, inputs))


def _value(spec, pixels):
    if spec.dtype == tf.string:
        return [tf.io.encode_jpeg(image).numpy() for image in pixels]
    if spec.shape.rank == 1:
        return np.zeros(len(pixels), spec.dtype.as_numpy_dtype)
    return pixels.astype(spec.dtype.as_numpy_dtype)


def _prediction_log(name, signature, inputs):
    """A `PredictionLog` of `tensorflow_serving/apis/prediction_log.proto`.

    Built from its field numbers, because the package with the messages depends on a
    fixed version of TensorFlow.
    """
    spec = _field(1, name.encode()) + _field(3, signature.encode())
    request = _field(1, spec)
    for key, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(2, _field(1, key.encode()) + _field(2, tensor))
    return _field(6, _field(1, request))


def _field(number, content):
    """A length-delimited field: its number and wire type 2, its length, its content."""
    length, rest = [], len(content)
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes([number * 8 + 2, *length, rest]) + content
