"""Decoding to RGB pixels, for every format that Pillow reads."""

import io
import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keras_delta._types import PathLike

# The formats of photographs. They are listed so that a stray file can never
# reach a decoder that runs other programs (EPS) or has no signature (TGA).
FORMATS = (
    *("AVIF", "BMP", "GIF", "JPEG", "JPEG2000"),
    *("MPO", "PNG", "PPM", "TIFF", "WEBP"),
)

# Plug-ins for more formats once they are registered with Pillow, by extension.
PLUGINS = {
    ".heic": ("HEIF", "pillow-heif", "pillow_heif.register_heif_opener()"),
    ".heif": ("HEIF", "pillow-heif", "pillow_heif.register_heif_opener()"),
    ".jxl": ("JPEG XL", "pillow-jxl-plugin", "import pillow_jxl"),
}

# Extensions of images, including those that Pillow cannot read: a folder of
# phone photos in HEIC must be reported, not skipped.
IMAGE_EXTENSIONS = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k"),
    *(".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".jxl", ".mpo", ".png"),
    *(".eps", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga", ".tif"),
    *(".tiff", ".webp", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf"),
    *(".raw", ".rw2"),
)


class BadImageError(ValueError):
    """Raised if a file cannot be turned into pixels; the message is the reason."""


def looks_like_image(path):
    """Whether a file claims to be an image, by its extension or its first bytes."""
    extension = os.path.splitext(path)[1].lower()
    if extension in IMAGE_EXTENSIONS:
        return True
    try:
        with Image.open(path, formats=_formats()):
            return True
    # Header parsers raise errors of many kinds; all of them mean "no".
    except Exception:
        return False


def read_image(source: PathLike | bytes) -> np.ndarray:
    """Decodes one image to 8-bit RGB.

    The format is determined by the content, never the extension. The EXIF orientation
    is applied; only the first frame of an animation is used; 16-bit grey is scaled
    (Pillow's own `convert` would clip it); CMYK is converted to RGB; transparent
    pixels are drawn over white.

    Args:
        source: path of a file, or the encoded `bytes`.

    Returns:
        `uint8` array of shape (height, width, 3).

    Raises:
        BadImageError: if the image is empty, truncated, not an image, too
            large to be decoded safely (`PIL.Image.MAX_IMAGE_PIXELS`) or in a
            mode without a defined range. The message is only the reason,
            without the path.
    """
    try:
        if not isinstance(source, bytes) and os.path.getsize(source) == 0:
            raise BadImageError("the file is empty")
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream, formats=_formats()) as image:
            _check_pixel_count(image)
            return _rgb(image)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(_unknown(source)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"too many pixels ({error})") from None
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
    # for damaged data; each of them means the same here.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise BadImageError(f"cannot be decoded ({reason})") from None


def rgb_array(image):
    """A `uint8` image in memory, (height, width[, 1 or 3]), as three channels."""
    image = np.asarray(image)
    if image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 1):
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=-1)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"Invalid image in argument `images`. Expected `uint8` of shape (height, "
            f"width, 3) or (height, width). Received: {image.dtype} of shape "
            f"{image.shape}. Scale floats to 0..255 and convert them with "
            "`.astype('uint8')`."
        )
    return image


def _formats():
    """The formats of `FORMATS` that this build of Pillow has, and those of plug-ins.

    Plug-ins are registered by the user; Pillow's own formats that are not in
    `FORMATS` are excluded.
    """
    Image.init()
    return [
        name
        for name, (factory, _) in Image.OPEN.items()
        if name in FORMATS or not factory.__module__.startswith("PIL.")
    ]


def _unknown(source):
    """Why the format of a file cannot be read, and what would read it."""
    extension = "" if isinstance(source, bytes) else os.path.splitext(source)[1].lower()
    if extension not in PLUGINS:
        return "not an image in a format that Pillow reads"
    name, package, call = PLUGINS[extension]
    return (
        f"{name} needs a plug-in: `pip install {package}`, then call "
        f"`{call}` before reading"
    )


def _check_pixel_count(image):
    """Raises an error for sizes that Pillow itself only warns about."""
    limit = Image.MAX_IMAGE_PIXELS
    pixels = image.width * image.height
    if limit is not None and pixels > limit:
        raise BadImageError(
            f"{pixels} pixels exceed the limit of {limit} against decompression "
            "bombs; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        )


def _rgb(image):
    image.load()
    image = _upright(image)
    if image.mode.startswith("I"):
        grey = _grey_16_to_8(np.asarray(image))
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode == "F":
        raise BadImageError(
            "floating-point pixels have no defined range; convert to 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _upright(image):
    try:
        return ImageOps.exif_transpose(image)
    # A damaged EXIF block is no reason to lose an image that decodes.
    except Exception:
        return image


def _grey_16_to_8(values):
    """Scales 0..65535 to 0..255; 257 = 65535 / 255."""
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImageError("32-bit pixels have no defined range; convert to 8 bits")
    return ((values + 128) // 257).astype(np.uint8)
