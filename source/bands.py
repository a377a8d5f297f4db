"""The band-wise prior: each channel of each detail band under a mixture of discretised logistics, given the
coarse band, the bands already known and the channels of its own band already known.

A level takes nine distributions one after the other, each of them for all positions at once.
Everything is computed in steps between integers, with scales in octaves.
Source: the hierarchy is method 3's; mixtures and channels in turn as in PixelCNN++ (arXiv 1701.05517), bands
in turn as in SReC (arXiv 2004.02872).
"""

import math

import torch
from torch import nn

from source.distribution import FixedMixture, Mixture
from source.networks import Compand, Conv
from source.tables import SCALE
from source.units import (
    MAX_OCTAVE,
    MEAN_BITS,
    MIN_OCTAVE,
    SCALE_BITS,
    SCALES,
    SCALES_PER_OCTAVE,
    WEIGHT_SUM_BITS,
)
from utils.arithmetic.fixed import CONV_MAX, GRID, INPUT_MAX, check_finite, frozen, in_tiles, on_grid
from utils.arithmetic.integers import MIDDLE, STEPS
from utils.arithmetic.polyphase import extend

# Levels with a bias of their own: the finest ones; the last serves all deeper levels.
LEVELS = 5
# With more, sums of what FixedConv gives could pass what it takes: 2^9 (MAX_BLOCKS + 1) + 10 < 2^12.
MAX_BLOCKS = 6
# Where the samples of a band lie between those of the coarse band: their (row, column) offsets in its 3x3
# neighbourhood, of which the mean is the prediction to start from.
NEAREST = ((1, 1), (1, 2)), ((1, 1), (2, 1)), ((1, 1), (1, 2), (2, 1), (2, 2))
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
        return h + self.last(self.wide(h))


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

    def freeze(self):
        """The same to the integers of the coder."""
        return FixedMixer(self.components)


class FixedMixer(Mixer):
    """A Mixer that gives a FixedMixture: exact, as its inputs are on the grid and its powers in a table."""

    def __init__(self, components):
        super().__init__(components)
        self.register_buffer("table", torch.from_numpy(SCALE), persistent=False)

    def forward(self, outputs, base):
        """See Mixer."""
        logits, mean, octaves = self.fields(outputs)
        scale = torch.floor((octaves - MIN_OCTAVE) * SCALES_PER_OCTAVE + 0.5).long()
        mean = base + MIDDLE + mean * self.table[scale].double() * 2.0**-SCALE_BITS
        below = torch.floor((logits.amax(0) - logits) * SCALES_PER_OCTAVE + 0.5).long()
        weight = self.table[(SCALES - 1 - below).clamp(min=0)] >> SCALE_BITS + MAX_OCTAVE - WEIGHT_SUM_BITS
        return FixedMixture(weight, torch.floor(mean * (1 << MEAN_BITS) + 0.5).int(), scale.int())


