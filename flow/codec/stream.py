"""Images <-> bytes under a frozen model, coarse to fine in one stream.

A stream holds groups of symbols: the top, then for each level, coarsest first, the parts of its details in
the prior's order, each under its distribution given what is already known. The first part of a stream is a
smaller image: the coarse band of a level.
"""

from functools import partial as partial_of
from typing import NamedTuple

import numpy as np
import torch

from flow.codec.corrected import (
    DecodedStrips,
    EncodedStrips,
    Wanted,
    fields_of,
    integers,
    is_large,
    is_middling,
    suited,
)
from flow.codec.planes import DEFAULT_EFFORT
from flow.pyramid import finest
from source.prior import empty_details, parts_in_turn
from source.rans import Encoder, Truncated
from source.tables import Mixture
from utils.arithmetic.crew import TILE, crew, in_crew, submit
from utils.arithmetic.fixed import EXACT
from utils.arithmetic.integers import MIDDLE
from utils.arithmetic.polyphase import channels_last, depth, level_sizes


class Settings(NamedTuple):
    """How probabilities become integers, and what is coded: both sides must agree. See source/tables.py.

    luma: the first channel alone, where `has_luma_alone`: others are MIDDLE in coarse bands, `flat` of their
    level in details. corrected: large levels have corrections, see source/corrections.py. halved: of the
    finest level's details the first channel alone, where `can_be_planes`: others are interpolated. adaptive:
    mixtures of all but small levels adapt, see source/adaptation.py; weighing: their weights do so, too, and
    the scales of each component; nearby: and all that is learned nearby.
    """

    nbins: int = 4096
    precision: int = 24
    luma: bool = False
    corrected: bool = False
    halved: bool = False
    adaptive: bool = False
    weighing: bool = False
    nearby: bool = False

    def adapting(self, adapts=True):
        """The same where mixtures adapt, in all that they can, or not at all."""
        return self._replace(adaptive=adapts, weighing=adapts, nearby=adapts)


DEFAULT = Settings()
# Rows whose colours are turned at a time.
ROWS = 256


def _tables(distribution, settings):
    """The coder's distribution of one image of a batch after the other."""
    return Mixture(*map(integers, distribution), settings.nbins, settings.precision).each()


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


def _goes_by_bands(model):
    """Whether the prior of details is of one band and channel after the other, in strips."""
    return hasattr(model.detail, "order")


def can_correct(model, size=None):
    """Whether images, or one of this (height, width), have levels to correct: large, of a band-wise prior."""
    return _goes_by_bands(model) and (size is None or is_large(level_sizes(*size, 1)[-1]))


def can_adapt(model, size=None):
    """Whether images, or one of this (height, width), have mixtures that can adapt: of a band-wise prior."""
    return _goes_by_bands(model) and (size is None or is_middling(level_sizes(*size, 1)[-1]))


def can_be_planes(model):
    """Whether luma and chroma of other kinds, halved or not, may take the place of the model's."""
    return model.ycocg and model.pyramid.level(0).keeps_chroma


def _alone(settings, level):
    """Whether the first channel alone is coded; level: None of the top."""
    return settings.luma or (settings.halved and level == 0)


def _coded(settings, level=None, channels=slice(None)):
    """Which of the channels of a part are coded, of its own; level: None of the top."""
    return slice(None) if not _alone(settings, level) else slice(0, 0 if channels.start else 1)


def _parts(model, settings, coarse, level, detail, known=True):
    """parts_in_turn; a prior of channels in turn leaves out those that are not coded."""
    luma = {"channels": 1} if _goes_by_bands(model) and _alone(settings, level) else {}
    return parts_in_turn(model.detail, coarse, level, detail, known, **luma)


@torch.no_grad()
@crew()
def encode(
    model, images, settings=DEFAULT, watch=None, progress=None, effort=DEFAULT_EFFORT, are_planes=False
):
    """Images (B, 3, H, W) of one size -> a list of B Encoders, still open; `finish` makes their bytes.

    model: frozen. watch: called with (level, coarse band) on the way, as decode_levels has them.
    progress: called with how many values of an image are done since, by any thread.
    effort: 1 .. 9: at how many positions to look for corrections, twice as many with each.
    are_planes: images are what the pyramid is to see, where `can_be_planes`. Inverse: decode.
    """
    top, levels = images.to(model.dtype) if are_planes else model.from_images(images), []
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
        n: submit(
            _encode_level, model, *levels[n], settings, progress, effort, pixels=levels[n][1][:, 0].numel()
        )
        for n in small
    }
    large = {
        n: _encode_level(model, *level, settings, progress, effort)
        for n, level in enumerate(levels)
        if n not in coded
    }
    for n in reversed(range(len(levels))):
        for encoder, part in zip(encoders, large[n] if n in large else coded[n].result()):
            encoder.extend(part)
    return encoders


@torch.no_grad()
def _encode_level(model, level, coarse, detail, settings, progress, effort):
    """The Encoders of one level's details."""
    encoders, group = [Encoder() for _ in coarse], None
    if any(suited(coarse.shape[-2:], settings)):
        bands = zip(*detail)
        group = [
            EncodedStrips(encoder, effort, one, model.detail.order, bands_of_one, settings)
            for encoder, one, bands_of_one in zip(encoders, coarse, bands)
        ]
    for part, distribution, values in _parts(model, settings, coarse, level, detail):
        coded = _coded(settings, level, part.channels)
        if group is None or not values[:, coded].numel():
            _push(encoders, distribution, values, settings, coded)
        else:
            for one, *fields, symbols in zip(group, *map(fields_of, distribution), integers(values)):
                one.take(part, fields, symbols[..., 0])
        if progress:
            progress(values[0].numel())
    for one in group or ():
        one.flush()
    return encoders


