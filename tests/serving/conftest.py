"""Exports that several files of tests look at, and exports that are quick."""

import encoded_images as files
import keras
import numpy as np
import pytest
from networks import make_backbone
from served import export_tiny
from served_models import NAMES, PHOTOS, SETTINGS, SIDE

import keras_delta as kd
from keras_delta.serving.endpoints import Endpoints


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a model of three classes, of which nothing may be changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    export_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def contents():
    good = files.good()
    return [good[name] for name in PHOTOS]


@pytest.fixture(scope="session")
def photos(contents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / str(i) for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return kd.data.ImageSet.from_files(paths, [i % 3 for i in range(len(paths))], NAMES)


@pytest.fixture(scope="session")
def model():
    """A `DeltaModel` that was not trained."""
    source = make_backbone(batch_norm=True)
    scaled = keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), keras.layers.Rescaling(1 / 64), source]
    )
    keras.utils.set_random_seed(3)
    target = kd.attach_head(scaled, 3, dropout=0.5)
    delta = kd.DeltaModel(target, source=scaled)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    delta.compile(keras.optimizers.Adam(), loss)
    return delta


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory):
    """Its exports by `SETTINGS`."""
    folder = tmp_path_factory.mktemp("served")
    before = [v.numpy() for v in model.variables]
    folders = {
        key: kd.export_for_serving(model, folder / key, NAMES, **settings)
        for key, settings in SETTINGS.items()
    }
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())  # export only looks
    return folders


@pytest.fixture
def pixels_only(monkeypatch):
    """Exports without the signatures that decode and resize, which take longest."""
    names = "classify_prepared", "features", "activation_map"
    functions = Endpoints.functions

    def some(self):
        return {k: v for k, v in functions(self).items() if k in names}

    monkeypatch.setattr(Endpoints, "functions", some)
