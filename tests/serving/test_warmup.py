"""Warm-up records: TensorFlow Serving's messages, and requests that work."""

import io

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet
from PIL import Image
from served_models import SETTINGS
from tensorflow.core.framework import tensor_pb2

from keras_delta.serving import warmup

FIELD = descriptor_pb2.FieldDescriptorProto
# What of tensorflow_serving/apis/{prediction_log,predict,model}.proto is used.
MESSAGES = {
    "PredictionLog": {"predict_log": (6, "PredictLog")},
    "PredictLog": {"request": (1, "PredictRequest")},
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "InputsEntry")},
    "ModelSpec": {"name": (1, str), "signature_name": (3, str)},
}
ENTRY = {"key": (1, str), "value": (2, tensor_pb2.TensorProto)}


def _add_fields(message, fields):
    for name, (number, kind) in fields.items():
        field = message.field.add(name=name, number=number, label=FIELD.LABEL_OPTIONAL)
        if kind is str:
            field.type = FIELD.TYPE_STRING
            continue
        field.type = FIELD.TYPE_MESSAGE
        if kind is tensor_pb2.TensorProto:
            field.type_name = f".{kind.DESCRIPTOR.full_name}"
        elif kind == "InputsEntry":  # a map is a list of pairs
            field.type_name = ".warmup_test.PredictRequest.InputsEntry"
            field.label = FIELD.LABEL_REPEATED
        else:
            field.type_name = f".warmup_test.{kind}"


def _prediction_log():
    file = descriptor_pb2.FileDescriptorProto(
        name="warmup_test.proto", package="warmup_test", syntax="proto3"
    )
    file.dependency.append(tensor_pb2.DESCRIPTOR.name)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        _add_fields(message, fields)
        if name == "PredictRequest":
            entry = message.nested_type.add(name="InputsEntry")
            entry.options.map_entry = True
            _add_fields(entry, ENTRY)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    found = pool.FindMessageTypeByName("warmup_test.PredictionLog")
    return message_factory.GetMessageClass(found)


PredictionLog = _prediction_log()


def requests(folder):
    """(name of the model, signature, dict of arrays) of each record."""
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = PredictionLog.FromString(record)
        request = log.predict_log.request
        for message in (log, log.predict_log, request, request.model_spec):
            assert len(UnknownFieldSet(message)) == 0
        assert log.ByteSize() == len(record)
        inputs = {key: tf.make_ndarray(v) for key, v in request.inputs.items()}
        yield request.model_spec.name, request.model_spec.signature_name, inputs


@pytest.mark.parametrize("key", SETTINGS)
def test_each_record_is_answered(key, exported):
    signatures = tf.saved_model.load(exported[key]).signatures
    seen = []
    for name, signature, inputs in requests(exported[key]):
        assert name == key
        inputs = {key: tf.constant(value) for key, value in inputs.items()}
        (batch,) = {value.shape[0] for value in inputs.values()}
        seen.append((signature, batch))
        for value in signatures[signature](**inputs).values():
            assert value.shape[0] == batch
    assert sorted(seen) == sorted((s, b) for s in signatures for b in (1, 4))


def test_what_is_sent(tmp_path):
    specs = {
        "coded": (None, tf.TensorSpec([None], tf.string, name="image_bytes")),
        "both": (
            None,
            tf.TensorSpec([None, 6, 5, 3], tf.float32, name="images"),
            tf.TensorSpec([None], tf.int64, name="class_ids"),
        ),
        "eight": (None, tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")),
    }
    warmup.write(tmp_path, "m", specs, (6, 5, 3))
    found = {(s, len(next(iter(i.values())))): i for _, s, i in requests(tmp_path)}
    assert set(found) == {(s, b) for s in specs for b in (1, 4)}
    for content in found["coded", 4]["image_bytes"]:
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.size) == ("JPEG", (5, 6))
    both = found["both", 4]
    assert both["images"].dtype == np.float32
    assert both["images"].shape == (4, 6, 5, 3)
    assert both["images"].max() > 200
    np.testing.assert_array_equal(both["class_ids"], np.zeros(4, np.int64))
    assert found["eight", 1]["images"].dtype == np.uint8


def test_records_larger_than_a_byte_can_count(tmp_path):
    # Lengths of 2**7, 2**14 and 2**21 take one more byte each.
    for side in (3, 24, 80, 500):
        specs = {"s": (None, tf.TensorSpec([None, side, side, 3], name="images"))}
        warmup.write(tmp_path, "ü" * side, specs, (side, side, 3))
        for name, signature, inputs in requests(tmp_path):
            assert (name, signature) == ("ü" * side, "s")
            assert inputs["images"].shape[1:] == (side, side, 3)
