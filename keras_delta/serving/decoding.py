"""Encoded images to pixels, by TensorFlow's operations, as `keras_delta.data` does.

`keras_delta.data` reads with Pillow, which a SavedModel cannot hold. These operations
give the same pixels bit for bit, for JPEG, PNG, WebP and GIF: orientation applied,
transparency laid over white, 16-bit grey scaled, the first frame of an animation.

Four rarities are different:

- JPEG in CMYK: TensorFlow rounds down, so colours are lower by one level at most;
- PNG with one colour declared transparent, in grey of 2 or 4 bits or colours of 16
  bits: here as the PNG specification says, where Pillow compares other numbers;
- PNG whose orientation is in compressed or hexadecimal text: it is not turned;
- GIF without any palette: refused.
"""

import tensorflow as tf

WHAT = "a JPEG, PNG, WebP or GIF image"
PIXELS = 89_478_485  # Pillow's limit against decompression bombs, and so read_image's
PARTS = 10_000  # of a file that are looked at; so many take about half a second
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(5)  # a segment; any later one counts
EXIF = b"Exif\x00\x00"
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\x00"
PNG_XMP = b"XML:com.adobe.xmp\x00\x00"  # the last byte: not compressed
XMP_ORIENTATION = r'\C*?tiff:Orientation(?:="|>)([0-9])\C*'
TAG = 0x0112  # orientation (TIFF 6.0, page 36)
# Bytes of a value by its type (TIFF 6.0, page 15; 13 and 16 came later), and which
# of them are integers of 2 and of 4 bytes.
TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8)
SHORTS, LONGS = (3, 8), (4, 9, 13)


def decode(contents):
    """Pixels of one encoded image.

    Args:
        contents: scalar `tf.string`.

    Returns:
        `uint8` tensor of shape (height, width, 3).

    Raises:
        tf.errors.InvalidArgumentError: for other formats, damaged images and those of
            more than 89 million pixels, before they are decoded.
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
    with tf.control_dependencies(
        [tf.debugging.Assert(is_known, [f"The content is not {WHAT}."])]
    ):
        image, exif, xmp = tf.case(
            known, default=lambda: (tf.zeros([1, 1, 3], tf.uint8), "", "")
        )
    return tf.ensure_shape(_upright(image, exif, xmp), [None, None, 3])


class _Bytes:
    """Numbers out of a file's bytes; beyond the end there are zeros, no error."""

    def __init__(self, contents):
        self.contents, self.size = contents, tf.strings.length(contents)
        self._data = tf.io.decode_raw(tf.strings.join([contents, b"\x00"]), tf.uint8)

    def at(self, position, count=1):
        """`count` bytes as an `int32` vector."""
        return tf.cast(self._bytes(position, count), tf.int32)

    def number(self, position, count, little):
        """An unsigned number of up to 4 bytes; `position` may be a vector."""
        values = tf.cast(self._bytes(tf.expand_dims(position, -1), count), tf.int64)
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

    def part(self, start, size):
        """A string of `size` bytes, fewer at the end; none for a negative start."""
        size = tf.where(start < 0, 0, tf.maximum(size, 0))
        start = tf.clip_by_value(start, 0, self.size)
        return tf.strings.substr(self.contents, start, size)

    def _bytes(self, position, count):
        places = tf.clip_by_value(position + tf.range(count), 0, self.size)
        return tf.gather(self._data, places)


def _parts(file, start, kinds, part):
    """The first part of each kind in a file, as strings; empty where there is none.

    Args:
        file: `_Bytes`.
        start: position of the first part.
        kinds: number of kinds.
        part: from a position to (list of booleans: is it of this kind, positions of
            the contents by kind, where the part ends, position of the next one).
    """

    def step(position, starts, ends):
        is_kind, bodies, end, following = part(position)
        new = tf.stack(is_kind) & (starts < 0)
        ends = tf.where(new, end, ends)
        return following, tf.where(new, tf.stack(bodies), starts), ends

    none = tf.fill([kinds], -1)
    _, starts, ends = tf.while_loop(
        lambda position, *_: position + 4 < file.size,
        step,
        (tf.constant(start), none, none),
        maximum_iterations=PARTS,
    )
    pairs = zip(tf.unstack(starts), tf.unstack(ends), strict=True)
    return [file.part(start, end - start) for start, end in pairs]


