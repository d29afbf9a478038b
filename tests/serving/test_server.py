"""A real server process: answers, statuses of bad requests, batching, metrics."""

import gzip
import json
import re
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from served import NAMES, Server, b64, encoded, photo, until

from keras_delta.data.decode import read_image

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(tiny):
    found = Server(
        tiny,
        *("--max-body-mb", "1", "--max-pixels", "100000", "--max-images", "8"),
        *("--queue", "32", "--max-batch-size", "4", "--batch-timeout-ms", "20"),
    )
    yield found
    found.kill()


@pytest.fixture(scope="module")
def saved_model(tiny):
    return tf.saved_model.load(str(tiny / "1"))


def expected(saved_model, contents, signature="serving_default"):
    found = saved_model.signatures[signature](image_bytes=tf.constant(contents))
    return {k: v.numpy() for k, v in found.items()}


def same(rows, wanted):
    assert [r["labels"] for r in rows] == [
        [label.decode() for label in row] for row in wanted["labels"]
    ]
    assert [r["class_ids"] for r in rows] == wanted["class_ids"].tolist()
    scores = [r["scores"] for r in rows]
    np.testing.assert_allclose(scores, wanted["scores"], atol=1e-6)


# Right answers.


def test_rows(server, saved_model):
    files = [photo(i, form=f) for i, f in enumerate(["JPEG", "PNG", "WEBP", "GIF"])]
    rows = [b64(files[0]), {"image_bytes": b64(files[1])}, *map(b64, files[2:])]
    answer = server.client.post(server.predict, json={"instances": rows})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["model-version"] == "1"
    assert list(answer.json()) == ["predictions"]
    same(answer.json()["predictions"], expected(saved_model, files))


def frames(form):
    pixels = [Image.new("RGB", (20, 20), (i, 90, 0)) for i in range(0, 200, 50)]
    return encoded(np.array(pixels[0]), form, save_all=True, append_images=pixels[1:])


def test_animations_are_answered_by_their_first_frame(server, saved_model):
    files = [frames("GIF"), frames("WEBP")]
    body = {"instances": list(map(b64, files))}
    answer = server.client.post(server.predict, json=body)
    first = [encoded(read_image(file), "PNG") for file in files]
    same(answer.json()["predictions"], expected(saved_model, first))


def test_columns(server, saved_model):
    files = [photo(i) for i in range(3)]
    wanted = expected(saved_model, files)
    for inputs in ({"image_bytes": list(map(b64, files))}, list(map(b64, files))):
        outputs = server.client.post(server.predict, json={"inputs": inputs}).json()
        outputs = outputs["outputs"]
        assert set(outputs) == {"labels", "scores", "class_ids"}
        assert outputs["labels"] == [
            [x.decode() for x in row] for row in wanted["labels"]
        ]
        np.testing.assert_allclose(outputs["scores"], wanted["scores"], atol=1e-6)


def test_numbers(server, saved_model):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3))
    found = saved_model.signatures["classify_tensor"](
        images=tf.constant(images, tf.float32)
    )
    wanted = {k: v.numpy() for k, v in found.items()}
    for signature in ("classify_tensor", "classify_tensor_uint8"):
        body = {"signature_name": signature, "instances": images.tolist()}
        same(
            server.client.post(server.predict, json=body).json()["predictions"], wanted
        )
    body = {"signature_name": "classify_tensor", "inputs": {"images": images.tolist()}}
    outputs = server.client.post(server.predict, json=body).json()["outputs"]
    np.testing.assert_allclose(outputs["scores"], wanted["scores"], atol=1e-6)


def test_what_is_prepared_is_classified_alike(server, saved_model):
    files = [photo(i) for i in range(2)]
    body = {"signature_name": "prepare", "instances": list(map(b64, files))}
    images = server.client.post(server.predict, json=body).json()["predictions"]
    wanted = expected(saved_model, files, "prepare")["images"]
    np.testing.assert_array_equal(np.array(images, "float32"), wanted)
    body = {"signature_name": "classify_prepared", "instances": images}
    answer = server.client.post(server.predict, json=body).json()
    same(answer["predictions"], expected(saved_model, files))


@pytest.mark.parametrize("signature", ["features", "classify_ten_crop"])
def test_other_signatures(server, saved_model, signature):
    files = [photo(i) for i in range(3)]
    body = {"signature_name": signature, "inputs": list(map(b64, files))}
    outputs = server.client.post(server.predict, json=body).json()["outputs"]
    wanted = expected(saved_model, files, signature)
    assert set(outputs) == set(wanted)
    for name, value in wanted.items():
        if value.dtype != object:
            np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-5)


