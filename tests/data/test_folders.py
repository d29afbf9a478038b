"""Folders: what is read, what is ignored, and what every mistake says."""

import os
import shutil
import warnings

import numpy as np
import pytest
from picture_files import write_image, write_tree
from PIL import Image

from keras_delta.data import from_directory
from keras_delta.data import verify as verify_module


def test_plain_tree(tree):
    images = from_directory(tree)
    assert images.class_names == ("ant", "bee", "cat")
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.labels.dtype == np.int64
    assert len(images) == 12
    assert images.paths[5] == str(tree / "bee" / "1.png")
    assert images.skipped == []


def test_pixels_belong_to_their_labels(tree):
    x, y = from_directory(str(tree)).arrays(8)
    expected = [60 * label + 10 * number for label in range(3) for number in range(4)]
    np.testing.assert_allclose(x.mean((1, 2, 3)) - 3.5, expected, atol=1.5)
    assert y.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_other_files_are_ignored(tree):
    (tree / "ant" / "notes.txt").write_text("P5 notes")
    (tree / "ant" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tree / "ant" / ".DS_Store").write_bytes(b"Bud1")
    (tree / ".cache").mkdir()
    (tree / "__MACOSX").mkdir()
    (tree / "README.md").write_text("about")
    write_image(tree / "ant" / ".hidden.png", 9)
    assert len(from_directory(tree)) == 12


def test_content_counts_not_the_extension(tree):
    os.rename(tree / "ant" / "0.png", tree / "ant" / "0.jpg")
    os.rename(tree / "ant" / "1.png", tree / "ant" / "1")
    images = from_directory(tree)
    assert images.counts == {"ant": 4, "bee": 4, "cat": 4}


def test_images_in_nested_folders_count(tree):
    write_image(tree / "ant" / "more" / "x.png", 5)
    assert from_directory(tree).counts["ant"] == 5


def test_class_names_choose_and_order(tree):
    images = from_directory(tree, class_names=["cat", "ant"])
    assert images.class_names == ("cat", "ant")
    assert os.path.basename(os.path.dirname(images.paths[0])) == "cat"
    assert images.labels[0] == 0
    with pytest.raises(ValueError, match=r"'cats'.*Closest names: 'cat'"):
        from_directory(tree, class_names=["cats", "ant"])
    with pytest.raises(ValueError, match="at least two names"):
        from_directory(tree, class_names=["ant", "ant"])


def test_splits(split_tree):
    sets = from_directory(split_tree)
    assert list(sets) == ["train", "val", "test"]
    assert [len(images) for images in sets.values()] == [9, 6, 3]
    assert from_directory(split_tree, "train").paths == sets["train"].paths
    assert from_directory(split_tree, "validation").paths == sets["val"].paths


@pytest.mark.parametrize("name", ["validation", "valid", "Val"])
def test_other_names_of_the_validation_split(split_tree, name):
    os.rename(split_tree / "val", split_tree / "other")
    os.rename(split_tree / "other", split_tree / name)
    assert list(from_directory(split_tree)) == ["train", "val", "test"]


def test_a_class_may_be_called_train(tmp_path):
    write_tree(tmp_path, classes=("bus", "train"))
    assert from_directory(tmp_path).class_names == ("bus", "train")


def test_split_errors(split_tree, tree):
    with pytest.raises(ValueError, match=r"'tset'.*Closest names: 'test'"):
        from_directory(split_tree, "tset")
    with pytest.raises(ValueError, match=r"`split`.*None.*\.split\(fraction\)"):
        from_directory(tree, "train")
    os.rename(split_tree / "val", split_tree / "valid")
    shutil.copytree(split_tree / "valid", split_tree / "validation")
    with pytest.raises(ValueError, match="'valid' and 'validation'"):
        from_directory(split_tree)


def test_a_class_that_the_training_part_lacks(split_tree):
    os.rename(split_tree / "test" / "bee", split_tree / "test" / "wasp")
    for split in (None, "test"):
        with pytest.raises(ValueError, match=r"'wasp'.*'ant', 'bee', 'cat'") as error:
            from_directory(split_tree, split)
    assert from_directory(split_tree, "train").class_names == ("ant", "bee", "cat")
    # The advice: leave it out. Then the test part lacks bees, which is no error.
    assert "class_names=['ant', 'bee', 'cat']" in str(error.value)
    with pytest.warns(UserWarning, match="No images of the classes 'bee'"):
        sets = from_directory(split_tree, class_names=["ant", "bee", "cat"])
    assert sets["test"].counts == {"ant": 1, "bee": 0, "cat": 1}


