"""The band-wise prior: each channel of each detail band under a mixture of discretised logistics, given the
coarse band, the bands already known and the channels of its own band already known.

A level takes nine distributions one after the other, each of them for all positions at once. Where details
are pixels, networks may see them less the mean of the coarse samples next to them ("differences"): the same
to those that have learned to see it, but learned much sooner.
Everything is computed in steps between integers, with scales in octaves.
Source: the hierarchy is method 3's; mixtures and channels in turn as in PixelCNN++ (arXiv 1701.05517), bands
in turn as in SReC (arXiv 2004.02872).
"""

import math
from functools import partial

import torch
from torch import nn

from source import fused, mixing
from source.distribution import FixedMixture, Mixture
from source.networks import Compand, Conv, Joined
from source.prior import Part
from source.units import MAX_OCTAVE, MIN_OCTAVE
from utils.arithmetic.crew import in_tiles
from utils.arithmetic.fixed import Seen, check_finite
from utils.arithmetic.integers import MIDDLE, STEPS, round_through
from utils.arithmetic.passes import (
    ACTIVATION_BITS,
    FINE_BITS,
    INPUT_MAX,
    SAMPLE_BITS,
    WIDE_BITS,
    compand,
    samples_of,
)
from utils.arithmetic.polyphase import between, crop, extend

# Levels with a bias of their own: the finest ones; the last serves all deeper levels.
LEVELS = 5
# Rows of a strip: see FixedBandPrior.
STRIP = 64
# Strips whose features are begun before they are needed.
AHEAD = 2
# No companded value is larger; with it, a level's bias stays within 16 bits, in units of 2^-6.
COMPANDED_MAX, LEVEL_MAX = 16.0, 2**14
# A factor on outputs, so that they move as fast as the weights inside; on the first layers' initial weights.
OUTPUT_GAIN, INPUT_GAIN = 4.0, 2.0
# Scales start at 2^2 steps.
START_OCTAVES = 2.0


class Residual(nn.Module):
    """h + conv1x1(ReLU(conv3x3(ReLU(h)))): (B, width, H, W)."""

    def __init__(self, width):
        super().__init__()
        self.wide = Conv(width, width, 3, rectify=True)
        self.last = Conv(width, width, 1, gain=0.1, rectify=True)

    def forward(self, h):
        """See the class."""
        return self.last(self.wide(h), onto=h)

    def freeze(self, peaks):
        """A FixedResidual."""
        return FixedResidual(self.wide.freeze(peaks), self.last.freeze(peaks))


class FixedResidual(nn.Module):
    """A Residual in integers."""

    def __init__(self, wide, last):
        super().__init__()
        self.wide, self.last = wide, last

    forward = Residual.forward


class Mixer(nn.Module):
    """A network's outputs to a mixture for one channel.

    Scales are s = 2^octaves, means base + s m: m has the same size in smooth and in rough places.
    """

    def __init__(self, components):
        super().__init__()
        self.components = components

    def fields(self, outputs):
        """(B, 3 K, H, W) -> base-2 logits, m and octaves: (K, B, 1, H, W) each."""
        logits, mean, octaves = (OUTPUT_GAIN * outputs).unflatten(1, (3, -1, 1)).movedim(2, 0).unbind(2)
        return logits, mean, octaves.clamp(MIN_OCTAVE, MAX_OCTAVE)

    def forward(self, outputs, base):
        """outputs (B, 3 K, H, W), base (B, 1, H, W) -> Mixture of (K, B, 1, H, W)."""
        logits, mean, octaves = self.fields(outputs.to(base.dtype))
        mean = base + mean * torch.exp2(octaves)
        return Mixture(logits * math.log(2), mean / STEPS, (octaves - math.log2(STEPS)) * math.log(2))