# Each of the following gives the image as it is stored, its EXIF data and its XMP.


def _jpeg(file):
    height, width, channels = tf.unstack(tf.image.extract_jpeg_shape(file.contents))
    # As Pillow: CMYK is inverted, whether or not the file says who wrote it.
    contents = tf.where(
        channels == 4,
        tf.strings.join([file.part(0, 2), ADOBE, file.part(2, file.size)]),
        file.contents,
    )
    with tf.control_dependencies([_few(height, width)]):
        # Pillow's way of computing the cosine transform; TensorFlow's own default is
        # faster and off by a few levels.
        image = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")

    def segment(position):
        start, mark = tf.unstack(file.at(position, 2))
        fill = mark == 0xFF
        end = position + 2 + file.number(position + 2, 2, little=False)
        last = (start != 0xFF) | (mark == 0xDA) | (mark == 0xD9)
        following = tf.where(last, file.size, tf.where(fill, position + 1, end))
        names, body = (EXIF, JPEG_XMP), position + 4
        is_kind = [(mark == 0xE1) & file.equal(body, name) for name in names]
        return is_kind, [body + len(name) for name in names], end, following

    return image, *_parts(file, 2, 2, segment)


def _png(file):
    depth, kind = tf.unstack(file.at(24, 2))
    width, height = (file.number(p, 4, little=False) for p in (16, 20))
    names = (b"eXIf", b"iTXt" + PNG_XMP, b"tRNS")

    def chunk(position):
        end = position + 8 + file.number(position, 4, little=False)
        last = file.equal(position + 4, b"IEND")
        is_kind = [file.equal(position + 4, name) for name in names]
        bodies = [position + 4 + len(name) for name in names]
        return is_kind, bodies, end, tf.where(last, file.size, end + 4)

    exif, xmp, transparent = _parts(file, 8, len(names), chunk)
    with tf.control_dependencies([_few(height, width)]):
        image = tf.case(
            [
                # Of other 16-bit images, Pillow takes the upper half, as this does.
                (
                    (depth == 16) & (kind == 0),
                    lambda: _grey_16_to_8(
                        tf.io.decode_png(file.contents, 1, tf.uint16)
                    ),
                ),
                (
                    (kind >= 4) | (transparent != b""),
                    lambda: _over_white(tf.io.decode_png(file.contents, 4)),
                ),
            ],
            default=lambda: tf.io.decode_png(file.contents, 3),
        )
    return image, exif, xmp


