"""`keras_delta predict`: labels that are right, and all of them after any kill.

`KERAS_DELTA_KILLS=5` kills more often than the test suite has time for.
"""

import csv
import functools
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from networks import SIZE
from PIL import Image
from served import NAMES, tiny_model

import keras_delta as kd
import keras_delta_cli
from keras_delta.data.decode import read_image
from keras_delta.serving import classifier, image_paths
from keras_delta.serving.resumable_csv import ResumableCsv

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KERAS_DELTA_KILLS", "1"))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def exported(tiny):
    return tiny / "1"


class Colours(tf.Module):
    """A model of the same signatures that loads at once: which channel is brighter?"""

    def __init__(self, labels):
        super().__init__()
        self.labels = tf.constant(labels)

    def prepare(self, image_bytes):
        def pixels(contents):
            image = tf.io.decode_image(contents, 3, expand_animations=False)
            return tf.image.resize(image, (4, 4))

        kind = tf.TensorSpec([4, 4, 3])
        return {"images": tf.map_fn(pixels, image_bytes, fn_output_signature=kind)}

    def classify_prepared(self, images):
        means = tf.reduce_mean(images, axis=[1, 2])
        scores, ids = tf.math.top_k(tf.nn.softmax(means / 20), 3)
        return {"scores": scores, "labels": tf.gather(self.labels, ids)}

    def save(self, folder):
        """As of `export_for_serving(input="tensor")`."""
        specs = {
            "prepare": tf.TensorSpec([None], tf.string, "image_bytes"),
            "classify_prepared": tf.TensorSpec([None, 4, 4, 3], name="images"),
            "classify_ten_crop": tf.TensorSpec([None, None, None, 3], name="images"),
        }
        self.classify_ten_crop = self.classify_prepared
        signatures = {
            name: tf.function(getattr(self, name), input_signature=[spec])
            for name, spec in specs.items()
        }
        tf.saved_model.save(self, str(folder), signatures)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two versions, of other labels."""
    name = tmp_path_factory.mktemp("served") / "colours"
    Colours(["red", "green", "blue"]).save(name / "1")
    Colours(["RED", "GREEN", "BLUE"]).save(name / "2")
    return name


LOADED = functools.cache(tf.saved_model.load)


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    monkeypatch.setattr(tf.saved_model, "load", LOADED)
    # The command sets it for its process, which here has other tests to run.
    determinism = "enable_op_determinism"
    monkeypatch.setattr(tf.config.experimental, determinism, lambda: None)


def picture(seed, shape=(20, 30)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))


def write(folder, names):
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, (18 + seed % 5, 21)).save(path)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "images", [f"{i}.png" for i in range(7)])


def predict(model, folder, out, *options):
    """The exit code of the command."""
    given = ["predict", str(model), str(folder), "--csv", str(out), *map(str, options)]
    return keras_delta_cli.main(given)


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def expected(model, path):
    """Labels and probabilities of one file by Keras, likeliest first."""
    image = tf.image.resize(read_image(str(path)), (SIZE, SIZE), antialias=True)
    (logits,) = model.predict(image[None], verbose=0)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return [(NAMES[i], p[i]) for i in np.argsort(-p)]


def brightest(means):
    """What `Colours` answers."""
    p = np.exp(means / 20 - max(means / 20))
    p /= p.sum()
    return [(("red", "green", "blue")[i], p[i]) for i in np.argsort(-p)]


def check_row(row, answer):
    assert row[-1] == ""
    assert row[1:-1:2] == [name for name, _ in answer]
    scores = [float(cell) for cell in row[2:-1:2]]
    np.testing.assert_allclose(scores, [p for _, p in answer], atol=2e-6)


def test_labels_and_scores_of_every_format(model, exported, tmp_path, capsys):
    names = ["b/0.jpg", "b/1.png", "a/2.webp", "3.gif", "4.tiff", "5.bmp", "6.ppm"]
    folder = write(tmp_path / "images", [*names, "7.jp2"])
    (folder / "3.gif").rename(folder / "3.jpg")
    (folder / "b/0.jpg").rename(folder / "b/without_extension")
    frames = [picture(seed) for seed in (20, 21)]
    frames[0].save(folder / "8.gif", save_all=True, append_images=frames[1:])
    (folder / "notes.txt").write_text("no image")
    assert predict(exported, folder, tmp_path / "out.csv", "--batch-size", 3) == 0
    header, *rows = table(tmp_path / "out.csv")
    columns = "path,label,score,label_2,score_2,label_3,score_3,error"
    assert ",".join(header) == columns
    assert [row[0] for row in rows] == [
        *("3.jpg", "4.tiff", "5.bmp", "6.ppm", "7.jp2", "8.gif"),
        *("a/2.webp", "b/1.png", "b/without_extension"),
    ]
    for row in rows:
        check_row(row, expected(model, folder / row[0]))
    assert len({tuple(row[1:]) for row in rows}) == len(rows)
    printed = capsys.readouterr()
    assert "Answers for 9 images are in" in printed.out
    assert "images a second" in printed.out
    assert printed.err == ""


def test_the_newest_version_is_taken(served, folder, tmp_path):
    for number, version in enumerate((served, served / "1", served / "2")):
        assert predict(version, folder, tmp_path / f"{number}.csv") == 0
    newest, first, second = [(tmp_path / f"{n}.csv").read_bytes() for n in range(3)]
    assert newest == second != first


def test_ten_newer_than_nine(tmp_path):
    for name in ("9", "10", "2", "11-old", ".12.3.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "13").mkdir()
    assert classifier.saved_model(tmp_path) == tmp_path / "10"
    assert classifier.saved_model(tmp_path / "9") == tmp_path / "9"


def test_ten_crops(model, exported, tmp_path):
    folder = write(tmp_path / "images", ["a.png", "b.tiff", "c.jpg"])
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert predict(exported, folder, tmp_path / "out.csv", "--ten-crop") == 0
    _, *rows = table(tmp_path / "out.csv")
    protocol = kd.data.augment.Protocol("improved", SIZE, ten_crop=True)
    for row in rows:
        if row[0] == "bad.jpg":
            assert row[1] == "" and "not an image" in row[-1]
            continue
        pixels = tf.constant(read_image(str(folder / row[0])))
        crops = protocol.finish(protocol.resize(pixels), None)
        p = tf.nn.softmax(tf.reduce_mean(model(crops, training=False), 0)).numpy()
        check_row(row, [(NAMES[i], p[i]) for i in np.argsort(-p)])
    assert len(rows) == 4


def test_ten_crops_by_a_model_of_pixels(served, tmp_path):
    folder = write(tmp_path / "images", ["a.png", "b.tiff", "c.jpg"])
    (folder / "bad.jpg").write_text("text")
    assert predict(served / "1", folder, tmp_path / "out.csv", "--ten-crop") == 0
    _, *rows = table(tmp_path / "out.csv")
    for row in rows:
        if row[0] != "bad.jpg":
            check_row(row, brightest(read_image(str(folder / row[0])).mean((0, 1))))
    assert [row[0] for row in rows] == ["a.png", "b.tiff", "bad.jpg", "c.jpg"]


def test_a_strip_that_would_become_huge_stops_nothing(exported, tmp_path):
    folder = write(tmp_path / "images", ["a.png"])
    Image.new("RGB", (300_000, 1)).save(folder / "strip.png")
    assert predict(exported, folder, tmp_path / "out.csv", "--ten-crop") == 0
    _, good, strip = table(tmp_path / "out.csv")
    assert good[-1] == "" and "more than 89,478,485 pixels once resized" in strip[-1]


def byte(match):
    return bytes.fromhex(match[1].decode())


def test_file_names_of_any_bytes(served, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    names = [b"a,b.png", b'"c".png', b"d\ne.png", b"f\rg.png", b"\xff\xfe.png"]
    names += [b"caf\xe9.png", b"caf\\xe9.png", b"a\\b\\.png"]
    names += ["ä€.png".encode(), b" i .png", b"'=1+1.png", b"\xf0\x9f\x90\x9d.png"]
    for seed, name in enumerate(names):
        picture(seed).save(os.path.join(os.fsencode(folder), name), "PNG")
    assert predict(served, folder, tmp_path / "out.csv", "--batch-size", 2) == 0
    _, *rows = table(tmp_path / "out.csv")
    # Readable for everybody, and each file can be found, as docs/serving.md says.
    paths = pd.read_csv(tmp_path / "out.csv")["path"]
    assert {"\\xff\\xfe.png", "caf\\xe9.png", "caf\\x5cxe9.png"} < set(paths)
    assert [row[0] for row in rows] == list(paths)
    found = [re.sub(rb"\\x([0-9a-f]{2})", byte, path.encode()) for path in paths]
    assert found == sorted(names)
    assert all(row[1] and not row[-1] for row in rows)
    before = (tmp_path / "out.csv").read_bytes()
    assert predict(served, folder, tmp_path / "out.csv", "--batch-size", 2) == 0
    assert (tmp_path / "out.csv").read_bytes() == before


def test_bad_files_are_listed_and_stop_nothing(served, folder, tmp_path, capsys):
    whole = (folder / "1.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "gone.jpg").symlink_to("nowhere")
    for i in range(20):
        (folder / f"text{i:02}.jpg").write_text("text\x1b[31m")
    assert predict(served / "1", folder, tmp_path / "out.csv", "--batch-size", 4) == 0
    printed = capsys.readouterr().out
    assert "23 of 30 images have no answer" in printed
    assert "  empty.jpg: the file is empty\n" in printed
    assert "text16.jpg" in printed and "text17.jpg" not in printed
    assert "and 3 more, see the column `error`" in printed
    _, *rows = table(tmp_path / "out.csv")
    assert len(rows) == 30
    errors = {row[0]: row[-1] for row in rows}
    assert "truncated" in errors["cut.png"]
    assert errors["gone.jpg"] == "No such file or directory"
    assert errors["text00.jpg"] == "not an image in a format that Pillow reads"
    for row in rows:
        assert len(row) == 8
        if row[-1]:
            assert row[1:-1] == [""] * 6
        else:
            image = tf.image.resize(read_image(str(folder / row[0])), (4, 4)).numpy()
            check_row(row, brightest(image.mean((0, 1))))


def test_not_one_image_can_be_read(served, tmp_path, capsys):
    (tmp_path / "one.jpg").write_text("text")
    assert predict(served, tmp_path / "one.jpg", tmp_path / "out.csv") == 1
    assert "None of 1 images has an answer" in capsys.readouterr().err
    assert table(tmp_path / "out.csv")[1][-1] != ""


def test_one_file_and_silence(served, folder, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert predict(served / "1", folder / "3.png", out, "--quiet") == 0
    _, row = table(out)
    assert row[0] == "3.png" and row[1] in ("red", "green", "blue")
    assert capsys.readouterr() == ("", "")


def test_links_and_what_is_no_image(tmp_path):
    folder = write(
        tmp_path / "images", ["a/1.png", "b/2.png", ".hidden/3.png", ".4.png"]
    )
    elsewhere = write(tmp_path / "elsewhere", ["5.png"])
    (folder / "a" / "up").symlink_to(folder)
    (folder / "0").symlink_to(folder / "b")  # sorted before what it links to
    (folder / "b" / "out").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder / "a")
    (folder / "file.png").symlink_to(elsewhere / "5.png")
    (folder / "broken.txt").symlink_to("nothing")
    (folder / "notes.txt").write_text("no image")
    os.mkfifo(folder / "pipe.png")
    found = ["a/1.png", "b/2.png", "b/out/5.png", "file.png"]
    assert image_paths.find(folder) == (folder, found)
    (tmp_path / "link").symlink_to(folder)
    assert image_paths.find(tmp_path / "link")[1] == found


def without_folder(path):
    return path / "nowhere"


def empty_folder(path):
    (path / "empty").mkdir()
    return path / "empty"


def folder_of_texts(path):
    (path / "texts").mkdir()
    (path / "texts" / "a.txt").write_text("text")
    return path / "texts"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (without_folder, "does not exist. FOLDER is a folder of images, or one file"),
        (empty_folder, "No images in '"),
        (folder_of_texts, "(1 other files)"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_folders_without_images(served, tmp_path, capsys, make, sentence):
    assert predict(served, make(tmp_path), tmp_path / "out.csv") == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def no_model(path, served):
    return path / "nowhere"


def a_file(path, served):
    return served / "1" / "saved_model.pb"


def a_folder(path, served):
    return path


def another_model(path, served):
    tf.saved_model.save(tf.Module(), str(path / "module"))
    return path / "module"


def damaged_model(path, served):
    (path / "m").mkdir()
    (path / "m" / "saved_model.pb").write_bytes(b"not a protobuf")
    return path / "m"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (no_model, "does not exist. SAVED_MODEL is a folder written by"),
        (a_file, "is a file. SAVED_MODEL is a folder written by"),
        (a_folder, "is not a SavedModel: it has no 'saved_model.pb'"),
        (another_model, "without `prepare` and `classify_prepared`; its signatures"),
        (damaged_model, "cannot be loaded as a SavedModel"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_models_that_are_none(served, folder, tmp_path, capsys, make, sentence):
    assert predict(make(tmp_path, served), folder, tmp_path / "out.csv") == 1
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("keras_delta predict: ")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("nowhere/out.csv", "/nowhere' does not exist"),
        ("images", "cannot be written: Is a directory"),
        ("/proc/out.csv", "cannot be written: "),  # not even for root
    ],
)
def test_csv_files_that_cannot_be(served, folder, tmp_path, capsys, out, sentence):
    assert predict(served, folder, tmp_path / out) == 1
    assert sentence in capsys.readouterr().err


def test_a_csv_of_something_else_is_refused(served, folder, tmp_path, capsys):
    out = tmp_path / "out.csv"
    out.write_text("mine\n")
    assert predict(served, folder, out) == 1
    assert "Pass another file, or `--overwrite`" in capsys.readouterr().err
    assert out.read_text() == "mine\n"
    assert predict(served / "1", folder, out, "--overwrite") == 0
    first = out.read_bytes()
    capsys.readouterr()
    for options, what in (
        ([served / "2", folder], "digest of the model"),
        ([served / "1", folder, "--batch-size", 2], "batch size 32, now 2"),
        ([served / "1", folder, "--ten-crop"], "ten crops False, now True"),
        ([served / "1", folder / "1.png"], "folder"),
        ([served / "1", tmp_path], "folder"),
    ):
        model, images, *more = options
        assert predict(model, images, out, *more) == 1
        error = capsys.readouterr().err
        assert "was started differently" in error and what in error
        assert out.read_bytes() == first
    assert predict(served / "2", folder, out, "--overwrite") == 0
    assert out.read_bytes() != first
    header, *rest = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(header + b"".join(rest[::-1]))
    assert predict(served / "2", folder, out) == 1
    assert "was edited: it has other rows" in capsys.readouterr().err
    assert predict(served / "2", folder, out, "--overwrite") == 0
    assert out.read_bytes().splitlines(keepends=True) == [header, *rest]


def test_files_that_are_new_gone_or_changed(served, folder, tmp_path, capsys):
    out = tmp_path / "out.csv"

    def again(done):
        capsys.readouterr()
        assert predict(served, folder, out, "--batch-size", 2) == 0
        assert f"images, {done} done before" in capsys.readouterr().out
        fresh = tmp_path / f"fresh{time.monotonic_ns()}.csv"
        assert predict(served, folder, fresh, "--batch-size", 2) == 0
        assert out.read_bytes() == fresh.read_bytes()

    assert predict(served, folder, out, "--batch-size", 2) == 0
    again(7)
    picture(99).save(folder / "4.png")
    again(4)
    (folder / "6.png").unlink()
    again(6)
    picture(98).save(folder / "7.png")
    again(6)
    picture(97).save(folder / "3a.png")
    again(4)


def test_cut_off_anywhere(tmp_path):
    """Whatever a kill leaves of the file, the end is the same."""
    rows = [[["ä,\n", "1"], ['"', "2"]], [["\udcff", "3"]], [["x", "4\r\n5"]]]
    names = [[name for name, _ in batch] for batch in rows]
    given = ["n", "v"], {"folder": "\udcff é"}, names, ["a", "b", "c"]
    path, whole = tmp_path / "out.csv", tmp_path / "out.csv.progress"

    def done():
        """Batches that were there."""
        table = ResumableCsv(path, *given)
        before = table.batches
        for batch in rows[before:]:
            table.append(batch)
        return before

    assert done() == 0
    content, progress = path.read_bytes(), whole.read_bytes()
    parts = (b"n,v\n", b'"\xc3\xa4,\n",1\n"""",2\n', b"\\xff,3\n", b'x,"4\r\n5"\n')
    assert content == b"".join(parts)
    ends = np.cumsum([len(part) for part in parts])
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        assert done() == max(0, (ends <= size).sum() - 1)
        assert (path.read_bytes(), whole.read_bytes()) == (content, progress)
    path.write_bytes(content + b'rubbish behind,"')
    assert done() == 3
    assert path.read_bytes() == content


