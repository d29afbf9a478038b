"""TensorFlow's operations must give the pixels that our own reader gives."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import encoded_images as files
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_delta.data.decode import BadImageError, read_image
from keras_delta.serving import decoding
from keras_delta.serving.decoding import decode

CHILD = Path(__file__).with_name("decoding_child.py")
GOOD = files.good()
# One file for each way through the operations.
BRANCHES = (
    *("jpeg 0", "jpeg 2", "jpeg progressive", "jpeg grey", "jpeg fill bytes"),
    *("jpeg large", "jpeg rgb", "jpeg comment", "jpeg two in one", "jpeg profile"),
    *(f"exif {value} big" for value in range(10)),
    *("exif 6 little", "exif second little", "exif late big", "exif behind others"),
    *("exif not one", "exif twice", "exif of bytes big", "exif damaged mark big"),
    *("png L", "png LA", "png RGB", "png RGBA", "png 0 16", "png 2 16", "png 3 8"),
    *("png 0 1", "png 3 4 tRNS", "png 2 8 tRNS", "png exif 6", "png exif prefix"),
    *("webp RGB", "webp RGBA", "webp RGBA lossless", "webp exif 6", "webp one pixel"),
    *("gif", "gif animated", "gif local", "gif hand transparent", "gif blocks"),
    *("gif local transparent", "gif transparent outside", "gif three frames"),
)
MANY = {
    "fill": files.with_segments(GOOD["jpeg 0"], b"\xff" * 300_000),
    "segments": files.with_segments(GOOD["jpeg 0"], *[b"\xff\xe0\x00\x02"] * 80_000),
    "chunks": files.with_chunk(GOOD["png RGB"], b"abCd", b"", times=80_000),
    "riff": files.riff(
        *files.riff_parts(GOOD["webp exif 1"])[:1], *[(b"abcd", b"")] * 80_000
    ),
    "extensions": files.gif(before=b"\x21\xfe" + b"\x01a" * 80_000 + b"\x00"),
    "blocks": files.gif()[:-1] + b"\x01a" * 80_000,
}
# What a WebP says of itself, animations among it, need not be true.
LYING = {
    (name, flags): data[:20] + bytes([flags]) + data[21:]
    for name, data in files.originals().items()
    if name in ("webp animated", "webp exif", "webp animated opaque")
    for flags in range(0, 64, 2)
}


@pytest.fixture(scope="module")
def decoded():
    return tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)])


def ours(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged EXIF data
        return read_image(data)


def outcome(decoded, data):
    """Pixels, or what the error says."""
    try:
        return decoded(data).numpy()
    except tf.errors.InvalidArgumentError as error:
        return error.message


def is_ours(decoded, data):
    result, expected = outcome(decoded, data), ours(data)
    return np.array_equal(result, expected) and result.dtype == np.uint8


@pytest.mark.parametrize("name", BRANCHES)
def test_the_same_pixels_as_our_reader(decoded, name):
    assert is_ours(decoded, GOOD[name])


def test_the_same_pixels_of_all_other_files(decoded):
    others = [name for name in GOOD if name not in BRANCHES]
    assert len(others) > 100
    assert [name for name in others if not is_ours(decoded, GOOD[name])] == []


def test_damaged_files_are_invalid_arguments(decoded):
    taken = []
    for name, data in files.damaged().items():
        with pytest.raises(BadImageError):
            ours(data)
        if not isinstance(outcome(decoded, data), str):
            taken.append(name)
    assert taken == []


def test_what_is_not_decoded_is_refused_with_a_sentence(decoded):
    for name, data in files.refused().items():
        assert ours(data).ndim == 3
        what = "Animated WebP is not" if "webp" in name else "A GIF whose first frame"
        assert what in outcome(decoded, data), name


def test_headers_that_promise_too_many_pixels_are_refused(decoded):
    for name, data in files.bombs().items():
        assert isinstance(outcome(decoded, data), str), name


def test_too_many_pixels_are_refused(monkeypatch):
    assert decoding.PIXELS == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(decoding, "PIXELS", 37 * 23)
    assert decode(GOOD["png RGB"]).shape == (23, 37, 3)
    monkeypatch.setattr(decoding, "PIXELS", 37 * 23 - 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="More than 850 pixels"):
        decode(GOOD["png RGB"])


@pytest.mark.parametrize("table", [MANY, LYING], ids=["many parts", "lying WebP"])
def test_taken_or_refused_but_never_a_crash(decoded, table):
    for name, data in table.items():
        result = outcome(decoded, data)
        assert isinstance(result, str) or result.shape[2] == 3, name


@pytest.mark.parametrize("form", ["BMP", "TIFF", "PPM", "JPEG2000", "ICO"])
def test_other_formats_are_refused_with_a_sentence(decoded, form):
    data = files.saved(files.picture(), form)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a JPEG, PNG, WebP"):
        decoded(data)


def test_content_is_not_repeated_in_the_error(decoded):
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        decoded(b"\xffprivate")
    assert "private" not in raised.value.message


def test_what_turned_upright_means(decoded):
    # By hand, so that reader and serving cannot be wrong together.
    rows = np.arange(6, dtype=np.uint8).reshape(2, 3)
    plain = files.saved(Image.fromarray(rows), "PNG")
    expected = {
        1: [[0, 1, 2], [3, 4, 5]],
        2: [[2, 1, 0], [5, 4, 3]],
        3: [[5, 4, 3], [2, 1, 0]],
        4: [[3, 4, 5], [0, 1, 2]],
        5: [[0, 3], [1, 4], [2, 5]],
        6: [[3, 0], [4, 1], [5, 2]],
        7: [[5, 2], [4, 1], [3, 0]],
        8: [[2, 5], [1, 4], [0, 3]],
    }
    for value, pixels in expected.items():
        data = files.with_chunk(plain, b"eXIf", files.exif(value))
        np.testing.assert_array_equal(decoded(data)[..., 0], pixels, err_msg=str(value))


def test_every_colour_at_every_transparency(decoded):
    color, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256))
    pixels = np.stack([color, color, color, alpha], -1).astype(np.uint8)
    data = files.saved(Image.fromarray(pixels, "RGBA"), "PNG")
    np.testing.assert_array_equal(decoded(data), ours(data))


@pytest.mark.parametrize("quality", [50, 100])
def test_cmyk_is_off_by_one_level_at_most(decoded, quality):
    four = Image.frombytes("CMYK", (37, 23), files.picture("RGBA").tobytes())
    data = files.saved(four, "JPEG", quality=quality)
    below = ours(data).astype(int) - decoded(data).numpy()
    assert below.min() >= 0
    assert below.max() <= 1


@pytest.mark.parametrize("kind, depth", files.COLOUR_KEYS)
def test_a_transparent_colour_is_the_one_that_the_file_names(decoded, kind, depth):
    # Pillow looks for another one here. PNG specification, section 11.3.2.1.
    samples = files.png_samples(kind, depth)
    key = (5 % 2**depth).to_bytes(2, "big") * files.CHANNELS[kind]
    result = decoded(files.png(kind, depth, transparent=key)).numpy()
    scaled = samples // 256 if depth == 16 else samples * 255 // (2**depth - 1)
    transparent = (samples == 5 % 2**depth).all(axis=-1, keepdims=True)
    assert transparent.any()
    np.testing.assert_array_equal(
        result, np.broadcast_to(np.where(transparent, 255, scaled), result.shape)
    )


def test_a_gif_without_palette_is_refused(decoded):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoded(files.gif(palette=False))


@pytest.mark.slow
def test_random_damage_never_kills_the_process():
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, CHILD, "60", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["other"] == []
    assert found["taken"] > 50
    assert found["refused"] > 300
