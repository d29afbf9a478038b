import dataclasses

import pytest
from known_trees import TEST, TRAIN, WHOLE
from picture_files import write_tree

from keras_delta.data import DATA_SETS, places


@pytest.fixture(autouse=True)
def small_data_sets(monkeypatch):
    """The data sets with the sizes of `known_trees`, and without checksums."""
    monkeypatch.setattr(places, "CHECKSUMS", {})
    for name, entry in WHOLE.items():
        sizes = {"classes": 3, "train": 3 * TRAIN, "test": 3 * TEST}
        if name == "flowers102":
            sizes["classes"] = 102
        if entry.per_class:
            count = 84 if "256" in name else 35
            sizes = {"classes": 3, "images": 3 * count}
            sizes["clutter"] = (entry.clutter[0], count)
        monkeypatch.setitem(DATA_SETS, name, dataclasses.replace(entry, **sizes))


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree")


@pytest.fixture
def split_tree(tmp_path):
    for split, per_class in (("train", 3), ("val", 2), ("test", 1)):
        write_tree(tmp_path / "splits" / split, per_class=per_class)
    return tmp_path / "splits"
