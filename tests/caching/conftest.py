import pytest
from toy import ask, images, opened


@pytest.fixture
def folder(tmp_path):
    """A folder with the maps of `images(6)`."""
    cache = opened(tmp_path / "maps")
    ask(cache, images(4))
    ask(cache, images(6))
    cache.close()
    return tmp_path / "maps"
