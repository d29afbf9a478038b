"""Labels that are probably wrong: confident learning on held-out predictions."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
from scipy import special  # scikit-learn brings it

from keras_delta import _arguments, backbones, regularizers
from keras_delta._errors import import_optional, invalid
from keras_delta._network.attach import attach_head
from keras_delta._network.graph import Graph
from keras_delta._network.heads import body_output
from keras_delta._probe.fit import Fitting
from keras_delta._training import start
from keras_delta._types import Data, ImageSize, RegularizerLike, Verbose
from keras_delta.analysis.images import Images
from keras_delta.data.ten_crop import height_width
from keras_delta.fine_tuning import fine_tune
from keras_delta.model import DeltaModel
from keras_delta.recipe import Recipe

PROBE = "probe"


class Suspect(NamedTuple):
    """An image whose label is probably wrong.

    Attributes:
        index: number of the image in the data.
        name: its file, or its number as text.
        label, suggestion: names of its class and of the most likely one.
        label_probability, suggestion_probability: their probabilities by a model that
            has not seen the image.
    """

    index: int  # type: ignore[assignment]
    name: str
    label: str
    suggestion: str
    label_probability: float
    suggestion_probability: float


def suspect_labels(
    source: str | keras.Model,
    train: Data,
    *,
    method: RegularizerLike = PROBE,
    folds: int = 5,
    recipe: Recipe | None = None,
    image_size: ImageSize | None = None,
    max_images: int | None = None,
    seed: int = 0,
    verbose: Verbose = 0,
) -> list[Suspect]:
    """Images of the training data whose label is probably wrong, worst first.

    Each image is judged by a model trained without it (cross-validation). For each pair
    of classes A and B, *confident learning* counts the images labelled A that the model
    assigns to B as confidently as it does B's images on average, and marks that number
    of the least likely labels as wrong. Review the result: hard and unusual images are
    among them.

    Args:
        source: name in `keras_delta.backbones.ALL`, a pretrained network, or a
            `DeltaModel`, whose source is used. Never the fine-tuned network: it has
            learned the wrong labels.
        train: a folder with one folder per class, an `ImageSet`, arrays `(x, y)` with
            class numbers, or batches of them.
        method: `"probe"`, a linear head on the source's features, in seconds; or a
            regularizer (`"delta"`, `"l2"`, ...): the network is fine-tuned for each
            fold, following the recipe.
        folds: of the cross-validation.
        recipe: a `Recipe` for fine-tuning; default: `Recipe()`.
        image_size: side in pixels or (height, width); default: the network's.
        max_images: number of images at most, drawn at random.
        seed: of folds, order and augmentation.
        verbose: as for `fit`, for each fold.

    Returns:
        List of `Suspect`, with the lowest probability of the label first.

    Raises:
        ImportError: if cleanlab is missing.
        TypeError, ValueError: if the data have no class numbers, or a single class.

    Source: Northcutt, Jiang and Chuang, "Confident Learning", JAIR 70, 2021,
        doi 10.1613/jair.1.12125; its program cleanlab does the counting.

    Example:
        ```python
        for s in kd.analysis.suspect_labels("efficientnet_lite0", "photos/train"):
            print(s.name, s.label, "->", s.suggestion)
        ```
    """
    filtering = import_optional("cleanlab.filter", "suspect_labels", "report")
    _arguments.integer("folds", folds, least=2)
    if method != PROBE:
        regularizers.get(method)  # raises if unknown
    source, size = _network(source, image_size)
    images, channels = train, source.inputs[0].shape[-1]
    if not isinstance(train, Images):
        images = Images(train, "train", size, max_images, seed, channels)
    classes = _classes(images)
    if method == PROBE:
        outputs = _probe(source, images, len(classes), folds, seed, verbose)
    else:
        options = {"method": method, "recipe": recipe, "seed": seed, "verbose": verbose}
        outputs = _fine_tuned(source, images, len(classes), folds, options)
    found = judge(outputs, images.labels, classes, images.names, filtering)
    return [s._replace(index=int(images.numbers[s.index])) for s in found]


def judge(outputs, labels, classes, names, filtering):
    """List of `Suspect` from logits of models that have not seen the images.

    Args:
        outputs: `(N, classes)`; rows of NaN are not judged.
        labels: `(N,)` class numbers.
        classes, names: names of classes and of images.
        filtering: the module `cleanlab.filter`.
    """
    known = np.flatnonzero(np.isfinite(outputs).all(axis=1))
    if not len(known):
        expected = "at least two images of a class, as each is judged without itself"
        raise ValueError(invalid("train", expected, "one of each"))
    shown, given = np.unique(labels[known], return_inverse=True)
    classes = [classes[c] for c in shown]
    p = special.softmax(outputs[known][:, shown].astype("float64"), axis=1)
    worst = filtering.find_label_issues(
        given, p, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    found = []
    for i in worst:
        other = int(p[i].argmax())
        if other != given[i]:
            row, shares = int(known[i]), (p[i, given[i]], p[i, other])
            pair = classes[given[i]], classes[other]
            found.append(Suspect(row, names[row], *pair, *map(float, shares)))
    return found


def _network(source, image_size):
    """(network that outputs maps, (height, width) or None)"""
    if isinstance(source, str):
        build = backbones.get(source)
        side = backbones.ALL[source].size if image_size is None else image_size
        source = build(input_shape=(*height_width(side, "image_size"), 3))
    elif isinstance(source, DeltaModel):
        if start.has_teacher(source):
            expected = "a pretrained network that has not seen these labels"
            received = "a DeltaModel whose source is a teacher"
            raise ValueError(invalid("source", expected, received))
        source = source.source
    graph = Graph(source, argument="source")
    body = body_output(graph)
    if body is not None:
        source = keras.Model(source.inputs, body)
    size = tuple(graph.inputs[0].shape[1:3])
    if None in size and image_size is not None:
        size = height_width(image_size, "image_size")
    return source, None if None in size else size


def _classes(images):
    """Names of the classes; refuses labels that are not class numbers."""
    labels = images.labels
    if labels is not None and labels.ndim == 2:
        one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
        if labels.shape[1] == 1 or one_hot:
            labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(1)
    if labels is not None and labels.ndim == 1 and (labels == np.floor(labels)).all():
        labels = images.labels = labels.astype(int)
    if (
        labels is None
        or labels.ndim != 1
        or labels.min(initial=0) < 0
        or (labels.dtype.kind != "i")
    ):
        expected = "images with one class number each"
        received = "none" if labels is None else f"labels {labels.dtype} {labels.shape}"
        raise ValueError(invalid("train", expected, received))
    count = len(images.class_names or ()) or int(labels.max(initial=0)) + 1
    shown = np.bincount(labels, minlength=count)
    if (shown > 0).sum() < 2:
        received = f"{int((shown > 0).sum())} class"
        raise ValueError(invalid("train", "images of at least two classes", received))
    return images.class_names or tuple(map(str, range(count)))


def _probe(source, images, classes, folds, seed, verbose):
    if images.image_set is not None and images.channels == 3:
        x, y = images.image_set.batches(images.size), None  # read on demand
    else:
        x, y = images.take(range(len(images))), images.labels
    options = {"views": 0, "folds": folds, "seed": seed, "max_samples": len(images)}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head = attach_head(source, classes)
    fitting = Fitting(head, x, y, loss=loss, **options)
    return fitting.find_held_out(verbose)


def _fine_tuned(source, images, classes, folds, options):
    """Logits of networks that were fine-tuned without the images."""
    from sklearn.model_selection import StratifiedKFold

    outputs = np.full((len(images), classes), np.nan, "float32")
    counts = np.bincount(images.labels)
    folds = max(2, min(folds, counts.max()))
    parts = StratifiedKFold(folds, shuffle=True, random_state=options["seed"])
    for rest, held_out in _quietly_split(parts, images.labels):
        if images.image_set is not None and images.channels == 3:
            train = images.image_set.subset(rest)
        else:
            train = images.take(rest), images.labels[rest]
        size = images.size
        model = fine_tune(source, train, classes=classes, image_size=size, **options)
        outputs[held_out] = model.predict(images.take(held_out), verbose=0)
    outputs[counts[images.labels] < 2] = np.nan  # no training image of its class
    return outputs


def _quietly_split(parts, labels):
    """Splits without the warning for classes with fewer images than folds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return list(parts.split(labels, labels))
