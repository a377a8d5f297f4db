"""Pictures of 16 bits a sample, which Pillow has in grey only: as arrays, bytes, PNG, PNM and TIFF files.

Samples are numbered by the values that occur, where these are few: those of fewer bits have gaps, wherever
their bits are. The high bytes of the numbers are then a picture of 8 bits, and what is below them is another.
"""

import math
import re
import struct
import sys
import zlib
from functools import cached_property
from io import BytesIO

import numba
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PLANAR_CONFIGURATION

from flow.codec.planes import (
    CHANNELS,
    COLOUR_TYPES,
    DEFLATE,
    DEFLATE_LIMIT,
    RAW,
    SIGNATURE,
    THOROUGH,
    chunks,
    inflate,
    png_of,
)
from utils.data.images import MAX_PIXELS

MODES = {CHANNELS[mode]: mode for mode in ("L", "LA", "RGB", "RGBA")}
# Adam7: first column and row of each pass, and the steps of both.
PASSES = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
# The head of a PGM or PPM of all 16 bits: between its words is space, or a comment to the end of a line.
PNM = re.compile(rb"P([56])%b(\d+)%b(\d+)%b65535\s" % ((rb"(?:\s|#[^\r\n]*[\r\n])+",) * 3))

# Raw modes by which Pillow keeps the high byte of each sample of a TIFF in colour, 16 bits each; the opposite
# order of bytes gives the low one.
HIGH = re.compile("(RGBA?);16([LBN])")
LOW = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


class Deep:
    """A picture of 16 bits a sample; np.asarray gives its pixels, uint16 (H, W) or (H, W, 2 .. 4).

    mode, size, width, height, info and getbands are as those of an Image of Pillow's, `mode` of 8 bits.
    """

    def __init__(self, array, info=None):
        array = np.asarray(array, np.uint16)
        self.array = array[..., 0] if array.shape[2:] == (1,) else array
        self.info = dict(info or {})
        self.mode = MODES[(*array.shape, 1)[2]]
        self.height, self.width = array.shape[:2]
        self.size = self.width, self.height

    def __array__(self, dtype=None, copy=None):
        return self.array.astype(dtype or np.uint16)

    def getbands(self):
        """The names of its channels."""
        return tuple(self.mode)

    def high(self):
        """The picture of the high bytes of its samples."""
        return _of_bytes(self, self.array >> 8)

    def image(self):
        """Pillow's, of mode I;16, where it has one: in grey."""
        if self.mode != "L":
            return self
        image = Image.fromarray(self.array)
        image.info = self.info
        return image

    def with_alpha(self):
        """The same of mode RGBA; its transparent colour, if it has one, is where alpha is 0."""
        pixels = self.array.reshape(self.height, self.width, -1)
        colours = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., [0, 0, 0]]
        if self.mode in ("LA", "RGBA"):
            alpha = pixels[..., -1]
        else:
            alpha = np.where((pixels == self.info.get("transparency")).all(2), 0, 65535)
        return Deep(np.dstack([colours, alpha]), self.info)

    def planes(self, level=THOROUGH):
        """The pixels in one piece: raw, high bytes first, and deflated as in a PNG. Inverse: unpack_plane."""
        return {RAW: self._rows.tobytes(), DEFLATE: zlib.compress(self._lines, level)}

    @cached_property
    def _rows(self):
        return self.array.astype(">u2").reshape(self.height, -1).view(np.uint8)

    @cached_property
    def _lines(self):
        return filtered(self._rows, 2 * CHANNELS[self.mode])


def _of_bytes(picture, array):
    return Image.frombytes(picture.mode, picture.size, array.astype(np.uint8).tobytes())


def parted(picture):
    """A Deep -> a picture of 8 bits, another of what is below, and the values as bytes. Inverse: joined.

    The values that occur are set bits, the first in the highest of its byte, deflated; empty: all of 16 bits.
    """
    found = np.bincount(picture.array.ravel(), minlength=1 << 16) > 0
    bits, values = _bits(found.sum()), zlib.compress(np.packbits(found), 9)
    if 16 * len(values) < (16 - bits) * picture.array.size:
        numbers = (np.cumsum(found) - 1)[picture.array]
    else:
        bits, values, numbers = 16, b"", picture.array
    return _of_bytes(picture, numbers >> bits - 8), _of_bytes(picture, numbers & (1 << bits - 8) - 1), values


