"""Archives of data sets: checked, unpacked as a whole or not at all, never outside."""

import hashlib
import os
import shutil
import tarfile
import zipfile

import known_trees
import pytest
from known_trees import TEST, TRAIN, shows

from keras_delta.data import DATA_SETS, archives, load, places

PAGE = "<!DOCTYPE html><html>Not Found</html>"


def packed(folder, archive, inside=""):
    """A .tgz or .tar of what is in the folder, which then goes."""
    with tarfile.open(
        archive, "w:gz" if archive.suffix in (".tgz", ".gz") else "w"
    ) as t:
        for path in sorted(folder.iterdir()):
            t.add(path, os.path.join(inside, path.name))
    shutil.rmtree(folder)


def know_checksum(archive, kind="sha256"):
    digest = hashlib.new(kind, archive.read_bytes()).hexdigest()
    places.CHECKSUMS[archive.name] = digest


@pytest.mark.parametrize(("place", "kind"), [("", "sha256"), ("cub", "md5")])
def test_archive(tmp_path, place, kind):
    known_trees.cub(tmp_path / "made")
    (tmp_path / place).mkdir(exist_ok=True)
    archive = tmp_path / place / "CUB_200_2011.tgz"
    packed(tmp_path / "made", archive, "CUB_200_2011")
    know_checksum(archive, kind)
    sets = load("cub", tmp_path)
    folder = tmp_path / "cub" / "unpacked" / "CUB_200_2011"
    assert sets["train"].paths[0].startswith(str(folder / "images"))
    assert shows(sets["train"].paths[0], 0)
    archive.unlink()
    assert load("cub", tmp_path)["train"].paths == sets["train"].paths


def test_wrong_checksum(tmp_path):
    known_trees.cub(tmp_path / "made")
    archive = tmp_path / "CUB_200_2011.tgz"
    packed(tmp_path / "made", archive, "CUB_200_2011")
    know_checksum(archive)
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
        FileNotFoundError, match=r"Dogs cannot be unpacked: besides .*needs 'lists.tar"
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


@pytest.mark.parametrize("kind", ["tar", "link"])
def test_archives_that_write_outside(tmp_path, kind):
    archive = tmp_path / "food-101.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo("../../outside.txt")
        if kind == "link":
            member = tarfile.TarInfo("link")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(member)
    with pytest.raises(ValueError, match=r"was not unpacked: .*not the original"):
        load("food101", tmp_path)
    assert not (tmp_path / "outside.txt").exists()
    assert not (tmp_path / "food101" / "unpacked").exists()


@pytest.mark.parametrize("killed", [False, True], ids=["interrupted", "killed"])
def test_interrupted_unpacking(tmp_path, monkeypatch, killed):
    """What ends amid the work leaves no folder that passes for whole."""
    known_trees.food101(tmp_path / "made")
    packed(tmp_path / "made", tmp_path / "food-101.tar.gz", "food-101")
    extract, count = tarfile.TarFile.makefile, []

    def interrupt(*args, **options):
        extract(*args, **options)
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tarfile.TarFile, "makefile", interrupt)
        if killed:  # nobody cleans up
            patch.setattr(os, "getpid", lambda: 2**22 + 1)
            patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        load("food101", tmp_path)
    folder = tmp_path / "food101"
    left = sorted(p.name for p in folder.iterdir())
    assert ".unpacked.lock" in left and len(left) == 1 + killed
    assert "unpacked" not in left
    sets = load("food101", tmp_path)
    assert [len(images) for images in sets.values()] == [3 * TRAIN, 3 * TEST]
    assert sorted(p.name for p in folder.iterdir()) == [".unpacked.lock", "unpacked"]


def test_a_zip_that_would_write_outside(tmp_path):
    """Its files land inside."""
    with zipfile.ZipFile(tmp_path / "food-101.tar.gz", "w") as file:
        file.writestr("../../outside.txt", "x")
        file.writestr("/root.txt", "x")
    with pytest.raises(FileNotFoundError, match="a part is missing"):
        load("food101", tmp_path)
    names = sorted(p.name for p in (tmp_path / "food101" / "unpacked").iterdir())
    assert names == ["outside.txt", "root.txt"]
    assert not (tmp_path / "outside.txt").exists()


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
    know_checksum(archive)
    monkeypatch.setattr(archives, "MEGABYTE", 100)
    monkeypatch.setattr(archives, "PROGRESS_FROM", 5)
    load("food101", tmp_path)
    shown = capsys.readouterr().out
    assert f"Checking {archive}" in shown and f"Unpacking {archive}" in shown
