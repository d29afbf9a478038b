"""Splits under any common name, and nothing dropped or made a class without a word."""

import os
import shutil
import tempfile
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import write_image
from PIL import Image

from keras_delta.data import from_directory, load
from keras_delta.data.split_folders import part_of

NAMES = {
    "train": "Training TRAIN train_set seg_train images_train Train-Data train2017 "
    "00_train trainset TrainImages trn",
    "val": "validation Valid dev DEV_SET val2017 val-images development",
    "test": "Testing seg_test test_images holdout hold_out Hold-Out eval testSet",
    None: "trains bus tester latest contest values device trainer augmented unlabeled "
    "labels seg_pred set data images evil trend",
}


def empty_tree(root, *files):
    """Empty files: enough where nothing is decoded."""
    for file in files:
        path = Path(root, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def read(root, **kwargs):
    return from_directory(root, verify=False, **kwargs)


def counts(found):
    if isinstance(found, dict):
        return {part: images.counts for part, images in found.items()}
    return found.counts


@pytest.mark.parametrize("part", NAMES)
def test_names_of_parts(part):
    for name in NAMES[part].split():
        assert part_of(name) == part, name


def test_splits_under_other_names(tmp_path):
    empty_tree(
        tmp_path, *(f"{s}/{c}/0.png" for s in ("Training", "Hold_Out") for c in "ab")
    )
    expected = {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
    assert counts(read(tmp_path)) == expected
    for split in ("test", "holdout", "Hold_Out"):
        assert counts(read(tmp_path, split=split)) == expected["test"]
    assert counts(load(f"folder:{tmp_path.name}", tmp_path.parent)) == expected


def test_one_part_alone_takes_its_numbers_from_the_training_part(tmp_path):
    empty_tree(
        tmp_path, "train/a/0.png", "train/b/0.png", "train/c/0.png", "test/c/0.png"
    )
    with pytest.warns(UserWarning, match="No images of the classes 'a', 'b'"):
        images = read(tmp_path, split="test")
    assert images.class_names == ("a", "b", "c") and images.labels.tolist() == [2]
    (tmp_path / "test" / "b").mkdir()  # as an empty folder: the same
    with pytest.warns(UserWarning, match="'a', 'b'"):
        assert read(tmp_path)["test"].counts == {"a": 0, "b": 0, "c": 1}
    with pytest.raises(ValueError, match="No images of 'a', 'b'"):
        read(tmp_path, split="test", class_names=["a", "b"])


def test_a_test_part_without_labels(tmp_path):
    for i, name in enumerate(("cat", "dog")):
        write_image(tmp_path / "train" / name / "0.png", 30 * i + 100)
    for i in range(3):
        write_image(tmp_path / "test" / f"{i}.png", 40 * i + 30)
    with pytest.warns(
        UserWarning, match=r"3 images.*split='test', labels=None"
    ) as caught:
        assert list(from_directory(tmp_path)) == ["train"]
    assert len(caught) == 1
    images = from_directory(tmp_path, split="test", labels=None)
    assert images.labels is None and len(images) == 3 and images.counts == {}
    assert repr(images) == "ImageSet(3 images without labels)"
    (batch,) = images.batches(8)
    assert batch.shape == (3, 8, 8, 3)
    x, y = images.subset([2, 0]).arrays(8)
    assert y is None
    np.testing.assert_array_equal(x[1], batch[0])
    for need in (lambda: images.few_shot(1), lambda: images.split(0.5), images.folds):
        with pytest.raises(ValueError, match="no labels"):
            need()
    with pytest.raises(ValueError, match=r"no class folders.*`labels=None`"):
        from_directory(tmp_path, split="test")
    with pytest.raises(ValueError, match="`labels`"):
        from_directory(tmp_path, labels="test")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_forms_are_matched(tmp_path, form):
    other = "NFD" if form == "NFC" else "NFC"
    a, b = (unicodedata.normalize(f, "café") for f in (form, other))
    empty_tree(
        tmp_path, f"train/{a}/0.png", "train/B/0.png", f"test/{b}/0.png", "test/b/0.png"
    )
    assert counts(read(tmp_path)) == {p: {"B": 1, a: 1} for p in ("train", "test")}
    assert read(tmp_path, class_names=[b, "b"])["train"].counts == {b: 1, "b": 1}
    empty_tree(tmp_path, f"train/{b}/0.png")
    with pytest.raises(ValueError, match=r"look alike: .*caf\\xe9|look alike: .*u0301"):
        read(tmp_path)


def test_what_is_neither_is_said(tmp_path):
    empty_tree(tmp_path, *(f"{s}/{c}/0.png" for s in ("train", "test") for c in "ab"))
    (tmp_path / "labels").mkdir()
    empty_tree(tmp_path, "labels/train.csv")
    with pytest.warns(UserWarning, match="'labels'.*no images"):
        read(tmp_path)
    shutil.rmtree(tmp_path / "labels")
    empty_tree(tmp_path, "extra/0.png")
    with pytest.warns(UserWarning, match="'extra'.*skipped"):
        assert list(read(tmp_path)) == ["train", "test"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path, split="train")
    empty_tree(tmp_path, "phase2/a/0.png")
    with pytest.raises(ValueError, match=r"'phase2'.*split or a class.*split='test'"):
        read(tmp_path)
    read(tmp_path, split="train")  # as it says


def test_a_class_called_train(tmp_path):
    empty_tree(tmp_path, "train/0.png", "car/0.png", "bus/0.png")
    assert counts(read(tmp_path)) == {"bus": 1, "car": 1, "train": 1}
    empty_tree(tmp_path, "train/fast/1.png")  # now it may be a split, too
    with pytest.raises(ValueError, match=r"class_names=\['bus', 'car', 'train'\]"):
        read(tmp_path)
    names = ["bus", "car", "train"]
    assert counts(read(tmp_path, class_names=names)) == {"bus": 1, "car": 1, "train": 2}


def test_splits_inside_of_classes(tmp_path):
    empty_tree(
        tmp_path, *(f"{c}/{s}/0.png" for s in ("train", "test") for c in ("cat", "dog"))
    )
    with pytest.raises(
        ValueError, match=r"'cat' contains 'test', 'train'.*test/cat, not cat/test"
    ):
        read(tmp_path)


def test_a_folder_in_a_folder(tmp_path):
    empty_tree(tmp_path, *(f"archive/{c}/0.png" for c in "ab"))
    with pytest.raises(ValueError, match=r"Did you mean .*archive\?"):
        read(tmp_path)


def test_images_that_are_empty_in_fact(tmp_path):
    for i, name in enumerate("ab"):
        write_image(tmp_path / name / "0.png", 50 * i + 50)
    Image.new("RGB", (8, 8), "green").save(tmp_path / "a" / "one.png")
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64  # 12 bits
    Image.fromarray(grey).save(tmp_path / "a" / "twelve.png")
    with pytest.warns(UserWarning) as caught:
        from_directory(tmp_path)
    first, second = sorted(str(w.message) for w in caught)
    assert "1 of 4 images are almost black" in first and "twelve.png" in first
    assert "1 of 4 images have a single colour" in second and "one.png" in second
    # As the message says.
    Image.fromarray(grey * 16).save(tmp_path / "a" / "twelve.png")
    (tmp_path / "a" / "one.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_directory(tmp_path)


def test_duplicates_are_named(tmp_path):
    for part, start in (("train", 50), ("test", 150)):
        for i, name in enumerate("ab"):
            write_image(tmp_path / part / name / "0.png", start + 10 * i)
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "test/a/again.png")
    shutil.copy(tmp_path / "train/b/0.png", tmp_path / "train/a/wrong.png")
    with pytest.warns(UserWarning) as caught:
        from_directory(tmp_path)
    first, second = sorted(str(w.message) for w in caught)
    assert "1 images are in two splits" in first and "again.png" in first
    assert "1 images occur twice, with two" in second and "wrong.png" in second


def test_formats_of_plug_ins(tmp_path):
    """One that is registered reads its files; one that is not is named."""
    empty_tree(tmp_path, "a/0.heic", "b/0.heic")
    for name in "ab":
        (tmp_path / name / "0.heic").write_bytes(b"LAND" + bytes(12))
    with pytest.raises(
        ValueError, match=r"pip install pillow-heif.*register_heif_opener"
    ):
        from_directory(tmp_path)

    class Plugin(Image.Image):
        format = "LAND"

        def __init__(self, fp, filename=None):
            super().__init__()
            self._size, self._mode = (2, 2), "RGB"

        def load(self):
            self.im = Image.linear_gradient("L").resize((2, 2)).convert("RGB").im
            return super().load()

    Image.register_open("LAND", Plugin, lambda prefix: prefix.startswith(b"LAND"))
    try:
        with pytest.warns(UserWarning, match="two labels"):  # they are all alike
            images = from_directory(tmp_path)
        assert images.arrays(2)[0].shape == (2, 2, 2, 3)
    finally:
        Image.OPEN.pop("LAND")
        Image.ID.remove("LAND")


# --- any tree, against an obvious twin -------------------------------------------

PARTS = st.sampled_from(["train", "Training", "val", "dev", "test", "seg_test"])
CLASSES = st.sampled_from(["ant", "bee", "cat", "test2x", "caf\u00e9", "cafe\u0301"])
FILES = st.sampled_from(["0.png", "1.JPG", "more/2.png", ".hidden.png", "notes.txt"])
FLAT = st.dictionaries(CLASSES, st.sets(FILES, max_size=3), min_size=1, max_size=4)
TREES = st.one_of(FLAT, st.dictionaries(PARTS, FLAT, min_size=1, max_size=3))


def is_image(file):
    return not file.startswith(".") and not file.endswith(".txt")


def class_key(name):
    return unicodedata.normalize("NFC", name).casefold()


def twin(tree):
    """What is in a drawn tree, counted by name; None for what has to be refused."""
    flat = all(isinstance(v, set) for v in tree.values())
    parts = {None: tree} if flat else {}
    for name, classes in {} if flat else tree.items():
        part = {"Training": "train", "dev": "val", "seg_test": "test"}.get(name, name)
        if part in parts:
            return None  # two folders of one part
        parts[part] = classes
    tables = {}
    for part, classes in parts.items():
        keys = [class_key(name) for name in classes]
        if len(set(keys)) < len(keys):
            return None  # names that look alike
        tables[part] = {
            class_key(name): sum(map(is_image, files))
            for name, files in classes.items()
        }
    order = [p for p in (None, "train", "val", "test") if p in tables]
    leading = tables[order[0]]
    if len(leading) < 2 or not all(leading.values()):
        return None
    for part in order[1:]:
        if not set(tables[part]) <= set(leading) or not sum(tables[part].values()):
            return None
    return {part: {k: tables[part].get(k, 0) for k in leading} for part in order}


@settings(
    max_examples=int(os.environ.get("KERAS_DELTA_EXAMPLES", 60)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(TREES)
def test_any_tree(tree):
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, inside in tree.items():
            groups = (
                {path: inside}
                if isinstance(inside, set)
                else {f"{path}/{name}": files for name, files in inside.items()}
            )
            for folder, files in groups.items():
                Path(root, folder).mkdir(parents=True)
                empty_tree(root, *(f"{folder}/{file}" for file in files))
        try:
            found = read(root)
        except ValueError:
            found = None
        if found is not None:
            found = found if isinstance(found, dict) else {None: found}
            found = {
                part: {class_key(k): n for k, n in images.counts.items()}
                for part, images in found.items()
            }
            labels = {tuple(counts) for counts in found.values()}
            assert len(labels) == 1  # one numbering
        assert found == twin(tree)
