"""The page for photos: in a real browser, and what can be said without one.

Without Chromium or Chrome, the tests of `TestInABrowser` are left out and say so;
`KERAS_DELTA_BROWSER` names one elsewhere, and it is an error where there is none.
"""

import base64
import html.parser
import re

import numpy as np
import pytest
from browser import NAMES, VARIABLE, Browser, find
from served import Server, encoded, export_red_or_blue

from keras_delta.serving.server.page import rendered

RED, BLUE, GREY = [220, 20, 20], [20, 20, 220], [90, 90, 90]
COLUMN = """
(() => {
  const c = document.getElementById('map'), n = c.width;
  const data = c.getContext('2d').getImageData(0, 0, n, n).data;
  let best = -1, x = 0, y = 0;
  const add = (i, j) => {
    const a = data[4 * (j * n + i) + 1];  // its green rises with the map
    if (a > best) [best, x, y] = [a, i, j];
  };
  for (let j = 0; j < n; j++) for (let i = 0; i < n; i++) add(i, j);
  const map = c.getBoundingClientRect();
  const photo = document.getElementById('photo').getBoundingClientRect();
  return [
    (map.left + (x + .5) / n * map.width - photo.left) / photo.width,
    (map.top + (y + .5) / n * map.height - photo.top) / photo.height,
    best,
  ];
})()
"""


def spot(color, row, column, height=96, width=64):
    """A grey photo with a spot of a color, 16 x 16, in the middle of which it is."""
    pixels = np.full((height, width, 3), GREY, np.uint8)
    pixels[row - 8 : row + 8, column - 8 : column + 8] = color
    return pixels


# Without a browser.


class _Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_fetches_nothing_and_names_its_controls():
    text, headers = rendered('a <b> & "c"')
    reader = _Reader()
    reader.feed(text)
    assert ("meta", {"name": "model", "content": 'a <b> & "c"'}) in reader.tags
    assert "<b>" not in text
    for tag, about in reader.tags:
        assert tag not in ("iframe", "object", "embed", "form")
        assert "src" not in about and not any(k.startswith("on") for k in about)
        assert about.get("href", "data:,") == "data:,"
    assert not re.search(r"https?://|@import|url\(|eval\(|innerHTML", text)
    roles = {about.get("role") for _, about in reader.tags}
    assert {"alert", "status"} <= roles
    assert ("html", {"lang": "en"}) in reader.tags
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert len(text.encode()) < 30_000


def test_a_wrong_browser_is_an_error(monkeypatch):
    monkeypatch.setenv(VARIABLE, "no-such-browser")
    with pytest.raises(FileNotFoundError, match="BROWSER='no-such-browser' is no"):
        find()


