"""The signatures of a served classifier, written as a SavedModel."""

import tempfile
from pathlib import Path

import keras
import tensorflow as tf

from keras_delta import _tasks
from keras_delta.data.augment import Protocol
from keras_delta.serving import class_names
from keras_delta.serving.decoding import decode


class Endpoints:
    """Functions of a served classifier, from images to class names.

    Args:
        network: `Network`.
        names: list of strings, the names of the classes by class number.
        options: `Options`, fitted to the network.

    Attributes:
        class_names, network, options, target: what is served.
        logits: `tf.function` of prepared images.
        task: the kind of answer, see `keras_delta._answers.tasks`.
        temperature: divisor of the logits before scores are computed.
        thresholds: list of the scores from which each of several labels is on; None
            for other tasks.
        chosen_by: the origin of the thresholds, a word for the card.
    """

    def __init__(self, network, names, options):
        self.network, self.target = network, network.target
        self.class_names, self.options = names, options
        self._size, self.temperature = options.image_size, 1.0
        self._channels, self.task = network.channels, network.task
        several = self.task.name == _tasks.MULTILABEL
        self.thresholds = [0.5] * len(names) if several else None
        self.chosen_by = "default"
        self._single = Protocol(options.protocol, self._size)
        self._ten = Protocol("improved", self._size, ten_crop=True)
        # One function for all signatures, so that each is traced and in the file once.
        self.logits = tf.function(
            network.logits,
            input_signature=[tf.TensorSpec([None, *self._size, self._channels])],
            autograph=False,
        )
        self._decode = tf.function(
            decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
        )

    @property
    def image_shape(self):
        """Shape of one prepared image."""
        return (*self._size, self._channels)

    def write(self, folder):
        """Write the SavedModel to an empty folder, with `labels.txt` as an asset."""
        archive = keras.export.ExportArchive()
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / class_names.FILE
            path.write_text(class_names.text(self.class_names), "utf-8")
            self._table = tf.lookup.StaticHashTable(
                tf.lookup.TextFileInitializer(
                    str(path),
                    tf.int64,
                    tf.lookup.TextFileIndex.LINE_NUMBER,
                    tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                ),
                default_value="",
            )
            # Keras's `track(model)` would write every weight twice.
            archive.variables.extend(map(_stored, self.target.variables))
            archive.track(self._table)
            for name, (function, *signature) in self.functions().items():
                archive.add_endpoint(name, function, signature)
            archive.write_out(str(folder), verbose=False)

    def functions(self):
        """Dict from names of signatures to (function, its `tf.TensorSpec`s)."""
        contents = tf.TensorSpec([None], tf.string, name="image_bytes")
        shape = [None, None, None, self._channels]
        images = tf.TensorSpec(shape, tf.float32, name="images")
        eight_bit = tf.TensorSpec(images.shape, tf.uint8, name="images")
        prepared = tf.TensorSpec([None, *self._size, self._channels], name="images")
        class_ids = tf.TensorSpec([None], tf.int64, name="class_ids")
        by_bytes = self.options.input == "image_bytes"
        given = contents if by_bytes else images
        classify = self.classify_bytes if by_bytes else self.classify
        signatures = {
            "serving_default": (classify, given),
            "classify_bytes": (self.classify_bytes, contents),
            "classify_tensor": (self.classify, images),
            "classify_tensor_uint8": (self.classify, eight_bit),
            "classify_ten_crop": (self.classify_ten_crop, given),
            "prepare": (self.prepare, contents),
            "classify_prepared": (self.classify_prepared, prepared),
        }
        if self.network.has_features:
            signatures["features"] = self.features, given
        if self.network.has_maps:
            signatures["activation_map"] = self.activation_map, prepared, class_ids
        return signatures

    def prepare(self, contents):
        """The network's input for encoded images."""
        return {"images": self._prepared(contents, self._single)}

    def classify_bytes(self, contents):
        """The most likely classes of encoded images."""
        return self.classify_prepared(self._prepared(contents, self._single))

    def classify(self, images):
        """The most likely classes of images of any size."""
        return self.classify_prepared(self._prepared(images, self._single))

    def classify_prepared(self, images):
        """The most likely classes of images of the network's input size."""
        return self._answer(self.scores(images))

    def scores(self, images):
        """The score or number for each name, `(B, names)`, for prepared images."""
        return self.task.scores(self.logits(images) / self.temperature)

    def classify_ten_crop(self, images):
        """The most likely classes of images, using ten crops of each."""
        crops = self._prepared(images, self._ten)
        logits = self.logits(tf.reshape(crops, [-1, *self._size, self._channels]))
        logits = tf.reshape(logits, [-1, 10, self.network.classes])
        if self.options.ten_crop_average == "logits":
            logits = tf.reduce_mean(logits, axis=1)
            return self._answer(self.task.scores(logits / self.temperature))
        each = self.task.scores(logits / self.temperature)
        return self._answer(tf.reduce_mean(each, axis=1))

    def features(self, images):
        """Maps of the taps, and the input of the head."""
        return self.network.features(self._prepared(images, self._single))

    def activation_map(self, images, class_ids):
        """Maps of where in prepared images the network sees a class."""
        maps, chosen = self.network.activation_maps(images, class_ids)
        labels = self._table.lookup(chosen)
        return {"maps": maps, "class_ids": chosen, "labels": labels}

    def _answer(self, scores):
        """Names and scores, highest first; numbers of a regression unsorted."""
        if self.task.name == _tasks.REGRESSION:
            ids = tf.range(self.network.classes, dtype=tf.int64)
            ids = tf.zeros_like(scores, tf.int64) + ids
            return {"labels": self._table.lookup(ids), "values": scores}
        lowest = tf.constant(-1, scores.dtype)  # NaN would disturb the sorting
        ranked = tf.where(tf.math.is_nan(scores), lowest, scores)
        _, ids = tf.math.top_k(ranked, self.options.top_k)
        scores = tf.gather(scores, ids, batch_dims=1)
        answer = {"scores": scores}
        if self.thresholds is not None:
            answer["on"] = scores >= tf.gather(tf.constant(self.thresholds), ids)
        # NaN is not a score: use the class -1, whose name is empty.
        nothing = tf.constant(-1, tf.int64)
        ids = tf.where(tf.math.is_nan(scores), nothing, tf.cast(ids, tf.int64))
        return {"labels": self._table.lookup(ids), "class_ids": ids, **answer}

    def _prepared(self, values, protocol):
        """The network's input for encoded images, or for pixels."""

        def prepare(value):
            image = self._decode(value) if values.dtype == tf.string else value
            if image.shape[-1] == 1:
                image = tf.repeat(image, 3, axis=-1)
            image = protocol.finish(protocol.resize(image), seed=None)
            if self._channels == 3:
                return image
            # As `rgb_to_grayscale`, whose weights sum to 0.9999, in the data pipeline.
            is_grey = values.dtype != tf.string
            return image[..., :1] if is_grey else tf.image.rgb_to_grayscale(image)

        crops = [10] if protocol.ten_crop else []
        return tf.map_fn(
            prepare,
            values,
            fn_output_signature=tf.TensorSpec([*crops, *self._size, self._channels]),
            parallel_iterations=16,
        )


def _stored(variable):
    """The part of a Keras variable that the signatures contain."""
    value = variable.value
    if isinstance(value, tf.distribute.DistributedValues):
        return value.values[0]  # the first replica's
    return value
