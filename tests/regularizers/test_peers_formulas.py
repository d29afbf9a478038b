"""The peers' formulas, on numbers that were worked out with other programs."""

import keras
import numpy as np
import pytest
import reference as ref
import tensorflow as tf
from networks import make_backbone

import keras_delta as kd
from keras_delta import regularizers
from keras_delta.regularizers import (
    Batch,
    bi_tuning,
    class_relations,
    co_tuning,
    fitnets,
)
from keras_delta.regularizers.features import read_labels
from keras_delta.regularizers.fsp import flow_matrix

F, G = ref.TARGET_MAP, ref.SOURCE_MAP
TARGET_LOGITS = np.array([[1, 0.5, 0], [-1, 2, 0.5]])
SOURCE_LOGITS = np.array([[2, 1, -1], [0, 3, 1]])


def distance(regularizer, source, target):
    return float(regularizer.feature_distance({"a": source}, {"a": target}))


def test_at():
    assert distance(regularizers.AT(), G, F) == pytest.approx(0.0561215, abs=1e-6)
    norms = [0.424472, 0.577366, 0.399912]
    article = distance(regularizers.AT(variant="article"), G, F)
    assert article == pytest.approx(np.mean(norms) / 2, abs=1e-6)
    assert (regularizers.AT().alpha, regularizers.AT(variant="article").alpha) == (
        1000,
        1,
    )
    each = distance(regularizers.AT(variant="article"), G[1:2], F[1:2])
    assert each == pytest.approx(norms[1] / 2, abs=1e-6)


def test_at_where_maps_agree():
    """The article's norm has no gradient there, and must not give NaN."""
    maps = tf.Variable(G)
    with tf.GradientTape() as tape:
        found = regularizers.AT(variant="article").feature_distance(
            {"a": G}, {"a": maps}
        )
    assert float(found) == 0
    np.testing.assert_array_equal(tape.gradient(found, maps), np.zeros(G.shape))


def test_at_of_other_sizes():
    """The target's map is pooled to the source's grid."""
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 6, 8, 3))

    def unit(energy):
        return energy / np.linalg.norm(energy)

    expected = []
    for s, t in zip(source, target, strict=True):
        pooled = (t**2).sum(-1).reshape(3, 2, 4, 2).mean((1, 3))
        expected.append(((unit((s**2).sum(-1)) - unit(pooled)) ** 2).mean())
    found = distance(regularizers.AT(), source, target)
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_fitnets_without_a_regressor():
    assert distance(regularizers.FitNets(), G, F) == pytest.approx(0.285167, abs=1e-6)
    article = regularizers.FitNets(variant="article")
    assert distance(article, G, F) == pytest.approx(2.851667, abs=1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours", "kind", "kernel", "strides"),
    [
        ((4, 6), (4, 6), "Conv2D", (1, 1), (1, 1)),
        ((4, 6), (8, 18), "Conv2D", (3, 3), (2, 3)),
        ((8, 18), (4, 6), "Conv2DTranspose", (4, 6), (2, 3)),
        ((4, 6), (7, 6), "Conv2D", (4, 1), (1, 1)),
    ],
)
def test_the_convolution_of_fitnets(theirs, ours, kind, kernel, strides):
    layer = fitnets.Regressor((*theirs, 5), (*ours, 3), False, False, 0).convolution
    assert type(layer).__name__ == kind
    assert (layer.kernel_size, layer.strides) == (kernel, strides)
    assert layer(np.zeros((2, *ours, 3))).shape == (2, *theirs, 5)


def test_fsp():
    source, target = {"a": G, "b": G}, {"a": F, "b": G}
    found = regularizers.FSP().feature_distance(source, target)
    assert float(found) == pytest.approx(0.0144699, abs=1e-7)
    found = regularizers.FSP(variant="article").feature_distance(source, target)
    assert float(found) == pytest.approx(0.361748, abs=1e-6)


def test_flow_of_maps_of_any_size():
    """The sizes are not known when a step is traced."""
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype("float32")
    spec = tf.TensorSpec((None, None, None, 3))
    flow = tf.function(flow_matrix, input_signature=[spec, spec])
    for y in (x, x[:, ::2, ::2]):
        expected = flow_matrix(x, y)
        np.testing.assert_allclose(flow(x, y), expected, rtol=1e-5, atol=1e-6)