class Band(nn.Module):
    """What one detail band is given: `features` of all that is known before it, then `mixture` by channel.

    index: which of ur, dl, dr; before: the number of bands known, the coarse one included; start: as in
    source/prior.py; at 0, where details are pixels, means start as the mean of the nearest coarse ones.
    """

    def __init__(self, index, before, width, blocks, components, start=0.0, channels=3):
        super().__init__()
        known, self.channels = before * channels, channels
        self.base = Conv(known, channels, 3, precise=True)
        self.enter = Conv(known + channels, width, 3, INPUT_GAIN, precise=True)
        self.compand = Compand()
        self.trunk = Conv(width, width, 1, 0.5, rectify=True)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        hidden = max(width // 2, 1)
        self.hidden = nn.ModuleList(Conv(width, hidden, 1) for _ in range(channels))
        self.beside = nn.ModuleList(Conv(2 * c, hidden, 1) for c in range(1, channels))
        self.linear = nn.ModuleList(Conv(c, 1, 1, 0.0, precise=True) for c in range(1, channels))
        self.out = nn.ModuleList(Conv(hidden, 3 * components, 1, 0.05, rectify=True) for _ in range(channels))
        self.mixer = Mixer(components)
        with torch.no_grad():
            self.base.weight.zero_()
            self.base.bias.fill_(STEPS * start)
            for row, column in NEAREST[index] if not start else ():
                self.base.weight[range(channels), range(channels), row, column] = 1 / len(NEAREST[index])
            spread = torch.linspace(-1, 1, components) if components > 1 else torch.zeros(1)
            for out in self.out:
                _, mean, octaves = out.bias.view(3, components)
                mean.copy_(spread / OUTPUT_GAIN)
                octaves.copy_((START_OCTAVES + spread) / OUTPUT_GAIN)

    def features(self, trunk, planes):
        """What a band's distributions are made of.

        trunk (B, width, H, W), known planes (B, known, H, W) -> base (B, C, H, W), features (B, width, H, W).
        """
        base = self.base(planes)
        entered = self.compand(self.enter(torch.cat([planes, base], 1)))
        return base, self.blocks(self.trunk(trunk) + entered).relu()

    def mixture(self, base, features, values):
        """The distribution of the channel that comes after `values`, (B, c, H, W) around 0."""
        c = values.shape[1]
        hidden, mean = self.hidden[c](features), base[:, c : c + 1]
        if c:
            errors = (values - base[:, :c]).clamp(-INPUT_MAX, INPUT_MAX)
            companded = self.compand(errors)
            hidden = hidden + self.beside[c - 1](torch.cat([companded, companded.abs()], 1))
            mean = mean + self.linear[c - 1](errors)
        return self.mixer(self.out[c](hidden), mean)


class BandPrior(nn.Module):
    """A trunk that sees the coarse band alone, then a network for each band; levels share all but a bias.

    width: channels of the networks; blocks: residual blocks of each band, and twice as many of the trunk;
    components: of each mixture; order: of the bands, 0 ur, 1 dl, 2 dr.
    """

    def __init__(self, width, blocks, components, order=(0, 1, 2), start=0.0, channels=3):
        super().__init__()
        self.parts = tuple((band, slice(c, c + 1)) for band in order for c in range(channels))
        self.channels = channels
        self.enter = Conv(channels, width, 3, INPUT_GAIN, precise=True)
        self.compand = Compand()
        self.level = nn.Parameter(torch.zeros(LEVELS, width, 1, 1))
        self.trunk = nn.Sequential(*(Residual(width) for _ in range(2 * blocks)))
        self.bands = nn.ModuleList(
            Band(index, k + 1, width, blocks, components, start, channels) for k, index in enumerate(order)
        )

    def forward(self, coarse, level):
        """See source/prior.py."""
        size, blocks = coarse.shape[-2:], len(self.trunk) // 2
        planes, state = self._planes(coarse, size), None
        (trunk,) = in_tiles(lambda x: (self._look(x, level),), 1 + 2 * blocks, planes)

        def given(known):
            nonlocal planes, state
            if known:
                planes = torch.cat([planes, self._planes(known[-1], size)], 1)
            band, channel = divmod(len(known), self.channels)
            if not channel:
                state = None  # before the next: each is as large as the trunk
                state = in_tiles(self.bands[band].features, 2 + blocks, trunk, planes)
            values = planes[:, planes.shape[1] - channel :]
            return in_tiles(self.bands[band].mixture, 0, *state, values)

        return given

    @staticmethod
    def _planes(band, size):
        """A band as the networks see it: as large as the coarse band, around 0, within what is exact."""
        return (extend(band, size, MIDDLE) - MIDDLE).clamp(-INPUT_MAX, INPUT_MAX)

    def _look(self, coarse, level):
        bias = self.level[min(level, LEVELS - 1)]
        entered = self.compand(self.enter(coarse))
        return self.trunk(
            entered + (bias.to(entered.dtype) if bias.is_floating_point() else bias.double() * GRID)
        )

    def freeze(self):
        """Turn to fixed point: from now on, distributions are FixedMixture. May raise ValueError."""
        check_finite(self.level)
        level = self.level.detach().double().clamp(-CONV_MAX, CONV_MAX)
        frozen(self)
        del self.level
        self.register_buffer("level", (on_grid(level) / GRID).to(torch.int32))
        return self
