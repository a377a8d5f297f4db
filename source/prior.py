"""The hierarchical prior: the top under a mixture, the details of each level given its coarse band.

Every prior of details is a module with
    given = prior(coarse, level, known) level 0 is the finest; known: the details, where they are, or None
    distribution = given(known)         of each part, once and in turn; known: a list of those before
    prior.parts(height)                 what the parts are: a list of Part; height: of the coarse band
so that a prior may let a part depend on those before it; one with an `order` of bands, whose parts are strips
of channels, is called with `channels` too, where only so many are coded. All who code, draw or judge details
take the parts from `parts_in_turn`, cropped to their band: distributions have the size of the coarse band.
`start` is where means start, in the networks' range.
Source: method 3.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from source.distribution import FixedMixture, Mixture, cropped
from source.networks import ConvNet
from source.units import MEAN_BITS, MIN_OCTAVE, SCALES_PER_OCTAVE, WEIGHT_SUM_BITS
from utils.arithmetic.fixed import check_finite
from utils.arithmetic.integers import MIDDLE, STEPS, centre
from utils.arithmetic.polyphase import band_sizes, channels_last, level_sizes

LOGSCALE_START = -3.0
# Networks' range to the coder's integers (source/units.py): means of steps 1/64, 32 scales to the octave.
MEAN_FACTOR, MEAN_OFFSET = STEPS << MEAN_BITS, MIDDLE << MEAN_BITS
SCALE_FACTOR = SCALES_PER_OCTAVE / math.log(2)
SCALE_OFFSET = SCALES_PER_OCTAVE * (math.log2(STEPS) - MIN_OCTAVE)
FIXED_MAX = 2**31 - 1
TOP_WEIGHTS = 1 << WEIGHT_SUM_BITS


class Part(NamedTuple):
    """A part of a level's details: of a band, 0 ur, 1 dl, 2 dr, these channels, in these rows."""

    band: int
    channels: slice = slice(None)
    rows: slice = slice(None)


def parts_in_turn(prior, coarse, level, detail, known=True, **wanted):
    """Yield (part, distribution, values) of each part of details (ur, dl, dr), in the prior's order.

    values: a view, (B, c, h, w). known: if not, details are to be filled in, each part before the next.
    wanted: what the prior takes to leave distributions out, as `channels` of source/bands.py: None in place.
    """
    given, before = prior(coarse, level, detail if known else None, **wanted), []
    for part in prior.parts(coarse.shape[-2]):
        values, distribution = part_of(detail, part), given(before)
        yield part, distribution and cropped(distribution, values.shape[-2:]), values
        before.append(values)


def empty_details(coarse, size):
    """Details (ur, dl, dr) to fill in, which with a coarse band make what has this (height, width)."""
    shapes = [(*coarse.shape[:2], *band) for band in band_sizes(*size)[1:]]
    return tuple(channels_last(coarse.new_empty(shape)) for shape in shapes)


def part_of(detail, part):
    """The view of a Part in details (ur, dl, dr): (B, c, h, w)."""
    return detail[part.band][:, part.channels, part.rows]


BANDS_IN_TURN = tuple(Part(band) for band in range(3))


class TopPrior(nn.Module):
    """A mixture of nmixing discretised logistics for each value of the last 2x2 block.

    Means start spread by 1/8 around 0; clamp > 0 limits their absolute value.
    A larger top (a shallow pyramid) repeats the block, a smaller one uses its upper left part.
    """

    def __init__(self, nmixing, clamp=-1.0, channels=3):
        super().__init__()
        spread = (torch.arange(nmixing) - (nmixing - 1) / 2) / 8
        self.clamp = clamp
        self.logits = nn.Parameter(torch.zeros(nmixing, channels, 2, 2))
        self.mean = nn.Parameter(spread.view(-1, 1, 1, 1).repeat(1, channels, 2, 2))
        self.logscale = nn.Parameter(torch.full((nmixing, channels, 2, 2), LOGSCALE_START))

    def fields(self):
        """Logits, means and logscales: (nmixing, channels, 2, 2) each."""
        mean = self.mean.clamp(-self.clamp, self.clamp) if self.clamp > 0 else self.mean
        return Mixture(self.logits, mean, self.logscale)

    def forward(self, batch, size):
        """The Mixture of a batch of tops of the given (height, width)."""
        return _tiled(self.fields(), batch, size)

    def freeze(self):
        """A FixedTop: the same in the integers of the coder."""
        check_finite(*self.parameters())
        logits, mean, logscale = (f.detach().double().cpu() for f in self.fields())
        weight = torch.round(torch.softmax(logits, 0) * TOP_WEIGHTS)
        mean, scale = _rounded(mean, MEAN_FACTOR, MEAN_OFFSET), _rounded(logscale, SCALE_FACTOR, SCALE_OFFSET)
        return FixedTop(weight, mean, scale)


