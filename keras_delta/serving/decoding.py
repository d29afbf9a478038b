"""Decodes images with TensorFlow's operations, as `keras_delta.data` does.

`keras_delta.data` reads with Pillow, which a SavedModel cannot contain. These
operations return the same pixels bit for bit, for JPEG, PNG, WebP and GIF: the EXIF
orientation applied, transparency drawn over white, 16-bit grey scaled, the first frame
of a GIF.

These rare cases differ:

- animated WebP, and GIF whose first frame does not fill its canvas: an error;
- orientation only in XMP data, or in nonstandard EXIF data: ignored;
- JPEG in CMYK: TensorFlow rounds down, so colours are lower by one level at most;
- PNG with one colour declared transparent, in grey of 2 or 4 bits or colours of 16
  bits: here as in the PNG specification, while Pillow compares other numbers;
- GIF without any palette: an error.
"""

import tensorflow as tf

WHAT = "a JPEG, PNG, WebP or GIF image"
PIXELS = 89_478_485  # Pillow's limit against decompression bombs, and so read_image's
PARTS = 10_000  # of a file that are examined; these take about half a second
EXIF = b"Exif\x00\x00"
# In TIFF 6.0, page 36 and page 15: orientation, and integers of 2 bytes.
TAG, SHORT = 0x0112, 3


def decode(contents):
    """Pixels of one encoded image, a `tf.string`, as uint8 (height, width, 3).

    Raises:
        tf.errors.InvalidArgumentError: if the image has another format, is damaged, is
            an animated WebP, or has more than 89 million pixels.
    """
    file = _Bytes(contents)

    def begins(*signatures):
        return tf.reduce_any([file.equal(0, s) for s in signatures])

    known = [
        (begins(b"\xff\xd8\xff"), lambda: _jpeg(file)),
        (begins(b"\x89PNG\r\n\x1a\n"), lambda: _png(file)),
        (begins(b"RIFF") & file.equal(8, b"WEBP"), lambda: _webp(file)),
        (begins(b"GIF87a", b"GIF89a"), lambda: _gif(file)),
    ]
    is_known = tf.reduce_any([condition for condition, _ in known])
    with _required(is_known, f"The content is not {WHAT}."):
        image, exif = tf.case(
            known, default=lambda: (tf.zeros([1, 1, 3], tf.uint8), file.size)
        )
    with _required(tf.size(image) <= 3 * PIXELS, f"More than {PIXELS} pixels."):
        upright = _upright(image, _orientation(file, exif))
    return tf.ensure_shape(upright, [None, None, 3])


class _Bytes:
    """Numbers from a file's bytes; beyond the end, zeros instead of an error."""

    def __init__(self, contents):
        self.contents, self.size = contents, tf.strings.length(contents)
        self._data = tf.io.decode_raw(tf.strings.join([contents, b"\x00"]), tf.uint8)

    def number(self, position, count=1, little=True):
        """An unsigned number of up to 4 bytes; `position` may be a vector."""
        values = tf.cast(self._bytes(tf.expand_dims(position, -1), count), tf.int64)
        powers = 256 ** tf.range(count, dtype=tf.int64)
        powers = tf.where(little, powers, powers[::-1])
        # A position beyond the file is as good as its end, and fits into 32 bits.
        total = tf.reduce_sum(values * powers, axis=-1)
        return tf.cast(tf.minimum(total, 2**30), tf.int32)

    def equal(self, position, expected):
        """Whether the file has these bytes at the position."""
        return tf.reduce_all(self._bytes(position, len(expected)) == list(expected))

    def find(self, start, is_wanted, following):
        """Position of the first wanted part, or the end if there is none.

        The first part starts at `start`, the next ones at `following(position)`.
        """
        (position,) = tf.while_loop(
            lambda p: (p < self.size) & ~is_wanted(p),
            lambda p: (following(p),),
            (tf.constant(start),),
            maximum_iterations=PARTS,
        )
        return tf.where(is_wanted(position), position, self.size)

    def _bytes(self, position, count):
        places = tf.clip_by_value(position + tf.range(count), 0, self.size)
        return tf.gather(self._data, places)


# Each of the following returns the stored image and the position of its EXIF data.


def _jpeg(file):
    # The cosine transform as in Pillow; TensorFlow's default is faster and off by a
    # few levels.
    image = tf.io.decode_jpeg(file.contents, 3, dct_method="INTEGER_ACCURATE")

    def following(position):
        mark = file.number(position + 1)
        behind = position + 2 + file.number(position + 2, 2, little=False)
        last = (file.number(position) != 0xFF) | (mark == 0xDA)  # the pixels begin
        behind = tf.where(mark == 0xFF, position + 1, behind)  # a padding byte
        return tf.where(last, file.size, behind)

    def is_exif(position):
        return file.equal(position, b"\xff\xe1") & file.equal(position + 4, EXIF)

    return image, file.find(2, is_exif, following) + 4


def _png(file):
    def chunk(name):
        def following(position):
            return position + 12 + file.number(position, 4, little=False)

        return file.find(8, lambda p: file.equal(p + 4, name), following)

    is_clear = (file.number(25) >= 4) | (chunk(b"tRNS") < file.size)
    image = tf.case(
        [
            # For other 16-bit images, Pillow takes the upper byte, as TensorFlow does.
            (
                file.equal(24, b"\x10\x00"),
                lambda: _grey_16_to_8(tf.io.decode_png(file.contents, 1, tf.uint16)),
            ),
            (is_clear, lambda: _over_white(tf.io.decode_png(file.contents, 4))),
        ],
        default=lambda: tf.io.decode_png(file.contents, 3),
    )
    return image, chunk(b"eXIf") + 8


