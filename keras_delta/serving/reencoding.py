"""Images of every format that Pillow reads, for models that decode only some."""

import io

from PIL import Image

from keras_delta.data.decode import read_image


def as_png(source):
    """A PNG with the pixels of an image, its first frame.

    Args:
        source: path of a file, or its bytes.

    Returns:
        Bytes.

    Raises:
        BadImageError: for what is no image, see `keras_delta.data.decode.read_image`.
    """
    stream = io.BytesIO()
    Image.fromarray(read_image(source)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
