"""Conversion of a classifier for LiteRT, formerly TensorFlow Lite."""

import io
import tempfile
import zipfile

import keras
import numpy as np
import tensorflow as tf

from keras_delta._errors import import_optional, invalid
from keras_delta._inputs import samples
from keras_delta.data.image_set import ImageSet
from keras_delta.serving import class_names
from keras_delta.serving.conversion import IMAGES, SCORES

FILE = "model.tflite"
RUNTIME = "LiteRT"
QUANTIZE = ("int8", "float16", "dynamic")
FEWEST, MOST = 32, 300  # images for determining the ranges of int8
SIGNATURE = "serving_default"


def check():
    """Raise an error if the package is missing."""
    _interpreter()


def representative_images(data, options, channels=3):
    """Up to 300 images for determining the ranges of int8, float32.

    A seeded random choice from arrays or an `ImageSet`, otherwise the first ones.
    """
    image_size = options.image_size
    if isinstance(data, ImageSet):
        chosen = np.sort(np.random.default_rng(0).permutation(len(data))[:MOST])
        data = data.subset(chosen).batches(image_size, protocol=options.protocol)
    if hasattr(data, "element_spec") and not isinstance(data.element_spec, tuple):
        data = data.map(lambda x: (x, tf.zeros(tf.shape(x)[:1])))
    elif isinstance(data, np.ndarray):
        data = (data, np.zeros(len(data)))
    images, _ = samples.joined(samples.collect(data, max_samples=MOST))
    if images.shape[-1] == 3 > channels:
        images = tf.image.rgb_to_grayscale(images).numpy()
    shape = getattr(images, "shape", ())
    if shape[1:] != (*image_size, channels) or len(images) < FEWEST:
        expected = (
            f"{FEWEST} or more images of {(*image_size, channels)}, the model's input"
        )
        received = f"{len(images)} images of {shape[1:]}"
        raise ValueError(invalid("representative_data", expected, received))
    return images.astype("float32")


def convert(scores, endpoints, name, images):
    """The content of a `.tflite` file.

    It has one signature, `images` -> `scores`, both float32 regardless of quantization,
    for any batch size. The file is also a zip archive with `labels.txt`, as in LiteRT's
    own metadata: `unzip model.tflite`. For several labels, it also contains
    `thresholds.txt`.

    Args:
        scores: `tf.function` with a signature, the computation to convert.
        endpoints: `Endpoints`, with the model and the names of the classes.
        name: unused.
        images: for int8, an array, 0 to 255.
    """
    quantize = endpoints.options.quantize
    with tempfile.TemporaryDirectory() as folder:
        # Via a SavedModel, as Keras does it: when converting from functions, variables
        # silently lose their values.
        archive = keras.export.ExportArchive()
        archive.track(endpoints.target)
        archive.add_endpoint(SIGNATURE, scores, scores.input_signature)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantize is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantize == "int8":
            converter.representative_dataset = lambda: ([x[None]] for x in images)
        try:
            content = io.BytesIO(converter.convert())
        except Exception as error:  # the converter's own kind has no public name
            text = f"LiteRT cannot convert this model: {error}"
            raise ValueError(text) from error
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(class_names.FILE, class_names.text(endpoints.class_names))
        if endpoints.thresholds is not None:
            levels = class_names.text(endpoints.thresholds)
            archive.writestr(class_names.THRESHOLDS, levels)
    return content.getvalue()


def runner(content):
    """A function of images (B, height, width, channels) to scores (B, classes), arrays.

    Images are run one by one, as on a phone, to save memory.
    """
    run = _interpreter()(model_content=content).get_signature_runner(SIGNATURE)
    return lambda images: np.concatenate(
        [run(**{IMAGES: image[None]})[SCORES] for image in images]
    )


def _interpreter():
    # TensorFlow's own interpreter will be removed.
    return import_optional(
        "ai_edge_litert.interpreter", 'Export with `format="litert"`', "serving"
    ).Interpreter