def joined(high, low, values, partial=False):
    """The Deep of what parted returns; low None: a picture of 8 bits, by the rest.

    Raises ValueError if a sample has a number that no value has; if partial, the last value takes its place.
    """
    known = np.arange(1 << 16)
    if values:
        bitmap = np.frombuffer(inflate(values, 1 << 13), np.uint8)
        known = np.flatnonzero(np.unpackbits(bitmap))
        if bitmap.size != 1 << 13 or not known.size:
            raise ValueError("corrupt file: the values of its samples make no sense")
    below = _bits(known.size) - 8
    numbers = np.asarray(high).astype(np.int64) << below
    if low is None:
        return _of_bytes(high, known[np.minimum(numbers, known.size - 1)] >> 8)
    numbers += np.asarray(low)
    if partial:
        numbers = np.minimum(numbers, known.size - 1)
    if numbers.max() >= known.size or np.asarray(low).max() >> below:
        raise ValueError("corrupt file: a sample has no value")
    array = known[numbers].astype(np.uint16)
    return Deep(array)


def _bits(count):
    """Bits for so many numbers, 8 at least."""
    return max(int(count - 1).bit_length(), 8)


def unpack_plane(data, method, mode, size):
    """The picture of a plane of Deep.planes. Raises ValueError if the pixels are not as many."""
    (width, height), step = size, 2 * CHANNELS[mode]
    if method == RAW:
        lines = np.frombuffer(data, np.uint8)
    else:
        length = height * (1 + width * step)
        lines = np.frombuffer(inflate(data, length) if length <= DEFLATE_LIMIT * len(data) else b"", np.uint8)
    if lines.size != height * ((method == DEFLATE) + width * step):
        raise ValueError(f"corrupt file: {len(data)} bytes do not hold {width}x{height} pixels")
    if method == DEFLATE:
        lines = _unfilter(lines.reshape(height, -1), step)
    array = lines.view(">u2").astype(np.uint16).reshape(height, width, -1)
    return Deep(array)


def reader(data, image):
    """The function that reads the pixels of a file of 16 bits a sample where Pillow would cut them; or None.

    image: the file as Pillow has opened it. None too for TIFFs in grey, and with their planes apart.
    """
    if data[:8] == SIGNATURE and data[24:25] == b"\x10":
        return read_png
    if image.format == "TIFF" and image.tag_v2.get(PLANAR_CONFIGURATION, 1) == 1:
        if image.tile and all(HIGH.fullmatch(_rawmode(tile)) for tile in image.tile):
            return read_tiff
    return read_pnm if PNM.match(data) else None


def read_pnm(data):
    """The pixels of a PGM or PPM of 16 bits a sample: uint16 (H, W, C). Inverse: pnm_of.

    Raises ValueError if some are missing.
    """
    head = PNM.match(data)
    kind, width, height = map(int, head.groups())
    shape = height, width, 3 if kind == 6 else 1
    return np.frombuffer(data, ">u2", math.prod(shape), head.end()).reshape(shape)


def pnm_of(picture):
    """The PGM or PPM of a Deep of mode L or RGB. Inverse: read_pnm."""
    kind = 6 if picture.mode == "RGB" else 5
    return b"P%d\n%d %d\n65535\n" % (kind, *picture.size) + picture.array.astype(">u2").tobytes()


