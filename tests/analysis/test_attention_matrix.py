"""AFD's attention as a matrix and as a picture."""

import keras
import matplotlib.image
import numpy as np
import pytest
from networks import make_backbone, make_deeper

import keras_delta as kd
from keras_delta.analysis import attention_matrix, plot_attention_matrix


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    source = kd.attach_head(make_deeper(seed=3), 3)
    target = kd.attach_head(make_backbone(True, seed=1), 3)
    afd = kd.regularizers.AFD(dimension=8)
    return kd.DeltaModel(
        target, source, taps=TAPS, source_taps=TAPS[:2], regularizer=[afd, "l2"]
    )


TAPS = ["relu0", "relu1", "relu2"]


def images(count=40):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 16, 16, 3)).astype("float32")


def test_the_mean_over_images(model):
    x = images()
    found = attention_matrix(model, x)
    afd = model.regularizer.members[0]
    one_by_one = [
        afd.attention_matrix(model.source_maps(v), model.outputs_and_maps(v)[1])[0]
        for v in x[:, None]
    ]
    np.testing.assert_allclose(found, np.mean(one_by_one, axis=0), atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert found.shape == (2, 3)
    few = attention_matrix(model, x, max_samples=5)
    assert 1e-6 < np.abs(few - found).max() < 0.5


def test_the_picture(model, tmp_path):
    figure = plot_attention_matrix(model, images(), tmp_path / "attention.png")
    axis, _ = figure.axes
    assert [t.get_text() for t in axis.get_xticklabels()] == TAPS
    assert [t.get_text() for t in axis.get_yticklabels()] == TAPS[:2]
    found = attention_matrix(model, images())
    np.testing.assert_allclose(axis.images[0].get_array(), found, atol=1e-6)
    digits = [float(t.get_text()) for t in axis.texts]
    np.testing.assert_allclose(digits, found.ravel(), atol=0.0051)
    assert matplotlib.image.imread(tmp_path / "attention.png").std() > 0.05


def test_a_model_without_it():
    model = kd.DeltaModel(kd.attach_head(make_backbone(), 3), regularizer="l2")
    with pytest.raises(ValueError, match=r"regularizer AFD\. Received: .*\['L2'\]"):
        attention_matrix(model, images(2))


def test_no_images(model):
    with pytest.raises(ValueError, match=r"`x`\. Expected at least one image"):
        attention_matrix(model, images(0))
    with pytest.raises(ValueError, match="`max_samples`"):
        attention_matrix(model, images(2), max_samples=0)
    with pytest.raises(ValueError, match="Expected a DeltaModel with the regularizer"):
        attention_matrix(model.target, images(2))
