"""Limits of the server without a process: time, readiness, memory, crops, settings."""

import asyncio
import socket
import sys
import threading
import time

import httpx
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from served import b64, encoded, export_brightest, export_red_or_blue, photo

from keras_delta.serving.server import answers, app, command, images
from keras_delta.serving.server.model import Model
from keras_delta.serving.server.problems import Problem
from keras_delta.serving.server.settings import Settings
from keras_delta.serving.server.versions import Versions

PREDICT = "/v1/models/tiny:predict"
BODY = {"instances": [b64(photo(0))]}


class Fake:
    """A model that does as `run` says."""

    version = 1

    def __init__(self, run):
        self.run = run

    def inputs(self, signature):
        return {"image_bytes": tf.TensorSpec([None], tf.string)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    export_brightest(folder / "1")
    return folder


def ask(service_app, *requests):
    """Answers of an application that is not started."""

    async def all_of_them():
        transport = httpx.ASGITransport(service_app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://x"
        ) as client:
            return [
                await client.request(method, path, **more)
                for method, path, more in requests
            ]

    return asyncio.run(all_of_them())


def test_not_ready_before_a_model_is_loaded_and_when_it_stops(folder):
    found = app(folder)
    service = found.state.service
    asked = [
        ("GET", "/readyz", {}),
        ("POST", PREDICT, {"json": BODY}),
        ("GET", "/v1/models/tiny/metadata", {}),
    ]
    # Whatever still comes in while it stops is answered, but no one is asked to come.
    for stopping, refused in (False, asked), (True, asked[:1]):
        service.stopping = stopping
        for answer in ask(found, *refused):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
        (alive,) = ask(found, ("GET", "/healthz", {}))
        assert alive.status_code == 200
        service.versions.current = Fake(None)


def test_an_answer_that_takes_too_long(folder):
    found = app(folder, timeout=0.2, queue=1)
    service = found.state.service
    looked_at = threading.Event()
    service.versions.current = Fake(lambda *_: looked_at.wait(30))
    first, second = ask(found, *[("POST", PREDICT, {"json": BODY})] * 2)
    assert first.status_code == 504
    assert "longer than 0.2 s" in first.json()["error"]
    assert second.status_code == 503  # its thread still holds the place
    assert b"requests_running 1.0" in service.metrics.text()[0]
    looked_at.set()
    end = time.monotonic() + 10
    while b"requests_running 1.0" in service.metrics.text()[0]:
        assert time.monotonic() < end
        time.sleep(0.02)
    service.versions.current = Fake(lambda *_: {"y": np.ones((1, 2))})
    (third,) = ask(found, ("POST", PREDICT, {"json": BODY}))
    assert third.json() == {"predictions": [[1.0, 1.0]]}


def test_a_fault_of_the_server_is_500_in_json(folder):
    found = app(folder)
    found.state.service.versions.current = Fake(lambda *_: 1 / 0)
    (answer,) = ask(found, ("POST", PREDICT, {"json": BODY}))
    assert answer.status_code == 500
    assert "see the server's log" in answer.json()["error"]


def test_no_page(folder):
    with_page, without = app(folder), app(folder, page=False)
    assert ask(with_page, ("GET", "/", {}))[0].status_code == 200
    assert ask(without, ("GET", "/", {}))[0].status_code == 404


def test_binary_outputs_are_told_as_tensorflow_serving_does(folder):
    found = app(folder)
    values = {"x": np.array([0.5]), "y_bytes": np.array([b"\xff"], object)}
    found.state.service.versions.current = Fake(lambda *_: values)
    (answer,) = ask(found, ("POST", PREDICT, {"json": BODY}))
    assert answer.text == '{"predictions":[{"x":0.5,"y_bytes":{"b64":"/w=="}}]}'


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_outputs_that_json_has_not(folder, number):
    """Not the word NaN, which most clients cannot read."""
    found = app(folder)
    values = {"ids": np.array([1, 2]), "x": np.array([[0.5, 1], [0.5, number]])}
    found.state.service.versions.current = Fake(lambda *_: values)
    (answer,) = ask(found, ("POST", PREDICT, {"json": BODY}))
    assert answer.status_code == 500
    assert answer.json()["error"] == (
        "The model's output 'x' is not finite (NaN or infinite) for image 1, counted "
        "from 0. Send only the others."
    )
    with pytest.raises(ValueError, match="JSON"):
        answers.encoded({"x": number})


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="`max_batch_size`"):
        Settings(max_batch_size=0)
    with pytest.raises(ValueError, match="`timeout`"):
        Settings(timeout=0.0)
    assert Settings(batch_timeout_ms=0).batch_timeout_ms == 0


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(ImportError, match=r'pip install "keras_delta\[serving\]"'):
        app(folder)


