"""Picture files and their metadata: what they show by (palette, transparency, profile) and what they tell.

A picture is an Image of Pillow's in one of the modes of CHANNELS, or a Deep of 16 bits a sample, with the
metadata of TAGS in its info.
"""

import struct
import zlib
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, X_RESOLUTION
from PIL.TiffImagePlugin import XMP as TIFF_XMP

from flow.codec import deep as deep_format
from flow.codec.deep import Deep
from flow.codec.planes import CHANNELS, inflate
from utils.data.images import MAX_PIXELS, PROCESS, is_deep, opened, readable, warned

ARRAY_MODES = "L", "LA", "RGB", "RGBA"  # of arrays with 1 .. 4 channels
TAGS = {
    "palette": b"p", "steps": b"q", "transparency": b"t", "icc_profile": b"i", "exif": b"e", "gamma": b"g",
    "xmp": b"x", "dpi": b"d", "text": b"c",
}  # fmt: skip
PALETTES = "palette", "steps"
MAX_METADATA = 1 << 24
GAMMA = 100_000  # counts of gamma to one, as in PNG
INCH = 0.0254  # metres
XMP = "XML:com.adobe.xmp"  # what it is called in a PNG
ORIENTATION = 0x0112  # EXIF's
GROUPS, INTEROPERABILITY = (0x8769, 0x8825), 0xA005  # EXIF's own, the place; the first may point to the last
# Tags of a TIFF that say how it is laid out, or are kept in other ways: profile, XMP, DPI.
LAYOUT = {
    *range(254, 267), 273, *range(277, 285), *range(288, 294), 296, 301, *range(317, 348), *range(512, 533),
    *(TIFF_XMP, 34675, 37724),
}  # fmt: skip


def read_picture(path):
    """Read an image file as a picture: pixels as they are in the file, an EXIF orientation left to apply.

    Raises ValueError, in one line, for what is no picture in this sense: CMYK, animations.
    """
    with readable(path):
        data = path.read() if hasattr(path, "read") else Path(path).read_bytes()
        with _limits(), opened(BytesIO(data)) as image:
            read = deep_format.reader(data, image)
            refusal = _refusal(image, read)
            if refusal is None:
                picture = _normal(image)
                return Deep(read(data), picture.info) if read else picture
    raise ValueError(f"{path}: {refusal}")


@contextmanager
def _limits():
    """Within: pixels, and texts and profiles of a PNG, may be as many as files keep, to Pillow too.

    Until all is loaded, as a PNG may have texts behind its pixels, and a TIFF's size is looked at again.
    """
    with PROCESS:
        before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = MAX_PIXELS, max(before[1], MAX_METADATA)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before


def as_picture(image):
    """A copy of an Image of Pillow's, or of an array (H, W) or (H, W, 1 .. 4), as a picture; uint8 or uint16.

    Raises ValueError, in one line, for anything else.
    """
    if isinstance(image, Deep):
        return Deep(image.array, _known(image.info))
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        channels, known = array.shape[2:] or (1,), array.dtype in (np.uint8, np.uint16)
        if not known or array.ndim not in (2, 3) or not 1 <= channels[0] <= len(ARRAY_MODES):
            shape = "x".join(map(str, array.shape))
            wanted = "need an image of Pillow's, or an array (H, W) or (H, W, 1 .. 4), uint8 or uint16"
            hint = "; round values first, those of 0 .. 1 times 255" if array.dtype.kind == "f" else ""
            raise ValueError(f"{type(image).__name__} {shape} of {array.dtype}: {wanted}{hint}")
        if array.dtype == np.uint16:
            return Deep(array)
        mode = ARRAY_MODES[channels[0] - 1]
        return Image.frombytes(mode, array.shape[1::-1], array.tobytes())
    refusal = _refusal(image)
    if refusal:
        raise ValueError(refusal)
    return _normal(image)


def _refusal(image, read=None):
    """Why an opened file is no picture, or None; read: what reads its pixels, where Pillow would not."""
    if is_deep(image) and not read and not image.mode.startswith("I;16"):
        return (
            "more than 8 bits per sample: kept are 16 of PNG, PPM and TIFF (grey, RGB, RGBA, planes together)"
        )
    if image.mode not in CHANNELS and not image.mode.startswith("I"):
        return f"colours of mode {image.mode}; convert it to one of {', '.join(CHANNELS)} first"
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # whose other frames are previews
        return f"{image.n_frames} frames; only single pictures can be kept"
    if image.width * image.height > MAX_PIXELS:
        return f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} can be kept"
    return None


