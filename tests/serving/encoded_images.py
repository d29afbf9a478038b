"""Image files of every kind that serving takes, and damaged ones, made for the tests.

`good()` and `damaged()` give dicts from a name to the bytes. What Pillow does not
write is put together by hand.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def picture(mode="RGB", size=(37, 23), seed=0):
    """A smooth picture with some noise; odd sides, so that chroma does not fit."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = [
        128 + 100 * np.sin((x * a + y * b) / 9) for a, b in ((1, 2), (3, 1), (2, 3))
    ]
    waves.append(255 * x / width)
    noise = np.random.default_rng(seed).normal(size=(height, width, 4)) * 9
    pixels = (np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)
    channels = {"L": 1, "LA": 2, "RGB": 3}.get(mode, 4)
    if mode == "LA":
        pixels = pixels[..., 2:]
    if mode == "L":
        return Image.fromarray(pixels[..., 0])
    return Image.fromarray(pixels[..., :channels].copy(), mode)


def saved(image, form, **options):
    """The bytes of a file that Pillow writes."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def tiff(entries, order=">", first=8):
    """EXIF data: `entries` are (tag, type, count, four bytes)."""
    mark = b"MM" if order == ">" else b"II"
    data = mark + struct.pack(f"{order}HI", 42, first) + bytes(first - 8)
    data += struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        data += struct.pack(f"{order}HHI", tag, kind, count) + value
    return data + bytes(4)


def orientation(value, order=">", kind="H", count=1):
    """The entry that says how a picture is to be turned."""
    number = {"H": 3, "I": 4, "B": 1}[kind]
    packed = struct.pack(order + kind, value)
    return 0x0112, number, count, packed.ljust(4, b"\x00")


def exif(value, order=">", **options):
    return tiff([orientation(value, order, **options)], order)


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg, *segments):
    """A JPEG with these segments behind its first two bytes."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def app1(data):
    return segment(0xE1, b"Exif\x00\x00" + data)


def chunk(name, body):
    return (
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body))
    )


def chunks(png):
    """(name, body) of a PNG."""
    found, at = [], len(PNG_START)
    while at < len(png):
        size = struct.unpack(">I", png[at : at + 4])[0]
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def joined(parts):
    return PNG_START + b"".join(chunk(*part) for part in parts)


def with_chunk(png, name, body, before=b"IDAT", times=1):
    parts = chunks(png)
    at = [part[0] for part in parts].index(before)
    return joined([*parts[:at], *[(name, body)] * times, *parts[at:]])


COLOUR_KEYS = ((0, 2), (0, 4), (2, 16))
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: first row, first column, and the steps between rows and columns.
PASSES = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)


