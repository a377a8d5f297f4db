"""Where pictures come from: imitations, on crops, of what happened to many of them before they were stored.

Most pictures were not born as RGB of full resolution: their chroma was halved by a camera, a video codec, a
JPEG file or a scanner's format, and their luma lay on a lattice of its own. What decodes them leaves traces,
which a codec can learn to see.
"""

import io

import numpy as np
from PIL import Image

# Red's and blue's share of luma. Source: ITU-R BT.601 and BT.709.
LUMA = (0.299, 0.114), (0.2126, 0.0722)
JPEG_SHARE = 0.4
QUALITIES = 90, 100
JPEG_FULL, JPEG_HALVED = 0, 2
# The widest lattices, in tones: of luma (PhotoYCC's is 1.36) and of chroma (2.2 and 1.8 there).
LUMA_STEP, CHROMA_STEP = 1.5, 2.2
# Taps at n - 1 .. n + 2 for a sample half-way between n and n + 1.
LINEAR, CUBIC = (0, 1 / 2, 1 / 2, 0), (-1 / 16, 9 / 16, 9 / 16, -1 / 16)


def imitate(image, rng):
    """A picture (H, W, 3), uint8, as if it came from elsewhere: JPEG, or halved chroma. rng: numpy's."""
    return jpeg(image, rng) if rng.random() < JPEG_SHARE else halved_chroma(image, rng)


def jpeg(image, rng):
    """Encoded as JPEG of high quality and decoded: uint8 (H, W, 3)."""
    file = io.BytesIO()
    quality, subsampling = int(rng.integers(*QUALITIES)), int(rng.choice((JPEG_FULL, JPEG_HALVED)))
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.array(Image.open(file))


def halved_chroma(image, rng):
    """Luma and chroma, each on a lattice, chroma at half the resolution, back to RGB: uint8 (H, W, 3).

    Drawn: the matrix, the lattices, the phase of the chroma samples, how they are taken and interpolated.
    """
    red, blue = LUMA[rng.integers(len(LUMA))]
    green = 1 - red - blue
    r, g, b = np.moveaxis(image.astype(np.float32), -1, 0)
    y = red * r + green * g + blue * b
    luma_step, chroma_step = rng.uniform(1, (LUMA_STEP, CHROMA_STEP))
    phase, taps, averaged = rng.integers(2, size=2), (LINEAR, CUBIC)[rng.integers(2)], rng.random() < 0.5

    def through_half(chroma):
        for axis in (0, 1):
            chroma = _halve_and_back(chroma, axis, phase[axis], taps, averaged, chroma_step)
        return chroma

    y = luma_step * np.round(y / luma_step)
    r, b = y + through_half(r - y), y + through_half(b - y)
    g = (y - red * r - blue * b) / green
    return np.clip(np.round(np.stack([r, g, b], -1)), 0, 255).astype(np.uint8)


def _halve_and_back(plane, axis, phase, taps, averaged, step):
    """Every other sample of an axis, or local averages there, on a lattice; those between, interpolated."""
    plane = np.moveaxis(plane, axis, -1)
    phase = min(phase, plane.shape[-1] - 1)
    if averaged:
        wide = np.pad(plane, ((0, 0), (1, 1)), "edge")
        plane = (wide[:, :-2] + 2 * plane + wide[:, 2:]) / 4
    kept = step * np.round(plane[:, phase::2] / step)
    # one sample more on the left where that is where the first of those between lies
    wide, out = np.pad(kept, ((0, 0), (1 + phase, 2)), "edge"), np.empty_like(plane)
    out[:, phase::2] = kept
    count = out[:, 1 - phase :: 2].shape[1]
    if count:
        out[:, 1 - phase :: 2] = sum(tap * wide[:, k : k + count] for k, tap in enumerate(taps))
    return np.moveaxis(out, -1, axis)
