"""Images <-> bytes by symbol frequencies, in place of the prior's scales.

r = z - baseline, where the baseline is the prior's rounded means: of a band given those before it, and of the
top, the mean of its mixture's means. A stream holds one Histogram of all r of an image, for which the image
pays, then under it all r, coarse to fine.
Source: method 6.
"""

import numpy as np
import torch

from flow.codec.stream import pixels
from flow.pyramid import finest
from source.prior import parts_in_turn
from source.rans import Encoder
from source.tables import Histogram
from utils.arithmetic.crew import crew
from utils.arithmetic.polyphase import channels_last, depth, level_sizes


def _top_baseline(mixture):
    """The mean of the components' means, rounded, halves upwards."""
    return mixture._replace(weight=torch.ones_like(mixture.weight)).mode()


def _in_turn(part):
    """The r of a part, (B, c, h, w) -> (B, c h w) int32."""
    return part.to(torch.int32).flatten(1)


@torch.no_grad()
@crew()
def differences(model, images):
    """Images (B, 3, H, W) of one size -> all r: (B, 3 H W) int32. model: frozen. Inverse: restore."""
    x, parts = model.from_images(images), []
    levels = model.pyramid.analyse(x)
    for level, x, detail in levels:
        given = parts_in_turn(model.detail, x, level, detail)
        parts[:0] = [_in_turn(values - distribution.mode()) for _, distribution, values in given]
    parts.insert(0, _in_turn(x - _top_baseline(model.top(len(x), x.shape[-2:]))))
    return torch.cat(parts, 1).cpu().numpy()


@torch.no_grad()
@crew()
def restore(model, r, size):
    """All r (B, 3 H W) -> images (B, 3, H, W), uint8; size: (H, W). Inverse: differences."""
    sizes = level_sizes(*size, depth(*size))
    # the means of a prior may be larger than float32 has integers
    r, start = torch.from_numpy(r).to(model.device, torch.float64), 0

    def add_next(baseline):
        """Add the next r to a baseline."""
        nonlocal start
        start, end = start + baseline[0].numel(), start
        return baseline + channels_last(r[:, end:start].view(len(r), *baseline.shape[1:]))

    top = add_next(_top_baseline(model.top(len(r), sizes[-1])))
    return pixels(model, finest(model.synthesise(top, sizes, lambda given: add_next(given.mode()))))


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