def _push(encoders, distribution, values, settings, coded):
    """Give each encoder the values of its image, of the channels that are coded."""
    values = values[:, coded]
    if not values.shape[1]:
        return
    distribution = _of(distribution, coded)
    for encoder, table, symbols in zip(encoders, _tables(distribution, settings), integers(values)):
        encoder.push(table, symbols)


def _of(distribution, channels):
    """The distribution of some channels."""
    return type(distribution)(*(field[..., channels, :, :] for field in distribution))


def walk(model, batch, size, settings, skip=0, progress=None):
    """What decoding takes, as a generator of Wanted, whose symbols are to be sent, and of (level, band).

    batch: of how many images; others as in decode_levels. Bands come coarsest first.
    """
    sizes = level_sizes(*size, depth(*size))
    coarse = yield from _band(model, model.top(batch, sizes[-1]), settings, _coded(settings), MIDDLE)
    if progress:
        progress(coarse[0].numel())
    yield len(sizes) - 1, coarse
    for level in reversed(range(skip, len(sizes) - 1)):
        layer = model.pyramid.level(level)
        detail = yield from _details(model, coarse, level, sizes[level], settings, layer.flat, progress)
        coarse = layer.merge(coarse, detail)
        yield level, coarse


def _details(model, coarse, level, size, settings, flat, progress):
    """The details (ur, dl, dr) of a level; a generator of Wanted."""
    detail, readers, halved = empty_details(coarse, size), None, settings.halved and not level
    if halved:
        for number, band in enumerate(detail):
            band.copy_(model.pyramid.level(0).smooth(coarse, number, band.shape[-2:]))
    if any(suited(coarse.shape[-2:], settings)):
        order = model.detail.order
        readers = [
            DecodedStrips(n, one, order, bands, settings)
            for n, (one, bands) in enumerate(zip(coarse, zip(*detail)))
        ]
    for part, distribution, values in _parts(model, settings, coarse, level, detail, known=False):
        coded = _coded(settings, level, part.channels)
        if not values[:, coded].shape[1]:
            if not halved:
                values.fill_(flat)
        elif readers is None or not values.numel():
            values.copy_((yield from _band(model, distribution, settings, coded, values if halved else flat)))
        else:
            band = []
            for reader, *fields in zip(readers, *map(fields_of, distribution)):
                likely = partial_of(_mode, distribution, reader.image)
                band.append((yield from reader.read(part, fields, values.shape[-2:], likely)))
            values.copy_(_on_device(model, band))
        if progress:
            progress(values[0].numel())
    return detail


def _band(model, distribution, settings, coded, others):
    """A band (B, C, h, w) of these distributions: `coded` channels from the streams, others as `others` are.

    others: a value, or a band.
    """
    whole, distribution, bands = distribution.mean[0], _of(distribution, coded), []
    others = torch.broadcast_to(torch.as_tensor(others, dtype=model.dtype, device=whole.device), whole.shape)
    for image, table in enumerate(_tables(distribution, settings)):
        bands.append((yield Wanted(image, table, partial_of(_mode, distribution, image))))
    band = _on_device(model, bands)
    return channels_last(torch.cat([band, others[:, band.shape[1] :]], 1))


def _mode(distribution, image):
    return integers(distribution.mode()[image])


def _on_device(model, bands):
    """Arrays (h, w, C) -> a batch (B, C, h, w), as the model takes it."""
    band = torch.from_numpy(np.stack(bands)).movedim(-1, -3)
    return channels_last(band.to(device=model.device, dtype=model.dtype))


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
    walking = walk(model, len(decoders), size, settings, skip, progress)
    yield from in_crew(_read(walking, decoders, partial, progress, shift))


def _read(walking, decoders, partial, progress, shift):
    """What decode_levels yields of a walk, which gets its symbols from the decoders."""
    symbols, complete = None, True
    while True:
        try:
            item = walking.send(symbols)
        except StopIteration:
            return
        symbols = None
        if not isinstance(item, Wanted):
            yield *item, complete
            continue
        symbols, lacking = _popped(decoders[item.image], item, partial, shift)
        complete = complete and not lacking
        if lacking and progress and item.likely:
            progress(-lacking)


def _popped(decoder, wanted, partial, shift):
    """The symbols wanted, and how many of them the stream lacks; see decode_levels."""
    try:
        return decoder.pop(wanted.table), 0
    except Truncated as cut:
        if not partial:
            raise
        symbols = np.zeros(wanted.table.shape, np.int32)
        if wanted.likely:
            symbols += wanted.likely().reshape(symbols.shape) + np.int32(shift)
        symbols.reshape(-1)[: len(cut.symbols)] = cut.symbols
        return symbols, symbols.size - len(cut.symbols)


@crew()
def decode(model, decoders, size, settings=DEFAULT, partial=False):
    """The last of decode_levels: images (B, 3, H, W), uint8."""
    return pixels(model, finest(decode_levels(model, decoders, size, settings, partial=partial)))


def pixels(model, x, to_images=None):
    """What the pyramid sees -> images, uint8, stored channels last; some rows at a time, to save memory.

    to_images: in place of the model's.
    """
    to_images = to_images or model.to_images
    images = channels_last(x.new_empty(x.shape, dtype=torch.uint8))
    for top in range(0, x.shape[-2], ROWS):
        rows = slice(top, top + ROWS)
        images[:, :, rows] = to_images(x[:, :, rows]).clamp(0, 255)
    return images
