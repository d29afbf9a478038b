"""`report`: one page about fine-tuned models."""

import os
from collections.abc import Callable, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from keras_delta import _arguments, _disk
from keras_delta._errors import import_optional, invalid
from keras_delta._progress import Progress
from keras_delta._types import Data, ImageSize, Models, PathLike, Task, Verbose
from keras_delta.analysis.images import Images
from keras_delta.analysis.reporting import changes, given_images, quality
from keras_delta.analysis.reporting.models import Reported
from keras_delta.analysis.reporting.section import LeftOut

TEMPLATE = "page.html"
MOST_IMAGES = 2000
SECTIONS: tuple[Callable[..., Any], ...] = (
    quality.summarize,
    quality.draw_history,
    quality.tabulate_recall,
    quality.tabulate_confusions,
    quality.show_mistakes,
    quality.draw_reliability,
    given_images.list_suspects,
    given_images.list_duplicates,
    changes.draw_distances,
    changes.show_maps,
    changes.show_attention,
    changes.describe_training,
)


def report(
    models: Models,
    train: Data = None,
    test: Data = None,
    path: PathLike = "report.html",
    *,
    title: str | None = None,
    class_names: Sequence[str] | None = None,
    image_size: ImageSize | None = None,
    task: Task | None = None,
    max_images: int | None = MOST_IMAGES,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> Path:
    """Write a one-page HTML report on fine-tuned models.

    It shows accuracy with its interval, recall of each class, confusions, the most
    confident mistakes and where the network looked (Grad-CAM), and whether confidence
    can be trusted; labels of the training data that are probably wrong, and images that
    occur in both training and test; changes by fine-tuning in filters, maps and
    attention; and how the model was trained. Sections that do not apply are left out
    and listed with the reason.

    The page is a single, self-contained HTML file that opens offline and prints well.

    Args:
        models: a `DeltaModel` or Keras model, or a dict label -> model. The first is
            examined in detail, the others are compared with it.
        train, test: images: a folder of class folders, an `ImageSet`, arrays `(x, y)`,
            or batches of them.
        path: of the HTML file.
        title: of the page; default: the model's name.
        class_names: in the order of the model's outputs; default: those of the data.
        image_size: side in pixels or (height, width), if the model takes any.
        task: as for `attach_head`, if it cannot be inferred from the model.
        max_images: number of images per set at most, drawn at random; None: all.
        seed: of the draw and of the cross-validation.
        verbose: 0 for silence.

    Returns:
        The path of the file, a `Path`.

    Raises:
        ImportError: if Jinja2 is missing.
        TypeError, ValueError: if a model has another type, classes do not fit, or
            the path cannot be written.

    Example:
        ```python
        model = kd.fine_tune("efficientnet_lite0", "photos/train")
        kd.analysis.report(model, train="photos/train", test="photos/test")
        ```
    """
    page: Path = _arguments.file("path", path)
    looked_at = look(
        models, train, test, class_names, image_size, task, max_images, seed
    )
    _disk.check_writable("path", Path(os.path.abspath(page)).parent)
    found, left_out = [], []
    progress = Progress(len(SECTIONS), "section", quiet=verbose == 0)
    for make in SECTIONS:
        try:
            section = make(*looked_at, seed)
        except LeftOut as reason:
            left_out.append(str(reason))
        else:
            found.append(section)
        progress.add(1)
    title = title or f"{looked_at[0][0].title}: report"
    _write(page, found, left_out, title)
    if verbose != 0:
        print(f"report: {page}", flush=True)
    return page


def look(
    models,
    train=None,
    test=None,
    class_names=None,
    image_size=None,
    task=None,
    max_images=MOST_IMAGES,
    seed=0,
):
    """Models and images of a report, checked; arguments as for `report`.

    Returns:
        `(models, train, test)`: a list of `Reported`, and `Images` or None.
    """
    import_optional("jinja2", "report", "report")
    _arguments.seed("seed", seed)
    named = models if isinstance(models, dict) else {"": models}
    if not named:
        raise ValueError(invalid("models", "at least one model", "none"))
    reported = [
        Reported(label, model, class_names, image_size, task)
        for label, model in named.items()
    ]
    first, titles = reported[0], [model.title for model in reported]
    if len(set(titles)) < len(titles):
        raise ValueError(invalid("models", "labels that tell models apart", titles))
    options = {"image_size": first.image_size, "max_images": max_images, "seed": seed}
    options["channels"] = first.network.channels
    train = None if train is None else Images(train, "train", **options)
    test = None if test is None else Images(test, "test", **options)
    first.name_classes(train, test)
    for other in reported[1:]:
        other.check_like(first)
    if test is not None and test.labels is not None:
        first.labels(test)
    return reported, train, test


def _write(path, found, left_out, title):
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    environment.filters["percent"] = lambda v: f"{100 * v:.1f} %"
    text = resources.files(__package__).joinpath(TEMPLATE).read_text("utf-8")
    version = metadata.version("keras_delta")
    page = environment.from_string(text).render(
        title=title, sections=found, left_out=left_out, version=version
    )
    _disk.make_folder(Path(os.path.abspath(path)).parent)
    with _disk.replace_file(path) as temporary:
        Path(temporary).write_text(page, "utf-8")


def shown(name):
    """Any name on one line, with unprintable characters as their codes."""
    name = str(name)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name)
