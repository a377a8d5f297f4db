"""Images <-> bytes under a frozen model, coarse to fine in one stream.

encode and decode walk through the same groups in the same order: the top, then for each level, coarsest
first, the parts of its details in the prior's order, each under its distribution given what is already known.
The first part of a stream is a smaller image.
"""

from typing import NamedTuple

import numpy as np
import torch

from source.prior import against, walk
from source.rans import Encoder, Truncated
from source.tables import Mixture
from utils.arithmetic.polyphase import channels_last, depth, extend, level_sizes
from utils.data.images import halve


class Settings(NamedTuple):
    """How probabilities become integers: both sides must agree. See source/tables.py."""

    nbins: int = 4096
    precision: int = 24


DEFAULT = Settings()


def _integers(x):
    """(..., C, H, W) integer-valued -> int32 array (..., H, W, C), as channels-last tensors lie in memory."""
    return x.to(torch.int32).movedim(-3, -1).contiguous().cpu().numpy()


def _group(distribution, values):
    return tuple(map(_integers, distribution)), _integers(values)


def _table(distribution, image, settings):
    """The coder's distribution of one image of a batch: arrays (K, B, ...)."""
    return Mixture(*(field[:, image] for field in distribution), *settings)


@torch.no_grad()
def encode(model, images, settings=DEFAULT, watch=None):
    """Images (B, 3, H, W) of one size -> a list of B Encoders, still open; `finish` makes their bytes.

    model: frozen. watch: called with (level, coarse band) on the way, as stages has them.
    Inverse: decode.
    """
    x = model.enter(images)
    groups = []
    for i in range(depth(*x.shape[-2:])):
        size = x.shape[-2:]
        x, detail = model.pyramid.level(i).split(x)
        groups[:0] = against(model.detail, x, i, size, detail, _group)
        if watch:
            watch(i + 1, x)
    groups.insert(0, _group(model.top(len(x), x.shape[-2:]), x))
    encoders = [Encoder() for _ in images]
    for distribution, symbols in groups:
        for image, encoder in enumerate(encoders):
            encoder.push(_table(distribution, image, settings), symbols[image])
    return encoders


def _pop(decoders, distribution, settings, partial):
    """A band (B, C, h, w) from a batch of decoders, and whether all of it was there.

    partial: what a stream lacks is the mode, in place of raising Truncated.
    """
    fields, bands, whole = [_integers(field) for field in distribution], [], True
    for image, decoder in enumerate(decoders):
        try:
            bands.append(decoder.pop(_table(fields, image, settings)))
        except Truncated as cut:
            if not partial:
                raise
            band, whole = _integers(distribution.mode()[image]), False
            band.reshape(-1)[: len(cut.symbols)] = cut.symbols
            bands.append(band)
    return torch.from_numpy(np.stack(bands)).movedim(-1, -3), whole


@torch.no_grad()
def stages(model, decoders, size, settings=DEFAULT, skip=0, partial=False):
    """Decoders of B streams -> the coarse band of each level, coarsest first; inverse of encode.

    model: frozen, on the device to compute on. size: (height, width) of the images.
    skip: how many of the finest levels to leave unread.
    partial: take the prior's word for what a cut stream lacks, in place of raising Truncated.
    Yields the level (how many times halved the band is; 0: the images as the pyramid sees them), the band
    (B, 3, h, w), and whether all of it was in the streams. Its `pixels` are the images only at level 0.
    """
    sizes = level_sizes(*size, depth(*size))
    like = dict(device=model.device, dtype=model.dtype)
    top, whole = _pop(decoders, model.top(len(decoders), sizes[-1]), settings, partial)
    x = top.to(**like)
    yield len(sizes) - 1, x, whole

    def pop(distribution, band, channels):
        nonlocal whole
        part, there = _pop(decoders, distribution, settings, partial)
        whole = whole and there
        return channels_last(part.to(**like))

    for i in reversed(range(skip, len(sizes) - 1)):
        detail = walk(model.detail, x, i, sizes[i], pop)
        x = model.pyramid.level(i).merge(x, detail)
        del detail
        yield i, x, whole


def decode(model, decoders, size, settings=DEFAULT, partial=False):
    """The last of the stages: images (B, 3, H, W), uint8."""
    *_, (_, x, _) = stages(model, decoders, size, settings, partial=partial)
    return pixels(model, x)


def pixels(model, x):
    """What the pyramid sees -> images, uint8."""
    return model.leave(x).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def reduced(model, x, level, size):
    """The coarse band of a level -> images (B, 3, h, w), uint8, of (height, width) = size halved so often.

    A learned coarse band need not have the image's colours. It is therefore brought to full size, with the
    prior's means for details, and averaged over 2x2 pixels.
    """
    for i, target in reversed(list(enumerate(level_sizes(*size, level)[:-1]))):
        x = model.refine(x, i, target)
    images = pixels(model, x)
    for height, width in level_sizes(*size, level)[1:]:
        images = halve(extend(images.float(), (2 * height, 2 * width), 0).to(torch.uint8))
    return images
