"""One version of a model in memory: a SavedModel, batched and warmed up."""

import contextlib
import io
import itertools
import threading
import time

import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from keras_delta import _disk
from keras_delta.data.augment import resize_side
from keras_delta.data.decode import BadImageError
from keras_delta.serving.reencoding import as_png
from keras_delta.serving.server import images
from keras_delta.serving.server.problems import bad, busy, too_slow

LABELS = "assets/labels.txt"
FILE, CARD = "saved_model.pb", "model_card.json"
DEFAULT, BYTES, PREPARED = "serving_default", "classify_bytes", "classify_prepared"
PREPARE, MAP, TEN_CROP = "prepare", "activation_map", "classify_ten_crop"
ENCODED = "image_bytes"
LARGE = 4_000_000  # pixels; beyond, images are decoded one after the other
_numbers = itertools.count()
_large = threading.Lock()


class Model:
    """A SavedModel of `export_for_serving`, ready for calls from several threads.

    Args:
        folder: `Path`, `NAME/version`.
        settings: `Settings`.
        on_batch: called with the number of images each time the network has run.

    Raises:
        Exception: any error of TensorFlow if the SavedModel cannot be read.
    """

    def __init__(self, folder, settings, on_batch):
        self.version = int(folder.name)
        self._settings, self._on_batch = settings, lambda size: None
        self._loaded = tf.saved_model.load(str(folder))
        self._functions = dict(self._loaded.signatures)
        for needed in (DEFAULT, BYTES, PREPARE, PREPARED):
            if needed not in self._functions:
                raise ValueError(
                    f"it has no signature {needed!r}; the server requires models from "
                    "`keras_delta.export_for_serving`"
                )
        self.metadata = _metadata(folder)
        self._protocol = _protocol(folder)
        self._classes = len((folder / LABELS).read_bytes().splitlines())
        (spec,) = self.inputs(PREPARED).values()
        self._size, self._channels = tuple(spec.shape[1:3]), spec.shape[3]
        self._batched = _batched(self._functions[PREPARED], spec, settings)
        self._warm_up()
        self._on_batch = on_batch

    @property
    def has_maps(self):
        """Whether it can show where it sees a class."""
        return MAP in self._functions

    def inputs(self, signature):
        """Dict from input names of a signature to `tf.TensorSpec`s."""
        if not isinstance(signature, str) or signature not in self._functions:
            known = ", ".join(sorted(self._functions))
            text = f"Unknown signature {str(signature)[:100]!r}."
            raise bad(f"{text} Known signatures: {known}.")
        return self._functions[signature].structured_input_signature[1]

    def run(self, signature, tensors, deadline):
        """Dict of arrays that a signature returns for a dict of arrays.

        Raises:
            Problem: 400 for bad images; 504 after `deadline`, of `time.monotonic()`;
                503 if too many requests are waiting.
        """
        encoded = tensors.get(ENCODED)
        if signature == BYTES or (signature == DEFAULT and encoded is not None):
            prepared = self._one_by_one(PREPARE, encoded, deadline)["images"]
            return self.classify(prepared)
        if signature == PREPARED:
            return self.classify(tensors["images"])
        if encoded is not None:
            return self._one_by_one(signature, encoded, deadline)
        if signature != MAP:  # which takes prepared images
            for given in tensors.values():
                self._check_resized(*given.shape[1:3], "An image", signature)
        return self._direct(signature, tensors)

    def classify(self, prepared):
        """The answer of `classify_prepared`, batched with other requests."""
        with _computing():
            *outputs, places, sizes = self._batched(tf.constant(prepared))
        # The first image of a batch reports its size.
        for size in sizes.numpy()[places.numpy() == 0]:
            self._on_batch(int(size))
        names = sorted(self._functions[PREPARED].structured_outputs)
        return {k: v.numpy() for k, v in zip(names, outputs, strict=True)}

    def explain(self, contents, class_ids, deadline):
        """Where in a photo, the bytes of a file, the network sees classes.

        The answer is that of `activation_map` plus `box`: the part of the upright photo
        that the maps cover, as fractions of its width and height.
        """
        if not self.has_maps:
            raise bad("This model has no maps before its classifier to explain with.")
        for i in class_ids:
            if i >= self._classes:
                raise bad(f"Unknown class {i}: the model has {self._classes} classes.")
        height, width = images.size(contents, self._settings.max_pixels, "Image 0")
        prepared = self._one_by_one(PREPARE, [contents], deadline)["images"]
        repeated = np.repeat(prepared, len(class_ids), axis=0)
        maps = self._direct(MAP, {"images": repeated, "class_ids": class_ids})
        return {**maps, "box": _box(height, width, self._size, self._protocol)}

    def _one_by_one(self, signature, encoded, deadline):
        """Answers to encoded images, one at a time; an error names the bad image."""
        pixels = [
            self._pixels(contents, f"Image {i}", signature)
            for i, contents in enumerate(encoded)
        ]
        answers = []
        for i, count in enumerate(pixels):
            if time.monotonic() > deadline:
                raise too_slow(self._settings)
            with _large if count > LARGE else contextlib.nullcontext():
                answers.append(self._of_file(signature, encoded[i], f"Image {i}"))
        return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}

    def _pixels(self, contents, where, signature):
        """Pixels of an encoded image, or of the resized one if it has more."""
        height, width = images.size(contents, self._settings.max_pixels, where)
        return max(height * width, self._check_resized(height, width, where, signature))

    def _check_resized(self, height, width, where, signature):
        """Pixels of a resized image; a thin strip becomes a large one."""
        limit = self._settings.max_pixels
        protocol = "improved" if signature == TEN_CROP else self._protocol
        tall, wide = _resized(height, width, self._size, protocol)
        if tall * wide > limit:
            raise bad(
                f"{where} has {width} x {height} pixels, which become {wide} x {tall} "
                f"for the model, more than the limit of {limit:,}. Crop the image."
            )
        return tall * wide

    def _of_file(self, signature, contents, where):
        """The answer to one file; if TensorFlow cannot decode it, Pillow does."""
        with _computing():
            if not contents.startswith(b"GIF"):  # it would read all frames
                with contextlib.suppress(tf.errors.InvalidArgumentError):
                    return self._answer(signature, {ENCODED: [contents]})
            try:
                return self._answer(signature, {ENCODED: [as_png(contents)]})
            except (BadImageError, tf.errors.InvalidArgumentError):
                text = f"{where} is damaged or truncated: it cannot be decoded."
                raise bad(text) from None

    def _direct(self, signature, tensors):
        with _computing():
            return self._answer(signature, tensors)

    def _answer(self, signature, tensors):
        inputs = {
            name: tf.constant(tensors[name], spec.dtype)
            for name, spec in self.inputs(signature).items()
        }
        answer = self._functions[signature](**inputs)
        return {name: value.numpy() for name, value in answer.items()}

    def _warm_up(self):
        """Run once, so that no user waits for TensorFlow's slow first call."""
        deadline = time.monotonic() + 3600
        stream = io.BytesIO()
        Image.new("RGB", self._size[::-1]).save(stream, "JPEG")
        self.run(BYTES, {ENCODED: [stream.getvalue()]}, deadline)
        for batch in {1, self._settings.max_batch_size}:
            self.classify(np.zeros((batch, *self._size, self._channels), np.float32))
        if self.has_maps:
            self.explain(stream.getvalue(), [-1], deadline)
        (name,) = self.inputs(DEFAULT)
        if name != ENCODED:
            image = np.zeros((1, *self._size, self._channels), np.float32)
            self._direct(DEFAULT, {name: image})


