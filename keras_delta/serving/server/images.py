"""Encoded images: refused before they are decoded, where they would take too much."""

import io

from PIL import Image

from keras_delta.serving.server.problems import bad

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width (TIFF 6.0, page 36)


def size(contents, limit, where):
    """(height, width) of an encoded image, upright, from its header alone.

    Problem 400 for what is no image and for more pixels than `limit`, which begins with
    `where`, e.g. "Image 0".
    """
    if not contents:
        raise bad(f"{where} is empty: it has 0 bytes.")
    try:
        with Image.open(io.BytesIO(contents), formats=FORMATS) as image:
            width, height = image.size
            # Without looking behind a PNG's pixels, which would decode them.
            known = image.format != "PNG" or "exif" in image.info
            sideways = known and image.getexif().get(ORIENTATION) in SIDEWAYS
    except Image.DecompressionBombError:
        raise bad(f"{where} has more than {limit:,} pixels.") from None
    # Parsers of headers raise whatever they stumble over; all of it means the same.
    except Exception:
        raise bad(
            f"{where} is not a JPEG, PNG, WebP or GIF image, or its header is damaged."
        ) from None
    if width * height > limit:
        raise bad(
            f"{where} has {width} x {height} pixels, more than the {limit:,} that are "
            "allowed. Send a smaller image."
        )
    return (width, height) if sideways else (height, width)
