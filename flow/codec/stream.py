"""Images <-> bytes under a frozen model, coarse to fine in one stream.

A stream holds groups of symbols: the top, then for each level, coarsest first, the parts of its details in
the prior's order, each under its distribution given what is already known. The first part of a stream is a
smaller image: the coarse band of a level.
"""

from typing import NamedTuple

import numpy as np
import torch

from flow.pyramid import finest
from source.prior import given_parts
from source.rans import Encoder, Truncated
from source.tables import Mixture
from utils.arithmetic.crew import TILE, crew, in_crew, submit
from utils.arithmetic.fixed import EXACT
from utils.arithmetic.integers import MIDDLE
from utils.arithmetic.polyphase import channels_last, depth, level_sizes


class Settings(NamedTuple):
    """How probabilities become integers, and what is coded: both sides must agree. See source/tables.py.

    luma: the first channel alone, where `has_luma_alone`: others are MIDDLE in coarse bands, `flat` of their
    level in details.
    """

    nbins: int = 4096
    precision: int = 24
    luma: bool = False


DEFAULT = Settings()
# Rows whose colours are turned at a time.
ROWS = 256


def _integers(x):
    """(..., C, H, W) integer-valued -> int32 array (..., H, W, C), as channels-last tensors lie in memory."""
    return x.to(torch.int32).movedim(-3, -1).contiguous().cpu().numpy()


def _tables(distribution, settings):
    """The coder's distribution of one image of a batch after the other."""
    return Mixture(*map(_integers, distribution), settings.nbins, settings.precision).each()


@torch.no_grad()
@crew()
def has_luma_alone(model, images):
    """Whether the first channel of grey images (B, 3, H, W) is all there is to code: others are even."""
    x = model.from_images(images)
    if (x[:, 1:] != MIDDLE).any():
        return False
    for level, coarse, detail in model.pyramid.analyse(x):
        flat = model.pyramid.level(level).flat
        if (coarse[:, 1:] != MIDDLE).any() or any((band[:, 1:] != flat).any() for band in detail):
            return False
    return True


def _coded(settings, channels=slice(None)):
    """Which of the channels of a part are coded, of its own."""
    return slice(None) if not settings.luma else slice(0, 0) if channels.start else slice(0, 1)


def _channels(model, height):
    """The channels of the parts of a level, in turn; height: that of its coarse band."""
    return [part.channels for part in model.detail.parts(height)]


def coded_channels(model, sizes, settings):
    """Yield which of its channels are coded, of the top and of each part after it, and what others are.

    sizes: (height, width) of all levels, as level_sizes has them.
    """
    yield _coded(settings), MIDDLE
    for level in reversed(range(len(sizes) - 1)):
        for channels in _channels(model, sizes[level + 1][0]):
            yield _coded(settings, channels), model.pyramid.level(level).flat


@torch.no_grad()
@crew()
def encode(model, images, settings=DEFAULT, watch=None, progress=None):
    """Images (B, 3, H, W) of one size -> a list of B Encoders, still open; `finish` makes their bytes.

    model: frozen. watch: called with (level, coarse band) on the way, as decode_levels has them.
    progress: called with how many values of an image are done since, by any thread.
    Inverse: decode.
    """
    top, levels = model.from_images(images), []
    for level, coarse, detail in model.pyramid.analyse(top):
        if any(band.numel() and band.abs().amax() >= EXACT for band in (coarse, *detail)):
            raise ValueError("this model's transform leaves what can be inverted: its weights are too large")
        levels.append((level, coarse, detail))
        top = coarse
        if watch:
            watch(level + 1, coarse)
    encoders = [Encoder() for _ in images]
    _push(encoders, model.top(len(top), top.shape[-2:]), top, settings, _coded(settings))
    if progress:
        progress(top[0].numel())
    # where its bands are no larger than a tile, a level is one thread's work, beside the larger ones
    small = [n for n, (_, coarse, _) in enumerate(levels) if max(coarse.shape[-2:]) <= TILE]
    coded = {
        n: submit(_encode_level, model, *levels[n], settings, progress, pixels=levels[n][1][:, 0].numel())
        for n in small
    }
    large = {
        n: _encode_level(model, *level, settings, progress)
        for n, level in enumerate(levels)
        if n not in coded
    }
    for n in reversed(range(len(levels))):
        for encoder, part in zip(encoders, large[n] if n in large else coded[n].result()):
            encoder.extend(part)
    return encoders