def test_answers_are_sent_at_once():
    found = command._socket("127.0.0.1", 0)
    assert found.proto == socket.IPPROTO_TCP  # what asyncio turns Nagle's off for
    found.close()


def test_a_link_gives_the_model_its_name(folder, tmp_path):
    (tmp_path / "photos").symlink_to(folder)
    assert app(tmp_path / "photos").state.service.name == "photos"


def test_a_folder_that_cannot_be_read_at_first(tmp_path, caplog):
    failed = []
    versions = Versions(
        tmp_path / "gone", None, 0.01, None, lambda: failed.append(True)
    )
    versions.start()
    end = time.monotonic() + 20
    while caplog.text.count("cannot read") < 3 and time.monotonic() < end:
        time.sleep(0.01)
    versions.stop()
    assert caplog.text.count("cannot read") >= 3
    assert failed == [True]


# Headers of images.


def test_pixels_are_counted():
    content = photo(0, form="WEBP")
    assert images.size(content, 20 * 24, "Image 0") == (20, 24)
    with pytest.raises(
        Problem, match="Image 0 has 24 x 20 pixels, more than the limit of 479"
    ):
        images.size(content, 20 * 24 - 1, "Image 0")


def test_a_frame_that_is_larger_than_its_gif_counts():
    gif = encoded(np.zeros((4, 4, 3), np.uint8), "GIF")
    at = gif.index(b"\x2c" + bytes(4)) + 5
    gif = gif[:at] + (60_000).to_bytes(2, "little") * 2 + gif[at + 4 :]
    with pytest.raises(Problem, match="more than"):
        images.size(gif, 40_000_000, "Image 0")


def test_pixels_are_not_decoded(monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    contents = [photo(0, form=f) for f in ("JPEG", "PNG", "WEBP", "GIF")]
    monkeypatch.setattr(Image.Image, "load", load)
    for content in contents:
        assert images.size(content, 1000, "Image 0") == (20, 24)


# Where the map is.


@pytest.fixture(scope="module")
def red_or_blue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "colors"
    sizes = []
    model = Model(
        export_red_or_blue(folder, protocol="improved"), Settings(), sizes.append
    )
    assert sizes == []  # what warmed it up is not counted
    return model


def test_a_strip_that_would_become_huge_is_refused(red_or_blue):
    strip = encoded(np.zeros((1, 40_000, 3), np.uint8))
    inputs, deadline = {"image_bytes": [strip]}, time.monotonic() + 60
    text = "Image 0 has 40000 x 1 pixels, which become 1480000 x 37 for the model"
    for signature in ("classify_bytes", "classify_ten_crop"):
        with pytest.raises(Problem, match=text):
            red_or_blue.run(signature, inputs, deadline)
    with pytest.raises(Problem, match=text):
        red_or_blue.explain(strip, [0], deadline)
    thin = {"images": np.zeros((1, 1, 40_000, 3), np.uint8)}
    with pytest.raises(Problem, match="An image has 40000 x 1 pixels, which become"):
        red_or_blue.run("classify_tensor_uint8", thin, deadline)


def test_an_answer_of_too_many_numbers_is_refused(folder, monkeypatch):
    found = app(folder)
    found.state.service.versions.current = Fake(lambda *_: {"y": np.ones((1, 9))})
    for most, status in ((9, 200), (8, 400)):
        monkeypatch.setattr(answers, "MOST_NUMBERS", most)
        (answer,) = ask(found, ("POST", PREDICT, {"json": BODY}))
        assert answer.status_code == status
    assert "9 numbers, more than 8. Send fewer images" in answer.json()["error"]


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_box_of_a_centre_crop(red_or_blue, orientation):
    model = red_or_blue
    pixels = np.full((80, 160, 3), 90, np.uint8)
    pixels[:, 92:104] = [220, 20, 20]  # a red bar, its middle at 98 of 160
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    if orientation == 6:
        pixels = np.rot90(pixels)
    contents = encoded(pixels, quality=95, exif=exif)
    found = model.explain(contents, [0], time.monotonic() + 60)
    # 32 pixels of an edge that is resized to 37 (32 * 8 / 7), 74 wide: by hand.
    assert found["box"] == pytest.approx(
        {"left": 21 / 74, "top": 2 / 37, "width": 32 / 74, "height": 32 / 37}
    )
    columns = found["maps"][0].sum(axis=0)
    middle = (columns * (np.arange(len(columns)) + 0.5)).sum() / columns.sum()
    share = middle / len(columns) * found["box"]["width"] + found["box"]["left"]
    assert share == pytest.approx(98 / 160, abs=0.02)
