"""Labels of the images in a folder, as a CSV file.

The columns: path (from FOLDER on), label, score, label_2, score_2 and so on, likeliest
first, and error, which says why an image could not be read and is empty for the others.
Rows are in the order of the paths.

Killed or stopped, the same command goes on where it was; the file is then the same as
in one go. Run again later, it keeps the rows up to the first image that is new, gone
or changed (by size or time of writing), and goes on from there. OUT.csv.progress says
what is done. A CSV of another model, folder or batch size is refused.

Images that cannot be read stop nothing: they are listed, and the exit code is 0, so
that "again, until the exit code is 0" comes to an end. It is 1 where not one image
could be read.
"""

import argparse
import collections
import csv
import hashlib
import io
import os
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import tensorflow as tf
from PIL import Image

from keras_delta import _disk
from keras_delta.data.decode import (
    IMAGE_EXTENSIONS,
    BadImageError,
    looks_like_image,
    read_image,
)
from keras_delta.serving.folders import versions_in
from keras_delta.serving.resumable_csv import ResumableCsv

SAVED_MODEL = "saved_model.pb"
DIRECT = ("JPEG", "PNG", "WEBP", "GIF")  # formats that a SavedModel decodes
LISTED = 20  # bad files that the terminal shows
LARGEST = 50_000_000  # pixels; for others, what `read_image` says counts
SECONDS = 30  # between lines of progress in a file


def add_arguments(parser):
    """Add what the command takes to an `argparse` parser."""
    add = parser.add_argument
    where = "folder of a model, the newest version is taken; or of a version, NAME/1"
    add("model", metavar="SAVED_MODEL", type=Path, help=where)
    where = (
        "images, at any depth; links are followed, hidden files left out; or one file"
    )
    add("folder", metavar="FOLDER", type=Path, help=where)
    add("--csv", metavar="OUT.csv", type=Path, required=True, help="file to write")
    size = "images that the network sees at once; default: 32"
    add("--batch-size", metavar="N", type=_positive, default=32, help=size)
    crops = "answer by ten crops of an image; takes about ten times as long"
    add("--ten-crop", action="store_true", help=crops)
    add(
        "--overwrite",
        action="store_true",
        help="begin anew where OUT.csv is of another model, folder or batch size",
    )
    add("--quiet", action="store_true", help="print errors only")


def run(args):
    """Predict as the command line says.

    Args:
        args: namespace of what `add_arguments` adds.

    Returns:
        The exit code.

    Raises:
        ValueError: for a model, folder or CSV file that is not what it should be.
        OSError: for a CSV file that cannot be written.
        KeyboardInterrupt: with a sentence, after Ctrl-C.
    """
    _check_csv(args.csv)
    model = saved_model(args.model)
    root, paths = images(args.folder)
    # Pillow's remarks about odd files; what cannot be read is in the CSV.
    warnings.filterwarnings("ignore", module="PIL")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    # On a GPU, too, the scores are the same in each run.
    tf.config.experimental.enable_op_determinism()
    classifier = Classifier(model, args.ten_crop)
    batches = [
        paths[i : i + args.batch_size] for i in range(0, len(paths), args.batch_size)
    ]
    made_by = {
        "model": os.path.abspath(model),
        "fingerprint": fingerprint(model),
        "folder": os.path.realpath(args.folder),
        "batch size": args.batch_size,
        "ten crops": args.ten_crop,
    }
    with _disk.lock(args.csv):
        table = ResumableCsv(
            args.csv,
            _columns(classifier.top_k),
            made_by,
            [_state(root, batch) for batch in batches],
            overwrite=args.overwrite,
            only_shown=("model",),
        )
        done = min(table.batches * args.batch_size, len(paths))
        say = (lambda text: None) if args.quiet else print
        say(f"{model}: {len(paths)} images" + (f", {done} done before" if done else ""))
        try:
            _predict(classifier, root, batches[table.batches :], table, args.quiet)
        except KeyboardInterrupt:
            done = table.batches * args.batch_size
            raise KeyboardInterrupt(
                f"Stopped after {done} of {len(paths)} images, which are in "
                f"{args.csv}. The same command goes on from there."
            ) from None
    bad = errors(args.csv)
    if bad:
        say(f"{len(bad)} of {len(paths)} images cannot be read:")
        for path, reason in bad[:LISTED]:
            say(f"  {_printable(path)}: {reason}")
        if len(bad) > LISTED:
            say(f"  ... and {len(bad) - LISTED} more, see the column `error`")
    if len(bad) == len(paths):
        raise ValueError(
            f"Not one of {len(paths)} images could be read; the first, "
            f"{_printable(bad[0][0])}: {bad[0][1]}. {args.csv} has the reasons."
        )
    say(f"Labels of {len(paths) - len(bad)} images are in {args.csv}")
    return 0