def _webp(file):
    names = (b"EXIF", b"XMP ", b"ANMF")

    def chunk(position):
        is_kind = [file.equal(position, name) for name in names]
        size = file.number(position + 4, 4, little=True)
        end = position + 8 + size
        return is_kind, [position + 8] * len(names), end, end + size % 2

    exif, xmp, first = _parts(file, 12, len(names), chunk)
    extended = file.equal(12, b"VP8X")
    moving = extended & (file.at(20)[0] // 2 % 2 == 1)
    with tf.control_dependencies([_few(*_webp_size(file, extended))]):
        frame = tf.cond(
            moving,
            lambda: tf.io.decode_webp(_one_frame(file, first), channels=4)[0],
            lambda: tf.io.decode_webp(file.contents, channels=0)[0],
        )
    image = tf.cond(
        tf.shape(frame)[-1] == 4, lambda: _over_white(frame), lambda: frame[..., :3]
    )
    return image, exif, xmp


def _webp_size(file, extended):
    """Height and width as the header of each of the three forms of WebP has them."""

    def numbers(width, height, count):
        return [file.number(at, count, little=True) for at in (height, width)]

    height, width = numbers(21, 22, 3)
    lossless = height // 64 % 2**14 + 1, width % 2**14 + 1
    lossy = [n % 2**14 for n in numbers(26, 28, 2)]
    canvas = [n + 1 for n in numbers(24, 27, 3)]
    is_lossless = file.equal(12, b"VP8L")
    return [
        tf.where(extended, c, tf.where(is_lossless, a, b))
        for a, b, c in zip(lossless, lossy, canvas, strict=True)
    ]


def _one_frame(file, frame):
    """An animation of the first frame alone.

    The others would all be decoded. It says that it is transparent, so that
    TensorFlow makes four channels: as many as there are (0) makes TensorFlow 2.21
    write where it must not.
    """

    def chunk(name, body):
        size = tf.strings.length(body)
        padding = tf.where(size % 2 == 1, b"\x00", b"")
        return tf.strings.join([name, _little(size), body, padding])

    chunks = [
        chunk(b"VP8X", tf.strings.join([b"\x12\x00\x00\x00", file.part(24, 6)])),
        chunk(b"ANIM", b"\x00" * 6),
        chunk(b"ANMF", frame),
    ]
    return chunk(b"RIFF", tf.strings.join([b"WEBP", *chunks]))


def _gif(file):
    """The first frame on its canvas; what is transparent in it becomes white.

    The file is written anew for that. TensorFlow makes black of what is transparent,
    so that becomes white in the palette, and opaque; it decodes all frames, so the
    others go; and it has no canvas, so the frame goes to the corner.
    """
    flags = file.at(10)[0]
    frame, control = _gif_frame(file, 13 + _palette_bytes(flags))
    places = frame + tf.constant([1, 3, 5, 7])
    left, top, width, height = tf.unstack(file.number(places, 2, little=True))
    own = file.at(frame + 9)[0]
    palette = tf.where(own >= 128, frame + 10, 13)
    end = _behind_blocks(file, frame + 11 + _palette_bytes(own))
    transparent = (control >= 0) & (file.at(control)[0] % 2 == 1)
    index = file.at(control + 3)[0]

    def opaque(contents):
        contents = _replaced(contents, control, _byte(file.at(control)[0] - 1))
        return tf.cond(
            3 * index < _palette_bytes(tf.where(own >= 128, own, flags)),
            lambda: _replaced(contents, palette + 3 * index, b"\xff\xff\xff"),
            lambda: contents,
        )

    contents = tf.strings.join([file.part(0, end), b";"])
    contents = _replaced(contents, frame + 1, b"\x00" * 4)
    contents = tf.cond(transparent, lambda: opaque(contents), lambda: contents)
    # As Pillow: a canvas that is too small grows, and what the frame leaves of it has
    # the first colour of the palette.
    full_width, full_height = tf.unstack(
        file.number(tf.constant([6, 8]), 2, little=True)
    )
    below = tf.maximum(full_height - height - top, 0)
    right = tf.maximum(full_width - width - left, 0)
    with tf.control_dependencies([_few(top + height + below, left + width + right)]):
        image = tf.io.decode_gif(contents)[0]
    first = tf.cast(file.at(palette, 3), tf.uint8)
    outside = tf.where(transparent, tf.constant(255, tf.uint8), first)
    padding = [[top, below], [left, right], [0, 0]]
    image = tf.pad(image - outside, padding) + outside  # modulo 256
    return image, "", ""


def _gif_frame(file, start):
    """Positions of the first frame and of the last graphic control before it, or -1."""

    def step(position, control, inside):
        size, label = tf.unstack(file.at(position, 2))
        is_control = ~inside & (label == 0xF9)
        position, behind = position + 2, position + 1 + size
        return (
            tf.where(inside, behind, position),
            tf.where(is_control, position + 1, control),
            ~inside | (size > 0),
        )

    frame, control, _ = tf.while_loop(
        lambda p, _, inside: (p < file.size) & (inside | (file.at(p)[0] == 0x21)),
        step,
        (start, tf.constant(-1), tf.constant(False)),
        maximum_iterations=PARTS,
    )
    return frame, control


def _palette_bytes(flags):
    return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)


