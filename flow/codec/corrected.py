"""Streams whose distributions are made to suit the picture: strips of one level, encoded and decoded.

What corrections are, source/corrections.py tells, and how mixtures adapt, source/adaptation.py; where sets of
corrections stand in the stream, docs/format.md.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

import source.bands
from source import adaptation, corrections
from source.adaptation import Adaptation
from source.corrections import Corrigible, Known, Place
from source.tables import Mixture
from utils.arithmetic.crew import submit

# Positions of a group at which effort 0 would look for corrections.
LEAST_LOOK = 1 << 9


class Wanted(NamedTuple):
    """A group of symbols that is to be read from the stream of an image, the coder's distribution of them.

    likely: gives what they may be if the stream is cut; None: 0.
    """

    image: int
    table: Mixture
    likely: Callable | None


def is_large(size):
    """Whether a level with a coarse band of this (height, width) has corrections."""
    return size[0] * size[1] >= corrections.LEAST


def is_middling(size):
    """Whether mixtures of a level with a coarse band of this (height, width) adapt."""
    return size[0] * size[1] >= adaptation.LEAST


def suited(size, settings):
    """Whether a level with a coarse band of this (height, width) has corrections; whether its mixtures adapt.

    If either, it is coded by what is here.
    """
    return settings.corrected and is_large(size), settings.adaptive and is_middling(size)


def integers(x):
    """(..., C, H, W) integer-valued -> int32 array (..., H, W, C), as channels-last tensors lie in memory."""
    return x.to(torch.int32).movedim(-3, -1).contiguous().cpu().numpy()


def fields_of(field):
    """(K, B, 1, H, W) -> B arrays (K, H * W), int32."""
    return field[..., 0, :, :].to(torch.int32).flatten(-2).movedim(0, 1).contiguous().cpu().numpy()


class _Strips:
    """An image's strips at one level.

    coarse: its coarse band, (C, H, W); order: of the bands, the prior's; detail: ur, dl, dr, for their sizes.
    """

    def __init__(self, coarse, order, detail, settings):
        self.order, self.settings, self.sets = order, settings, {}
        channels, *size = coarse.shape
        self.known = self.adaptation = None
        corrected, adaptive = suited(size, settings)
        if corrected:
            self.known = Known(integers(coarse), [detail[band].shape[-2:] for band in order])
        if adaptive:
            self.adaptation = Adaptation(size, order, channels, settings.weighing, settings.nearby)
        strips = corrections.GROUP // (coarse.shape[-1] * source.bands.STRIP)
        self.rows = max(strips, 1) * source.bands.STRIP

    def starts(self, part):
        """Whether a group starts with this part."""
        return part.rows.start % self.rows == 0

    def place(self, part, shape):
        """The Place of a part with values (h, w); where a band begins, nothing is corrected yet."""
        place = Place(self.order.index(part.band), part.channels.start, part.rows.start, *shape)
        if not place.top and self.known:
            self.sets[place.channel] = corrections.Set.zero(self.known.count(place))
        return place

    def mixture(self, place, fields):
        """The coder's distribution of a strip, whose symbols are coded before those of the next."""
        if self.adaptation:
            return self.adaptation.mixture(place, fields, self.settings[:2])
        return Mixture(*fields, *self.settings[:2])


class EncodedStrips(_Strips):
    """Keeps strips until their group is complete and its corrections can be chosen."""

    def __init__(self, encoder, effort, *arguments):
        super().__init__(*arguments)
        self.encoder, self.look, self.strips = encoder, LEAST_LOOK << effort, []

    def take(self, part, fields, values):
        """Take a strip of a channel: weight, mean and scale, (K, N), and values (h, w)."""
        if self.starts(part) and not part.channels.start:
            self.flush()
        place, symbols = self.place(part, values.shape), values.reshape(-1)
        if not self.known:
            self.encoder.push(self.mixture(place, fields), symbols)
            return
        mixture = Corrigible(*fields)
        features = self.known.features(place, mixture.centre)
        self.known.learn(place, values, mixture.centre)
        self.strips.append((place, mixture, features, symbols))

    def flush(self):
        """Push the strips there are, with their corrections."""
        chosen, settings = {}, self.settings[:2]
        for channel in dict.fromkeys(place.channel for place, *_ in self.strips):
            alike = [strip for place, *strip in self.strips if place.channel == channel]
            pixels = sum(values.size for *_, values in alike)
            before = self.sets[channel]
            chosen[channel] = submit(corrections.choose, alike, settings, self.look, before, pixels=pixels)
        for place, mixture, features, values in self.strips:
            channel = place.channel
            if channel in chosen:
                kind, self.sets[channel] = chosen.pop(channel).result()
                self.sets[channel].push(kind, self.encoder)
            fields = self.sets[channel].apply(mixture, lambda features=features: features)
            self.encoder.push(self.mixture(place, fields), values)
        self.strips = []


class DecodedStrips(_Strips):
    """Reads strips; a generator of Wanted: see walk."""

    def __init__(self, image, *arguments):
        super().__init__(*arguments)
        self.image = image

    def read(self, part, fields, shape, likely):
        """The values, (h, w), of a strip of a channel with the mixtures weight, mean and scale, (K, N)."""
        place = self.place(part, shape)
        if self.known:
            mixture = Corrigible(*fields)
            if self.starts(part):
                wanted = partial(Wanted, self.image, likely=None)
                self.sets[place.channel] = yield from corrections.read(self.sets[place.channel], wanted)
            fields = self.sets[place.channel].apply(
                mixture, lambda: self.known.features(place, mixture.centre)
            )
        values = yield Wanted(self.image, self.mixture(place, fields), likely)
        if self.known:
            self.known.learn(place, values.reshape(shape), mixture.centre)
        return values.reshape(*shape, 1)