# In a browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find()
    if program is None:
        pytest.skip(
            f"needs a browser: install one of {', '.join(NAMES)} or set {VARIABLE}"
        )
    found = Browser(program, tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "red or blue"
    export_red_or_blue(folder)
    found = Server(folder, "--max-pixels", "100000")
    yield found
    found.kill()


@pytest.fixture
def page(browser, server):
    browser.open(f"{server.url}/")
    yield browser
    assert browser.errors() == []


@pytest.fixture
def shown(page, tmp_path):
    """Choose a photo and wait for its answer and its map."""

    def choose(contents, name="photo.jpg"):
        path = tmp_path / name
        path.write_bytes(contents)
        page.choose("#file", path)
        page.wait("document.querySelectorAll('#labels button').length === 2")
        page.wait("document.getElementById('map').dataset.classId !== undefined")
        page.wait("document.getElementById('photo').complete")

    return choose


def texts(page, selector):
    return page.run(
        f"[...document.querySelectorAll('{selector}')].map(e => e.textContent)"
    )


@pytest.mark.slow
class TestInABrowser:
    def test_a_photo_that_is_chosen(self, page, shown):
        shown(encoded(spot(RED, 20, 16), quality=95))
        assert texts(page, "h1") == ["red or blue"]
        assert texts(page, "#labels .label") == ["red", "blue"]
        scores = [float(t.removesuffix(" %")) for t in texts(page, "#labels .score")]
        assert scores[0] > 50 and sum(scores) == pytest.approx(100, abs=0.11)
        widths = page.run(
            "[...document.querySelectorAll('.bar')].map(e => "
            "e.offsetWidth / e.parentNode.offsetWidth)"
        )
        assert widths == pytest.approx([s / 100 for s in scores], abs=0.02)
        assert page.run("document.getElementById('photo').naturalWidth") == 64
        assert page.run("document.getElementById('photo').alt") == (
            "Your photo, photo.jpg"
        )
        x, y, green = page.run(COLUMN)
        assert (x, y) == pytest.approx((16 / 64, 20 / 96), abs=0.09)
        assert green > 200  # of 231

    def test_the_map_of_the_class_that_is_clicked(self, page, shown):
        pixels = spot(RED, 20, 16)
        pixels[70:86, 40:56] = BLUE
        shown(encoded(pixels, quality=95))
        places = {"blue": (48 / 64, 78 / 96), "red": (16 / 64, 20 / 96)}
        for label, wanted in places.items():
            number = ["red", "blue"].index(label)
            page.run(
                "[...document.querySelectorAll('#labels button')]"
                f".find(b => b.innerText.startsWith('{label}')).click()"
            )
            page.wait(f"document.getElementById('map').dataset.classId === '{number}'")
            assert page.run(COLUMN)[:2] == pytest.approx(wanted, abs=0.09)
            pressed = texts(page, "#labels button[aria-pressed=true] .label")
            assert pressed == [label]
            assert label in texts(page, "#where")[0]
        page.run("document.getElementById('show').click()")
        assert page.run("document.getElementById('map').hidden")
        page.run("document.getElementById('show').click()")
        assert not page.run("document.getElementById('map').hidden")

    def test_a_photo_taken_sideways(self, page, shown):
        # Orientation 6: the camera's top is the photo's right.
        upright = spot(RED, 20, 16)
        exif = bytes.fromhex("4578696600004d4d002a000000080001011200030000000100060000")
        shown(encoded(np.rot90(upright), quality=95, exif=exif + bytes(4)))
        assert page.run("document.getElementById('photo').naturalHeight") == 96
        assert page.run(COLUMN)[:2] == pytest.approx((16 / 64, 20 / 96), abs=0.09)

    @pytest.mark.parametrize("way", ["drop", "paste"])
    def test_a_photo_that_is_dropped_or_pasted(self, page, way):
        text = base64.b64encode(encoded(spot(BLUE, 20, 16))).decode()
        kind, field = {
            "drop": ("DragEvent", "dataTransfer"),
            "paste": ("ClipboardEvent", "clipboardData"),
        }[way]
        page.run(
            f"(() => {{ const bytes = Uint8Array.from(atob('{text}'), c => "
            "c.charCodeAt(0)); const data = new DataTransfer(); "
            "data.items.add(new File([bytes], 'x.jpg', {type: 'image/jpeg'})); "
            f"document.body.dispatchEvent(new {kind}('{way}', {{{field}: data, "
            "bubbles: true, cancelable: true})); })()"
        )
        page.wait("document.querySelectorAll('#labels button').length === 2")
        assert texts(page, "#labels .label") == ["blue", "red"]

    def test_errors_are_sentences_and_the_next_photo_works(self, page, shown, tmp_path):
        large = encoded(np.zeros((400, 400, 3), np.uint8))
        for contents, text in (
            (b"hello", "The file is not a JPEG, PNG, WebP or GIF image, or its header"),
            (b"", "The file is empty"),
            (encoded(spot(RED, 20, 16))[:-100], "The file is damaged or truncated"),
            (large, "400 x 400 pixels, more than the limit of 100,000"),
        ):
            path = tmp_path / "wrong.jpg"
            path.write_bytes(contents)
            page.choose("#file", path)
            page.wait(
                f"document.getElementById('alert').textContent.includes('{text}')"
            )
            assert page.run("document.getElementById('answer').hidden")
        shown(encoded(spot(RED, 20, 16)))
        assert texts(page, "#alert") == [""]
        assert texts(page, "#labels .label") == ["red", "blue"]

    def test_a_server_that_is_gone(self, page, shown):
        page.run("window.fetch = () => Promise.reject(new TypeError('no'))")
        page.run(
            "document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: "
            "(() => { const d = new DataTransfer(); d.items.add(new File(['x'], 'x')); "
            "return d; })(), bubbles: true}))"
        )
        page.wait("document.getElementById('alert').textContent.includes('reached')")

    def test_by_keyboard(self, page, shown):
        def focused():
            return page.run(
                "document.activeElement.id || document.activeElement.innerText"
            )

        page.press("Tab")
        assert focused() == "file"
        shown(encoded(spot(RED, 20, 16)))
        seen = []
        for _ in range(3):
            page.press("Tab")
            seen.append(focused().split("\n")[0])
        assert seen == ["show", "red", "blue"]
        page.press("Enter", text="\r")
        page.wait("document.getElementById('map').dataset.classId === '1'")
        ring = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.run(ring) == "solid"

    def test_by_screen_reader(self, page, shown):
        shown(encoded(spot(RED, 20, 16)))
        nodes = [
            (n["role"]["value"], n["name"]["value"])
            for n in page.call("Accessibility.getFullAXTree")["nodes"]
            if not n["ignored"] and "name" in n
        ]
        assert ("heading", "red or blue") in nodes
        assert ("image", "Your photo, photo.jpg") in nodes
        assert ("checkbox", "Show where the model sees “red”") in nodes
        assert any(r == "button" and n.startswith("red ") for r, n in nodes)
        assert {"alert", "status"} <= {role for role, _ in nodes}
        assert texts(page, "#status")[0].startswith("Likeliest: red, ")

    @pytest.mark.parametrize("width, height", [(390, 844), (1280, 800), (320, 568)])
    @pytest.mark.parametrize("dark", [False, True])
    def test_at_sizes_in_both_schemes(self, page, server, shown, width, height, dark):
        page.open(f"{server.url}/", width, height, dark)
        shown(encoded(spot(RED, 100, 50, height=200, width=400)))
        assert page.run("document.documentElement.scrollWidth") <= width
        for text, ground in (("body", "body"), (".note", ".card"), (".score", ".card")):
            assert contrast(page, text, ground) >= 4.5


def contrast(page, text, ground):
    """Ratio of luminances (WCAG 2.1, success criterion 1.4.3)."""

    def luminance(selector, field):
        value = page.run(
            f"getComputedStyle(document.querySelector('{selector}')).{field}"
        )
        rgb = np.array(list(map(float, re.findall(r"[\d.]+", value)[:3]))) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    a, b = luminance(text, "color"), luminance(ground, "backgroundColor")
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_in_a_browser(browser, tmp_path, task):
    """Red has the higher score but is not on; numbers are no shares."""
    thresholds = [0.99, 0.4] if task == "multilabel" else None
    export_red_or_blue(tmp_path / "m", task=task, thresholds=thresholds)
    photo = tmp_path / "photo.png"
    photo.write_bytes(encoded(spot(RED, 20, 16), "PNG"))
    server = Server(tmp_path / "m")
    try:
        browser.open(f"{server.url}/")
        browser.choose("#file", photo)
        browser.wait("document.getElementById('map').dataset.classId !== undefined")
        names = texts(browser, "#labels .label")
        said = texts(browser, "#labels .score")
        if task == "multilabel":
            assert names == ["blue", "red"] and said[0] == "50.0 %, on"
            share, is_on = said[1].split(" %, ")
            assert float(share) > 50 and is_on == "off"
        else:
            assert texts(browser, "#heading") == ["Predicted numbers"]
            assert names == ["red", "blue"]
            assert float(said[0]) > 0.1 and abs(float(said[1])) < 1e-6
            assert browser.run("document.querySelector('.track').hidden")
            assert texts(browser, "#note")[0].startswith("Click a number")
        assert browser.errors() == []
    finally:
        server.kill()