def test_signature_of_two_inputs(server, saved_model):
    images = expected(saved_model, [photo(0)], "prepare")["images"]
    rows = [{"images": images[0].tolist(), "class_ids": i} for i in (2, -1)]
    body = {"signature_name": "activation_map", "instances": rows}
    found = server.client.post(server.predict, json=body).json()["predictions"]
    wanted = saved_model.signatures["activation_map"](
        images=tf.constant(np.repeat(images, 2, axis=0)),
        class_ids=tf.constant([2, -1], tf.int64),
    )
    assert [f["class_ids"] for f in found] == wanted["class_ids"].numpy().tolist()
    assert found[0]["labels"] == NAMES[2]
    np.testing.assert_allclose([f["maps"] for f in found], wanted["maps"], atol=1e-5)


def test_more_images_than_a_batch(server, saved_model):
    files = [photo(i) for i in range(7)]
    body = {"instances": list(map(b64, files))}
    answer = server.client.post(server.predict, json=body).json()
    same(answer["predictions"], expected(saved_model, files))


def test_bytes_as_other_clients_send_them(server, saved_model):
    file = photo(0)
    wanted = expected(saved_model, [file])
    text = b64(file)["b64"]
    in_lines = "\n".join(re.findall(".{1,76}", text))
    for other in (in_lines, text.rstrip("=")):
        body = {"instances": [{"b64": other}]}
        answer = server.client.post(server.predict, json=body)
        same(answer.json()["predictions"], wanted)
    for kind in (None, "application/x-www-form-urlencoded", "application/json; a=b"):
        answer = server.client.post(
            server.predict,
            content=json.dumps({"instances": [b64(file)]}),
            headers={} if kind is None else {"content-type": kind},
        )
        same(answer.json()["predictions"], wanted)


def test_explain(server, saved_model):
    file = photo(3)
    path = f"/v1/models/{server.name}:explain"
    answer = server.client.post(path, json={"image_bytes": b64(file)})
    assert answer.status_code == 200
    answer = answer.json()
    wanted = saved_model.signatures["activation_map"](
        images=tf.constant(expected(saved_model, [file], "prepare")["images"]),
        class_ids=tf.constant([-1], tf.int64),
    )
    np.testing.assert_allclose(answer["maps"], wanted["maps"], atol=1e-5)
    assert answer["labels"] == [NAMES[answer["class_ids"][0]]]
    assert answer["box"] == {"left": 0, "top": 0, "width": 1, "height": 1}
    body = {"image_bytes": b64(file), "class_ids": [1, 0]}
    assert server.client.post(path, json=body).json()["class_ids"] == [1, 0]
    for ids in ([3], [], "1", [1.5], [True], [10**30], list(range(33))):
        bad = server.client.post(
            path, json={"image_bytes": b64(file), "class_ids": ids}
        )
        assert bad.status_code == 400, ids
        assert "class" in bad.json()["error"]
    for body in ({}, {"image_bytes": "x"}, {"image_bytes": b64(b"x")}, {"a": 1}):
        assert server.client.post(path, json=body).status_code == 400


def test_status_and_metadata_as_tensorflow_serving(server):
    wanted = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("/v1/models/tiny", "/v1/models/tiny/versions/1"):
        found = server.client.get(path).json()
        assert found == {"model_version_status": [wanted]}
    for path in ("/v1/models/tiny/metadata", "/v1/models/tiny/versions/1/metadata"):
        found = server.client.get(path).json()
        spec = {"name": "tiny", "signature_name": "", "version": "1"}
        assert found["model_spec"] == spec
        signatures = found["metadata"]["signature_def"]["signature_def"]
        default = signatures["serving_default"]
        assert default["method_name"] == "tensorflow/serving/predict"
        shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
        contents = default["inputs"]["image_bytes"]
        assert (contents["dtype"], contents["tensor_shape"]) == ("DT_STRING", shape)
        assert set(default["outputs"]) == {"labels", "scores", "class_ids"}


# Bad requests: status and sentence.

GOOD = b64(photo(0))
PNG = photo(1, form="PNG")


def png_of(width, height):
    """A PNG whose header alone is of this size."""
    header = b"IHDR" + struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


def rows(*values, **more):
    return json.dumps({"instances": values, **more}).encode()


def numbers(value, signature="classify_tensor"):
    return f'{{"signature_name": "{signature}", "instances": {value}}}'.encode()