def test_flow_between_grids():
    x, y = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 2))
    y = y[:, ::2, ::2]
    pooled = x.reshape(1, 2, 2, 2, 2, 2).mean((2, 4))
    expected = np.einsum("bhwi,bhwj->bij", pooled, y) / 4
    np.testing.assert_allclose(flow_matrix(x, y), expected, atol=1e-6)
    turned = np.swapaxes(expected, 1, 2)
    np.testing.assert_allclose(flow_matrix(y, x), turned, atol=1e-6)


def test_lwf():
    found = regularizers.LwF().logit_distance(SOURCE_LOGITS, TARGET_LOGITS)
    assert float(found) == pytest.approx(0.962474, abs=1e-6)
    tllib = regularizers.LwF(variant="tllib")
    assert (tllib.alpha, tllib.temperature) == (4.0, 3.0)
    found = tllib.logit_distance(SOURCE_LOGITS, TARGET_LOGITS)
    assert float(found) == pytest.approx(0.0172840, abs=1e-6)


def test_bss():
    features = (np.arange(12) ** 2 % 7).reshape(3, 4).astype("float32")
    for k, expected in ((1, 1.101019), (2, 14.372477), (3, 67), (9, 67)):
        found = float(regularizers.BSS(k=k).spectral_penalty(features))
        assert found == pytest.approx(expected, abs=1e-4)


# k, value, sum of the squared gradient, and four elements of it, of the authors'
# program (github.com/thuml/Batch-Spectral-Shrinkage) in PyTorch and float64.
GOLDEN = (
    (1, 0.136182046, 0.544728185, (-0.072668985, 0.052512051, 0.084553067)),
    (2, 0.306068681, 1.224274724, (0.050913461, -0.133508669, 0.135377677)),
    (3, 0.651918405, 2.607673620, (0.022070174, -0.137335913, 0.105426877)),
)


@pytest.mark.parametrize(("k", "value", "squares", "some"), GOLDEN)
def test_bss_is_the_authors(k, value, squares, some):
    i = np.arange(60)
    features = (i**2 % 11 / 10 - 0.5 + 0.3 * np.sin(i)).reshape(6, 10)
    features = tf.Variable(features, dtype="float32")
    with tf.GradientTape() as tape:
        penalty = regularizers.BSS(k=k).spectral_penalty(features)
    gradient = tape.gradient(penalty, features).numpy()
    assert float(penalty) == pytest.approx(value, abs=1e-5)
    assert (gradient**2).sum() == pytest.approx(squares, abs=1e-5)
    np.testing.assert_allclose(gradient[2, :3], some, atol=1e-5)


