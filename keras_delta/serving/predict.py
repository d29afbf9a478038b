"""Predicts labels for the images in a folder, as a CSV file.

The columns are path (relative to FOLDER), label, score, label_2, score_2 and so on,
most likely first, and error, which says why an image could not be read and is otherwise
empty. A model of several labels has the columns labels (those that are on, "a; b") and
the score of each label; one of numbers has one column per number. Rows are in the order
of the paths. The file is UTF-8: other bytes in a path are written as \\xe9.

After being killed or stopped, the same command resumes; the file is then the same as
that of an uninterrupted run. Run again later, it keeps the rows up to the first image
that is new, gone or changed (by size or modification time), and continues from there.
OUT.csv.progress records the progress. A CSV of another model, folder or batch size
raises an error.

Unreadable images are skipped and listed, with exit code 0, so that "repeat until the
exit code is 0" ends. The exit code is 1 if no image could be read.
"""

import argparse
import collections
import csv
import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf
from PIL import Image

from keras_delta import _disk
from keras_delta._progress import Progress
from keras_delta.data.decode import BadImageError
from keras_delta.serving import image_paths
from keras_delta.serving.classifier import Classifier, fingerprint, saved_model
from keras_delta.serving.resumable_csv import ResumableCsv

LISTED = 20  # bad files that the terminal shows


def add_arguments(parser):
    """Add the command's arguments to an `argparse` parser."""
    add = parser.add_argument
    where = "folder of a model, whose newest version is used, or of a version, NAME/1"
    add("model", metavar="SAVED_MODEL", type=Path, help=where)
    where = (
        "images, at any depth (links are followed, hidden files skipped), or one file"
    )
    add("folder", metavar="FOLDER", type=Path, help=where)
    add("--csv", metavar="OUT.csv", type=Path, required=True, help="file to write")
    size = "images that the network sees at once; default: 32"
    add("--batch-size", metavar="N", type=_positive, default=32, help=size)
    crops = "use ten crops of each image; takes about ten times as long"
    add("--ten-crop", action="store_true", help=crops)
    again = "start over if OUT.csv is of another model, folder or batch size"
    add("--overwrite", action="store_true", help=again)
    add("--quiet", action="store_true", help="only print errors")


def run(args):
    """Run the command; returns the exit code."""
    _check_csv(args.csv)
    model = saved_model(args.model)
    root, paths = image_paths.find(args.folder)
    # Pillow's warnings about odd files; unreadable ones are in the CSV.
    warnings.filterwarnings("ignore", module="PIL")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    # On a GPU, too, the scores are the same in each run.
    tf.config.experimental.enable_op_determinism()
    classifier = Classifier(model, args.ten_crop)
    size = args.batch_size
    batches = [paths[i : i + size] for i in range(0, len(paths), size)]
    say = (lambda text: None) if args.quiet else print
    with _disk.lock(args.csv):
        table = _table(args, model, classifier, root, batches)
        done = min(table.batches * size, len(paths))
        say(f"{model}: {len(paths)} images" + (f", {done} done before" if done else ""))
        try:
            _predict(classifier, root, batches[table.batches :], table, args.quiet)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Stopped after {table.batches * size} of {len(paths)} images, which "
                f"are in {args.csv}. The same command resumes from there."
            ) from None
    _summarise(args.csv, len(paths), say)
    return 0


def errors(path):
    """List of (path, reason) of the images without a label in a CSV file."""
    with open(path, encoding="utf-8", newline="") as file:
        return [(row[0], row[-1]) for row in csv.reader(file) if row[-1]][1:]


def _table(args, model, classifier, root, batches):
    """The CSV file, with its progress."""
    made_by = {
        "digest of the model": fingerprint(model),
        "folder": os.path.realpath(args.folder),
        "batch size": args.batch_size,
        "ten crops": args.ten_crop,
    }
    return ResumableCsv(
        args.csv,
        ["path", *classifier.columns, "error"],
        made_by,
        batches,
        [_state(root, batch) for batch in batches],
        overwrite=args.overwrite,
    )


def _predict(classifier, root, batches, table, quiet):
    """Write the rows of batches."""
    paths = [path for batch in batches for path in batch]
    if not paths:
        return
    progress = Progress(len(paths), quiet=quiet)
    pool = ThreadPoolExecutor(os.cpu_count())

    def read(path):
        try:
            return classifier.read(os.path.join(root, path))
        except BadImageError as error:
            return error

    try:
        # Read ahead while the network computes.
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
        reason, cells = str(result), None
        if not isinstance(result, BadImageError):
            reason, cells = "the model returns NaN, not a score", next(answers)
        if cells is None:
            rows.append([path, *[""] * len(classifier.columns), reason])
        else:
            rows.append([path, *cells, ""])
    return rows


def _ahead(pool, function, items, count):
    """Results in order, computing `count` of them ahead."""
    futures = collections.deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > count:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _summarise(path, count, say):
    """Print how many images have an answer and which have none."""
    bad = errors(path)
    if bad:
        say(f"{len(bad)} of {count} images have no answer:")
        for name, reason in bad[:LISTED]:
            say(f"  {_printable(name)}: {reason}")
        if len(bad) > LISTED:
            say(f"  ... and {len(bad) - LISTED} more, see the column `error`")
    if len(bad) == count:
        raise ValueError(
            f"None of {count} images has an answer; the first, "
            f"{_printable(bad[0][0])}: {bad[0][1]}. {path} lists the reasons."
        )
    say(f"Answers for {count - len(bad)} images are in {path}")


def _state(root, paths):
    """The inputs of a batch's rows: names, sizes and modification times."""
    states = []
    for path in paths:
        try:
            status = os.stat(os.path.join(root, path))
            states.append([path, status.st_size, status.st_mtime_ns])
        except OSError:
            states.append([path])
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


def _check_csv(path):
    """Reject a file that cannot be written before any work can be lost."""
    if not path.parent.is_dir():
        raise ValueError(f"'{path}' cannot be written: '{path.parent}' does not exist.")
    is_new = not path.exists()
    try:
        open(path, "ab").close()
    except OSError as error:
        raise OSError(f"'{path}' cannot be written: {error.strerror}.") from None
    if is_new:
        path.unlink()


def _positive(text):
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return number


def _printable(text):
    """A file name that is safe to print on a terminal."""
    return text if text.isprintable() else ascii(text)