def read_png(data):
    """The pixels of a PNG of 16 bits a sample: uint16 (H, W, C). Raises ValueError if it is damaged."""
    width, height, _, colour, *_, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    channels = {COLOUR_TYPES[mode]: CHANNELS[mode] for mode in MODES.values()}.get(colour)
    if channels is None or not 1 <= width * height <= MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels of colour type {colour}")
    passes = [(x, y, dx, dy) for x, y, dx, dy in PASSES if x < width and y < height]
    passes = passes if interlaced else [(0, 0, 1, 1)]
    shapes = [(-(-(height - y) // dy), -(-(width - x) // dx)) for x, y, dx, dy in passes]
    lengths = [rows * (1 + 2 * channels * columns) for rows, columns in shapes]
    packed = b"".join(body for name, body in chunks(data) if name == b"IDAT")
    content = np.frombuffer(inflate(packed, sum(lengths)), np.uint8)
    if content.size != sum(lengths):
        raise ValueError("its pixels are not as many as it says")
    pixels, start = np.empty((height, width, channels), np.uint16), 0
    for (x, y, dx, dy), (rows, columns), length in zip(passes, shapes, lengths):
        lines = content[start : start + length].reshape(rows, -1)
        pixels[y::dy, x::dx] = _unfilter(lines, 2 * channels).view(">u2").reshape(rows, columns, channels)
        start += length
    return pixels


def with_pixels(png, picture):
    """A PNG of 8 bits a sample -> the same with the pixels of a Deep. Inverse: read_png."""
    header = struct.pack(">IIBBBBB", *picture.size, 16, COLOUR_TYPES[picture.mode], 0, 0, 0)
    kept = [(name, body) for name, body in chunks(png) if name not in (b"IHDR", b"IDAT", b"IEND")]
    return png_of([(b"IHDR", header), *kept, (b"IDAT", picture.planes()[DEFLATE]), (b"IEND", b"")])


def _rawmode(tile):
    args = tile[3]
    return str(args[0] if isinstance(args, tuple) else args)


def read_tiff(data):
    """The pixels of a TIFF of 16 bits a sample in colour: uint16 (H, W, 3 or 4).

    Pillow decodes it twice, each time to one byte of each sample.
    """

    def low(tile):
        args = HIGH.sub(lambda found: f"{found[1]};16{LOW[found[2]]}", _rawmode(tile))
        if isinstance(tile[3], tuple):
            args = args, *tile[3][1:]
        return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)  # Pillow 10

    with Image.open(BytesIO(data)) as image:
        high = np.asarray(image, np.uint16)
    with Image.open(BytesIO(data)) as image:
        image.tile = [low(tile) for tile in image.tile]
        return high << 8 | np.asarray(image)


def filtered(rows, step):
    """Bytes (H, W) -> lines (H, 1 + W): each by the filter of PNG whose sum of absolute values is the least.

    step: bytes of a pixel. Inverse: _unfilter.
    """
    height, width = rows.shape
    lines, above = np.empty((height, 1 + width), np.uint8), np.zeros(step + width, np.int16)
    for line, row in zip(lines, rows):
        here = np.concatenate([np.zeros(step, np.int16), row])
        left, up, corner = here[:width], above[step:], above[:width]
        p = left + up - corner
        a, b, c = abs(p - left), abs(p - up), abs(p - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
        forms = [(row - predicted).astype(np.uint8) for predicted in (0, left, up, left + up >> 1, paeth)]
        line[0] = np.argmin([abs(form.view(np.int8).astype(np.int32)).sum() for form in forms])
        line[1:] = forms[line[0]]
        above = here
    return lines


def _unfilter(lines, step):
    """Inverse of filtered: bytes (H, W). Raises ValueError for a filter that PNG does not have."""
    if lines[:, 0].max() > 4:
        raise ValueError("corrupt file: its pixels cannot be unpacked")
    return np.ascontiguousarray(unfiltered(lines, step))


@numba.njit(cache=True, nogil=True)
def unfiltered(lines, step):
    """Undo filters 0 .. 4: lines (H, 1 + W) uint8 -> bytes (H, W)."""
    rows = np.zeros((lines.shape[0] + 1, step + lines.shape[1] - 1), np.uint8)
    for y in range(lines.shape[0]):
        kind = lines[y, 0]
        for x in range(lines.shape[1] - 1):
            left, up, corner = np.int32(rows[y + 1, x]), np.int32(rows[y, x + step]), np.int32(rows[y, x])
            predicted = np.int32(0)
            if kind == 1:
                predicted = left
            elif kind == 2:
                predicted = up
            elif kind == 3:
                predicted = left + up >> 1
            elif kind == 4:
                a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
                predicted = left if a <= b and a <= c else up if b <= c else corner
            rows[y + 1, x + step] = np.uint8(lines[y, x + 1] + predicted & 255)
    return rows[1:, step:]
