"""Data sets by name: every layout, what a copy may lack, archives, TFDS, folders."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import known_trees
import numpy as np
import pytest
import tensorflow_datasets as tfds
from known_trees import LISTED, TEST, TRAIN
from picture_files import write_tree

from keras_delta.data import DATA_SETS, ImageSet, archives, from_directory, load
from keras_delta.data import loading as loading_module
from keras_delta.data.archives import Archive
from keras_delta.data.decode import read_image

PUBLISHED = dict(DATA_SETS)
ALL = [*LISTED, "caltech256_30", "caltech256_60", "caltech101"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The data sets with the sizes of the trees, and without checksums."""
    for name, entry in list(DATA_SETS.items()):
        groups = tuple(
            tuple(Archive(a.file, inner=a.inner) for a in group)
            for group in entry.archives
        )
        sizes = {"classes": 3, "train": 3 * TRAIN, "test": 3 * TEST}
        if name == "flowers102":
            sizes["classes"] = 102
        if entry.per_class:
            count = 84 if "256" in name else 35
            sizes = {"classes": 3, "images": 3 * count}
            sizes["clutter"] = (entry.clutter[0], count)
        entry = dataclasses.replace(entry, archives=groups, **sizes)
        monkeypatch.setitem(DATA_SETS, name, entry)


@pytest.fixture
def no_tfds(monkeypatch):
    """TensorFlow Datasets as it is without a network."""

    def fails(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(loading_module, "from_tfds", fails)


def shown_pixels(path, label):
    """Whether a file is the picture of its label."""
    expected = read_image(known_trees.jpegs()[label % 12])
    return np.array_equal(read_image(path), expected)


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
    assert {n: (d.classes, d.train, d.test) for n, d in PUBLISHED.items()} == sizes


def test_checksums_are_those_of_tfds():
    """All SHA-256 stand in the lists of TensorFlow Datasets, under the same file."""
    folder = Path(tfds.__file__).parent
    lists = [*folder.glob("url_checksums/*.txt"), *folder.glob("datasets/*/*.tsv")]
    known = {line for path in lists for line in path.read_text().splitlines()}
    count = 0
    for entry in PUBLISHED.values():
        assert entry.page.startswith("http") and entry.remarks.endswith(".")
        for group in entry.archives:
            for archive in group:
                if archive.sha256:
                    rows = [line for line in known if archive.sha256 in line]
                    assert any(archive.file in row for row in rows), archive
                    count += 1
    assert count == 15


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("place", ["", "key", "root", "key/root"])
def test_layouts(tmp_path, name, place):
    entry = DATA_SETS[name]
    folder = tmp_path
    for part in place.split("/"):
        folder /= {"": "", "key": entry.key, "root": entry.roots[0]}[part]
    names, parts = LISTED[name](folder)
    sets = load(name, tmp_path, source="folder", verify=True)
    assert list(sets) == ["train", "test"]
    for part, files in parts.items():
        images = sets[part]
        if names is not None:
            assert images.class_names == tuple(names)
        found = {
            (os.path.basename(p), y)
            for p, y in zip(images.paths, images.labels.tolist(), strict=True)
        }
        assert found == {(os.path.basename(p), y) for p, y in files}
        assert len(images) == len(files)
        assert all(
            shown_pixels(p, y) for p, y in zip(images.paths, images.labels, strict=True)
        )
        assert all(p.startswith(str(folder)) for p in images.paths)


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
            assert shown_pixels(path, label)


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


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "all"])
def test_wrong_test_per_class(tmp_path, wrong):
    known_trees.caltech101(tmp_path)
    with pytest.raises(ValueError, match=r"`test_per_class`.*positive integer, None"):
        load("caltech101", tmp_path, test_per_class=wrong)


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
    with pytest.raises(ValueError, match=r"no class folders in .*101_ObjectCat"):
        load("caltech101", tmp_path)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    known_trees.cub(tmp_path)
    gone = tmp_path / "images" / known_trees.BIRDS[1]
    shutil.rmtree(gone)
    (tmp_path / "images" / known_trees.BIRDS[0] / "0001.jpg").unlink()
    with pytest.raises(ValueError) as error:
        load("cub", tmp_path)
    text = str(error.value)
    assert "6 of 15 images of CUB-200-2011 that its lists name are not in" in text
    assert f"  images/{known_trees.BIRDS[0]}/0001.jpg\n" in text
    assert f"Folders that are not there: 'images/{gone.name}'." in text
    assert "`check_sizes=False`" in text and str(tmp_path) in text
    with pytest.warns(UserWarning, match=r"(?s)6 of 15 images.*left out") as caught:
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


