"""`fit_head`: the linear probe, which is also where fine-tuning should begin."""

import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_delta import _arguments, _tasks
from keras_delta._inputs import replay, samples
from keras_delta._network.graph import Graph
from keras_delta._probe import features, last_layers, linear
from keras_delta._types import Data, Loss, Verbose
from keras_delta.attention import losses as head_losses

VIEWS = 1
METRICS = {
    _tasks.MULTICLASS: "accuracy",
    _tasks.MULTILABEL: "accuracy of the labels",
    _tasks.BINARY: "accuracy",
    _tasks.REGRESSION: "share of the variance explained",
}


class Probe(NamedTuple):
    """How well a head does that was fitted on frozen features.

    Attributes:
        score: cross-validated, on images that the head was not fitted on: accuracy,
            or for numbers the share of the variance that is explained. A mean over
            several outputs; None where there are too few images to hold any out.
        losses: array of the losses of these images, in an order that depends on labels
            and seed alone; of numbers their mean is the share of the variance that is
            not explained. Empty likewise.
        metric: what `score` is, in words.
        strengths: dict from the head's layer to its C, one for each output.
        scores: dict from the head's layer to a dict from each C to its score.
        samples: number of images with a label that counts.
        views: number of times that each was seen.
        seconds: that it took.
    """

    score: float | None
    losses: np.ndarray
    metric: str
    strengths: dict
    scores: dict
    samples: int
    views: int
    seconds: float

    def __str__(self):
        found = ""
        if self.score is not None:
            found = f": {self.score:.1%} {self.metric}, cross-validated"
        return f"Head fitted on {self.samples} images in {self.seconds:.1f} s{found}"


