"""What other lossless codecs make of the same images."""

from io import BytesIO

import numpy as np
from PIL import Image
from tqdm import tqdm


def _pillow(name, **options):
    def size(pixels):
        file = BytesIO()
        Image.fromarray(pixels).save(file, name, **options)
        return file.tell()

    return size


def _jpegxl():
    """JPEG XL by the library that is installed; none without."""
    try:
        import imagecodecs

        imagecodecs.jpegxl_encode(np.zeros((1, 1, 3), np.uint8), lossless=True)
    except (ImportError, RuntimeError):  # imagecodecs may be built without it
        pass
    else:
        return {"JPEG XL": lambda pixels: len(imagecodecs.jpegxl_encode(pixels, lossless=True))}
    try:
        import pillow_jxl  # noqa: F401
    except ImportError:
        return {}
    return {"JPEG XL": _pillow("JXL", lossless=True)}


# name -> how many bytes it needs for (H, W, 3) uint8
RIVALS = {
    "PNG": _pillow("PNG", optimize=True),
    "WebP": _pillow("WEBP", lossless=True, quality=100, method=6),
} | _jpegxl()


def sizes(batches):
    """Bits per dimension by each of RIVALS: the mean over images (B, 3, H, W), uint8."""
    images = [pixels for batch in batches for pixels in batch.permute(0, 2, 3, 1).contiguous().numpy()]
    return {
        name: sum(8 * size(x) / x.size for x in tqdm(images, name, delay=1, leave=False)) / len(images)
        for name, size in RIVALS.items()
    }
