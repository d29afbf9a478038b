"""A server process and small models for the tests of the server and its page."""

import base64
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import keras
import numpy as np
import tensorflow as tf
from networks import make_backbone
from PIL import Image

import keras_delta as kd
from keras_delta.serving.export import export_for_serving

SCRIPT = Path(__file__).parents[2] / "examples" / "serve.py"
NAMES = ["blüte", "coin", "moon"]


def tiny_model():
    """Three classes, 16 x 16 pixels; scores are far from 0 and 1."""
    model = kd.attach_head(make_backbone(), classes=len(NAMES))
    kernel, bias = model.layers[-1].get_weights()
    kernel = np.random.default_rng(0).normal(size=kernel.shape) / 100
    model.layers[-1].set_weights([kernel, bias])
    return model


def export_tiny(folder):
    """Write `tiny_model`."""
    return export_for_serving(tiny_model(), folder, NAMES)


class Brightest(tf.Module):
    """Which color an image has most of, in a few operations: quick to load.

    It has the signatures that the server needs, and of each label the version.
    """

    def __init__(self, version):
        super().__init__()
        self.names = tf.constant([f"{c} {version}" for c in ("red", "green", "blue")])
        self.weight = tf.Variable(0.1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def prepare(self, image_bytes):
        def one(contents):
            image = tf.cast(tf.io.decode_jpeg(contents, 3), tf.float32)
            return tf.image.resize(image, [4, 4])

        return {"images": tf.map_fn(one, image_bytes, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 3], name="images")])
    def classify(self, images):
        scores = tf.nn.softmax(self.weight * tf.reduce_mean(images, axis=[1, 2]))
        scores, ids = tf.math.top_k(scores, 2)
        labels = tf.gather(self.names, ids)
        return {"scores": scores, "class_ids": tf.cast(ids, tf.int64), "labels": labels}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def classify_bytes(self, image_bytes):
        return self.classify(self.prepare(image_bytes)["images"])


def export_brightest(folder):
    """Write a `Brightest` as a version, `NAME/version`."""
    model = Brightest(folder.name)
    signatures = {
        "serving_default": model.classify_bytes,
        "classify_bytes": model.classify_bytes,
        "prepare": model.prepare,
        "classify_prepared": model.classify,
    }
    tf.saved_model.save(model, str(folder), signatures)
    (folder / "assets" / "labels.txt").parent.mkdir(exist_ok=True)
    (folder / "assets" / "labels.txt").write_text("red\ngreen\nblue\n")


def export_red_or_blue(folder, **options):
    """Two classes that see what is red and what is blue, each at its place."""
    image = keras.Input((32, 32, 3), name="image")
    conv = keras.layers.Conv2D(2, 4, strides=4, use_bias=False, activation="relu")
    x = keras.layers.GlobalAveragePooling2D()(conv(image))
    head = keras.layers.Dense(2, name="head")
    model = keras.Model(image, head(x), name="red_or_blue")
    kernel = np.zeros((4, 4, 3, 2), "float32")
    kernel[..., 0] = [1, 0, -1]  # red, not blue
    kernel[..., 1] = [-1, 0, 1]
    conv.set_weights([kernel / 16 / 255])
    head.set_weights([4 * np.eye(2), np.zeros(2)])
    return export_for_serving(model, folder, ["red", "blue"], **options)


def encoded(pixels, form="JPEG", **options):
    """A file of an image, as bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def photo(seed, height=20, width=24, form="JPEG"):
    """A file of random pixels."""
    rng = np.random.default_rng(seed)
    return encoded(rng.integers(0, 256, (height, width, 3), np.uint8), form)


def b64(contents):
    """What JSON has for bytes."""
    return {"b64": base64.b64encode(contents).decode()}


class Server:
    """A process of `examples/serve.py` on a free port.

    Attributes:
        client: `httpx.Client` of it.
        predict: path of `:predict`.
        url: of the server.
    """

    def __init__(self, folder, *arguments, wait=True):
        self._lines = []
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self._begun = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.name = Path(folder).name
        self.predict = f"/v1/models/{self.name}:predict"
        self.client = None
        if wait:
            try:
                self._connect()
            except BaseException:
                self.kill()
                raise

    @property
    def output(self):
        """All that it has printed so far."""
        return "".join(self._lines)

    def metric(self, line):
        """The value behind the beginning of a line in `/metrics`."""
        for found in self.client.get("/metrics").text.splitlines():
            if found.startswith(f"{line} "):
                return float(found.rpartition(" ")[2])
        raise AssertionError(f"no metric {line}")

    def wait_for_version(self, version, seconds=60):
        """Until it serves this version."""
        path = f"/v1/models/{self.name}/versions/{version}/metadata"
        until(lambda: self.client.get(path).status_code == 200, seconds, self)

    def ended(self, seconds=40):
        """Its exit status, once it has ended by itself."""
        status = self.process.wait(seconds)
        self._reader.join(10)
        return status

    def kill(self):
        """End it, however it is."""
        if self.client is not None:
            self.client.close()
        with contextlib.suppress(OSError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def _connect(self):
        until(lambda: self._begun.is_set(), 120, self)
        self.url = re.search(r"http://\S+", self.output)[0]
        self.client = httpx.Client(base_url=self.url, timeout=60)
        until(lambda: self.client.get("/readyz").status_code == 200, 120, self)

    def _read(self):
        for line in self.process.stdout:
            self._lines.append(line)
            if line.startswith("Serving"):
                self._begun.set()


def until(condition, seconds, server):
    """Wait for a condition, as long as the server lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert server.process.poll() is None, f"the server ended:\n{server.output}"
        assert time.monotonic() < end, f"not within {seconds} s:\n{server.output}"
        time.sleep(0.05)
