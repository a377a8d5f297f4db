"""Images <-> bytes by symbol frequencies, in place of the prior's scales.

r = z - baseline, where the baseline is the prior's rounded means: of a band given those before it, and of the
top, the mean of its mixture's means. A stream holds one Histogram of all r of an image, for which the image
pays, then under it all r, coarse to fine.
Source: method 6.
"""

import numpy as np
import torch

from source.prior import against, walk
from source.rans import Encoder
from source.tables import Histogram
from utils.arithmetic.polyphase import channels_last, depth, level_sizes


def less_mode(distribution, values):
    """Values minus the prior's rounded means."""
    return values - distribution.mode()


def _top_baseline(mixture):
    """The mean of the components' means, rounded, halves upwards."""
    return mixture._replace(weight=torch.ones_like(mixture.weight)).mode()


@torch.no_grad()
def differences(model, images):
    """Images (B, 3, H, W) of one size -> all r: (B, 3 H W) int32. model: frozen. Inverse: restore."""
    x, bands = model.enter(images), []
    for i in range(depth(*x.shape[-2:])):
        size = x.shape[-2:]
        x, detail = model.pyramid.level(i).split(x)
        bands[:0] = against(model.detail, x, i, size, detail, less_mode)
    bands.insert(0, x - _top_baseline(model.top(len(x), x.shape[-2:])))
    return torch.cat([band.to(torch.int32).flatten(1) for band in bands], 1).cpu().numpy()


@torch.no_grad()
def restore(model, r, size):
    """All r (B, 3 H W) -> images (B, 3, H, W), uint8; size: (H, W). Inverse: differences."""
    sizes = level_sizes(*size, depth(*size))
    r, start = torch.from_numpy(r).to(model.device, model.dtype), 0

    def following(like):
        """The next r, in the shape of what they are to be added to."""
        nonlocal start
        start, end = start + like[0].numel(), start
        return channels_last(r[:, end:start].view(len(r), *like.shape[1:]))

    top = _top_baseline(model.top(len(r), sizes[-1]))
    x = top + following(top)
    for i in reversed(range(len(sizes) - 1)):

        def take(distribution, band, channels):
            mode = distribution.mode()
            return mode + following(mode)

        x = model.pyramid.level(i).merge(x, walk(model.detail, x, i, sizes[i], take))
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
