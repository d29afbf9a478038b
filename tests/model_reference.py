"""What a training step of `DeltaModel` must do, written out slowly and plainly."""

from types import SimpleNamespace

import keras
import numpy as np
import tensorflow as tf

import keras_delta as kd
from keras_delta.regularizers import L2, L2FE, L2SP, Delta, FeatureMap, L2SPAtt

SIZE, WIDTHS, CLASSES = 8, (3, 4), 3
TAPS = ("conv0", "conv1")
WEIGHTS = {"conv0": [0.5, 0.2, 0.3], "conv1": [0.1, 0.4, 0.3, 0.2]}
LOSS = "sparse_categorical_crossentropy"


def data(count, seed=0, size=SIZE):
    """Images and labels; every class occurs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, size, size, 3)).astype("float32")
    return x, np.arange(count) % CLASSES


def learnable_data(count, seed=0, size=SIZE):
    """Images whose brightest colour is their label."""
    x, y = data(count, seed, size)
    x[np.arange(count), ..., y] += 2
    return x, y


def batches(sizes, *arrays):
    """A tf.data.Dataset with batches of these sizes."""
    whole, start = None, 0
    for size in sizes:
        part = tuple(a[start : start + size] for a in arrays)
        part = tf.data.Dataset.from_tensor_slices(part).batch(size)
        whole = part if whole is None else whole.concatenate(part)
        start += size
    return whole


def pair(new_backbone, batch_norm=False, dropout=0.0, drift=0.1):
    """(target, source): the target is a small random step away from the source."""
    source = new_backbone(batch_norm=batch_norm, size=SIZE, widths=WIDTHS)
    target = kd.attach_head(source, CLASSES, dropout=dropout)
    rng = np.random.default_rng(7)
    head = target.get_layer("head")
    head.set_weights([rng.normal(size=w.shape) for w in head.get_weights()])
    for v in target.trainable_variables:
        v.assign(v + drift * rng.normal(size=v.shape))
    return target, source


def compiled(target, source, regularizer=None, rate=0.1, optimizer=None, **kwargs):
    """A compiled `DeltaModel`; plain SGD unless an optimizer is given.

    It runs eagerly where it can: tracing takes seconds, the training milliseconds.
    That both do the same is tested in `test_model_keras_features.py`.
    """
    model = kd.DeltaModel(target, source=source, taps=list(TAPS))
    eager = not kwargs.get("jit_compile")
    kwargs = {"jit_compile": False, "run_eagerly": eager, **kwargs}
    model.compile(
        optimizer or keras.optimizers.SGD(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        regularizer=regularizer,
        **kwargs,
    )
    return model


def _half_squares(tensors):
    return 0.5 * sum(tf.reduce_sum(t**2) for t in tensors)


def _l2(r):
    return _half_squares(v for v, _ in r.body)


def _l2_sp(r, kernels=False):
    return _half_squares(v - s for v, s in r.body if len(v.shape) > 1 or not kernels)


def _l2_sp_att(r):
    total = 0.0
    for v, s in r.body:
        difference = v - s
        layer = v.path.split("/")[-2]
        if len(v.shape) > 1:
            w = np.asarray(WEIGHTS[layer], "float32")
            for j in range(v.shape[-1]):
                total += 0.5 * len(w) * w[j] * tf.reduce_sum(difference[..., j] ** 2)
        else:
            total += 0.5 * tf.reduce_sum(difference**2)
    return total


def _maps(r, variant, attention):
    """The formulas of the class docstrings, one sample, tap and channel at a time."""
    total = 0.0
    for tap in TAPS:
        s, t = r.source_maps[tap], r.target_maps[tap]
        count, height, width, channels = s.shape
        for b in range(count):
            for j in range(channels):
                d = tf.reduce_sum((t[b, :, :, j] - s[b, :, :, j]) ** 2)
                w = WEIGHTS[tap][j]
                if variant == "relative":
                    w = w if attention else 1 / channels
                    total += w * d / (height * width) / r.scales[tap] / count
                elif variant == "code":
                    factor = channels * w / (height * width) if attention else 1.0
                    total += 0.5 * factor * d
                else:
                    total += (w if attention else 1.0) * d / count
    return total


def _case(make, omega, alpha, beta, head_factor=1.0, trains_features=True):
    return SimpleNamespace(
        make=make,
        omega=omega,
        alpha=alpha,
        beta=beta,
        head_factor=head_factor,
        trains_features=trains_features,
    )


CASES = {
    "l2": _case(lambda: L2(0.3, 0.2), _l2, 0.3, 0.2),
    "l2_fe": _case(
        lambda: L2FE(beta=0.2), lambda r: 0.0, 0.0, 0.2, trains_features=False
    ),
    "l2_sp": _case(lambda: L2SP(0.3, 0.2), _l2_sp, 0.3, 0.2),
    "l2_sp-kernels": _case(
        lambda: L2SP(0.3, 0.2, parameters="kernels"),
        lambda r: _l2_sp(r, True),
        0.3,
        0.2,
    ),
    "l2_sp_att": _case(
        lambda: L2SPAtt(0.3, 0.2, attention=WEIGHTS), _l2_sp_att, 0.3, 0.2
    ),
    "sum": _case(
        lambda: [FeatureMap(0.3, 0.1), L2SP(0.3, 0.1)],
        lambda r: _maps(r, "relative", False) + _l2_sp(r),
        0.3,
        0.2,
    ),
}
for _variant, _alpha in (("relative", 0.3), ("code", 0.01), ("article", 0.01)):
    _factor = 2.0 if _variant == "article" else 1.0
    CASES[f"feature_map-{_variant}"] = _case(
        lambda a=_alpha, v=_variant: FeatureMap(a, 0.2, variant=v),
        lambda r, v=_variant: _maps(r, v, False),
        _alpha,
        0.2,
        _factor,
    )
    CASES[f"delta-{_variant}"] = _case(
        lambda a=_alpha, v=_variant: Delta(a, 0.2, attention=WEIGHTS, variant=v),
        lambda r, v=_variant: _maps(r, v, True),
        _alpha,
        0.2,
        _factor,
    )


def step(target, source, case, x, y, scales, sample_weight=None, rate=0.1):
    """One step of SGD on `target`, in place.

    Returns:
        Dict of what is to be logged.
    """
    s = keras.Model(source.inputs, [source.get_layer(t).output for t in TAPS])
    t = keras.Model(
        target.inputs, [target.output, *[target.get_layer(t).output for t in TAPS]]
    )
    x = tf.constant(x)
    source_maps = dict(zip(TAPS, s(x, training=False), strict=True))
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
    head = target.get_layer("head")
    with tf.GradientTape() as tape:
        logits, *maps = t(x, training=True)
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        task = tf.reduce_sum(each * weight.astype("float32")) / len(y)
        task += sum(t.losses, 0.0)
        names = [layer.name for layer in target.layers if layer.name != "head"]
        body = [
            (v, s)
            for name in names
            for v, s in zip(
                target.get_layer(name).trainable_variables,
                source.get_layer(name).trainable_variables
                if name in {layer.name for layer in source.layers}
                else [],
                strict=True,
            )
        ]
        r = SimpleNamespace(
            body=body,
            source_maps=source_maps,
            target_maps=dict(zip(TAPS, maps, strict=True)),
            scales=scales,
        )
        feature = case.alpha * case.omega(r)
        penalty = case.head_factor * _half_squares([head.kernel, head.bias])
        penalty = case.beta * penalty
        loss = task + feature + penalty
    variables = target.trainable_variables
    if not case.trains_features:
        variables = head.trainable_variables
    for v, g in zip(variables, tape.gradient(loss, variables), strict=True):
        v.assign_sub(rate * g)
    return {
        "loss": float(loss),
        "task_loss": float(task),
        "feature_penalty": float(feature),
        "head_penalty": float(penalty),
    }


def scales(source, x):
    """Dict tap -> mean square of the source map over all of `x`."""
    s = keras.Model(source.inputs, [source.get_layer(t).output for t in TAPS])
    return {
        t: np.mean(np.square(np.asarray(m, "float64")))
        for t, m in zip(TAPS, s(tf.constant(x), training=False), strict=True)
    }


def assert_same_weights(a, b, atol=1e-5, rtol=1e-5):
    """Every weight of two models (or lists of arrays) is the same."""
    a = a if isinstance(a, list) else a.get_weights()
    b = b if isinstance(b, list) else b.get_weights()
    assert len(a) == len(b)
    for i, (v, w) in enumerate(zip(a, b, strict=True)):
        np.testing.assert_allclose(v, w, atol=atol, rtol=rtol, err_msg=f"weight {i}")


@keras.saving.register_keras_serializable("keras_delta_tests")
class Counter(keras.layers.Layer):
    """Passes its input on and counts its runs, in training and in inference mode."""

    def build(self, shape):
        """Make the two counts."""
        for name in ("trained", "inferred"):
            v = self.add_weight(
                name=name, shape=(), initializer="zeros", trainable=False
            )
            setattr(self, name, v)

    def call(self, x, training=False):
        """Count, and change nothing."""
        (self.trained if training else self.inferred).assign_add(1.0)
        return x

    @property
    def counts(self):
        """(runs in training mode, runs in inference mode)."""
        return int(self.trained.numpy()), int(self.inferred.numpy())
