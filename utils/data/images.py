"""Image files and images as uint8 tensors (3, H, W)."""

import warnings
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE

from utils.box import BOX, ROOT

PHOTOS = BOX / "photos"
IN_THE_BOX, BOX_SIDE = PHOTOS / "roman-colosseum.png", 512
MAX_PIXELS = 1 << 27  # of one image
# What is the whole process's, filters of warnings and Pillow's limits, is changed by one thread at a time.
PROCESS = RLock()
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def image_files(folder, suffixes=SUFFIXES):
    """List the image files under a folder, subfolders included, sorted by path.

    Files are known by their suffix, large or small letters; hidden ones are left out.
    """
    files = (path for path in Path(folder).rglob("*") if path.suffix.lower() in suffixes)
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


@contextmanager
def warned():
    """Within: warnings go into the list that it yields, and nowhere else."""
    with PROCESS, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def opened(file):
    """Pillow's image of a file, without a word on its size."""
    with warned():
        return Image.open(file)


def read_rgb(path):
    """Read an image file as a uint8 tensor (3, H, W): red, green, blue.

    Grey and palette images are widened, an alpha channel is dropped, an EXIF orientation is applied.
    Raises ValueError if Pillow cannot read the file, if it has too many pixels, or more than 8 bits a sample.
    """
    refusal = None
    with readable(path), opened(path) as image:
        if image.width * image.height > MAX_PIXELS:
            refusal = f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} can be read"
        elif is_deep(image):
            refusal = "more than 8 bits per sample; convert it to 8 bits first"
        else:
            rgb = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if refusal:
        raise ValueError(f"{path}: {refusal}")
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()


@contextmanager
def readable(path):
    """Within: what a file makes Pillow fail with is a ValueError, the first line of its cause included."""
    try:
        yield
    except MemoryError:
        raise  # no fault of the file
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image that Pillow can read") from error
    except Exception as error:  # each of Pillow's decoders fails in its own ways
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not an image that Pillow can read: {cause}") from error


def picture(path=None):
    """Read the picture of -img FILE; None: the middle 512x512 of a photograph in the box.

    Returns uint8 (3, H, W). Raises ValueError, in one line, as read_rgb; for a missing file it names the one
    in the box.
    """
    if path is None:
        image = read_rgb(IN_THE_BOX)
        top, left = ((side - BOX_SIDE) // 2 for side in image.shape[1:])
        return image[:, top : top + BOX_SIDE, left : left + BOX_SIDE].contiguous()
    if not Path(path).exists():
        name = IN_THE_BOX.relative_to(ROOT)
        raise ValueError(f"{path}: no such file; {name} is there")
    return read_rgb(path)


def is_deep(image):
    """Tell whether the samples of an opened PNG, TIFF or PNM file have more than 8 bits."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return True
    if max(getattr(image, "tag_v2", {}).get(BITSPERSAMPLE, (1,))) > 8:
        return True
    # Pillow cuts 16-bit colour to 8 bits without a word: only how it is going to decode the file tells.
    return any(
        ";16" in str(args) or (codec.startswith("ppm") and isinstance(args, tuple) and args[1] > 255)
        for codec, _, _, args in getattr(image, "tile", ())
    )


def halve(x):
    """Halve images by 2x2 box means, halves rounded up: floor((a + b + c + d) / 4 + 1/2).

    x: (..., H, W) uint8; an odd last row or column is dropped.
    Returns (..., H // 2, W // 2) uint8.
    """
    height, width = x.shape[-2] // 2, x.shape[-1] // 2
    blocks = x[..., : 2 * height, : 2 * width].unflatten(-1, (width, 2)).unflatten(-3, (height, 2))
    return ((blocks.sum((-3, -1), dtype=torch.int16) + 2) >> 2).to(torch.uint8)
