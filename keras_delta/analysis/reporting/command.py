"""One HTML page about a fine-tuned model: `keras_delta report MODEL.keras FOLDER`.

FOLDER holds `train` and `test` (or `val`) folders with a folder a class; labels that
are probably wrong and images that are in both are then looked for, too. A folder of
class folders alone counts as test images: what a model was trained on says little about
how good it is.
"""

from pathlib import Path

import keras

from keras_delta import _tasks, data
from keras_delta.analysis.reporting.report import MOST_IMAGES, report


def add_arguments(parser):
    """Add what the command takes to an `argparse` parser."""
    add = parser.add_argument
    add("model", metavar="MODEL.keras", type=Path, help="what `model.save` has written")
    add("folder", metavar="FOLDER", type=Path, help="images, with a folder a class")
    where = "HTML file to write; default: report.html"
    add("--output", metavar="FILE", type=Path, default=Path("report.html"), help=where)
    other = "another model, to compare with; may be given several times"
    add("--compare", metavar="MODEL.keras", type=Path, action="append", help=other)
    size = "side of the images in pixels, where the model takes any"
    add("--image-size", metavar="PIXELS", type=int, help=size)
    tasks = "what the model tells, where it does not say so itself"
    add("--task", choices=_tasks.TASKS, help=tasks)
    most = f"look at no more images of each set; default: {MOST_IMAGES}"
    add("--max-images", metavar="N", type=int, default=MOST_IMAGES, help=most)
    add("--title", help="of the page; default: the model's name")
    add("--quiet", action="store_true", help="print errors only")


def run(args):
    """Report as the command line says."""
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
    """Names of the files; the whole paths where these are alike."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError("The same model is given twice.")
    return names
