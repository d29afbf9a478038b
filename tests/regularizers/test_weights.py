"""`L2`, `L2FE`, `L2SP` and `L2SPAtt`: which parameters, and how much."""

import keras
import numpy as np
import pytest
from reference import (
    KERNEL,
    SCORES,
    STARTING_KERNEL,
    l2_sp,
    l2_sp_att,
)

import keras_delta as kd
from keras_delta import ChannelAttention
from keras_delta.regularizers import L2, L2FE, L2SP, L2SPAtt
from keras_delta.regularizers.l2_sp import is_kernel


def one_kernel(kernel):
    """A convolution with the kernel of `reference` and nothing else."""
    i = keras.Input((4, 4, 2))
    conv = keras.layers.Conv2D(5, (1, 2), use_bias=False, name="conv")
    model = keras.Model(i, conv(i))
    conv.set_weights([kernel])
    return model


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (L2(), 0.905),
        (L2SP(), 2.445),
        (L2SP(parameters="kernels"), 2.445),
        (L2SPAtt(attention=ChannelAttention.from_scores({"conv": SCORES})), 2.674218),
        (L2SPAtt(attention="uniform"), 2.445),
    ],
)
def test_distance_by_hand(regularizer, expected):
    model = kd.DeltaModel(
        kd.attach_head(one_kernel(KERNEL), 2), one_kernel(STARTING_KERNEL), ["conv"]
    )
    model.set_regularizer(regularizer)
    assert float(model.regularizer.weight_distance()) == pytest.approx(
        expected, abs=1e-6
    )


def values(model, layers, names):
    return [
        (
            getattr(model.target.get_layer(x), n).numpy(),
            getattr(model.source.get_layer(x), n).numpy(),
        )
        for x in layers
        for n in names
    ]


CONVS, NORMS = [f"conv{i}" for i in range(3)], [f"bn{i}" for i in range(3)]


def test_l2_sp_has_the_parameters_of_batch_norm(bound):
    model = bound(L2SP(), batch_norm=True)
    expected = l2_sp(
        values(model, CONVS, ["kernel", "bias"])
        + values(model, NORMS, ["gamma", "beta"])
    )
    found = float(model.regularizer.weight_distance())
    assert found == pytest.approx(expected, rel=1e-5)


def test_l2_sp_of_kernels_leaves_them_out(bound):
    model = bound(L2SP(parameters="kernels"), batch_norm=True)
    expected = l2_sp(values(model, CONVS, ["kernel"]))
    found = float(model.regularizer.weight_distance())
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("regularizer", ["l2", "l2_sp"])
def test_moving_statistics_are_never_penalised(bound, regularizer):
    model = bound(regularizer, batch_norm=True)
    before = float(model.regularizer.weight_distance())
    for name in NORMS:
        layer = model.target.get_layer(name)
        layer.moving_mean.assign(layer.moving_mean + 7.0)
    assert float(model.regularizer.weight_distance()) == before


def test_the_head_counts_by_beta_alone(bound):
    for regularizer in ("l2", "l2_sp"):
        model = bound(regularizer)
        body = float(model.regularizer.weight_distance())
        head = float(model.regularizer.head_distance())
        kernel, bias = model.target.get_layer("head").weights
        kernel.assign(kernel * 2.0)
        bias.assign(bias * 2.0)
        assert float(model.regularizer.weight_distance()) == body
        assert float(model.regularizer.head_distance()) == pytest.approx(4 * head)


def test_gradient_of_l2_is_weight_decay(bound, images):
    """alpha * w, as an optimizer's weight decay adds it."""
    import tensorflow as tf

    from keras_delta.regularizers import Batch

    model = bound(L2(alpha=0.5, beta=0.25))
    conv, head = (model.target.get_layer(n).kernel.value for n in ("conv1", "head"))
    with tf.GradientTape() as tape:
        total = sum(model.regularizer.penalties(Batch(None, None, 0)))
    of_conv, of_head = tape.gradient(total, [conv, head])
    np.testing.assert_allclose(of_conv, 0.5 * conv, rtol=1e-6)
    np.testing.assert_allclose(of_head, 0.25 * head, rtol=1e-6)


def test_frozen_layers_do_not_count(bound):
    model = bound(L2SP())
    whole = float(model.regularizer.weight_distance())
    frozen = l2_sp(values(model, ["conv1"], ["kernel", "bias"]))
    model.target.get_layer("conv1").trainable = False
    assert float(model.regularizer.weight_distance()) == pytest.approx(
        whole - frozen, rel=1e-5
    )


