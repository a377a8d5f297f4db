"""Pictures as files that others read: what they show is kept without loss, or the format is refused."""

import zlib
from io import BytesIO

import numpy as np
from PIL import TiffImagePlugin as Tiff

from flow.codec.deep import Deep, pnm_of
from flow.codec.pictures import as_picture, described, write_png
from flow.codec.planes import WEBP_SIDE
from utils.data.images import warned

SUFFIXES = {
    ".png": "png",
    **dict.fromkeys((".ppm", ".pgm", ".pbm"), "ppm"),
    **dict.fromkeys((".tif", ".tiff"), "tif"),
    ".webp": "webp",
}
# The modes that formats have; others are shown by one of these, with the same colours.
MODES = {
    "ppm": ("1", "L", "RGB"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "webp": ("RGB", "RGBA"),
}
KEPT = {"ppm": (), "tif": ("icc_profile", "exif", "dpi", "xmp"), "webp": ("icc_profile", "exif")}
SAVED = {
    "ppm": ("PPM", {}),
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
        shown = picture.with_alpha() if clear else picture
    else:
        other = picture.mode not in MODES[name] or "transparency" in picture.info
        shown = picture.convert("RGBA" if clear else "RGB") if other else picture
    kept = {tag: info[tag] for tag in KEPT[name] if tag in info}
    if name == "tif":
        try:
            with warned() as found:
                data = tiff_of(shown, **kept)
        except Exception as error:  # as many as there are ways of EXIF to be damaged
            found = [error]
        if found:
            kept.pop("exif", None)
            data = tiff_of(shown, **kept)
    else:
        form, how = SAVED[name]
        shown = shown.copy()
        shown.info = {}
        shown.save(file, form, **how, **kept)
        data = file.getvalue()
    return data, [tag for tag in info if tag not in kept]


def tiff_of(picture, icc_profile=None, exif=b"", dpi=None, xmp=None):
    """A picture of one of MODES["tif"], or a Deep in grey, RGB or RGBA, as a TIFF of one deflated strip.

    Pillow itself compresses TIFFs by libtiff alone, which takes no EXIF of a camera's.
    """
    pixels, tags = np.asarray(picture), Tiff.ImageFileDirectory_v2()
    for tag, value in described(exif).items():
        tags[tag] = value
    height, width, channels = (*pixels.shape, 1)[:3]
    deep, mode = pixels.dtype == np.uint16, picture.mode
    if mode == "1":
        pixels = np.packbits(pixels, 1)
    elif mode == "P":
        palette = np.array(picture.getpalette("RGB"), np.uint16).reshape(-1, 3) * 257
        tags[Tiff.COLORMAP] = tuple(np.pad(palette, ((0, 256 - len(palette)), (0, 0))).T.ravel().tolist())
    else:
        pixels = np.diff(pixels, axis=1, prepend=pixels.dtype.type(0))
        tags[Tiff.PREDICTOR] = 2
    packed = zlib.compress(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(), 9)
    tags[Tiff.IMAGEWIDTH], tags[Tiff.IMAGELENGTH] = width, height
    tags[Tiff.BITSPERSAMPLE] = (1 if mode == "1" else 16 if deep else 8,) * channels
    tags[Tiff.SAMPLESPERPIXEL], tags[Tiff.PLANAR_CONFIGURATION] = channels, 1
    tags[Tiff.PHOTOMETRIC_INTERPRETATION] = {"P": 3, "RGB": 2, "RGBA": 2}.get(mode, 1)
    if mode in ("LA", "RGBA"):
        tags[Tiff.EXTRASAMPLES] = 2  # alpha, not premultiplied
    tags[Tiff.COMPRESSION] = 8  # Adobe's deflate
    tags[Tiff.STRIPOFFSETS] = 0  # from the end of the tags
    tags[Tiff.ROWSPERSTRIP], tags[Tiff.STRIPBYTECOUNTS] = height, len(packed)
    if dpi:
        tags[Tiff.X_RESOLUTION], tags[Tiff.Y_RESOLUTION], tags[Tiff.RESOLUTION_UNIT] = *dpi, 2
    if icc_profile:
        tags[Tiff.ICCPROFILE] = icc_profile
    if xmp:
        tags[Tiff.XMP] = xmp
    file = BytesIO()
    tags.save(file)
    return file.getvalue() + packed
