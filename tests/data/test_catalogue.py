"""Data sets by name: every layout, what a copy may lack, TFDS, folders."""

import os
import shutil
import sys
from pathlib import Path

import known_trees
import numpy as np
import pytest
import tensorflow_datasets as tfds
from known_trees import LISTED, TEST, TRAIN, shows
from picture_files import write_tree

from keras_delta.data import DATA_SETS, ImageSet, from_directory, load
from keras_delta.data import loading as loading_module
from keras_delta.data.catalogue import CHECKSUMS

ALL = [*LISTED, "caltech256_30", "caltech256_60", "caltech101"]


@pytest.fixture
def no_tfds(monkeypatch):
    """TensorFlow Datasets as it is without a network."""

    def fails(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(loading_module, "from_tfds", fails)


def test_sizes_of_the_article():
    sizes = {
        "stanford_dogs": (120, 12000, 8580),
        "cub": (200, 5994, 5794),
        "food101": (101, 75750, 25250),
        "caltech256_30": (257, 7710, 5140),
        "caltech256_60": (257, 15420, 5140),
        "indoor67": (67, 5360, 1340),
        "flowers102": (102, 2040, 6149),
        "pets": (37, 3680, 3669),
        "dtd": (47, 3760, 1880),
        "cars": (196, 8144, 8041),
        "caltech101": (102, 3060, 6084),
    }
    assert {
        n: (d.classes, d.train, d.test) for n, d in known_trees.WHOLE.items()
    } == sizes


def test_checksums_are_those_of_tfds():
    """All SHA-256 stand in the lists of TensorFlow Datasets, under the same file."""
    folder = Path(tfds.__file__).parent
    lists = [*folder.glob("url_checksums/*.txt"), *folder.glob("datasets/*/*.tsv")]
    known = {line for path in lists for line in path.read_text().splitlines()}
    files = set()
    for entry in DATA_SETS.values():
        assert entry.page.startswith("http") and entry.remarks.endswith(".")
        files |= {file for group in entry.archives for file in group}
    assert set(CHECKSUMS) <= files
    sums = {f: c for f, c in CHECKSUMS.items() if len(c) == 64}
    assert len(sums) == 15 and {len(c) for c in CHECKSUMS.values()} == {32, 64}
    for file, checksum in sums.items():
        assert any(file in line for line in known if checksum in line), file


@pytest.mark.parametrize("name", LISTED)
def test_layouts(tmp_path, name):
    """The right pictures, wherever the folder lies."""
    entry = DATA_SETS[name]
    places = ["", entry.key, entry.roots[0], f"{entry.key}/{entry.roots[0]}"]
    for i, place in enumerate(places):
        folder = tmp_path / str(i) / place
        names, parts = LISTED[name](folder)
        sets = load(name, tmp_path / str(i), source="folder", verify=i == 0)
        assert list(sets) == ["train", "test"]
        for part, files in parts.items():
            images = sets[part]
            if names is not None:
                assert images.class_names == tuple(names)
            pairs = list(zip(images.paths, images.labels.tolist(), strict=True))
            expected = {(os.path.basename(path), label) for path, label in files}
            assert {
                (os.path.basename(path), label) for path, label in pairs
            } == expected
            assert len(pairs) == len(files)
            assert all(path.startswith(str(folder)) for path, _ in pairs)
            assert i or all(shows(path, label) for path, label in pairs)


def test_flowers_have_names(tmp_path):
    LISTED["flowers102"](tmp_path)
    assert load("flowers102", tmp_path)["train"].class_names[0] == "pink primrose"


def test_lists_of_the_dogs_beside_the_images(tmp_path):
    known_trees.stanford_dogs(tmp_path, lists="")
    assert len(load("stanford_dogs", tmp_path)["test"]) == 3 * TEST


@pytest.mark.parametrize("place", ["", "caltech-256", "caltech256"])
def test_caltech_256(tmp_path, place):
    names = known_trees.caltech256(tmp_path / place)
    for name, k in (("caltech256_30", 30), ("caltech256_60", 60)):
        sets = load(name, tmp_path)
        assert sets["train"].class_names == tuple(names)
        assert set(sets["train"].counts.values()) == {k}
        assert set(sets["test"].counts.values()) == {20}
        both = sets["train"].paths + sets["test"].paths
        assert len(set(both)) == 3 * (k + 20)
        images = sets["test"]
        for path, label in zip(images.paths[::7], images.labels[::7], strict=True):
            assert shows(path, label)


def test_the_folder_of_images_itself(tmp_path):
    known_trees.caltech256(tmp_path)
    sets = load("caltech256_30", tmp_path / "256_ObjectCategories")
    assert len(sets["train"]) == 90


def test_draws_of_caltech_256(tmp_path):
    known_trees.caltech256(tmp_path)

    def paths(name, part, **options):
        return set(load(name, tmp_path, **options)[part].paths)

    small, large = paths("caltech256_30", "train"), paths("caltech256_60", "train")
    assert small < large
    test = paths("caltech256_60", "test")
    assert test == paths("caltech256_30", "test")
    assert small == paths("caltech256_30", "train")
    assert small != paths("caltech256_30", "train", seed=1)
    for options in ({"test_per_class": None}, {"test_per_class": 5}):
        assert paths("caltech256_30", "train", **options) == small
    rest = paths("caltech256_30", "test", test_per_class=None)
    assert len(rest) == 3 * 54 and test < rest and not rest & small
    assert paths("caltech256_30", "test", test_per_class=5) < test


@pytest.mark.parametrize("k", [30, 60])
def test_order_of_l2_sp(tmp_path, k):
    known_trees.caltech256(tmp_path)
    sets = load(f"caltech256_{k}", tmp_path, seed=None)

    def numbers(part):
        return sorted({int(Path(p).stem[4:]) for p in sets[part].paths})

    assert numbers("train") == list(range(1, k + 1))
    assert numbers("test") == list(range(61, 81))


def test_clutter(tmp_path):
    known_trees.caltech256(tmp_path)
    known_trees.caltech101(tmp_path)
    sets = load("caltech256_30", tmp_path, clutter=False)
    assert sets["train"].class_names == ("001.ak47", "056.dog")
    assert sets["train"].labels.tolist() == [0] * 30 + [1] * 30
    sets = load("caltech101", tmp_path, clutter=False)
    # The first of the labels goes, so the others move.
    assert sets["train"].class_names == ("accordion", "Faces")
    images = sets["test"]
    assert images.labels.tolist() == [0] * 5 + [1] * 5
    assert all("accordion" in path for path in images.paths[:5])


def test_caltech_101(tmp_path):
    names = known_trees.caltech101(tmp_path)
    sets = load("caltech101", tmp_path)
    assert sets["train"].class_names == tuple(names)
    assert [n.lower() for n in names] == ["accordion", "background_google", "faces"]
    assert set(sets["train"].counts.values()) == {30}
    assert set(sets["test"].counts.values()) == {5}


def test_caltech_with_few_images(tmp_path):
    known_trees.caltech256(tmp_path)
    for number in range(1, 20):
        path = f"256_ObjectCategories/056.dog/056_{number:04d}.jpg"
        (tmp_path / path).unlink()
    with pytest.raises(
        ValueError, match=r"233 images instead of 252 .*'056.dog' 65.*check_sizes=False"
    ):
        load("caltech256_60", tmp_path)
    with pytest.raises(
        ValueError, match=r"60 training and 20 test images.*'056.dog \(65\)'.*smaller"
    ):
        load("caltech256_60", tmp_path, check_sizes=False)
    sets = load("caltech256_60", tmp_path, check_sizes=False, test_per_class=5)
    assert set(sets["train"].counts.values()) == {60}
    assert set(sets["test"].counts.values()) == {5}
    assert not set(sets["train"].paths) & set(sets["test"].paths)


def test_class_folders(tmp_path):
    known_trees.caltech101(tmp_path)
    folder = tmp_path / "101_ObjectCategories"
    shutil.rmtree(folder / "Faces")
    with pytest.raises(ValueError, match="2 classes instead of 3; 70 images"):
        load("caltech101", tmp_path)
    (folder / "Faces").mkdir()
    with pytest.raises(ValueError, match=r"without images in .*: 'Faces'\. Unpack"):
        load("caltech101", tmp_path, check_sizes=False)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"No class folders in .*101_ObjectCat"):
        load("caltech101", tmp_path)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    known_trees.cub(tmp_path)
    gone = tmp_path / "images" / known_trees.BIRDS[1]
    shutil.rmtree(gone)
    (tmp_path / "images" / known_trees.BIRDS[0] / "0001.jpg").unlink()
    with pytest.raises(ValueError) as error:
        load("cub", tmp_path)
    text = str(error.value)
    assert "6 of 15 images listed for CUB-200-2011 are not in" in text
    assert f"  images/{known_trees.BIRDS[0]}/0001.jpg\n" in text
    assert f"Missing folders: 'images/{gone.name}'." in text
    assert "`check_sizes=False`" in text and str(tmp_path) in text
    with pytest.warns(UserWarning, match=r"(?s)6 of 15 images.*skipped") as caught:
        sets = load("cub", tmp_path, check_sizes=False)
    assert caught[0].filename == __file__
    assert sets["train"].counts == dict(zip(known_trees.BIRDS, (1, 0, 2), strict=True))
    assert sets["test"].labels.tolist() == [0] * 3 + [2] * 3


