import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    """No test reads or writes the user's cache; the conversion is shared."""
    monkeypatch.setenv("KERAS_DELTA_CACHE", str(cache))
