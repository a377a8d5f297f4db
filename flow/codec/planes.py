"""The pixels of a picture in one piece, and back: as they are, deflated, or as lossless WebP.

Metadata and palette are not among them; the pixels of mode P are numbers of colours.
"""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from flow.codec.options import EFFORT

RAW, DEFLATE, FLOW, WEBP = METHODS = range(4)
CHANNELS = {"1": 1, "L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4}
COLOUR_TYPES = {"1": 0, "L": 0, "LA": 4, "P": 3, "RGB": 2, "RGBA": 6}  # PNG's
DEFLATE_LIMIT = 1032  # bytes that a byte can become: no memory for more than this
SIGNATURE = b"\x89PNG\r\n\x1a\n"
# WebP: what it admits, what begins its bitstream, how many pixels a byte may become, and how many are free.
WEBP_SIDE, WEBP_MARK = 1 << 14, b"\x2f"
WEBP_LIMIT, WEBP_FREE_PIXELS = 1 << 12, 1 << 22
# Its searches: a look, mostly within a third of the best, costs a photograph some percent of its time; the
# next takes four times as long, the best a hundred times.
LOOK, GOOD, BEST = (dict(method=m, quality=q) for m, q in ((1, 0), (4, 50), (6, 100)))
# The best is for where the look comes so near to the smallest, always in pictures of fewer pixels, otherwise
# where so many pixels are as their left neighbours are, in drawings and screenshots, or, at high effort,
# where the next comes nearer still.
NEAR, TINY, FLAT, NEARER = 2, 1 << 10, 0.5, 1.1
# Deflate's levels: a look at a photograph takes some hundredths of a second, the best ten times as long and,
# of 16 bits, seconds. What the look brings below a part in DENSE, as drawings, the best may bring to a third
# of that, all else to three quarters: it is tried where the look is below this many times the smallest.
QUICK, THOROUGH = 1, 9
DENSE, OF_DENSE, OF_OTHERS = 5, 4, 1.4
DEFAULT_EFFORT = EFFORT.default


def pack_planes(picture):
    """The pixels by each method but the flow: method -> bytes. See searched.

    WebP is by a look, and deflate where that does not bring them far down, as of photographs.
    """
    planes = {RAW: picture.tobytes(), DEFLATE: pack_deflate(picture, QUICK), WEBP: pack_webp(picture)}
    planes = {method: plane for method, plane in planes.items() if plane is not None}
    if _is_simple(picture):
        return _deflated(picture, planes)
    if _is_dense(planes) and may_deflate_below(planes, min(map(len, planes.values()))):
        return _deflated(picture, planes)
    return planes


def searched(picture, planes, smallest, effort=DEFAULT_EFFORT):
    """Those planes, deflate's and WebP's searched for where they may beat so many bytes and are worth it."""
    if DEFLATE in planes and not _is_simple(picture) and not _is_dense(planes):
        if may_deflate_below(planes, smallest):
            planes = _deflated(picture, planes)
            smallest = min(smallest, len(planes[DEFLATE]))
    look = planes.get(WEBP)
    if look is None:
        return planes
    tiny, near = picture.width * picture.height < TINY, len(look) < NEAR * smallest
    drawn, forms = tiny or near and _flatness(picture) > FLAT, [look]
    thorough = near and effort > DEFAULT_EFFORT
    if not drawn and (thorough or len(look) <= smallest):
        forms.append(pack_webp(picture, GOOD))
    if drawn or thorough and len(forms[-1] or look) < NEARER * smallest:
        forms.append(pack_webp(picture, BEST))
    return planes | {WEBP: min(filter(None, forms), key=len)}


def smallest_plane(picture, effort=DEFAULT_EFFORT):
    """The smallest of the planes, of equal ones the raw one. Inverse: unmarked_plane."""
    planes = pack_planes(picture)
    return min(searched(picture, planes, min(map(len, planes.values())), effort).values(), key=len)


def may_deflate_below(planes, smallest):
    """Whether the best deflate may beat so many bytes, as far as its look among the planes tells."""
    return len(planes[DEFLATE]) < (OF_DENSE if _is_dense(planes) else OF_OTHERS) * smallest


def _is_dense(planes):
    """Whether deflate makes little of the pixels, as of drawings."""
    return DENSE * len(planes[DEFLATE]) < len(planes[RAW])


def _is_simple(picture):
    """Whether a picture is deflated at its best without a look: where that is quick, or has few rivals."""
    return picture.mode in ("1", "P") or picture.width * picture.height < TINY


def _deflated(picture, planes):
    """The planes, with the best that deflate can."""
    return planes | {DEFLATE: min(pack_deflate(picture), planes[DEFLATE], key=len)}


def _flatness(picture):
    """The share of pixels that are as their left neighbours are."""
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    same = (pixels[:, 1:] == pixels[:, :-1]).all(-1)
    return same.mean() if same.size else 1.0


def raw_length(mode, size):
    """The bytes of a raw plane."""
    width, height = size
    return height * ((width + 7) // 8 if mode == "1" else width * CHANNELS[mode])


def unpack_raw(data, mode, size):
    """The picture whose bytes, picture.tobytes(), these are. Raises ValueError if they are not as many."""
    if len(data) != raw_length(mode, size):
        raise ValueError(f"corrupt file: {len(data)} bytes do not hold {size[0]}x{size[1]} pixels")
    return Image.frombytes(mode, size, data)


def _bits(mode, colours):
    """Bits for each sample: as few as PNG has for a palette."""
    return {"1": 1, "P": next(n for n in (1, 2, 4, 8) if colours <= 1 << n)}.get(mode, 8)


def pack_deflate(picture, level=THOROUGH):
    """The pixels as a zlib stream of filtered rows, as in PNG's IDAT chunks. Inverse: unpack_deflate."""
    png = BytesIO()
    picture.save(png, "PNG", compress_level=level)
    return b"".join(body for name, body in chunks(png.getvalue()) if name == b"IDAT")


def unpack_deflate(data, mode, size, colours=0):
    """The picture of (width, height) whose pixels were packed; colours: those in its palette, of mode P.

    Raises ValueError if there are not exactly so many.
    """
    width, height = size
    bits = _bits(mode, colours)
    length = height * (1 + (width * bits * CHANNELS[mode] + 7) // 8)
    if length > DEFLATE_LIMIT * len(data) or len(inflate(data, length)) != length:
        raise ValueError(f"corrupt file: {len(data)} bytes do not hold {width}x{height} pixels")
    header = struct.pack(">IIBBBBB", width, height, bits, COLOUR_TYPES[mode], 0, 0, 0)
    palette = [(b"PLTE", bytes(3 << bits))] if mode == "P" else []
    png = png_of([(b"IHDR", header), *palette, (b"IDAT", data), (b"IEND", b"")])
    try:
        picture = PngImageFile(BytesIO(png)).copy()
    except (OSError, SyntaxError) as error:
        raise ValueError("corrupt file: its pixels cannot be unpacked") from error
    picture.info = {}
    return picture


def chunks(png):
    """Yield name and body of each chunk of a PNG, as far as they are whole. Inverse: png_of."""
    position = len(SIGNATURE)
    while position + 12 <= len(png):
        size = int.from_bytes(png[position : position + 4], "big")
        yield png[position + 4 : position + 8], png[position + 8 : position + 8 + size]
        position += size + 12


def png_of(chunks):
    """The PNG of these chunks."""
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def inflate(data, limit, dictionary=None):
    """Decompress one whole zlib stream. Raises ValueError if it is damaged or gives more than limit bytes.

    dictionary: what it may refer to, if its header says that it does.
    """
    stream = zlib.decompressobj(zdict=dictionary) if dictionary else zlib.decompressobj()
    try:
        content = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(f"corrupt file: {error}") from None
    if len(content) > limit or not stream.eof or stream.unused_data:
        raise ValueError("corrupt file: a compressed part has another length")
    return content


def pack_webp(picture, search=LOOK):
    """The pixels as the bitstream of a lossless WebP, or None if they are too many. Inverse: unpack_webp.

    Grey, bits and numbers of colours are three equal channels.
    """
    if max(picture.size) >= WEBP_SIDE:
        return None
    if picture.mode == "P":
        picture = Image.frombytes("L", picture.size, picture.tobytes())
    form = "RGBA" if picture.mode in ("LA", "RGBA") else "RGB"
    file, picture = BytesIO(), picture.convert(form)
    picture.info = {}
    picture.save(file, "WEBP", lossless=True, exact=True, **search)
    data = file.getvalue()
    data = data[20 : 20 + int.from_bytes(data[16:20], "little")]
    return data if _webp_plausible(data, picture.size) else None


def unpack_webp(data, mode, size):
    """The picture of (width, height) whose pixels were packed. Raises ValueError for anything else."""
    wrong = f"corrupt file: {len(data)} bytes do not hold {size[0]}x{size[1]} pixels"
    # 14 bits each behind the mark, low ones first
    sides = int.from_bytes(data[1:5], "little")
    stated = (sides & WEBP_SIDE - 1) + 1, (sides >> 14 & WEBP_SIDE - 1) + 1
    if data[:1] != WEBP_MARK or stated != size or not _webp_plausible(data, size):
        raise ValueError(wrong)
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    file = BytesIO(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)
    try:
        pixels = np.asarray(WebPImageFile(file).convert("RGBA"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError("corrupt file: its pixels cannot be unpacked") from error
    bands = {"RGB": slice(0, 3), "RGBA": slice(0, 4), "LA": slice(1, 4, 2)}.get(mode, 1)
    pixels = np.ascontiguousarray(pixels[..., bands])
    if mode == "1":
        pixels = np.packbits(pixels > 127, axis=1)
    return Image.frombytes(mode, size, pixels.tobytes())


def _webp_plausible(data, size):
    """Whether a bitstream may become as many pixels."""
    return size[0] * size[1] <= WEBP_FREE_PIXELS + WEBP_LIMIT * len(data)


def unmarked_plane(data, mode, size):
    """Inverse of smallest_plane: raw by its length, WebP by its mark, otherwise deflated."""
    if len(data) == raw_length(mode, size):
        return unpack_raw(data, mode, size)
    return (unpack_webp if data[:1] == WEBP_MARK else unpack_deflate)(data, mode, size)


def subsample(picture, step):
    """Every step-th pixel of every step-th row, from the first."""
    size = (-(-picture.width // step), -(-picture.height // step))
    start = 0.5 - step / 2  # Pillow looks up the middle of each step
    return picture.transform(size, Image.Transform.AFFINE, (step, 0, start, 0, step, start))