def test_relations():
    logits = np.sin(np.arange(12)).reshape(4, 3)
    numbers = np.array([0, 1, 0, 1])
    relations = class_relations.relate(logits, numbers, 2, "direct", 1.0)
    expected = [[0.156522, 0.379349, 0.464129], [0.594436, 0.235106, 0.170458]]
    np.testing.assert_allclose(relations, expected, atol=1e-6)
    labels = np.eye(2)
    found = co_tuning.label_distance(relations, TARGET_LOGITS, labels)
    assert float(found) == pytest.approx(1.807190, abs=1e-6)
    first = co_tuning.label_distance(relations, TARGET_LOGITS[:1], labels[:1])
    weights = np.array([3.0, 0.0], "float32")
    weighted = co_tuning.label_distance(relations, TARGET_LOGITS, labels, weights)
    assert float(weighted) == pytest.approx(1.5 * float(first), rel=1e-6)
    soft = [
        co_tuning.label_distance(relations, TARGET_LOGITS[:1], s)
        for s in ([[0.7, 0.3]], labels[:1], labels[1:])
    ]
    assert float(soft[0]) == pytest.approx(
        0.7 * float(soft[1]) + 0.3 * float(soft[2]), rel=1e-6
    )
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = [[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]]
    expected = [[0.482822, 0.225748, 0.291430], [0.247228, 0.404577, 0.348194]]
    found = class_relations.invert(given, shares.mean(0))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_step_to_relations_by_bayes():
    """The authors' program, with a grid in place of the search for the scale."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    rng = np.random.default_rng(1)
    numbers = np.arange(60) % 3
    logits = 1.5 * np.eye(3)[numbers] @ rng.normal(size=(3, 5))
    logits += 0.7 * rng.normal(size=(60, 5))
    shares = softmax(0.6 * logits)
    split = StratifiedKFold(5, shuffle=True, random_state=0).split(shares, numbers)
    fitted, held = next(split)
    most = -1
    for strength in (c * 10.0**e for e in range(3, -5, -1) for c in (10, 3)):
        model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
        model.fit(shares[fitted], numbers[fitted])
        right = (model.predict(shares[held]) == numbers[held]).sum()
        if right > most:
            most, kernel = right, model.coef_.T
    losses = {}
    for scale in np.exp(np.linspace(-5, 5, 4001)):
        found = softmax(scale * shares[held] @ kernel)
        losses[scale] = -np.log(found[np.arange(len(held)), numbers[held]]).mean()
    target_given_source = softmax(min(losses, key=losses.get) * kernel)
    expected = target_given_source.T * shares.mean(0)
    expected /= expected.sum(1, keepdims=True)
    found = class_relations.relate(logits, numbers, 3, "bayes", 0.6)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    other = class_relations.relate(logits, numbers, 3, "bayes", 1.0)
    assert np.abs(other - expected).max() > 0.02


@pytest.mark.parametrize("classes", [2, 3])
def test_relations_by_bayes(classes):
    """Each source class belongs to one target class, and this is found."""
    rng = np.random.default_rng(0)
    numbers = np.arange(60) % classes
    its = numbers + classes * rng.integers(0, 2, 60)  # two source classes for each
    logits = 4 * np.eye(2 * classes)[its] + rng.normal(size=(60, 2 * classes))
    found = class_relations.relate(logits, numbers, classes, "bayes", 0.9)
    np.testing.assert_allclose(found.sum(1), 1)
    belongs = np.arange(2 * classes) % classes == np.arange(classes)[:, None]
    assert found[belongs].min() > 3 * found[~belongs].max()
    with pytest.raises(ValueError, match="none of class 1"):
        class_relations.relate(logits, 2 * numbers, classes + 3, "direct", 1)
    with pytest.raises(ValueError, match="at least two training images"):
        class_relations.relate(logits[:classes], numbers[:classes], classes, "bayes", 1)


def test_bi_tuning():
    own = np.array([0.9], "float32")
    others = np.array([[[0.5], [0.1], [-0.3]]], "float32")
    for temperature, expected in ((0.07, 2.167300), (1.0, 0.390969)):
        for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
            found = bi_tuning.contrastive_distance(
                own, others[:, order], [order.index(0)], temperature
            )
            assert float(found[0]) == pytest.approx(expected, abs=3e-6)


def test_dtnh():
    dtnh = regularizers.DTNH("l2_sp")

    def combine(task, penalty):
        return [None if v is None else np.array(v) for v in dtnh.combine(task, penalty)]

    (found,) = combine([np.array([1.0, 0.0])], [np.array([-1.0, 2.0])])
    np.testing.assert_allclose(found, [1, 2], atol=1e-7)
    # The same over two variables, and with one that only one of them moves.
    parts = ([1.0], [0.0], None, [5.0]), ([-1.0], [2.0], [3.0], None)
    task, penalty = ([v and np.array(v) for v in part] for part in parts)
    # Against (1, 0, 5): <g_R, g_E> = -1, ||g_E||^2 = 26.
    found = combine(task, penalty)
    np.testing.assert_allclose(
        np.ravel(found), [27 / 26 - 1, 2, 3, 135 / 26], rtol=1e-5
    )
    agreeing = combine([np.array([1.0, 0.0])], [np.array([1.0, 2.0])])
    np.testing.assert_allclose(agreeing[0], [2, 2])
    nothing = combine([np.zeros(2)], [np.array([1.0, 2.0])])
    np.testing.assert_allclose(nothing[0], [1, 2])


def test_fisher():
    source = make_backbone(widths=(4, 5))
    model = kd.DeltaModel(kd.attach_head(source, 3), source, regularizer="l2_sp_fisher")
    regularizer = model.regularizer
    weights = {v.path: np.zeros(v.shape) for v, _ in model.pairing.variables}
    kernel, start = next(
        pair for pair in model.pairing.variables if pair[0].shape == (3, 3, 4, 5)
    )
    weights[kernel.path][:1, :1, :2] = np.arange(10).reshape(2, 5) / 10
    weights[kernel.path][:1, 1:2, :2] = np.arange(10, 20).reshape(2, 5) / 10
    moved = (ref.KERNEL - ref.STARTING_KERNEL).reshape(2, 2, 5)
    new = start.numpy()
    new[0, :2, :2] += moved
    kernel.assign(new)
    regularizer.set_fisher(weights)
    assert float(regularizer.weight_distance()) == pytest.approx(2.513, abs=1e-5)
    with pytest.raises(ValueError, match="fisher"):
        regularizer.set_fisher({"a": 1})


def test_fisher_of_a_network_differentiated_by_hand():
    """Squared gradients of log p, each for a class that the network draws."""
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(2, 1, name="conv", bias_initializer="normal")(inputs)
    source = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    target = kd.attach_head(source, 3)
    measured = regularizers.L2SPFisher(samples=6, normalize=False)
    model = kd.DeltaModel(target, source, regularizer=measured)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    images = rng.normal(1, 2, size=(6, 4, 4, 3)).astype("float32")
    model.prepare(images, np.zeros(6, "int32"), verbose=0)
    (kernel, bias), (head, head_bias) = (
        target.get_layer(name).get_weights() for name in ("conv", "head")
    )
    of_kernel, of_bias, numbers = 0.0, 0.0, []
    for i, pooled in enumerate(images.astype("float64").mean((1, 2))):
        logits = (pooled @ kernel[0, 0] + bias) @ head + head_bias
        drawn = tf.random.stateless_categorical(logits[None], 1, [0, i])
        numbers.append(int(drawn[0, 0]))
        shares = np.exp(logits) / np.exp(logits).sum()
        gradient = head @ (np.eye(3)[numbers[-1]] - shares)
        of_kernel += np.outer(pooled, gradient) ** 2 / 6
        of_bias += gradient**2 / 6
    assert len(set(numbers)) > 1
    found = {path.split("/")[-1]: f for path, f in measured.fisher.items()}
    np.testing.assert_allclose(found["kernel"][0, 0], of_kernel, rtol=1e-4)
    np.testing.assert_allclose(found["bias"], of_bias, rtol=1e-4)


def test_stoch_norm(monkeypatch):
    layer = kd.layers.StochNorm(0.3, epsilon=1e-5)
    layer.build(F.shape)
    drawn = np.array([0.1, 0.9, 0.2, 0.4, 0.0]).reshape(1, 1, 1, 5)
    monkeypatch.setattr(keras.random, "uniform", lambda *a, **k: drawn)
    found = np.array(layer(F.astype("float32"), training=True))
    expected = [-1.253493, -0.399998, 0, 0.399998, 0.336730]
    np.testing.assert_allclose(found[0, 0, 0], expected, atol=1e-5)
    assert (found**2).sum() == pytest.approx(38.295319, rel=1e-5)
    # The statistics move once, as those of BatchNormalization.
    np.testing.assert_allclose(layer.moving_mean, 0.01 * F.mean((0, 1, 2)), rtol=1e-5)
    later = np.array(layer(F.astype("float32"), training=False))
    plain = (F - layer.moving_mean) / np.sqrt(layer.moving_variance + 1e-5)
    np.testing.assert_allclose(later, plain, atol=1e-5)


def test_labels():
    def read(labels, classes=3, weights=None):
        found = read_labels(Batch(labels=labels, label_weights=weights), classes)
        return [np.array(v).tolist() for v in found]

    shares = [[0, 0, 1], [1, 0, 0]]
    assert read(np.array([2, 0])) == [shares, [1, 1]]
    assert read({"a": np.array([[2], [0]])}) == [shares, [1, 1]]
    assert read(np.eye(3)[[2, 0]]) == [shares, [1, 1]]
    found = read(np.array([255, -1, 1]), weights=np.array([1, 1, 0.5]))
    assert found == [[[0, 0, 0], [0, 0, 0], [0, 1, 0]], [0, 0, 0.5]]