def _rounded(value, factor, offset):
    return torch.round(value * factor + offset).clamp(-FIXED_MAX, FIXED_MAX)


class FixedTop(nn.Module):
    """A frozen TopPrior: weight, mean and scale as integers, (nmixing, channels, 2, 2)."""

    def __init__(self, weight, mean, scale):
        super().__init__()
        self.register_buffer("weight", weight.to(torch.int32))
        self.register_buffer("mean", mean.to(torch.int32))
        self.register_buffer("scale", scale.to(torch.int32))

    def forward(self, batch, size):
        """The FixedMixture of a batch of tops of the given (height, width)."""
        return _tiled(FixedMixture(self.weight, self.mean, self.scale), batch, size)


def _tiled(mixture, batch, size):
    """A mixture for the 2x2 block, repeated to the given (height, width), for a batch."""
    rows, columns = (torch.arange(n, device=mixture.mean.device) % 2 for n in size)
    fields = (f[..., rows[:, None], columns].unsqueeze(1) for f in mixture)
    return type(mixture)(*(f.expand(-1, batch, -1, -1, -1) for f in fields))


class FixedIndependentPrior(nn.Module):
    """A frozen prior whose bands do not depend on each other: its distributions are FixedMixture.

    mean, scale: (coarse band in steps around 0, level) -> nine channels (B, 9, h, w), int32.
    """

    def __init__(self, mean, scale):
        super().__init__()
        self.mean, self.scale = mean, scale

    def parts(self, height):
        """See the module."""
        return BANDS_IN_TURN

    def forward(self, coarse, level, detail=None):
        """See the module."""
        fields = (
            part(coarse - MIDDLE, level).chunk(len(BANDS_IN_TURN), 1) for part in (self.mean, self.scale)
        )
        bands = [FixedMixture.logistic(*both) for both in zip(*fields)]
        return lambda known: bands[len(known)]


class FixedConstants(nn.Module):
    """Nine integers for all positions, or for each, of a level or of all levels: round(factor x + offset)."""

    def __init__(self, values, factor, offset):
        super().__init__()
        self.levels = len(values)
        for level, value in enumerate(values):
            check_finite(value)
            fixed = _rounded(value.detach().double().cpu(), factor, offset)
            self.register_buffer(f"level{level}", fixed.to(torch.int32))

    def forward(self, v, level):
        """v (B, C, h, w) -> (B, 9, h, w). Raises ValueError where the values are for other positions."""
        value = getattr(self, f"level{level if self.levels > 1 else 0}", None)
        if value is None or value.shape[-2:] not in ((1, 1), v.shape[-2:]):
            _refuse_size(self.buffers())
        return value.expand(len(v), -1, *v.shape[-2:])


def _refuse_size(levels):
    """levels: what is known of each level; of 2x2 pixels and less, there are none."""
    sizes = [f"{height}x{width}" for _, height, width in (values.shape for values in levels)]
    which = f"of which a coarse band has {sizes[0]}" if sizes else "which has no levels"
    raise ValueError(f"a model with -diffDetail knows one size only, {which}")


