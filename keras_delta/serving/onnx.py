"""Conversion of a classifier to an ONNX file."""

import json
import logging

from keras_delta._errors import import_optional
from keras_delta.serving.conversion import IMAGES, SCORES

FILE = "model.onnx"
RUNTIME = "ONNX Runtime"
ERRORS_ONLY = 3  # log severity of ONNX Runtime


def check():
    """Raise an error if a package is missing."""
    for module in "onnx", "onnxruntime", "tf2onnx":
        _needed(module)


def convert(scores, endpoints, name, images):
    """The content of an `.onnx` file.

    Its input is `images`, its output `scores`, both float32 with any batch size; its
    metadata contain `class_names`, a JSON list, and `thresholds` for several labels.

    Args:
        scores: `tf.function` with a signature, the computation to convert.
        endpoints: `Endpoints`, with the names of the classes.
        name: name of the graph.
        images: unused.
    """
    onnx, tf2onnx = _needed("onnx"), _needed("tf2onnx")
    logger = logging.getLogger("tf2onnx")  # it logs its progress
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        model, _ = tf2onnx.convert.from_function(scores, scores.input_signature)
        onnx.checker.check_model(model)
    except Exception as error:  # of several kinds, some of them bare
        raise ValueError(f"tf2onnx cannot convert this model: {error}") from error
    finally:
        logger.setLevel(level)
    model.graph.name, model.graph.doc_string = name, ""
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    told = {"class_names": endpoints.class_names}
    if endpoints.thresholds is not None:
        told["thresholds"] = endpoints.thresholds
    texts = {k: json.dumps(v, ensure_ascii=False) for k, v in told.items()}
    onnx.helper.set_model_props(model, texts)
    return model.SerializeToString()


def runner(content):
    """A function of images (B, height, width, 3) to scores (B, classes), arrays."""
    runtime = _needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    try:
        session = runtime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ValueError(f"ONNX Runtime cannot load this model: {error}") from error
    return lambda images: session.run([SCORES], {IMAGES: images})[0]


def _needed(module):
    return import_optional(module, 'Export with `format="onnx"`', "serving")