WRONG = {
    "nothing": (b"", "empty"),
    "text": (b"hello", "not JSON"),
    "half": (rows(GOOD)[:-3], "not JSON"),
    "latin": (b'{"instances": "\xe4"}', "UTF-8"),
    "list": (b"[1]", "not an object"),
    "nested": (b"[" * 200_000, "nested too deeply"),
    "nested objects": (b'{"a":' * 100_000, "nested too deeply"),
    "long number": (b'{"instances": ' + b"1" * 5_000 + b"}", "JSON"),
    "duplicate keys": (b'{"instances": [], "instances": []}', "twice"),
    "neither": (b"{}", '"instances" or "inputs"'),
    "both": (rows(GOOD, inputs=[GOOD]), '"instances" or "inputs"'),
    "unknown key": (rows(GOOD, instance=1), "Unknown key 'instance'"),
    "no list": (b'{"instances": 5}', "not a list"),
    "no rows": (rows(), "empty"),
    "no columns": (b'{"inputs": {"image_bytes": []}}', "empty"),
    "column no list": (b'{"inputs": {"image_bytes": {"b64": ""}}}', "not a list"),
    "missing field": (rows(GOOD, {"image": GOOD}), "Instance 1 has no field"),
    "missing column": (b'{"inputs": {}}', "no field 'image_bytes'"),
    "further field": (rows({"image_bytes": GOOD, "x": 1}), "unknown field, 'x'"),
    "plain string": (rows(GOOD, GOOD["b64"]), "image_bytes 1 is not of the form"),
    "not base64": (rows(GOOD, {"b64": "?!"}), "image_bytes 1 is not base64"),
    "umlaut base64": (rows({"b64": "äää="}), "image_bytes 0 is not base64"),
    "number base64": (rows({"b64": 5}), "not a string"),
    "data URL": (rows({"b64": "data:image/png;base64,AA"}), "data URL"),
    "no bytes": (rows(GOOD, b64(b"")), "Image 1 is empty"),
    "no image": (rows(GOOD, b64(b"hello")), "Image 1 is not a JPEG, PNG"),
    "other format": (
        rows(b64(photo(0, form="BMP"))),
        "Image 0 is not a JPEG, PNG",
    ),
    "truncated JPEG": (rows(GOOD, b64(photo(0)[:-200])), "Image 1 is damaged"),
    "truncated PNG": (rows(b64(PNG[:-300])), "Image 0 is damaged"),
    "truncated for features": (
        rows(GOOD, b64(PNG[:-300]), signature_name="features"),
        "Image 1 is damaged",
    ),
    "50 megapixels": (
        rows(GOOD, b64(png_of(50_000, 1_000))),
        "Image 1 has 50000 x 1000 pixels",
    ),
    "bomb": (
        rows(b64(png_of(60_000, 60_000))),
        "more than 100,000 pixels",
    ),
    "too many": (rows(*[GOOD] * 9), "9 images exceed the limit of 8"),
    "unknown signature": (rows(GOOD, signature_name="x"), "Known signatures: activ"),
    "signature no text": (rows(GOOD, signature_name=[1]), "Unknown signature '[1]'"),
    "NaN": (numbers("[[[[NaN, 1, 1]]]]"), "not finite"),
    "Infinity": (numbers("[[[[-Infinity, 1, 1]]]]"), "not finite"),
    "1e999": (numbers("[[[[1e999, 1, 1]]]]"), "not finite"),
    "1e300": (numbers("[[[[1, 1, 1]]], [[[1e300, 1, 1]]]]"), "'images' 1 contains"),
    "256 for uint8": (numbers("[[[[256, 1, 1]]]]", "classify_tensor_uint8"), "uint8"),
    "half for uint8": (
        numbers("[[[[0.5, 1, 1]]]]", "classify_tensor_uint8"),
        "integers",
    ),
    "strings": (numbers('[[[["1", "2", "3"]]]]'), "takes numbers"),
    "nulls": (numbers("[[[[null, 1, 1]]]]"), "takes numbers"),
    "truths": (numbers("[[[[true, true, true]]]]"), "takes numbers"),
    "ragged": (numbers("[[[[1, 2, 3]]], [[[1, 2]]]]"), "same shape"),
    "big integer": (numbers(f"[[[[{10**400}, 1, 1]]]]"), "takes numbers"),
    "two channels": (numbers("[[[[1, 2]]]]"), "shape (1, 1, 1, 2). Expected (any"),
    "no pixels": (numbers("[[]]"), "shape"),
    "scalar": (numbers("[1]"), "shape"),
    "70 deep": (numbers("[" * 70 + "1" + "]" * 70), "same shape"),
    "other size": (numbers("[[[[1, 2, 3]]]]", "classify_prepared"), "(any, 16, 16, 3)"),
    "bytes for numbers": (
        rows(GOOD, signature_name="classify_tensor"),
        "takes numbers",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_bad_request_gets_400_and_a_sentence(server, kind):
    body, text = WRONG[kind]
    answer = server.client.post(server.predict, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert text in answer.json()["error"]
    assert answer.json()["error"].endswith((".", "}", '"'))


def test_too_large(server):
    def chunks():
        for _ in range(30):
            yield b"x" * 100_000

    for content in (b"x" * 1_000_001, b"x" * 3_900_000, chunks()):
        answer = server.client.post(server.predict, content=content, headers=JSON)
        assert answer.status_code == 413
        assert "larger than 1 MB" in answer.json()["error"]


def test_other_statuses(server):
    client, good = server.client, rows(GOOD)

    def post(path, content=good, **headers):
        headers = headers or JSON
        answer = client.post(path, content=content, headers=headers)
        return answer.status_code, answer.json()["error"]

    status, text = post(server.predict, **{"content-type": "image/jpeg"})
    assert status == 415 and "application/json" in text
    status, text = post("/v1/models/other:predict")
    assert status == 404 and "Unknown model 'other'. This server has 'tiny'" in text
    status, text = post("/v1/models/tiny/versions/7:predict")
    assert status == 404 and "Version '7'" in text
    assert post("/v1/models/tiny/versions/x:predict")[0] == 404
    assert post("/v1/models/tiny:classify")[0] == 404
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/v1/models/tiny/versions/7").status_code == 404
    assert client.get("/nothing").status_code == 404
    for path in (server.predict, "/v1/models/tiny/versions/1:predict"):
        answer = client.get(path)
        assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    status, text = post("/v1/models/tiny")
    assert status == 405 and "POST is not allowed" in text
    zipped = gzip.compress(good)
    headers = {**JSON, "content-encoding": "gzip"}
    assert post(server.predict, zipped, **headers)[0] == 400


@pytest.mark.slow
def test_a_bad_image_fails_no_other_request(server, saved_model):
    good, wanted = photo(5), expected(saved_model, [photo(5)])
    bodies = [rows(b64(good)), rows(b64(good), b64(b"no")), rows(b64(good[:-100]))] * 8

    def post(body):
        return server.client.post(server.predict, content=body, headers=JSON)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(post, bodies))
    assert [a.status_code for a in answers] == [200, 400, 400] * 8
    for answer in answers[::3]:
        same(answer.json()["predictions"], wanted)


def test_a_full_queue_refuses_and_recovers(server):
    address = server.client.base_url.host, server.client.base_url.port
    head = f"POST {server.predict} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    held = [socket.create_connection(address) for _ in range(32)]
    for connection in held:
        connection.sendall(head.encode())
    until(lambda: server.metric("keras_delta_queue_length") == 32, 20, server)
    answer = server.client.post(server.predict, content=rows(GOOD), headers=JSON)
    assert answer.status_code == 503
    assert "32 requests are already waiting" in answer.json()["error"]
    assert int(answer.headers["retry-after"]) >= 1
    assert server.client.get("/readyz").status_code == 200  # not refused
    for connection in held:
        connection.close()
    until(lambda: server.metric("keras_delta_queue_length") == 0, 20, server)
    answer = server.client.post(server.predict, content=rows(GOOD), headers=JSON)
    assert answer.status_code == 200


@pytest.mark.slow
def test_requests_are_batched(server, saved_model):
    files = [photo(i) for i in range(40)]
    wanted = expected(saved_model, files)
    before = [server.metric(f"keras_delta_batch_size_{k}") for k in ("count", "sum")]

    def post(file):
        answer = server.client.post(server.predict, json={"instances": [b64(file)]})
        return answer.json()["predictions"][0]

    with ThreadPoolExecutor(16) as pool:
        same(list(pool.map(post, files)), wanted)
    after = [server.metric(f"keras_delta_batch_size_{k}") for k in ("count", "sum")]
    batches, images = np.subtract(after, before)
    assert images == 40
    assert 10 <= batches < 30


def test_metrics(server):
    ok = 'keras_delta_requests_total{endpoint="predict",method="POST",status="200"}'
    seconds = 'keras_delta_request_seconds_count{endpoint="predict"}'
    server.client.post(server.predict, content=rows(GOOD), headers=JSON)
    before = server.metric(ok), server.metric(seconds)
    server.client.post(server.predict, content=rows(GOOD), headers=JSON)
    assert (server.metric(ok), server.metric(seconds)) == (before[0] + 1, before[1] + 1)
    assert server.metric("keras_delta_model_version") == 1
    assert server.metric("keras_delta_queue_length") == 0
    assert server.metric("keras_delta_requests_running") == 0
    assert server.metric("process_resident_memory_bytes") > 1e8
    page = server.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")


def test_health_and_quiet_log(server):
    assert server.client.get("/healthz").json() == {"status": "alive"}
    assert server.client.get("/readyz").json() == {"status": "ready", "version": "1"}
    lines = server.output.splitlines()
    assert lines[0] == f"Serving 'tiny' at {server.url} (Ctrl-C stops)"
    assert lines[1].endswith(server.url)
    assert lines[2].endswith(f"to {server.url}/v1/models/tiny:predict")
    pattern = r"\d\d:\d\d:\d\d (\d{3} (GET|POST) /\S*, \d+ ms(, .*)?|version 1 .*)"
    assert [line for line in lines[3:] if not re.fullmatch(pattern, line)] == []
