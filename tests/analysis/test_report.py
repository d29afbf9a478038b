"""The report: what is in it, what is left out and why, and that names do no harm."""

import html.parser
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from networks import make_backbone
from PIL import Image

import keras_delta as kd
from keras_delta.analysis import report
from keras_delta.analysis.reporting import pictures
from keras_delta.analysis.reporting.report import shown

SIDE = 16
VOID = {"meta", "link", "img", "br"}
HOSTILE = ("<script>alert(1)</script>", "a" * 300, "\u202efdp.exe", "two\nlines $x$")


class Page(html.parser.HTMLParser):
    """Reads a page: tags that are open, pictures, sections, text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.sections, self.words = [], [], [], []
        self.scripts, self.references = 0, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes)
        if tag == "section":
            self.sections.append(attributes["id"])
        self.scripts += tag == "script"
        self.references += [attributes[k] for k in ("src", "href") if k in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def images(count=40, classes=3, seed=0, names=None):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    x = rng.integers(0, 120, (count, SIDE, SIDE, 3))
    x[np.arange(count), ..., labels % 3] += 60
    return kd.data.ImageSet.from_arrays(x.astype("uint8"), labels, names)


def make_model(classes=3, regularizer="feature_map", seed=0):
    keras.utils.set_random_seed(seed)
    source = make_backbone(True)
    target = kd.attach_head(source, classes)
    model = kd.DeltaModel(target, source=source, regularizer=regularizer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss, metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def model():
    model = make_model(regularizer="delta")
    model.fit(images().batches(SIDE, 8, training=True), epochs=2, verbose=0)
    return model


def read(path):
    return Page(path.read_text("utf-8"))


def test_all_of_it(model, tmp_path, capsys):
    train, test = images(names=("x", "y", "z")), images(30, seed=1, names="xyz")
    x = np.concatenate([test.arrays(SIDE)[0], train.arrays(SIDE)[0][:1]])
    test = kd.data.ImageSet.from_arrays(
        np.rint(x).astype("uint8"), [*test.labels, 0], ("x", "y", "z")
    )
    models = {"one": model, "two": make_model(seed=3)}
    path = report(models, train, test, tmp_path / "new" / "report.html")
    page = read(path)
    assert page.sections == [
        "summary",
        "history",
        "recall",
        "confusions",
        "mistakes",
        "reliability",
        "suspects",
        "duplicates",
        "distances",
        "maps",
        "attention",
        "training",
    ]
    answers = model.predict(x, verbose=0).argmax(1)
    right = (answers == test.labels).mean()
    assert f"{100 * right:.1f} % of 31 test images recognised" in page.text
    assert f"{(answers != test.labels).sum()} of 31 test images are wrong" in page.text
    assert f"{model.target.count_params():,} parameters" in page.text  # no source's
    assert "1 of 31 test images are nearly the same" in page.text
    assert "one" in page.text and "two" in page.text and "DELTA" in page.text.upper()
    assert all(image["alt"] for image in page.images)
    assert all(image["src"].startswith("data:image/jpeg;") for image in page.images)
    assert {r[:5] for r in page.references} <= {
        "data:",
        *(f"#{s}"[:5] for s in page.sections),
        "#main",
    }
    assert page.scripts == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {path}"


def test_names_do_no_harm(model, tmp_path):
    names = HOSTILE[:3]
    folder = tmp_path / "photos"
    odd = ["<b>&.png", "\u202egnp.png", "n" * 240 + ".png"]
    x, y = images(9).arrays(SIDE, dtype="uint8")
    files, labels = [], []
    for i, image in enumerate(x):
        files.append(folder / f"c{y[i]}" / f"{i}{odd[i % 3]}")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(files[-1])
        labels.append(y[i])
    test = kd.data.ImageSet.from_files(files, labels, names)
    models = {HOSTILE[3]: model}
    path = report(models, test=test, path=tmp_path / "r.html", title=HOSTILE[0])
    raw, page = path.read_text("utf-8"), read(path)
    assert page.scripts == 0
    assert "<script" not in raw and "<b>" not in raw and "\u202e" not in raw
    assert "<script>alert(1)</script>" in page.text
    assert "\\u202efdp.exe" in page.text and "two\\u000alines $x$" in page.text
    assert shown("a\ud800b") == "a\\ud800b"


@pytest.mark.parametrize("task", ["regression", "multilabel", "binary"])
def test_other_tasks(task, tmp_path):
    units = {"regression": 2, "multilabel": 3, "binary": 1}[task]
    source = make_backbone()
    target = kd.attach_head(source, units, task=task)
    model = kd.DeltaModel(target, source=source)
    loss = "mse" if task == "regression" else keras.losses.BinaryCrossentropy(True)
    model.compile("sgd", loss)
    x = images(20).arrays(SIDE)[0]
    y = np.random.default_rng(0).integers(0, 2, (20, units)).astype("float32")
    page = read(report(model, (x, y), (x, y), tmp_path / "r.html", verbose=0))
    assert page.sections[0] == "summary"
    words = {"regression": "root mean square", "multilabel": "average precision"}
    assert words.get(task, "test images recognised") in page.text
    assert ("recall" in page.sections) == (task == "binary")
    assert "only for one of several classes" in page.text


def test_parts_that_do_not_apply(model, tmp_path):
    path = tmp_path / "r.html"
    plain = keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    page = read(report(plain, path=path, verbose=0))
    assert page.sections == ["left-out"]
    assert page.text.count("no test images were given") == 5
    page = read(report(plain, images(), images(12, seed=2), path, verbose=0))
    assert {"summary", "mistakes", "duplicates"} <= set(page.sections)
    assert "a plain Keras model does not say" in page.text
    assert "no `DeltaModel`, which has taps" in page.text


def test_a_single_class_in_the_test(model, tmp_path):
    test = images(30, seed=1)
    test = test.subset(np.flatnonzero(test.labels == 1))
    page = read(report(model, test=test, path=tmp_path / "r.html", verbose=0))
    assert "no test images" in page.text and "recall" in page.sections
    unlabelled = kd.data.ImageSet(test.source, None, test.class_names)
    page = read(report(model, test=unlabelled, path=tmp_path / "r.html", verbose=0))
    assert "the test images have no labels" in page.text


def test_models_that_differ(model, tmp_path):
    """Networks of other layers, and a strength that is a schedule."""
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 2)
    small = make_backbone(True, widths=(4, 6))
    other = kd.DeltaModel(kd.attach_head(small, 3), source=small)
    other.set_regularizer(kd.regularizers.L2SP(schedule))
    path = tmp_path / "r.html"
    page = read(report({"a": model, "b": other}, None, images(), path, verbose=0))
    assert "distances" in page.sections and "of the filters moved" not in page.text
    assert "L2SP: alpha = a schedule" in page.text
    large = kd.attach_head(make_backbone(True, size=20), 3)
    with pytest.raises(ValueError, match=r"same size, \(16, 16\).*'b' for \(20, 20\)"):
        report({"a": model, "b": large}, test=images(), path=path, verbose=0)


def test_batches_are_seen_as_in_a_test(model, tmp_path):
    sets, path = images(), tmp_path / "r.html"
    batches = sets.batches(SIDE, 7, training=True)
    found = [
        read(
            report(model, test=test, path=path, class_names=list("xyz"), verbose=0)
        ).text
        for test in (sets, batches, sets.arrays(SIDE))
    ]
    assert found[0] == found[1] == found[2]


def test_classes_are_matched_by_name(model, tmp_path):
    path, names = tmp_path / "r.html", ("x", "y", "z")
    train, test = images(names=names), images(30, seed=1, names=names)
    turned = [2 - label for label in test.labels]
    other = kd.data.ImageSet(test.source, turned, names[::-1])
    few = test.subset(np.flatnonzero(test.labels != 0))
    few = kd.data.ImageSet(few.source, few.labels - 1, names[1:])
    pages = [read(report(model, train, t, path, verbose=0)) for t in (test, other)]
    assert pages[0].text == pages[1].text
    named = read(report(model, None, other, path, class_names=names, verbose=0)).text
    score = re.search(r"[\d.]+ % of 30 test images", pages[0].text)[0]
    assert score in named
    right = model.predict(few.arrays(SIDE)[0], verbose=0).argmax(1) == few.labels + 1
    page = read(report(model, train, few, path, verbose=0)).text
    assert f"{100 * right.mean():.1f} % of {len(few)} test images" in page
    wrong = kd.data.ImageSet(test.source, test.labels, ("x", "y", "w"))
    with pytest.raises(
        ValueError, match=r"`test`. Expected classes of the model, x, y"
    ):
        report(model, train, wrong, path, verbose=0)


def test_grey_images(tmp_path):
    """Patches that excite a channel are of colour images alone."""
    inputs = keras.Input((SIDE, SIDE, 1))
    source = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="conv")(inputs))
    attention = kd.ChannelAttention({"conv": np.array([0.4, 0.3, 0.2, 0.1])})
    regularizer = kd.regularizers.Delta(attention=attention)
    target = kd.attach_head(source, 3, pooling="flatten")
    grey = kd.DeltaModel(target, source, ["conv"], regularizer)
    path = tmp_path / "r.html"
    page = read(report(grey, images(), images(30, seed=1), path, verbose=0))
    assert "of 30 test images" in page.text and "duplicates" in page.sections
    assert "attention" in page.sections


def test_numbers_that_are_none(tmp_path):
    model = make_model()
    head = model.target.get_layer("head")
    head.set_weights([np.full_like(w, np.nan) for w in head.get_weights()])
    page = read(report(model, test=images(), path=tmp_path / "r.html", verbose=0))
    assert "not finite (NaN or infinite) for 40 of 40 test images" in page.text
    assert page.sections[:1] == ["distances"]


def test_refusals_leave_no_file(model, tmp_path):
    path = tmp_path / "r.html"
    with pytest.raises(ValueError, match="the head has 3 classes, 0 to 2"):
        report(model, test=images(8, 4), path=path, verbose=0)
    for names in (["a", "a", "b"], "abc", 3):
        with pytest.raises((TypeError, ValueError), match=r"class_names.*no two alike"):
            report(model, test=images(), path=path, class_names=names, verbose=0)
    with pytest.raises(ValueError, match="labels that tell models apart"):
        report({"": model, model.target.name: model}, test=images(), path=path)
    with pytest.raises(ValueError, match="seed"):
        report(model, test=images(), path=path, seed=-1)
    with pytest.raises(TypeError, match=r"test.*a folder"):
        report(model, test=[1, 2], path=path, verbose=0)
    with pytest.raises(ValueError, match="class_names"):
        report(model, test=images(), path=path, class_names=["a"], verbose=0)
    with pytest.raises(TypeError, match="models"):
        report("model.keras", test=images(), path=path)
    with pytest.raises(ValueError, match="models"):
        report({}, test=images(), path=path)
    with pytest.raises(ValueError, match=r"models.*3 classes"):
        report({"a": model, "b": make_model(4)}, test=images(), path=path)
    with pytest.raises(ValueError, match="folder"):
        report(model, test=images(), path=tmp_path)
    assert not path.exists()


def test_at_most_so_many_images(model, tmp_path):
    path = tmp_path / "r.html"
    page = read(report(model, images(), images(), path, max_images=10, verbose=0))
    assert "of 10 test images" in page.text
    assert "30 more test images were not looked at" in page.text


def test_pictures():
    image = np.zeros((8, 8, 3), "uint8")
    image[:4] = 255
    heat = np.zeros((2, 2))
    heat[0, 0] = 1
    uris = {pictures.photograph(image), pictures.overlay(image, heat)}
    uris |= {pictures.photograph(image / 255), pictures.photograph(image[..., :1])}
    assert len(uris) == 2  # 0..1, 0..255 and grey look alike
    svg = pictures.chart(lambda axis: axis.plot([0, 1], label="<a> $b$"))
    grey = pictures.chart(lambda axis: axis.plot([0, 1], color="0.15"))
    assert "#262626" not in grey and "#8a8f98" in grey  # readable in dark mode
    assert svg.startswith("<svg") and "currentColor" in svg and "<a>" not in svg
    assert svg == pictures.chart(lambda axis: axis.plot([0, 1], label="<a> $b$"))


def test_the_command(model, tmp_path):
    model.save(tmp_path / "one.keras")
    model.save(tmp_path / "other.keras")
    for part, seed in (("train", 0), ("test", 1)):
        x, y = images(12, seed=seed).arrays(SIDE, dtype="uint8")
        for i, image in enumerate(x):
            file = tmp_path / "photos" / part / f"c{y[i]}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    command = [sys.executable, "-m", "keras_delta", "report"]
    arguments = [
        "one.keras",
        "photos",
        "--output",
        "out.html",
        "--compare",
        "other.keras",
    ]
    done = subprocess.run(
        [*command, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "report: out.html"
    assert "Traceback" not in done.stderr
    page = read(tmp_path / "out.html")
    assert "suspects" in page.sections and "of 12 test images" in page.text
    done = subprocess.run(
        [*command, "two.keras", "photos"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("There is no file two.keras.")