def png(kind, depth, size=(19, 11), interlaced=False, transparent=None, seed=3):
    """A PNG of random samples, of any colour type and depth."""
    width, height = size
    rng = np.random.default_rng(seed)
    samples = png_samples(kind, depth, size, rng)
    parts = [samples]
    if interlaced:
        parts = [samples[r::dr, c::dc] for r, c, dr, dc in PASSES]
    rows = b"".join(b"\x00" + _packed(row, depth) for part in parts for row in part)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    found = [(b"IHDR", header)]
    if kind == 3:
        found.append((b"PLTE", rng.integers(0, 256, 3 * 2**depth, np.uint8).tobytes()))
    if transparent is not None:
        found.append((b"tRNS", transparent))
    return joined([*found, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def png_samples(kind, depth, size=(19, 11), rng=3):
    """What is in the files of `png`, (height, width, channels)."""
    width, height = size
    shape = height, width, CHANNELS[kind]
    samples = np.random.default_rng(rng).integers(0, 2**depth, shape)
    samples[0, 0] = 5 % 2**depth  # the colour that tRNS may name
    return samples


def _packed(row, depth):
    if depth == 16:
        return row.astype(">u2").tobytes()
    places = np.arange(depth)[::-1]
    return np.packbits((row.ravel()[:, None] >> places) & 1).tobytes()


def riff(*parts):
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\x00" * (len(data) % 2)
        for name, data in parts
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def riff_parts(webp):
    found, at = [], 12
    while at < len(webp):
        size = struct.unpack("<I", webp[at + 4 : at + 8])[0]
        found.append((webp[at : at + 4], webp[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return found


def animation(form, mode="RGB", size=(37, 23), frames=3, **options):
    pictures = [picture(mode, size, seed) for seed in range(frames)]
    return saved(
        pictures[0], form, save_all=True, append_images=pictures[1:], **options
    )


def gif(
    canvas=(12, 9),
    frame=None,
    at=(0, 0),
    transparent=None,
    palette=True,
    local=False,
    background=0,
    before=b"",
    frames=1,
    interlaced=False,
    colours=8,
):
    """A GIF by hand, whose frames are stored without compression."""
    width, height = frame or canvas
    rng = np.random.default_rng(5)
    bits = int(np.log2(colours))
    table = rng.integers(0, 256, 3 * colours, np.uint8).tobytes()
    flags = (0x80 | bits - 1) if palette else 0
    data = b"GIF89a" + struct.pack("<HHBBB", *canvas, flags, background, 0)
    data += table if palette else b""
    data += before
    for _ in range(frames):
        if transparent is not None:
            data += b"\x21\xf9\x04" + struct.pack("<BHBB", 1, 0, transparent, 0)
        flags = (0x80 | bits - 1) if local else 0
        flags |= 0x40 * interlaced
        data += b"," + struct.pack("<HHHHB", *at, width, height, flags)
        data += table[::-1] if local else b""
        data += _uncompressed(rng.integers(0, colours, width * height), bits)
    return data + b";"


def _uncompressed(values, bits):
    """LZW that clears its table before the codes get longer."""
    bits = max(bits, 2)
    clear, end = 2**bits, 2**bits + 1
    codes = []
    for i, value in enumerate(values):
        if i % (2**bits - 2) == 0:
            codes.append(clear)
        codes.append(int(value))
    stream, count, total = bytearray(), 0, 0
    for code in [*codes, end]:
        total |= code << count
        count += bits + 1
        while count >= 8:
            stream.append(total & 255)
            total, count = total >> 8, count - 8
    stream.append(total & 255)
    blocks = [bytes(stream[i : i + 255]) for i in range(0, len(stream), 255)]
    return bytes([bits]) + b"".join(bytes([len(b)]) + b for b in blocks) + b"\x00"


def good():
    """Files that our own reader takes, name -> bytes."""
    return {**_jpegs(), **_exifs(), **_pngs(), **_webps(), **_gifs()}


def _jpegs():
    rgb = picture()
    found = {f"jpeg {n}": saved(rgb, "JPEG", subsampling=n) for n in (0, 1, 2)}
    for quality in (5, 50, 100):
        found[f"jpeg quality {quality}"] = saved(rgb, "JPEG", quality=quality)
    found["jpeg progressive"] = saved(rgb, "JPEG", progressive=True, subsampling=2)
    found["jpeg restart"] = saved(rgb, "JPEG", restart_marker_blocks=1)
    found["jpeg restart rows"] = saved(rgb, "JPEG", restart_marker_rows=1)
    found["jpeg optimized"] = saved(rgb, "JPEG", optimize=True)
    found["jpeg rgb"] = saved(rgb, "JPEG", keep_rgb=True)
    found["jpeg grey"] = saved(picture("L"), "JPEG")
    found["jpeg grey progressive"] = saved(picture("L"), "JPEG", progressive=True)
    found["jpeg one pixel"] = saved(picture(size=(1, 1)), "JPEG")
    found["jpeg large"] = saved(picture(size=(301, 199)), "JPEG", quality=90)
    jpeg = saved(rgb, "JPEG")
    found["jpeg comment"] = with_segments(jpeg, segment(0xFE, b"\xff\xd9 comment"))
    found["jpeg fill bytes"] = with_segments(jpeg, b"\xff" * 9 + app1(exif(6)))
    found["jpeg rubbish behind"] = jpeg + b"rubbish"
    found["jpeg two in one"] = jpeg + saved(picture(seed=1), "JPEG")
    found["jpeg profile"] = saved(rgb, "JPEG", icc_profile=bytes(70_000))
    return found


def _exifs():
    jpeg, found = saved(picture(), "JPEG"), {}
    for order, name in ((">", "big"), ("<", "little")):
        for value in range(10):
            data = app1(exif(value, order))
            found[f"exif {value} {name}"] = with_segments(jpeg, data)
        data = app1(exif(6, order, kind="B"))
        found[f"exif of bytes {name}"] = with_segments(jpeg, data)
        entries = [(0x010F, 2, 4, b"abc\x00"), orientation(6, order)]
        found[f"exif second {name}"] = with_segments(jpeg, app1(tiff(entries, order)))
        data = app1(tiff(entries, order, first=40))
        found[f"exif late {name}"] = with_segments(jpeg, data)
        found |= {
            f"exif damaged {key} {name}": with_segments(jpeg, app1(data))
            for key, data in _damaged_exif(order)
        }
    others = [
        segment(0xE0, b"JFXX\x00"),
        segment(0xED, bytes(300)),
        segment(0xE1, b"a"),
    ]
    found["exif behind others"] = with_segments(jpeg, *others, app1(exif(8)))
    found["exif not one"] = with_segments(
        jpeg, segment(0xE2, b"Exif\x00\x00" + exif(8))
    )
    found["exif twice"] = with_segments(jpeg, app1(exif(6)), app1(exif(3)))
    xmp = b"http://ns.adobe.com/xap/1.0/\x00" + XMP % 6
    found["xmp and exif"] = with_segments(jpeg, segment(0xE1, xmp), app1(exif(3)))
    found["xmp elsewhere"] = with_segments(jpeg, segment(0xE2, xmp))
    return found


def _damaged_exif(order):
    turned = orientation(6, order)
    whole = tiff([turned], order)
    for size in (0, 1, 3, 4, 7, 8, 9, 10, 15, 18):
        yield f"cut at {size}", whole[:size]
    yield "offset 0", tiff([turned], order)[:4] + bytes(4) + whole[8:]
    for offset in (7, 100, 2**16, 2**31 - 1, 2**31, 2**32 - 1):
        number = struct.pack(f"{order}I", offset)
        yield f"offset {offset}", whole[:4] + number + whole[8:]
    for count in (0, 2, 65535):
        number = struct.pack(f"{order}H", count)
        yield f"entries {count}", whole[:8] + number + whole[10:]
    for kind in (0, 2, 5, 7, 99):
        yield f"type {kind}", tiff([(0x0112, kind, 1, turned[3])], order)
    yield "mark", b"XX" + whole[2:]
    yield "number", whole[:2] + bytes(2) + whole[4:]


def _pngs():
    found = {}
    for kind, depths in {
        0: (1, 2, 4, 8, 16),
        2: (8, 16),
        3: (1, 2, 4, 8),
        4: (8, 16),
        6: (8, 16),
    }.items():
        for depth in depths:
            for interlaced in (False, True):
                key = f"png {kind} {depth}{' interlaced' * interlaced}"
                found[key] = png(kind, depth, interlaced=interlaced)
            if kind == 3:
                alphas = bytes([7, 0, 130, 255][: 2**depth])
                found[f"png {kind} {depth} tRNS"] = png(kind, depth, transparent=alphas)
                found[f"png {kind} {depth} tRNS 0"] = png(
                    kind, depth, transparent=b"\0"
                )
            # In others Pillow looks for another colour than the one that is named.
            if kind in (0, 2) and (kind, depth) not in COLOUR_KEYS:
                value = struct.pack(">H", 5 % 2**depth) * CHANNELS[kind]
                found[f"png {kind} {depth} tRNS"] = png(kind, depth, transparent=value)
    for mode in ("L", "LA", "RGB", "RGBA"):
        found[f"png {mode}"] = saved(picture(mode), "PNG")
    plain = saved(picture(), "PNG")
    for value in range(1, 9):
        found[f"png exif {value}"] = with_chunk(plain, b"eXIf", exif(value))
    found["png exif behind"] = with_chunk(plain, b"eXIf", exif(6, "<"), before=b"IEND")
    found["png exif prefix"] = with_chunk(plain, b"eXIf", b"Exif\x00\x00" + exif(6))
    found["png exif damaged"] = with_chunk(plain, b"eXIf", b"broken")
    found["png exif empty"] = with_chunk(plain, b"eXIf", b"")
    found["png exif 16 bit grey"] = with_chunk(png(0, 16), b"eXIf", exif(5))
    found["png exif alpha"] = with_chunk(png(6, 8), b"eXIf", exif(8))
    found["png text"] = with_chunk(plain, b"tEXt", b"key\x00eXIf tRNS")
    found["png gamma"] = with_chunk(plain, b"gAMA", struct.pack(">I", 100_000))
    found["png background"] = with_chunk(png(6, 8), b"bKGD", bytes(6))
    found["png animated"] = animation("PNG")
    found["png many parts"] = joined(_split(chunks(plain)))
    found["png one pixel"] = png(2, 8, size=(1, 1))
    found["png rubbish behind"] = plain + b"rubbish"
    return found


def _split(parts):
    for name, body in parts:
        if name != b"IDAT":
            yield name, body
            continue
        for i in range(0, len(body), 100):
            yield name, body[i : i + 100]


def _webps():
    found = {}
    for mode in ("L", "RGB", "RGBA"):
        image = picture(mode)
        found[f"webp {mode}"] = saved(image, "WEBP")
        found[f"webp {mode} lossless"] = saved(image, "WEBP", lossless=True)
        found[f"webp {mode} exact"] = saved(image, "WEBP", lossless=True, exact=True)
    for quality in (1, 100):
        found[f"webp quality {quality}"] = saved(picture(), "WEBP", quality=quality)
    for value in range(1, 9):
        found[f"webp exif {value}"] = saved(picture(), "WEBP", exif=exif(value))
    found["webp exif little"] = saved(picture(), "WEBP", exif=exif(6, "<"))
    found["webp exif prefix"] = saved(picture(), "WEBP", exif=b"Exif\x00\x00" + exif(6))
    found["webp exif alpha"] = saved(picture("RGBA"), "WEBP", exif=exif(6))
    found["webp exif damaged"] = saved(picture(), "WEBP", exif=b"broken")
    found["webp xmp"] = saved(picture(), "WEBP", xmp=XMP % 1)
    found["webp profile"] = saved(picture(), "WEBP", icc_profile=bytes(77))
    found["webp animated one"] = animation("WEBP", frames=1)
    found["webp large"] = saved(picture(size=(301, 199)), "WEBP")
    found["webp one pixel"] = saved(picture(size=(1, 1)), "WEBP")
    found["webp rubbish behind"] = saved(picture(), "WEBP") + b"rubbish"
    return found


def _gifs():
    comment = b"\x21\xfe\x03abc\x00"
    application = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
    found = {
        "gif": saved(picture(), "GIF"),
        "gif grey": saved(picture("L"), "GIF"),
        "gif transparent": saved(picture("RGBA"), "GIF"),
        "gif animated": animation("GIF"),
        "gif animated transparent": animation("GIF", "RGBA"),
        "gif interlaced": saved(picture(), "GIF", interlace=True),
        "gif hand": gif(),
        "gif hand interlaced": gif(interlaced=True),
        "gif two colours": gif(colours=2),
        "gif many colours": gif(colours=256),
        "gif local": gif(local=True),
        "gif local alone": gif(local=True, palette=False),
        "gif hand transparent": gif(transparent=3),
        "gif transparent background": gif(transparent=0),
        "gif local transparent": gif(local=True, transparent=3),
        "gif transparent outside": gif(transparent=200),
        "gif three frames": gif(frames=3, transparent=1),
        "gif blocks": gif(before=comment + application + comment, transparent=2),
        "gif long block": gif(
            before=b"\x21\xfe" + (b"\xff" + bytes(255)) * 9 + b"\x00"
        ),
        "gif one pixel": gif(canvas=(1, 1)),
        "gif rubbish behind": gif() + b"rubbish",
    }
    found["gif 87"] = found["gif hand"].replace(b"89a", b"87a")
    found["gif grey palette"] = _grey_palette(found["gif hand"])
    return found


def refused():
    """Files that our own reader takes and serving does not, name -> bytes."""
    found = {
        f"webp animated {mode} {lossless}": animation("WEBP", mode, lossless=lossless)
        for mode in ("RGB", "RGBA")
        for lossless in (False, True)
    }
    for name, options in {
        "": {},
        "background": {"background": 4},
        "transparent": {"transparent": 3},
        "local": {"local": True},
    }.items():
        found[f"gif smaller {name}"] = gif(frame=(7, 5), at=(2, 3), **options)
        found[f"gif in the corner {name}"] = gif(frame=(7, 5), **options)
    return found


def _grey_palette(data):
    ramp = bytes(np.repeat(np.arange(8, dtype=np.uint8), 3))
    return data[:13] + ramp + data[13 + 24 :]


def damaged():
    """Files that neither our own reader nor serving takes, name -> bytes."""
    found = {"empty": b"", "text": b"no image", "zeros": bytes(2000)}
    for name, data in originals().items():
        places = [1, 2, 3, 5, 6, 8, 11, 12, 13, 20, 29, len(data) // 3]
        # What is behind the first frame of an animation is not looked at.
        if "animated" not in name:
            places += [len(data) // 2, len(data) * 3 // 4, len(data) - 40]
        for size in places:
            found[f"{name} cut at {size}"] = data[:size]
        found[f"{name} behind text"] = b"GET / HTTP/1.1" + data
    data = originals()["png"]
    found["png checksum"] = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
    found["png no data"] = joined([p for p in chunks(data) if p[0] != b"IDAT"])
    found["webp nothing in it"] = riff()
    found["webp no frame"] = riff(
        *[p for p in riff_parts(originals()["webp animated"]) if p[0] != b"ANMF"]
    )
    found["webp is a wave"] = originals()["webp"].replace(b"WEBP", b"WAVE")
    found["gif no frame"] = gif(frames=0)
    found["gif many extensions"] = gif(before=b"\x21\xfe\x01a\x00" * 100, frames=0)
    return found


def bombs():
    """Headers that promise more pixels than our reader takes, name -> bytes."""
    side, found = 30_000, {}
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    found["png"] = joined(
        [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")]
    )
    jpeg = saved(picture(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    found["jpeg"] = jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]
    data = gif()
    found["gif canvas"] = data[:6] + struct.pack("<HH", side, side) + data[10:]
    at = data.index(b",", 13 + 24) + 5
    found["gif frame"] = data[:at] + struct.pack("<HH", side, side) + data[at + 4 :]
    large = struct.pack("<I", 2**24 - 1)[:3] + struct.pack("<I", 200)[:3]
    data = originals()["webp animated"]
    found["webp canvas"] = data[:24] + large + data[30:]
    data = originals()["webp"]
    found["webp lossy"] = data[:26] + b"\xff\x3f\xff\x3f" + data[30:]
    data = originals()["webp lossless"]
    found["webp lossless"] = data[:21] + b"\xff\xff\xff\x1f" + data[25:]
    return found


def originals():
    """One plain file of each format."""
    return {
        "jpeg": saved(picture(), "JPEG"),
        "jpeg exif": with_segments(saved(picture(), "JPEG"), app1(exif(6))),
        "jpeg progressive": saved(picture(), "JPEG", progressive=True),
        "png": saved(picture(), "PNG"),
        "png palette": png(3, 4, transparent=b"\x00\x80"),
        "png exif": with_chunk(saved(picture(), "PNG"), b"eXIf", exif(6)),
        "webp": saved(picture(), "WEBP"),
        "webp lossless": saved(picture("RGBA"), "WEBP", lossless=True),
        "webp exif": saved(picture("RGBA"), "WEBP", exif=exif(6)),
        "webp animated": animation("WEBP", "RGBA"),
        "webp animated opaque": animation("WEBP", "RGB"),
        "gif": gif(transparent=3),
        "gif animated": animation("GIF", "RGBA"),
    }
