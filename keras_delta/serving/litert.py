"""A classifier as a file for LiteRT, which was called TensorFlow Lite."""

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
FEWEST, MOST = 32, 300  # images to find the ranges of int8 from
SIGNATURE = "serving_default"


def check():
    """Refuse to start where the package is missing.

    Raises:
        ImportError: where `ai_edge_litert` is missing.
    """
    _interpreter()


def representative_images(data, image_size, protocol):
    """Up to 300 images to find the ranges of int8 from.

    Args:
        data: as `fit` takes it, with labels or without, or an `ImageSet`.
        image_size: (height, width) that the network sees.
        protocol: how an `ImageSet` is prepared.

    Returns:
        float32 (images, height, width, 3): a seeded random choice of arrays and of an
        `ImageSet`, the first ones of other data.

    Raises:
        ValueError: for fewer than 32 images and another shape.
    """
    if isinstance(data, ImageSet):
        chosen = np.random.default_rng(0).permutation(len(data))[:MOST]
        data = data.subset(chosen).batches(image_size, protocol=protocol)
    elif hasattr(data, "element_spec") and not isinstance(data.element_spec, tuple):
        data = data.map(lambda x: (x, tf.zeros(tf.shape(x)[:1])))
    elif isinstance(data, np.ndarray):
        data = (data, np.zeros(len(data)))
    images, _ = samples.collect(data, max_samples=MOST)
    shape = getattr(images, "shape", ())
    if shape[1:] != (*image_size, 3) or len(images) < FEWEST:
        expected = f"{FEWEST} or more images of {(*image_size, 3)}, as the model takes "
        received = f"{len(images)} images of {shape[1:]}"
        raise ValueError(invalid("representative_data", expected + "them", received))
    return images.astype("float32")


def convert(scores, endpoints, *, quantize=None, images=None, **_):
    """The content of a `.tflite` file.

    It has one signature, `images` -> `scores`, both float32 whatever is quantized
    inside, for any batch size. The file is also a zip archive with `labels.txt`, where
    LiteRT's metadata keeps labels too: `unzip model.tflite`.

    Args:
        scores: `tf.function`, result of `conversion.scores`.
        endpoints: `Endpoints`, with the model and the names of the classes.
        quantize: None, `"int8"`, `"float16"` or `"dynamic"`.
        images: for int8, an array, 0 to 255.

    Returns:
        Bytes.

    Raises:
        ValueError: for a model with operations that LiteRT has not.
    """
    with tempfile.TemporaryDirectory() as folder:
        # By way of a SavedModel, as Keras does it: converted from functions, variables
        # are silently left without their values.
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
            raise ValueError(
                f"LiteRT's converter cannot take this model: {error}"
            ) from error
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(class_names.FILE, class_names.text(endpoints.class_names))
    return content.getvalue()


def runner(content):
    """A function of images (B, height, width, 3) to scores (B, classes), arrays.

    Images go one by one, as on a telephone, in little memory.
    """
    run = _interpreter()(model_content=content).get_signature_runner(SIGNATURE)
    return lambda images: np.concatenate(
        [run(**{IMAGES: image[None]})[SCORES] for image in images]
    )


def _interpreter():
    # TensorFlow's own interpreter is to be removed.
    return import_optional(
        "ai_edge_litert.interpreter", 'Export with `format="litert"`', "serving"
    ).Interpreter
