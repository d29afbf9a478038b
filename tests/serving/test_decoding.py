"""TensorFlow's operations must give the pixels that our own reader gives."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import encoded_images as files
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_delta.data.decode import BadImageError, read_image
from keras_delta.serving.decoding import PIXELS, decode

CHILD = Path(__file__).with_name("decoding_child.py")
GOOD, DAMAGED, BOMBS = files.good(), files.damaged(), files.bombs()


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
LYING = {
    (name, flags): data[:20] + bytes([flags]) + data[21:]
    for name, data in files.originals().items()
    if name in ("webp animated", "webp exif", "webp animated opaque")
    for flags in range(0, 64, 2)
}


@pytest.fixture(scope="module")
def decoded():
    return tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)])


@pytest.fixture(scope="module")
def found(decoded):
    """From encoded content to (pixels or the error, seconds).

    All in one go: the seed that each test sets makes TensorFlow optimize the function
    anew, which takes a second.
    """
    results = {}
    decoded(GOOD["png RGB"])  # traced
    for data in {d for table in TABLES for d in table.values()}:
        start = time.monotonic()
        try:
            result = decoded(data)
        except Exception as error:
            result = error
        results[data] = result, time.monotonic() - start
    return results


TABLES = GOOD, DAMAGED, BOMBS, MANY, LYING


def ours(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged EXIF data
        return read_image(data)


@pytest.mark.parametrize("name", GOOD)
def test_the_same_pixels_as_our_reader(found, name):
    result, _ = found[GOOD[name]]
    assert result.dtype == tf.uint8
    np.testing.assert_array_equal(result, ours(GOOD[name]))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_invalid_arguments(found, name):
    with pytest.raises(BadImageError):
        ours(DAMAGED[name])
    result, _ = found[DAMAGED[name]]
    assert isinstance(result, tf.errors.InvalidArgumentError), result


@pytest.mark.parametrize("name", BOMBS)
def test_too_many_pixels_are_refused_before_they_are_decoded(found, name):
    with pytest.raises(BadImageError):
        ours(BOMBS[name])
    result, seconds = found[BOMBS[name]]
    assert isinstance(result, tf.errors.InvalidArgumentError), result
    assert f"More than {PIXELS}" in result.message
    assert seconds < 5  # nine hundred million pixels take longer


@pytest.mark.parametrize("name", MANY)
def test_many_small_parts_take_no_more_than_seconds(found, name):
    result, seconds = found[MANY[name]]
    assert seconds < 10
    if isinstance(result, Exception):
        assert isinstance(result, tf.errors.InvalidArgumentError)


@pytest.mark.parametrize("name, flags", LYING)
def test_webp_whose_flags_lie(found, name, flags):
    # Taken or refused, but never a crash; and as its first frame, if it is taken.
    result, _ = found[LYING[name, flags]]
    if isinstance(result, Exception):
        assert isinstance(result, tf.errors.InvalidArgumentError)
    else:
        assert result.shape[2] == 3


def test_the_limit_is_the_one_of_our_reader():
    assert PIXELS == Image.MAX_IMAGE_PIXELS


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


@pytest.mark.parametrize("adobe", [True, False])
@pytest.mark.parametrize("quality", [50, 100])
def test_cmyk_is_off_by_one_level_at_most(decoded, quality, adobe):
    four = Image.frombytes("CMYK", (37, 23), files.picture("RGBA").tobytes())
    data = files.saved(four, "JPEG", quality=quality)
    if not adobe:
        data = data.replace(b"Adobe", b"adobe")  # Pillow inverts all the same
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


@pytest.mark.parametrize("name", ["webp animated", "gif animated"])
def test_only_the_first_frame_is_looked_at(decoded, name):
    data = files.originals()[name]
    first = ours(data)
    mark = b"ANMF" if "webp" in name else b"\x21\xf9"
    second = data.index(mark, data.index(mark) + 1)
    np.testing.assert_array_equal(decoded(data[: second + 20]), first)
    np.testing.assert_array_equal(decoded(data[:second] + b"\xff" * 99), first)


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