class _IndependentPrior(nn.Module):
    """A prior whose bands do not depend on each other: one mean and one logscale for each detail value."""

    def parts(self, height):
        """See the module."""
        return BANDS_IN_TURN

    def _given(self, mean, logscale):
        """The bands' distributions from nine channels of each, (B, 9, h, w)."""
        bands = [Mixture.logistic(*both) for both in zip(mean.chunk(3, 1), logscale.chunk(3, 1))]
        return lambda known: bands[len(known)]

    def freeze(self, peaks):
        """A FixedIndependentPrior; peaks: see utils/arithmetic/fixed.py, observe. May raise ValueError."""
        return FixedIndependentPrior(
            self._freeze(self.mean, peaks, MEAN_FACTOR, MEAN_OFFSET),
            self._freeze(self.logscale, peaks, SCALE_FACTOR, SCALE_OFFSET),
        )

    @staticmethod
    def _freeze(values, peaks, factor, offset):
        return FixedConstants(values if isinstance(values, nn.ParameterList) else [values], factor, offset)


class ConditionalPrior(_IndependentPrior):
    """The paper's: mean and logscale of the nine detail values from two networks of c(coarse)."""

    def __init__(self, hchnl, nhidden, start=0.0, channels=3):
        super().__init__()
        self.mean = ConvNet(channels, 3 * channels, hchnl, nhidden)
        self.logscale = ConvNet(channels, 3 * channels, hchnl, nhidden)
        nn.init.constant_(self.mean.last.bias, start)
        nn.init.constant_(self.logscale.last.bias, LOGSCALE_START)

    def forward(self, coarse, level, detail=None):
        """See the module."""
        c = centre(coarse)
        return self._given(self.mean(c), self.logscale(c))

    @staticmethod
    def _freeze(net, peaks, factor, offset):
        return net.freeze(peaks, factor, offset)


class SimplePrior(_IndependentPrior):
    """One mean and logscale for each channel and band, shared over levels and positions (-simplePrior)."""

    def __init__(self, start=0.0, channels=3):
        super().__init__()
        self.mean = nn.Parameter(torch.full((3 * channels, 1, 1), start))
        self.logscale = nn.Parameter(torch.full((3 * channels, 1, 1), LOGSCALE_START))

    def forward(self, coarse, level, detail=None):
        """See the module."""
        shape = (len(coarse), -1, *coarse.shape[-2:])
        return self._given(self.mean.expand(*shape), self.logscale.expand(*shape))


class LevelPriors(nn.Module):
    """Priors of the finest levels, one each; the last of them serves all deeper levels too."""

    def __init__(self, levels):
        super().__init__()
        self.levels = nn.ModuleList(levels)

    @property
    def order(self):
        """That of the bands: see source/bands.py."""
        return self.levels[0].order

    def parts(self, height):
        """See this module's docstring."""
        return self.levels[0].parts(height)

    def forward(self, coarse, level, detail=None, **wanted):
        """See this module's docstring; wanted: as of parts_in_turn."""
        return self.levels[min(level, len(self.levels) - 1)](coarse, level, detail, **wanted)

    def freeze(self, peaks):
        """The same of frozen priors; peaks: see utils/arithmetic/fixed.py, observe."""
        return LevelPriors(prior.freeze(peaks) for prior in self.levels)


class PositionPrior(_IndependentPrior):
    """One mean and logscale for each level, channel, band and position (-simplePrior -diffDetail).

    size: (height, width) of the only images that it knows; levels: the depth of their pyramid.
    """

    def __init__(self, size, levels, start=0.0, channels=3):
        super().__init__()
        shapes = [(3 * channels, *s) for s in level_sizes(*size, levels)[1:]]
        self.mean = nn.ParameterList(torch.full(s, start) for s in shapes)
        self.logscale = nn.ParameterList(torch.full(s, LOGSCALE_START) for s in shapes)

    def forward(self, coarse, level, detail=None):
        """See the module. Raises ValueError for images of another size."""
        if level >= len(self.mean) or coarse.shape[-2:] != self.mean[level].shape[-2:]:
            _refuse_size(self.mean)
        shape = (len(coarse), -1, -1, -1)
        return self._given(self.mean[level].expand(*shape), self.logscale[level].expand(*shape))
