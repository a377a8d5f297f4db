"""The .nwf file: a picture of Pillow's <-> bytes. docs/format.md is its definition.

    magic | kind | width | height | [settings | model] | [metadata] | marks | plane | checksum | stream

Everything up to the checksum is the head. Photographs go through the flow, into the stream, their alpha channel
into the plane; pictures for which deflate or no compression at all is smaller go into the plane as a whole.
"""

import struct
import zlib
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from flow.codec import DEFAULT, Settings, encode, stages
from source.rans import Decoder, Truncated
from utils.pictures import MAX_PIXELS, METADATA_MAX, dump, load, packed, unpacked
from utils.polyphase import depth, level_sizes

MAGIC = b"NWF\x01"
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
RAW, DEFLATE, FLOW = range(3)
METADATA, SETTINGS = 1 << 5, 1 << 6
IDENTITY = 8
# A decoder allocates for at most so many values of each byte that it was given. It is deflate's own limit.
VALUES_PER_BYTE = 1032
# Levels whose image has as many pixels or more have a mark, four bytes of some thousands.
MARKED_PIXELS = 1 << 10


class Head(NamedTuple):
    """What a file says before its stream; marks: level -> checksum of its image; end: where the stream begins."""

    mode: str
    method: int
    width: int
    height: int
    settings: Settings
    model: str
    metadata: dict
    marks: dict
    plane: bytes
    checksum: int
    end: int


def pack(picture, model=None, name="", settings=DEFAULT):
    """A picture, as utils.pictures.read makes them, -> the bytes of the smallest .nwf file.

    model, name: frozen, and its identity in hex; without them the flow is no choice.
    Inverse: unpack.
    """
    width, height = picture.size
    if picture.mode not in MODES:
        raise ValueError(f"mode {picture.mode}: need {', '.join(MODES)}")
    if width * height > MAX_PIXELS or not width * height:
        raise ValueError(f"{width}x{height} pixels: need 1 .. {MAX_PIXELS:,} in all")
    metadata = dump(picture.info)
    raw = picture.tobytes()
    files = [_head(picture, RAW, metadata, raw)]
    plane = packed(picture)
    if _plausible(len(raw), len(plane)):
        files.append(_head(picture, DEFLATE, metadata, plane))
    if model is not None and picture.mode in ("L", "LA", "RGB", "RGBA"):
        files.append(_flow(picture, metadata, model, name, settings))
    return min(files, key=len)


def unpack(data, model=None, name="", levels=0, partial=False):
    """The bytes of a .nwf file -> its picture. Inverse: pack.

    model, name: as for pack; needed if the flow made the file.
    levels: leave out so many of the finest levels: a smaller picture, of which the file's first part is enough.
    partial: decode a file that was cut, with the prior's means in place of what it lacks.
    Raises ValueError for any file that `pack` did not write so, byte by byte. With levels or partial, what the
    marks do not cover goes unchecked.
    """
    head = read_head(data)
    finest = depth(head.height, head.width)
    if not 0 <= levels <= finest:
        raise ValueError(f"{levels} levels to leave out: a {head.width}x{head.height} picture has {finest}")
    if head.method == FLOW:
        picture = _unflow(head, data[head.end :], model, name, levels, partial)
    elif len(data) > head.end:
        raise ValueError(f"corrupt file: {len(data) - head.end} bytes after its end")
    elif head.method == DEFLATE:
        _check_plausible(_length(head.mode, head.width, head.height), len(head.plane))
        picture = _smaller(unpacked(head.plane, head.mode, head.width, head.height, head.metadata), levels)
    elif len(head.plane) != _length(head.mode, head.width, head.height):
        raise ValueError(f"corrupt file: {len(head.plane)} bytes of {head.width}x{head.height} pixels")
    else:
        picture = _smaller(Image.frombytes(head.mode, (head.width, head.height), head.plane), levels)
    picture.info |= head.metadata
    if picture.mode == "P":
        picture.putpalette(head.metadata["palette"])
    return picture


