"""Images of every format that Pillow reads, for models that decode only some."""

import io

from PIL import Image

from keras_delta.data.decode import read_image


def as_png(source):
    """The bytes of a PNG of an image file, of its path or bytes, or BadImageError."""
    stream = io.BytesIO()
    Image.fromarray(read_image(source)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
