"""Every kind of image file must come out as the RGB pixels a viewer shows."""

import io

import numpy as np
import pytest
from PIL import Image

from keras_delta.data.decode import BadImageError, looks_like_image, read_image

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def grey_rgb(grey):
    return np.repeat(grey[..., None], 3, -1)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_colours_come_back_exactly(form):
    result = read_image(encoded(Image.fromarray(COLOURS), form))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, COLOURS)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "JPEG2000"])
def test_lossy_colours_come_back_nearly(form):
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    result = read_image(encoded(flat, form)).astype(int)
    assert np.abs(result - (200, 100, 50)).max() <= 4


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    data = encoded(Image.fromarray(COLOURS[:4]), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(data), np.rot90(COLOURS[:4], -1))


def test_damaged_exif_does_not_lose_the_picture():
    data = encoded(Image.fromarray(COLOURS), "PNG", exif=b"broken")
    np.testing.assert_array_equal(read_image(data), COLOURS)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(form):
    deep = RAMP.astype(np.uint16) * 257 + 100
    result = read_image(encoded(Image.fromarray(deep), form))
    np.testing.assert_array_equal(result, grey_rgb(RAMP))


def test_16_bit_extremes():
    deep = np.array([[0, 65535]], np.uint16)
    result = read_image(encoded(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(result[0, :, 0], [0, 255])


def test_16_bit_grey_follows_its_orientation():
    exif = Image.Exif()
    exif[0x0112] = 3
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    result = read_image(encoded(deep, "PNG", exif=exif))
    np.testing.assert_array_equal(result, grey_rgb(RAMP[::-1, ::-1]))


def test_16_bit_rgb_png():
    # Pillow writes no 16-bit RGB: one filter byte per row, big-endian samples.
    import struct
    import zlib

    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    deep = (COLOURS.astype(">u2") * 257).astype(">u2")
    rows = b"".join(b"\x00" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_image(data), COLOURS)


def test_cmyk_jpeg_is_not_inverted():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    result = read_image(encoded(red, "JPEG")).astype(int)
    assert np.abs(result - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode):
    black = Image.new(mode, (2, 1), 0)
    solid = (0, 0, 0, 255) if mode == "RGBA" else (0, 255)
    black.putpixel((1, 0), solid)
    result = read_image(encoded(black, "PNG"))
    np.testing.assert_array_equal(result[0], [[255] * 3, [0] * 3])


def test_half_transparent_mixes_with_white():
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert abs(int(read_image(encoded(half, "PNG"))[0, 0, 0]) - 127) <= 1


def test_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    result = read_image(encoded(image, "PNG", transparency=0))
    np.testing.assert_array_equal(result[0], [[255, 255, 255], [40, 50, 60]])


def test_palette_grey_and_one_bit():
    palette = Image.fromarray(COLOURS).quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(read_image(encoded(palette, "PNG")), expected)
    grey = Image.fromarray(RAMP)
    np.testing.assert_array_equal(read_image(encoded(grey, "PNG")), grey_rgb(RAMP))
    bits = Image.fromarray(RAMP > 127)
    expected = grey_rgb(np.where(RAMP > 127, 255, 0))
    np.testing.assert_array_equal(read_image(encoded(bits, "PNG")), expected)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 0, 255))]
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **lossless)
    np.testing.assert_array_equal(read_image(data), np.asarray(frames[0]))


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"these are not the pixels you look for", "not an image"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:600], "cannot be decoded"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:600], "cannot be decoded"),
        (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point"),
        (encoded(Image.new("I", (4, 4), 70000), "TIFF"), "32-bit"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "float", "32 bit"],
)
def test_bad_files_give_the_reason(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=reason):
        read_image(str(path))


def test_missing_file(tmp_path):
    with pytest.raises(BadImageError, match="No such file"):
        read_image(str(tmp_path / "gone.jpg"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [3000, 1000], ids=["warning", "error"])
def test_decompression_bomb(monkeypatch, limit):
    data = encoded(Image.new("RGB", (64, 64)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadImageError, match="pixels"):
        read_image(data)


def test_what_counts_as_an_image(tmp_path):
    png = encoded(Image.fromarray(COLOURS), "PNG")
    contents = {
        "right.png": (png, True),
        "no_extension": (png, True),
        "odd.dat": (png, True),
        "text.jpg": (b"text", True),
        "phone.HEIC": (b"anything", True),
        "notes.txt": (b"P5 is how a PGM file starts", False),
        "Thumbs.db": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", False),
        "empty": (b"", False),
    }
    for name, (content, expected) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert looks_like_image(str(tmp_path / name)) is expected, name
    assert not looks_like_image(str(tmp_path))
