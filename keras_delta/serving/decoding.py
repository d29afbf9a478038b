"""Encoded images to pixels, by TensorFlow's operations, as `keras_delta.data` does.

`keras_delta.data` reads with Pillow, which a SavedModel cannot hold. These operations
give the same pixels bit for bit, for JPEG, PNG, WebP and GIF: orientation applied,
transparency laid over white, 16-bit grey scaled, the first frame of an animation.
"""

import tensorflow as tf

WHAT = "a JPEG, PNG, WebP or GIF image"
EXIF = b"Exif\x00\x00"
TAG = 0x0112  # orientation (TIFF 6.0, page 36)
LONG = 4  # type of a TIFF value; the usual one is SHORT


def decode(contents):
    """Pixels of one encoded image.

    Args:
        contents: scalar `tf.string`.

    Returns:
        `uint8` tensor of shape (height, width, 3).

    Raises:
        tf.errors.InvalidArgumentError: for other formats and damaged images.
    """
    data = tf.io.decode_raw(contents, tf.uint8)

    def begins(*signature, at=0):
        found = tf.strings.substr(contents, at, len(signature[0]))
        return tf.reduce_any([tf.equal(found, s) for s in signature])

    known = [
        (begins(b"\xff\xd8\xff"), lambda: _jpeg(contents, data)),
        (begins(b"\x89PNG\r\n\x1a\n"), lambda: _png(contents, data)),
        (
            begins(b"RIFF") & begins(b"WEBP", at=8),
            lambda: _webp(contents, data),
        ),
        (begins(b"GIF87a", b"GIF89a"), lambda: _gif(contents, data)),
    ]
    is_known = tf.reduce_any([condition for condition, _ in known])
    with tf.control_dependencies(
        [tf.debugging.Assert(is_known, [f"The content is not {WHAT}."])]
    ):
        image = tf.case(known, default=lambda: tf.zeros([1, 1, 3], tf.uint8))
    return tf.ensure_shape(image, [None, None, 3])


class _Bytes:
    """Numbers out of a file's bytes; beyond the end there is something, no error."""

    def __init__(self, data):
        self._data, self.size = data, tf.size(data)

    def at(self, position, count=1):
        """`count` bytes as an `int32` vector."""
        places = tf.clip_by_value(position + tf.range(count), 0, self.size - 1)
        return tf.cast(tf.gather(self._data, places), tf.int32)

    def number(self, position, count, little):
        """An unsigned number of 2 or 4 bytes; `position` may be a vector."""
        places = tf.expand_dims(position, -1) + tf.range(count)
        places = tf.clip_by_value(places, 0, self.size - 1)
        values = tf.cast(tf.gather(self._data, places), tf.int64)
        powers = 256 ** tf.range(count, dtype=tf.int64)
        powers = tf.where(little, powers, powers[::-1])
        # More than a file has is as good as its end, and fits into 32 bits.
        total = tf.reduce_sum(values * powers, axis=-1)
        return tf.cast(tf.minimum(total, 2**30), tf.int32)

    def equal(self, position, expected):
        """Whether these bytes are there."""
        inside = position + len(expected) <= self.size
        there = self.at(position, len(expected)) == list(expected)
        return inside & tf.reduce_all(there)


def _jpeg(contents, data):
    # Pillow's way of computing the cosine transform; TensorFlow's own default is
    # faster and off by a few levels.
    image = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")
    file = _Bytes(data)

    def within(position, found):
        mark = file.at(position, 2)
        scan = (mark[1] == 0xDA) | (mark[1] == 0xD9)
        return (found < 0) & (position + 4 < file.size) & (mark[0] == 0xFF) & ~scan

    def step(position, found):
        exif = (file.at(position + 1)[0] == 0xE1) & file.equal(position + 4, EXIF)
        length = file.number(position + 2, 2, little=False)
        fill = file.at(position + 1)[0] == 0xFF
        after = position + tf.where(fill, 1, 2 + length)
        return after, tf.where(exif & ~fill, position + 4 + len(EXIF), found)

    return _upright(image, file, _search(within, step, 2))


def _png(contents, data):
    file = _Bytes(data)
    depth, kind = tf.unstack(file.at(24, 2))

    def chunk(name):
        def within(position, found):
            return (found < 0) & (position + 8 < file.size)

        def step(position, found):
            after = position + 12 + file.number(position, 4, little=False)
            return after, tf.where(file.equal(position + 4, name), position + 8, found)

        return _search(within, step, 8)

    image = tf.case(
        [
            # Of other 16-bit images, Pillow takes the upper half, and so does this.
            (
                (depth == 16) & (kind == 0),
                lambda: _grey_16_to_8(tf.io.decode_png(contents, 1, tf.uint16)),
            ),
            (
                (kind >= 4) | (chunk(b"tRNS") >= 0),
                lambda: _over_white(tf.io.decode_png(contents, 4)),
            ),
        ],
        default=lambda: tf.io.decode_png(contents, 3),
    )
    return _upright(image, file, chunk(b"eXIf"))


