"""Streams whose distributions are corrected to the picture: strips of one level, encoded and decoded.

What corrections are, source/corrections.py tells; where their sets stand in the stream, docs/format.md.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

import source.bands
from source import corrections
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
        self.known = Known(integers(coarse), [detail[band].shape[-2:] for band in order])
        strips = corrections.GROUP // (coarse.shape[-1] * source.bands.STRIP)
        self.rows = max(strips, 1) * source.bands.STRIP

    def starts(self, part):
        """Whether a group starts with this part."""
        return part.rows.start % self.rows == 0

    def place(self, part, shape):
        """The Place of a part with values (h, w); where a band begins, nothing is corrected yet."""
        place = Place(self.order.index(part.band), part.channels.start, part.rows.start, *shape)
        if not place.top:
            self.sets[place.channel] = corrections.Set.zero(self.known.count(place))
        return place


class EncodedStrips(_Strips):
    """Keeps strips until their group is complete and its corrections can be chosen."""

    def __init__(self, encoder, effort, *arguments):
        super().__init__(*arguments)
        self.encoder, self.look, self.strips = encoder, LEAST_LOOK << effort, []

    def take(self, part, fields, values):
        """Take a strip of a channel: weight, mean and scale, (K, N), and values (h, w)."""
        if self.starts(part) and not part.channels.start:
            self.flush()
        mixture, place = Corrigible(*fields), self.place(part, values.shape)
        features = self.known.features(place, mixture.centre)
        self.known.learn(place, values, mixture.centre)
        self.strips.append((place.channel, mixture, features, values.reshape(-1)))

    def flush(self):
        """Push the strips there are, with their corrections."""
        chosen, settings = {}, self.settings[:2]
        for channel in dict.fromkeys(strip[0] for strip in self.strips):
            alike = [strip[1:] for strip in self.strips if strip[0] == channel]
            pixels = sum(values.size for *_, values in alike)
            before = self.sets[channel]
            chosen[channel] = submit(corrections.choose, alike, settings, self.look, before, pixels=pixels)
        for channel, mixture, features, values in self.strips:
            if channel in chosen:
                kind, self.sets[channel] = chosen.pop(channel).result()
                self.sets[channel].push(kind, self.encoder)
            fields = self.sets[channel].apply(mixture, lambda features=features: features)
            self.encoder.push(Mixture(*fields, *settings), values)
        self.strips = []


class DecodedStrips(_Strips):
    """Reads strips; a generator of Wanted: see walk."""

    def __init__(self, image, *arguments):
        super().__init__(*arguments)
        self.image = image

    def read(self, part, fields, shape, likely):
        """The values, (h, w), of a strip of a channel with the mixtures weight, mean and scale, (K, N)."""
        mixture, place = Corrigible(*fields), self.place(part, shape)
        if self.starts(part):
            wanted = partial(Wanted, self.image, likely=None)
            self.sets[place.channel] = yield from corrections.read(self.sets[place.channel], wanted)
        fields = self.sets[place.channel].apply(mixture, lambda: self.known.features(place, mixture.centre))
        values = yield Wanted(self.image, Mixture(*fields, *self.settings[:2]), likely)
        self.known.learn(place, values.reshape(shape), mixture.centre)
        return values.reshape(*shape, 1)