class Classifier:
    """What `keras_delta.export_for_serving` has written, for one image file at a time.

    Args:
        folder: of the SavedModel.
        ten_crop: whether to answer by ten crops.

    Attributes:
        top_k: classes in an answer.

    Raises:
        ValueError: for what is no such model.
    """

    def __init__(self, folder, ten_crop=False):
        needed = ["prepare", "classify_prepared"] + ["classify_ten_crop"] * ten_crop
        try:
            # Kept: its signatures work as long as it lives.
            self._model = tf.saved_model.load(str(folder))
        # TensorFlow and protobuf raise whatever damaged files lead them to.
        except Exception as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise ValueError(
                f"'{folder}' cannot be loaded as a SavedModel ({reason[0]}). If it was "
                "copied, copy it again, with all its folders."
            ) from error
        signatures = self._model.signatures
        lacking = [f"`{name}`" for name in needed if name not in signatures]
        if lacking:
            there = ", ".join(f"`{name}`" for name in signatures) or "none"
            raise ValueError(
                f"'{folder}' is a SavedModel without {' and '.join(lacking)}; its "
                f"signatures: {there}. Export the model with "
                "`keras_delta.export_for_serving`."
            )
        self._prepare = signatures["prepare"]
        self._classify = signatures["classify_prepared"]
        self._crops = signatures["classify_ten_crop"] if ten_crop else None
        self.top_k = self._classify.structured_outputs["labels"].shape[1]

    def read(self, path):
        """An image file as `answers` takes it. Several threads may call this.

        Raises:
            BadImageError: for what is no image.
        """
        if self._crops is None:
            return self._encoded(path, self._prepare)["images"][0]
        if "images" in self._crops.structured_input_signature[1]:
            # The network sees ten crops at once, so images need not be batched.
            pixels = tf.constant(read_image(path)[None], tf.float32)
            return self._answer(self._crops(images=pixels))[0]
        return self._answer(self._encoded(path, self._crops))[0]

    def answers(self, images):
        """A list of (label, score) pairs, likeliest first, for each image.

        Args:
            images: list of what `read` gives.
        """
        if self._crops is not None or not images:
            return images
        return self._answer(self._classify(images=tf.stack(images)))

    def _answer(self, found):
        labels, scores = found["labels"].numpy(), found["scores"].numpy()
        return [
            [(name.decode(), float(score)) for name, score in zip(*row, strict=True)]
            for row in zip(labels, scores, strict=True)
        ]

    def _encoded(self, path, signature):
        """The result of a signature of encoded images, of any format Pillow reads."""
        try:
            contents = Path(path).read_bytes()
        except OSError as error:
            raise BadImageError(error.strerror) from None
        if _decoded_by_tensorflow(contents):
            try:
                return signature(image_bytes=tf.constant([contents]))
            except tf.errors.OpError:
                pass  # Pillow decodes more, and says better what is wrong
        stream = io.BytesIO()
        Image.fromarray(read_image(path)).save(stream, "PNG", compress_level=1)
        try:
            return signature(image_bytes=tf.constant([stream.getvalue()]))
        except tf.errors.OpError as error:
            raise BadImageError(f"cannot be resized ({error.message})") from None


def saved_model(path):
    """The folder of a SavedModel: `path` itself or the newest version in it.

    Raises:
        ValueError: where there is none.
    """
    if (path / SAVED_MODEL).is_file():
        return path
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        expected = "the folder that `keras_delta.export_for_serving` has written"
        raise ValueError(f"'{path}' {what}. SAVED_MODEL is {expected}.")
    versions = {
        number: folder
        for number, folder in versions_in(path).items()
        if (folder / SAVED_MODEL).is_file()
    }
    if not versions:
        raise ValueError(
            f"'{path}' is no SavedModel: there is no '{SAVED_MODEL}' in it, nor in a "
            "folder of a version such as '1'. `keras_delta.export_for_serving` writes "
            "such folders."
        )
    return versions[max(versions)]