def _webp(contents, data):
    file = _Bytes(data)
    flags = file.at(20)[0]
    moving = file.equal(12, b"VP8X") & (flags // 2 % 2 == 1)
    # Animations are decoded to four channels, but only if they say so themselves. As
    # many as there are (0) makes TensorFlow 2.21 write where it must not.
    with_alpha = _replaced(contents, 20, _byte(flags + 16 * (1 - flags // 16 % 2)))
    frame = tf.cond(
        moving,
        lambda: tf.io.decode_webp(with_alpha, channels=4)[0],
        lambda: tf.io.decode_webp(contents, channels=0)[0],
    )
    image = tf.cond(
        tf.shape(frame)[-1] == 4, lambda: _over_white(frame), lambda: frame[..., :3]
    )

    def within(position, found):
        return (found < 0) & (position + 8 < file.size)

    def step(position, found):
        exif = file.equal(position, b"EXIF")
        length = file.number(position + 4, 4, little=True)
        return position + 8 + length + length % 2, tf.where(exif, position + 8, found)

    found = _search(within, step, 12)
    prefix = tf.where(file.equal(found, EXIF), len(EXIF), 0)
    return _upright(image, file, tf.where(found < 0, found, found + prefix))


def _search(within, step, start):
    """Where a file's EXIF data begins, or -1."""
    start = tf.constant(start)
    _, found = tf.while_loop(within, step, (start, tf.constant(-1)))
    return found


def _upright(image, file, exif):
    """Turned as the orientation in EXIF data (TIFF 6.0) says."""
    orientation = tf.cond(exif < 0, lambda: 1, lambda: _orientation(file, exif))

    def apply(orientations, change, image):
        return tf.cond(
            tf.reduce_any(orientation == orientations),
            lambda: change(image),
            lambda: image,
        )

    image = apply([5, 6, 7, 8], lambda v: tf.transpose(v, [1, 0, 2]), image)
    image = apply([2, 3, 6, 7], lambda v: v[:, ::-1], image)
    return apply([3, 4, 7, 8], lambda v: v[::-1], image)


def _orientation(file, start):
    little = file.equal(start, b"II\x2a\x00")
    valid = little | file.equal(start, b"MM\x00\x2a")
    first = start + file.number(start + 4, 4, little)
    count = tf.where(valid, file.number(first, 2, little), 0)
    entries = first + 2 + 12 * tf.range(count)
    tags = file.number(entries, 2, little)
    chosen = entries[(tags == TAG) & (entries + 12 <= file.size)][:1]
    is_long = file.number(chosen + 2, 2, little) == LONG
    short, long = (file.number(chosen + 8, n, little) for n in (2, 4))
    return tf.reduce_sum(tf.where(is_long, long, short))  # 0 for none


def _gif(contents, data):
    """The first frame; what is transparent in it becomes white.

    TensorFlow makes it black, so its entry of the palette is changed beforehand.
    """
    file = _Bytes(data)
    flags = file.at(10)[0]
    first = 13 + tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)

    def within(position, control):
        return (position + 2 < file.size) & (file.at(position)[0] == 0x21)

    def step(position, control):
        is_control = file.at(position + 1)[0] == 0xF9
        return _behind_blocks(file, position + 2), tf.where(
            is_control, position + 3, control
        )

    frame, control = tf.while_loop(within, step, (first, tf.constant(-1)))
    transparent = (control >= 0) & (file.at(control)[0] % 2 == 1)

    def whitened():
        local = file.at(frame + 9)[0]
        palette = tf.where(local >= 128, frame + 10, 13)
        colors = 2 ** (tf.where(local >= 128, local, flags) % 8 + 1)
        index = file.at(control + 3)[0]
        entry = palette + 3 * index
        opaque = _replaced(contents, control, _byte(file.at(control)[0] - 1))
        return tf.cond(
            index < colors,
            lambda: _replaced(opaque, entry, tf.constant(b"\xff\xff\xff")),
            lambda: opaque,
        )

    contents = tf.cond(transparent, whitened, lambda: contents)
    return tf.io.decode_gif(contents)[0]


def _behind_blocks(file, position):
    """The position behind the sub-blocks of a GIF that begin here."""
    return (
        1
        + tf.while_loop(
            lambda p: (p < file.size) & (file.at(p)[0] > 0),
            lambda p: (p + 1 + file.at(p)[0],),
            (position,),
        )[0]
    )


def _replaced(contents, position, new):
    behind = position + tf.strings.length(new)
    rest = tf.strings.length(contents) - behind
    return tf.strings.join(
        [
            tf.strings.substr(contents, 0, position),
            new,
            tf.strings.substr(contents, behind, rest),
        ]
    )


def _byte(value):
    return tf.gather(tf.constant([bytes([i]) for i in range(256)]), value)


def _grey_16_to_8(values):
    values = (tf.cast(values, tf.int32) + 128) // 257
    return tf.repeat(tf.cast(values, tf.uint8), 3, axis=-1)


def _over_white(image):
    """Transparent pixels over white, with the rounding of Pillow's alpha_composite."""
    image = tf.cast(image, tf.int32)
    color, alpha = image[..., :3], image[..., 3:]
    value = (color * alpha + 255 * (255 - alpha) + 128) * 128
    value = (value // 256 + value) // 2**15
    return tf.cast(value, tf.uint8)