def _normal(image):
    """The picture of an image: a copy, its metadata brought to one form."""
    widened, tags = _widened(image), getattr(image, "tag_v2", None)  # of a TIFF
    image.load()
    texts, image, exif = getattr(image, "text", None), image.copy(), image.getexif()
    info = _known(image.info | ({"text": texts} if texts else {}))
    if widened and "transparency" in info:
        info["transparency"] *= widened
    if tags:
        if own := _exif_bytes(exif):
            info["exif"] = own
        if isinstance(tags.get(TIFF_XMP), bytes):  # older versions of Pillow do not tell
            info["xmp"] = tags[TIFF_XMP]
        if X_RESOLUTION not in tags:
            info.pop("dpi", None)  # Pillow's guess
    elif "exif" not in info and exif.get(ORIENTATION, 1) != 1:
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
    if image.mode.startswith("I"):
        white_is_zero = tags and not tags.get(PHOTOMETRIC_INTERPRETATION, 1)
        return Deep(np.asarray(image) ^ np.uint16(65535 * bool(white_is_zero)), info)
    image.info = info
    return image


def _known(info):
    """What of an image's info a picture keeps, in one form."""
    texts = {str(key): str(text) for key, text in dict(info.get("text") or {}).items() if key != XMP}
    if isinstance(info.get("comment"), (bytes, str)):  # of JPEG and GIF
        comment = info["comment"]
        texts.setdefault("Comment", comment if isinstance(comment, str) else comment.decode(errors="replace"))
    xmp = info.get("xmp", info.get(XMP))
    dots = [round(float(n) / INCH) if 0 < n < 1e6 else 0 for n in info.get("dpi") or (0, 0)]
    own = {
        "xmp": xmp.encode() if isinstance(xmp, str) else xmp,
        "dpi": tuple(n * INCH for n in dots) if all(dots) else None,
        "text": {key.replace("\0", ""): text.replace("\0", "") for key, text in texts.items()},
    }
    known = {tag: (info | own).get(tag) for tag in TAGS if tag not in PALETTES}
    return {tag: value for tag, value in known.items() if value is not None and value not in (b"", {})}


def _exif_bytes(exif):
    """The EXIF block of what an Exif of Pillow's tells, less tags that it cannot write."""
    whole = Image.Exif()
    with warned():
        for tag, value in described(exif).items():
            alone = Image.Exif()
            alone[tag] = value
            try:
                alone.tobytes()
            except Exception:  # tags of anybody's own, values of any type
                continue
            whole[tag] = value
        return whole.tobytes() if len(whole) else b""


def described(exif):
    """What an Exif of Pillow's, or the bytes of one, tells besides how a TIFF is laid out: tag -> value."""
    if isinstance(exif, bytes):
        data, exif = exif, Image.Exif()
        exif.load(data)
    found = {tag: value for tag, value in exif.items() if tag not in LAYOUT and tag not in GROUPS}
    for group in GROUPS:
        if tags := {tag: value for tag, value in exif.get_ifd(group).items() if tag != INTEROPERABILITY}:
            found[group] = tags
    return found


def _widened(image):
    """By what Pillow is to multiply the samples of a grey PNG of 2 or 4 bits, but not the transparent one."""
    tiles = getattr(image, "tile", ()) if image.format == "PNG" else ()
    return next(({"L;2": 85, "L;4": 17}.get(args) for *_, args in tiles if isinstance(args, str)), None)


def write_png(picture, path):
    """Write a picture as a PNG file, with its metadata."""
    deep, info = isinstance(picture, Deep) or picture.mode == "I;16", picture.info
    chunks, file = PngImagePlugin.PngInfo(), BytesIO()
    if "gamma" in info:
        chunks.add(b"gAMA", struct.pack(">I", round(info["gamma"] * GAMMA)))
    if "xmp" in info:
        chunks.add_itxt(XMP, info["xmp"].decode(errors="replace"))
    for key, text in info.get("text", {}).items():
        chunks.add_text(key, text)
    picture = as_picture(picture) if deep else picture
    shown = picture.high() if deep else picture
    shown.info = info
    shown.save(file, "PNG", exif=info.get("exif"), dpi=info.get("dpi"), pnginfo=chunks)
    data = deep_format.with_pixels(file.getvalue(), picture) if deep else file.getvalue()
    path.write(data) if hasattr(path, "write") else Path(path).write_bytes(data)


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
    if "dpi" in fields:
        fields["dpi"] = struct.pack(">II", *(round(n / INCH) for n in fields["dpi"]))
    if "text" in fields:
        fields["text"] = b"".join(part.encode() + b"\0" for pair in fields["text"].items() for part in pair)
    if not fields:
        return b""
    forms = [_pack_fields(fields)]
    if picture.mode == "P":
        steps = np.diff(_rows(fields.pop("palette")), axis=0, prepend=np.uint8(0))
        forms.append(_pack_fields(fields | {"steps": steps.tobytes()}))
    return min(forms, key=len)