def test_all_of_cub(tmp_path, monkeypatch):
    """The numbers of the whole data set, with one picture for all images."""
    entry = dataclasses.replace(DATA_SETS["cub"], classes=200, train=5994, test=5794)
    monkeypatch.setitem(DATA_SETS, "cub", entry)
    known_trees.put(tmp_path, "one.jpg", 0)
    names = [f"{i:03d}.Bird" for i in range(1, 201)]
    files = [f"{names[i % 200]}/{i}.jpg" for i in range(5994 + 5794)]
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
    for file in files:
        os.link(tmp_path / "one.jpg", tmp_path / "images" / file)
    write = known_trees.write
    write(tmp_path, "classes.txt", [f"{i} {n}" for i, n in enumerate(names, 1)])
    write(tmp_path, "images.txt", [f"{i} {f}" for i, f in enumerate(files)])
    labels = [f"{i} {i % 200 + 1}" for i in range(len(files))]
    write(tmp_path, "image_class_labels.txt", labels)
    split = [f"{i} {int(i < 5994)}" for i in range(len(files))]
    write(tmp_path, "train_test_split.txt", split)
    begin = time.process_time()
    sets = load("cub", tmp_path)
    assert time.process_time() - begin < 5
    assert [len(images) for images in sets.values()] == [5994, 5794]


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
        pytest.raises(ValueError, match="No image file of the class 'Bengal'"),
    ):
        load("pets", tmp_path, verify=True, on_error="skip")


def test_images_of_other_formats_are_read(tmp_path):
    """In MIT Indoor 67 some files called .jpg are GIF or PNG."""
    known_trees.indoor67(tmp_path)
    scene = tmp_path / "Images" / "artstudio" / "a artstudio 1.jpg"
    from PIL import Image

    Image.open(scene).convert("P").save(scene, "GIF")
    x, _ = load("indoor67", tmp_path, verify=True)["train"].arrays(16)
    assert x.shape == (6, 16, 16, 3)


PAGE = "<!DOCTYPE html><html>Not Found</html>"