def test_only_ten_missing_files_are_named(tmp_path):
    known_trees.food101(tmp_path)
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"(?s)15 of 15 images.*\n  \.\.\. and 5 more"):
        load("food101", tmp_path, check_sizes=False)


def test_lists_of_other_sizes(tmp_path):
    known_trees.indoor67(tmp_path)
    lines = (tmp_path / "TestImages.txt").read_text().splitlines()
    (tmp_path / "TestImages.txt").write_text("\n".join(lines[:-2]))
    with pytest.raises(
        ValueError,
        match=r"MIT Indoor 67 from .*: 7 test images instead of 9 .*'auditorium' 1, ",
    ):
        load("indoor67", tmp_path)
    assert len(load("indoor67", tmp_path, check_sizes=False)["test"]) == 7


def test_broken_images(tmp_path):
    known_trees.pets(tmp_path)
    bad = tmp_path / "images" / "Bengal_1.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    sets = load("pets", tmp_path)
    with pytest.raises(Exception, match=f"Cannot read the image file {bad}"):
        list(sets["train"].batches(16))
    with pytest.raises(
        ValueError, match=rf"(?s)1 of 15 image files.*\n  {bad}: .*skip"
    ):
        load("pets", tmp_path, verify=True)
    with pytest.warns(UserWarning, match="1 of 15 image files") as caught:
        sets = load("pets", tmp_path, verify=True, on_error="skip")
    assert caught[0].filename == __file__
    assert [path for path, _ in sets["train"].skipped] == [str(bad)]
    assert sets["test"].skipped == [] and sets["train"].counts["Bengal"] == 1
    (tmp_path / "images" / "Bengal_2.jpg").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="2 of 15"),
        pytest.raises(
            ValueError, match="None of the 2 image files of the class 'Bengal'"
        ),
    ):
        load("pets", tmp_path, verify=True, on_error="skip")


