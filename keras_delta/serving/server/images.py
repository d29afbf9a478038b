"""Encoded images: rejected before decoding if they are too large."""

import io

from PIL import Image

from keras_delta.serving.server.problems import bad

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width (TIFF 6.0, page 36)


def size(contents, limit, where):
    """(height, width) of an encoded image, upright, from only its header.

    Raises Problem 400, whose text starts with `where`, e.g. "Image 0", if it is not an
    image or has more pixels than `limit`.
    """
    if not contents:
        raise bad(f"{where} is empty: it has 0 bytes.")
    try:
        with Image.open(io.BytesIO(contents), formats=FORMATS) as image:
            width, height = image.size
            # Without reading past a PNG's pixels, which would decode them.
            known = image.format != "PNG" or "exif" in image.info
            sideways = known and image.getexif().get(ORIENTATION) in SIDEWAYS
    except Image.DecompressionBombError:
        raise bad(f"{where} has more than {limit:,} pixels.") from None
    # Header parsers raise errors of many kinds; all of them mean the same.
    except Exception:
        raise bad(
            f"{where} is not a JPEG, PNG, WebP or GIF image, or its header is damaged."
        ) from None
    if width * height > limit:
        raise bad(
            f"{where} has {width} x {height} pixels, more than the limit of {limit:,}. "
            "Send a smaller image."
        )
    return (width, height) if sideways else (height, width)
