"""Images <-> bytes by symbol frequencies, in place of the prior's scales.

r = z - baseline, where the baseline is the prior's rounded means: of a band given those before it, and of the
top, the mean of its mixture's means. A stream holds one Histogram of all r of an image, for which the image
pays, then under it all r, coarse to fine.
Source: method 6.
"""

import numpy as np
import torch

from source.logistic import MEAN_STEPS, cropped
from source.rans import Encoder
from source.tables import Histogram
from utils.polyphase import band_sizes, channels_last, depth, level_sizes


def _top_baseline(mixture):
    """The mean of the components' means, rounded, halves upwards: exact, as it stays in integers."""
    unit = MEAN_STEPS * len(mixture.mean)
    return (2 * mixture.mean.sum(0) + unit) // (2 * unit)


@torch.no_grad()
def differences(model, images):
    """Images (B, 3, H, W) of one size -> all r: (B, 3 H W) int32. model: frozen. Inverse: restore."""
    x, bands = model.enter(images), []
    for i in range(depth(*x.shape[-2:])):
        x, detail = model.pyramid.level(i).split(x)
        given = model.detail(x, i)
        bands[:0] = [
            band - cropped(given(detail[:k]), band.shape[-2:]).mode() for k, band in enumerate(detail)
        ]
    bands.insert(0, x - _top_baseline(model.top(len(x), x.shape[-2:])))
    return torch.cat([band.to(torch.int32).flatten(1) for band in bands], 1).cpu().numpy()


@torch.no_grad()
def restore(model, r, size):
    """All r (B, 3 H W) -> images (B, 3, H, W), uint8; size: (H, W). Inverse: differences."""
    sizes = level_sizes(*size, depth(*size))
    details = [band_sizes(*s)[1:] for s in sizes[:-1]]
    shapes = [(3, *s) for s in (sizes[-1], *(s for level in reversed(details) for s in level))]
    r = torch.from_numpy(r).to(model.device, model.dtype).split([c * h * w for c, h, w in shapes], 1)
    bands = (channels_last(band.unflatten(1, shape)) for band, shape in zip(r, shapes))
    x = _top_baseline(model.top(len(r[0]), sizes[-1])) + next(bands)
    for i in reversed(range(len(details))):
        given, known = model.detail(x, i), ()
        for shape in details[i]:
            known = (*known, cropped(given(known), shape).mode() + next(bands))
        x = model.pyramid.level(i).merge(x, known)
    return model.leave(x).clamp(0, 255).to(torch.uint8)


def encode(model, images, precision=24):
    """Images (B, 3, H, W) of one size -> B Encoders, whose `finish` makes the bytes. Inverse: decode."""
    encoders = []
    for r in differences(model, images):
        encoder, table = Encoder(), Histogram.of(r, precision)
        table.write(encoder)
        encoder.push(table, r)
        encoders.append(encoder)
    return encoders


def decode(model, decoders, size, precision=24):
    """Decoders of B streams -> images (B, 3, H, W), uint8; size: (H, W). Inverse: encode."""
    total = 3 * size[0] * size[1]
    r = [decoder.pop(Histogram.read(decoder, total, precision), total) for decoder in decoders]
    return restore(model, np.stack(r), size)


def theory(model, images, precision=24):
    """The bits of each image: the entropy of its r, and what its histogram takes: (2, B)."""
    bits = []
    for r in differences(model, images):
        encoder, table = Encoder(), Histogram.of(r, precision)
        table.write(encoder)
        bits.append((-(table.counts * np.log2(table.counts / r.size)).sum(), encoder.bits))
    return np.array(bits).T
