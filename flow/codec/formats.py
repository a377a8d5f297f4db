"""Pictures as files that others read: what they show is kept without loss, or the format is refused."""

import zlib
from io import BytesIO

import numpy as np
from PIL import Image, TiffImagePlugin

from flow.codec.deep import Deep, pnm_of
from flow.codec.pictures import as_picture, write_png
from flow.codec.planes import WEBP_SIDE

SUFFIXES = {
    ".png": "png",
    **dict.fromkeys((".ppm", ".pgm", ".pbm"), "ppm"),
    **dict.fromkeys((".tif", ".tiff"), "tif"),
    ".webp": "webp",
}
# The modes that formats have; others are shown by one of these, with the same colours.
MODES = {
    "ppm": ("1", "L", "RGB"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "webp": ("RGB", "RGBA"),
}
KEPT = {"ppm": (), "tif": ("icc_profile", "exif"), "webp": ("icc_profile", "exif")}
SAVED = {
    "ppm": ("PPM", {}),
    "tif": ("TIFF", {}),
    "webp": ("WEBP", {"lossless": True, "exact": True, "quality": 100}),
}


def in_format(picture, name):
    """A picture as the bytes of a png, ppm, tif or webp file, and the names of the metadata it cannot hold.

    Raises ValueError if the format cannot hold what the picture shows.
    """
    file = BytesIO()
    if name == "png":
        write_png(picture, file)
        return file.getvalue(), []
    if name == "webp" and max(picture.size) >= WEBP_SIDE:
        raise ValueError(
            f"{picture.width}x{picture.height} pixels: a WebP file has {WEBP_SIDE - 1} a side at most"
        )
    deep = isinstance(picture, Deep) or picture.mode == "I;16"
    if deep:
        picture = as_picture(picture)
        if name == "webp":
            raise ValueError("16 bits a sample: a .webp file has 8; choose -format png or tif")
    info = dict(picture.info)
    clear = info.pop("transparency", None) is not None or picture.mode in ("LA", "RGBA")
    if clear and name == "ppm":
        raise ValueError("a picture with transparency: a .ppm file has none; choose another -format")
    if deep and name == "ppm":
        return pnm_of(picture), list(info)
    if deep:
        deep = picture.with_alpha() if clear else picture
        shown = deep.high()
    else:
        other = picture.mode not in MODES[name] or "transparency" in picture.info
        shown = picture.convert("RGBA" if clear else "RGB") if other else picture
    form, how = SAVED[name]
    kept = {tag: info[tag] for tag in KEPT[name] if tag in info}
    shown.info = {}
    shown.save(file, form, **how, **kept)
    data = file.getvalue()
    if name == "tif":
        data = _with_pixels(data, np.asarray(deep or shown), shown.mode)
    return data, [tag for tag in info if tag not in kept]


def _with_pixels(tiff, pixels, mode):
    """A TIFF that is not compressed -> the same with other pixels (H, W) or (H, W, C), deflated.

    Pillow compresses by libtiff alone, which takes no EXIF of a camera's.
    """
    with Image.open(BytesIO(tiff)) as image:
        exif = image.getexif().get_ifd(TiffImagePlugin.EXIFIFD)
    with Image.open(BytesIO(tiff)) as image:  # once more, as getexif takes away from its tags
        tags = image.tag_v2
        dict(tags)  # which reads them all: those that nobody has looked at are not saved
    height, _, *channels = pixels.shape
    if pixels.dtype == bool:
        pixels = np.packbits(pixels, 1)
    else:
        tags[TiffImagePlugin.BITSPERSAMPLE] = (8 * pixels.itemsize,) * (*channels, 1)[0]
    if mode not in ("1", "P"):
        pixels = np.diff(pixels, axis=1, prepend=pixels.dtype.type(0))
        tags[TiffImagePlugin.PREDICTOR] = 2
    little = tags.prefix == b"II"
    packed = zlib.compress(pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes(), 9)
    tags[TiffImagePlugin.COMPRESSION] = 8  # Adobe's deflate
    tags[TiffImagePlugin.ROWSPERSTRIP] = height
    tags[TiffImagePlugin.STRIPOFFSETS] = 0  # from the end of the tags
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = len(packed)
    if exif:
        tags[TiffImagePlugin.EXIFIFD] = exif
    file = BytesIO()
    tags.save(file)
    return file.getvalue() + packed