def test_splits_without_class_folders(tmp_path):
    write_image(tmp_path / "train" / "a.png", 1)
    write_image(tmp_path / "test" / "a.png", 1)
    with pytest.raises(ValueError, match=r"train has no class folders.*1 images"):
        from_directory(tmp_path)


def test_folder_errors(tmp_path):
    write_image(tmp_path / "flat" / "a.png", 1)
    write_tree(tmp_path / "one", classes=["ant"])
    write_tree(tmp_path / "hollow")
    (tmp_path / "hollow" / "dog").mkdir()
    (tmp_path / "empty").mkdir()
    cases = {
        "missing/deep": "`directory`.*existing folder.*'empty', 'flat'",
        "flat/a.png": "this is a file",
        "empty": "it is empty",
        "flat": "no class folders. It contains 1 images directly.*separate folder",
        "one": "at least two class folders.*'ant'",
        "hollow": "without images.*'dog'",
    }
    for place, message in cases.items():
        with pytest.raises(ValueError, match=message):
            from_directory(tmp_path / place)


def test_option_errors(tree):
    with pytest.raises(ValueError, match=r"`on_error`.*'skip'"):
        from_directory(tree, on_error="skipp")
    with pytest.raises(ValueError, match=r"`verify`.*on_error='skip'"):
        from_directory(tree, on_error="skip", verify=False)


def spoil(tree, count):
    """Makes text files called .png of the first files of ant and bee."""
    bad = [tree / name / f"{i}.png" for name in ("ant", "bee") for i in range(count)]
    for path in bad:
        path.write_text("no pixels")
    return [str(path) for path in bad]


def test_unreadable_files_are_listed(tree):
    bad = spoil(tree, 1)
    with pytest.raises(ValueError) as error:
        from_directory(tree)
    message = str(error.value)
    assert "2 of 12 image files" in message
    assert all(f"{path}: not an image" in message for path in bad)
    assert 'on_error="skip"' in message


def test_only_ten_unreadable_files_are_named(tmp_path):
    bad = spoil(write_tree(tmp_path, per_class=8), 7)
    with pytest.raises(ValueError) as error:
        from_directory(tmp_path)
    message = str(error.value)
    assert "14 of 24" in message and "and 4 more" in message
    assert bad[9] in message and bad[10] not in message


def test_every_kind_of_bad_file_is_collected(tree):
    (tree / "ant" / "0.png").write_bytes(b"")
    good = (tree / "bee" / "0.png").read_bytes()
    (tree / "bee" / "0.png").write_bytes(good[: len(good) // 2])
    Image.new("F", (4, 4)).save(tree / "cat" / "0.png", "TIFF")
    with pytest.warns(UserWarning, match="3 of 12"):
        images = from_directory(tree, on_error="skip")
    reasons = " | ".join(reason for _, reason in images.skipped)
    assert "empty" in reasons and "decoded" in reasons and "floating" in reasons


def test_skip_warns_once_and_lists(tree):
    bad = spoil(tree, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = from_directory(tree, on_error="skip")
    (said,) = (w for w in caught if "are skipped" in str(w.message))
    assert "4 of 12" in str(said.message) and said.filename == __file__
    assert [path for path, _ in images.skipped] == bad
    assert images.counts == {"ant": 2, "bee": 2, "cat": 4}
    assert "4 skipped" in repr(images)
    assert not set(bad) & set(images.paths)


def test_links_to_nowhere_are_skipped(tree):
    (tree / "ant" / "gone.png").symlink_to(tree / "nowhere.png")
    with pytest.warns(UserWarning, match="1 of 13"):
        images = from_directory(tree, on_error="skip")
    assert [path for path, _ in images.skipped] == [str(tree / "ant" / "gone.png")]
    with pytest.raises(ValueError, match="1 of 13 image files cannot be read"):
        from_directory(tree)


def test_skipped_files_go_to_their_split(split_tree):
    (split_tree / "val" / "ant" / "0.png").write_text("no")
    with pytest.warns(UserWarning, match="1 of 18"):
        sets = from_directory(split_tree, on_error="skip")
    assert [len(images.skipped) for images in sets.values()] == [0, 1, 0]


def test_a_class_of_bad_files_only(tree):
    spoil(tree, 4)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"None of the 4 .* 'ant' can be read"),
    ):
        from_directory(tree, on_error="skip")


def test_unverified_files_fail_by_name_when_read(tree):
    bad = spoil(tree, 1)
    images = from_directory(tree, verify=False)
    assert len(images) == 12
    with pytest.raises(Exception, match=f"Cannot read the image file {bad[0]}"):
        list(images.batches(8))


def test_progress_bar_for_many_files(tree, monkeypatch, capsys):
    from_directory(tree)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(verify_module, "PROGRESS_FROM", 11)
    from_directory(tree)
    assert "12 files in" in capsys.readouterr().out