def _pack_fields(fields):
    known = ((tag, fields[name]) for name, tag in TAGS.items() if name in fields)
    data = b"".join(tag + struct.pack(">I", len(field)) + field for tag, field in known)
    if len(data) > MAX_METADATA:
        raise ValueError(f"{len(data):,} bytes of metadata; at most {MAX_METADATA:,} can be kept")
    packed = zlib.compress(data, 9)
    if "icc_profile" in fields:
        stream = zlib.compressobj(9, zdict=srgb_curve())
        packed = min(packed, stream.compress(data) + stream.flush(), key=len)
    return packed


@cache
def srgb_curve():
    """What most profiles are mostly made of: 1,024 samples of sRGB's transfer curve, as ICC has them.

    Where there is a profile, metadata may refer to it. Source: IEC 61966-2-1.
    """
    x = np.arange(1024) / 1023
    y = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + struct.pack(">II", 0, 1024) + np.rint(65535 * y).astype(">u2").tobytes()


def _rows(palette):
    """Bytes of colours -> array (N, 3)."""
    return np.frombuffer(palette, np.uint8).reshape(-1, 3)


def unpack_metadata(packed, mode):
    """The info of a picture of a mode, "palette" too; ValueError if pack_metadata cannot have written it."""
    data, info, position = inflate(packed, MAX_METADATA, srgb_curve()) if packed else b"", {}, 0
    for name, tag in TAGS.items():
        if data[position : position + 1] == tag:
            start = position + 5
            position = start + int.from_bytes(data[position + 1 : start], "big")
            info[name] = data[start:position]
    palettes = [len(info[name]) for name in PALETTES if name in info]
    colour = len(info.get("transparency", b"-"))
    if mode == "P":
        sound = len(palettes) == 1 and palettes[0] in range(3, 769, 3) and 1 <= colour <= palettes[0] // 3
    else:
        sound = not palettes and ("transparency" not in info or colour == 2 * CHANNELS[mode])
    lengths = len(info.get("gamma", bytes(4))), len(info.get("dpi", bytes(8)))
    if not sound or position != len(data) or lengths != (4, 8):
        raise ValueError("corrupt file: its metadata make no sense")
    if "steps" in info:
        info["palette"] = np.cumsum(_rows(info.pop("steps")), axis=0, dtype=np.uint8).tobytes()
    if "transparency" in info and mode != "P":
        values = struct.unpack(f">{CHANNELS[mode]}H", info["transparency"])
        info["transparency"] = values if len(values) > 1 else values[0]
    if "gamma" in info:
        info["gamma"] = int.from_bytes(info["gamma"], "big") / GAMMA
    if "dpi" in info:
        info["dpi"] = tuple(n * INCH for n in struct.unpack(">II", info["dpi"]))
    if "text" in info:
        *parts, rest = info["text"].decode(errors="replace").split("\0")
        if rest or len(parts) % 2:
            raise ValueError("corrupt file: its texts make no sense")
        info["text"] = dict(zip(parts[::2], parts[1::2]))
    return info


def attach(picture, info):
    """Give a picture its metadata, as unpack_metadata returns them."""
    if picture.mode == "P":
        if picture.getextrema()[1] >= len(info["palette"]) // 3:
            raise ValueError("corrupt file: a pixel is not in its palette")
        picture.putpalette(info["palette"])
    picture.info = {name: value for name, value in info.items() if name != "palette"}


def of_8_bits(picture):
    """A picture of 8 bits a sample: itself, or the high bytes of one of 16."""
    return as_picture(picture).high() if np.asarray(picture).dtype == np.uint16 else picture


def colours(picture):
    """The colours of a picture without a palette, as an array (H, W, 3); grey three times."""
    return np.array(picture.convert("RGB"))