def fingerprint(folder):
    """A digest of all that a SavedModel computes with: graph, variables and assets."""
    digest = hashlib.sha256((folder / SAVED_MODEL).read_bytes())
    for part in ("variables", "assets"):
        for path in sorted((folder / part).glob("*")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def images(folder):
    """Image files below a folder, as paths from there on, in the order of their bytes.

    What claims to be an image counts, see `keras_delta.data.decode.looks_like_image`;
    hidden files and folders do not. Links are followed, but each folder is entered
    once. Links to nothing and folders that cannot be opened are in the list as well,
    so that they are reported.

    Args:
        folder: `Path` of a folder, or of one file.

    Returns:
        (folder, list of strings).

    Raises:
        ValueError: where there is no folder or no image in it.
    """
    if folder.is_file():
        return folder.parent, [folder.name]
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(
            f"'{folder}' {what}. FOLDER is a folder of images, or one file."
        )
    found, entered, others, waiting = [], set(), 0, [str(folder)]

    def unreadable(error):
        found.append(error.filename)

    while waiting:
        links = []
        for place, folders, names in os.walk(waiting.pop(0), onerror=unreadable):
            where = os.stat(place)
            if (where.st_dev, where.st_ino) in entered:
                folders.clear()
                continue
            entered.add((where.st_dev, where.st_ino))
            folders[:] = sorted(n for n in folders if not n.startswith("."))
            links += [p for n in folders if os.path.islink(p := os.path.join(place, n))]
            paths = [os.path.join(place, n) for n in names if not n.startswith(".")]
            taken = [path for path in paths if _claims(path)]
            found, others = found + taken, others + len(paths) - len(taken)
        waiting += sorted(links)
    if not found:
        files = f"{others} other files" if others else "it is empty"
        raise ValueError(f"There are no images in '{folder}' ({files}).")
    return folder, sorted((os.path.relpath(p, folder) for p in found), key=os.fsencode)


def errors(path):
    """List of (path, reason) of the images that a CSV file has no label for."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [(row[0], row[-1]) for row in csv.reader(file) if row[-1]][1:]


def _predict(classifier, root, batches, table, quiet):
    """Write the rows of batches."""
    paths = [path for batch in batches for path in batch]
    if not paths:
        return
    progress = _Silent() if quiet else _progress(len(paths))
    pool = ThreadPoolExecutor(os.cpu_count())

    def read(path):
        try:
            return classifier.read(os.path.join(root, path))
        except BadImageError as error:
            return error

    try:
        # So many are read while the network computes.
        results = _ahead(pool, read, paths, 2 * len(batches[0]))
        for batch in batches:
            table.append(_rows(batch, [next(results) for _ in batch], classifier))
            progress.add(len(batch))
    finally:
        pool.shutdown(cancel_futures=True)
    progress.end()


def _rows(paths, results, classifier):
    good = [r for r in results if not isinstance(r, BadImageError)]
    answers = iter(classifier.answers(good))
    rows = []
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, BadImageError):
            cells, reason = [""] * (2 * classifier.top_k), str(result)
        else:
            cells = [v for name, p in next(answers) for v in (name, f"{p:.6f}")]
            reason = ""
        rows.append([path, *cells, reason])
    return rows


def _ahead(pool, function, items, count):
    """Results in order, of which `count` are computed ahead."""
    futures = collections.deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > count:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _columns(top_k):
    more = [f"{name}_{k}" for k in range(2, top_k + 1) for name in ("label", "score")]
    return ["path", "label", "score", *more, "error"]


def _state(root, paths):
    """What the rows of a batch are made from: names, sizes and times of writing."""
    found = []
    for path in paths:
        try:
            status = os.stat(os.path.join(root, path))
            found.append([path, status.st_size, status.st_mtime_ns])
        except OSError:
            found.append([path])
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _claims(path):
    """Whether a path is to be read: never a pipe or a device, which may block."""
    if os.path.isfile(path):
        return looks_like_image(path)
    broken = os.path.islink(path) and not os.path.exists(path)
    return broken and os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS


def _decoded_by_tensorflow(contents):
    """Whether a SavedModel decodes a file; animations and huge ones go by Pillow."""
    try:
        with Image.open(io.BytesIO(contents), formats=DIRECT) as image:
            pixels = image.width * image.height
            return pixels <= LARGEST and not getattr(image, "is_animated", False)
    # Header parsers raise whatever they stumble over; `read_image` says what it is.
    except Exception:
        return False


def _check_csv(path):
    if not path.parent.is_dir():
        raise ValueError(f"'{path}' cannot be written: there is no '{path.parent}'.")
    if path.exists() and not path.is_file():
        raise ValueError(f"'{path}' is not a file. `--csv` is the file to write.")
    there = path.exists()
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise OSError(f"'{path}' cannot be written: {error.strerror}.") from None
    if not there:
        path.unlink()


def _positive(text):
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return number


def _printable(text):
    """A file name that changes nothing on a terminal."""
    return text if text.isprintable() else ascii(text)


class _Silent:
    def add(self, count):
        """Count images."""

    def end(self):
        """Say how long it took."""


class _Lines(_Silent):
    """A line of progress now and then, for _disk."""

    def __init__(self, total):
        self._total, self._done = total, 0
        self._began = self._said = time.monotonic()

    def add(self, count):
        """Count images."""
        self._done += count
        if time.monotonic() - self._said > SECONDS:
            self._said = time.monotonic()
            print(f"{self._done} of {self._total} images, {self._rate()}", flush=True)

    def end(self):
        """Say how long it took."""
        seconds = time.monotonic() - self._began
        print(f"{self._done} images in {seconds:.1f} s, {self._rate()}", flush=True)

    def _rate(self):
        return f"{self._done / (time.monotonic() - self._began):.1f} images a second"


class _Bar(_Lines):
    """Keras's progress bar, for a terminal."""

    def __init__(self, total):
        super().__init__(total)
        self._bar = keras.utils.Progbar(total, unit_name="image")

    def add(self, count):
        """Count images."""
        self._done += count
        self._bar.add(count)


def _progress(total):
    return (_Bar if sys.stdout.isatty() else _Lines)(total)
