"""`fit_head`: the linear probe, also the best starting point for fine-tuning."""

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
    """How well a head fitted on frozen features does.

    Attributes:
        score: cross-validated, on images that the head was not fitted on: accuracy,
            or the share of explained variance for a regression. A mean over several
            outputs; None if there are too few images to hold any out.
        losses: array of the losses of these images, in an order that depends only on
            labels and seed; their mean is the share of unexplained variance for a
            regression. Empty if `score` is None.
        metric: name of the score.
        strengths: dict from the head's layer to its C, one per output.
        scores: dict from the head's layer to a dict from each C to its score.
        samples: number of images with a label that counts.
        views: number of times that each was seen.
        seconds: time taken.
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

    This is the *linear probe*, the baseline that everything else has to beat and the
    starting point of fine-tuning: a random head would first send large, meaningless
    gradients into the pretrained layers. The features are the input of the last
    `Dense` layer in inference mode. The objective, over all views i of the images, is

        1/2 ||kernel||^2 + C * sum_i w_i loss_i,

    with features divided by their root mean square, minimised by L-BFGS: multinomial
    logistic regression for classes, one logistic regression per label for several
    labels, ridge regression for numbers. C is the value in `strengths` with the lowest
    loss in a cross-validation on the given images.

    Args:
        model: a `DeltaModel`, or a Functional or Sequential model whose outputs come
            from `Dense` layers on vectors.
        x, y: the training data, as `fit` takes it. Data sets of `ImageSet.batches`
            and models with augmentation inside are seen as in a test and in random
            views; the score is for the test views.
        loss: Keras loss (a list or dict for several outputs); default: the compiled
            one, else cross-entropy as the output's activation and the labels suggest.
        strengths: values of C to choose from; or a single one.
        views: random views of each image, in addition to the test view.
        folds: of the cross-validation.
        max_samples: number of images, and of views of images, at most; default 20,000.
            Endless data need a number.
        sample_weight, class_weight: as `fit` takes them.
        seed: of the folds.
        verbose: 0 for silence.

    Returns:
        A `Probe`: the cross-validated accuracy and how it was obtained. The model's
        last layers have the fitted weights.

    Raises:
        TypeError: if the model is subclassed, so its graph cannot be read.
        ValueError: if no output of the model can be fitted, features are not finite,
            or the data have no labels or no samples.

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
    """`fit_head` for a network whose weights may change in between; traced once.

    Args: see `fit_head`.

    Attributes:
        layers: list of the fitted layers.
        image_seconds: time per image of the last pass; the first includes tracing.
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
        self._images = features.Images()
        self._views = _views(x, self._graph, views, self._most)
        with replay.unmoved(x):
            self._passes = [self._read(view) for view in self._views]
            first = next(self._passes[0], None)
            if first is None:
                raise ValueError("No samples: a head needs at least one.")
            # Do not read the first batch twice: a shuffle would advance.
            self._passes[0] = itertools.chain([first], self._passes[0])
        label = samples.take(first[1], 0, 1)
        self._losses = head_losses.choose(model, self._graph, loss, label).losses
        self._last = _last_layers(self._graph, self._losses)
        self.layers = [one.layer for one in self._last]
        self._run = features.Run(self._graph, [one.entering for one in self._last])

    def _read(self, view):
        # Of arrays not the first ones: they may be sorted by class.
        most = self._most if samples.are_arrays(view) else self._max_samples
        options = {"max_samples": most, "weights": self._weights}
        stream = samples.batches(view, self._y, **options)
        return samples.limited(stream, *(self._most, True))

    def fit(self, verbose="auto"):
        """Fit the head for the network's current weights; returns a `Probe`."""
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
        """Outputs `(images, units)`, each by a head that has not seen the image.

        For the first output; NaN for an image that is alone in its class. Weights are
        not changed.
        """
        (rows, *_), (one, *_) = self.read(verbose), self._last
        width = one.layer.units
        found = linear.fit(rows, one.task, width, every_fold=True, **self._options)
        return found.outputs

    def read(self, verbose=0):
        """List of `Rows` of the features, one per fitted layer."""
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
                self._images,
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
    """The data once per view, in a fixed order, with the test view first."""
    if hasattr(x, "as_tested") and x.image_views > 1 and x.image_count <= most:
        return [x.as_tested()] + [x.in_order()] * min(views, x.image_views)
    if features.random_front(graph) and not hasattr(x, "element_spec"):
        return [x] * (1 + views)
    return [x]  # nothing is random inside; or a data set that may shuffle


def _bar():
    """A progress bar of the images read."""
    print("Features of the head:", flush=True)
    return keras.utils.Progbar(None, unit_name="image")


def _last_layers(graph, losses):
    last, left_out = last_layers.find(graph, losses)
    if not last:
        reason = "; ".join(f"the {name} {why}" for name, why in left_out.items())
        raise ValueError(f"No head of '{graph.model.name}' can be fitted: {reason}.")
    return last


def _mean_losses(each):
    """Mean over the heads, image by image; all losses if images differ."""
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