def test_a_progress_file_of_the_version_before(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("n\n1\n")
    lines = '{"model": "m"}\n{"end": 2, "rows": "0", "made_from": "0"}\n'
    (tmp_path / "out.csv.progress").write_text(lines)
    given = path, ["n"], {"folder": "m"}, [["1"]], ["a"]
    with pytest.raises(ValueError, match="Pass another file, or `--overwrite`"):
        ResumableCsv(*given)
    assert ResumableCsv(*given, overwrite=True).batches == 0


class Command:
    """The command as a process of its own."""

    def __init__(self, served, folder, out):
        given = ["predict", served, folder, "--csv", out, "--batch-size", 2]
        self.out = Path(out)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keras_delta_cli", *map(str, given)],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_rows(self):
        """Return once rows were written by this process."""
        before = self.size()
        until = time.monotonic() + 120
        while self.size() <= before + 1000 and self.process.poll() is None:
            assert time.monotonic() < until, "waited in vain"
            time.sleep(0.002)

    def size(self):
        return self.out.stat().st_size if self.out.exists() else 0

    def end(self, number=None):
        """Exit code and what was printed, after a signal."""
        try:
            if number is not None:
                self.process.send_signal(number)
            out, err = self.process.communicate(timeout=120)
            return self.process.returncode, out, err
        finally:
            self.process.kill()
            self.process.wait()


@pytest.mark.slow
def test_killed_and_stopped_it_goes_on(served, tmp_path, capsys):
    folder = write(tmp_path / "images", [f"{i:04}.png" for i in range(600)])
    (folder / "0300.png").write_text("no image")
    draw = random.Random(0)
    out, whole, counts = tmp_path / "out.csv", tmp_path / "whole.csv", []
    for number in [signal.SIGKILL, signal.SIGINT] * KILLS:
        command = Command(served, folder, out)
        command.wait_for_rows()
        time.sleep(draw.uniform(0, 0.1))
        code, printed, error = command.end(number)
        counts.append(max(0, len(table(out)) - 1))
        if number == signal.SIGINT:
            assert code == 130
            done = int(re.search(r"Stopped after (\d+) of 600 images", error)[1])
            assert done % 2 == 0 and 0 <= counts[-1] - done <= 2
            assert "The same command resumes from there" in error
            assert "Traceback" not in error
        else:
            assert (code, error) == (-signal.SIGKILL, "")
    assert counts[0] > 0 and counts == sorted(counts)
    assert predict(served, folder, out, "--batch-size", 2) == 0
    printed = capsys.readouterr().out
    assert "done before" in printed and "Answers for 599 images" in printed
    assert predict(served, folder, whole, "--batch-size", 2, "--quiet") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert [row[0] for row in table(out)[1:]] == [f"{i:04}.png" for i in range(600)]


@pytest.mark.parametrize("arguments", [["--help"], ["predict_"]])
def test_help_without_tensorflow(arguments):
    script = (
        "import sys, keras_delta_cli\n"
        "try:\n    keras_delta_cli.main(sys.argv[1:])\n"
        "finally:\n    assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if arguments and arguments[0].startswith("--"):
        assert result.returncode == 0 and result.stderr == ""
        assert result.stdout.startswith(("usage: keras_delta", "keras_delta 0."))
    else:
        assert result.returncode == 2 and result.stdout == ""
        assert result.stderr.startswith("keras_delta: ")
        assert "Traceback" not in result.stderr


def test_help_of_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        keras_delta_cli.main(["predict", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: keras_delta predict")


@pytest.mark.parametrize(
    "options", [["--batch-size", "0"], ["--batch-size", "many"], ["--nonsense"]]
)
def test_command_lines_that_cannot_be_understood(options, capsys):
    with pytest.raises(SystemExit) as stop:
        predict("model", "folder", "out.csv", *options)
    assert stop.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_without_tensorflow_the_reason_is_shown(monkeypatch, capfd):
    def failing(name):
        os.write(2, b"noise before\n")
        raise ImportError("no TensorFlow here")

    monkeypatch.setattr(keras_delta_cli.importlib, "import_module", failing)
    assert keras_delta_cli.main(["predict", "a", "b", "--csv", "c"]) == 1
    error = capfd.readouterr().err
    assert "noise before" in error and "no TensorFlow here" in error
