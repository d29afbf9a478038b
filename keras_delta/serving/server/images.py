"""Encoded images: refused before they are decoded, where they would take too much."""

import io

from PIL import Image

from keras_delta.serving.server.problems import bad

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width (TIFF 6.0, page 36)


def size(contents, limit, where):
    """Height and width of an encoded image, upright, from its header alone.

    Args:
        contents: bytes of a file.
        limit: pixels of all frames together, since animations are decoded as a whole.
        where: how the image is called in messages, e.g. `"Image 0"`.

    Returns:
        (height, width).

    Raises:
        Problem: 400 for what is no image and for too many pixels.
    """
    if not contents:
        raise bad(f"{where} is empty: it has 0 bytes.")
    try:
        with Image.open(io.BytesIO(contents), formats=FORMATS) as image:
            width, height = image.size
            frames = 1
            if image.format == "WEBP":
                frames = getattr(image, "n_frames", 1)
            form = image.format
            # Without looking behind a PNG's pixels, which would decode them.
            known = form != "PNG" or "exif" in image.info
            sideways = known and image.getexif().get(ORIENTATION) in SIDEWAYS
    except Image.DecompressionBombError:
        raise bad(f"{where} has more than {limit:,} pixels.") from None
    # Parsers of headers raise whatever they stumble over; all of it means the same.
    except Exception:
        raise bad(
            f"{where} is not a JPEG, PNG, WebP or GIF image, or its header is damaged."
        ) from None
    if form == "GIF":
        frames, width, height = _gif_frames(contents, width, height, limit)
    if frames * width * height > limit:
        of = f"{frames} frames of " if frames > 1 else ""
        raise bad(
            f"{where} has {of}{width} x {height} pixels, more than the "
            f"{limit:,} that are allowed. Send a smaller image."
        )
    return (width, height) if sideways else (height, width)


def _gif_frames(data, width, height, limit):
    """Number of frames, and the largest width and height, of what there is of a GIF."""
    frames = 0
    try:
        place = 13 + _palette(data[10])
        while data[place] != 0x3B:
            kind = data[place]
            place += 2
            if kind == 0x2C:
                frames += 1
                w, h = (
                    int.from_bytes(data[place + i : place + i + 2], "little")
                    for i in (3, 5)
                )
                width, height = max(width, w), max(height, h)
                if frames * width * height > limit:
                    break
                place += 9 + _palette(data[place + 7])
            while data[place]:
                place += 1 + data[place]
            place += 1
    except IndexError:
        pass  # truncated: the decoder says so
    return max(frames, 1), width, height


def _palette(flags):
    return 3 * 2 ** (flags % 8 + 1) if flags >= 128 else 0