def read_head(data):
    """The Head at the beginning of a file. Raises ValueError if the data do not begin with one."""
    if not data.startswith(MAGIC[:3]):
        raise ValueError("not a .nwf file")
    if data[3:4] != MAGIC[3:]:
        raise ValueError(f"version {data[3:4].hex() or 'none'} of the .nwf format: this program reads 01")
    reader = _Reader(data, len(MAGIC))
    kind = reader.take(1)[0]
    method, mode = kind >> 3 & 3, kind & 7
    if kind >> 7 or mode >= len(MODES) or method > FLOW or (kind & SETTINGS and method != FLOW):
        raise ValueError(f"corrupt file: no kind {kind}")
    mode = MODES[mode]
    if method == FLOW and mode in ("1", "P"):
        raise ValueError(f"corrupt file: mode {mode} does not go through the flow")
    width, height = reader.number(), reader.number()
    if not 1 <= width * height <= MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels: need 1 .. {MAX_PIXELS:,} in all")
    settings = Settings(reader.number(), reader.take(1)[0]) if kind & SETTINGS else DEFAULT
    model = reader.take(IDENTITY).hex() if method == FLOW else ""
    block = reader.block() if kind & METADATA else None
    marked = _marked(width, height) if method == FLOW else []
    marks = {level: int.from_bytes(reader.take(4), "big") for level in marked}
    plane = reader.block() if method != FLOW or mode in ("LA", "RGBA") else b""
    checksum = zlib.crc32(data[: reader.position])
    if int.from_bytes(reader.take(4), "big") != checksum:
        raise ValueError("corrupt file: the checksum of its head is another")
    metadata = {} if block is None else load(block, mode)
    if mode == "P" and "palette" not in metadata:
        raise ValueError("corrupt file: no palette")
    return Head(
        mode, method, width, height, settings, model, metadata, marks, plane, checksum, reader.position
    )


class _Reader:
    """Takes the fields of a head one after the other; ValueError where the data end."""

    def __init__(self, data, position):
        self.data, self.position = data, position

    def take(self, size):
        """The next bytes."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise ValueError("the file is cut within its head")
        return self.data[start : self.position]

    def number(self):
        """The next number, below 2^35; inverse of _number."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                if not byte and shift:
                    break
                return value
        raise ValueError("corrupt file: a number is too long")

    def block(self):
        """The next bytes that have their length before them."""
        return self.take(self.number())


def _number(value):
    """A number >= 0 as bytes of 7 bits, low ones first, all but the last with their high bit set."""
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _block(data):
    return _number(len(data)) + data


def _head(picture, method, metadata, plane=None, fields=b"", marks=b"", flags=0):
    """The head of a file; fields: settings and model."""
    kind = MODES.index(picture.mode) | method << 3 | flags | METADATA * bool(metadata)
    head = MAGIC + bytes([kind]) + _number(picture.width) + _number(picture.height) + fields
    head += (_block(metadata) if metadata else b"") + marks + (b"" if plane is None else _block(plane))
    return head + zlib.crc32(head).to_bytes(4, "big")


def _marked(width, height):
    """The levels whose images have a mark, coarsest first."""
    sizes = level_sizes(height, width, depth(height, width))
    return [i for i in reversed(range(1, len(sizes))) if sizes[i][0] * sizes[i][1] >= MARKED_PIXELS]


def _plausible(values, size):
    return values <= VALUES_PER_BYTE * size


def _check_plausible(values, size):
    if not _plausible(values, size):
        raise ValueError(f"corrupt file, or cut: {size} bytes cannot hold {values:,} values")


def _length(mode, width, height):
    """The bytes of a raw picture."""
    return height * ((width + 7) // 8 if mode == "1" else width * len(Image.Image().getbands() if 0 else MODES))
