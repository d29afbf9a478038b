"""Pictures of channels over the epochs."""

import sys

import model_reference as reference
import numpy as np
import pytest

from keras_delta import analysis
from keras_delta.callbacks import ActivationMaps
from keras_delta.regularizers import L2SP

X, Y = reference.learnable_data(8)
FILES = ("activation_maps-{:04d}.npz", "activation_maps-{:04d}.png")


def make(new_backbone):
    pair = reference.pair(new_backbone, batch_norm=True, dropout=0.3)
    return reference.compiled(*pair, L2SP(0.1, 0.1), run_eagerly=True)


def fit(model, *callbacks, epochs=2, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs)


def files(*epochs):
    return sorted(name.format(epoch) for epoch in epochs for name in FILES)


@pytest.mark.parametrize("tap, channels", [(None, 2), ("conv0", [2, 0])])
def test_what_is_written(tap, channels, new_backbone, tmp_path):
    model = make(new_backbone)
    maps = ActivationMaps(X[:1], tmp_path / "new", tap, channels)
    fit(model, maps, epochs=1)
    expected = analysis.activation_maps(model, X[:1], tap, channels)
    with np.load(tmp_path / "new" / FILES[0].format(1)) as written:
        assert set(written.files) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(written[name], values)
    assert maps.drawn == expected["channels"].tolist()
    picture = (tmp_path / "new" / FILES[1].format(1)).read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_every_second_epoch_of_a_resumed_training(new_backbone, tmp_path):
    model, maps = make(new_backbone), ActivationMaps(X[:1], tmp_path, every=2)
    fit(model, maps, epochs=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == files(2)
    fit(model, maps, initial_epoch=3, epochs=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == files(2, 4)


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match='`pip install "matplotlib'):
        ActivationMaps(X, tmp_path)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"A single image is `image\[None\]`"):
        ActivationMaps(X[0], tmp_path)
    with pytest.raises(TypeError, match=r"`tap`\. Expected the name of a tap"):
        ActivationMaps(X, tmp_path, tap=3)


def test_what_does_not_fit_the_model_is_refused_before_it_trains(
    new_backbone, tmp_path
):
    model = make(new_backbone)
    with pytest.raises(ValueError, match=r"Received: 'conv'\. Closest names"):
        fit(model, ActivationMaps(X, tmp_path, tap="conv"))
    assert model.optimizer.iterations.numpy() == 0