def _behind_blocks(file, position):
    """The position behind the sub-blocks of a GIF that begin here."""
    # Nearly all of them are full; these go at once.
    full = file.number(tf.range(position, file.size, 256), 1, little=True) == 255
    position += 256 * tf.reduce_sum(tf.math.cumprod(tf.cast(full, tf.int32)))
    (position,) = tf.while_loop(
        lambda p: (p < file.size) & (file.at(p)[0] > 0),
        lambda p: (p + 1 + file.at(p)[0],),
        (position,),
        maximum_iterations=PARTS,
    )
    return position + 1


def _few(height, width):
    """Refuses more pixels than our own reader takes."""
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    return tf.debugging.Assert(pixels <= PIXELS, [f"More than {PIXELS} pixels."])


def _upright(image, exif, xmp):
    """Turned as the orientation in EXIF data (TIFF 6.0), else in XMP, says."""
    orientation = _exif_orientation(exif)
    orientation = tf.where(orientation < 0, _xmp_orientation(xmp), orientation)

    def apply(orientations, change, image):
        return tf.cond(
            tf.reduce_any(orientation == orientations),
            lambda: change(image),
            lambda: image,
        )

    image = apply([5, 6, 7, 8], lambda v: tf.transpose(v, [1, 0, 2]), image)
    # Not `v[:, ::-1]`, which takes thirty times as long.
    image = apply([2, 3, 6, 7], lambda v: tf.reverse(v, [1]), image)
    return apply([3, 4, 7, 8], lambda v: tf.reverse(v, [0]), image)


def _exif_orientation(contents):
    """The number that EXIF data says, -1 where it says none."""
    start = tf.where(tf.strings.substr(contents, 0, len(EXIF)) == EXIF, len(EXIF), 0)
    file = _Bytes(tf.strings.substr(contents, start, tf.strings.length(contents)))
    little = file.equal(0, b"II\x2a\x00")
    valid = little | file.equal(0, b"MM\x00\x2a")
    first = file.number(4, 4, little)
    count = tf.where(valid, file.number(first, 2, little), 0)
    entries = first + 2 + 12 * tf.range(count)
    tag, kind = (file.number(entries + at, 2, little) for at in (0, 2))
    counted, offset = (file.number(entries + at, 4, little) for at in (4, 8))
    known = tf.minimum(kind, len(TYPE_BYTES) - 1)
    unit = tf.where(kind == known, tf.gather(TYPE_BYTES, known), 0)
    size = tf.cast(counted, tf.int64) * tf.cast(unit, tf.int64)
    length = tf.cast(file.size, tf.int64)
    passed = (size == 0) | (size > length)
    # As Pillow: values outside of the data end the reading.
    outside = (size > 4) & ~passed & (tf.cast(offset, tf.int64) + size > length)
    outside |= entries + 12 > file.size
    lost = tf.math.cumsum(tf.cast(outside, tf.int32)) > 0
    where = tf.where(size > 4, offset, entries + 8)
    short, long = (file.number(where, n, little) for n in (2, 4))
    is_short, is_long = (
        tf.reduce_any(kind[:, tf.newaxis] == kinds, axis=1) for kinds in (SHORTS, LONGS)
    )
    value = tf.where(is_short, short, tf.where(is_long, long, 0))
    found = value[(tag == TAG) & ~passed & ~lost]
    return tf.concat([found, [-1]], axis=0)[0]


def _xmp_orientation(contents):
    """The number that XMP data says, 0 where it says none."""
    return tf.cond(
        tf.strings.regex_full_match(contents, XMP_ORIENTATION),
        lambda: tf.strings.to_number(
            tf.strings.regex_replace(contents, XMP_ORIENTATION, r"\1"), tf.int32
        ),
        lambda: 0,
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


def _little(value):
    """An `int32` as four bytes, the lowest first."""
    return tf.strings.reduce_join(_byte(value // 256 ** tf.range(4) % 256))


def _byte(value):
    return tf.gather(tf.constant([bytes([i]) for i in range(256)]), value)


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
