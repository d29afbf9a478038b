import pytest
from picture_files import write_tree


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree")


@pytest.fixture
def split_tree(tmp_path):
    for split, per_class in (("train", 3), ("val", 2), ("test", 1)):
        write_tree(tmp_path / "splits" / split, per_class=per_class)
    return tmp_path / "splits"
