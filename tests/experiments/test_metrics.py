"""Other distances of maps, against NumPy, on a network of one convolution."""

import keras
import numpy as np
import pytest
from experiments import metrics

import keras_delta as kd
from keras_delta._inputs.look import Samples

CHANNELS, CLASSES, COUNT = 6, 3, 20
RNG = np.random.default_rng(4)
LABELS = RNG.integers(0, CLASSES, COUNT)
IMAGES = RNG.normal(size=(COUNT, 4, 4, 3)).astype("float32")
IMAGES[np.arange(COUNT), ..., LABELS] += 0.3  # their class shows
SOURCE, TARGET = RNG.normal(size=(2, 6, 4, 4, CHANNELS)).astype("float32")


@pytest.fixture(scope="module")
def model():
    """A model whose maps are what its one convolution puts out."""
    keras.utils.set_random_seed(0)
    source = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Conv2D(CHANNELS, 1, name="maps")]
    )
    target = kd.attach_head(source, CLASSES)
    made = kd.DeltaModel(target, source=source, taps=["maps"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile("sgd", loss)
    kd.fit_head(made, IMAGES, LABELS, verbose=0)
    kernel = made.pairing.new_variables[0]
    kernel.assign(kernel * np.array([[-1.0]] + (CHANNELS - 1) * [[1.0]]))  # it hurts
    return made


@pytest.fixture(scope="module")
def maps(model):
    """The maps of all images, in float64."""
    return np.asarray(model.source_maps(IMAGES)["maps"], "float64")


def prepared(model, regularizer):
    """The regularizer as a training would begin with it."""
    model.set_regularizer(regularizer)
    samples = Samples(lambda count: [(IMAGES[:12], LABELS[:12]), REST])
    regularizer.prepare(model, samples, verbose=False)
    return regularizer


REST = IMAGES[12:], LABELS[12:]


def logits_of(model, pooled):
    kernel, bias = (np.asarray(w, "float64") for w in model.pairing.new_variables)
    return pooled @ kernel + bias, kernel


def losses_of(model, maps):
    logits, _ = logits_of(model, maps.mean((1, 2)))
    log_sum = np.log(np.exp(logits).sum(-1))
    return log_sum - logits[np.arange(COUNT), LABELS]


def slopes(model, maps):
    """The loss's gradient at each position of the maps."""
    logits, kernel = logits_of(model, maps.mean((1, 2)))
    off = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    off[np.arange(COUNT), LABELS] -= 1
    return off @ kernel.T / 16  # the mean over 4 x 4 positions


def costs(model, maps):
    """What it costs to switch a channel off."""
    found = []
    for j in range(CHANNELS):
        without = maps.copy()
        without[..., j] = 0
        found.append((losses_of(model, without) - losses_of(model, maps)).mean())
    return np.array(found)


def whitened(model, maps):
    covariance = np.cov(maps.reshape(-1, CHANNELS).T, bias=True)
    even = np.trace(covariance) / CHANNELS
    return np.linalg.inv(covariance + 0.1 * even * np.eye(CHANNELS))


def fisher(model, maps):
    g = slopes(model, maps)
    return g.T @ g


EXPECTED = {
    "whitened": whitened,
    "fisher": fisher,
    "fisher of channels": lambda *a: np.diag(np.diag(fisher(*a))),
    "released": lambda *a: np.diag(costs(*a) > 0),
    "top quarter": lambda *a: np.diag(costs(*a) >= np.sort(costs(*a))[-2]),
}


@pytest.mark.parametrize("kind", metrics.KINDS)
def test_metric(model, maps, kind):
    matrix = EXPECTED[kind](model, maps).astype("float64")
    matrix *= CHANNELS / np.trace(matrix)
    assert not np.allclose(matrix, np.eye(CHANNELS), atol=0.1)
    found = prepared(model, metrics.Metric(kind))
    d = TARGET.astype("float64") - SOURCE
    expected = np.einsum("bhwi,ij,bhwj->", d, matrix, d) / (6 * 16 * CHANNELS)
    expected /= (maps**2).mean()
    given = float(found.feature_distance({"maps": SOURCE}, {"maps": TARGET}))
    assert given == pytest.approx(expected, rel=1e-4)


def relational(maps):
    flat = maps.reshape(len(maps), -1).astype("float64")
    found = flat @ flat.T
    return found / np.sqrt((found**2).sum(1, keepdims=True))


@pytest.mark.parametrize(
    "kind, reduce",
    [
        (metrics.Pooled, lambda maps: maps.astype("float64").mean((1, 2))),
        (metrics.Relational, relational),
    ],
)
def test_in_place_of_maps(model, kind, reduce):
    found = prepared(model, kind())
    source, target = reduce(SOURCE), reduce(TARGET)
    expected = ((source - target) ** 2).mean() / (source**2).mean()
    given = float(found.feature_distance({"maps": SOURCE}, {"maps": TARGET}))
    assert given == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "which, weights", [("first", (2, 0)), ("rising", (2 / 3, 4 / 3))]
)
def test_some_taps(which, weights):
    source = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 1), keras.layers.Conv2D(2, 1)]
    )
    taps = [layer.name for layer in source.layers]
    target = kd.attach_head(source, CLASSES)
    regularizer = metrics.SomeTaps(which)
    kd.DeltaModel(target, source=source, taps=taps, regularizer=regularizer)
    maps = dict(zip(taps, (SOURCE, TARGET), strict=True))
    regularizer.set_scales({tap: (v**2).mean() for tap, v in maps.items()})
    plain = kd.regularizers.FeatureMap()
    zero = {tap: 0 * v for tap, v in maps.items()}
    found = regularizer.tap_distances(maps, zero)
    alike = plain.tap_distances(maps, zero)
    for tap, weight in zip(taps, weights, strict=True):
        assert float(found[tap]) == pytest.approx(weight * float(alike[tap]), abs=1e-6)


@pytest.mark.parametrize(
    "made",
    [metrics.Metric("fisher"), metrics.SomeTaps("last"), metrics.Pooled(alpha=2.0)],
)
def test_config(made):
    config = kd.regularizers.serialize(made)
    again = kd.regularizers.deserialize(config)
    assert kd.regularizers.serialize(again) == config