def fit_head(
    model: keras.Model,
    x: Data,
    y: Data = None,
    *,
    loss: Loss = None,
    strengths: float | Sequence[float] = linear.STRENGTHS,
    views: int = VIEWS,
    folds: int = 5,
    max_samples: int | None = None,
    sample_weight: Data = None,
    class_weight: Mapping[int, float] | None = None,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> Probe:
    """Fit the last layer of a network on frozen features, in seconds.

    This is the *linear probe*, the baseline that everything else has to beat, and where
    fine-tuning begins: a random head sends large, meaningless gradients into the
    pretrained layers first. The features are what enters the last
    `Dense` layer in inference mode. Minimised is, over all views i of the images,

        1/2 ||kernel||^2 + C * sum_i w_i loss_i,

    with features divided by their root mean square, by L-BFGS: multinomial logistic
    regression for classes, one logistic regression a label for several labels, ridge
    regression for numbers. C is the one of `strengths` with the least loss in a
    cross-validation on the images given.

    Args:
        model: a `DeltaModel`, or a Functional or Sequential model whose outputs come
            out of `Dense` layers on vectors.
        x, y: the training data, as `fit` takes it. Data sets of `ImageSet.batches`
            and models with augmentation inside are seen as in a test and in random
            views; the score is that of the views of a test.
        loss: Keras loss (a list or dict for several outputs); default: the compiled
            one, else cross-entropy as the output's activation and the labels suggest.
        strengths: C to choose from; a number for that one.
        views: random views of each image, besides the one that a test shows.
        folds: of the cross-validation.
        max_samples: no more images, and views of images, than so many; default 20,000.
            Data without end need a number.
        sample_weight, class_weight: as `fit` takes them.
        seed: of the folds.
        verbose: 0 for silence.

    Returns:
        A `Probe`: the cross-validated accuracy and how it was found. The model's
        last layers have the fitted weights.

    Raises:
        TypeError: for a subclassed model, whose graph cannot be read.
        ValueError: for a model none of whose outputs can be fitted, features that are
            not finite, data without labels or without a sample.

    Source: Kornblith et al., CVPR 2019, arXiv:1805.08974 (logistic regression on fixed
    features); Kumar et al., ICLR 2022, arXiv:2202.10054 (probe, then fine-tune).
    """
    fitting = Fitting(
        *(model, x, y),
        loss=loss,
        strengths=strengths,
        views=views,
        folds=folds,
        max_samples=max_samples,
        sample_weight=sample_weight,
        class_weight=class_weight,
        seed=seed,
    )
    return fitting.fit(verbose)


class Fitting:
    """`fit_head` of a network whose weights may change in between; traced once.

    Args: see `fit_head`.

    Attributes:
        layers: list of the layers that it fits.
        image_seconds: that the last pass took for an image; the first is traced.
    """

    def __init__(
        self,
        model,
        x,
        y=None,
        *,
        loss=None,
        strengths=linear.STRENGTHS,
        views=VIEWS,
        folds=5,
        max_samples=None,
        sample_weight=None,
        class_weight=None,
        seed=0,
    ):
        self._options = _options(strengths, folds, seed)
        _arguments.integer("views", views, least=0)
        most = _arguments.integer("max_samples", max_samples, optional=True)
        self._most = most or samples.MOST
        self._x, self._y, self._max_samples = x, y, max_samples
        self._weights = {"sample_weight": sample_weight, "class_weight": class_weight}
        self._graph = Graph(getattr(model, "target", model))
        self._views = _views(x, self._graph, views, self._most)
        with replay.unmoved(x):
            self._passes = [self._read(view) for view in self._views]
            first = next(self._passes[0], None)
            if first is None:
                raise ValueError("No samples: a head cannot be fitted on nothing.")
            # What was read is not read again: a shuffle would go on.
            self._passes[0] = itertools.chain([first], self._passes[0])
        label = samples.take(first[1], 0, 1)
        self._losses = head_losses.choose(model, self._graph, loss, label).losses
        self._last = _last_layers(self._graph, self._losses)
        self.layers = [one.layer for one in self._last]
        self._run = features.Run(self._graph, [one.entering for one in self._last])

    def _read(self, view):
        options = {"max_samples": self._max_samples, "weights": self._weights}
        stream = samples.batches(view, self._y, **options)
        return samples.limited(stream, *(self._most, True))

    def fit(self, verbose="auto"):
        """Fit the head for the weights that the network has now: a `Probe`."""
        began = time.perf_counter()
        rows = self.read(verbose)
        fits = []
        for one, own in zip(self._last, rows, strict=True):
            fits.append(linear.fit(own, one.task, one.layer.units, **self._options))
            one.layer.set_weights([fits[-1].kernel, fits[-1].bias])
        result = _summary(fits, self._last, rows[0], time.perf_counter() - began)
        if verbose != 0:
            print(result, flush=True)
        return result

    def find_held_out(self, verbose=0):
        """Outputs `(images, units)` of heads that have not seen the image, one each.

        That is of the first head; NaN for an image that is alone in its class. Weights
        stay as they are.
        """
        (rows, *_), (one, *_) = self.read(verbose), self._last
        width = one.layer.units
        found = linear.fit(rows, one.task, width, every_fold=True, **self._options)
        return found.outputs

    def read(self, verbose=0):
        """List of `Rows` of the features, one for each layer that is fitted."""
        began = time.perf_counter()
        bar = _bar() if verbose != 0 and sys.stdout.isatty() else None
        with replay.unmoved(self._x):
            passes = self._passes or [self._read(view) for view in self._views]
            self._passes = None
            rows = features.read(
                self._run,
                self._last,
                self._losses,
                passes,
                self._most,
                bar and bar.update,
            )
        self.image_seconds = (time.perf_counter() - began) / len(rows[0].groups)
        if bar:
            bar.update(len(rows[0].groups), finalize=True)
        return rows


def _options(strengths, folds, seed):
    single = np.ndim(strengths) == 0
    strengths = [strengths] if single else list(strengths)
    return {
        "strengths": [_arguments.number("strengths", s, above=0) for s in strengths],
        "folds": _arguments.integer("folds", folds, least=2),
        "seed": _arguments.seed("seed", seed),
    }


def _views(x, graph, views, most):
    """The data once for each view, in an order that stays; as a test shows it first."""
    if hasattr(x, "as_tested") and x.image_views > 1 and x.image_count <= most:
        return [x.as_tested()] + [x.in_order()] * min(views, x.image_views)
    if features.random_front(graph) and not hasattr(x, "element_spec"):
        return [x] * (1 + views)
    return [x]  # nothing is random inside; or a data set that may shuffle


def _bar():
    """Shows how many images were read, where somebody looks."""
    print("Features of the head:", flush=True)
    return keras.utils.Progbar(None, unit_name="image")


def _last_layers(graph, losses):
    last, left_out = last_layers.find(graph, losses)
    if not last:
        reason = "; ".join(f"the {name} {why}" for name, why in left_out.items())
        raise ValueError(f"No head of '{graph.model.name}' can be fitted: {reason}.")
    return last


def _mean_losses(each):
    """Mean over the heads, image by image; all of them where images differ."""
    alike = len({len(losses) for losses in each}) == 1
    return np.mean(each, axis=0) if alike else np.concatenate(each)


def _summary(fits, last, rows, seconds):
    metrics = {METRICS[one.task] for one in last}
    images = len(np.unique(rows.groups))
    scores = [fit.scores.get(fit.strength) for fit in fits]
    return Probe(
        score=None if None in scores else float(np.mean(scores)),
        losses=_mean_losses([fit.losses for fit in fits]),
        metric=metrics.pop() if len(metrics) == 1 else "score",
        strengths={
            one.layer.name: f.strength for one, f in zip(last, fits, strict=True)
        },
        scores={one.layer.name: f.scores for one, f in zip(last, fits, strict=True)},
        samples=images,
        views=len(rows.groups) // images,
        seconds=seconds,
    )