@pytest.mark.parametrize(
    "name, file, content, message",
    [
        ("indoor67", "TrainImages.txt", PAGE, r"line 1 is '<!DOCT.*one|web server"),
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
    with pytest.raises(ValueError, match=r"lacks 'class_names'. It holds: 'names'"):
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
        assert entry.page in text and entry.archives[0][0].file in text
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
    with pytest.raises(ValueError, match=r"`on_error`.*'skipp'"):
        load("cub", on_error="skipp", verify=True)
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
    with pytest.raises(ValueError, match=r"`test_per_class`.*it is for Caltech"):
        load("cub", tmp_path, test_per_class=3)
    with pytest.raises(ValueError, match=r"`clutter`.*'dtd'; it is for Caltech"):
        load("dtd", tmp_path, clutter=False)
    with pytest.raises(FileNotFoundError, match=r"Indoor.*No `data_dir` was given"):
        load("indoor67")


def test_incomplete_folders(tmp_path, no_tfds):
    known_trees.cub(tmp_path / "CUB_200_2011")
    (tmp_path / "CUB_200_2011" / "classes.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"CUB_200_2011 is not complete. Missing: 'classes.txt'"
    ):
        load("cub", tmp_path)
    # Pointing at it changes nothing; a folder of another name may be anything.
    with pytest.raises(FileNotFoundError, match="is not complete"):
        load("cub", tmp_path / "CUB_200_2011")
    os.rename(tmp_path / "CUB_200_2011", tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="CUB-200-2011 was not found"):
        load("cub", tmp_path / "other")


# Archives ---------------------------------------------------------------------------


def packed(folder, archive, inside=""):
    """A .tgz or .tar of what is in the folder, which then goes."""
    with tarfile.open(
        archive, "w:gz" if archive.suffix in (".tgz", ".gz") else "w"
    ) as t:
        for path in sorted(folder.iterdir()):
            t.add(path, os.path.join(inside, path.name))
    shutil.rmtree(folder)


def with_checksum(monkeypatch, name, archive, kind="sha256"):
    entry = DATA_SETS[name]
    digest = hashlib.new(kind, archive.read_bytes()).hexdigest()
    known = Archive(archive.name, **{kind: digest})
    group = tuple(known if a.file == archive.name else a for a in entry.archives[0])
    entry = dataclasses.replace(entry, archives=(group,))
    monkeypatch.setitem(DATA_SETS, name, entry)


@pytest.mark.parametrize("place", ["", "cub"])
@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_archive(tmp_path, monkeypatch, place, kind):
    known_trees.cub(tmp_path / "made")
    (tmp_path / place).mkdir(exist_ok=True)
    archive = tmp_path / place / "CUB_200_2011.tgz"
    packed(tmp_path / "made", archive, "CUB_200_2011")
    with_checksum(monkeypatch, "cub", archive, kind)
    sets = load("cub", tmp_path)
    folder = tmp_path / "cub" / "unpacked" / "CUB_200_2011"
    assert sets["train"].paths[0].startswith(str(folder / "images"))
    assert shown_pixels(sets["train"].paths[0], 0)
    archive.unlink()
    assert load("cub", tmp_path)["train"].paths == sets["train"].paths


def test_wrong_checksum(tmp_path, monkeypatch):
    known_trees.cub(tmp_path / "made")
    archive = tmp_path / "CUB_200_2011.tgz"
    packed(tmp_path / "made", archive, "CUB_200_2011")
    with_checksum(monkeypatch, "cub", archive)
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(ValueError) as error:
        load("cub", tmp_path)
    text = str(error.value)
    assert f"The file {archive} is damaged, incomplete or another release" in text
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in text
    assert "Download it again" in text and DATA_SETS["cub"].page in text
    assert not (tmp_path / "cub" / "unpacked").exists()


def test_several_archives(tmp_path):
    known_trees.stanford_dogs(tmp_path / "made", lists="")
    shutil.copytree(tmp_path / "made" / "Images", tmp_path / "images" / "Images")
    shutil.rmtree(tmp_path / "made" / "Images")
    packed(tmp_path / "images", tmp_path / "images.tar")
    with pytest.raises(
        FileNotFoundError, match=r"Dogs cannot be unpacked: beside .*it needs 'lists.ta"
    ):
        load("stanford_dogs", tmp_path)
    packed(tmp_path / "made", tmp_path / "lists.tar")
    assert len(load("stanford_dogs", tmp_path)["test"]) == 3 * TEST


def test_lists_beside_an_archive(tmp_path):
    known_trees.indoor67(tmp_path / "made")
    for name in ("TrainImages.txt", "TestImages.txt"):
        os.rename(tmp_path / "made" / name, tmp_path / name)
    packed(tmp_path / "made", tmp_path / "indoorCVPR_09.tar")
    assert len(load("indoor67", tmp_path)["train"]) == 3 * TRAIN
    # A second reading finds the folder.
    (tmp_path / "indoorCVPR_09.tar").unlink()
    assert len(load("indoor67", tmp_path)["train"]) == 3 * TRAIN


@pytest.mark.parametrize("zipped", [True, False])
def test_archive_in_an_archive(tmp_path, zipped):
    known_trees.caltech101(tmp_path / "made")
    inner = tmp_path / "101_ObjectCategories.tar.gz"
    packed(tmp_path / "made", inner)
    if zipped:
        with zipfile.ZipFile(tmp_path / "caltech-101.zip", "w") as outer:
            outer.write(inner, f"caltech-101/{inner.name}")
        inner.unlink()
    assert len(load("caltech101", tmp_path)["train"]) == 90
    folder = tmp_path / "caltech101" / "unpacked"
    assert not list(folder.rglob("*.tar.gz"))


def test_archive_of_something_else(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "readme.txt").write_text("hello")
    packed(tmp_path / "made", tmp_path / "food-101.tar.gz")
    for _ in range(2):
        with pytest.raises(
            FileNotFoundError, match=r"was unpacked to .*missing: 'images', 'meta/train"
        ):
            load("food101", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "page", "zip"])
def test_damaged_archive(tmp_path, damage):
    known_trees.food101(tmp_path / "made")
    archive = tmp_path / "food-101.tar.gz"
    packed(tmp_path / "made", archive, "food-101")
    content = archive.read_bytes()
    if damage == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a/b", content)
        content = bytearray(archive.read_bytes())
        content[100] ^= 255
    content = {"cut": content[: len(content) // 2], "page": PAGE.encode()}.get(
        damage, content
    )
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be unpacked .*damaged or incomplete"):
        load("food101", tmp_path)
    assert [p.name for p in (tmp_path / "food101").iterdir()] == [".unpacked.lock"]


@pytest.mark.parametrize("kind", ["tar", "zip", "link"])
def test_archives_that_write_outside(tmp_path, kind):
    archive = tmp_path / "food-101.tar.gz"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("../../outside.txt", "x")
    else:
        (tmp_path / "x").write_text("x")
        with tarfile.open(archive, "w:gz") as file:
            member = tarfile.TarInfo("../../outside.txt")
            if kind == "link":
                member = tarfile.TarInfo("link")
                member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            file.addfile(member)
    with pytest.raises(ValueError, match=r"is not unpacked: .*not the data set's own"):
        load("food101", tmp_path)
    assert not (tmp_path / "outside.txt").exists()
    assert not (tmp_path / "food101" / "unpacked").exists()


def test_killed_unpacking(tmp_path):
    """A process that dies amid the work leaves no folder that passes for whole."""
    known_trees.food101(tmp_path / "made")
    archive = tmp_path / "food-101.tar.gz"
    packed(tmp_path / "made", archive, "food-101")
    script = textwrap.dedent(
        f"""
        import os, pathlib, tarfile
        from keras_delta.data.archives import Archive, unpack
        whole, count = tarfile.TarFile.extract, []
        def extract(self, *args, **options):
            whole(self, *args, **options)
            count.append(1)
            if len(count) == 6:
                os.kill(os.getpid(), 9)
        tarfile.TarFile.extract = extract
        unpack(
            {{pathlib.Path({str(archive)!r}): Archive("food-101.tar.gz")}},
            pathlib.Path({str(tmp_path / "food101" / "unpacked")!r}),
        )
        """
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    folder = tmp_path / "food101"
    assert not (folder / "unpacked").exists()
    assert [p.suffix for p in folder.iterdir()].count(".tmp") == 1
    sets = load("food101", tmp_path)
    assert [len(images) for images in sets.values()] == [3 * TRAIN, 3 * TEST]
    left = sorted(p.name for p in folder.iterdir())
    assert left == [".unpacked.lock", "unpacked"]


def test_interrupted_unpacking(tmp_path, monkeypatch):
    known_trees.food101(tmp_path / "made")
    packed(tmp_path / "made", tmp_path / "food-101.tar.gz", "food-101")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "_untar", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load("food101", tmp_path)
    assert [p.name for p in (tmp_path / "food101").iterdir()] == [".unpacked.lock"]


def test_read_only_folder(tmp_path, monkeypatch):
    known_trees.food101(tmp_path / "made")
    packed(tmp_path / "made", tmp_path / "food-101.tar.gz", "food-101")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(archives, "_unpack_all", refuse)
    with pytest.raises(
        PermissionError,
        match=r"Cannot unpack 'food-101.tar.gz' into .*by hand elsewhere",
    ):
        load("food101", tmp_path)


def test_progress_of_large_archives(tmp_path, monkeypatch, capsys):
    known_trees.food101(tmp_path / "made")
    archive = tmp_path / "food-101.tar.gz"
    packed(tmp_path / "made", archive, "food-101")
    with_checksum(monkeypatch, "food101", archive)
    monkeypatch.setattr(archives, "MEGABYTE", 100)
    monkeypatch.setattr(archives, "PROGRESS_FROM", 5)
    load("food101", tmp_path)
    shown = capsys.readouterr().out
    assert f"Checking {archive}" in shown and f"Unpacking {archive}" in shown


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

        rows = [example(i) for i in range(102 * 35)]
        return tf.data.Dataset.from_tensor_slices(
            {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        )

    with tfds.testing.mock_data(as_dataset_fn=stream):
        sets = load("caltech101", check_sizes=False)
        other = load("caltech101", check_sizes=False, clutter=False, seed=1)
        first = load("caltech101", check_sizes=False, seed=None)
    assert set(sets["train"].counts.values()) == {30}
    assert set(sets["test"].counts.values()) == {5}
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
    with pytest.raises(ValueError, match=r"`fraction`.*between 0 and 1"):
        load("folder:plain", tmp_path, test_fraction=1)


def test_photographs():
    sets = load("photographs", verify=True)
    assert list(sets) == ["train", "test"]
    assert len(sets["train"].class_names) == 12