def test_attention_is_on_the_kernels_of_taps_alone(bound):
    """Bias, untapped convolution and BatchNorm count as in L2-SP."""
    weights = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    model = bound(L2SPAtt(attention={"conv1": weights}), True, True, taps=["conv1"])
    kernel, start = values(model, ["conv1"], ["kernel"])[0]
    others = (
        values(model, ["conv0", "conv2"], ["kernel"])
        + values(model, CONVS, ["bias"])
        + values(model, NORMS, ["gamma", "beta"])
    )
    expected = l2_sp_att([(kernel, start, weights)], others)
    found = float(model.regularizer.weight_distance())
    assert found == pytest.approx(expected, rel=1e-5)
    plain = float(bound(L2SP(), True, True).regularizer.weight_distance())
    assert found != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "kernel", "shape"),
    [
        (keras.layers.DepthwiseConv2D, "kernel", (2, 2)),  # of a channel and multiplier
        (keras.layers.Conv2DTranspose, "kernel", (4, 1)),
        (keras.layers.SeparableConv2D, "pointwise_kernel", (4,)),
    ],
)
def test_attention_is_on_the_axis_of_the_channels(layer, kernel, shape):
    depthwise = layer is keras.layers.DepthwiseConv2D
    options = {"depth_multiplier": 2} if depthwise else {"filters": 4}

    def network():
        keras.utils.set_random_seed(1)
        i = keras.Input((6, 6, 2))
        return keras.Model(i, layer(kernel_size=3, name="tap", **options)(i))

    weights = np.array([0.4, 0.3, 0.2, 0.1])
    model = kd.DeltaModel(kd.attach_head(network(), 2), network(), ["tap"])
    for v in model.target.trainable_variables:
        v.assign(v + np.random.default_rng(0).normal(size=v.shape))
    model.set_regularizer(L2SPAtt(attention={"tap": weights}))
    expected = 0.0
    for v, start in model.pairing.variables:
        squares = (v.numpy() - start.numpy()) ** 2
        if v.name == kernel:
            squares = squares * 4 * weights.reshape(shape)
        expected += 0.5 * squares.sum()
    found = float(model.regularizer.weight_distance())
    assert found == pytest.approx(expected, rel=1e-5)


def test_attention_with_lora():
    """It is on the merged kernel, and not lost."""
    model = kd.DeltaModel(
        kd.attach_head(one_kernel(KERNEL), 2), one_kernel(STARTING_KERNEL), ["conv"]
    )
    model.target.get_layer("conv").enable_lora(1)
    scores = ChannelAttention.from_scores({"conv": SCORES})
    model.set_regularizer(L2SPAtt(attention=scores))
    found = float(model.regularizer.weight_distance())
    assert found == pytest.approx(2.674218, abs=1e-6)


def test_kernels_of_attention_layers():
    """Their biases have two axes."""
    layer = keras.layers.MultiHeadAttention(2, 3)
    layer.build((None, 4, 5), (None, 4, 5))
    names = [v.path.split("/")[-2:] for v in layer.weights if is_kernel(v)]
    assert [name for _, name in names] == 4 * ["kernel"]


def test_l2_sp_att_needs_a_tap_with_a_kernel():
    i = keras.Input((4, 4, 2))
    pooled = keras.layers.MaxPooling2D(name="pool")(keras.layers.Conv2D(3, 1)(i))
    source = keras.Model(i, pooled)
    regularizer = L2SPAtt(attention="uniform")
    with pytest.raises(ValueError) as e:
        kd.DeltaModel(kd.attach_head(source, 2), source, ["pool"], regularizer)
    assert str(e.value) == (
        "The regularizer 'l2_sp_att' weights the filters of tapped layers, but none of "
        "the taps ['pool'] is a convolution or dense layer, or follows one directly. "
        "Tap convolutions, or use 'l2_sp'."
    )


@pytest.mark.parametrize("tap", ["bn1", "relu1"])
def test_attention_is_on_the_kernel_in_front_of_an_activation(bound, tap):
    weights = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    found = [
        bound(L2SPAtt(attention={name: weights}), True, True, taps=[name])
        for name in ("conv1", tap)
    ]
    first, second = (float(m.regularizer.weight_distance()) for m in found)
    assert first == pytest.approx(second, rel=1e-6)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match=r"`parameters`. Received: 'bias'. Known"):
        L2SP(parameters="bias")


def test_l2_fe_trains_the_head_alone(bound, images):
    """BatchNorm's statistics do not move either."""
    model = bound(L2FE(beta=0.0), batch_norm=True)
    model.compile(keras.optimizers.SGD(0.1), model.loss)
    before = {w.path: w.numpy() for w in model.target.weights}
    model.train_on_batch(*images)
    moved = {
        w.path for w in model.target.weights if np.abs(w.numpy() - before[w.path]).max()
    }
    assert moved == {"head/kernel", "head/bias"}


def test_l2_fe_compares_no_features(bound, images):
    model = bound(L2FE())
    logs = model.train_on_batch(*images, return_dict=True)
    assert logs["feature_penalty"] == 0
    with pytest.raises(NotImplementedError, match="L2FE compares no feature maps"):
        model.regularizer.feature_distance({}, {})
