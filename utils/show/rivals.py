"""What other lossless codecs make of the same images."""

from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image
from tqdm import tqdm

SLOW = {"JPEG XL 9"}  # three to five times as long as effort 7, for two percent at most


def pillow(name, **options):
    """A function: (H, W, 3) uint8 -> the bytes of the file that Pillow makes of it."""

    def encode(pixels):
        file = BytesIO()
        Image.fromarray(pixels).save(file, name, **options)
        return file.getvalue()

    return encode


def _imagecodecs():
    """What the library has, if it is installed: it may be built without some of these codecs."""
    try:
        import imagecodecs
    except ImportError:
        return {}

    def jpegls(pixels):
        return imagecodecs.jpegls_encode(pixels)

    def jpeg2k(pixels):
        options = dict(reversible=True, mct=True, codecformat="j2k")
        files = (imagecodecs.jpeg2k_encode(pixels, resolutions=r, **options) for r in range(1, 7))
        return min(files, key=len)  # two or three suit small images, five or six photographs

    def jpegxl(effort):
        return lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True, effort=effort)

    codecs = {"JPEG-LS": jpegls, "JPEG 2000": jpeg2k, "JPEG XL 7": jpegxl(7), "JPEG XL 9": jpegxl(9)}
    return {name: encode for name, encode in codecs.items() if _works(encode)}


def _pillow_jxl():
    """JPEG XL by the plug-in of Pillow's, if that is installed."""
    try:
        import pillow_jxl  # noqa: F401
    except ImportError:
        return {}
    return {f"JPEG XL {effort}": pillow("JXL", lossless=True, effort=effort) for effort in (7, 9)}


def _works(encode):
    try:
        return bool(encode(np.zeros((8, 8, 3), np.uint8)))
    except Exception:  # whatever a build of theirs lacks
        return False


@cache
def rivals():
    """The codecs installed: name -> the file, in bytes, that it makes of (H, W, 3) uint8.

    The number of JPEG XL is its effort. JPEG-LS has no transform of colours.
    """
    png = pillow("PNG", optimize=True)
    webp = pillow("WEBP", lossless=True, quality=100, method=6)
    return {"PNG": png, "WebP": webp} | _pillow_jxl() | _imagecodecs()


def quick():
    """The names of those that take no minutes."""
    return [name for name in rivals() if name not in SLOW]


def bits_by(images, names):
    """The bits of each of images (B, 3, H, W), uint8, by the rivals of these names: (names, B)."""
    # a copy, as arrays of one pixel may have strides that some encoders refuse
    pixels = images.permute(0, 2, 3, 1).cpu().numpy().copy()
    return [[8 * len(rivals()[name](x)) for x in pixels] for name in names]


def sizes(batches, names=None):
    """Bits per dimension by the rivals of these names, or by all: means over images (B, 3, H, W), uint8."""
    rates = {}
    for name in names or rivals():
        bar = tqdm(batches, name, delay=1, leave=False, disable=None)
        each = [bits / batch[0].numel() for batch in bar for bits in bits_by(batch, [name])[0]]
        rates[name] = sum(each) / len(each)
    return rates
