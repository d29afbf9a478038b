import functools

import pytest
from lite_nets import random_net

from keras_delta import backbones


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    """No test reads or writes the user's cache; the conversion is shared."""
    monkeypatch.setenv("KERAS_DELTA_CACHE", str(cache))


@pytest.fixture(scope="session")
def nets():
    """Function of a name: the network at its own size with random weights.

    Built once; not to be changed.
    """
    return functools.cache(lambda name: backbones.get(name)(weights=None))


@pytest.fixture(scope="session")
def with_top(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_DELTA_CACHE", str(cache))
        return backbones.efficientnet_lite0(
            include_top=True, input_shape=(None, None, 3)
        )


@pytest.fixture(scope="session")
def headless():
    """Random weights, for tests that put others in their place."""
    return random_net()
