"""The hierarchical prior: the top under a mixture, the details of each level given its coarse band.

Every prior of details is a module with
    given = prior(coarse, level)        level 0 is the finest
    distribution = given(known)         of each part, once and in turn; known: a list of those before
    prior.parts                         what the parts are: (band 0 ur, 1 dl, 2 dr; slice of its channels)
so that a prior may let a part depend on those before it. Evaluation and encoding take the parts from
`given_parts`, sampling and decoding from `generate_details`, its inverse. Distributions have the size of the
coarse band; these two crop them. `start` is where means start, in the networks' range.
Source: method 3.
"""

import math

import torch
from torch import nn

from source.distribution import FixedMixture, Mixture, cropped
from source.networks import ConvNet
from source.units import MEAN_BITS, MIN_OCTAVE, SCALES_PER_OCTAVE, WEIGHT_SUM_BITS
from utils.arithmetic.fixed import FixedNetwork
from utils.arithmetic.integers import MIDDLE, STEPS, centre
from utils.arithmetic.polyphase import band_sizes, channels_last, level_sizes

BANDS = 3
LOGSCALE_START = -3.0
# Networks' range to the coder's integers (source/units.py): means of steps 1/64, 32 scales to the octave.
MEAN_FACTOR, MEAN_OFFSET = STEPS << MEAN_BITS, MIDDLE << MEAN_BITS
SCALE_FACTOR = SCALES_PER_OCTAVE / math.log(2)
SCALE_OFFSET = SCALES_PER_OCTAVE * (math.log2(STEPS) - MIN_OCTAVE)
TOP_WEIGHTS = 1 << WEIGHT_SUM_BITS


def given_parts(prior, coarse, level, detail):
    """Yield (distribution, values) of each part of known details (ur, dl, dr), in the prior's order."""
    given, known = prior(coarse, level), []
    for values in split_parts(prior, detail):
        yield cropped(given(known), values.shape[-2:]), values
        known.append(values)


def generate_details(prior, coarse, level, size, values_of):
    """Details (ur, dl, dr), part by part in the prior's order: values_of(distribution), known from then on.

    size: (height, width) of what coarse and details make. values_of: distribution -> (B, c, h, w).
    """
    given, known, sizes = prior(coarse, level), [], band_sizes(*size)[1:]
    for band, _ in prior.parts:
        known.append(values_of(cropped(given(known), sizes[band])))
    return join_parts(prior, known)


def split_parts(prior, detail):
    """Details (ur, dl, dr) -> a list of the prior's parts of them, (B, c, h, w). Inverse: join_parts."""
    return [detail[band][:, channels] for band, channels in prior.parts]


def join_parts(prior, parts):
    """What a list holds for each of the prior's parts, (B, c, h, w), as bands: (ur, dl, dr)."""
    bands = ([part for part, (k, _) in zip(parts, prior.parts) if k == band] for band in range(BANDS))
    return tuple(channels_last(torch.cat(band, 1)) if len(band) > 1 else band[0] for band in bands)


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
        """The same in the integers of the coder."""
        logits, mean, logscale = (f.detach().double() for f in self.fields())
        weight = torch.round(torch.softmax(logits, 0) * TOP_WEIGHTS)
        mean = torch.round(mean * MEAN_FACTOR + MEAN_OFFSET)
        return FixedTop(weight, mean, torch.round(logscale * SCALE_FACTOR + SCALE_OFFSET))


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


def _freeze(part, factor, offset):
    """A network, a parameter or a list of them as one that gives round(factor x + offset)."""
    if isinstance(part, nn.ParameterList):
        return nn.ParameterList(_freeze(p, factor, offset) for p in part)
    if isinstance(part, nn.Parameter):
        return nn.Parameter(torch.round(part.detach().double() * factor + offset), requires_grad=False)
    return FixedNetwork.of(part, factor, offset)


class _IndependentPrior(nn.Module):
    """A prior whose bands do not depend on each other: one mean and one logscale for each detail value."""

    kind = Mixture
    parts = tuple((band, slice(None)) for band in range(BANDS))

    def _given(self, mean, logscale):
        """The bands' distributions from nine channels of each, (B, 9, h, w)."""
        fields = zip(mean.chunk(BANDS, 1), logscale.chunk(BANDS, 1))
        bands = [self.kind.logistic(*both) for both in fields]
        return lambda known: bands[len(known)]

    def freeze(self):
        """Turn to fixed point: from now on, distributions are FixedMixture."""
        self.kind = FixedMixture
        self.mean = _freeze(self.mean, MEAN_FACTOR, MEAN_OFFSET)
        self.logscale = _freeze(self.logscale, SCALE_FACTOR, SCALE_OFFSET)
        return self


class ConditionalPrior(_IndependentPrior):
    """The paper's: mean and logscale of the nine detail values from two networks of c(coarse)."""

    def __init__(self, hchnl, nhidden, start=0.0, channels=3):
        super().__init__()
        self.mean = ConvNet(channels, BANDS * channels, hchnl, nhidden)
        self.logscale = ConvNet(channels, BANDS * channels, hchnl, nhidden)
        nn.init.constant_(self.mean.last.bias, start)
        nn.init.constant_(self.logscale.last.bias, LOGSCALE_START)

    def forward(self, coarse, level):
        """See the module."""
        c = centre(coarse)
        return self._given(self.mean(c), self.logscale(c))


class SimplePrior(_IndependentPrior):
    """One mean and logscale for each channel and band, shared over levels and positions (-simplePrior)."""

    def __init__(self, start=0.0, channels=3):
        super().__init__()
        self.mean = nn.Parameter(torch.full((BANDS * channels, 1, 1), start))
        self.logscale = nn.Parameter(torch.full((BANDS * channels, 1, 1), LOGSCALE_START))

    def forward(self, coarse, level):
        """See the module."""
        shape = (len(coarse), -1, *coarse.shape[-2:])
        return self._given(self.mean.expand(*shape), self.logscale.expand(*shape))


class PositionPrior(_IndependentPrior):
    """One mean and logscale for each level, channel, band and position (-simplePrior -diffDetail).

    size: (height, width) of the only images that it knows; levels: the depth of their pyramid.
    """

    def __init__(self, size, levels, start=0.0, channels=3):
        super().__init__()
        shapes = [(BANDS * channels, *s) for s in level_sizes(*size, levels)[1:]]
        self.size = tuple(size)
        self.mean = nn.ParameterList(torch.full(s, start) for s in shapes)
        self.logscale = nn.ParameterList(torch.full(s, LOGSCALE_START) for s in shapes)

    def forward(self, coarse, level):
        """See the module. Raises ValueError for images of another size."""
        if level >= len(self.mean) or coarse.shape[-2:] != self.mean[level].shape[-2:]:
            raise ValueError(f"a model with -diffDetail knows images of {self.size[0]}x{self.size[1]} only")
        shape = (len(coarse), -1, -1, -1)
        return self._given(self.mean[level].expand(*shape), self.logscale[level].expand(*shape))
