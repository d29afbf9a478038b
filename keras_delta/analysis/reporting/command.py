"""One HTML page about a fine-tuned model: `keras_delta report MODEL.keras FOLDER`.

FOLDER contains `train` and `test` (or `val`) folders with one folder per class; labels
that are probably wrong and images in both sets are then searched for, too. A plain
folder of class folders is used as test images, since a model's training images say
little about its quality.
"""

from pathlib import Path

import keras

from keras_delta import _tasks, data
from keras_delta.analysis.reporting.report import MOST_IMAGES, report


def add_arguments(parser):
    """Add what the command takes to an `argparse` parser."""
    add = parser.add_argument
    add("model", metavar="MODEL.keras", type=Path, help="file written by `model.save`")
    add("folder", metavar="FOLDER", type=Path, help="images, with one folder per class")
    where = "HTML file to write; default: report.html"
    add("--output", metavar="FILE", type=Path, default=Path("report.html"), help=where)
    other = "another model to compare with; may be repeated"
    add("--compare", metavar="MODEL.keras", type=Path, action="append", help=other)
    size = "side of the images in pixels, if the model takes any size"
    add("--image-size", metavar="PIXELS", type=int, help=size)
    tasks = "the model's task, if it cannot be inferred"
    add("--task", choices=_tasks.TASKS, help=tasks)
    most = f"number of images per set at most; default: {MOST_IMAGES}"
    add("--max-images", metavar="N", type=int, default=MOST_IMAGES, help=most)
    add("--title", help="of the page; default: the model's name")
    add("--quiet", action="store_true", help="print errors only")


def run(args):
    """Write the report that the command line asks for."""
    paths = [args.model, *(args.compare or ())]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"There is no file {missing[0]}.")
    sets = data.from_directory(args.folder, on_error="skip")
    if not isinstance(sets, dict):
        sets = {"test": sets}
    labels = _labels(paths)
    models = [keras.models.load_model(path) for path in paths]
    report(
        dict(zip(labels, models, strict=True)),
        train=sets.get("train"),
        test=sets.get("test", sets.get("val")),
        path=args.output,
        title=args.title,
        image_size=args.image_size,
        task=args.task,
        max_images=args.max_images,
        verbose=0 if args.quiet else 1,
    )


def _labels(paths):
    """Names of the files, or whole paths if names are equal."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError("The same model is given twice.")
    return names