def _webp(file):
    # For an animation, TensorFlow 2.21 may write outside its memory.
    is_still = ~file.equal(12, b"VP8X") | (file.number(20) // 2 % 2 == 0)
    with _required(is_still, "Animated WebP is not supported: send a single frame."):
        pixels = tf.io.decode_webp(file.contents, channels=0)[0]
    image = tf.cond(
        tf.shape(pixels)[-1] == 4, lambda: _over_white(pixels), lambda: pixels[..., :3]
    )

    def following(position):
        size = file.number(position + 4, 4)
        return position + 8 + size + size % 2

    return image, file.find(12, lambda p: file.equal(p, b"EXIF"), following) + 8


def _gif(file):
    """The first frame, with transparent pixels in white.

    TensorFlow makes them black, so they get white in the palette and become opaque.
    """
    flags = file.number(10)
    frame, control = _gif_frame(file, 13 + _palette_bytes(flags))
    own = file.number(frame + 9)
    index = file.number(control + 3)
    is_clear = (control > 0) & (file.number(control) % 2 == 1)
    is_clear &= 3 * index < _palette_bytes(tf.where(own >= 128, own, flags))
    palette = tf.where(own >= 128, frame + 10, 13)

    def opaque():
        white = _replaced(file.contents, palette + 3 * index, b"\xff\xff\xff")
        return _replaced(white, control, b"\x00")

    contents = tf.cond(is_clear, opaque, lambda: file.contents)
    canvas, place = (
        file.number(tf.constant(offsets) + start, 2)
        for offsets, start in (([6, 8], 0), ([1, 3, 5, 7], frame))
    )
    fills = tf.reduce_all(place[:2] == 0) & tf.reduce_all(place[2:] >= canvas)
    with _required(fills, "A GIF whose first frame does not fill it is not supported."):
        image = tf.io.decode_image(contents, 3, expand_animations=False)
    return image, file.size


def _gif_frame(file, start):
    """Positions of the first frame and of the flags of its graphic control, or 0."""

    def step(position, control, inside):
        size = file.number(position)
        is_control = ~inside & (file.number(position + 1) == 0xF9)
        return (
            position + tf.where(inside, 1 + size, 2),
            tf.where(is_control, position + 3, control),
            ~inside | (size > 0),
        )

    frame, control, _ = tf.while_loop(
        lambda p, _, inside: (p < file.size) & (inside | (file.number(p) == 0x21)),
        step,
        (start, tf.constant(0), tf.constant(False)),
        maximum_iterations=PARTS,
    )
    return frame, control


def _palette_bytes(flags):
    return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)


def _replaced(contents, position, new):
    behind = position + len(new)
    rest = tf.strings.length(contents) - behind
    return tf.strings.join(
        [
            tf.strings.substr(contents, 0, position),
            new,
            tf.strings.substr(contents, behind, rest),
        ]
    )


def _orientation(file, start):
    """The orientation in the EXIF data from here on (TIFF 6.0), 0 if there is none."""
    start = tf.where(file.equal(start, EXIF), start + len(EXIF), start)
    little = file.equal(start, b"II\x2a\x00")
    is_tiff = little | file.equal(start, b"MM\x00\x2a")
    first = start + file.number(start + 4, 4, little)
    count = tf.where(is_tiff, file.number(first, 2, little), 0)
    entries = first + 2 + 12 * tf.range(count)
    tags, kinds, values = (file.number(entries + i, 2, little) for i in (0, 2, 8))
    of_tag = values[(tags == TAG) & (kinds == SHORT)]
    return tf.concat([of_tag, [0]], axis=0)[0]


def _upright(image, orientation):
    def changed(orientations, change, image):
        is_one = tf.reduce_any(orientation == orientations)
        return tf.cond(is_one, lambda: change(image), lambda: image)

    image = changed([5, 6, 7, 8], lambda v: tf.transpose(v, [1, 0, 2]), image)
    # Not `v[:, ::-1]`, which takes thirty times as long.
    image = changed([2, 3, 6, 7], lambda v: tf.reverse(v, [1]), image)
    return changed([3, 4, 7, 8], lambda v: tf.reverse(v, [0]), image)


def _grey_16_to_8(values):
    values = (tf.cast(values, tf.int32) + 128) // 257
    return tf.repeat(tf.cast(values, tf.uint8), 3, axis=-1)


def _over_white(image):
    """Transparent pixels over white, with the rounding of Pillow's alpha_composite."""
    color, alpha = image[..., :3], image[..., 3:]

    def mixed():
        c, a = tf.cast(color, tf.uint16), tf.cast(alpha, tf.uint16)
        value = c * a + 255 * (255 - a) + 128  # at most 65,153
        # Shifts: dividing takes several times as long.
        value += tf.bitwise.right_shift(value, 8)
        return tf.cast(tf.bitwise.right_shift(value, 8), tf.uint8)

    return tf.cond(tf.reduce_all(alpha == 255), lambda: color, mixed)


def _required(condition, text):
    return tf.control_dependencies([tf.debugging.Assert(condition, [text])])