class Band(nn.Module):
    """What one detail band is given: `features` of all that is known before it, then `mixture` by channel.

    index: which of ur, dl, dr; before: the number of bands known, the coarse one included; details,
    differences: see BandPrior. Means of pixels start as the mean of the nearest coarse ones, others at 0.
    """

    def __init__(
        self, index, before, width, blocks, components, details="pixels", channels=3, differences=False
    ):
        super().__init__()
        known, self.channels = before * channels, channels
        slow = channels if differences else 0
        self.base = Conv(known, channels, 3, precise=True, slow=slow)
        self.enter = Conv(known + channels, width, 3, INPUT_GAIN, precise=True, slow=slow)
        self.compand = Compand()
        self.trunk = Conv(width, width, 1, 0.5, rectify=True)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        hidden = max(width // 2, 1)
        self.hidden = Joined(Conv(width, hidden, 1, rectify=True) for _ in range(channels))
        self.beside = nn.ModuleList(Conv(2 * c, hidden, 1) for c in range(1, channels))
        self.linear = nn.ModuleList(Conv(c, 1, 1, 0.0, precise=True) for c in range(1, channels))
        self.out = nn.ModuleList(Conv(hidden, 3 * components, 1, 0.05, rectify=True) for _ in range(channels))
        self.mixer = Mixer(components)
        with torch.no_grad():
            self.base.weight.zero_()
            self.base.bias.fill_(0 if details == "pixels" or differences else -MIDDLE)
            if details == "pixels" and not differences:
                taps = between(torch.eye(9).view(9, 3, 3), index)[:, 1, 1].view(3, 3)
                self.base.weight[range(channels), range(channels)] = taps
            spread = torch.linspace(-1, 1, components) if components > 1 else torch.zeros(1)
            for out in self.out:
                _, mean, octaves = out.bias.view(3, components)
                mean.copy_(spread / OUTPUT_GAIN)
                octaves.copy_((START_OCTAVES + spread) / OUTPUT_GAIN)

    def features(self, trunk, planes):
        """What a band's distributions are made of.

        trunk (B, width, H, W), known planes (B, known, H, W) -> base (B, C, H, W), and of each channel hidden
        (B, width / 2, H, W).
        """
        base = self.base(planes)
        # in quarters, as integers see it, or what is learned of its fractions is lost there
        seen = round_through(base * (1 << SAMPLE_BITS)) / (1 << SAMPLE_BITS)
        entered = self.compand(self.enter(torch.cat([planes, seen], 1)))
        return base, self.hidden(self.blocks(self.trunk(trunk, onto=entered)))

    def mixture(self, base, hidden, values):
        """The distribution of the channel that comes after `values`, (B, c, H, W) around 0."""
        c = values.shape[1]
        hidden, mean = hidden[c], base[:, c : c + 1]
        if c:
            errors = (values - base[:, :c]).clamp(-INPUT_MAX, INPUT_MAX)
            companded = self.compand(errors)
            hidden = hidden + self.beside[c - 1](torch.cat([companded, companded.abs()], 1))
            mean = mean + self.linear[c - 1](errors)
        return self.mixer(self.out[c](hidden), mean)

    def freeze(self, peaks):
        """A FixedBand. Raises ValueError if the weights are too large."""
        return FixedBand(self, peaks)


class FixedBand(nn.Module):
    """A Band in integers; the layers that read its features, one for each channel, are one.

    Maps are (B, H, W, C): see utils/arithmetic/passes.py for what they count.
    """

    def __init__(self, band, peaks):
        super().__init__()
        self.base, self.enter = band.base.freeze_wide(), band.enter.freeze_wide()
        self.trunk = band.trunk.freeze(peaks)
        self.blocks = nn.Sequential(*(block.freeze(peaks) for block in band.blocks))
        self.hidden = band.hidden.freeze(peaks)
        none = {layer: torch.zeros(layer.in_channels, dtype=torch.float64) for layer in band.beside}
        ends = {layer: Seen(zeros + COMPANDED_MAX, zeros, 1) for layer, zeros in none.items()}
        self.beside = nn.ModuleList(layer.freeze(ends) for layer in band.beside)
        self.linear = nn.ModuleList(layer.freeze_wide(of_samples=False) for layer in band.linear)
        self.out = nn.ModuleList(layer.freeze(peaks, out_units=FINE_BITS) for layer in band.out)

    def features(self, trunk, planes, margins):
        """What a band's distributions are made of.

        trunk: (B, H, W, width) uint8, as self.trunk reads it; planes: (B, H, W, known) int16, samples;
        margins: see in_tiles. Returns base (B, H, W, C) int32 and hidden (B, H, W, C * width / 2) int16.
        """
        if fused.serves(planes, self.blocks, self.base, self.enter):
            return fused.features(self, trunk, planes, margins)
        base = self.base(planes)
        entered = compand(self.enter(torch.cat([planes, to_samples(base)], -1)))
        return base, self.hidden(self.blocks(self.trunk.convolve(trunk, onto=entered)))

    def mixture(self, base, hidden, planes, first, channel, near=None):
        """The FixedMixture of a channel, given those before it: planes[..., first : first + channel].

        near: what is to be added to its means, samples (B, H, W).
        """
        if fused.is_used(planes):
            return FixedMixture(*fused.mixture(self, base, hidden, planes, first, channel, near))
        out = self.out[channel]
        layers = (self.beside[channel - 1], self.linear[channel - 1]) if channel else None
        q, mean = mixing.look_beside(base, hidden, planes, first, channel, layers, out)
        if near is not None:
            mean = mean + (near.int() << WIDE_BITS - SAMPLE_BITS)
        return FixedMixture(*mixing.mixture_fields(out.convolve(q), mean))


class BandPrior(nn.Module):
    """A trunk that sees the coarse band alone, then a network for each band; levels share all but a bias.

    width: channels of the networks; blocks: residual blocks of each band, and twice as many of the trunk;
    components: of each mixture; order: of the bands, 0 ur, 1 dl, 2 dr; differences: see the module;
    details: what they are, as levels of a pyramid say: "pixels", or "lifted", differences already, or "luma",
    so in the first channel, in others pixels less means of the nearest coarse ones, rounded.
    """

    def __init__(
        self, width, blocks, components, order=(0, 1, 2), details="pixels", channels=3, differences=False
    ):
        super().__init__()
        self.order, self.channels = order, channels
        self.differences, self.details = differences, details
        self.enter = Conv(channels, width, 3, INPUT_GAIN, precise=True, slow=channels if differences else 0)
        self.compand = Compand()
        self.level = nn.Parameter(torch.zeros(LEVELS, width, 1, 1))
        self.trunk = nn.Sequential(*(Residual(width) for _ in range(2 * blocks)))
        self.bands = nn.ModuleList(
            Band(index, k + 1, width, blocks, components, details, channels, differences)
            for k, index in enumerate(order)
        )

    def parts(self, height):
        """See source/prior.py."""
        return [Part(band, slice(c, c + 1)) for band in self.order for c in range(self.channels)]

    def forward(self, coarse, level, detail=None):
        """See source/prior.py."""
        size = coarse.shape[-2:]
        planes, state = _around(coarse), None
        near = origins(self, planes, 1) if self.differences else None
        entered = self.compand(self.enter(planes))
        trunk = self.trunk(entered + self.level[min(level, LEVELS - 1)].to(entered.dtype))

        def given(known):
            nonlocal planes, state
            if known:
                values = _around(known[-1])
                if self.differences:
                    before = near[:, len(known) - 1, None]
                    values = (values - crop(before, values.shape[-2:])).clamp(-INPUT_MAX, INPUT_MAX)
                planes = torch.cat([planes, extend(values, size, 0)], 1)
            band, channel = divmod(len(known), self.channels)
            if not channel:
                state = self.bands[band].features(trunk, planes)
            mixture = self.bands[band].mixture(*state, planes[:, planes.shape[1] - channel :])
            if self.differences:
                mixture = mixture._replace(mean=mixture.mean + near[:, len(known), None] / STEPS)
            return mixture

        return given

    def freeze(self, peaks):
        """A FixedBandPrior; peaks: see utils/arithmetic/fixed.py, observe. May raise ValueError."""
        return FixedBandPrior(self, peaks)


def _around(band):
    """Samples around 0, within what is exact."""
    return (band - MIDDLE).clamp(-INPUT_MAX, INPUT_MAX)


def origins(prior, coarse, unit):
    """What a prior counts samples of bands from where it sees differences: (B, C bands, H, W), in its order.

    coarse: samples of the coarse band around the middle of their range, (B, C, H, W), times `unit`, 1 or, in
    integers, 4. Of pixels, the means of those next to each of a band's; of differences, 0, which lies below
    that middle, or, where they are from such means, rounded, what that left.
    """
    means = torch.cat([between(coarse, band) for band in prior.order], 1)
    if prior.details == "pixels":
        return means
    near = torch.full_like(means, -MIDDLE * unit)
    if prior.details == "luma":
        left = ((means + unit / 2) % unit - unit / 2).to(means.dtype)
        left[:, :: prior.channels] = 0
        near += left
    return near


class FixedBandPrior(nn.Module):
    """A BandPrior in integers: its distributions are FixedMixture.

    Parts are strips of rows, so that what networks make of a level need not be kept for all of it: the
    channels of a strip, then those of the next, band by band.
    """

    def __init__(self, prior, peaks):
        super().__init__()
        check_finite(prior.level)
        self.order, self.channels = prior.order, prior.channels
        self.differences, self.details = prior.differences, prior.details
        self.enter = prior.enter.freeze_wide()
        level = torch.round(prior.level[..., 0, 0].detach().double().cpu() * (1 << ACTIVATION_BITS))
        self.register_buffer("level", level.clamp(-LEVEL_MAX, LEVEL_MAX).to(torch.int16))
        self.trunk = nn.Sequential(*(block.freeze(peaks) for block in prior.trunk))
        self.bands = nn.ModuleList(band.freeze(peaks) for band in prior.bands)

    def check(self):
        """Raise ValueError unless the bands read the trunk alike, and sums with a level's bias have room."""
        if self.channels > 3:
            raise ValueError(f"{self.channels} channels: compiled passes know two before the last")
        first = self.bands[0].trunk
        if any(not torch.equal(band.trunk.shift, first.shift) for band in self.bands):
            raise ValueError("damaged: the bands read the trunk each in its own units")
        if any(layer.shift.any() for band in self.bands for layer in band.beside):
            raise ValueError("damaged: what channels tell the next ones is read in other units than theirs")
        # 16 bits have no absolute value of their least
        if self.level.int().abs().max() > LEVEL_MAX:
            raise ValueError("damaged: a level's bias is too large")

    def parts(self, height):
        """See source/prior.py."""
        strips = [slice(top, min(top + STRIP, height)) for top in range(0, height, STRIP)]
        return [
            Part(band, slice(c, c + 1), rows)
            for band in self.order
            for rows in strips
            for c in range(self.channels)
        ]

    def forward(self, coarse, level, detail=None, channels=None):
        """See source/prior.py; of channels from the given number on, no distributions are computed."""
        return _FixedLevel(self, coarse, level, detail, self.channels if channels is None else channels)

    def look(self, planes, margins, level):
        """Samples of the coarse band around 0, int16 -> the trunk as the bands read it, uint8.

        margins: see in_tiles.
        """
        level = min(level, LEVELS - 1)
        if fused.serves(planes, self.trunk, self.enter):
            return (fused.look(self, planes, level, margins),)
        entered = compand(self.enter(planes))
        return (self.bands[0].trunk.quantise(self.trunk(entered + self.level[level])),)


class _FixedLevel:
    """What networks make of one level, part by part; the features of strips to come are begun in time.

    A strip waits for those rows of the bands before that it sees, not for all of them; with its features come
    the mixtures that need no values of its own band: all that are wanted, where the details are known.

    planes: (B, H, W, C * bands) int16, samples of the coarse band, then of the bands in the prior's order, as
    far as they are known, all as large as the coarse band. near: what these are counted from, or None.
    wanted: of how many channels there are to be distributions.
    """

    def __init__(self, prior, coarse, level, detail, wanted):
        self.prior, self.parts, self.wanted = prior, prior.parts(coarse.shape[-2]), wanted
        batch, channels, *self.size = coarse.shape
        count = channels * (1 + len(prior.order))
        self.planes = torch.zeros((batch, *self.size, count), dtype=torch.int16, device=coarse.device)
        self.near = None
        self._fill(0, slice(0, self.size[0]), coarse)
        if prior.differences:
            samples = self.planes[..., :channels].movedim(-1, 1)
            self.near = origins(prior, samples, 1 << SAMPLE_BITS).movedim(1, -1)
        self.foreseen = detail is not None
        if self.foreseen:
            for band in prior.order:
                self._fill(self._first(band), slice(0, self.size[0]), detail[band])
        look, halo = partial(prior.look, level=level), 1 + len(prior.trunk)
        (self.trunk,) = in_tiles(look, halo, self.planes[..., :channels], margins=True).result()
        self.begun, self.state, self.mixtures = {}, None, ()

    def __call__(self, known):
        """The distribution of the next part; known: the values of those before."""
        index, channels = len(known), self.prior.channels
        if index and not self.foreseen:
            before = self.parts[index - 1]
            self._fill(self._first(before.band) + before.channels.start, before.rows, known[-1])
        part = self.parts[index]
        if not part.channels.start:
            for later in range(index, min(index + (1 + AHEAD) * channels, len(self.parts)), channels):
                if later not in self.begun and self._may_begin(later, part):
                    self.begun[later] = self._begin(later)
            self.state, self.mixtures = self.begun.pop(index).result()
        if part.channels.start < len(self.mixtures):
            return self.mixtures[part.channels.start]
        return self._mixture(part, self.state) if part.channels.start < self.wanted else None

    def _layers(self, part):
        return self.prior.bands[self.prior.order.index(part.band)]

    def _first(self, band):
        """Where the planes of a band begin."""
        return self.prior.channels * (1 + self.prior.order.index(band))

    def _halo(self, part):
        """Rows around a part that its features depend on."""
        return 2 + len(self._layers(part).blocks)

    def _may_begin(self, later, part):
        """Whether all that a strip's features depend on is known where `part`, of a strip before, is next."""
        later = self.parts[later]
        bands = self._first(later.band) - self._first(part.band)
        if self.foreseen or not bands:
            return True
        # of the band of `part`, the rows above it are known, of bands after that none
        return bands == self.prior.channels and later.rows.stop + self._halo(later) <= part.rows.start

    def _begin(self, index):
        """The features of the strip that begins with this part, with the mixtures that need no more."""
        part, count = self.parts[index], self.wanted if self.foreseen else 1
        known, rows = self.planes[..., : self._first(part.band)], (part.rows.start, part.rows.stop)

        def then(*state):
            return state, [self._mixture(one, state) for one in self.parts[index : index + count]]

        function, halo = self._layers(part).features, self._halo(part)
        return in_tiles(function, halo, self.trunk, known, rows=rows, margins=True, then=then)

    def _mixture(self, part, state):
        """The distribution of a part, of a strip with these features."""
        first, channel, near = self._first(part.band), part.channels.start, None
        if self.near is not None:
            near = self.near[:, part.rows, :, first - self.prior.channels + channel]
        return self._layers(part).mixture(*state, self.planes[:, part.rows], first, channel, near)

    def _fill(self, first, rows, values):
        """Write values (B, c, h, w) into the planes from `first` on; doubles a missing last row or column."""
        (channels, height, width), top = values.shape[1:], rows.start
        target, near = self.planes[..., first : first + channels], None
        if self.near is not None:
            start = first - self.prior.channels
            near = self.near[:, top : top + height, :width, start : start + channels]
        samples_of(values.movedim(1, -1), near, target[:, top : top + height, :width])
        if 0 < width < self.size[1]:
            target[:, top : top + height, width] = target[:, top : top + height, width - 1]
        if height < rows.stop - top and top + height:
            target[:, top + height] = target[:, top + height - 1]


def to_samples(means):
    """Means, wide, int32 -> the nearest samples in quarters, int16."""
    shift = WIDE_BITS - SAMPLE_BITS
    return (means + (1 << shift - 1) >> shift).to(torch.int16)
