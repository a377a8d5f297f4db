"""Picture files with all that they show by (palette, transparency, ICC profile, EXIF, gamma), and as bytes.

A picture is an Image of Pillow's in one of the modes of CHANNELS, with the metadata of TAGS in its info.
"""

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, PngImagePlugin

from utils.data.images import is_deep

CHANNELS = {"1": 1, "L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4}
COLOUR_TYPES = {"1": 0, "L": 0, "LA": 4, "P": 3, "RGB": 2, "RGBA": 6}  # PNG's
ARRAY_MODES = "L", "LA", "RGB", "RGBA"  # of arrays with 1 .. 4 channels
MAX_PIXELS = 1 << 27
TAGS = {"palette": b"p", "transparency": b"t", "icc_profile": b"i", "exif": b"e", "gamma": b"g"}
MAX_METADATA = 1 << 24
DEFLATE_LIMIT = 1032  # bytes that a byte can become: no memory for more than this
GAMMA = 100_000  # counts of gamma to one, as in PNG
ORIENTATION = 0x0112  # EXIF's
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_picture(path):
    """Read an image file as a picture: pixels as they are in the file, an EXIF orientation left to apply.

    Raises ValueError, in one line, for what is no picture in this sense: 16 bits, CMYK, animations.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the limit here
            with Image.open(path) as image:
                refusal = _refusal(image)
                if refusal is None:
                    return _normal(image)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:  # each of Pillow's decoders fails in its own ways
        raise ValueError(f"{path}: not an image that Pillow can read") from error
    raise ValueError(f"{path}: {refusal}")


def as_picture(image):
    """A copy of an Image of Pillow's, or of a uint8 array (H, W) or (H, W, 1 .. 4), as a picture.

    Raises ValueError, in one line, for anything else.
    """
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        channels = array.shape[2:] or (1,)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or not 1 <= channels[0] <= len(ARRAY_MODES):
            shape = "x".join(map(str, array.shape))
            wanted = "need an image of Pillow's, or a uint8 array (H, W) or (H, W, 1 .. 4)"
            raise ValueError(f"{type(image).__name__} {shape} of {array.dtype}: {wanted}")
        mode = ARRAY_MODES[channels[0] - 1]
        return Image.frombytes(mode, array.shape[1::-1], array.tobytes())
    refusal = _refusal(image)
    if refusal:
        raise ValueError(refusal)
    return _normal(image)


def _refusal(image):
    """Why an opened file is no picture, or None."""
    if is_deep(image):
        return "more than 8 bits per sample; convert it to 8 bits first"
    if image.mode not in CHANNELS:
        return f"colours of mode {image.mode}; convert it to one of {', '.join(CHANNELS)} first"
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # whose other frames are previews
        return f"{image.n_frames} frames; only single pictures can be kept"
    if image.width * image.height > MAX_PIXELS:
        return f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} can be kept"
    return None


def _normal(image):
    """The picture of an image: a copy, its metadata brought to one form."""
    image.load()
    image, exif = image.copy(), image.getexif()
    info = {tag: image.info[tag] for tag in TAGS if tag != "palette" and image.info.get(tag) is not None}
    if "exif" not in info and exif.get(ORIENTATION, 1) != 1:
        own = Image.Exif()
        own[ORIENTATION] = exif[ORIENTATION]
        info["exif"] = own.tobytes()
    if image.mode == "P":
        if image.palette.mode == "RGBA":
            info["transparency"] = bytes(image.getpalette("RGBA")[3::4])
        elif isinstance(info.get("transparency"), int):
            info["transparency"] = b"\xff" * info["transparency"] + b"\0"
        colours = bytes(image.getpalette("RGB"))
        image.putpalette(colours.ljust(3 * (1 + image.getextrema()[1]), b"\0"))
    elif image.mode in ("LA", "RGBA"):
        info.pop("transparency", None)
    image.info = info
    return image


def write_png(picture, path):
    """Write a picture as a PNG file, with its metadata."""
    chunks = PngImagePlugin.PngInfo()
    if "gamma" in picture.info:
        chunks.add(b"gAMA", struct.pack(">I", round(picture.info["gamma"] * GAMMA)))
    picture.save(path, "PNG", exif=picture.info.get("exif"), pnginfo=chunks)


def png_size(picture):
    """How many bytes write_png would write."""
    file = BytesIO()
    write_png(picture, file)
    return file.tell()


def pack_metadata(picture):
    """The metadata of a picture as bytes, deflated; none if there are none. Inverse: unpack_metadata."""
    fields = dict(picture.info)
    if picture.mode == "P":
        fields["palette"] = bytes(picture.getpalette("RGB"))
    if "gamma" in fields:
        fields["gamma"] = struct.pack(">I", round(fields["gamma"] * GAMMA))
    if "transparency" in fields and picture.mode != "P":
        colour = np.atleast_1d(fields["transparency"]).tolist()
        fields["transparency"] = struct.pack(f">{CHANNELS[picture.mode]}H", *colour)
    known = ((tag, fields[name]) for name, tag in TAGS.items() if name in fields)
    data = b"".join(tag + struct.pack(">I", len(field)) + field for tag, field in known)
    if len(data) > MAX_METADATA:
        raise ValueError(f"{len(data):,} bytes of metadata; at most {MAX_METADATA:,} can be kept")
    return zlib.compress(data, 9) if data else b""


def unpack_metadata(packed, mode):
    """The info of a picture of a mode, "palette" too; ValueError if pack_metadata cannot have written it."""
    data, info, position = inflate(packed, MAX_METADATA) if packed else b"", {}, 0
    for name, tag in TAGS.items():
        if data[position : position + 1] == tag:
            start = position + 5
            position = start + int.from_bytes(data[position + 1 : start], "big")
            info[name] = data[start:position]
    palette, colour = len(info.get("palette", b"")), len(info.get("transparency", b""))
    if mode == "P":
        sound = 3 <= palette <= 768 and palette % 3 == 0 and colour <= palette // 3
    else:
        sound = not palette and colour in (0, 2 * CHANNELS[mode])
    if not sound or position != len(data) or len(info.get("gamma", bytes(4))) != 4:
        raise ValueError("corrupt file: its metadata make no sense")
    if colour and mode != "P":
        values = struct.unpack(f">{CHANNELS[mode]}H", info["transparency"])
        info["transparency"] = values if len(values) > 1 else values[0]
    if "gamma" in info:
        info["gamma"] = int.from_bytes(info["gamma"], "big") / GAMMA
    return info


def attach(picture, info):
    """Give a picture its metadata, as unpack_metadata returns them."""
    if picture.mode == "P":
        if picture.getextrema()[1] >= len(info["palette"]) // 3:
            raise ValueError("corrupt file: a pixel is not in its palette")
        picture.putpalette(info["palette"])
    picture.info = {name: value for name, value in info.items() if name != "palette"}


def _bits(mode, colours):
    """Bits for each sample: as few as PNG has for a palette."""
    return {"1": 1, "P": next(n for n in (1, 2, 4, 8) if colours <= 1 << n)}.get(mode, 8)


def pack_pixels(picture):
    """The pixels as a zlib stream of filtered rows, as in PNG's IDAT chunks. Inverse: unpack_pixels."""
    png, parts, position = BytesIO(), [], len(SIGNATURE)
    picture.save(png, "PNG", compress_level=9)
    data = png.getbuffer()
    while position < len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if kind == b"IDAT":
            parts.append(data[position + 8 : position + 8 + size])
        position += size + 12
    return b"".join(parts)


def unpack_pixels(data, mode, size, colours=0):
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
    chunks = [(b"IHDR", header), *palette, (b"IDAT", data), (b"IEND", b"")]
    png = SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(png), formats=("PNG",))
            picture.load()
            picture = picture.copy()
    except (OSError, SyntaxError) as error:
        raise ValueError("corrupt file: its pixels cannot be unpacked") from error
    picture.info = {}
    return picture


def inflate(data, limit):
    """Decompress one whole zlib stream. Raises ValueError if it is damaged or gives more than limit bytes."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(f"corrupt file: {error}") from None
    if len(content) > limit or not stream.eof or stream.unused_data:
        raise ValueError("corrupt file: a compressed part has another length")
    return content


def colours(picture):
    """The colours of a picture without a palette, as an array (H, W, 3); grey three times."""
    return np.array(picture.convert("RGB"))


def subsample(picture, step):
    """Every step-th pixel of every step-th row, from the first."""
    size = (-(-picture.width // step), -(-picture.height // step))
    start = 0.5 - step / 2  # Pillow looks up the middle of each step
    return picture.transform(size, Image.Transform.AFFINE, (step, 0, start, 0, step, start))
