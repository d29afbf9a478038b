"""Re-encodes images of any format that Pillow reads, for models that decode few."""

import io

from PIL import Image

from keras_delta.data.decode import read_image


def as_png(source):
    """The bytes of a PNG of an image file, from its path or bytes, or BadImageError."""
    stream = io.BytesIO()
    Image.fromarray(read_image(source)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
