"""Runs a SavedModel of `export_for_serving` on image files."""

import functools
import hashlib
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_delta.data.decode import BadImageError, read_image
from keras_delta.serving.folders import versions_in
from keras_delta.serving.reencoding import as_png

SAVED_MODEL, LABELS = "saved_model.pb", "assets/labels.txt"
OTHERS = ("path", "labels", "error")  # columns of the table that are not names


class Classifier:
    """A model written by `export_for_serving`, for image files.

    Args:
        folder: `Path` of a version.
        ten_crop: whether to use ten crops of each image.

    Attributes:
        columns: names of the cells of an answer. One of several classes: `label`,
            `score`, `label_2`, ..., most likely first. Several labels: `labels`, those
            that are on, and the score of each. Numbers: one column per number. Labels
            and numbers with the name of another column get an underscore.
    """

    def __init__(self, folder, ten_crop=False):
        try:
            # Kept: its signatures work as long as it lives.
            self._model = tf.saved_model.load(str(folder))
        # TensorFlow and protobuf raise errors of many kinds for damaged files.
        except Exception as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise ValueError(
                f"'{folder}' cannot be loaded as a SavedModel ({reason[0]}). If it was "
                "copied, copy it again, with all its folders."
            ) from error
        signatures = self._model.signatures
        needed = ["prepare", "classify_prepared"] + ["classify_ten_crop"] * ten_crop
        lacking = [f"`{name}`" for name in needed if name not in signatures]
        if lacking:
            known = ", ".join(f"`{name}`" for name in signatures) or "none"
            raise ValueError(
                f"'{folder}' is a SavedModel without {' and '.join(lacking)}; its "
                f"signatures: {known}. Export the model with "
                "`keras_delta.export_for_serving`."
            )
        self._prepare = signatures["prepare"]
        self._classify = signatures["classify_prepared"]
        self._crops = signatures["classify_ten_crop"] if ten_crop else None
        given = self._classify.structured_outputs
        if "values" in given or "on" in given:
            names = (folder / LABELS).read_text("utf-8").splitlines()
        if "values" in given:
            self.columns, self._cells = _columns(names), _numbers
        elif "on" in given:
            self.columns = ["labels", *_columns(names)]
            self._cells = functools.partial(_labels, names)
        else:
            numbers = range(2, given["labels"].shape[1] + 1)
            more = [f"{name}_{k}" for k in numbers for name in ("label", "score")]
            self.columns, self._cells = ["label", "score", *more], _classes

    def read(self, path):
        """An image file in the form for `answers`, or BadImageError; thread-safe."""
        if self._crops is None:
            return self._encoded(path, self._prepare)["images"][0]
        if "images" in self._crops.structured_input_signature[1]:
            # The network sees ten crops at once, so images need not be batched.
            pixels = tf.constant(read_image(path)[None], tf.float32)
            return self._rows(_answer(self._crops, images=pixels))[0]
        return self._rows(self._encoded(path, self._crops))[0]

    def answers(self, images):
        """Cells for `columns`, for each result of `read`; None for NaN."""
        if self._crops is not None or not images:
            return images
        return self._rows(self._classify(images=tf.stack(images)))

    def _rows(self, answer):
        values = {key: value.numpy() for key, value in answer.items()}
        numbers = values["values" if "values" in values else "scores"]
        is_nan = np.isnan(numbers).any(axis=-1)
        names, rows = list(values), zip(*values.values(), strict=True)
        rows = [dict(zip(names, row, strict=True)) for row in rows]
        pairs = zip(rows, is_nan, strict=True)
        return [None if bad else self._cells(row) for row, bad in pairs]

    def _encoded(self, path, signature):
        """The result of a signature for an encoded image, in any Pillow format."""
        try:
            contents = Path(path).read_bytes()
        except OSError as error:
            raise BadImageError(error.strerror) from None
        try:
            return signature(image_bytes=tf.constant([contents]))
        except tf.errors.OpError:
            # Pillow decodes more formats and has better error messages.
            contents = as_png(path)
        return _answer(signature, image_bytes=tf.constant([contents]))


def _answer(signature, **inputs):
    try:
        return signature(**inputs)
    except tf.errors.OpError as error:
        raise BadImageError(f"cannot be resized ({error.message})") from None


def saved_model(path):
    """The folder of a SavedModel: `path` itself or the newest version in it."""
    if (path / SAVED_MODEL).is_file():
        return path
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        expected = "a folder written by `keras_delta.export_for_serving`"
        raise ValueError(f"'{path}' {what}. SAVED_MODEL is {expected}.")
    for _, folder in sorted(versions_in(path).items(), reverse=True):
        if (folder / SAVED_MODEL).is_file():
            return folder
    raise ValueError(
        f"'{path}' is not a SavedModel: it has no '{SAVED_MODEL}', and neither has a "
        "version folder such as '1'. `keras_delta.export_for_serving` writes "
        "such folders."
    )


def fingerprint(folder):
    """A digest of a SavedModel's graph, variables and assets."""
    digest = hashlib.sha256((folder / SAVED_MODEL).read_bytes())
    for part in ("variables", "assets"):
        for path in sorted((folder / part).glob("*")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _columns(names):
    """Names of columns, unique in the table."""
    columns = []
    for name in names:
        column = f"{name}_" if name in OTHERS else name
        while column != name and column in names:
            column += "_"
        columns.append(column)
    return columns


def _classes(row):
    pairs = zip(row["labels"], row["scores"], strict=True)
    return [cell for name, p in pairs for cell in (name.decode(), f"{p:.6f}")]


def _labels(names, row):
    ranked = [name.decode() for name in row["labels"]]
    pairs = zip(ranked, row["on"], strict=True)
    on = "; ".join(_quoted(name) for name, is_on in pairs if is_on)
    scores = dict(zip(ranked, row["scores"], strict=True))
    return [on, *(f"{scores[name]:.6f}" for name in names)]


def _quoted(name):
    """A name in a list "a; b", quoted if it could be mistaken for several."""
    if not any(c in name for c in ';"') and name == name.strip():
        return name
    return '"' + name.replace('"', '""') + '"'


def _numbers(row):
    return [f"{value:.7g}" for value in row["values"]]