@torch.no_grad()
def _encode_level(model, level, coarse, detail, settings, progress):
    """The Encoders of one level's details."""
    encoders = [Encoder() for _ in coarse]
    parts = given_parts(model.detail, coarse, level, detail)
    for (distribution, values), channels in zip(parts, _channels(model, coarse.shape[-2])):
        _push(encoders, distribution, values, settings, _coded(settings, channels))
        if progress:
            progress(values[0].numel())
    return encoders


def _push(encoders, distribution, values, settings, coded):
    """Give each encoder the values of its image, of the channels that are coded."""
    distribution, values = _of(distribution, coded), values[:, coded]
    if not values.shape[1]:
        return
    for encoder, table, symbols in zip(encoders, _tables(distribution, settings), _integers(values)):
        encoder.push(table, symbols)


def _of(distribution, channels):
    """The distribution of some channels."""
    return type(distribution)(*(field[..., channels, :, :] for field in distribution))


def pop_band(decoders, distribution, settings, partial, coded, shift=0):
    """A band (B, C, h, w) from a batch of decoders, and how many values some image lacks.

    coded: its channels in the streams, and what others are.
    partial: what a stream lacks is the mode, and `shift` more, in place of raising Truncated.
    """
    bands, lacking = [], 0
    whole, (channels, flat) = distribution.mean[0], coded
    distribution = _of(distribution, channels)
    if not distribution.mean.shape[-3]:
        return torch.full(whole.shape, flat), 0
    for image, (decoder, table) in enumerate(zip(decoders, _tables(distribution, settings))):
        try:
            bands.append(decoder.pop(table))
        except Truncated as cut:
            if not partial:
                raise
            band = _integers(distribution.mode()[image]) + np.int32(shift)
            band.reshape(-1)[: len(cut.symbols)] = cut.symbols
            bands.append(band)
            lacking = max(lacking, band.size - len(cut.symbols))
    band = torch.from_numpy(np.stack(bands)).movedim(-1, -3)
    others = band.new_full((len(band), whole.shape[-3] - band.shape[1], *band.shape[2:]), flat)
    return torch.cat([band, others], 1), lacking


@torch.no_grad()
def decode_levels(model, decoders, size, settings=DEFAULT, skip=0, partial=False, progress=None, shift=0):
    """Decoders of B streams -> the coarse band of each level, coarsest first; inverse of encode.

    model: frozen, on the device to compute on. size: (height, width) of the images.
    skip: how many of the finest levels to leave unread.
    partial: take the prior's word for what a cut stream lacks, in place of raising Truncated.
    progress: called with how many values of an image were read since. shift: added to what a stream lacks.
    Yields the level (how many times halved the band is; 0: the images as the pyramid sees them), the band
    (B, 3, h, w), and whether all of it was in the streams. Its `pixels` are a picture of it.
    """
    sizes, complete = level_sizes(*size, depth(*size)), True
    coded = coded_channels(model, sizes, settings)

    def pop(distribution):
        nonlocal complete
        values, lacking = pop_band(decoders, distribution, settings, partial, next(coded), shift)
        complete = complete and not lacking
        if progress:
            progress(values[0].numel() - lacking)
        return channels_last(values.to(device=model.device, dtype=model.dtype))

    with crew():
        top = pop(model.top(len(decoders), sizes[-1]))
    for level, x in in_crew(model.synthesise(top, sizes, pop, skip)):
        yield level, x, complete


@crew()
def decode(model, decoders, size, settings=DEFAULT, partial=False):
    """The last of decode_levels: images (B, 3, H, W), uint8."""
    return pixels(model, finest(decode_levels(model, decoders, size, settings, partial=partial)))


def pixels(model, x):
    """What the pyramid sees -> images, uint8, stored channels last; some rows at a time, to save memory."""
    images = channels_last(x.new_empty(x.shape, dtype=torch.uint8))
    for top in range(0, x.shape[-2], ROWS):
        rows = slice(top, top + ROWS)
        images[:, :, rows] = model.to_images(x[:, :, rows]).clamp(0, 255)
    return images