PAGE = "<!DOCTYPE html><html>Not Found</html>"


@pytest.mark.parametrize(
    "name, file, content, message",
    [
        ("indoor67", "TrainImages.txt", PAGE, r"line 1 is '<!DOCT.*one|web page"),
        ("cub", "images.txt", "1\n", r"images.txt: line 1 is '1'. Expected 2 fields"),
        ("cub", "train_test_split.txt", "1 yes\n", "line 1 is '1 yes'"),
        ("cub", "image_class_labels.txt", "1 1\n", "'2' of images.txt is not in image"),
        ("pets", "annotations/test.txt", PAGE, "annotations/test.txt: line 1"),
        ("cars", "devkit/cars_meta.mat", PAGE, "cars_meta.mat as a MATLAB file"),
        ("stanford_dogs", "lists/test_list.mat", PAGE, "Download it again"),
    ],
)
def test_damaged_lists(tmp_path, name, file, content, message):
    LISTED[name](tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load(name, tmp_path)


def test_lists_of_another_kind(tmp_path):
    known_trees.cars(tmp_path)
    known_trees.mat(tmp_path, "devkit/cars_meta.mat", names=[1, 2])
    with pytest.raises(ValueError, match=r"lacks 'class_names'. It contains: 'names'"):
        load("cars", tmp_path)
    known_trees.cars(tmp_path)
    known_trees.mat(tmp_path, "devkit/cars_train_annos.mat", annotations=[1, 2])
    with pytest.raises(ValueError, match=r"with the fields \('fname', 'class'\)"):
        load("cars", tmp_path)


def test_without_scipy(tmp_path, monkeypatch):
    known_trees.flowers102(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(
        ImportError, match=r'imagelabels.mat needs scipy.*"keras_delta\[benchmarks\]"'
    ):
        load("flowers102", tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_not_there(tmp_path, name, no_tfds):
    entry = DATA_SETS[name]
    for source in ("auto", "folder"):
        with pytest.raises(FileNotFoundError) as error:
            load(name, tmp_path, source=source)
        text = str(error.value)
        assert text.startswith(f"{entry.title} was not found. Looked in {tmp_path}")
        assert entry.page in text and entry.archives[0][0] in text
        assert repr(entry.roots[0]) in text and "`data_dir`" in text
        tried = source == "auto" and entry.tfds is not None
        assert ("ConnectionError: no route to host" in text) == tried
        assert ("It is not in TensorFlow Datasets." in text) == (entry.tfds is None)
    assert list(tmp_path.iterdir()) == []


def test_options(tmp_path):
    with pytest.raises(ValueError, match=r"`name`.*'cubs'.*'cub'"):
        load("cubs")
    with pytest.raises(ValueError, match=r"`name`.*Received: 'folder:'"):
        load("folder:", tmp_path)
    with pytest.raises(TypeError, match=r"`name`.*a string"):
        load(3)
    with pytest.raises(ValueError, match=r"`source`.*'fodler'.*'folder'"):
        load("cub", source="fodler")
    with pytest.raises(ValueError, match=r"`verify`.*on_error='skip'"):
        load("cub", on_error="skip")
    with pytest.raises(ValueError, match=r"`seed`.*-1"):
        load("cub", seed=-1)
    with pytest.raises(ValueError, match=r"`seed`.*None"):
        load("photographs", seed=None)
    with pytest.raises(ValueError, match=r"`data_dir`.*source='folder'"):
        load("cub", source="folder")
    with pytest.raises(ValueError, match=r"`source`.*not in TensorFlow Datasets"):
        load("indoor67", tmp_path, source="tfds")
    with pytest.raises(ValueError, match=r"`test_per_class`.*positive integer or None"):
        load("caltech101", tmp_path, test_per_class="all")
    with pytest.raises(ValueError, match=r"`test_per_class`.*only Caltech"):
        load("cub", tmp_path, test_per_class=3)
    with pytest.raises(ValueError, match=r"`clutter`.*'dtd'; only Caltech"):
        load("dtd", tmp_path, clutter=False)
    with pytest.raises(FileNotFoundError, match=r"Indoor.*No `data_dir` was given"):
        load("indoor67")


def test_incomplete_folders(tmp_path, no_tfds):
    known_trees.cub(tmp_path / "CUB_200_2011")
    (tmp_path / "CUB_200_2011" / "classes.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"CUB_200_2011 is incomplete. Missing: 'classes.txt'"
    ):
        load("cub", tmp_path)
    # Pointing at it changes nothing; a folder of another name may be anything.
    with pytest.raises(FileNotFoundError, match="is incomplete"):
        load("cub", tmp_path / "CUB_200_2011")
    os.rename(tmp_path / "CUB_200_2011", tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="CUB-200-2011 was not found"):
        load("cub", tmp_path / "other")


# TensorFlow Datasets ----------------------------------------------------------------


def test_names_in_tfds():
    known = set(tfds.list_builders(with_community_datasets=False))
    assert {e.tfds for e in DATA_SETS.values() if e.tfds} <= known


def test_from_tfds(tmp_path, monkeypatch):
    calls = []

    def give(name, split, *, data_dir, download):
        calls.append((name, split, data_dir, download))
        count = 3 * (TRAIN if split.startswith("train") else TEST)
        images = np.zeros((count, 8, 8, 3), np.uint8)
        return ImageSet.from_arrays(images, np.arange(count) % 3, ["a", "b", "c"])

    monkeypatch.setattr(loading_module, "from_tfds", give)
    here = str(tmp_path)
    for name, splits in {
        "food101": ("train", "validation"),
        "cub": ("train", "test"),
        "dtd": ("train+validation", "test"),
    }.items():
        calls.clear()
        sets = load(name, tmp_path, download=False)
        assert [len(images) for images in sets.values()] == [3 * TRAIN, 3 * TEST]
        assert [call[1:] for call in calls] == [(s, here, False) for s in splits]
        assert calls[0][0] == DATA_SETS[name].tfds
    # A folder wins, unless TensorFlow Datasets are asked for.
    known_trees.cub(tmp_path / "cub")
    assert load("cub", tmp_path)["train"].paths is not None
    assert load("cub", tmp_path, source="tfds")["train"].paths is None
    assert load("cub", "~/x", source="tfds") and calls[-1][2] == os.path.expanduser(
        "~/x"
    )
    assert load("cub") and calls[-1][2] is None


def test_sizes_from_tfds():
    with (
        tfds.testing.mock_data(num_examples=4),
        pytest.raises(
            ValueError,
            match=r"102 Flowers from TensorFlow.*: 4 train images instead of",
        ),
    ):
        load("flowers102")


def test_caltech_101_from_tfds():
    """Drawn from the stream by the seed; the clutter has a name in lower case."""

    def example(i):
        return {"image": np.full((8, 8, 3), i % 256, np.uint8), "label": i % 102}

    def stream(self, *args, decoders=None, **kwargs):
        import tensorflow as tf

        rows = [example(i) for i in range(102 * 31)]
        return tf.data.Dataset.from_tensor_slices(
            {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        )

    with tfds.testing.mock_data(as_dataset_fn=stream):
        sets = load("caltech101", check_sizes=False)
        other = load("caltech101", check_sizes=False, clutter=False, seed=1)
        first = load("caltech101", check_sizes=False, seed=None)
    assert set(sets["train"].counts.values()) == {30}
    assert set(sets["test"].counts.values()) == {1}
    assert len(other["train"].class_names) == 101
    assert "background_google" not in other["train"].class_names
    x, y = first["train"].arrays(8)
    np.testing.assert_array_equal(y, np.arange(102 * 30) % 102)
    np.testing.assert_array_equal(x[:, 0, 0, 0], np.arange(102 * 30) % 256)


# Folders and photographs ------------------------------------------------------------


def test_folder_with_splits(split_tree):
    sets = load(f"folder:{split_tree.name}", split_tree.parent)
    expected = from_directory(split_tree)
    assert {k: v.paths for k, v in sets.items()} == {
        k: v.paths for k, v in expected.items()
    }


def test_folder_of_classes(tree):
    sets = load(f"folder:{tree.name}", tree.parent)
    train, test = from_directory(tree).split(0.5, seed=0)
    assert (sets["train"].paths, sets["test"].paths) == (train.paths, test.paths)
    sets = load(f"folder:{tree.name}", tree.parent, test_fraction=0.25, seed=3)
    assert [len(images) for images in sets.values()] == [9, 3]
    assert len(load(f"folder:{tree}")["train"]) == 6


def test_bad_files_of_a_folder(tree):
    (tree / "ant" / "0.png").write_text("no")
    name = f"folder:{tree.name}"
    assert sum(len(images) for images in load(name, tree.parent).values()) == 12
    with pytest.raises(ValueError, match="1 of 12 image files cannot be read"):
        load(name, tree.parent, verify=True)
    with pytest.warns(UserWarning, match="1 of 12") as caught:
        sets = load(name, tree.parent, verify=True, on_error="skip")
    assert caught[0].filename == __file__
    assert sum(len(images) for images in sets.values()) == 11
    assert sum(len(images.skipped) for images in sets.values()) == 1


def test_folder_errors(tmp_path):
    with pytest.raises(ValueError, match=r"`directory`.*existing folder"):
        load("folder:nowhere", tmp_path)
    for split in ("train", "val"):
        write_tree(tmp_path / "two" / split)
    with pytest.raises(
        ValueError, match=r"two has the splits 'train', 'val'. Expected"
    ):
        load("folder:two", tmp_path)
    write_tree(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"`fraction`.*positive finite number below 1"):
        load("folder:plain", tmp_path, test_fraction=1)


def test_photographs():
    sets = load("photographs", verify=True)
    assert list(sets) == ["train", "test"]
    assert len(sets["train"].class_names) == 12