def _batched(function, spec, settings):
    """A signature whose calls from several threads are batched together.

    It uses TensorFlow Serving's batching kernel. Besides the signature's outputs in the
    order of their names, it returns each image's place in the batch and the batch size.
    """

    @tf.function(input_signature=[spec], autograph=False)
    def whole(batch):
        answer = function(**{spec.name: batch})
        size = tf.shape(batch)[0]
        outputs = [answer[name] for name in sorted(answer)]
        return [*outputs, tf.range(size), tf.fill([size], size)]

    whole = whole.get_concrete_function()
    largest = settings.max_batch_size
    sizes = range(1, largest + 1)
    if tf.config.list_physical_devices("GPU"):
        # Kernels are chosen again for each size, so there are few of them.
        sizes = [2**i for i in range(largest.bit_length()) if 2**i < largest]
        sizes = [*sizes, largest]
    # Calls of the same name are batched together, so each model has a separate one.
    name = f"keras_delta_{next(_numbers)}"

    @tf.function(input_signature=[spec], autograph=False)
    def batched(batch):
        return tf.raw_ops.BatchFunction(
            in_tensors=[batch],
            captured_tensors=whole.captured_inputs,
            f=whole,
            Tout=[o.dtype for o in whole.outputs],
            num_batch_threads=1,  # while it computes, the next batch gathers
            max_batch_size=max(largest, settings.max_images),
            allowed_batch_sizes=list(sizes),
            enable_large_batch_splitting=True,
            batch_timeout_micros=int(settings.batch_timeout_ms * 1000),
            max_enqueued_batches=settings.queue
            * max(1, settings.max_images // largest),
            shared_name=name,
            batching_queue=name,
        )

    return batched.get_concrete_function()


@contextlib.contextmanager
def _computing():
    """Turns TensorFlow's errors into answers."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.ResourceExhaustedError):
        raise busy("The server is overloaded. Try again.") from None
    except tf.errors.InvalidArgumentError as error:
        lines = error.message.removeprefix("Graph execution error:").split("\n")
        text = next((line for line in lines if line.strip()), "")[:300]
        raise bad(f"The model does not accept this input: {text}") from None


def _metadata(folder):
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / FILE).read_bytes())
    options = {
        "preserving_proto_field_name": True,
        "always_print_fields_with_no_presence": True,
    }
    signatures = {
        key: MessageToDict(value, **options)
        for key, value in saved.meta_graphs[0].signature_def.items()
    }
    spec = {"name": folder.parent.name, "signature_name": "", "version": folder.name}
    return {
        "model_spec": spec,
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _protocol(folder):
    try:
        return _disk.read_json(folder / CARD)["serving"]["protocol"]
    except (KeyError, TypeError):
        return "default"


def _resized(height, width, size, protocol):
    """(height, width) of a photo resized by `keras_delta.data.augment.Protocol`."""
    if protocol != "improved":
        return size
    full = [resize_side(side) for side in size]
    scale = max(full[0] / height, full[1] / width)
    return tuple(
        max(round(side * scale), least)
        for side, least in zip((height, width), full, strict=True)
    )


def _box(height, width, size, protocol):
    """The part of a photo that the network sees, as fractions of width and height.

    For "default" it is the whole photo; for "improved" the centre of the resized one.
    """
    (tall, wide), (h, w) = _resized(height, width, size, protocol), size
    return {
        "left": (wide - w) // 2 / wide,
        "top": (tall - h) // 2 / tall,
        "width": w / wide,
        "height": h / tall,
    }
