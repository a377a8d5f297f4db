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

from source.logistic import FixedMixture, Mixture
from source.rans import MEAN_BITS, SCALE_BITS, WEIGHT_BITS
from source.tables import MAX_OCTAVE, MIN_OCTAVE, SCALE, SCALES, SCALES_PER_OCTAVE
from utils.fixed import INPUT_MAX, frozen, on_grid
from utils.integers import MIDDLE, STEPS
from utils.network import Compand, Conv
from utils.polyphase import extend

# Levels with a bias of their own: the finest ones; the last serves all deeper levels.
LEVELS = 5
# Where the samples of a band lie between those of the coarse band: their (row, column) offsets in its 3x3
# neighbourhood, of which the mean is the prediction to start from.
NEAREST = ((1, 1), (1, 2)), ((1, 1), (2, 1)), ((1, 1), (1, 2), (2, 1), (2, 2))
# Outputs count so much, so that they move as fast as the weights inside.
OUTPUT_GAIN, INPUT_GAIN = 4.0, 2.0
START_OCTAVES = 2.0


class Residual(nn.Module):
    """h + conv1x1(ReLU(conv3x3(ReLU(h)))): (B, width, H, W)."""

    def __init__(self, width):
        super().__init__()
        self.wide, self.last = Conv(width, width, 3), Conv(width, width, 1, gain=0.1)

    def forward(self, h):
        """See the class."""
        return h + self.last(self.wide(h.relu()).relu_())


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

    def forward(self, outputs, base):
        """See Mixer."""
        logits, mean, octaves = self.fields(outputs)
        scale = torch.floor((octaves - MIN_OCTAVE) * SCALES_PER_OCTAVE + 0.5).long()
        table = torch.from_numpy(SCALE).to(base.device)
        mean = base + MIDDLE + mean * table[scale].double() * 2.0**-SCALE_BITS
        below = torch.floor((logits.amax(0) - logits) * SCALES_PER_OCTAVE + 0.5).long()
        weight = table[(SCALES - 1 - below).clamp(min=0)] >> SCALE_BITS + MAX_OCTAVE - WEIGHT_BITS
        return FixedMixture(weight, torch.floor(mean * (1 << MEAN_BITS) + 0.5).int(), scale.int())


class Band(nn.Module):
    """What one detail band is given: `features` of all that is known before it, then `mixture` by channel.

    index: which of ur, dl, dr; before: the number of bands known, the coarse one included.
    """

    def __init__(self, index, before, width, blocks, components, channels=3):
        super().__init__()
        known, self.channels = before * channels, channels
        self.base = Conv(known, channels, 3, precise=True)
        self.enter = Conv(known + channels, width, 3, INPUT_GAIN, precise=True)
        self.compand = Compand()
        self.trunk = Conv(width, width, 1, 0.5)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        hidden = max(width // 2, 1)
        self.hidden = nn.ModuleList(Conv(width, hidden, 1) for _ in range(channels))
        self.beside = nn.ModuleList(Conv(2 * c, hidden, 1) for c in range(1, channels))
        self.linear = nn.ModuleList(Conv(c, 1, 1, 0.0, precise=True) for c in range(1, channels))
        self.out = nn.ModuleList(Conv(hidden, 3 * components, 1, 0.05) for _ in range(channels))
        self.mixer = Mixer(components)
        with torch.no_grad():
            self.base.weight.zero_()
            for channel in range(channels):
                for row, column in NEAREST[index]:
                    self.base.weight[channel, channel, row, column] = 1 / len(NEAREST[index])
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
        return base, self.blocks(self.trunk(trunk.relu()) + entered).relu()

    def mixture(self, base, features, values):
        """The distribution of the channel that comes after `values`, a list of (B, 1, H, W) around 0."""
        c = len(values)
        hidden, mean = self.hidden[c](features), base[:, c : c + 1]
        if c:
            errors = (torch.cat(values, 1) - base[:, :c]).clamp(-INPUT_MAX, INPUT_MAX)
            companded = self.compand(errors)
            hidden = hidden + self.beside[c - 1](torch.cat([companded, companded.abs()], 1))
            mean = mean + self.linear[c - 1](errors)
        return self.mixer(self.out[c](hidden.relu()), mean)


class BandPrior(nn.Module):
    """A trunk that sees the coarse band alone, then a network for each band; but for a bias, levels share them.

    width: channels of the networks; blocks: residual blocks of each band, and twice as many of the trunk;
    components: of each mixture; order: of the bands, 0 ur, 1 dl, 2 dr.
    """

    def __init__(self, width, blocks, components, order=(0, 1, 2), channels=3):
        super().__init__()
        self.parts = tuple((band, slice(c, c + 1)) for band in order for c in range(channels))
        self.channels = channels
        self.enter = Conv(channels, width, 3, INPUT_GAIN, precise=True)
        self.compand = Compand()
        self.level = nn.Parameter(torch.zeros(LEVELS, width, 1, 1))
        self.trunk = nn.Sequential(*(Residual(width) for _ in range(2 * blocks)))
        self.bands = nn.ModuleList(
            Band(index, k + 1, width, blocks, components, channels) for k, index in enumerate(order)
        )

    def forward(self, coarse, level):
        """See source/prior.py."""
        size, planes = coarse.shape[-2:], [_plane(coarse)]
        entered = self.compand(self.enter(planes[0]))
        trunk = self.trunk(entered + self.level[min(level, LEVELS - 1)].to(entered.dtype))
        state = None

        def given(known):
            nonlocal state
            k, c = divmod(len(known), self.channels)
            beside = [_plane(extend(part, size, MIDDLE)) for part in known[k * self.channels :]]
            if not c:
                if k:
                    last = known[(k - 1) * self.channels : k * self.channels]
                    planes.append(torch.cat([_plane(extend(part, size, MIDDLE)) for part in last], 1))
                state = self.bands[k].features(trunk, torch.cat(planes, 1))
            return self.bands[k].mixture(*state, beside)

        return given

    def freeze(self):
        """Turn to fixed point: from now on, distributions are FixedMixture."""
        frozen(self)
        self.level.data = on_grid(self.level.detach().double())
        return self


def _plane(band):
    """A band as the networks see it: around 0, within what fixed point admits."""
    return (band - MIDDLE).clamp(-INPUT_MAX, INPUT_MAX)
